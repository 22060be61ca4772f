//! The golden models on the double of Ascend's libraries, in both halves: near the CPU's logits for the same weights, and its
//! greedy tokens wherever its logits are clear of ties.

#[path = "../ascend/library.rs"]
mod library;

use super::gpu::FAMILIES;
use super::ranks::{greedy, logits};
use super::world::{Alone, CHUNK_MOST, cpu, generate, long_runner, ranks_on, runner_in_blocks, tiny_config};
use super::{Case, assert_depth_does_not_change_tokens, cases, distance, dummy_on, folder, prompt, root};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use yinian::base::config::LoadFormat;
use yinian::base::{DType, ErrorKind, Token};
use yinian::hal::Device;
use yinian::hal::registry::{DeviceOptions, open, open_ranks};
use yinian::runner::ModelRunner;

/// The device's own block size, for which its attention operator is.
const BLOCK: u32 = 128;
/// Largest distance of logits by dtype, whose three bits more make one an eighth of the other, and how many answers in a hundred
/// are the CPU's at least (found: 44 and 100).
const HALVES: [(DType, f32, u32); 2] = [(DType::Bf16, 8e-2, 40), (DType::F16, 1e-2, 95)];

/// Tests of this file, one at a time: the double counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Arc<dyn Device> {
    device_in(library::folder())
}

fn device_in(folder: PathBuf) -> Arc<dyn Device> {
    let options = DeviceOptions { library_dir: Some(folder), threads: Some(2), ..DeviceOptions::default() };
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
    let files = std::fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    let files: Vec<_> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let tensors = files.iter().flat_map(|file| SafeTensors::deserialize(file).unwrap().tensors());
    let narrow = |bytes: &[u8]| -> Vec<u8> {
        let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        match dtype {
            DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            _ => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    };
    let halves: Vec<_> = tensors.map(|(n, t)| (n, t.shape().to_vec(), narrow(t.data()))).collect();
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

/// Of the tokens that `answer` consists of, given the CPU's in front of each: how many are the device's choice too, and how far
/// those that are not lie below the CPU's at most, as a share of the range of its logits.
fn forced([cpu, npu]: [&mut ModelRunner; 2], prompt: &[Token], answer: &[Token]) -> (u32, f32) {
    let tokens = [prompt, &answer[..answer.len() - 1]].concat();
    let [expected, found] = [cpu, npu].map(|runner| runner.logits(&tokens, CHUNK_MOST).unwrap());
    let vocab = expected.len() / tokens.len();
    let rows = expected.chunks(vocab).zip(found.chunks(vocab)).skip(prompt.len() - 1).zip(answer);
    let mut all = (0, 0.0_f32);
    for ((expected, found), token) in rows {
        let top = found.iter().fold(f32::MIN, |most, x| most.max(*x));
        if found[*token as usize] == top {
            all.0 += 1;
            continue;
        }
        let chosen = found.iter().position(|x| *x == top).unwrap();
        let range = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        all.1 = all.1.max((expected[*token as usize] - expected[chosen]) / range);
    }
    all
}

#[test]
fn families_agree_with_the_cpu_in_half_precision() {
    let _alone = alone();
    let (plain, with_kernels) = (device(), device_in(library::folder_with_kernels()));
    let mut far = Vec::new();
    for (i, (dtype, tolerance, least)) in HALVES.into_iter().enumerate() {
        let (mut same, mut all, mut widest) = (0, 0, 0.0_f32);
        let (mut equal, mut tokens, mut tie) = (0, 0, 0.0_f32);
        for (j, name) in FAMILIES.into_iter().enumerate() {
            // Either way for each family, and for each dtype.
            let device = if (i + j).is_multiple_of(2) { &plain } else { &with_kernels };
            let (dir, cases) = (halved(name, dtype), cases(&folder(name)));
            let mut cpu = runner_in_blocks(&cpu(), dir.path(), BLOCK).unwrap();
            let mut npu = runner_in_blocks(device, dir.path(), BLOCK).unwrap();
            let longest = &cases.last().unwrap().prompt;
            let expected = cpu.logits(longest, CHUNK_MOST).unwrap();
            let vocab = expected.len() / longest.len();
            for chunk in [CHUNK_MOST, 7] {
                let found = npu.logits(longest, chunk).unwrap();
                let rows = found.chunks(vocab).zip(expected.chunks(vocab));
                let worst = rows.map(|(f, e)| distance(f, e)).fold(0.0, f32::max);
                println!("{name} {dtype}, chunks of {chunk}: {worst:e} from the CPU");
                if worst > tolerance {
                    far.push(format!("{name} {dtype}, chunks of {chunk}: {worst:e} from the CPU"));
                }
            }
            let expected = answers(&mut cpu, &cases, 30);
            for (case, answer) in cases.iter().zip(&expected) {
                let (same, margin) = forced([&mut cpu, &mut npu], &case.prompt, answer);
                (equal, tokens, tie) = (equal + same, tokens + answer.len() as u32, tie.max(margin));
            }
            for chunk in [30, 16] {
                for ((case, found), expected) in cases.iter().zip(answers(&mut npu, &cases, chunk)).zip(&expected) {
                    let margin = margin(&mut cpu, &case.prompt, (&found, expected));
                    (same, all) = (same + u32::from(margin.is_none()), all + 1);
                    widest = widest.max(margin.unwrap_or(0.0));
                    if margin.is_some_and(|margin| margin > tolerance / 2.0) {
                        far.push(format!("{name} {dtype}, prompt of {}: {margin:?}", case.prompt.len()));
                    }
                }
            }
        }
        println!("{dtype}: {same} of {all} greedy answers are the CPU's, others leave it at ties of {widest:e}");
        assert!(100 * same >= least * all, "{dtype}: {same} of {all} greedy answers are the CPU's");
        println!("{dtype}: {equal} of {tokens} tokens are the CPU's behind the CPU's own, others are ties of {tie:e}");
        assert!(100 * equal >= 98 * tokens && tie <= tolerance / 2.0, "{dtype}: {equal} of {tokens}, ties of {tie:e}");
    }
    assert!(far.is_empty(), "{far:#?}");
    drop((plain, with_kernels));
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

/// A trained model, whose answers are text.
#[test]
fn the_demo_model_answers_as_the_cpu_but_for_near_ties() {
    let _alone = alone();
    let (device, dir) = (device(), root().join("examples/demo_model"));
    let mut cpu = runner_in_blocks(&cpu(), &dir, BLOCK).unwrap();
    let mut npu = runner_in_blocks(&device, &dir, BLOCK).unwrap();
    let mut margins = Vec::new();
    for start in [1, 77, 300, 901] {
        let case = Case { prompt: (0..12).map(|i| (start + 97 * i) % 2000).collect(), ..Case::default() };
        let [found, expected] = [&mut npu, &mut cpu].map(|runner| {
            let mut seq = [Alone::new(0, &case.prompt, 0.0).in_blocks(BLOCK)];
            generate(runner, &mut seq, (CHUNK_MOST, 40));
            seq[0].generated().to_vec()
        });
        margins.push(margin(&mut cpu, &case.prompt, (&found, &expected)));
    }
    println!("the first tokens that differ are so far below the CPU's: {margins:?}");
    assert!(margins.iter().all(|m| m.is_none_or(|m| m < 4e-2)), "{margins:?}");
    drop((npu, device));
    assert_clean();
}

/// More tokens than a mask of attention has, in chunks that end anywhere, with and without our own kernels.
#[test]
fn a_long_prompt_is_near_the_cpu() {
    const TOKENS: usize = 4200;
    let _alone = alone();
    let tokens = prompt(TOKENS as u32);
    let folders = [library::folder(), library::folder_with_kernels()];
    for ((folder, chunk), (dtype, tolerance, _)) in folders.into_iter().zip([700, 333]).zip(HALVES) {
        let mut config = tiny_config();
        (config["max_position_embeddings"], config["torch_dtype"]) = (8192.into(), dtype.name().into());
        (config["head_dim"], config["num_key_value_heads"], config["num_hidden_layers"]) =
            (64.into(), 1.into(), 2.into());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let run = |device: &Arc<dyn Device>| long_runner(device, dir.path()).logits(&tokens, chunk).unwrap();
        let (expected, found) = (run(&cpu()), run(&device_in(folder)));
        let rows = found.chunks(300).zip(expected.chunks(300));
        let worst = rows.map(|(f, e)| distance(f, e)).fold(0.0, f32::max);
        println!("{TOKENS} tokens of {dtype} in chunks of {chunk}: {worst:e} from the CPU");
        assert!(worst < tolerance / 2.0, "{dtype}: {worst:e} from the CPU");
    }
    assert_clean();
}

/// Two ranks on two NPUs against one.
#[test]
fn two_ranks_meet_through_hccl() {
    let _alone = alone();
    let options = DeviceOptions { library_dir: Some(library::folder()), threads: Some(1), ..DeviceOptions::default() };
    let before = library::Double::get().calls("HcclAllReduce");
    for (name, dtype, tolerance) in
        [("tiny-llama-gqa", DType::Bf16, 8e-2), ("tiny-qwen2", DType::F16, 1e-2), ("tiny-qwen3", DType::Bf16, 8e-2)]
    {
        let (dir, cases) = (halved(name, dtype), cases(&folder(name)));
        let devices = open_ranks("ascend:1", 2, &options).unwrap();
        let (mut ranks, _group) = ranks_on(&devices, dir.path(), LoadFormat::Auto);
        let mut cpu = runner_in_blocks(&cpu(), dir.path(), BLOCK).unwrap();
        let longest = &cases.last().unwrap().prompt;
        let expected = cpu.logits(longest, CHUNK_MOST).unwrap();
        let found = logits(&mut ranks, longest, CHUNK_MOST);
        let vocab = expected.len() / longest.len();
        let rows = found.chunks(vocab).zip(expected.chunks(vocab));
        let worst = rows.map(|(f, e)| distance(f, e)).fold(0.0, f32::max);
        println!("{name} {dtype} on two ranks: {worst:e} from the CPU");
        assert!(worst <= tolerance, "{name} {dtype}: {worst:e} from the CPU");
        let one = answers(&mut cpu, &cases, 30);
        let two = greedy(&mut ranks, &cases.iter().collect::<Vec<_>>(), 30);
        for ((case, found), expected) in cases.iter().zip(two).zip(&one) {
            let margin = margin(&mut cpu, &case.prompt, (&found, expected));
            assert!(margin.is_none_or(|margin| margin <= tolerance / 2.0), "{name} {dtype}: {margin:?}");
        }
    }
    assert!(library::Double::get().calls("HcclAllReduce") > before + 100);
    let e = open_ranks("ascend", 64, &options).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.message.contains("the runtime shows 8"), "{e}");
    assert_clean();
}
