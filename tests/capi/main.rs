//! The C API as C sees it: the committed header and what it promises, compiled and run.
#![cfg(target_os = "linux")]

mod gates;
mod header;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The shared library cargo built next to this test.
pub(crate) fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().join("libyinian.so")
}

/// A compiled C program beside links to the library.
struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    fn build(source: &str) -> Self {
        Self::compile(source, &["-lyinian"])
    }

    fn compile(source: &str, libraries: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["libyinian.so", "libyinian.so.0.1"] {
            std::os::unix::fs::symlink(library(), dir.path().join(name)).unwrap();
        }
        run(Command::new("cc")
            .args([
                "-std=c99",
                "-D_POSIX_C_SOURCE=200809L",
                "-pedantic",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-O1",
                "-pthread",
            ])
            .arg("-o")
            .arg(dir.path().join("program"))
            .arg(root().join(source))
            .arg("-I")
            .arg(root().join("include"))
            .arg("-L")
            .arg(dir.path())
            .arg("-Wl,-rpath,$ORIGIN")
            .args(libraries));
        Self { dir }
    }

    /// Runs it; what it wrote to standard output.
    fn run(&self, args: &[&str]) -> String {
        let mut command = Command::new(self.dir.path().join("program"));
        // cargo's points at target/<profile>, where an older build may lie under the same soname.
        command.env_remove("LD_LIBRARY_PATH");
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{command:?} has not ended after {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut out, mut errors) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(status.success(), "{command:?}: {status}\n{errors}{out}");
        print!("{out}");
        out
    }
}

fn demo_model() -> String {
    root().join("examples/demo_model").display().to_string()
}

#[test]
fn smoke() {
    Program::build("tests/capi/smoke.c").run(&[]);
}

#[test]
fn many_requests_with_cancels_and_a_slow_reader() {
    let program = Program::build("tests/capi/many.c");
    program.run(&[r#"{"model": "mock:words,delay_us=300", "max_num_seqs": 32}"#, "hello"]);
    program.run(&[r#"{"model": "mock:words,delay_us=300", "kv_cache_bytes": 1024, "block_size": 4}"#, "hi"]);
    program.run(&[&format!(r#"{{"model": {:?}}}"#, demo_model()), "Tell me a story about a fox."]);
}

#[test]
fn bad_arguments() {
    Program::build("tests/capi/arguments.c").run(&[&demo_model()]);
}

#[test]
fn bad_configs() {
    Program::build("tests/capi/configs.c").run(&[&demo_model()]);
}

#[test]
fn bad_requests() {
    let program = Program::build("tests/capi/requests.c");
    program.run(&[r#"{"model": "mock:words", "max_model_len": 100}"#, "257"]);
    let demo = format!(r#"{{"model": {:?}, "max_model_len": 100, "threads": 1}}"#, demo_model());
    program.run(&[&demo, "2048"]);
}

#[test]
fn free_during_traffic() {
    Program::build("tests/capi/free_traffic.c").run(&[]);
}

#[test]
fn two_engines() {
    Program::build("tests/capi/two_engines.c").run(&[&demo_model()]);
}

#[test]
fn descriptors_wakes_signals_and_forks() {
    Program::build("tests/capi/wake.c").run(&[]);
}

#[test]
fn the_demo_model() {
    Program::build("tests/capi/demo.c").run(&[&demo_model()]);
}

#[test]
fn faults() {
    Program::build("tests/capi/faults.c").run(&[]);
}

#[test]
fn hazards_of_hosts() {
    Program::build("tests/capi/hazards.c").run(&[&demo_model()]);
}

#[test]
fn loading_and_endings() {
    let program = Program::compile("tests/capi/loader.c", &["-ldl"]);
    let library = library().display().to_string();
    for (ending, said) in [
        ("close", "stays\nclosed\nturns\n"),
        ("early handler", "freed\n"),
        ("late handler", "freed\n"),
        ("used", "used\n"),
        ("destructor", "destroyed\n"),
        ("return", "returned\n"),
        ("exit", "exited\n"),
        ("_exit", "exited\n"),
        ("thread", "exited\n"),
        ("main ends", "outlived main\n"),
        ("fork", "forked\n"),
    ] {
        assert_eq!(program.run(&[&library, ending]), said, "{ending}");
    }
}

#[test]
fn a_soak() {
    let program = Program::build("tests/capi/soak.c");
    program.run(&["mock:words,delay_us=200", "8"]);
    program.run(&[&demo_model(), "4"]);
}

#[test]
fn small_stacks_and_destructors() {
    Program::build("tests/capi/stacks.c").run(&[&demo_model()]);
}

#[test]
fn the_example_streams_an_answer() {
    let program = Program::build("examples/c/stream.c");
    let text = program.run(&[&demo_model(), "Tell me a story about a \"fox\"."]);
    assert!(text.len() > 100 && text.to_lowercase().contains("once"), "{text}");
}
