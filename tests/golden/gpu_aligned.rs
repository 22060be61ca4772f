//! The numeric mode "aligned" on a GPU against the reference implementation in half precision with eager attention, on the
//! models that tests/golden/aligned.py has put into the folder YN_ALIGNED_MODELS.

use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use yinian::base::config::{LoadFormat, NumericMode};
use yinian::base::{DType, Token};
use yinian::hal::Device;
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::{inspect, load};
use yinian::runner::{ModelRunner, RunnerOptions};

/// Most that a logit may be off, in units of the last place at the largest logit of its row.
const UNITS: f32 = 2.0;
const MOST_TOKENS: usize = 512;

struct Prompt {
    tokens: Vec<Token>,
    /// `[tokens, vocabulary]`.
    logits: Vec<f32>,
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut folders: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    folders.retain(|path| path.join("reference.safetensors").is_file());
    folders.sort();
    assert!(!folders.is_empty(), "{} has no models; make them with aligned.py", dir.display());
    folders
}

fn prompts(dir: &Path) -> Vec<Prompt> {
    let bytes = std::fs::read(dir.join("reference.safetensors")).expect("reference.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("reference.safetensors");
    let words = |name: String| file.tensor(&name).ok().map(|t| t.data().to_vec());
    let dtype = inspect(dir).expect("inspect").dtype;
    let wide = |b: &[u8]| match dtype {
        DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
    };
    let prompt = |i: usize| {
        let tokens = words(format!("tokens.{i}"))?;
        let logits = words(format!("logits.{i}"))?;
        Some(Prompt {
            tokens: tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            logits: logits.chunks_exact(2).map(wide).collect(),
        })
    };
    (0..).map_while(prompt).collect()
}

fn runner(device: &Arc<dyn Device>, dir: &Path) -> ModelRunner {
    let info = inspect(dir).expect("inspect");
    let max_model_len = MOST_TOKENS.min(info.max_position);
    let model = load(&info, dir, LoadFormat::Auto, device.as_ref(), (max_model_len, &mut |_| Ok(()))).expect("load");
    let options = RunnerOptions {
        max_num_seqs: MOST_TOKENS,
        max_num_batched_tokens: MOST_TOKENS,
        max_model_len,
        block_size: 16,
        num_blocks: 64,
        depth: 2,
    };
    ModelRunner::new(model, Arc::clone(device), options).expect("runner")
}

/// How far logits are from the reference's.
#[derive(Default)]
struct Distance {
    /// In units of a row's largest logit: the worst of each row.
    rows: Vec<f32>,
    /// In units of the element itself.
    elements: Vec<f32>,
    unequal: usize,
    /// Rows whose largest logit is another token's, and those of them where the reference's two best are `UNITS` apart.
    other: usize,
    other_beyond: usize,
}

/// The distance between neighbours of a magnitude in a dtype with this many digits.
fn unit(x: f32, digits: i32) -> f32 {
    f32::exp2(x.abs().max(f32::MIN_POSITIVE).log2().floor() - digits as f32)
}

/// The first largest number, and how far it is from the next one.
fn best(row: &[f32]) -> (usize, f32) {
    let (mut first, mut second) = (0, f32::NEG_INFINITY);
    for (i, x) in row.iter().enumerate().skip(1) {
        if *x > row[first] {
            second = row[first];
            first = i;
        } else {
            second = second.max(*x);
        }
    }
    (first, row[first] - second)
}

impl Distance {
    fn add(&mut self, found: &[f32], expected: &[f32], digits: i32) {
        let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let row_unit = unit(largest, digits);
        let mut worst = 0.0_f32;
        for (f, e) in found.iter().zip(expected) {
            let off = (f - e).abs();
            assert!(off.is_finite(), "a logit is {f}");
            if off > 0.0 {
                self.unequal += 1;
                self.elements.push(off / unit(f.abs().max(e.abs()), digits));
                worst = worst.max(off / row_unit);
            }
        }
        self.rows.push(worst);
        let ((token, margin), (own, _)) = (best(expected), best(found));
        self.other += usize::from(token != own);
        self.other_beyond += usize::from(token != own && margin > UNITS * row_unit);
    }

    fn worst(&self) -> f32 {
        self.rows.iter().copied().fold(0.0, f32::max)
    }

    /// The distance that a share of all elements stays within.
    fn within(&mut self, share: f64, all: usize) -> f32 {
        let beyond = ((1.0 - share) * all as f64) as usize;
        if beyond >= self.elements.len() {
            return 0.0;
        }
        let at = self.elements.len() - 1 - beyond;
        *self.elements.select_nth_unstable_by(at, f32::total_cmp).1
    }

    fn tell(&mut self, vocab: usize) -> String {
        let (worst, all) = (self.worst(), self.rows.len() * vocab);
        let rows_within = self.rows.iter().filter(|d| **d <= UNITS).count();
        let equal = 100.0 * (1.0 - self.unequal as f64 / all as f64);
        format!(
            "worst {worst:.3} ulp of the row ({rows_within} of {} rows within {UNITS}), {equal:.2} % equal, elements: 99.9 % \
             within {:.1} ulp, worst {:.0}; other token {} times, {} beyond the margin",
            self.rows.len(),
            self.within(0.999, all),
            self.within(1.0, all),
            self.other,
            self.other_beyond,
        )
    }
}

fn compare(runner: &mut ModelRunner, prompt: &Prompt, (chunk, digits): (usize, i32)) -> Distance {
    let found = runner.logits(&prompt.tokens, chunk).expect("logits");
    assert_eq!(found.len(), prompt.logits.len());
    let vocab = found.len() / prompt.tokens.len();
    let mut distance = Distance::default();
    for (found, expected) in found.chunks_exact(vocab).zip(prompt.logits.chunks_exact(vocab)) {
        distance.add(found, expected, digits);
    }
    distance
}

#[test]
fn aligned_agrees_with_the_reference() {
    let Some(models) = std::env::var_os("YN_ALIGNED_MODELS") else {
        return println!("left out: YN_ALIGNED_MODELS names no folder made by tests/golden/aligned.py");
    };
    let device = |numeric_mode| open("cuda", &DeviceOptions { numeric_mode, ..DeviceOptions::default() });
    let aligned = match device(NumericMode::Aligned) {
        Ok(device) => device,
        Err(e) => return println!("left out: {e}"),
    };
    let fast = device(NumericMode::Fast).expect("a device");
    let mut far = Vec::new();
    for dir in folders(Path::new(&models)) {
        let (name, prompts) = (dir.file_name().expect("a name").to_string_lossy(), prompts(&dir));
        let digits = if inspect(&dir).expect("inspect").dtype == DType::F16 { 10 } else { 7 };
        assert!(!prompts.is_empty(), "{name} has no prompts");
        // How far the reference is from itself when other prompts stand beside, as shapes decide how sums are added up.
        let own = std::fs::read_to_string(dir.join("own.txt")).expect("own.txt");
        let own: f32 = own.trim().parse().expect("a number");
        for (mode, device) in [("aligned", &aligned), ("fast", &fast)] {
            let mut runner = runner(device, &dir);
            for (i, prompt) in prompts.iter().enumerate() {
                let (len, vocab) = (prompt.tokens.len(), prompt.logits.len() / prompt.tokens.len());
                // Whole as the reference ran it; the first one also in chunks and token by token.
                let chunks: &[usize] = if i == 0 && mode == "aligned" { &[MOST_TOKENS, 64, 1] } else { &[MOST_TOKENS] };
                for chunk in chunks {
                    let mut d = compare(&mut runner, prompt, (*chunk, digits));
                    println!("{name} {mode}, {len} tokens in chunks of {chunk}: {}", d.tell(vocab));
                    // Chunks are shapes that the reference did not see.
                    let bound = if *chunk == MOST_TOKENS { UNITS } else { UNITS.max(1.5 * own) };
                    if mode == "aligned" && (d.worst() > bound || d.other_beyond > 0) {
                        far.push(format!("{name}, {len} tokens in chunks of {chunk}: {:.3} of {bound}", d.worst()));
                    }
                }
            }
        }
    }
    assert!(far.is_empty(), "beyond {UNITS} ulp, and what the reference is from itself: {far:#?}");
}
