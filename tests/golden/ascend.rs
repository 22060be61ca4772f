//! The golden models on the double of Ascend's libraries, in both halves: near the CPU's logits for the same weights, and its
//! greedy tokens wherever its logits are clear of ties.

#[path = "../ascend/library.rs"]
mod library;

use super::gpu::FAMILIES;
use super::world::{Alone, CHUNK_MOST, cpu, generate, runner_in_blocks};
use super::{Case, assert_depth_does_not_change_tokens, cases, distance, dummy_on, folder};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use yinian::base::{DType, ErrorKind, Token};
use yinian::hal::Device;
use yinian::hal::registry::{DeviceOptions, open};
use yinian::runner::ModelRunner;

/// The device's own block size, for which its attention operator is.
const BLOCK: u32 = 128;
/// Largest distance of logits, by dtype; the half-precision test of GPUs says why Gemmas are farther apart.
const HALVES: [(DType, f32); 2] = [(DType::Bf16, 4e-2), (DType::F16, 5e-3)];

fn most(name: &str, most: f32) -> f32 {
    if name.starts_with("tiny-gemma") { 10.0 * most } else { most }
}

/// Tests of this file, one at a time: the double counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Arc<dyn Device> {
    let options = DeviceOptions { library_dir: Some(library::folder()), threads: Some(2), ..DeviceOptions::default() };
    open("ascend", &options).expect("the double is a device")
}

/// Nothing was done wrong and nothing is left.
fn assert_clean() {
    let double = library::Double::get();
    assert_eq!((double.faults(), double.leaks()), (String::new(), String::new()));
}

/// A golden model whose weights are of `dtype`.
fn halved(name: &str, dtype: DType) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let read = |file: &str| std::fs::read(folder(name).join(file)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["torch_dtype"] = dtype.name().into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let file = read("model.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let narrow = |bytes: &[u8]| -> Vec<u8> {
        let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        match dtype {
            DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            _ => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    };
    let halves: Vec<_> =
        tensors.tensors().into_iter().map(|(n, t)| (n, t.shape().to_vec(), narrow(t.data()))).collect();
    let kind = if dtype == DType::F16 { Dtype::F16 } else { Dtype::BF16 };
    let views = halves.iter().map(|(n, shape, data)| (n, TensorView::new(kind, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    dir
}

/// Greedy answers of all cases at once.
fn answers(runner: &mut ModelRunner, cases: &[Case], chunk: usize) -> Vec<Vec<Token>> {
    let start = |(i, case): (usize, &Case)| Alone::new(i as u32, &case.prompt, 0.0).in_blocks(BLOCK);
    let mut seqs: Vec<_> = cases.iter().enumerate().map(start).collect();
    generate(runner, &mut seqs, (chunk, cases[0].greedy.len()));
    seqs.into_iter().map(|s| s.generated().to_vec()).collect()
}

/// How far the first token of `found` that differs lies below the CPU's, by the CPU's logits and as a share of their range;
/// `None` where none differs.
fn margin(cpu: &mut ModelRunner, prompt: &[Token], (found, expected): (&[Token], &[Token])) -> Option<f32> {
    let at = found.iter().zip(expected).position(|(a, b)| a != b)?;
    let tokens = [prompt, &expected[..at]].concat();
    let all = cpu.logits(&tokens, CHUNK_MOST).unwrap();
    let last = &all[all.len() - all.len() / tokens.len()..];
    let range = last.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    Some((last[expected[at] as usize] - last[found[at] as usize]) / range)
}

#[test]
fn families_agree_with_the_cpu_in_half_precision() {
    let _alone = alone();
    let device = device();
    let (mut far, mut same, mut all) = (Vec::new(), 0, 0);
    for (dtype, tolerance) in HALVES {
        for name in FAMILIES {
            let (dir, cases, tolerance) = (halved(name, dtype), cases(&folder(name)), most(name, tolerance));
            let mut cpu = runner_in_blocks(&cpu(), dir.path(), BLOCK).unwrap();
            let mut npu = runner_in_blocks(&device, dir.path(), BLOCK).unwrap();
            let longest = &cases.last().unwrap().prompt;
            let expected = cpu.logits(longest, CHUNK_MOST).unwrap();
            let vocab = expected.len() / longest.len();
            for chunk in [CHUNK_MOST, 7] {
                let found = npu.logits(longest, chunk).unwrap();
                let rows = found.chunks(vocab).zip(expected.chunks(vocab));
                let worst = rows.map(|(f, e)| distance(f, e)).fold(0.0, f32::max);
                if worst > tolerance {
                    far.push(format!("{name} {dtype}, chunks of {chunk}: {worst:e} from the CPU"));
                }
            }
            let expected = answers(&mut cpu, &cases, 30);
            for chunk in [30, 16] {
                for ((case, found), expected) in cases.iter().zip(answers(&mut npu, &cases, chunk)).zip(&expected) {
                    let margin = margin(&mut cpu, &case.prompt, (&found, expected));
                    (same, all) = (same + u32::from(margin.is_none()), all + 1);
                    if margin.is_some_and(|margin| margin > 2.0 * tolerance) {
                        far.push(format!("{name} {dtype}, prompt of {}: {margin:?}", case.prompt.len()));
                    }
                }
            }
        }
    }
    println!("{same} of {all} greedy answers are the CPU's to the token");
    assert!(far.is_empty(), "{far:#?}");
    assert!(4 * same > 3 * all, "{same} of {all} greedy answers are the CPU's");
    drop(device);
    assert_clean();
}

/// Steps launched before their predecessors are finished, with blocks that the attention operator is not for.
#[test]
fn depth_does_not_change_tokens() {
    let _alone = alone();
    let device = device();
    assert_depth_does_not_change_tokens(&mut dummy_on(&device, "bfloat16"));
    drop(device);
    assert_clean();
}

#[test]
fn a_model_in_float32_is_refused_with_what_there_is() {
    let _alone = alone();
    let device = device();
    let dir = folder("tiny-llama-mha");
    let e = runner_in_blocks(&device, &dir, BLOCK).unwrap_err();
    assert!(e.kind == ErrorKind::Unsupported && e.message.contains("keeps no float32 cache"), "{e}");
}
