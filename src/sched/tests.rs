//! Rules of the scheduler, one at a time. What they come to together is the business of `tests/sim`.

use crate::base::{Error, ErrorKind, SeqId, Token};
use crate::plan::{
    FinishReason, Logprob, Request, Sampled, SamplingParams, Scored, StepCost, StepOutcome, StepOutput, StepPlan,
    StepResults, StopCriteria,
};
use crate::sched::policy::{Fcfs, Priority};
use crate::sched::{Event, SchedConfig, Scheduler, StepBound, invariants};

const BLOCK: u32 = 4;

fn config(num_blocks: u32, max_tokens: usize) -> SchedConfig {
    SchedConfig {
        max_seqs: 16,
        max_tokens,
        bound: None,
        max_model_len: 1000,
        num_blocks,
        block_size: BLOCK,
        prefix_cache: true,
        hash_bits: 64,
    }
}

fn scheduler(num_blocks: u32, max_tokens: usize) -> Scheduler {
    Scheduler::new(config(num_blocks, max_tokens), Box::new(Fcfs))
}

fn request(seq: u64, prompt: Vec<Token>, max_tokens: u32) -> Request {
    let stop = StopCriteria::new(max_tokens, 0, vec![99], vec![98]).unwrap();
    Request::new(SeqId(seq), prompt, SamplingParams::greedy(), stop).unwrap()
}

/// A prompt like no other.
fn unique(seq: u64, len: u32) -> Vec<Token> {
    (0..len).map(|i| 1000 * seq as u32 + i).collect()
}

fn done(plan: &StepPlan, token: Token) -> StepOutput {
    let sampled = plan.entries.iter().filter(|e| e.samples).map(|e| Sampled::new(e.seq, token)).collect();
    let scored = plan.entries.iter().filter_map(|e| {
        let logprobs = plan.scored(e.scores.as_ref()?).iter().map(|&token| Logprob { token, rank: 1, logprob: 0.0 });
        Some(Scored { seq: e.seq, logprobs: logprobs.collect() })
    });
    let results = StepResults { sampled, scored: scored.collect() };
    StepOutput::first(plan.id, StepOutcome::Done(results))
}

fn failed(plan: &StepPlan) -> StepOutput {
    StepOutput::first(plan.id, StepOutcome::Failed(Error::new(ErrorKind::Device, "it broke")))
}

fn step(s: &mut Scheduler, events: &mut Vec<Event>) -> Option<StepPlan> {
    let plan = s.schedule(events)?;
    s.update(&done(&plan, 7), events);
    invariants::check(s).unwrap();
    Some(plan)
}

fn drain(s: &mut Scheduler) -> Vec<Event> {
    let mut events = Vec::new();
    while step(s, &mut events).is_some() {}
    events
}

fn end_of(events: &[Event], id: u64) -> (FinishReason, Option<Error>) {
    let mut ends = events.iter().filter_map(|e| match e {
        Event::Finished { seq, reason, error } if seq.0 == id => Some((*reason, error.clone())),
        _ => None,
    });
    let end = ends.next().unwrap_or_else(|| panic!("{id} has no end: {events:?}"));
    assert_eq!(ends.next(), None, "{id} ends twice");
    end
}

#[test]
fn equal_prompts_that_arrive_together_compute_once() {
    let mut s = scheduler(200, 24);
    for seq in 1..=8 {
        s.add(request(seq, (0..64).collect(), 1));
    }
    let events = drain(&mut s);
    // Every one but the first recomputes the last block alone, for its last token.
    assert_eq!(s.stats().planned_tokens, 64 + 7 * u64::from(BLOCK));
    assert_eq!(s.stats().hit_tokens, 7 * 60);
    assert!((1..=8).all(|seq| end_of(&events, seq).0 == FinishReason::Length));
    assert!(s.is_idle() && s.stats().blocks_free == 200);
}

#[test]
fn sharers_go_on_when_the_one_they_wait_for_is_cancelled() {
    let (mut s, mut events) = (scheduler(200, 16), Vec::new());
    s.add(request(1, (0..64).collect(), 1));
    s.add(request(2, (0..64).collect(), 1));
    let plan = step(&mut s, &mut events).unwrap();
    assert_eq!(plan.entries.len(), 1, "the second waits");
    s.abort(SeqId(1), FinishReason::Cancelled, &mut events);
    s.abort(SeqId(1), FinishReason::Deadline, &mut events);
    events.extend(drain(&mut s));
    assert_eq!(end_of(&events, 1).0, FinishReason::Cancelled);
    assert_eq!(end_of(&events, 2).0, FinishReason::Length);
    assert_eq!(s.stats().planned_tokens, 64, "what the first had computed is not computed again");
}

#[test]
fn a_sharer_does_not_block_those_behind_it() {
    let (mut s, mut events) = (scheduler(200, 16), Vec::new());
    s.add(request(1, (0..64).collect(), 1));
    s.add(request(2, (0..64).collect(), 1));
    s.add(request(3, unique(3, 3), 1));
    let plan = step(&mut s, &mut events).unwrap();
    assert_eq!(plan.entries.iter().map(|e| (e.seq.0, e.len)).collect::<Vec<_>>(), [(1, 12), (3, 3)]);
}

#[test]
fn salts_do_not_share() {
    let mut s = scheduler(200, 100);
    for (seq, salt) in [(1, 1), (2, 2)] {
        let mut r = request(seq, (0..9).collect(), 1);
        r.cache_salt = salt;
        s.add(r);
    }
    drain(&mut s);
    assert_eq!((s.stats().planned_tokens, s.stats().hit_tokens), (18, 0));
}

#[test]
fn generated_blocks_are_hit_and_cached_tokens_are_not_charged() {
    let mut s = scheduler(200, 100);
    s.add(request(1, (0..6).collect(), 7));
    drain(&mut s);
    // 6 prompt tokens and 6 of the 7 generated ones have KV: three full blocks.
    let prompt: Vec<Token> = (0..6).chain([7; 8]).collect();
    s.add(request(2, prompt, 1));
    let mut events = Vec::new();
    let plan = step(&mut s, &mut events).unwrap();
    assert_eq!(plan.num_tokens(), 2);
    assert!(events.contains(&Event::Started { seq: SeqId(2), cached_tokens: 12 }), "{events:?}");
}

#[test]
fn a_long_prompt_leaves_room_for_a_short_one_and_decodes_go_first() {
    let (mut s, mut events) = (scheduler(500, 100), Vec::new());
    s.add(request(1, unique(1, 8), 9));
    step(&mut s, &mut events);
    s.add(request(2, unique(2, 900), 1));
    s.add(request(3, unique(3, 10), 1));
    let plan = step(&mut s, &mut events).unwrap();
    let shares: Vec<_> = plan.entries.iter().map(|e| (e.seq.0, e.len)).collect();
    assert_eq!(shares, [(1, 1), (2, 75), (3, 10)]);
}

#[test]
fn the_last_token_may_stay_on_the_device() {
    let (mut s, mut events) = (scheduler(50, 100), Vec::new());
    s.add(request(1, unique(1, 5), 9));
    let first = s.schedule(&mut events).unwrap();
    let second = s.schedule(&mut events).unwrap();
    assert_eq!((first.row_inits.len(), second.row_inits.len()), (1, 0));
    let e = &second.entries[0];
    assert_eq!((e.start, e.len, e.tokens.len(), e.samples), (5, 1, 0, true));
    s.update(&done(&first, 7), &mut events);
    let third = s.schedule(&mut events).unwrap();
    assert_eq!((third.entries[0].start, third.entries[0].tokens.len()), (6, 0));
    invariants::check(&s).unwrap();
}

#[test]
fn a_failed_step_takes_those_behind_it_along_and_is_planned_again_with_known_inputs() {
    let (mut s, mut events) = (scheduler(50, 100), Vec::new());
    s.add(request(1, unique(1, 5), 9));
    step(&mut s, &mut events);
    let plans: Vec<_> = (0..2).map(|_| s.schedule(&mut events).unwrap()).collect();
    s.update(&failed(&plans[0]), &mut events);
    assert_eq!(s.schedule(&mut events), None, "the pipeline drains first");
    // An executor must fail this one too; if it does not, it does not count either.
    s.update(&done(&plans[1], 7), &mut events);
    invariants::check(&s).unwrap();
    let again = s.schedule(&mut events).unwrap();
    assert_eq!((again.entries[0].start, again.inputs(&again.entries[0])), (5, &[7][..]));
    assert_eq!(again.row_inits.len(), 1);
}

#[test]
fn a_sequence_that_fails_every_step_ends_alone() {
    let (mut s, mut events) = (scheduler(100, 100), Vec::new());
    for seq in 1..=4 {
        s.add(request(seq, unique(seq, 6), 3));
    }
    while let Some(plan) = s.schedule(&mut events) {
        let bad = plan.entries.iter().any(|e| e.seq.0 == 3);
        s.update(&if bad { failed(&plan) } else { done(&plan, 7) }, &mut events);
        invariants::check(&s).unwrap();
    }
    let (reason, error) = end_of(&events, 3);
    assert_eq!((reason, error.unwrap().kind), (FinishReason::Error, ErrorKind::Device));
    assert!([1, 2, 4].iter().all(|&seq| end_of(&events, seq).0 == FinishReason::Length));
    assert_eq!(s.stats().failed_steps, 3);
}

#[test]
fn an_answer_to_another_step_is_a_failure() {
    let (mut s, mut events) = (scheduler(50, 100), Vec::new());
    s.add(request(1, unique(1, 5), 1));
    for _ in 0..3 {
        let plan = s.schedule(&mut events).unwrap();
        let output = StepOutput::first(plan.id, StepOutcome::Done(StepResults::default()));
        s.update(&output, &mut events);
    }
    let (reason, error) = end_of(&events, 1);
    assert_eq!((reason, error.unwrap().kind), (FinishReason::Error, ErrorKind::Internal));
    assert!(s.is_idle());
}

#[test]
fn what_can_never_fit_ends_with_numbers() {
    let (mut s, mut events) = (scheduler(4, 100), Vec::new());
    s.add(request(1, unique(1, 1000), 1));
    s.add(request(2, unique(2, 16), 1));
    s.add(request(3, unique(3, 14), 9));
    s.add(request(4, unique(4, 16), 1));
    s.abort(SeqId(4), FinishReason::Cancelled, &mut events);
    events.extend(drain(&mut s));
    let error = end_of(&events, 1).1.unwrap();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("1000"), "{error}");
    let error = end_of(&events, 2).1.unwrap();
    assert!(error.kind == ErrorKind::NoMemory && error.message.contains("kv_cache_bytes"), "{error}");
    // It grows to all 16 cells, samples one more token, and has no cell for that one.
    let error = end_of(&events, 3).1.unwrap();
    assert!(error.kind == ErrorKind::NoMemory && error.message.contains("17 tokens"), "{error}");
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Token { .. })).count(), 3);
    assert_eq!(end_of(&events, 4).0, FinishReason::Cancelled);
}

#[test]
fn ends_are_told_apart() {
    for (token, max_tokens, reason, tokens) in
        [(99, 5, FinishReason::Eos, 1), (98, 5, FinishReason::Stop, 1), (7, 2, FinishReason::Length, 2)]
    {
        let (mut s, mut events) = (scheduler(50, 100), Vec::new());
        s.add(request(1, unique(1, 5), max_tokens));
        while let Some(plan) = s.schedule(&mut events) {
            s.update(&done(&plan, token), &mut events);
        }
        assert_eq!(end_of(&events, 1), (reason, None));
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Token { .. })).count(), tokens);
    }
}

#[test]
fn a_lead_holds_a_sequence_until_it_is_raised() {
    let (mut s, mut events) = (scheduler(50, 100), Vec::new());
    let mut held = request(1, unique(1, 5), 9);
    held.lead = 2;
    s.add(held);
    let plans: Vec<_> = std::iter::from_fn(|| s.schedule(&mut events)).collect();
    assert_eq!(plans.len(), 2, "tokens in flight count");
    plans.iter().for_each(|p| s.update(&done(p, 7), &mut events));
    s.allow(SeqId(1), 1);
    assert_eq!(step(&mut s, &mut events), None);
    s.allow(SeqId(1), 3);
    assert!(step(&mut s, &mut events).is_some() && step(&mut s, &mut events).is_none());
}

#[test]
fn a_held_sequence_gives_way_before_a_later_one() {
    let (mut s, mut events) = (scheduler(6, 100), Vec::new());
    let mut held = request(1, unique(1, 8), 9);
    held.lead = 1;
    s.add(held);
    s.add(request(2, unique(2, 8), 5));
    s.add(request(3, unique(3, 5), 14));
    while step(&mut s, &mut events).is_some() {}
    assert_eq!(end_of(&events, 2).0, FinishReason::Length);
    assert_eq!(end_of(&events, 3).0, FinishReason::Length);
    assert_eq!((s.stats().preempted, s.stats().waiting), (1, 1));
    s.allow(SeqId(1), 9);
    events.extend(drain(&mut s));
    assert_eq!(end_of(&events, 1).0, FinishReason::Length);
}

#[test]
fn those_that_will_not_fit_together_do_not_start_together() {
    let (mut s, mut events) = (scheduler(64, 100), Vec::new());
    // Eleven blocks each in the end, two at first.
    let batch =
        |s: &mut Scheduler, seqs: std::ops::Range<u64>| seqs.for_each(|seq| s.add(request(seq, unique(seq, 4), 40)));
    batch(&mut s, 0..20);
    events.extend(drain(&mut s));
    // How long outputs are is known now.
    let before = s.stats().preempted;
    batch(&mut s, 20..60);
    step(&mut s, &mut events);
    assert!((5..=7).contains(&s.stats().running), "{:?}", s.stats());
    events.extend(drain(&mut s));
    // Nine or more of them would give way if they did.
    assert!(s.stats().preempted <= before + 1, "{before} and then {}", s.stats().preempted);
    assert!((0..60).all(|seq| end_of(&events, seq).0 == FinishReason::Length));
}

#[test]
fn one_that_nobody_reads_keeps_nobody_out() {
    // Twenty blocks that nobody reads, and two that are taken to become forty.
    for (held_prompt, held_output) in [(80, 20), (4, 160)] {
        let (mut s, mut events) = (scheduler(30, 100), Vec::new());
        (0..20).for_each(|seq| s.add(request(seq, unique(seq, 4), 60)));
        drain(&mut s);
        let mut held = request(20, unique(20, held_prompt), held_output);
        held.lead = 1;
        s.add(held);
        while step(&mut s, &mut events).is_some() {}
        s.add(request(21, unique(21, 4), 60));
        step(&mut s, &mut events);
        assert_eq!((s.stats().running, s.stats().waiting), (2, 0), "{held_prompt} tokens");
        while step(&mut s, &mut events).is_some() {}
        assert_eq!(end_of(&events, 21).0, FinishReason::Length);
    }
}

#[test]
fn those_that_would_not_fit_if_they_started_together_start_one_after_the_other() {
    // Room for 13 of 200 tokens each, and for 16 if the last starts some 80 steps behind the first.
    let (mut s, mut events) = (scheduler(650, 200), Vec::new());
    (0..16).for_each(|seq| s.add(request(seq, unique(seq, 100), 100)));
    let (mut steps, mut most) = (0, 0);
    while step(&mut s, &mut events).is_some() {
        (steps, most) = (steps + 1, most.max(s.stats().running));
    }
    assert_eq!((most, s.stats().preempted), (16, 0));
    assert!((150..190).contains(&steps), "{steps} steps");
    assert!((0..16).all(|seq| end_of(&events, seq).0 == FinishReason::Length));
}

#[test]
fn prompts_of_short_outputs_are_not_held_back() {
    // Room for 13 of them.
    let (mut s, mut events) = (scheduler(650, 200), Vec::new());
    (0..40).for_each(|seq| s.add(request(seq, unique(seq, 200), 1)));
    let steps = std::iter::from_fn(|| step(&mut s, &mut events)).count();
    assert!((40..=41).contains(&steps), "{steps} steps");
}

#[test]
fn a_large_one_is_passed_over_only_so_often() {
    let (mut s, mut events) = (scheduler(40, 100), Vec::new());
    s.add(request(1, unique(1, 40), 100));
    step(&mut s, &mut events);
    s.add(request(2, unique(2, 130), 1));
    let mut passed = 0;
    for seq in 3..200 {
        s.add(request(seq, unique(seq, 3), 1));
        step(&mut s, &mut events);
        passed += events.iter().filter(|e| matches!(e, Event::Started { seq, .. } if seq.0 > 2)).count();
        events.clear();
        if s.stats().waiting > 1 {
            break;
        }
    }
    assert_eq!(passed, super::admit::PASS_LIMIT as usize);
    let events = drain(&mut s);
    let first = events.iter().find_map(|e| match e {
        Event::Started { seq, .. } => Some(seq.0),
        _ => None,
    });
    assert_eq!(first, Some(2), "{events:?}");
}

#[test]
fn many_large_ones_block_no_small_one() {
    let (mut s, mut events) = (scheduler(50, 100), Vec::new());
    // One holds most blocks; a hundred more like it cannot start beside it.
    for seq in 1..=101 {
        s.add(request(seq, unique(seq, 160), 300));
    }
    s.add(request(200, unique(200, 8), 1));
    for _ in 0..8 {
        step(&mut s, &mut events);
    }
    assert_eq!(end_of(&events, 200).0, FinishReason::Length);
    assert_eq!(s.stats().running, 1);
}

#[test]
fn an_urgent_one_takes_the_place_of_the_least_urgent() {
    for (max_seqs, num_blocks) in [(2, 100), (16, 8)] {
        let cfg = SchedConfig { max_seqs, ..config(num_blocks, 100) };
        let (mut s, mut events) = (Scheduler::new(cfg, Box::new(Priority)), Vec::new());
        for (seq, priority) in [(1, 5), (2, 3)] {
            let mut r = request(seq, unique(seq, 14), 30);
            r.priority = priority;
            s.add(r);
            step(&mut s, &mut events);
        }
        assert_eq!(s.stats().running, if max_seqs == 2 || num_blocks == 8 { 2 } else { 0 });
        let mut urgent = request(3, unique(3, 14), 2);
        urgent.priority = -1;
        s.add(urgent);
        let mut usual = request(4, unique(4, 14), 2);
        usual.priority = 5;
        s.add(usual);
        for _ in 0..4 {
            step(&mut s, &mut events);
        }
        assert_eq!(end_of(&events, 3).0, FinishReason::Length, "the urgent one waited: {events:?}");
        events.extend(drain(&mut s));
        let order: Vec<u64> = events
            .iter()
            .filter_map(|e| if let Event::Finished { seq, .. } = e { Some(seq.0) } else { None })
            .collect();
        assert_eq!(order, [3, 2, 1, 4], "{max_seqs} rows");
        assert!(s.stats().preempted >= 1);
    }
}

/// A row costs 10 and as much again at a context of 1024, the weights as much as 100 rows. Sequences 1 to 3 decode, and such behind them.
fn bounded(percent: u32, weights: u64, others: &[u64]) -> Scheduler {
    let cost = StepCost { step: 0, weights, row: 10, row_context: 10, context: 0 };
    let bound = Some(StepBound { cost, percent, min_chunk: 8 });
    let cfg = SchedConfig { bound, max_model_len: 100_000, ..config(20_000, 512) };
    let mut s = Scheduler::new(cfg, Box::new(Fcfs));
    (1..=3).chain(others.iter().copied()).for_each(|seq| s.add(request(seq, unique(seq, 8), 9000)));
    step(&mut s, &mut Vec::new());
    s
}

/// Sequences and tokens of prompts, behind those that decode.
fn prompts(s: &mut Scheduler) -> Vec<(u64, u32)> {
    let plan = step(s, &mut Vec::new()).unwrap();
    let all: Vec<_> = plan.entries.iter().map(|e| (e.seq.0, e.len)).collect();
    assert_eq!(all[..3], [(1, 1), (2, 1), (3, 1)]);
    all[3..].iter().copied().skip_while(|e| e.0 >= 10).collect()
}

#[test]
fn a_prompt_is_cut_by_what_it_costs_while_others_decode() {
    let mut s = bounded(400, 1000, &[]);
    s.add(request(4, unique(4, 10_000), 1));
    let (mut at, mut lens) = (0, Vec::new());
    while at < 10_000 {
        let [(4, len)] = prompts(&mut s)[..] else { panic!("one prompt") };
        at += len;
        lens.push(len);
    }
    // The three cost 1007. 323 rows beside them cost four times that from position 0, 30 do from position 9900: whole eights.
    assert_eq!((lens[0], lens[lens.len() - 2]), (320, 24));
    assert!(lens.is_sorted_by(|a, b| a >= b), "{lens:?}");
}

#[test]
fn a_step_takes_all_its_tokens_where_nobody_or_fewer_decode() {
    let mut s = bounded(100, 0, &[]);
    (4..=7).for_each(|seq| s.add(request(seq, unique(seq, 900), 1)));
    assert_eq!(prompts(&mut s).iter().map(|p| p.1).sum::<u32>(), 509);
    (1..=3).for_each(|seq| s.abort(SeqId(seq), FinishReason::Cancelled, &mut Vec::new()));
    assert_eq!(step(&mut s, &mut Vec::new()).unwrap().num_tokens(), 512);
}

#[test]
fn one_prompt_goes_on_whatever_it_costs_and_no_other_starts() {
    let mut s = bounded(100, 0, &[10]);
    s.add(request(4, unique(4, 50), 1));
    s.add(request(5, unique(5, 9), 1));
    let steps: Vec<_> = (0..9).map(|_| prompts(&mut s)).collect();
    assert!(steps[..6].iter().all(|p| *p == [(4, 8)]), "{steps:?}");
    // The last two tokens of the one leave no room for the other.
    assert_eq!(steps[6..], [[(4, 2)], [(5, 8)], [(5, 1)]]);
}

#[test]
fn prompts_share_what_a_step_may_cost() {
    let mut s = bounded(300, 1000, &[10, 11, 12]);
    (4..=6).for_each(|seq| s.add(request(seq, unique(seq, 400), 1)));
    let shares = prompts(&mut s);
    // Each leaves a quarter of what still fits to those behind it, the last takes the rest.
    let [(4, a), (5, b), (6, c)] = shares[..] else { panic!("{shares:?}") };
    assert!(a > 2 * b && b > 2 * c && c >= 8 && (240..=272).contains(&(a + b + c)), "{shares:?}");
}
