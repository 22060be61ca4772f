//! The C API as C sees it: the committed header and what it promises, compiled and run.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The shared library cargo built next to this test.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().join("libyinian.so")
}

fn header() -> String {
    std::fs::read_to_string(root().join("include/yinian.h")).unwrap()
}

#[test]
fn the_header_is_what_the_code_says() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let sources = ["types", "version", "status", "engine", "request", "queue", "tokenizer", "log", "args"];
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), |b, name| {
        b.with_src(root().join(format!("src/ffi/{name}.rs")))
    });
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    let text = String::from_utf8(text).unwrap();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(root().join("include/yinian.h"), &text).unwrap();
    }
    assert!(header() == text, "include/yinian.h is stale; BLESS=1 cargo test --test capi rewrites it");
}

#[test]
fn the_header_compiles_alone_and_twice() {
    let dir = tempfile::tempdir().unwrap();
    for (name, compiler, standard) in [("a.c", "cc", "c99"), ("a.c", "cc", "c17"), ("a.cpp", "c++", "c++11")] {
        let source = dir.path().join(name);
        std::fs::write(&source, "#include \"yinian.h\"\n#include \"yinian.h\"\n").unwrap();
        run(Command::new(compiler)
            .args([
                &format!("-std={standard}"),
                "-pedantic",
                "-Wall",
                "-Wextra",
                "-Wpadded",
                "-Werror",
                "-fsyntax-only",
            ])
            .arg("-I")
            .arg(root().join("include"))
            .arg(source));
    }
}

#[test]
fn the_library_exports_what_the_header_declares() {
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let names = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|w| w.starts_with("yn_"))
            .map(str::to_owned)
            .collect()
    };
    let header = header();
    let declared: BTreeSet<String> = header
        .match_indices("yn_")
        .filter_map(|(at, _)| header[at..].split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_') && name != "yn_log_fn")
        .collect();
    assert_eq!(names(&symbols), declared);
}

#[test]
fn a_c_program_serves_a_request() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["libyinian.so", "libyinian.so.0.1"] {
        std::os::unix::fs::symlink(library(), dir.path().join(name)).unwrap();
    }
    let program = dir.path().join("smoke");
    run(Command::new("cc")
        .args(["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
        .arg(&program)
        .arg(root().join("tests/capi/smoke.c"))
        .arg("-I")
        .arg(root().join("include"))
        .arg("-L")
        .arg(dir.path())
        .arg(format!("-Wl,-rpath,{}", dir.path().display()))
        .arg("-lyinian"));
    run(&mut Command::new(program));
}
