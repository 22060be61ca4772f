//! The workloads of the comparison with the peer: how many requests of which lengths on which shape.

use yinian::base::rng::SplitMix64;

/// Lengths of a workload's prompts and outputs, and the start that prompts share.
#[derive(Clone, Copy)]
pub(crate) enum Lengths {
    /// Prompt, output; tokens of the prompt that come from one of [`PREFIXES`] prefixes.
    Fixed(usize, u32, usize),
    /// Log-normal: prompt median 160 (sigma 1.0, 4 to 2000), output median 200 (sigma 0.8, 4 to 1000).
    Chat,
}

pub(crate) const PREFIXES: u64 = 8;

#[derive(Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) shape: &'static str,
    pub(crate) requests: usize,
    pub(crate) lengths: Lengths,
    /// Tokens per second on one H200, see the bench `workloads`.
    pub(crate) limit: f64,
    pub(crate) vllm: f64,
}

pub(crate) const fn fixed(
    name: &'static str,
    requests: usize,
    (prompt, output, shared): (usize, u32, usize),
    (limit, vllm): (f64, f64),
) -> Workload {
    let shape = name.split_at(if name.as_bytes()[2] == b'-' { 2 } else { 3 }).0;
    Workload { name, shape, requests, lengths: Lengths::Fixed(prompt, output, shared), limit, vllm }
}

const fn chat(name: &'static str, requests: usize, (limit, vllm): (f64, f64)) -> Workload {
    Workload { lengths: Lengths::Chat, ..fixed(name, requests, (0, 0, 0), (limit, vllm)) }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    fixed("s8-b1", 1, (128, 512, 0), (286.0, 205.0)),
    fixed("s8-b32", 32, (512, 256, 0), (6000.0, 4391.0)),
    fixed("s8-prefill", 32, (8000, 1, 0), (49_100.0, 38_500.0)),
    chat("s8-chat", 2000, (19_900.0, 12_725.0)),
    fixed("s8-1000", 512, (1000, 1000, 0), (12_100.0, 9589.0)),
    fixed("s7-128", 4096, (128, 128, 0), (17_700.0, 12_024.0)),
    fixed("s7-u", 512, (1000, 100, 0), (3205.0, 2492.0)),
    fixed("s7-p80", 1024, (1000, 100, 800), (5562.0, 4749.0)),
    fixed("s7-p50", 1024, (1000, 200, 500), (5171.0, 4200.0)),
    fixed("s13-p80", 512, (1000, 100, 800), (3303.0, 2670.0)),
    fixed("s05-b1", 1, (128, 512, 0), (4332.0, 547.0)),
    fixed("s05-b256", 256, (128, 512, 0), (388_000.0, 48_500.0)),
    chat("s05-chat", 4000, (288_000.0, 20_900.0)),
    // Run by name alone: with {"device_memory_bytes": 40000000000}, and "embedding_placement" at each of its values, KV memory
    // bounds the batch. Without figures, as they would be of a whole device.
    Workload { shape: "s13v300k", ..fixed("s13v-u", 96, (1000, 100, 0), (f64::NAN, f64::NAN)) },
];

impl Workload {
    /// Whether it is meant by one of these beginnings of names; by none of them are all that have figures.
    pub(crate) fn is_one_of(&self, names: &[String]) -> bool {
        (names.is_empty() && !self.limit.is_nan()) || names.iter().any(|n| self.name.starts_with(n.as_str()))
    }

    /// Whether its rate counts the prompts' tokens instead of the output's.
    pub(crate) fn counts_prompts(&self) -> bool {
        matches!(self.lengths, Lengths::Fixed(_, 1, _))
    }

    /// Prompts and output lengths, the same ones every time for a seed.
    pub(crate) fn prompts(&self, seed: u64, vocab: u64) -> Vec<(Vec<u32>, u32)> {
        let mut rng = SplitMix64(seed);
        let tokens = |rng: &mut SplitMix64, n: usize| crate::host::tokens(rng, n, vocab);
        let prefixes: Vec<Vec<u32>> = match self.lengths {
            Lengths::Fixed(_, _, shared) => (0..PREFIXES).map(|_| tokens(&mut rng, shared)).collect(),
            Lengths::Chat => vec![],
        };
        let one = |_| {
            let (prompt, output, shared) = match self.lengths {
                Lengths::Fixed(prompt, output, shared) => (prompt, output, shared),
                Lengths::Chat => {
                    let prompt = log_normal(&mut rng, 160.0, 1.0).clamp(4.0, 2000.0);
                    (prompt as usize, log_normal(&mut rng, 200.0, 0.8).clamp(4.0, 1000.0) as u32, 0)
                }
            };
            let mut all =
                if shared > 0 { prefixes[rng.below(PREFIXES) as usize].clone() } else { Vec::with_capacity(prompt) };
            all.extend(tokens(&mut rng, prompt - shared));
            (all, output)
        };
        (0..self.requests).map(one).collect()
    }
}

fn log_normal(rng: &mut SplitMix64, median: f64, sigma: f64) -> f64 {
    let (u, v) = (f64::from(rng.unit()).max(1e-9), f64::from(rng.unit()));
    median * (sigma * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).exp()
}
