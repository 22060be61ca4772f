//! The priority policy: who is more urgent starts first, and takes the place of one that is less.

use crate::case::Case;
use crate::world::{Outcome, Report, World};
use crate::{hush, must_be_caught, number, seeds};
use yinian::sched::{Planted, SchedConfig};

const SEEDS: u64 = 1500;

/// Cases in which only rows and the budget are short.
fn urgent_case(seed: u64) -> Case {
    let mut case = Case { policy: "priority", aborts: vec![], fail_per_mille: 0, poison: None, ..Case::random(seed) };
    case.cfg = SchedConfig { num_blocks: 400, prefix_cache: false, ..case.cfg };
    for arrival in &mut case.arrivals {
        arrival.lead = None;
        arrival.request.lead = u32::MAX;
        arrival.request.masked = false;
    }
    case
}

/// The first inversion of a run.
fn inversion(case: &Case, depth: usize, report: &Report) -> Result<(), String> {
    // A place is free once what is in flight of its holder has landed, and is taken by the next step, unless prompts under
    // way take all its tokens.
    let prompts: usize = case.arrivals.iter().map(|a| a.request.prompt().len()).sum();
    let tokens = case.cfg.bound.map_or(case.cfg.max_tokens, |b| case.cfg.max_tokens.min(b.min_chunk as usize));
    let patience = depth as u64 * case.slowest + 3 + case.slowest * (prompts / tokens) as u64;
    let all: Vec<_> = case.arrivals.iter().zip(&report.outcomes).enumerate().collect();
    let rank = |i: usize| (case.arrivals[i].request.priority, case.arrivals[i].at, i);
    for &(u, (a, o)) in &all {
        // One that is too long never starts.
        let Some(started) = o.started else { continue };
        let seq = a.request.seq;
        let passes = |o: &Outcome| o.started.is_some_and(|at| at >= a.at && at < started);
        if let Some((_, (v, _))) = all.iter().find(|(v, (_, o))| rank(*v) > rank(u) && passes(o)) {
            return Err(format!("{:?} starts before {seq:?}, which is more urgent and was there", v.request.seq));
        }
        let before = all.iter().filter(|(w, (b, _))| rank(*w) < rank(u) && b.at <= started);
        let first = before.filter_map(|(_, (_, o))| o.ended).chain([a.at]).max().unwrap_or(a.at);
        if started > first + patience {
            return Err(format!("{seq:?} is the most urgent at tick {first} and starts at {started}"));
        }
    }
    Ok(())
}

fn check(seed: u64, depth: usize, planted: Option<Planted>) -> Result<Report, String> {
    let mut case = urgent_case(seed);
    if planted.is_some() {
        // Steps bounded by cost ask for more patience than a bug would try.
        case.cfg.bound = None;
    }
    let report = World::new(seed, &case, depth, planted).run()?;
    inversion(&case, depth, &report)?;
    Ok(report)
}

#[test]
fn the_urgent_start_first_and_take_the_place_of_others() {
    let seeds = if number("SIM_SEED").is_some() { seeds() } else { 0..SEEDS };
    let mut preempted = 0;
    for (seed, depth) in seeds.flat_map(|seed| (1..=3).map(move |depth| (seed, depth))) {
        let report = check(seed, depth, None);
        let why = |why| panic!("SIM_SEED={seed} depth {depth}: {why}\n{:#?}", urgent_case(seed));
        preempted += report.unwrap_or_else(why).stats.preempted;
    }
    println!("gave way: {preempted}");
    assert!(preempted > 0 || number("SIM_SEED").is_some(), "nobody ever gave way");
}

#[test]
fn planted_bugs_of_priorities_are_caught() {
    hush("planted_bugs_of_priorities_are_caught");
    for (bug, says) in [(Planted::PriorityIgnored, "starts before"), (Planted::YieldForgotten, "is the most urgent")] {
        let found = (0..SEEDS).find_map(|seed| {
            let why = check(seed, 2, Some(bug)).err()?;
            why.contains(says).then_some((seed, why))
        });
        must_be_caught(&format!("{bug:?}"), found);
    }
}
