//! Requests that can never run, and sequences that have outgrown all blocks.

use crate::base::Error;
use crate::plan::FinishReason;
use crate::sched::Event;
use crate::sched::scheduler::Scheduler;

impl Scheduler {
    /// Why a prompt of this length can never run.
    pub(super) fn refusal(&self, prompt_len: u32) -> Option<Error> {
        let (len, max) = (prompt_len as usize, self.cfg.max_model_len);
        if len >= max {
            return Some(Error::invalid(format!(
                "the prompt has {len} tokens; the model's length is {max} tokens, prompt and output together, so a \
                 prompt may have at most {}",
                max.saturating_sub(1)
            )));
        }
        (len + 1 > self.capacity()).then(|| self.too_large(len + 1))
    }

    /// Tokens all blocks together can hold.
    pub(super) fn capacity(&self) -> usize {
        self.cfg.num_blocks as usize * self.cfg.block_size as usize
    }

    pub(super) fn too_large(&self, tokens: usize) -> Error {
        Error::no_memory(format!(
            "the sequence needs KV memory for {tokens} tokens; all {} blocks of {} tokens hold {}: raise kv_cache_bytes \
             or shorten the prompt or max_tokens",
            self.cfg.num_blocks,
            self.cfg.block_size,
            self.capacity()
        ))
    }

    /// Ends those that can never run.
    pub(super) fn refuse(&mut self, events: &mut Vec<Event>) {
        for id in std::mem::take(&mut self.refused) {
            // It may have been cancelled since.
            let Some(&slot) = self.by_id.get(&id) else { continue };
            let error = self.seqs[slot].rest.refusal.take();
            self.finish(slot, FinishReason::Error, error, events);
        }
        self.reap();
    }
}
