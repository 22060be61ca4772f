//! `examples/doctor` on this machine and on made-up ones: each run is a process of its own, as a driver stays loaded.
#![cfg(target_os = "linux")]

#[path = "ascend/library.rs"]
mod ascend;
#[path = "../examples/doctor/report.rs"]
mod report;

use std::fs;
use std::path::Path;
use std::process::Command;
use yinian::base::ErrorKind;
use yinian::base::config::EngineConfig;

/// Separates the arguments of [`child`].
const BETWEEN: char = '\u{1f}';

#[test]
#[ignore = "the process that the tests below start"]
fn child() {
    let args = std::env::var("YN_DOCTOR_ARGS").expect("arguments");
    let args: Vec<_> = args.split(BETWEEN).filter(|a| !a.is_empty()).map(str::to_owned).collect();
    match report::report(&args) {
        Ok(text) => println!("{text}"),
        Err(text) => panic!("{text}"),
    }
    // What an engine says of the same folder.
    if let Some(dir) = args.iter().skip_while(|a| *a != "--library-dir").nth(1) {
        let config = format!(r#"{{"model": "{}", "device": "cuda", "device_library_dir": {dir:?}}}"#, demo_model());
        let config = EngineConfig::from_json(config.as_bytes()).expect("a config");
        let e = yinian::engine::plan_memory(&config).expect_err("no GPU to plan for");
        println!("engine: {:?}: {e}", e.kind);
    }
}

fn demo_model() -> String {
    format!("{}/examples/demo_model", env!("CARGO_MANIFEST_DIR"))
}

/// What the doctor writes, or why it does not.
fn doctor(args: &[&str]) -> std::result::Result<String, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "child"]);
    let out = command.env("YN_DOCTOR_ARGS", args.join(&BETWEEN.to_string())).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

fn assert_says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}

#[test]
fn every_machine_gets_a_report() {
    let text = doctor(&[]).unwrap();
    println!("{text}");
    assert_says(&text, &[concat!("Yinian ", env!("CARGO_PKG_VERSION")), "\nProcessor\n", "that this process may use"]);
    assert_says(
        &text,
        &["searched libcuda.so", "needed CUDA 13.0", "cuBLASLt ", "NCCL ", "\n\"device\": \"auto\"\n  would be "],
    );
    let sizes = text.lines().find(|l| l.starts_with("  memory ")).expect("the host's memory");
    assert!(sizes.contains(" GB free of "), "{sizes}");
    let text = doctor(&["--config", r#"{"threads": 3, "cpu_features": "portable"}"#]).unwrap();
    assert_says(&text, &["portable code, 3 threads"]);
}

#[test]
fn memory_of_a_model_is_planned_and_wrong_arguments_are_named() {
    let text = doctor(&["--model", &demo_model(), "--config", r#"{"device": "cpu", "max_num_seqs": 2}"#]).unwrap();
    assert_says(&text, &["Memory of an engine for", "\"weights_bytes\": ", "\"max_num_seqs\": 2"]);
    for (args, says) in [
        (vec!["--model", "/no/such/model"], "/no/such/model"),
        (vec!["--config", r#"{"thread": 3}"#], "did you mean \"threads\""),
        (vec!["--model"], "--model needs a value"),
        (vec!["--frobnicate"], "usage: doctor"),
    ] {
        assert_says(&doctor(&args).unwrap_err(), &[says]);
    }
}

/// The entry points that the backend asks a driver for.
fn symbols() -> Vec<String> {
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/hal/cuda/driver.rs")).unwrap();
    let table = source.split("const SYMBOLS").nth(1).and_then(|s| s.split("];").next()).unwrap();
    let all: Vec<_> = table.split('"').filter(|s| s.starts_with("cu")).map(str::to_owned).collect();
    assert!(all.len() > 30, "{all:?}");
    all
}

/// A driver in `dir` for CUDA `version` without the entry point `lacks`; what else it has answers `answer`. It bears the name
/// that the loader is asked for first, so that it is found before a real one.
fn driver(dir: &Path, version: i32, lacks: &str, answer: i32) {
    let mut source = format!("int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}\n");
    source += "int cuGetErrorString(int e, const char **s) { *s = e == 100 ? \"made up: no device\" : \"made up\"; return 0; }\n";
    source += "int cuDeviceGetCount(int *n) { *n = 0; return 0; }\n";
    for symbol in symbols() {
        if ![lacks, "cuDriverGetVersion", "cuDeviceGetCount", "cuGetErrorString"].contains(&symbol.as_str()) {
            source += &format!("int {symbol}(void) {{ return {answer}; }}\n");
        }
    }
    fs::write(dir.join("driver.c"), source).unwrap();
    let out = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so", "-o"])
        .args([dir.join("libcuda.so.1"), dir.join("driver.c")])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_driver_that_does_not_serve_is_named_with_what_was_searched() {
    let found = |version: i32, lacks: &str, answer: i32, says: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        driver(dir.path(), version, lacks, answer);
        let dir = dir.path().display().to_string();
        let text = doctor(&["--library-dir", &dir]).unwrap();
        assert_says(
            &text,
            &[&format!("CUDA driver  {dir}/libcuda.so.1 (version "), &format!("searched {dir}/libcuda.so, ")],
        );
        assert_says(&text, says);
        text
    };
    let needs = "this build needs one for CUDA 13.0 (580 or newer)";
    let old = found(12_040, "", 0, &["(version 12.4)", "the CUDA driver is too old: it is for CUDA 12.4", needs]);
    found(13_000, "cuLaunchKernelEx", 0, &["(version 13.0)", "too old: it has no cuLaunchKernelEx", needs]);
    found(13_000, "", 100, &["starting the driver (cuInit): made up: no device (CUDA_ERROR_NO_DEVICE)"]);
    // 999 of `cuInit` is a broken installation, not a lost context.
    let broken =
        found(13_010, "", 999, &["(version 13.1)", "starting the driver (cuInit): made up", "  would be     cpu: "]);
    assert!(!broken.contains("is lost"), "{broken}");
    found(13_000, "", 0, &["the driver shows none"]);
    if !old.contains("without a compiler") {
        assert_says(&old, &[&format!("engine: {:?}: the CUDA driver is too old", ErrorKind::Device)]);
    }
}

#[test]
fn a_folder_without_a_driver_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("libcuda.so.1"), "no library").unwrap();
    let name = dir.path().display().to_string();
    let text = doctor(&["--library-dir", &name]).unwrap();
    assert_says(&text, &[&format!("{name}/libcuda.so.1, libcuda.so")]);
    if text.contains("CUDA driver  not found") {
        assert_says(&text, &["no CUDA driver: libcuda.so.1 in ", &name, "\"device_library_dir\""]);
    }
}

#[test]
fn npus_are_listed_with_their_library() {
    let folder = ascend::folder().display().to_string();
    let text = doctor(&["--library-dir", &folder]).unwrap();
    let version = format!("CANN         {folder}/libascendcl.so (version ");
    assert_says(&text, &[&version, "needed CANN 8.3", "ascend:0", "ascend:7", "AscendDouble, AscendCL "]);
    let text = doctor(&[]).unwrap();
    if !text.contains("AscendCL") {
        assert_says(&text, &["CANN         not found", "/usr/local/Ascend", "no Ascend runtime (AscendCL): searched "]);
    }
}
