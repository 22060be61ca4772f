//! The header and the library as artifacts: drift, compilers, symbols, dependencies, layouts.

use crate::header::{declared, header};
use crate::{library, root, run};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;

fn bless() -> bool {
    std::env::var_os("BLESS").is_some()
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
    if bless() {
        std::fs::write(root().join("include/yinian.h"), &text).unwrap();
    }
    assert!(header() == text, "include/yinian.h is stale; BLESS=1 cargo test --test capi rewrites it");
}

/// Whether a compiler is there. gcc's must be; clang's are tried when they are, and must be with CI=true.
fn found(compiler: &str) -> bool {
    let found = Command::new(compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("SKIPPED: no {compiler} on this machine");
        assert!(!["cc", "c++"].contains(&compiler), "a C and a C++ compiler are needed: install gcc and g++");
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "with CI=true nothing is skipped, but there is no {compiler}"
        );
    }
    found
}

#[test]
fn the_header_compiles_alone_and_twice() {
    let dir = tempfile::tempdir().unwrap();
    let c = ["c99", "c11", "c17"];
    let cpp = ["c++11", "c++14", "c++17", "c++20"];
    for (name, compilers, standards) in [("a.c", ["cc", "clang"], &c[..]), ("a.cpp", ["c++", "clang++"], &cpp[..])] {
        let source = dir.path().join(name);
        std::fs::write(&source, "#include \"yinian.h\"\n#include \"yinian.h\"\n").unwrap();
        for compiler in compilers.into_iter().filter(|c| found(c)) {
            for standard in standards {
                run(Command::new(compiler)
                    .arg(format!("-std={standard}"))
                    .args(["-pedantic", "-Wall", "-Wextra", "-Wpadded", "-Werror", "-fsyntax-only"])
                    .arg("-I")
                    .arg(root().join("include"))
                    .arg(&source));
            }
        }
    }
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|l| l.split_whitespace().last()).map(str::to_owned).collect();
    assert_eq!(exported, declared());
    assert!(exported.len() > 25);
}

#[test]
fn the_library_needs_the_c_library_only() {
    let dynamic = run(Command::new("readelf").args(["-d", "-W"]).arg(library()));
    let needed: Vec<_> = dynamic
        .lines()
        .filter(|l| l.contains("(NEEDED)"))
        .filter_map(|l| l.split_once('[')?.1.split_once(']').map(|(name, _)| name))
        .collect();
    assert!(needed.contains(&"libc.so.6"), "{dynamic}");
    for name in &needed {
        let plain = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2"];
        assert!(plain.contains(name) || name.starts_with("ld-linux"), "the library needs {name}");
    }
    assert!(dynamic.contains("[libyinian.so.0.1]"), "no soname: {dynamic}");
    assert!(dynamic.contains("NODELETE"), "dlclose would unmap code that threads still run: {dynamic}");
}

/// A C program that prints sizes, offsets and constants, made from the header's text.
fn layout_source(header: &str) -> String {
    let mut body = String::new();
    for (at, _) in header.match_indices("typedef struct yn_") {
        let text = &header[at + "typedef struct ".len()..];
        let Some((name, rest)) = text.split_once(" {") else { continue };
        let fields = rest.split_once(&format!("}} {name};")).expect("the end of a struct").0;
        writeln!(body, "  printf(\"{name} %u\\n\", (unsigned)sizeof({name}));").unwrap();
        let code: String = fields.split("/*").map(|part| part.rsplit("*/").next().unwrap_or_default()).collect();
        for field in code.split(';').filter_map(|f| f.split_whitespace().last()) {
            let field = field.trim_start_matches('*').split('[').next().unwrap_or_default();
            writeln!(
                body,
                "  printf(\"{name}.{field} %u %u\\n\", (unsigned)offsetof({name}, {field}), \
                 (unsigned)sizeof((({name} *)0)->{field}));"
            )
            .unwrap();
        }
    }
    let defines = header.lines().filter_map(|l| l.strip_prefix("#define ")?.split_once(' '));
    for (name, _) in defines.filter(|(name, _)| name.starts_with("YN_")) {
        writeln!(body, "  printf(\"{name} %lld\\n\", (long long)({name}));").unwrap();
    }
    format!(
        "#include \"yinian.h\"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{body}  return 0;\n}}\n"
    )
}

/// Within a minor version fields and constants are only appended: a changed line breaks hosts that are out there.
#[test]
fn layouts_and_constants_are_as_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&source, layout_source(&header())).unwrap();
    run(Command::new("cc").arg("-o").arg(&program).arg(&source).arg("-I").arg(root().join("include")));
    let found = run(&mut Command::new(&program));
    for must in ["yn_request ", "yn_event.size 0 4", "yn_error.message 8 504", "YN_E_FORKED -13"] {
        assert!(found.contains(must), "{must} is not in:\n{found}");
    }
    let path = root().join("tests/capi/layout.txt");
    if bless() {
        std::fs::write(&path, &found).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == found, "layouts differ from tests/capi/layout.txt; found:\n{found}");
}

#[test]
fn every_program_is_run_under_the_memory_checkers_too() {
    let script = std::fs::read_to_string(root().join("tests/capi/sanitize.sh")).unwrap();
    let words: BTreeSet<&str> = script.split_whitespace().collect();
    for entry in std::fs::read_dir(root().join("tests/capi")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "c") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(words.contains(name), "tests/capi/sanitize.sh does not run {name}");
        }
    }
}
