//! One table of ops and shapes against every device: each op is compared with a plain f64 model of its definition in
//! `hal::ops`, on random inputs and poisoned outputs. A backend joins by standing in [`devices`]. `YN_CONFORMANCE` (in
//! [`kit::some`]) makes lists of shapes short, `YN_CONFORMANCE_ROWS` (in [`rows`]) chooses rows of the table.

mod aligned;
#[path = "../ascend/library.rs"]
mod ascend;
mod attention;
mod fused;
mod head;
mod invariance;
mod kit;
mod linear;
mod many;
mod rows;
mod rowwise;
mod sample;
mod vocabulary;

use kit::Kit;
use rows::Rows;
use std::sync::Arc;
use yinian::base::config::NumericMode;
use yinian::base::{DType, ErrorKind};
use yinian::hal::Device;
use yinian::hal::registry::{self, DeviceOptions};

/// The repository: at run time's, as the tests also run on machines without a compiler.
fn root() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}

/// Every device and setting to run on. Instruction sets that this machine lacks are named and left out.
fn devices() -> Vec<Kit> {
    let mut kits = Vec::new();
    for features in ["portable", "avx2", "avx512"] {
        for threads in [1, 2, 3] {
            let options = DeviceOptions {
                threads: Some(threads),
                cpu_features: Some(features.to_owned()),
                ..DeviceOptions::default()
            };
            match registry::open("cpu", &options) {
                Ok(device) => kits.extend(Kit::acts_of(&*device).into_iter().map(|act| Kit::new(device.clone(), act))),
                Err(e) if threads == 1 => {
                    assert!(matches!(e.kind, ErrorKind::Unsupported | ErrorKind::Invalid), "{e}");
                    eprintln!("left out: {e}");
                }
                Err(_) => {}
            }
        }
    }
    assert!(kits.len() >= 3);
    kits
}

/// The table: op, and the function that runs its cases on one device.
type Case = (&'static str, fn(&Kit));

const TABLE: &[Case] = &[
    ("copies", rowwise::copies),
    ("embed", rowwise::embed),
    ("embed from host memory", rowwise::embed_from_host),
    ("matrices loaded from files", rowwise::loaded_from_files),
    ("rms_norm", rowwise::rms_norm),
    ("add_rms_norm", rowwise::add_rms_norm),
    ("act_mul: SiLU", rowwise::silu_mul),
    ("act_mul: GELU", rowwise::gelu_mul),
    ("soft_cap", rowwise::soft_cap),
    ("gather_rows", rowwise::gather_rows),
    ("copy_rows", rowwise::copy_rows),
    ("mask_logits", rowwise::mask_logits),
    ("linear", linear::all),
    ("linear: edges", linear::edges),
    ("few rows: linear", linear::few_rows),
    ("norm_linear", fused::products),
    ("few rows: norm_linear", fused::few_rows),
    ("some rows: linear", linear::some_rows),
    ("many rows: norm_linear", fused::many_rows),
    ("some rows: norm_linear", fused::some_rows),
    ("linear_norm_linear", fused::chains),
    ("attention: rope_write_kv and paged_attention", attention::all),
    ("attention: long contexts", attention::long_contexts),
    ("attention: few tokens over long contexts", attention::few_tokens_over_long_contexts),
    ("attention: few rows", attention::few_rows),
    ("attention: blocks of 128", attention::large_blocks),
    ("attention: many sequences", many::sequences),
    ("rope_write_kv of many tokens", many::tokens),
    ("sample: greedy", sample::greedy),
    ("sample: min_tokens", sample::min_tokens),
    ("sample: draws", sample::draws),
    ("sample: penalties and biases", sample::penalties_and_biases),
    ("head: linear_sample", head::all),
    ("logprobs", sample::logprobs),
    ("sample: the reference's processors", sample::reference_processors),
    ("sample: extremes", sample::extremes),
    ("sample: distribution", sample::distribution),
    ("sample: large vocabularies", vocabulary::draws),
    ("logprobs: large vocabularies", vocabulary::logprobs),
    ("row invariance of linear", invariance::linear),
    ("row invariance of attention", invariance::attention),
    ("row invariance of long attention", invariance::long_attention),
    ("row invariance of row ops", invariance::row_ops),
];

/// Those that the environment chooses.
fn chosen() -> Rows {
    let known = TABLE.iter().chain(ALIGNED).map(|row| row.0);
    Rows::from_env(&known.collect::<Vec<_>>()).unwrap_or_else(|e| panic!("YN_CONFORMANCE_ROWS: {e}"))
}

#[test]
fn every_op_on_every_device() {
    let chosen = chosen();
    for kit in devices() {
        for (name, run) in TABLE.iter().filter(|row| chosen.takes(row.0, kit.act)) {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&kit)));
            assert!(outcome.is_ok(), "{name} on {}", kit.device.caps().description);
        }
    }
}

/// Runs all chosen rows and tells of them, as a GPU is seldom at hand.
fn run_all<'a>(device: &Arc<dyn Device>, rows: impl Iterator<Item = &'a Case>, acts: &[DType]) {
    let (chosen, mut ran, mut failed) = (chosen(), 0, Vec::new());
    for (name, run) in rows {
        // Logits are F32 whatever the activations are.
        let reads_logits = name.starts_with("sample") || name.starts_with("logprobs");
        let acts = if reads_logits { &acts[..1] } else { acts };
        for act in acts.iter().filter(|act| chosen.takes(name, **act)) {
            let run = || run(&Kit::new(device.clone(), *act));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            println!("{name} in {act}: {}", if outcome.is_ok() { "ok" } else { "FAILED" });
            failed.extend(outcome.err().map(|_| (*name, *act)));
            ran += 1;
        }
    }
    println!("{ran} rows ran");
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn every_op_on_a_gpu() {
    every_op_in(NumericMode::Fast);
}

#[test]
fn every_op_on_an_invariant_gpu() {
    every_op_in(NumericMode::Invariant);
}

fn every_op_in(numeric_mode: NumericMode) {
    let device = match registry::open("cuda", &DeviceOptions { numeric_mode, ..DeviceOptions::default() }) {
        Ok(device) => device,
        Err(e) => return eprintln!("left out: {e}"),
    };
    println!("{}, numeric mode {}", device.caps().description, numeric_mode.name());
    assert_eq!(device.caps().invariant, numeric_mode == NumericMode::Invariant);
    let rows = TABLE.iter().filter(|(name, _)| device.caps().invariant || !name.starts_with("row invariance"));
    run_all(&device, rows, &Kit::acts_of(&*device));
}

/// What runs on the device where vendor operators or own kernels do, as the double counts it.
const ATTENTION: &str = "aclnnFusedInferAttentionScoreV3";
const LAUNCH: &str = "aclrtLaunchKernelWithConfig";
const BLOCKS: &str = "attention: blocks of 128";
/// Rows that our own kernels take a part in.
const OWN_KERNELS: [&str; 7] = [
    "rms_norm",
    "add_rms_norm",
    "act_mul: SiLU",
    "act_mul: GELU",
    "attention: rope_write_kv and paged_attention",
    "attention: long contexts",
    BLOCKS,
];

/// Rows of every way through the Ascend backend: operators, copies, and ops on the host.
const BUSY: [&str; 6] = [
    "embed",
    "add_rms_norm",
    "linear: edges",
    "attention: rope_write_kv and paged_attention",
    "sample: draws",
    "logprobs",
];

/// A way to run: its name, the folder of libraries, the rows it takes, and what is set before.
type Setting<'a> = (&'a str, std::path::PathBuf, fn(&str) -> bool, &'a dyn Fn());

/// On the double of the vendor's libraries, which also tells what a caller did wrong: with streams that run nothing before
/// somebody waits, then with streams that run at once, and with attention in the form that older versions have.
#[test]
fn every_op_on_ascend() {
    let double = ascend::Double::get();
    let equal_rows = || double.option("refuse_tnd_paged", true);
    let own_kernels = || {
        double.option("refuse_tnd_paged", false);
        double.mode(false, 0);
    };
    let settings: [Setting<'_>; 4] = [
        ("lazy streams", ascend::folder(), |name| !name.starts_with("row invariance"), &|| double.mode(false, 0)),
        ("busy streams", ascend::folder(), |name| BUSY.contains(&name), &|| double.mode(true, 7)),
        ("attention of equal rows", ascend::folder(), |name| name == BLOCKS, &equal_rows),
        ("own kernels", ascend::folder_with_kernels(), |name| OWN_KERNELS.contains(&name), &own_kernels),
    ];
    for (what, folder, takes, set) in settings {
        set();
        let options = DeviceOptions { library_dir: Some(folder), threads: Some(2), ..DeviceOptions::default() };
        let device = registry::open("ascend", &options).unwrap();
        println!("{}: {what}", device.caps().description);
        let kernels = if what == "own kernels" { "4 of our own kernels" } else { "0 of our own kernels" };
        assert!(device.caps().description.starts_with("AscendDouble") && device.caps().description.ends_with(kernels));
        let before = [ATTENTION, LAUNCH].map(|call| double.calls(call));
        run_all(&device, TABLE.iter().filter(|(name, _)| takes(name)), &device.caps().weight_dtypes.clone());
        let [attention, launches] = [ATTENTION, LAUNCH].map(|call| double.calls(call));
        if chosen().takes(BLOCKS, DType::Bf16) && takes(BLOCKS) {
            assert!(attention > before[0] + 20, "{what}: attention ran on the host");
            assert_eq!(launches > before[1] + 20, what == "own kernels", "{what}: launches of kernels");
        }
        drop(device);
        assert_eq!((double.faults(), double.leaks()), (String::new(), String::new()), "{what}");
    }
}

/// Rows for a device that rounds as the reference does; those of the table that it shares are named.
const ALIGNED: &[Case] = &[
    ("aligned norms", aligned::all_norms),
    ("aligned embeddings", aligned::embed),
    ("aligned activations", aligned::activations),
    ("aligned logits", aligned::logits),
    ("aligned biases", aligned::biases),
    ("aligned table of angles", aligned::angles),
    ("aligned attention of whole prompts", aligned::whole_prompts),
];
const SHARED: [&str; 7] = [
    "embed",
    "rms_norm",
    "add_rms_norm",
    "gather_rows",
    "linear",
    "attention: rope_write_kv and paged_attention",
    "attention: long contexts",
];

#[test]
fn every_op_on_an_aligned_gpu() {
    let options = DeviceOptions { numeric_mode: NumericMode::Aligned, ..DeviceOptions::default() };
    let device = match registry::open("cuda", &options) {
        Ok(device) => device,
        Err(e) => return eprintln!("left out: {e}"),
    };
    assert!(device.caps().aligned && !device.caps().invariant);
    let rows = TABLE.iter().filter(|(name, _)| SHARED.contains(name)).chain(ALIGNED);
    run_all(&device, rows, &[DType::F16, DType::Bf16]);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let kits = devices();
    for three in kits.chunks(3) {
        let bits: Vec<Vec<u32>> = three.iter().map(invariance::fingerprint).collect();
        assert!(bits.windows(2).all(|w| w[0] == w[1]), "{}", three[0].device.caps().description);
    }
}

#[test]
fn wrong_options_and_matrices_are_typed_errors() {
    let kind = |threads, features: Option<&str>| {
        let options = DeviceOptions { threads, cpu_features: features.map(str::to_owned), ..DeviceOptions::default() };
        registry::open("cpu", &options).map(|_| ()).map_err(|e| e.kind)
    };
    assert_eq!(kind(Some(0), None), Err(ErrorKind::Invalid));
    assert_eq!(kind(Some(1), Some("sse9")), Err(ErrorKind::Invalid));
    let device = registry::open("cpu", &DeviceOptions::default()).unwrap();
    assert_eq!(device.alloc(usize::MAX).unwrap_err().kind, ErrorKind::NoMemory);
    assert_eq!(device.alloc(1 << 50).unwrap_err().kind, ErrorKind::NoMemory);
    assert_eq!(device.load_matrix(&[]).unwrap_err().kind, ErrorKind::Invalid);
    let zeroed = device.alloc(100).unwrap();
    assert_eq!((zeroed.addr() % 64, zeroed.bytes()), (0, 100));
}
