//! Planted faults: programs with one mistake each. The double has to say what and where, exactly; without the mistake the same
//! program passes and leaves nothing behind.

mod memory;
mod ops;
mod plants;
mod protocol;
mod streams;

use crate::world::World;

/// What a program met first that was not as it should be: which call, and what it answered.
pub(crate) type Seen = (&'static str, i32);

pub(crate) const NOTHING: Seen = ("", 0);

/// A program with a mistake in it, and what has to catch it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// With the mistake when told so. Tells what it met.
    pub(crate) program: fn(&World, bool) -> Seen,
    pub(crate) caught: Seen,
    /// Kind of the one fault the double notes; empty where it is no misuse.
    pub(crate) kind: &'static str,
}

fn check(case: &Case) {
    let world = World::lazy();
    let seen = (case.program)(&world, true);
    let faults = world.d.faults();
    assert_eq!(seen, case.caught, "{}: {faults}", case.name);
    let kinds: Vec<&str> = faults.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let expected: Vec<&str> = case.kind.split_whitespace().collect();
    assert_eq!(kinds, expected, "{}: {faults}", case.name);
    drop(world);
    let world = World::lazy();
    let seen = (case.program)(&world, false);
    assert_eq!(seen, NOTHING, "{} without its mistake: {}", case.name, world.d.faults());
    assert_eq!(world.end(), "", "{} without its mistake leaves", case.name);
    assert_eq!(world.d.faults(), "", "{} without its mistake", case.name);
    println!("{:48} {:44} {:7} {}", case.name, case.caught.0, case.caught.1, case.kind);
}

#[test]
fn every_planted_fault_is_caught() {
    let all = [memory::CASES, protocol::CASES, streams::CASES, ops::CASES, plants::CASES];
    let count = all.iter().map(|cases| cases.len()).sum::<usize>();
    println!("{:48} {:44} {:7} kind of fault", "planted", "caught by", "answer");
    all.iter().flat_map(|cases| cases.iter()).for_each(check);
    println!("{count} faults caught");
    assert!(count >= 15);
}
