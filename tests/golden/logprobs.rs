//! Reported logprobs against the log-softmax of the logits.

use crate::world::{Alone, CHUNK_MOST, step};
use crate::{dummy, prompt};
use yinian::base::Token;
use yinian::plan::{Logprob, Scores, StepOutcome, StepPlan, StepResults};
use yinian::runner::ModelRunner;

fn run(runner: &mut ModelRunner, plan: &StepPlan) -> StepResults {
    runner.launch(plan).unwrap();
    match runner.finish().unwrap().outcome {
        StepOutcome::Done(results) => results,
        StepOutcome::Failed(e) => panic!("the step failed: {e}"),
    }
}

/// One token's report: the token itself, then the most probable ones.
fn check(report: &[Logprob], token: Token, logits: &[f32]) {
    let max = logits.iter().fold(f32::MIN, |a, b| a.max(*b));
    let log_sum = f64::from(max) + logits.iter().map(|x| f64::from(x - max).exp()).sum::<f64>().ln();
    for (i, p) in report.iter().enumerate() {
        let x = logits[p.token as usize];
        let truth = f64::from(x) - log_sum;
        assert!((f64::from(p.logprob) - truth).abs() < 1e-4, "{p:?} for {truth}");
        let rank =
            1 + logits.iter().enumerate().filter(|(id, y)| **y > x || **y == x && (*id as Token) < p.token).count();
        assert_eq!(p.rank as usize, rank, "{p:?}");
        assert!(if i == 0 { p.token == token } else { p.rank == i as u32 }, "{p:?} at {i}");
    }
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let (mut served, mut plain) = (dummy("bfloat16"), dummy("bfloat16"));
    let mut seqs: Vec<_> = (0..4).map(|i| Alone::new(i, &prompt(20 + i), 1.5)).collect();
    let banned = seqs[3].sampling.clone().with_logit_bias(vec![(5, -100.0), (6, 50.0)]).unwrap();
    seqs[3].sampling = banned;
    let mut plan = step(&seqs.iter().collect::<Vec<_>>(), CHUNK_MOST);
    let wants = [Some(3), None, Some(0), Some(20)];
    plan.entries.iter_mut().zip(wants).for_each(|(e, k)| e.logprobs = k);
    let sampled = run(&mut served, &plan).sampled;
    for ((s, found), wanted) in seqs.iter().zip(&sampled).zip(wants) {
        let logits = plain.logits(&s.tokens, CHUNK_MOST).unwrap();
        assert_eq!(found.logprobs.len(), wanted.map_or(0, |k| 1 + k as usize));
        check(&found.logprobs, found.token, &logits[logits.len() - 300..]);
    }
    assert_eq!(sampled[3].token, 6, "the bias decides the token and not its logprob");
    assert!(sampled[3].logprobs[0].logprob < -1.0);
}

/// Asks for the prompt tokens that `entry` of `plan` can tell of.
fn score(plan: &mut StepPlan, entry: usize, seq: &Alone, alternatives: u32) {
    let e = &mut plan.entries[entry];
    let end = (e.start + e.len).min(seq.prompt_len as u32 - 1);
    let at = plan.targets.len() as u32;
    plan.targets.extend(&seq.tokens[e.start as usize + 1..end as usize + 1]);
    e.scores = Some(Box::new(Scores { from: e.start, targets: at..plan.targets.len() as u32, alternatives }));
}

/// More prompt tokens than rows of logits, beside sampled tokens with and without logprobs, in whatever chunks.
#[test]
fn prompt_tokens_are_scored_by_the_logits_before_them() {
    let (mut served, mut plain) = (dummy("float32"), dummy("float32"));
    for chunk in [CHUNK_MOST, 11, 5] {
        let mut seqs: Vec<_> = (0..3).map(|i| Alone::new(i, &prompt(20 + i), 0.0)).collect();
        let mut reports: Vec<Vec<Logprob>> = vec![vec![]; 3];
        while seqs.iter().any(|s| s.computed < s.prompt_len) {
            let open: Vec<_> = seqs.iter().filter(|s| s.computed < s.prompt_len).collect();
            let mut plan = step(&open, chunk);
            let ids: Vec<u32> = open.iter().map(|s| s.index).collect();
            for (entry, s) in open.into_iter().enumerate() {
                plan.entries[entry].logprobs = Some(2);
                // The second one does not ask, the third asks for more.
                let last = plan.entries[entry].start + 1 == s.prompt_len as u32;
                if s.index != 1 && !last {
                    score(&mut plan, entry, s, 3 * s.index);
                }
            }
            let asked: Vec<_> = plan.entries.iter().filter(|e| e.scores.is_some()).map(|e| e.seq).collect();
            let results = run(&mut served, &plan);
            assert_eq!(results.scored.iter().map(|s| s.seq).collect::<Vec<_>>(), asked);
            for (id, e) in ids.iter().zip(&plan.entries) {
                seqs[*id as usize].computed += e.len as usize;
            }
            for s in results.scored {
                reports[s.seq.0 as usize].extend(s.logprobs);
            }
            for s in results.sampled {
                let seq = &seqs[s.seq.0 as usize];
                let logits = plain.logits(&seq.tokens, CHUNK_MOST).unwrap();
                assert_eq!(s.logprobs.len(), 3);
                check(&s.logprobs, s.token, &logits[logits.len() - 300..]);
            }
        }
        assert!(reports[1].is_empty());
        for s in [&seqs[0], &seqs[2]] {
            let per_token = 1 + 3 * s.index as usize;
            let report = &reports[s.index as usize];
            assert_eq!(report.len(), (s.prompt_len - 1) * per_token, "chunks of {chunk}");
            let logits = plain.logits(&s.tokens, CHUNK_MOST).unwrap();
            for (i, group) in report.chunks(per_token).enumerate() {
                check(group, s.tokens[i + 1], &logits[300 * i..300 * (i + 1)]);
            }
        }
    }
}
