//! Where the ranks of one model are in their steps: what a group keeps whose devices meet without the host.

use crate::base::{Error, ErrorKind, Result};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    /// Steps it has begun and sums it has enqueued beside them; on all ranks the same, unless one has gone ahead.
    parts: u64,
    /// It has begun a step and not yet left it.
    inside: bool,
}

/// The ranks of a group, and the first failure among them.
#[derive(Debug)]
pub(super) struct Roll {
    marks: Vec<Mark>,
    /// Ranks that wait for the others on the host.
    waiting: usize,
    round: u64,
    failed: Option<Error>,
    lost: Option<Error>,
}

impl Roll {
    pub(super) fn new(ranks: usize) -> Self {
        Self { marks: vec![Mark::default(); ranks], waiting: 0, round: 0, failed: None, lost: None }
    }

    /// An error where a rank has failed.
    pub(super) fn check(&self) -> Result<()> {
        self.failed.as_ref().map_or(Ok(()), |e| Err(e.clone().within("another rank failed")))
    }

    /// `rank` begins a step.
    pub(super) fn begin(&mut self, rank: usize) -> Result<()> {
        self.check()?;
        self.marks[rank].parts += 1;
        self.marks[rank].inside = true;
        Ok(())
    }

    /// `rank` enqueues so many sums.
    pub(super) fn add(&mut self, rank: usize, sums: u64) {
        self.marks[rank].parts += sums;
    }

    pub(super) fn leave(&mut self, rank: usize) {
        self.marks[rank].inside = false;
    }

    /// Whether a device may wait for a rank that has not enqueued its part.
    pub(super) fn apart(&self) -> bool {
        self.marks.iter().any(|mark| mark.inside || mark.parts != self.marks[0].parts)
    }

    /// The ranks that others wait for.
    pub(super) fn late(&self) -> Vec<usize> {
        let most = self.marks.iter().map(|mark| mark.parts).max().unwrap_or(0);
        (0..self.marks.len()).filter(|rank| self.marks[*rank].parts < most).collect()
    }

    /// The first failure counts.
    pub(super) fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.clone());
    }

    /// The same for good: the ranks were in the middle of a step. False when they were lost before.
    pub(super) fn lose(&mut self, error: &Error, devices: &str) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let first = self.failed.get_or_insert_with(|| error.clone());
        let text =
            format!("{}; the model's {devices} were in the middle of a step and cannot meet again", first.message);
        self.lost = Some(Error::new(ErrorKind::DeviceLost, text));
        true
    }

    pub(super) fn lost(&self) -> Option<Error> {
        self.lost.clone()
    }

    /// Begins anew and takes the first failure, unless it was for good.
    pub(super) fn reset(&mut self) -> Option<Error> {
        self.waiting = 0;
        self.marks.iter_mut().for_each(|mark| mark.inside = false);
        if self.lost.is_some() { self.failed.clone() } else { self.failed.take() }
    }
}

/// What a group keeps beside its roll.
pub(super) trait Rolled {
    fn roll(&mut self) -> &mut Roll;
}

pub(super) fn lock<S>(state: &Mutex<S>) -> MutexGuard<'_, S> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns once all ranks are here, or an error once one has failed. `changed` tells of both.
pub(super) fn meet<S: Rolled>(state: &Mutex<S>, changed: &Condvar) -> Result<()> {
    let mut state = lock(state);
    let roll = state.roll();
    let round = roll.round;
    roll.waiting += 1;
    if roll.waiting == roll.marks.len() {
        roll.waiting = 0;
        roll.round += 1;
        changed.notify_all();
    }
    let waits = |s: &mut S| s.roll().round == round && s.roll().failed.is_none();
    let mut state = changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
    let roll = state.roll();
    if roll.round == round { roll.check() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Rolled for Roll {
        fn roll(&mut self) -> &mut Roll {
            self
        }
    }

    #[test]
    fn ranks_are_apart_inside_of_a_step_and_where_one_has_gone_ahead() {
        let mut roll = Roll::new(2);
        roll.begin(0).unwrap();
        roll.leave(0);
        assert!(roll.apart() && roll.late() == [1]);
        roll.begin(1).unwrap();
        assert!(roll.apart() && roll.late().is_empty());
        roll.leave(1);
        roll.add(0, 1);
        roll.add(1, 1);
        assert!(!roll.apart());
    }

    #[test]
    fn a_failure_is_taken_once_and_one_for_good_stays() {
        let (first, second) = (Error::internal("first"), Error::internal("second"));
        let mut roll = Roll::new(3);
        roll.fail(&first);
        roll.fail(&second);
        assert!(roll.begin(1).unwrap_err().message.contains("first"));
        assert_eq!((roll.reset().unwrap().message, roll.reset()), ("first".to_owned(), None));
        assert!(roll.lose(&second, "GPUs") && !roll.lose(&first, "GPUs"));
        let lost = roll.lost().unwrap();
        assert!(lost.kind == ErrorKind::DeviceLost && lost.message.starts_with("second; the model's GPUs"), "{lost}");
        assert!(roll.reset().is_some() && roll.reset().is_some() && roll.check().is_err());
    }

    #[test]
    fn those_who_meet_wait_for_the_last_one_or_for_a_failure() {
        let (state, changed) = (Mutex::new(Roll::new(2)), Condvar::new());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| meet(&state, &changed));
            meet(&state, &changed).unwrap();
            other.join().unwrap().unwrap();
            let waiting = scope.spawn(|| meet(&state, &changed));
            lock(&state).fail(&Error::internal("gone"));
            changed.notify_all();
            assert!(waiting.join().unwrap().unwrap_err().message.contains("gone"));
        });
    }
}
