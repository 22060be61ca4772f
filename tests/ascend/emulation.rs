//! The AscendC kernels run by their emulation on the CPU (`ascend/`): its own program tests them, and the words for people say
//! the same as the sources.

use std::path::{Path, PathBuf};
use std::process::Command;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ascend")
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}: {}\n{text}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

/// Kernels against float64, and small wrong kernels against the emulation.
#[test]
fn kernels_are_right_and_their_emulation_is_strict() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ascend-kernels");
    run(Command::new(sources().join("tests/build.sh")).arg(&out));
    let text = run(Command::new(out.join("tests")).arg(out.join("kernels")));
    for group in ["numbers", "shim", "launch", "norm", "silu_mul", "rope", "penalty"] {
        assert!(text.lines().any(|line| line == format!("ok {group}")), "no group {group} in\n{text}");
    }
    let caught = text.lines().filter(|line| line.starts_with("  ") && !line.contains("NOT CAUGHT")).count();
    assert!(caught >= 60, "only {caught} mistakes are caught:\n{text}");
    println!("{text}");
}

/// Names of the parameters of each `extern "C"` kernel in a source.
fn entries(source: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for part in source.split("extern \"C\" __global__ __aicore__ void ").skip(1) {
        let (name, rest) = part.split_once('(').unwrap();
        let parameters = rest.split_once(')').unwrap().0;
        let last_word = |parameter: &str| parameter.split_whitespace().last().unwrap().to_owned();
        found.push((name.to_owned(), parameters.split(',').map(last_word).collect()));
    }
    found
}

/// The parameters a table of the README lists, one a row: `| 3 | `name` | ...`.
fn table(section: &str) -> Vec<String> {
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit());
    rows.map(|line| line.split('`').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn the_readme_lists_the_arguments_in_their_order() {
    let readme = std::fs::read_to_string(sources().join("README.md")).unwrap();
    let mut kernels = 0;
    for section in readme.split("\n## ").skip(1) {
        let Some(file) = section.strip_prefix('`').and_then(|s| s.split('`').next()) else { continue };
        let source = std::fs::read_to_string(sources().join(format!("{file}.cpp"))).unwrap();
        for (name, parameters) in entries(&source) {
            kernels += 1;
            assert!(
                section.lines().next().unwrap().contains(&format!("`{name}`")),
                "{file}: {name} is not in the title"
            );
            let listed = if name.starts_with("yn_add_rms_norm") || name.starts_with("yn_rms_norm") {
                // One table for both, and a line for each.
                let start = format!("`{}(", name.replace("_bf16", "_f16"));
                let call = section.split(&start).nth(1).unwrap_or_else(|| panic!("{name} is not called"));
                call.split(')').next().unwrap().split(", ").map(str::to_owned).collect()
            } else {
                table(section)
            };
            assert_eq!(listed, parameters, "{name}");
        }
    }
    assert_eq!(kernels, 9);
}
