//! The C++ wrapper: by several compilers, with and without exceptions, under sanitizers.

use super::{Workshop, ask, root, run, skip};
use std::path::PathBuf;
use std::process::Command;

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"];
const TESTS: [&str; 4] = ["main.cpp", "nothrow.cpp", "wide.cpp", "dispatcher.cpp"];

fn source(name: &str) -> PathBuf {
    root().join("bindings/cpp").join(name)
}

/// `None`, and said aloud, where there is no C++ compiler, or none that can do `flag`.
fn compiler(shop: &Workshop, what: &str, flag: &str) -> Option<Command> {
    if ask("c++", &["--version"]).is_none() {
        skip(what, "there is no C++ compiler, c++");
        return None;
    }
    let (empty, program) = (shop.path("empty.cpp"), shop.path("empty"));
    std::fs::write(&empty, "int main() {}\n").unwrap();
    if ask("c++", &[flag, "-o", &program.display().to_string(), &empty.display().to_string()]).is_none() {
        skip(what, &format!("c++ does not know {flag}"));
        return None;
    }
    let mut command = Command::new("c++");
    command.args(WARNINGS).args(["-std=c++17", flag]).arg(shop.include());
    Some(command)
}

/// Builds the tests with `flag` and returns the program.
fn tests(shop: &Workshop, flag: &str) -> Option<PathBuf> {
    let program = shop.path("tests");
    let mut command = compiler(shop, &format!("bindings/cpp with {flag}"), flag)?;
    run(command
        .args(["-g1", "-o"])
        .arg(&program)
        .args(TESTS.map(|name| source("test").join(name)))
        .args(shop.link())
        .arg("-lyinian"));
    Some(program)
}

#[test]
fn cpp_headers() {
    for compiler in ["g++", "clang++"] {
        if ask(compiler, &["--version"]).is_none() {
            skip(&format!("bindings/cpp with {compiler}"), "it is not there");
            continue;
        }
        for standard in ["-std=c++17", "-std=c++20"] {
            for exceptions in ["-fexceptions", "-fno-exceptions"] {
                run(Command::new(compiler)
                    .args(WARNINGS)
                    .args([standard, exceptions, "-fsyntax-only", "-x", "c++"])
                    .arg(format!("-I{}", root().join("include").display()))
                    .arg(source("yinian.hpp")));
            }
        }
    }
}

#[test]
fn cpp() {
    let shop = Workshop::new();
    let Some(program) = tests(&shop, "-fsanitize=address,undefined") else { return };
    assert_eq!(run(&mut shop.test(program)), "ok\n");
}

#[test]
fn cpp_without_exceptions() {
    let shop = Workshop::new();
    let Some(program) = tests(&shop, "-fno-exceptions") else { return };
    assert_eq!(run(&mut shop.test(program)), "ok\n");
}

/// The sanitizer does not see into the library, whose own threads would be reported.
#[test]
fn cpp_under_the_thread_sanitizer() {
    let shop = Workshop::new();
    let Some(program) = tests(&shop, "-fsanitize=thread") else { return };
    let suppressions = shop.path("suppressions");
    std::fs::write(&suppressions, "called_from_lib:libyinian.so\n").unwrap();
    let options = format!("suppressions={} halt_on_error=1", suppressions.display());
    assert_eq!(run(shop.test(program).env("TSAN_OPTIONS", options)), "ok\n");
}
