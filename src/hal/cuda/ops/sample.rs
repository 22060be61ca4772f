//! `sample`, with and without the product in front of it, and `logprobs`.

use super::linear::COUNTER_BYTES;
use super::{assert_ints, linear_few, linear_largest, shape, small};
use crate::base::{DType, Result};
use crate::hal::Tensor;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::{LinearSample, Logprobs, SAMPLER_BIASES, SAMPLER_END_TOKENS, SAMPLER_WORDS, Sample, SamplerWord};

/// Threads of the kernels' blocks.
const SAMPLE_BLOCK: u32 = 512;
const LOGPROBS_BLOCK: u32 = 1024;
/// Parts of a row that are scanned side by side, at most and in numbers at least.
const MAX_PARTS: usize = 32;
const MIN_PART: usize = 4096;
/// Scratch of one sequence.
const SCRATCH_BYTES: usize = 1968;
/// Words of a logprobs entry.
const ENTRY: usize = 3;

// The kernel has these numbers of its own.
const _: () = assert!(SAMPLER_WORDS == 80 && SAMPLER_END_TOKENS == 16 && SAMPLER_BIASES == 300);
const _: () = assert!(SamplerWord::NumBiases as usize == 15 && SamplerWord::NumEndTokens as usize == 9);

#[derive(Debug)]
pub(super) struct Kernels {
    scan: Kernel,
    draw: Kernel,
    logprobs: Kernel,
}

impl Kernels {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        Ok(Self {
            scan: modules.kernel("sample", "yn_sample_scan")?,
            draw: modules.kernel("sample", "yn_sample_draw")?,
            logprobs: modules.kernel("logprobs", "yn_logprobs")?,
        })
    }
}

/// Mirrors kernels/sample_row.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SampleParams {
    logits: u64,
    rows: u64,
    positions: u64,
    state: u64,
    counts: u64,
    biases: u64,
    out: u64,
    scratch: u64,
    fault: u64,
    firsts: u64,
    vocabulary: u32,
    state_rows: u32,
    parts: u32,
    vectors: u32,
}
const _: () = assert!(size_of::<SampleParams>() == 96);

/// Whether rows of logits are whole vectors of four.
fn vectors(logits: &Tensor) -> u32 {
    u32::from(logits.cols().is_multiple_of(4) && logits.addr().is_multiple_of(16))
}

/// Bytes of a row's first candidate.
const FIRST_BYTES: usize = 8;

/// `linear` without a bias, its operands checked by the caller, and `sample`, in mode `fast`: the kernel that takes the product gives the first
/// candidate of each row, too. False, with nothing enqueued, where none takes it.
pub(in crate::hal::cuda) fn linear_sample(s: &CudaStream, args: &LinearSample<'_>, w: &CudaMatrix) -> Result<bool> {
    let sample = &args.sample;
    let firsts = s.counters();
    if args.x.rows() * FIRST_BYTES > COUNTER_BYTES {
        return Ok(false);
    }
    let few = linear_few::logits(s, (sample.logits, args.x), w, firsts);
    let Some(done) = few.or_else(|| linear_largest::logits(s, args, w, firsts)) else { return Ok(false) };
    done?;
    draw(s, sample, Some(firsts))?;
    Ok(true)
}

pub(in crate::hal::cuda) fn sample(s: &CudaStream, args: &Sample<'_>) -> Result<()> {
    draw(s, args, None)
}

/// `firsts`: of all rows, where the product in front gave them.
fn draw(s: &CudaStream, args: &Sample<'_>, firsts: Option<u64>) -> Result<()> {
    let (n, vocabulary) = shape(args.logits);
    assert_eq!([shape(args.rows), shape(args.positions), shape(args.out)], [(n, 1); 3], "sequences of a sample op");
    assert_eq!(args.logits.dtype(), DType::F32, "logits of a sample op");
    assert_ints("a sample op", &[args.rows, args.positions, args.out, args.state, args.biases]);
    let rows = args.state.rows();
    assert_eq!(args.state.cols(), SAMPLER_WORDS, "words of a sampler row");
    assert_eq!(
        (shape(args.counts), args.counts.dtype()),
        ((rows, 2 * vocabulary), DType::U8),
        "counts of sampler rows"
    );
    assert_eq!(shape(args.biases), (rows, 2 * SAMPLER_BIASES), "biases of sampler rows");
    let (scratch, bytes) = s.workspace();
    // All sequences at once, unless there are more than the scratch memory has room for.
    let most = (bytes / SCRATCH_BYTES).min(65_535);
    let parts = (2 * s.sm_count() as usize).div_ceil(n.max(1)).clamp(1, MAX_PARTS);
    let parts = small(parts.min(vocabulary.div_ceil(MIN_PART)));
    for from in (0..n).step_by(most) {
        let count = small(most.min(n - from));
        let part = |t: &Tensor| t.slice_rows(from, count as usize).addr();
        let params = SampleParams {
            logits: part(args.logits),
            rows: part(args.rows),
            positions: part(args.positions),
            state: args.state.addr(),
            counts: args.counts.addr(),
            biases: args.biases.addr(),
            out: part(args.out),
            scratch,
            fault: s.fault_word(),
            firsts: firsts.map_or(0, |firsts| firsts + (from * FIRST_BYTES) as u64),
            vocabulary: small(vocabulary),
            state_rows: small(rows),
            parts,
            vectors: vectors(args.logits),
        };
        let kernels = &s.kernels().sample;
        s.launch(&kernels.scan, [parts, count, 1], SAMPLE_BLOCK, 0, &params)?;
        s.launch(&kernels.draw, [count, 1, 1], SAMPLE_BLOCK, 0, &params)?;
    }
    Ok(())
}

/// Mirrors kernels/logprobs.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct LogprobsParams {
    logits: u64,
    index: u64,
    tokens: u64,
    out: u64,
    fault: u64,
    logits_rows: u32,
    vocabulary: u32,
    k: u32,
    vectors: u32,
}
const _: () = assert!(size_of::<LogprobsParams>() == 56);

pub(in crate::hal::cuda) fn logprobs(s: &CudaStream, args: &Logprobs<'_>) -> Result<()> {
    let (rows, vocabulary) = shape(args.logits);
    let (n, cols) = shape(args.out);
    assert_eq!((shape(args.index), shape(args.tokens)), ((n, 1), (rows, 1)), "rows of a logprobs op");
    assert_eq!(args.logits.dtype(), DType::F32, "logits of a logprobs op");
    assert_ints("a logprobs op", &[args.index, args.tokens, args.out]);
    assert!(cols >= ENTRY && cols.is_multiple_of(ENTRY), "columns of a logprobs op");
    if n == 0 {
        return Ok(());
    }
    let params = LogprobsParams {
        logits: args.logits.addr(),
        index: args.index.addr(),
        tokens: args.tokens.addr(),
        out: args.out.addr(),
        fault: s.fault_word(),
        logits_rows: small(rows),
        vocabulary: small(vocabulary),
        k: small(cols / ENTRY - 1),
        vectors: vectors(args.logits),
    };
    s.launch(&s.kernels().sample.logprobs, [small(n), 1, 1], LOGPROBS_BLOCK, 0, &params)
}
