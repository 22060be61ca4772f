//! The scheduler on a device made of arithmetic: whatever batch, chunk, hit, preemption, fault or depth, every request
//! gets the tokens it gets alone.
//!
//! `SIM_SEED=123 cargo test --release --test sim` replays one seed at every depth and prints its case; `SIM_SEEDS=n`
//! changes how many run.

mod case;
mod fan_out;
mod priority;
mod ranks;
mod world;

use case::Case;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{Report, World, judge};
use yinian::plan::StepPlan;
use yinian::sched::{Planted, SchedConfig};

/// Seeds per depth.
const SEEDS: u64 = 20_000;
/// Seeds within which a planted bug must show.
const BUG_SEEDS: u64 = 4_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().expect(name))
}

fn seeds() -> std::ops::Range<u64> {
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    }
}

/// Runs and judges one seed; a panic is a failure like any other.
fn verify(case: &Case, world: World<'_>) -> Result<Report, String> {
    let report = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|_| Err("panic".into()))?;
    judge(case, &report)?;
    Ok(report)
}

fn check_depth(depth: usize) {
    let mut sum = [0u64; 10];
    for seed in seeds() {
        let case = Case::random(seed);
        let report = verify(&case, World::new(seed, &case, depth, None));
        let report = report.unwrap_or_else(|why| panic!("SIM_SEED={seed} depth {depth}: {why}\n{case:#?}"));
        if seed % 8 == 0 {
            let again = World::new(seed, &case, depth, None).run();
            assert_eq!(again.as_ref(), Ok(&report), "SIM_SEED={seed} depth {depth} does not repeat");
        }
        let s = report.stats;
        let counts =
            [s.steps, s.planned_tokens, s.hit_tokens, s.preempted, s.shared_waits, s.failed_steps, s.lost_tokens];
        let counts = counts.into_iter().chain(report.late);
        sum.iter_mut().zip(counts).for_each(|(a, b)| *a += b);
    }
    println!(
        "depth {depth}: steps, planned, hit, preempted, shared waits, failed, lost, late parts, behind later steps, \
              unwanted masks = {sum:?}"
    );
    if number("SIM_SEED").is_none() {
        assert!(sum.iter().all(|&n| n > 0), "a mechanism was never exercised: {sum:?}");
    }
}

#[test]
fn depth_1_equals_alone() {
    check_depth(1);
}

#[test]
fn depth_2_equals_alone() {
    check_depth(2);
}

#[test]
fn depth_3_equals_alone() {
    check_depth(3);
}

/// The first seed at which a world of this kind goes wrong, and how.
fn first_failure(world: impl Fn(u64, &Case) -> Result<Report, String>) -> Option<(u64, String)> {
    (0..BUG_SEEDS).find_map(|seed| world(seed, &Case::random(seed)).err().map(|why| (seed, why)))
}

/// Panics of bugs that are there on purpose are not worth a backtrace each: those of this thread and of ranks.
fn hush(test: &'static str) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let current = std::thread::current();
        let name = current.name().unwrap_or_default();
        if name != test && !name.starts_with("yn-worker-") {
            default(info);
        }
    }));
}

fn must_be_caught(name: &str, found: Option<(u64, String)>) {
    let (seed, why) = found.unwrap_or_else(|| {
        // Escapes the hush above, which is this thread's.
        eprintln!("{name} was not caught within {BUG_SEEDS} seeds");
        panic!("{name} was not caught");
    });
    println!("{name}: seed {seed}, {}", why.lines().next().unwrap_or_default());
}

#[test]
fn planted_bugs_are_caught() {
    hush("planted_bugs_are_caught");
    for bug in [
        Planted::EarlyFree,
        Planted::HitUnverified,
        Planted::HitUncounted,
        Planted::SaltIgnored,
        Planted::PublishEarly,
        Planted::PendingLost,
        Planted::RowStale,
        Planted::HistoryLost,
        Planted::NoRollback,
        Planted::LastTokenSkipped,
        Planted::AnnouncedForEver,
        Planted::BudgetIgnored,
        Planted::CostIgnored,
        Planted::TokenAfterEnd,
        Planted::EvictedStillIndexed,
        Planted::ScoresFromCache,
        Planted::ScoredAgain,
        Planted::ScoredEarly,
        Planted::TableHalfTold,
        Planted::ChoiceLost,
        Planted::LateForgotten,
        Planted::LateStepIgnored,
        Planted::LateNotRolledBack,
    ] {
        let found = first_failure(|seed, case| verify(case, World::new(seed, case, 2, Some(bug))));
        must_be_caught(&format!("{bug:?}"), found);
    }
}

/// The simulator itself must see what a device would make of a wrong plan.
#[test]
fn wrong_plans_are_caught() {
    hush("wrong_plans_are_caught");
    type Bug = fn(&mut StepPlan);
    let bugs: [(&str, Bug); 6] = [
        ("two blocks swapped", |p| {
            if let Some(last) = p.blocks.len().checked_sub(1) {
                p.blocks.swap(0, last);
            }
        }),
        ("one input changed", |p| {
            if let Some(t) = p.tokens.first_mut() {
                *t = t.wrapping_add(1);
            }
        }),
        ("rows exchanged", |p| {
            if let [a, .., b] = &mut p.entries[..] {
                std::mem::swap(&mut a.row, &mut b.row);
            }
        }),
        ("a row not set", |p| p.row_inits.clear()),
        ("end tokens not held back", |p| p.row_inits.iter_mut().for_each(|r| r.min_tokens = 0)),
        ("a sample forgotten", |p| {
            if let Some(e) = p.entries.last_mut() {
                e.samples = false;
            }
        }),
    ];
    for (name, mutate) in bugs {
        let found = first_failure(|seed, case| verify(case, World::new(seed, case, 2, None).mutating(mutate)));
        must_be_caught(name, found);
    }
}

/// A pipelined engine must not preempt much more than a synchronous one, which it does when blocks on their way back
/// are not counted.
#[test]
fn depth_does_not_multiply_preemptions() {
    let preempted = |depth, planted| -> u64 {
        let run = |seed| {
            let case = Case { fail_per_mille: 0, poison: None, ..Case::random(seed) };
            World::new(seed, &case, depth, planted).run().expect("a sound run").stats.preempted
        };
        (0..2000).map(run).sum()
    };
    let (one, three) = (preempted(1, None), preempted(3, None));
    let careless = preempted(3, Some(Planted::ReturningIgnored));
    println!("preemptions at depth 1, 3, and 3 without the rule: {one}, {three}, {careless}");
    assert!(three * 10 <= one * 15, "{three} at depth 3, {one} at depth 1");
    assert!(careless > three, "the planted bug is not felt: {careless}, {three}");
}

/// With room for all, no full block of any prompt is computed twice, whoever comes when; only the block of a prompt's
/// last token is each sequence's own.
#[test]
fn prompts_are_computed_once() {
    let mut spared = 0;
    for (seed, depth) in (0..3000).flat_map(|seed| (1..=3).map(move |depth| (seed, depth))) {
        let mut case = Case { aborts: vec![], fail_per_mille: 0, poison: None, ..Case::random(seed) };
        if case.policy == "priority" {
            // The urgent take the rows of others, whose work is lost.
            case.policy = "fcfs";
        }
        // Who wants to hear of its prompt computes it.
        case.arrivals.iter_mut().for_each(|a| a.request.prompt_logprobs = None);
        case.cfg = SchedConfig { num_blocks: 400, prefix_cache: true, hash_bits: 64, ..case.cfg };
        let report = World::new(seed, &case, depth, None).run().expect("a sound run");
        let size = case.cfg.block_size as usize;
        let mut computed = HashSet::new();
        for &(seq, start, end) in &report.computed {
            let request = &case.arrivals[seq.0 as usize - 1].request;
            let prompt = request.prompt();
            let own = (prompt.len() - 1) / size;
            let blocks = start as usize / size..(end as usize / size).min(own);
            for prefix in blocks.map(|i| &prompt[..(i + 1) * size]) {
                let first = computed.insert((request.cache_salt, prefix));
                assert!(first, "seed {seed} depth {depth}: {seq:?} computes {prefix:?} again\n{case:#?}");
            }
        }
        assert_eq!(report.stats.lost_tokens, 0, "seed {seed} depth {depth}");
        spared += report.stats.hit_tokens;
    }
    assert!(spared > 0);
}
