//! The wrappers in bindings/ and the servers over them, each built with its own toolchain against the library of this build,
//! and its tests run; and what bindings/install.sh installs, with projects that use it.
//! A toolchain that is missing skips what needs it, aloud; with CI=true that is a failure.
#![cfg(target_os = "linux")]

mod cpp;
mod golang;
#[path = "../capi/header.rs"]
mod header;
mod host;
mod install;
mod java;
mod server;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How long a soak lasts: YINIAN_SOAK_SECONDS, 600 for a night's run, and half a minute unless set.
fn soak_seconds() -> u32 {
    let text = std::env::var("YINIAN_SOAK_SECONDS").unwrap_or_else(|_| "30".into());
    text.parse().unwrap_or_else(|_| panic!("YINIAN_SOAK_SECONDS is a number of seconds, not {text:?}"))
}

/// Runs a command for at most five minutes, and as long as soaks are told to last; its standard output. It must succeed.
fn run(command: &mut Command) -> String {
    let mut limited = Command::new("timeout");
    limited.arg((300 + soak_seconds()).to_string()).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    if let Some(dir) = command.get_current_dir() {
        limited.current_dir(dir);
    }
    let out = limited.output().unwrap_or_else(|e| panic!("{limited:?}: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{limited:?}: {}\n{stdout}{stderr}", out.status);
    stdout.into_owned()
}

/// What a tool says when asked for its version; `None` when it is not there.
fn ask(tool: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(tool).args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

fn skip(what: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "with CI=true nothing is skipped, but {what}: {why}");
    // Past the test harness, which would swallow it.
    let line = format!("\nSKIPPED: tests of {what}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A directory where the library of this build has its names, for building and running.
struct Workshop {
    dir: TempDir,
}

impl Workshop {
    fn new() -> Self {
        let exe = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["libyinian.so", "libyinian.so.0.1"] {
            std::os::unix::fs::symlink(exe.parent().unwrap().join("libyinian.so"), dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn include(&self) -> String {
        format!("-I{}", root().join("include").display())
    }

    fn link(&self) -> [String; 2] {
        let dir = self.dir.path().display();
        [format!("-L{dir}"), format!("-Wl,-rpath,{dir}")]
    }

    /// A test program with what it should find out.
    fn test(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let model = root().join("examples/demo_model").display().to_string();
        let mut command = Command::new(program);
        command.env("YINIAN_TEST_MOCK_TEXT", host::text_of("mock:words"));
        command.env("YINIAN_TEST_MODEL_TEXT", host::text_of(&model));
        command.env("YINIAN_TEST_MODEL", model);
        command
    }
}
