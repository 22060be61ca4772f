//! Late parts of steps: entries that wait for masks, drawn when these come, while others go on.

use super::gpu::gpu;
use super::world::{Alone, CHUNK_MOST, generate, step};
use super::{dummy, dummy_on, prompt};
use yinian::base::{SeqId, StepId, Token};
use yinian::plan::{StepOutcome, StepOutput, StepPart, StepPlan, StepResults, TokenMask};
use yinian::runner::ModelRunner;

const VOCAB: usize = 300;
const TOKENS: usize = 12;

/// Every third token may follow, another third each time.
fn third(seq: u64, turn: usize) -> TokenMask {
    let mut words = vec![0; VOCAB.div_ceil(32)];
    (turn % 3..VOCAB).step_by(3).for_each(|t| words[t / 32] |= 1 << (t % 32));
    TokenMask { seq: SeqId(seq), words }
}

fn everything(seq: u64) -> TokenMask {
    TokenMask { seq: SeqId(seq), words: vec![u32::MAX; VOCAB.div_ceil(32)] }
}

fn results(output: StepOutput) -> StepResults {
    match output.outcome {
        StepOutcome::Done(results) => results,
        StepOutcome::Failed(e) => panic!("{:?} failed: {e}", output.id),
    }
}

/// A greedy sequence whose tokens are masked, one that draws under masks which allow everything, and one without.
fn sequences() -> Vec<Alone> {
    [0.0, 0.9, 0.9].into_iter().zip(0..).map(|(t, i)| Alone::new(i, &prompt(10 + i), t)).collect()
}

/// The first two wait for their masks.
fn waiting(seqs: &[Alone], id: u64) -> StepPlan {
    let mut plan = step(&seqs.iter().collect::<Vec<_>>(), CHUNK_MOST);
    plan.id = StepId(id);
    plan.entries.iter_mut().filter(|e| e.seq.0 < 2).for_each(|e| e.awaits_mask = true);
    plan.entries[0].logprobs = Some(2);
    plan
}

/// Tokens of all three, and the most probable token before each mask of the first.
fn run(runner: &mut ModelRunner) -> (Vec<Vec<Token>>, Vec<Token>) {
    let (mut seqs, mut tops) = (sequences(), Vec::new());
    for turn in 0..TOKENS {
        let id = 10 * turn as u64;
        let first = runner.launch_step(&waiting(&seqs, id)).unwrap();
        seqs.iter_mut().for_each(|s| s.computed = s.tokens.len());
        let output = first.land();
        assert_eq!((output.id, output.part), (StepId(id), StepPart::First));
        let sampled = results(output).sampled;
        assert_eq!(sampled.iter().map(|s| s.seq.0).collect::<Vec<_>>(), [2]);
        seqs[2].tokens.push(sampled[0].token);
        // The third goes on while the others wait; the masks come before its step has landed.
        let other = StepPlan { id: StepId(id + 1), ..step(&[&seqs[2]], 1) };
        let other = runner.launch_step(&other).unwrap();
        let late = runner.supply(StepId(id), &[everything(1), third(0, turn)]).unwrap();
        let drawn = results(other.land()).sampled;
        seqs[2].computed = seqs[2].tokens.len();
        seqs[2].tokens.push(drawn[0].token);
        let output = late.land();
        assert_eq!((output.id, output.part), (StepId(id), StepPart::Late));
        let sampled = results(output).sampled;
        assert_eq!(sampled.iter().map(|s| s.seq.0).collect::<Vec<_>>(), [1, 0]);
        assert!(sampled[0].logprobs.is_empty());
        let [own, best, _] = sampled[1].logprobs[..] else { panic!("{:?}", sampled[1]) };
        assert_eq!((own.token, best.rank), (sampled[1].token, 1));
        tops.push(best.token);
        sampled.iter().for_each(|s| seqs[s.seq.0 as usize].tokens.push(s.token));
    }
    (seqs.iter().map(|s| s.generated().to_vec()).collect(), tops)
}

fn late(runner: ModelRunner) -> ModelRunner {
    runner.with_late_masks().unwrap()
}

#[test]
fn masks_that_come_late_change_nothing_but_what_they_forbid() {
    let (tokens, tops) = run(&mut late(dummy("float32")));
    // Nobody waited for here.
    let mut plain = dummy("float32");
    let mut seqs = sequences();
    generate(&mut plain, &mut seqs, (CHUNK_MOST, 2 * TOKENS));
    assert_eq!(tokens[1], seqs[1].generated()[..TOKENS]);
    assert_eq!(tokens[2], seqs[2].generated());
    let (mut so_far, mut forbidden) = (prompt(10), 0);
    for turn in 0..TOKENS {
        let logits = plain.logits(&so_far, CHUNK_MOST).unwrap();
        let last = &logits[logits.len() - VOCAB..];
        let best = |of: &mut dyn Iterator<Item = usize>| {
            of.fold(None, |b: Option<usize>, t| b.filter(|b| last[*b] >= last[t]).or(Some(t)))
        };
        let allowed = best(&mut (turn % 3..VOCAB).step_by(3)).unwrap() as Token;
        assert_eq!(best(&mut (0..VOCAB)), Some(tops[turn] as usize), "logprobs are without the mask");
        assert_eq!(tokens[0][turn], allowed, "turn {turn}");
        forbidden += usize::from(allowed != tops[turn]);
        so_far.push(allowed);
    }
    assert!(forbidden > TOKENS / 3, "the masks forbade {forbidden} tokens only");
}

#[test]
fn a_gpu_draws_late_tokens_as_the_cpu_does() {
    let Some(device) = gpu() else { return };
    assert_eq!(run(&mut late(dummy_on(&device, "float32"))), run(&mut late(dummy("float32"))));
}

#[test]
fn masks_that_nobody_waits_for_are_refused() {
    let seqs = sequences();
    let plan = waiting(&seqs, 5);
    let mut none = dummy("float32");
    assert!(none.launch(&plan).unwrap_err().message.contains("none may wait"));
    assert!(none.supply(StepId(5), &[everything(0)]).is_err());
    let mut runner = late(none);
    runner.launch(&plan).unwrap();
    results(runner.finish().unwrap());
    for wrong in [vec![], vec![everything(2)], vec![TokenMask { seq: SeqId(0), words: vec![1] }]] {
        assert!(runner.supply(StepId(5), &wrong).is_err(), "{wrong:?}");
    }
    assert!(runner.supply(StepId(4), &[everything(0)]).is_err(), "another step");
    results(runner.supply(StepId(5), &[everything(0)]).unwrap().land());
    assert!(runner.supply(StepId(5), &[everything(0)]).is_err(), "twice");
    // Another sequence in the row of the one that still waits.
    let mut plan = step(&[&seqs[1]], CHUNK_MOST);
    plan.entries[0].seq = SeqId(7);
    runner.launch(&plan).unwrap();
    results(runner.finish().unwrap());
    assert!(runner.supply(StepId(5), &[everything(1)]).is_err(), "its row is another's");
}
