//! Random cases: everything a run needs, from one number.

use yinian::base::rng::{SplitMix64, mix};
use yinian::base::{SeqId, Token};
use yinian::plan::{FinishReason, Penalties, Request, SamplingParams, StepCost, StopCriteria};
use yinian::sched::{SchedConfig, StepBound, policy};

/// A request and when it comes.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub at: u64,
    pub request: Request,
    /// How far its reader lets it run ahead; `None` never holds it.
    pub lead: Option<u32>,
    /// Nobody else has this salt.
    pub private_salt: bool,
    /// Decides the masks of a request whose tokens wait for them.
    pub mask_seed: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub cfg: SchedConfig,
    pub policy: &'static str,
    pub vocab: u32,
    pub arrivals: Vec<Arrival>,
    pub aborts: Vec<(u64, SeqId, FinishReason)>,
    pub slowest: u64,
    pub fail_per_mille: u64,
    /// Ticks from the submission of a step to the supply of its masks, at most; at least 1.
    pub mask_delay: u64,
    pub poison: Option<SeqId>,
    /// The model is spread over so many.
    pub ranks: usize,
}

pub(crate) fn one_in(r: &mut SplitMix64, n: u64) -> bool {
    r.below(n) == 0
}

impl Case {
    pub(crate) fn random(seed: u64) -> Self {
        let r = &mut SplitMix64(seed);
        let block_size = 1 + r.below(4) as u32;
        let most_blocks = if one_in(r, 3) { 40 } else { 14 };
        let cfg = SchedConfig {
            max_seqs: 1 + r.below(6) as usize,
            max_tokens: 1 + r.below(12) as usize,
            bound: None,
            max_model_len: if one_in(r, 4) { 8 + r.below(16) as usize } else { 1000 },
            num_blocks: 2 + r.below(most_blocks) as u32,
            block_size,
            prefix_cache: !one_in(r, 5),
            hash_bits: if one_in(r, 3) { 3 } else { 64 },
        };
        let vocab = 3 + r.below(6) as u32;
        let stems: Vec<Vec<Token>> = (0..3).map(|_| tokens(r, 12, vocab)).collect();
        let salts = one_in(r, 3);
        let n = 1 + r.below(12);
        let spread = if one_in(r, 3) { 1 } else { 30 };
        let mut arrivals: Vec<Arrival> = (0..n).map(|i| arrival(r, i, &stems, vocab, (salts, spread))).collect();
        (1..arrivals.len())
            .filter(|_| one_in(r, 5))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|i| twin(&mut arrivals, i));
        if one_in(r, 2) {
            arrivals.iter_mut().for_each(|a| a.request.masked = one_in(r, 2));
        }
        let reasons = [FinishReason::Cancelled, FinishReason::Deadline, FinishReason::Stop, FinishReason::Overrun];
        let aborts =
            (0..r.below(4)).map(|_| (r.below(60), SeqId(1 + r.below(n + 1)), reasons[r.below(4) as usize])).collect();
        let mut case = Self {
            cfg,
            policy: policy::NAMES[r.below(3) as usize],
            vocab,
            arrivals,
            aborts,
            slowest: 1 + r.below(3),
            fail_per_mille: if one_in(r, 3) { 60 } else { 0 },
            mask_delay: 1 + r.below(6),
            poison: one_in(r, 12).then(|| SeqId(1 + r.below(n))),
            ranks: 1,
        };
        case.cfg.bound = one_in(r, 2).then(|| bound(r));
        case
    }
}

/// A bound on what steps cost, of a device in which anything may be what costs.
fn bound(r: &mut SplitMix64) -> StepBound {
    let cost = StepCost {
        step: r.below(20),
        weights: r.below(60),
        row: 1 + r.below(20),
        row_context: 1024 * r.below(4),
        context: 1024 * r.below(6),
    };
    StepBound { cost, percent: 100 + r.below(200) as u32, min_chunk: 1 + r.below(3) as u32 }
}

/// Makes `i` another choice of the request before it: the same prompt and parameters at the same time.
fn twin(arrivals: &mut [Arrival], i: usize) {
    let first = &mut arrivals[i - 1];
    first.private_salt = false;
    let mut twin = first.clone();
    twin.request.seq = arrivals[i].request.seq;
    twin.request.choice += 1;
    arrivals[i] = twin;
}

fn tokens(r: &mut SplitMix64, most: u64, vocab: u32) -> Vec<Token> {
    (0..r.below(most + 1)).map(|_| r.below(u64::from(vocab)) as Token).collect()
}

fn arrival(r: &mut SplitMix64, i: u64, stems: &[Vec<Token>], vocab: u32, (salts, spread): (bool, u64)) -> Arrival {
    let mut prompt = stems[r.below(3) as usize].clone();
    prompt.extend(tokens(r, 3, vocab));
    if prompt.is_empty() {
        prompt.push(1);
    }
    let max_tokens = 1 + r.below(12) as u32;
    let min_tokens = if one_in(r, 4) { r.below(u64::from(max_tokens)) as u32 } else { 0 };
    let eos = if one_in(r, 3) { vec![] } else { vec![0] };
    let stop = if one_in(r, 4) { vec![1] } else { vec![] };
    let stop = StopCriteria::new(max_tokens, min_tokens, eos, stop).expect("ranges hold");
    // Few seeds, so that equal prompts also generate equal tokens and hit each other's output.
    let sampling = SamplingParams::new(1.0, 0, 1.0, r.below(2)).expect("ranges hold");
    let penalties = match r.below(9) {
        0 => Penalties { presence: 0.5, ..Penalties::NONE },
        1 => Penalties { frequency: 0.5, ..Penalties::NONE },
        2 => Penalties { repetition: 1.5, ..Penalties::NONE },
        _ => Penalties::NONE,
    };
    let bias = if one_in(r, 6) { vec![(2, -100.0)] } else { vec![] };
    let sampling = sampling.with_penalties(penalties).and_then(|s| s.with_logit_bias(bias)).expect("ranges hold");
    let mut request = Request::new(SeqId(i + 1), prompt, sampling, stop).expect("a prompt");
    request.prompt_logprobs = one_in(r, 4).then_some(0);
    request.choice = if one_in(r, 4) { r.below(3) as u32 } else { 0 };
    request.priority = r.below(3) as i32 - 1;
    let private_salt = salts && one_in(r, 4);
    request.cache_salt = match (salts, private_salt) {
        (_, true) => 100 + i,
        (true, _) => r.below(2),
        _ => 0,
    };
    let lead = one_in(r, 4).then(|| 1 + r.below(3) as u32);
    if let Some(lead) = lead {
        request.lead = lead;
    }
    // Few seeds, so that some requests share all their tokens.
    Arrival { at: r.below(spread), request, lead, private_salt, mask_seed: r.below(2) }
}

/// Whether `token` may follow the tokens that a request whose tokens wait for masks has generated. Something always may.
pub(crate) fn allows(mask_seed: u64, generated: &[Token], token: Token, vocab: u32) -> bool {
    let sum = generated.iter().fold(mask_seed, |sum, t| mix(sum, u64::from(*t)));
    mix(sum, 77) % u64::from(vocab) == u64::from(token) || mix(sum, 1000 + u64::from(token)).is_multiple_of(2)
}
