//! Building the AscendC kernels as on a machine with CANN, with stand-ins for what only such a machine has: `ascendc.cmake`, which
//! here "compiles" by copying, and `npu-smi`. What is ours must hold: which chip is asked for, where binaries go, what is told.

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A toolkit whose compiler copies; binaries lie where the vendor's documentation says. Its CMake folder is one of those it has had.
fn toolkit(dir: &Path, place: &str) -> PathBuf {
    let home = dir.join("toolkit");
    std::fs::create_dir_all(home.join(place)).unwrap();
    let functions = r#"
function(ascendc_fatbin_library name source)
  if(NOT SOC_VERSION MATCHES "^Ascend")
    message(FATAL_ERROR "no chip ${SOC_VERSION}")
  endif()
  set(object ${CMAKE_BINARY_DIR}/built/${name}.o)
  add_custom_command(OUTPUT ${object} COMMAND ${CMAKE_COMMAND} -E copy ${source} ${object} DEPENDS ${source})
  add_custom_target(${name} ALL DEPENDS ${object})
  install(FILES ${object} DESTINATION fatbin/${name})
endfunction()
"#;
    std::fs::write(home.join(place).join("ascendc.cmake"), functions).unwrap();
    home
}

fn has_cmake() -> bool {
    let there = Command::new("cmake").arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        println!("skipped: there is no cmake");
    }
    there
}

fn cmake(home: &Path, arguments: &[&str]) -> (bool, String) {
    let out = Command::new("cmake").args(arguments).env("ASCEND_HOME_PATH", home).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

#[test]
fn kernels_are_installed_by_chip() {
    if !has_cmake() {
        return;
    }
    for place in ["tools/tikcpp/ascendc_kernel_cmake", "compiler/tikcpp/ascendc_kernel_cmake"] {
        let dir = tempfile::tempdir().unwrap();
        let home = toolkit(dir.path(), place);
        let (source, build, out) = (root().join("ascend"), dir.path().join("build"), dir.path().join("out"));
        let [source, build] = [source, build].map(|path| path.display().to_string());
        let prefix = format!("-DCMAKE_INSTALL_PREFIX={}", out.display());
        for step in [
            &["-S", &source, "-B", &build, "-DSOC_VERSION=Ascend910B3", &prefix][..],
            &["--build", &build],
            &["--install", &build],
        ] {
            let (done, text) = cmake(&home, step);
            assert!(done, "{place}: {step:?}\n{text}");
        }
        for kernel in ["add_rms_norm", "penalty_temperature", "rope_write_kv", "silu_mul"] {
            let built = std::fs::read(out.join(format!("Ascend910B3/{kernel}.o"))).unwrap();
            assert_eq!(built, std::fs::read(root().join(format!("ascend/{kernel}.cpp"))).unwrap());
        }
    }
}

#[test]
fn a_build_without_a_chip_or_a_toolkit_says_what_to_do() {
    if !has_cmake() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = toolkit(dir.path(), "tools/tikcpp/ascendc_kernel_cmake");
    let (source, build) = (root().join("ascend").display().to_string(), dir.path().join("build").display().to_string());
    let (done, text) = cmake(&home, &["-S", &source, "-B", &build]);
    assert!(!done && text.contains("-DSOC_VERSION="), "{text}");
    let empty = dir.path().join("empty");
    let (done, text) = cmake(&empty, &["-S", &source, "-B", &build, "-DSOC_VERSION=Ascend910B3"]);
    assert!(!done && text.contains("set_env.sh") && text.contains(&empty.display().to_string()), "{text}");
}

/// Runs the self-test with an `npu-smi` that knows the chip, on a machine that has none: only the kernels' part can go well.
fn self_test(dir: &Path, home: &Path) -> Value {
    let (bin, installed, report) = (dir.join("bin"), dir.join("installed"), dir.join("report.json"));
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&installed).unwrap();
    let smi = bin.join("npu-smi");
    std::fs::write(
        &smi,
        "#!/bin/sh\necho '| 0     910B3               | OK            | 90.1        36                |'\n",
    )
    .unwrap();
    std::fs::set_permissions(&smi, std::fs::Permissions::from_mode(0o755)).unwrap();
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libyinian.so");
    std::os::unix::fs::symlink(library, installed.join("libyinian.so")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let done = Command::new(root().join("examples/ascend_selftest/run.sh"))
        .args([Path::new("--short"), Path::new("--prefix"), &installed, Path::new("--out"), &report])
        .env("PATH", path)
        .env("ASCEND_HOME_PATH", home)
        .output()
        .unwrap();
    let text = std::fs::read(&report).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&done.stderr)));
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn the_self_test_tells_how_building_kernels_ended() {
    if !has_cmake() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = toolkit(dir.path(), "tools/tikcpp/ascendc_kernel_cmake");
    let report = self_test(dir.path(), &home);
    assert_eq!(report["kernels"], "built for Ascend910B3", "{report:#}");
    let dir = tempfile::tempdir().unwrap();
    let report = self_test(dir.path(), &dir.path().join("nothing"));
    let told = report["kernels"].as_str().unwrap();
    assert!(told.starts_with("not built for Ascend910B3: ") && told.contains("no ascendc.cmake below"), "{told}");
}
