//! How fast sequences start. Those that start together are of one length all the time, and where they would not fit together in the
//! end, some wait until the first have ended. If they start one after the other instead, all may fit, as the first ends before the
//! last has grown: prompts then get as few tokens of a step as that takes. A step's cost goes with its tokens, so little is lost.

use crate::sched::draft::Draft;
use crate::sched::growth::{Grower, peak};
use crate::sched::scheduler::Scheduler;

/// Waiting sequences that stand for all.
const SAMPLE: usize = 256;
/// Calls of `schedule` for which a pace is kept.
const KEEP: u64 = 16;

/// Tokens of prompts a step, where they are bounded.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tokens: Option<u64>,
    /// The call of `schedule` at which to look again.
    until: u64,
    /// How many waited; with twice as many it is looked at once.
    waiting: usize,
}

impl Scheduler {
    /// Leaves prompts as many tokens of a step as the pace allows. Where nobody runs there is nothing to keep pace with.
    pub(super) fn pace(&mut self, draft: &mut Draft) {
        if draft.left == 0 || self.waiting.is_empty() || self.rows.is_empty() || self.num_running() == 0 {
            return;
        }
        if self.calls >= self.pace.until || self.waiting.len() > 2 * self.pace.waiting {
            let tokens = self.find_pace(draft);
            self.pace = Pace { tokens, until: self.calls + KEEP, waiting: self.waiting.len() };
        }
        if let Some(tokens) = self.pace.tokens {
            draft.left = u64::from(draft.left).min(tokens.max(u64::from(self.cfg.block_size))) as u32;
        }
    }

    /// Of `count` sequences that start over as many steps as come to `count * steps / 2` tokens, so many are not there yet when the
    /// first one ends. No slower than those that end would be replaced if sequences of all ages ran.
    fn find_pace(&mut self, draft: &mut Draft) -> Option<u64> {
        let size = u64::from(self.cfg.block_size);
        let growth = self.survey(draft);
        self.peak_of_running(draft);
        let (prompt, output) = self.usual_waiting();
        // They share as much as those that run.
        let prompt = growth.own(prompt);
        let all_ages = u64::from(self.cfg.num_blocks) * size / (prompt + output / 2).max(1);
        let running = self.num_running() as u64;
        let starts = self.waiting.len().min(self.rows.len()) as u64;
        let starts = starts.min(all_ages.saturating_sub(running)).max(1);
        let starter = Grower { left: output as u32, held: prompt.div_ceil(size) as u32 };
        let grown = peak(&self.growers, (starter, starts), size);
        let needed = starts * u64::from(starter.held) + grown + (running + starts) / 2;
        let over = size * needed.checked_sub(u64::from(self.pool.num_free())).filter(|over| *over > 0)?;
        let replaced = all_ages.min(self.cfg.max_seqs as u64) * prompt / output.max(1);
        Some((starts * starts * prompt / (2 * over)).max(replaced))
    }

    /// Tokens of prompt and output of those that wait, on average.
    fn usual_waiting(&self) -> (u64, u64) {
        let waiting = self.waiting.iter().take(SAMPLE).map(|&(_, slot)| &self.seqs[slot]);
        let (mut count, mut prompt, mut output) = (0, 0, 0);
        for s in waiting {
            count += 1;
            prompt += u64::from(s.tokens.len());
            output += u64::from(self.outputs.left(s));
        }
        (prompt / count.max(1), output / count.max(1))
    }
}
