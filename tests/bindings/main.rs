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
mod server;
mod table;

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
}

/// A value of `java -XshowSettings:properties`.
fn property<'a>(settings: &'a str, name: &str) -> Option<&'a str> {
    settings.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('=')).map(str::trim)
}

fn java_sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            java_sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "java") {
            found.push(path);
        }
    }
}

#[test]
fn java() {
    let settings = ask("java", &["-XshowSettings:properties", "-version"]).unwrap_or_default();
    let release = property(&settings, "java.specification.version").and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
    let home = PathBuf::from(property(&settings, "java.home").unwrap_or_default());
    if release < 17 || !home.join("bin/javac").exists() || !home.join("include/jni.h").exists() {
        return skip("bindings/java", "there is no JDK of version 17 or later (java, javac, jni.h)");
    }
    if ask("cc", &["--version"]).is_none() {
        return skip("bindings/java", "there is no C compiler, cc");
    }
    let shop = Workshop::new();
    let (jni, classes) = (shop.path("libyinian_jni.so"), shop.path("classes"));
    run(Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
        .arg(&jni)
        .arg(root().join("bindings/java/src/main/c/yinian_jni.c"))
        .arg(shop.include())
        .arg(format!("-I{}", root().join("bindings").display()))
        .args(["include", "include/linux"].map(|dir| format!("-I{}", home.join(dir).display())))
        .args(shop.link())
        .arg("-lyinian"));
    let mut sources = Vec::new();
    java_sources(&root().join("bindings/java/src"), &mut sources);
    run(Command::new(home.join("bin/javac"))
        .args(["-Xlint:all,-try", "-Werror", "--release", "17", "-encoding", "UTF-8", "-d"])
        .arg(&classes)
        .args(&sources));
    let out = run(shop
        .test(home.join("bin/java"))
        .args(["-Xcheck:jni", "-ea", "-Xmx512m"])
        .arg(format!("-Dai.yinian.library={}", jni.display()))
        .arg("-cp")
        .arg(&classes)
        .arg("ai.yinian.EngineTest"));
    // -Xcheck:jni warns on standard output.
    assert_eq!(out, "ok\n");
}
