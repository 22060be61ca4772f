//! The C++ wrapper: by several compilers, with and without exceptions, under sanitizers.

use super::server::{check, packages};
use super::{Workshop, ask, root, run, skip, soak_seconds};
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

/// Builds tests with `flag` and returns the program.
fn tests(shop: &Workshop, flags: &[&str], sources: &[&str]) -> Option<PathBuf> {
    let program = shop.path("tests");
    let mut command = compiler(shop, &format!("bindings/cpp with {}", flags[0]), flags[0])?;
    run(command
        .args(flags)
        .args(["-g1", "-o"])
        .arg(&program)
        .args(sources.iter().map(|name| source("test").join(name)))
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
    let Some(program) = tests(&shop, &["-fsanitize=address,undefined"], &TESTS) else { return };
    assert_eq!(run(&mut shop.test(program)), "ok\n");
}

#[test]
fn cpp_without_exceptions() {
    let shop = Workshop::new();
    let Some(program) = tests(&shop, &["-fno-exceptions"], &TESTS) else { return };
    assert_eq!(run(&mut shop.test(program)), "ok\n");
}

/// Of the dispatcher alone: nothing else has threads. The sanitizer does not see into the library, whose own threads would be reported.
#[test]
fn cpp_under_the_thread_sanitizer() {
    let shop = Workshop::new();
    let Some(program) = tests(&shop, &["-fsanitize=thread", "-DDISPATCHER_ALONE"], &["dispatcher.cpp"]) else { return };
    let suppressions = shop.path("suppressions");
    std::fs::write(&suppressions, "called_from_lib:libyinian.so\n").unwrap();
    let options = format!("suppressions={} halt_on_error=1", suppressions.display());
    assert_eq!(run(shop.test(program).env("TSAN_OPTIONS", options)), "ok\n");
}

/// For `part` of a soak's time.
fn soak(flag: &str, part: f64) {
    let shop = Workshop::new();
    let Some(mut command) = compiler(&shop, &format!("the C++ soak with {flag}"), flag) else { return };
    let program = shop.path("soak");
    let source = root().join("tests/bindings/cpp_soak.cpp");
    run(command.args(["-g1", "-o"]).arg(&program).arg(source).args(shop.link()).arg("-lyinian"));
    let out = Command::new(program).arg(format!("{:.0}", f64::from(soak_seconds()) * part)).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.ends_with("ok\n"), "{}: {said}{errors}", out.status);
    println!("{flag}: {said}");
}

#[test]
fn cpp_soak() {
    soak("-fno-sanitize=all", 1.0);
}

#[test]
fn cpp_soak_under_the_address_sanitizer() {
    soak("-fsanitize=address", 0.5);
}

/// Builds examples/server-cpp as one file, as its headers take most of the time.
fn server(shop: &Workshop, mut compiler: Command) -> PathBuf {
    let (whole, program) = (shop.path("whole.cpp"), shop.path("server-cpp"));
    let dir = std::fs::read_dir(root().join("examples/server-cpp")).unwrap().map(|entry| entry.unwrap().path());
    let sources = dir.filter(|path| path.extension().is_some_and(|e| e == "cpp"));
    let text: String = sources.map(|path| format!("#include \"{}\"\n", path.display())).collect();
    std::fs::write(&whole, text).unwrap();
    // What g++ says of local types in included files does not matter to the one file there is.
    compiler.arg("-Wno-subobject-linkage").arg("-o").arg(&program).arg(whole);
    run(compiler.args(shop.link()).arg("-lyinian"));
    program
}

#[test]
fn cpp_server() {
    const DIR: &str = "examples/server-cpp";
    let shop = Workshop::new();
    let Some(_) = compiler(&shop, DIR, "-std=c++20") else { return };
    let include = shop.include();
    let compiler = || {
        let mut command = Command::new("c++");
        command
            .args(WARNINGS)
            .args(["-std=c++20", &include])
            .arg(format!("-I{}", root().join("bindings/cpp").display()));
        command
    };
    let probe = shop.path("probe.cpp");
    std::fs::write(&probe, "#include <boost/beast/version.hpp>\n#include <nlohmann/json_fwd.hpp>\n").unwrap();
    if !compiler().arg("-fsyntax-only").arg(&probe).output().unwrap().status.success() {
        return skip(DIR, "there are no headers of Boost.Beast and nlohmann/json");
    }
    let program = server(&shop, compiler());
    match packages("openai_client") {
        Ok(client) => {
            let page = root().join("examples/web/index.html");
            let served = "-model {model} -addr {addr} -config {config} -web";
            check(&format!("{} {served} {}", program.display(), page.display()), client);
        }
        Err(why) => skip(DIR, &why),
    }
}
