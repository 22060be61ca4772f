//! Who starts: waiting sequences in rank order, with what the prefix cache already holds for them.
//!
//! Admission takes the blocks of everything the sequence knows at once, so a prompt under way never runs short, and only
//! where what runs is taken to fit when it has grown. One that does not fit yet blocks nobody behind it who does, until
//! [`PASS_LIMIT`] admissions have passed it over: from then on nobody behind it is admitted before it. One whose next
//! block is being computed by a running sequence waits for that block instead of computing it again; a running sequence
//! waits for nobody, so this cannot deadlock.

use crate::plan::FinishReason;
use crate::sched::draft::Draft;
use crate::sched::prefix::{Key, ROOT};
use crate::sched::scheduler::Scheduler;
use crate::sched::sequence::{Misfit, Place};
use crate::sched::{Event, Planted};

/// Admissions that may pass over a sequence that does not fit.
pub(super) const PASS_LIMIT: u32 = 64;
/// Waiting sequences looked at per step.
const SCAN: usize = 256;
/// Of these, how many may newly turn out not to fit: each costs a walk along its prefix. Known misfits cost nothing.
const LOOKS: usize = 32;
/// Calls of `schedule` for which a misfit is believed.
const RETRY: u64 = 16;

/// What came of looking at a waiting sequence.
enum Attempt {
    Admitted,
    /// Another sequence is computing a block it needs.
    Shares,
    /// Not enough blocks are free.
    NoRoom,
    /// Neither are they now: it was not looked at closer.
    StillNoRoom,
    /// The step may cost no more.
    Spent,
    /// It is too large for all blocks and has ended.
    Ended,
}

impl Scheduler {
    pub(super) fn admit(&mut self, draft: &mut Draft, events: &mut Vec<Event>) {
        if draft.short || self.waiting.is_empty() || !self.may_admit(draft) {
            return;
        }
        self.publish_all();
        let mut scan = std::mem::take(&mut self.scan);
        scan.clear();
        scan.extend(self.waiting.iter().take(SCAN).map(|&(_, slot)| slot));
        let mut misfits = [0; SCAN];
        let (mut num_misfits, mut looks) = (0, 0);
        for (i, &slot) in scan.iter().enumerate() {
            if !self.may_admit(draft) {
                break;
            }
            let attempt = self.try_admit(slot, i + 1 < scan.len(), draft, events);
            match attempt {
                Attempt::Admitted => {
                    for &passed in &misfits[..num_misfits] {
                        self.seqs[passed].rest.passed += 1;
                    }
                }
                Attempt::NoRoom | Attempt::StillNoRoom => {
                    misfits[num_misfits] = slot;
                    num_misfits += 1;
                    looks += usize::from(matches!(attempt, Attempt::NoRoom));
                    if self.seqs[slot].rest.passed >= PASS_LIMIT || looks == LOOKS {
                        break;
                    }
                }
                // Nobody behind it starts first, or a long prefix could wait for ever.
                Attempt::Spent => break,
                Attempt::Shares | Attempt::Ended => {}
            }
        }
        self.scan = scan;
        self.reap();
    }

    fn may_admit(&self, draft: &Draft) -> bool {
        draft.left > 0 && !self.rows.is_empty() && self.pool.num_free() > 0 && self.room(0, draft) > 0
    }

    fn try_admit(&mut self, slot: u32, contended: bool, draft: &mut Draft, events: &mut Vec<Event>) -> Attempt {
        if self.seqs[slot].rest.awaits.is_some_and(|hash| self.prefix.announced(hash).is_some()) {
            return Attempt::Shares;
        }
        if self.is_known_misfit(slot) {
            return Attempt::StillNoRoom;
        }
        let len = self.seqs[slot].tokens.len();
        let total = len.div_ceil(self.cfg.block_size);
        if total > self.cfg.num_blocks {
            let error = self.too_large(len as usize);
            self.finish(slot, FinishReason::Error, Some(error), events);
            return Attempt::Ended;
        }
        let serial = self.find_hits(slot);
        let hits = self.hits.len();
        let next = self.seqs[slot].rest.chain.get(hits).copied().filter(|_| hits < self.sharable(slot));
        if next.is_some_and(|hash| self.prefix.announced(hash).is_some()) {
            self.stats.shared_waits += 1;
            self.seqs[slot].rest.awaits = next;
            return Attempt::Shares;
        }
        let revived = self.hits.iter().filter(|b| self.pool.refs(**b) == 0).count() as u32;
        // Half a block for each that runs, or the next decode steps would preempt: without it the pressure bench computes
        // 8 % of its tokens again, with it 0.4 %. Twice as much only leaves blocks idle.
        let headroom = self.running.len() as u32 / 2;
        let fresh = total - hits as u32;
        let mut needed = fresh + revived + headroom;
        if let Some(room) = self.pool.num_free().checked_sub(needed) {
            // In whole blocks; what each wastes of its last one is in the headroom.
            needed = needed.saturating_add(self.growth(slot, (fresh, room), draft));
        }
        if needed > self.pool.num_free() {
            self.seqs[slot].rest.misfit = Some(Misfit { needed, retry: self.calls + RETRY });
            return Attempt::NoRoom;
        }
        let room = self.room(hits as u32 * self.cfg.block_size, draft);
        if room == 0 {
            return Attempt::Spent;
        }
        self.enter(slot, fresh, serial, events);
        self.grows(slot, fresh, draft);
        let len = self.chunk(self.seqs[slot].todo(), room, contended);
        self.push_entry(slot, len, draft);
        Attempt::Admitted
    }

    /// Whether it did not fit lately and no more blocks are free now than it needed then. Saves walking its prefix at
    /// every step; what others have published since is seen at the next real look. With nobody running every look is
    /// real, so this cannot stall.
    fn is_known_misfit(&self, slot: u32) -> bool {
        !self.running.is_empty()
            && self.seqs[slot].rest.misfit.is_some_and(|m| self.pool.num_free() < m.needed && self.calls < m.retry)
    }

    /// Full blocks that may come from the cache: a position whose logits are wanted is computed, as the last token's
    /// always are and the prompt's while they are to be reported.
    fn sharable(&self, slot: u32) -> usize {
        let s = &self.seqs[slot];
        let len = s.tokens.len() - u32::from(!self.planted(Planted::LastTokenSkipped));
        let unscored = s.rest.scored + 1 < s.prompt_len && !self.planted(Planted::ScoresFromCache);
        let len = if unscored { len.min(s.rest.scored) } else { len };
        if self.cfg.prefix_cache { (len / self.cfg.block_size) as usize } else { 0 }
    }

    /// Collects the longest cached chain of full blocks in `hits`, and returns the serial of its end.
    fn find_hits(&mut self, slot: u32) -> u64 {
        self.hits.clear();
        let (most, size) = (self.sharable(slot), self.cfg.block_size as usize);
        let s = &mut self.seqs[slot];
        let (rest, blocks) = (&s.rest, s.tokens.all().chunks_exact(size));
        let mut parent = ROOT;
        for (tokens, &hash) in blocks.zip(&rest.chain).take(most) {
            let key = Key { hash, parent, salt: rest.salt, tokens };
            let Some((block, serial)) = self.prefix.find(&key) else { break };
            self.hits.push(block);
            parent = serial;
        }
        parent
    }

    /// Gives a waiting sequence its row and blocks.
    fn enter(&mut self, slot: u32, fresh: u32, serial: u64, events: &mut Vec<Event>) {
        for &block in &self.hits {
            if !self.planted(Planted::HitUncounted) || self.pool.refs(block) == 0 {
                self.pool.acquire(block);
            }
        }
        let s = &mut self.seqs[slot];
        self.hits.iter().for_each(|&block| s.add_block(block));
        for _ in 0..fresh {
            // `try_admit` counted the free blocks.
            let Some(block) = self.pool.alloc() else { break };
            if self.planted != Some(Planted::EvictedStillIndexed) {
                self.prefix.evict(block);
            }
            s.add_block(block);
        }
        let cached = self.hits.len() as u32 * self.cfg.block_size;
        s.computed = cached;
        s.done = cached;
        s.published = self.hits.len() as u32;
        s.told = 0;
        s.rest.serial = Some(serial);
        s.rest.link = self.hits.len().checked_sub(1).map_or(s.rest.salt, |last| s.rest.chain[last]);
        s.rest.announced = s.rest.chain.len() as u32;
        s.rest.awaits = None;
        s.rest.passed = 0;
        s.rest.misfit = None;
        s.place = Place::Running;
        s.row_init = !(s.rest.started && self.planted == Some(Planted::RowStale));
        if let Some(row) = self.rows.pop() {
            s.row = row;
        }
        for &hash in &s.rest.chain[self.hits.len()..] {
            self.prefix.announce(hash, slot);
        }
        if !s.rest.started {
            s.rest.started = true;
            events.push(Event::Started { seq: s.id, cached_tokens: cached });
        }
        self.stats.hit_tokens += u64::from(cached);
        self.stats.lookup_tokens += u64::from(s.tokens.len());
        let rank = s.rest.rank;
        self.waiting.remove(&(rank, slot));
        let at = self.running.partition_point(|r| r.0 < rank);
        self.running.insert(at, (rank, slot));
    }
}
