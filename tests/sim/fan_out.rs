//! Tensor-parallel ranks: whatever one of them does, requests get the tokens they get alone or end, and the ranks agree.

use crate::case::Case;
use crate::ranks::{Fault, Faults, MOST_RANKS, SimRanks, Wrong, faults};
use crate::world::{Report, World};
use crate::{hush, must_be_caught, number, seeds, verify};
use yinian::base::rng::{SplitMix64, mix};
use yinian::exec::ranks::Planted;
use yinian::plan::StepPlan;

/// Seeds of real threads, so fewer than of a simulated device.
const SEEDS: u64 = 700;
/// Seeds within which a planted bug must show.
const BUG_SEEDS: u64 = 150;

/// A case on ranks, its depth, and what goes wrong.
fn spread(seed: u64) -> (Case, usize, Faults) {
    let r = &mut SplitMix64(mix(seed, 7));
    let ranks = 2 + r.below(MOST_RANKS as u64 - 1) as usize;
    let faults = faults(r, ranks);
    // Ranks have faults of their own; the number only says that requests may end by them.
    let mut case = Case { ranks, poison: None, fail_per_mille: faults.len() as u64, ..Case::random(seed) };
    // Late parts are the business of the scheduler's own simulator.
    case.arrivals.iter_mut().for_each(|a| a.request.masked = false);
    (case, 1 + r.below(3) as usize, faults)
}

fn run(seed: u64, wrong: Wrong) -> (Case, Faults, Result<Report, String>) {
    let (case, depth, faults) = spread(seed);
    let ranks = SimRanks::new(seed, &case, (depth, faults.clone(), wrong));
    let report = verify(&case, World::on(Box::new(ranks), seed, &case, None));
    (case, faults, report)
}

#[test]
fn ranks_equal_alone_whatever_one_of_them_does() {
    hush("ranks_equal_alone_whatever_one_of_them_does");
    let mut sum = [0; 5];
    let seeds = if number("SIM_SEED").is_some() || number("SIM_SEEDS").is_some() { seeds() } else { 0..SEEDS };
    for seed in seeds {
        let (case, faults, report) = run(seed, Wrong::default());
        let report = report.unwrap_or_else(|why| {
            eprintln!("SIM_SEED={seed} on {} ranks: {why}\n{case:#?}\n{faults:?}", case.ranks);
            panic!("SIM_SEED={seed}: {why}")
        });
        if seed % 8 == 0 {
            assert_eq!(run(seed, Wrong::default()).2.as_ref(), Ok(&report), "SIM_SEED={seed} does not repeat");
        }
        let ended_by = |kind| u64::from(report.lost && faults.values().any(|f| f.1 == kind));
        let counts = [report.stats.steps, report.stats.failed_steps, report.stats.preempted];
        sum.iter_mut().zip(counts).for_each(|(a, b)| *a += b);
        sum[3] += ended_by(Fault::Panics);
        sum[4] += ended_by(Fault::Hangs);
    }
    println!("ranks: steps, failed, preempted, panics, hangs = {sum:?}");
    if number("SIM_SEED").is_none() {
        assert!(sum.iter().all(|&n| n > 0), "a mechanism was never exercised: {sum:?}");
    }
}

/// Some seed must show the bug to the check that says so, whatever others see of it.
fn must_be_caught_as(name: &str, says: &str, wrong: Wrong) {
    let caught = |seed| run(seed, wrong).2.err().filter(|why| why.contains(says)).map(|why| (seed, why));
    must_be_caught(name, (0..BUG_SEEDS).find_map(caught));
}

#[test]
fn planted_bugs_of_the_fan_out_are_caught() {
    hush("planted_bugs_of_the_fan_out_are_caught");
    for (bug, says) in [
        (Planted::NotSent, "does not end: the others wait for ranks ["),
        (Planted::StalePlan, "ranks ran different plans"),
        (Planted::FailureIgnored, "counts although a rank failed"),
        (Planted::FailureKept, "failed without a fault"),
        (Planted::PanicForgiven, "Panics and the device goes on"),
    ] {
        must_be_caught_as(&format!("{bug:?}"), says, Wrong { fan_out: Some(bug), rank: None });
    }
}

/// One rank that does something else than it was told.
#[test]
fn ranks_that_come_apart_are_caught() {
    hush("ranks_that_come_apart_are_caught");
    type Bug = fn(&mut StepPlan);
    let bugs: [(&str, &str, Bug); 6] = [
        ("runs nothing", "values to the", |p| p.entries.clear()),
        ("reads another input", "ranks hold different rows or blocks", |p| {
            if let Some(t) = p.tokens.first_mut() {
                *t = t.wrapping_add(1);
            }
        }),
        ("swaps two blocks", "ranks hold different rows or blocks", |p| {
            if let Some(last) = p.blocks.len().checked_sub(1) {
                p.blocks.swap(0, last);
            }
        }),
        ("answers another step", "answered step 1 where step 0 was due", |p| p.id.0 += 1),
        ("draws for itself", "drew different tokens", |p| p.row_inits.iter_mut().for_each(|r| r.choice += 1)),
        ("sets no rows", "drew different tokens", |p| p.row_inits.clear()),
    ];
    for (name, says, bug) in bugs {
        must_be_caught_as(&format!("a rank that {name}"), says, Wrong { fan_out: None, rank: Some(bug) });
    }
}
