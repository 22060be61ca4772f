//! Logprobs of the output and of the prompt on their way to the host.

use crate::host::{Answer, Host};
use yinian::base::{ErrorKind, Token};
use yinian::engine::{OutputMode, Prompt, Submission};
use yinian::plan::FinishReason;

#[test]
fn logprobs_travel_with_their_tokens() {
    let mut host = Host::new(r#"{"model": "mock:words", "pipeline_depth": 3}"#);
    let output = OutputMode { text: true, tokens: true, logprobs: true, prompt_logprobs: false, final_only: false };
    let plain = host.request("tell me", 40);
    let without = host.serve(vec![plain.clone()]).remove(0);
    for k in [0, 1, 5] {
        let answer = host.serve(vec![Submission { output, n_logprobs: k, ..plain.clone() }]).remove(0);
        assert_eq!((&answer.tokens, &answer.text), (&without.tokens, &without.text));
        let per_token = 1 + k as usize;
        assert_eq!(answer.logprobs.len(), 40 * per_token);
        for (token, group) in answer.tokens.iter().zip(answer.logprobs.chunks(per_token)) {
            assert_eq!((group[0].token, group[0].rank), (*token, 1));
            assert!(group[1..].iter().zip(1..).all(|(p, rank)| p.rank == rank));
        }
        assert_eq!(answer.text_ends, (1..=40).collect::<Vec<u64>>());
    }
    let too_many = Submission { output, n_logprobs: 21, ..plain };
    assert_eq!(host.engine.submit(too_many).unwrap_err().kind, ErrorKind::Invalid);
    host.assert_idle();
}

/// Asks for the prompt's logprobs with `k` alternatives.
fn scored(plain: &Submission, k: u32) -> Submission {
    let output = OutputMode { prompt_logprobs: true, ..plain.output };
    Submission { output, n_prompt_logprobs: k, ..plain.clone() }
}

fn assert_scored(answer: &Answer, prompt: &[Token], k: u32) {
    assert_eq!(answer.prompt, prompt[1..]);
    let per_token = 1 + k as usize;
    assert_eq!(answer.prompt_logprobs.len(), per_token * (prompt.len() - 1));
    for (token, group) in prompt[1..].iter().zip(answer.prompt_logprobs.chunks(per_token)) {
        assert_eq!((group[0].token, group[0].rank), (*token, 1));
        assert!(group[1..].iter().zip(1..).all(|(p, rank)| p.rank == rank));
    }
}

/// Whatever the chunks, the cache and the choices: every token of the prompt but the first is told of once.
#[test]
fn prompt_logprobs_come_once_and_before_the_output() {
    let config = r#"{"model": "mock:words", "max_num_batched_tokens": 24, "max_model_len": 512}"#;
    let mut host = Host::new(config);
    let prompt: Vec<Token> = (0..200).map(|i| 97 + i % 25).collect();
    let plain = Submission { prompt: Prompt::Tokens(prompt.clone()), ..host.request("", 8) };
    let without = host.serve(vec![plain.clone()]).remove(0);
    assert_eq!((without.prompt.len(), without.prompt_logprobs.len()), (0, 0));
    for k in [0, 3, 20] {
        let answer = host.serve(vec![scored(&plain, k)]).remove(0);
        assert_eq!((&answer.text, answer.cached_tokens), (&without.text, 0), "the prompt must be computed");
        assert_scored(&answer, &prompt, k);
    }
    assert!(host.serve(vec![plain.clone()])[0].cached_tokens > 0);
    let three = host.serve(vec![Submission { n: 3, ..scored(&plain, 2) }]).remove(0);
    assert_eq!(three.choices.iter().map(|c| c.tokens.len()).sum::<usize>(), 24);
    assert_scored(&three, &prompt, 2);
    let whole = OutputMode { final_only: true, prompt_logprobs: true, ..plain.output };
    assert_scored(&host.serve(vec![Submission { output: whole, ..plain.clone() }])[0], &prompt, 0);
    let one = Submission { prompt: Prompt::Tokens(vec![97]), ..scored(&plain, 4) };
    assert_scored(&host.serve(vec![one])[0], &[97], 4);
    assert_eq!(host.engine.submit(scored(&plain, 21)).unwrap_err().kind, ErrorKind::Invalid);
    host.assert_idle();
}

/// Too few blocks for all: prompts are computed more than once and told of once.
#[test]
fn prompt_logprobs_survive_preemption_and_failed_steps() {
    let config = r#"{"model": "mock:words,fail_step=9", "max_num_batched_tokens": 24, "max_model_len": 512,
        "kv_cache_bytes": 1024, "block_size": 16}"#;
    let mut host = Host::new(config);
    let prompt = |i: u32| -> Vec<Token> { (0..60 + i).map(|t| 97 + (t * (i + 1)) % 25).collect() };
    let ask = |i| Submission { prompt: Prompt::Tokens(prompt(i)), ..scored(&host.request("", 150), 1) };
    let asked: Vec<_> = (0..12).map(ask).collect();
    for (i, answer) in host.serve(asked).iter().enumerate() {
        assert_eq!(answer.finish, Some(FinishReason::Length));
        assert_scored(answer, &prompt(i as u32), 1);
    }
    let stats = host.engine.stats();
    assert!(stats.preempted > 0, "{stats:?}");
    host.assert_idle();
}
