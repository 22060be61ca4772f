//! The wrappers in bindings/ and the servers over them, each built with its own toolchain against the library of this build,
//! and its tests run; and what bindings/install.sh installs, with projects that use it.
//! A toolchain that is missing skips what needs it, aloud; with CI=true that is a failure.
#![cfg(target_os = "linux")]

#[path = "../capi/header.rs"]
mod header;
mod host;
mod install;
mod java;
mod server;
mod table;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command for at most five minutes and returns its standard output; it must succeed.
fn run(command: &mut Command) -> String {
    let mut limited = Command::new("timeout");
    limited.arg("300").arg(command.get_program()).args(command.get_args());
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

    /// The Go tool in a directory of ours, with the library of this build.
    fn go(&self, dir: &str, args: &[&str]) -> Command {
        let mut command = go_alone(self.test("go"), self.dir.path());
        command.args(args).current_dir(root().join(dir));
        command.env("CGO_CFLAGS", format!("-O1 {} -DYINIAN_HEADERS={:#x}", self.include(), headers_hash()));
        command.env("CGO_LDFLAGS", self.link().join(" ")).env("PKG_CONFIG", "true");
        command
    }
}

#[test]
fn cpp() {
    if ask("c++", &["--version"]).is_none() {
        return skip("bindings/cpp", "there is no C++ compiler, c++");
    }
    let shop = Workshop::new();
    let source = |name: &str| root().join("bindings/cpp").join(name);
    let compile = || {
        let mut command = Command::new("c++");
        command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"]).arg(shop.include());
        command
    };
    for standard in ["-std=c++17", "-std=c++20"] {
        run(compile().args([standard, "-fsyntax-only", "-x", "c++"]).arg(source("yinian.hpp")));
    }
    for (name, flag) in [("throwing", "-fsanitize=address,undefined"), ("nothrow", "-fno-exceptions")] {
        let sources = ["test/main.cpp", "test/nothrow.cpp"].map(source);
        run(compile()
            .args(["-std=c++17", "-g", flag, "-o"])
            .arg(shop.path(name))
            .args(sources)
            .args(shop.link())
            .arg("-lyinian"));
        assert_eq!(run(&mut shop.test(shop.path(name))), "ok\n");
    }
}

/// Changes with the headers: Go does not look at them when it asks its build cache.
fn headers_hash() -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in ["include/yinian.h", "bindings/flat_request.h"] {
        std::fs::read(root().join(name)).unwrap().hash(&mut hasher);
    }
    hasher.finish()
}

/// Go without network and the user's settings; its temporary files go to `dir`.
fn go_alone(mut command: Command, dir: &Path) -> Command {
    for (name, value) in [("GOPROXY", "off"), ("GOFLAGS", "-mod=mod"), ("GOTOOLCHAIN", "local"), ("CGO_ENABLED", "1")] {
        command.env(name, value);
    }
    command.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-build"));
    command.env("GOTMPDIR", dir).env("GOPATH", dir.join("gopath")).env("GOENV", "off").env("GOWORK", "off");
    command
}

#[test]
fn go() {
    let Some(_) = ask("go", &["version"]) else { return skip("bindings/go", "there is no Go toolchain, go") };
    let shop = Workshop::new();
    let go = |args: &[&str]| shop.go("bindings/go", args);
    // The race detector exists on few platforms; one of them is enough to find races.
    let race = if cfg!(target_arch = "x86_64") { "-race=true" } else { "-race=false" };
    run(&mut go(&["vet", race, "./..."]));
    let out = run(&mut go(&["test", race, "-count=1", "-timeout=60s", "./..."]));
    assert!(out.starts_with("ok"), "{out}");
}
