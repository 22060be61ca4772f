//! Who goes first, how much of a prompt one step takes, and who gives way: pure functions over small copies.

/// Smaller goes first. The second part is the order of arrival, so ranks are unique and runs repeat.
pub type Rank = (i64, u64);

/// What a policy sees of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Order of `Scheduler::add`.
    pub arrival: u64,
    /// The caller's; smaller is more urgent.
    pub priority: i32,
    pub prompt_len: u32,
    pub max_tokens: u32,
}

/// A prompt that wants a share of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkView {
    /// Tokens it could run, at least 1.
    pub todo: u32,
    /// Tokens that the step has left for it, by number and by what they cost; at least 1.
    pub left: u32,
    /// Whether somebody behind it wants a share as well.
    pub contended: bool,
}

/// A running sequence when blocks are short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VictimView {
    pub rank: Rank,
    /// It may not generate now: its reader is behind.
    pub held: bool,
}

/// An order over sequences. Ranks are asked for once, when a sequence is added.
pub trait Policy: Send + std::fmt::Debug {
    fn rank(&self, c: &Candidate) -> Rank;

    /// Prompt tokens to run now, from 1 to `min(todo, left)`. By default a long prompt leaves a quarter of what is left
    /// to those behind it, so that a short one need not wait for all of it.
    fn chunk(&self, c: &ChunkView) -> u32 {
        let share = if c.contended { c.left - c.left / 4 } else { c.left };
        c.todo.min(share)
    }

    /// Whether a running sequence gives way so that a waiting one can start. By default nobody does.
    fn yields(&self, running: Rank, waiting: Rank) -> bool {
        let _ = (running, waiting);
        false
    }

    /// The largest gives way first. By default those that cannot run anyway, then the last ranked.
    fn victim(&self, v: &VictimView) -> (u32, Rank) {
        (u32::from(v.held), v.rank)
    }
}

/// First come, first served.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fcfs;

impl Policy for Fcfs {
    fn rank(&self, c: &Candidate) -> Rank {
        (0, c.arrival)
    }
}

/// The most urgent first, by arrival among equals. A running sequence gives way to a more urgent one that waits; one that
/// is not urgent waits for as long as more urgent ones keep coming.
#[derive(Debug, Clone, Copy, Default)]
pub struct Priority;

impl Policy for Priority {
    fn rank(&self, c: &Candidate) -> Rank {
        (i64::from(c.priority), c.arrival)
    }
    fn yields(&self, running: Rank, waiting: Rank) -> bool {
        running.0 > waiting.0
    }
}

/// Shortest prompt first, for batch work: a long one waits for as long as shorter ones keep coming.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShortestPrompt;

impl Policy for ShortestPrompt {
    fn rank(&self, c: &Candidate) -> Rank {
        (i64::from(c.prompt_len), c.arrival)
    }
}

/// The registry, by the names of the config.
pub const NAMES: [&str; 3] = ["fcfs", "priority", "shortest_prompt"];

/// The policy of a name in [`NAMES`].
pub fn by_name(name: &str) -> Option<Box<dyn Policy>> {
    match name {
        "fcfs" => Some(Box::new(Fcfs)),
        "priority" => Some(Box::new(Priority)),
        "shortest_prompt" => Some(Box::new(ShortestPrompt)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_by_arrival_priority_or_prompt() {
        let early = Candidate { arrival: 1, priority: 0, prompt_len: 90, max_tokens: 1 };
        let late = Candidate { arrival: 2, priority: -1, prompt_len: 10, max_tokens: 1 };
        assert!(Fcfs.rank(&early) < Fcfs.rank(&late));
        assert!(ShortestPrompt.rank(&late) < ShortestPrompt.rank(&early));
        let (early, late) = (Priority.rank(&early), Priority.rank(&late));
        assert!(late < early && Priority.yields(early, late) && !Priority.yields(late, early));
        assert!(!Fcfs.yields(early, late) && !Priority.yields((3, 9), (3, 1)));
        assert!(NAMES.into_iter().all(|name| by_name(name).is_some()) && by_name("best").is_none());
    }

    #[test]
    fn a_chunk_stays_within_bounds_and_leaves_room_when_contended() {
        for (todo, left, contended, want) in
            [(9, 4, false, 4), (9, 4, true, 3), (1, 1, true, 1), (2, 100, true, 2), (90, 3, true, 3)]
        {
            assert_eq!(Fcfs.chunk(&ChunkView { todo, left, contended }), want, "{todo} {left} {contended}");
        }
    }

    #[test]
    fn held_ones_give_way_first_then_the_last_ranked() {
        let v = |arrival, held| Fcfs.victim(&VictimView { rank: (0, arrival), held });
        assert!(v(1, true) > v(9, false));
        assert!(v(9, false) > v(1, false));
    }
}
