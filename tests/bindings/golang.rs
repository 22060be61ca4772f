//! The Go wrapper: its own tests, in each of the ways in which the library gets into a program.

use super::{Workshop, ask, root, run, skip, soak_seconds};
use std::path::Path;
use std::process::Command;

/// The `go` line of bindings/go/go.mod.
const OLDEST: u32 = 23;

/// Why there is no Go for the wrapper.
pub(crate) fn missing() -> Option<String> {
    let said = ask("go", &["version"]).unwrap_or_default();
    let minor =
        said.split_once(" go1.").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    match minor.and_then(|minor| minor.parse::<u32>().ok()) {
        None => Some("there is no Go toolchain, go".into()),
        Some(minor) if minor < OLDEST => Some(format!("go is 1.{minor}, older than 1.{OLDEST}")),
        Some(_) => None,
    }
}

/// Where the wrapper is.
const DIR: &str = "bindings/go";

/// None, and told, where there is no Go for the wrapper.
fn workshop() -> Option<Workshop> {
    match missing() {
        Some(why) => {
            skip(DIR, &why);
            None
        }
        None => Some(Workshop::new()),
    }
}

/// Go without network and the user's settings; its temporary files go to `dir`.
pub(crate) fn alone(mut command: Command, dir: &Path) -> Command {
    for (name, value) in [("GOPROXY", "off"), ("GOFLAGS", "-mod=mod"), ("GOTOOLCHAIN", "local"), ("CGO_ENABLED", "1")] {
        command.env(name, value);
    }
    command.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-build"));
    command.env("GOTMPDIR", dir).env("GOPATH", dir.join("gopath")).env("GOENV", "off").env("GOWORK", "off");
    command
}

impl Workshop {
    /// The Go tool in a directory of ours, with the library of this build.
    pub(crate) fn go(&self, dir: &str, args: &[&str]) -> Command {
        let mut command = alone(self.test("go"), self.dir.path());
        command.args(args).current_dir(root().join(dir));
        command.env("CGO_LDFLAGS", self.link().join(" ")).env("PKG_CONFIG", "true");
        command
    }
}

#[test]
fn go() {
    let Some(shop) = workshop() else { return };
    let go = |args: &[&str]| shop.go(DIR, args);
    // The race detector exists on few platforms; one of them is enough to find races.
    let race = if cfg!(target_arch = "x86_64") { "-race=true" } else { "-race=false" };
    run(&mut go(&["vet", race, "./..."]));
    let out = run(&mut go(&["test", race, "-count=1", "-timeout=280s", "./..."]));
    assert!(out.starts_with("ok"), "{out}");
}

/// A thousand streams at a time, without the race detector, whose memory is its own.
#[test]
fn go_soak() {
    let Some(shop) = workshop() else { return };
    let mut soak = shop.go(DIR, &["test", "-count=1", "-run=^TestSoak$", "-timeout=0", "./..."]);
    let out = run(soak.env("YINIAN_SOAK_SECONDS", soak_seconds().to_string()));
    assert!(out.starts_with("ok"), "{out}");
}

/// Loaded at the first call, by the programs that do not link it.
#[test]
fn go_loads_the_library() {
    let Some(shop) = workshop() else { return };
    let program = shop.path("bin/yinian.test");
    let mut build = shop.go(DIR, &["test", "-tags=yinian_dlopen", "-c", "-o", program.to_str().unwrap()]);
    // Without a library to link.
    run(build.env("CGO_LDFLAGS", ""));
    let library = std::fs::canonicalize(shop.path("libyinian.so")).unwrap();
    // All directories of cargo's are forgotten; what remains is the search order.
    let test = |filter: &str, from: Option<&Path>, path: &Path| {
        let mut command = shop.test(&program);
        command.arg(format!("-test.run={filter}")).env("LD_LIBRARY_PATH", path);
        command.env("YINIAN_LIBRARY", from.unwrap_or(Path::new(""))).current_dir(root().join(DIR));
        command
    };
    let nowhere = shop.path("nowhere");
    run(&mut test(".", Some(&library), &nowhere));
    run(&mut test("SaysWhatItIs", None, &shop.path("")));
    let refused = |from: Option<&Path>, says: &[&str]| {
        let out = test("SaysWhatItIs", from, &nowhere).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(!out.status.success() && says.iter().all(|must| said.contains(must)), "{says:?}: {said}");
    };
    let beside = shop.path("bin/libyinian.so.0.1");
    refused(
        None,
        &["YN_E_NOT_FOUND", beside.to_str().unwrap(), "/lib/libyinian.so.0.1", "/usr/local/lib", "YINIAN_LIBRARY"],
    );
    // What is named counts alone, even when it is not fit.
    std::os::unix::fs::symlink(&library, &beside).unwrap();
    refused(Some(&nowhere), &["YN_E_NOT_FOUND", nowhere.to_str().unwrap()]);
    refused(Some(Path::new("libm.so.6")), &["libm.so.6: it has no function yn_version"]);
    run(&mut test("SaysWhatItIs", None, &nowhere));
    std::fs::create_dir(shop.path("lib")).unwrap();
    std::fs::rename(&beside, shop.path("lib/libyinian.so.0.1")).unwrap();
    run(&mut test("SaysWhatItIs", None, &nowhere));
}

/// A module is all that a proxy serves, so it has the headers too.
#[test]
fn the_modules_headers_are_the_projects() {
    for name in ["include/yinian.h", "bindings/flat_request.h"] {
        let (text, copy) = (std::fs::read_to_string(root().join(name)).unwrap(), Path::new(name).file_name().unwrap());
        let copy = root().join("bindings/go").join(copy);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&copy, &text).unwrap();
        }
        let found = std::fs::read_to_string(&copy).unwrap_or_default();
        assert!(found == text, "{} is not {name}; BLESS=1 cargo test --test bindings copies it", copy.display());
    }
}
