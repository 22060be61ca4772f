//! The self-test that a person with a card runs (`examples/ascend_selftest`), whole, on the double: it must pass there, and tell
//! what is wrong when something is.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use yinian::hal::registry::{DeviceOptions, open};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The double's libraries and the kernels, in a folder of their own: other tests have theirs without kernels.
fn folder() -> PathBuf {
    let out = root().join("target/ascend/selftest");
    for script in ["tests/ascend/double/build.sh", "ascend/shim/build.sh"] {
        let done = Command::new(root().join(script)).arg(&out).output().unwrap_or_else(|e| panic!("{script}: {e}"));
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    }
    out
}

/// Runs it on `library_dir` with the library that cargo built beside this test.
fn run(library_dir: &Path, out: &Path, environment: &[(&str, &str)]) -> (Output, Value) {
    let installed = tempfile::tempdir().unwrap();
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libyinian.so");
    std::os::unix::fs::symlink(library, installed.path().join("libyinian.so")).unwrap();
    let done = Command::new(root().join("examples/ascend_selftest/run.sh"))
        .args(["--short", "--ranks", "2"])
        .args([
            Path::new("--prefix"),
            installed.path(),
            Path::new("--library-dir"),
            library_dir,
            Path::new("--out"),
            out,
        ])
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = std::fs::read(out).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&done.stderr)));
    let report = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)));
    (done, report)
}

fn all_agree(report: &Value, part: &str, at_least: usize) {
    let cases = report[part].as_array().unwrap_or_else(|| panic!("no {part} in {report:#}"));
    assert!(cases.len() >= at_least, "{} cases of {part}", cases.len());
    let wrong: Vec<&Value> = cases.iter().filter(|case| case["agrees"] != true).collect();
    assert!(wrong.is_empty(), "{part}: {wrong:#?}");
}

#[test]
fn the_self_test_passes_on_the_double_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (done, report) = run(&folder(), &dir.path().join("report.json"), &[]);
    assert!(done.status.success(), "{}\n{report:#}", String::from_utf8_lossy(&done.stderr));
    assert_eq!((&report["passed"], &report["wrong"]), (&true.into(), &0.into()));
    let ops = &report["ops"];
    assert_eq!(ops["device"], "ascend");
    assert_eq!(ops["found"]["chip"], "AscendDouble");
    for (fact, part) in [("runtime", "libascendcl.so"), ("kernels", "add_rms_norm.o"), ("attention_forms", "Packed")] {
        assert!(ops["found"][fact].as_str().unwrap().contains(part), "{fact}: {}", ops["found"]);
    }
    assert!(report["engine"]["device"]["description"].as_str().unwrap().contains("AscendDouble"));
    all_agree(ops, "ops", 80);
    all_agree(&report, "golden", 12);
    all_agree(&report, "ranks", 12);
    all_agree(&report, "families", 30);
    assert_eq!(report["bench"].as_array().unwrap().len(), 2);
    assert!(report["bench"].as_array().unwrap().iter().all(|run| run["tokens_per_second"].as_f64().unwrap() > 0.0));
}

#[test]
fn without_a_runtime_the_report_says_what_was_searched() {
    let (dir, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (done, report) = run(empty.path(), &dir.path().join("report.json"), &[]);
    if report["passed"] == true {
        return println!("skipped: this machine has an NPU");
    }
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(report["passed"], false);
    let error = report["error"].as_str().unwrap();
    assert!(error.contains(empty.path().to_str().unwrap()) && error.contains("libascendcl.so"), "{error}");
}

/// A folder with the double's libraries and kernels of which one computes another activation.
fn with_a_wrong_kernel(work: &Path) -> PathBuf {
    let (right, out, sources) = (folder(), work.join("out"), work.join("ascend"));
    let copied = Command::new("cp").arg("-r").arg(root().join("ascend")).arg(&sources).status().unwrap();
    assert!(copied.success());
    let kernel = sources.join("silu_mul.cpp");
    let source = std::fs::read_to_string(&kernel).unwrap();
    std::fs::create_dir_all(&out).unwrap();
    // Objects that are newer than their sources stay as they are.
    let copied = Command::new("cp").arg("-r").arg(right.join("AscendDouble")).arg(&out).status().unwrap();
    assert!(copied.success());
    assert!(source.contains("0.044715f"));
    std::fs::write(&kernel, source.replace("0.044715f", "0.06f")).unwrap();
    std::fs::remove_file(out.join("AscendDouble/silu_mul.o")).unwrap();
    let done = Command::new(sources.join("shim/build.sh")).arg(&out).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for library in ["libascendcl.so", "libnnopbase.so", "libopapi.so", "libhccl.so"] {
        std::os::unix::fs::symlink(right.join(library), out.join(library)).unwrap();
    }
    out
}

#[test]
fn a_wrong_kernel_is_told_of() {
    let work = tempfile::tempdir().unwrap();
    let library_dir = Some(with_a_wrong_kernel(work.path()));
    let device = open("ascend", &DeviceOptions { library_dir, ..DeviceOptions::default() }).unwrap();
    let report = yinian::hal::selftest::run(&device).unwrap();
    let wrong: Vec<&Value> = report["ops"].as_array().unwrap().iter().filter(|op| op["agrees"] != true).collect();
    assert!(wrong.iter().all(|op| op["op"] == "act_mul" && op["off"].as_f64() > op["allowed"].as_f64()), "{wrong:#?}");
    assert!(wrong.len() >= 4 && report["disagree"] == wrong.len(), "{wrong:#?}");
}
