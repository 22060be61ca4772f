//! What bindings/install.sh installs, moved to another place, and projects outside of this repository that use it.

use crate::{ask, golang, header, host, root, run, skip};
use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const WHOLE: &[&str] = &["libyinian.so", "libyinian.a"];

/// An installed tree that was moved, and room beside it for projects.
struct Installed {
    dir: tempfile::TempDir,
}

impl Installed {
    /// Without the archive, which takes long to strip. `None`, and said aloud, when a tool of the script or one of `tools` is missing.
    fn new(what: &str, tools: &[(&str, &str)]) -> Option<Self> {
        Self::of(&["libyinian.so"], what, tools)
    }

    fn of(libraries: &[&str], what: &str, tools: &[(&str, &str)]) -> Option<Self> {
        let needed = [("strip", "--version"), ("readelf", "--version"), ("python3", "--version")];
        for (tool, question) in needed.iter().chain(tools) {
            if ask(tool, &[question]).is_none() {
                skip(&format!("bindings/install.sh, {what}"), &format!("there is no {tool}"));
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let installed = Self { dir };
        std::fs::create_dir_all(installed.path("target/release")).unwrap();
        let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        for name in libraries {
            symlink(built.join(name), installed.path("target/release").join(name)).unwrap();
        }
        installed.run_script("lib");
        std::fs::rename(installed.path("staged/usr"), installed.path("moved")).unwrap();
        Some(installed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("moved").join(name)).unwrap()
    }

    /// Into staged/usr, for a user whose files are private.
    fn script(&self, libdir: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", "umask 077; exec \"$@\"", "bash"]).arg(root().join("bindings/install.sh"));
        command
            .arg(self.path("target"))
            .env("PREFIX", "/usr")
            .env("LIBDIR", libdir)
            .env("DESTDIR", self.path("staged"));
        command
    }

    fn run_script(&self, libdir: &str) -> String {
        run(&mut self.script(libdir))
    }

    fn project(&self, name: &str, files: &[&str]) -> PathBuf {
        let project = self.path(name);
        std::fs::create_dir(&project).unwrap();
        for file in files {
            let source = root().join(file);
            std::fs::copy(&source, project.join(source.file_name().unwrap())).unwrap();
        }
        project
    }

    /// A tool that finds the tree by pkg-config.
    fn with_pkg_config(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.env("PKG_CONFIG_PATH", self.path("moved/lib/pkgconfig"));
        command
    }

    /// A built program; unless it knows itself, it is told where the library is.
    fn program(&self, path: PathBuf, told: bool) -> Command {
        let mut command = Command::new(path);
        // cargo's points at target/<profile>; an empty one counts as none.
        command.env("LD_LIBRARY_PATH", if told { self.path("moved/lib") } else { PathBuf::new() });
        command
    }

    fn check_answers(&self, program: PathBuf, told: bool) {
        let models = ["mock:words".to_owned(), demo_model()];
        let expected: String = models.iter().map(|model| host::text_of(model)).collect();
        assert_eq!(run(self.program(program, told).args(&models)), expected);
    }
}

fn demo_model() -> String {
    root().join("examples/demo_model").display().to_string()
}

/// All of a tree: paths with modes, and contents or what links point to.
fn listing(top: &Path) -> BTreeSet<(PathBuf, u32, Vec<u8>)> {
    let (mut found, mut todo) = (BTreeSet::new(), vec![top.to_owned()]);
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            std::fs::read(&path).unwrap()
        };
        found.insert((path.strip_prefix(top).unwrap().to_owned(), meta.permissions().mode() & 0o7777, content));
    }
    found
}

#[test]
fn the_tree() {
    let Some(installed) = Installed::of(WHOLE, "the tree", &[]) else { return };
    let tree = listing(&installed.path("moved"));
    let shared = format!("lib/libyinian.so.{VERSION}");
    let soname = shared.rsplit_once('.').unwrap().0;
    let files = [
        ("include/yinian.h", 0o644),
        ("include/yinian.hpp", 0o644),
        ("lib/libyinian.so", 0o777),
        (soname, 0o777),
        (shared.as_str(), 0o755),
        ("lib/libyinian.a", 0o644),
        ("lib/pkgconfig/yinian.pc", 0o644),
        ("lib/pkgconfig/yinian-static.pc", 0o644),
        ("lib/cmake/yinian/yinian-config.cmake", 0o644),
        ("lib/cmake/yinian/yinian-config-version.cmake", 0o644),
        ("share/licenses/yinian/LICENSE", 0o644),
        ("share/licenses/yinian/THIRD-PARTY.txt", 0o644),
    ];
    for (file, mode) in files {
        let found = tree.iter().find(|(path, ..)| path == Path::new(file)).map(|(_, mode, _)| *mode);
        assert_eq!(found, Some(mode), "{file}");
    }
    let headers =
        |dir: PathBuf| -> BTreeSet<_> { listing(&dir).into_iter().map(|(path, _, text)| (path, text)).collect() };
    assert!(
        headers(installed.path("moved/include/yinian")) == headers(root().join("bindings/cpp/yinian")),
        "headers of yinian.hpp"
    );
    let folder = |path: &Path| installed.path("moved").join(path).is_dir();
    assert!(tree.iter().all(|(path, mode, _)| !folder(path) || *mode == 0o755), "folders that not all may enter");
    let link = |name: &str| std::fs::read_link(installed.path("moved").join(name)).unwrap();
    assert_eq!(Path::new("lib").join(link("lib/libyinian.so")), Path::new(soname));
    assert_eq!(Path::new("lib").join(link(soname)), Path::new(&shared));
    for name in ["lib/pkgconfig/yinian.pc", "lib/pkgconfig/yinian-static.pc", "lib/cmake/yinian/yinian-config.cmake"] {
        let text = installed.text(name);
        assert!(!text.contains("/usr") && !text.contains(&installed.path("").display().to_string()), "{name}: {text}");
        assert!(!text.contains('@'), "{name}: {text}");
    }
    let said = installed.run_script("lib");
    assert!(said.contains(&format!("installed libyinian {VERSION}")), "{said}");
    installed.run_script("/usr/lib");
    assert!(listing(&installed.path("staged/usr")) == tree, "a second run leaves another tree");
}

#[test]
fn the_installed_library() {
    let Some(installed) = Installed::new("the library", &[("nm", "--version"), ("ldd", "--version")]) else { return };
    let library = installed.path("moved/lib/libyinian.so");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    assert_eq!(exported, header::declared());
    let sections = run(Command::new("readelf").args(["-S", "-W"]).arg(&library));
    assert!(!sections.contains(".symtab") && !sections.contains(".debug_"), "not stripped: {sections}");
    let needed = run(Command::new("ldd").arg(&library));
    for name in needed.lines().filter_map(|line| line.split_whitespace().next()) {
        let name = name.rsplit('/').next().unwrap();
        let plain = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux", "linux-vdso", "linux-gate"];
        assert!(plain.iter().any(|start| name.starts_with(start)), "the library needs {name}:\n{needed}");
    }
}

#[test]
fn all_crates_have_their_licences() {
    let Some(installed) = Installed::new("the licences", &[]) else { return };
    let text = installed.text("share/licenses/yinian/THIRD-PARTY.txt");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = run(Command::new(cargo)
        .args(["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"])
        .current_dir(root()));
    let mut crates = 0;
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next().unwrap(), words.next().unwrap().trim_start_matches('v'));
        if name == env!("CARGO_PKG_NAME") {
            continue;
        }
        let (_, entry) = text.split_once(&format!("\n{name} {version}\n")).unwrap_or_else(|| panic!("no {line}"));
        let lines: Vec<_> = entry.lines().take(3).collect();
        let filled = |at: usize, key: &str| lines[at].strip_prefix(key).is_some_and(|rest| rest.len() > 2);
        assert!(filled(0, "  licence: ") && filled(1, "  source: ") && filled(2, "  texts: "), "{name}: {lines:?}");
        assert!(lines[2].contains('('), "{name} {version} comes without a text: {lines:?}");
        crates += 1;
    }
    assert!(crates > 30, "{tree}");
    for must in ["Permission is hereby granted", "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"] {
        assert!(text.contains(must), "no {must:?}");
    }
}

#[test]
fn c_by_pkg_config() {
    let tools = [("cc", "--version"), ("pkg-config", "--version")];
    let Some(installed) = Installed::new("C by pkg-config", &tools) else { return };
    let project = installed.project("c", &["examples/c/stream.c"]);
    assert_eq!(run(installed.with_pkg_config("pkg-config").args(["--modversion", "yinian"])).trim(), VERSION);
    run(installed.with_pkg_config("pkg-config").args(["--exists", "yinian >= 0.1 yinian < 0.2"]));
    let flags = run(installed.with_pkg_config("pkg-config").args(["--cflags", "--libs", "yinian"]));
    run(Command::new("cc")
        .args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-o", "stream", "stream.c"])
        .args(flags.split_whitespace())
        .current_dir(&project));
    let mut stream = installed.program(project.join("stream"), true);
    let text = run(stream.arg(demo_model()).arg("Tell me a story about a fox."));
    assert!(text.len() > 100 && text.to_lowercase().contains("once"), "{text}");
}

/// Where a distribution has its libraries.
#[test]
fn another_libdir() {
    let tools = [("cc", "--version"), ("pkg-config", "--version")];
    let Some(installed) = Installed::new("LIBDIR", &tools) else { return };
    for wrong in ["../lib", "/opt/lib", "lib/./x"] {
        assert!(!installed.script(wrong).output().unwrap().status.success(), "LIBDIR={wrong}");
    }
    for libdir in ["lib64", "/usr/lib/some-linux"] {
        installed.run_script(libdir);
        let moved = installed.path(&format!("moved-{}", libdir.replace('/', "-")));
        std::fs::rename(installed.path("staged/usr"), &moved).unwrap();
        let lib = moved.join(libdir.trim_start_matches("/usr/"));
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", lib.join("pkgconfig")).args(["--cflags", "--libs", "yinian"]);
        let flags = run(&mut command);
        let program = moved.join("stream");
        run(Command::new("cc")
            .arg("-o")
            .arg(&program)
            .arg(root().join("examples/c/stream.c"))
            .args(flags.split_whitespace()));
        let config = std::fs::read_to_string(lib.join("cmake/yinian/yinian-config.cmake")).unwrap();
        let up = config.split_once("_yinian_prefix}/").unwrap().1.split_once('"').unwrap().0;
        let prefix = std::fs::canonicalize(lib.join("cmake/yinian").join(up)).unwrap();
        assert_eq!(prefix, std::fs::canonicalize(&moved).unwrap(), "{libdir}");
    }
}

#[test]
fn cpp_by_cmake() {
    let tools = [("c++", "--version"), ("cmake", "--version"), ("make", "--version")];
    let Some(installed) = Installed::new("C++ by CMake", &tools) else { return };
    let files = ["CMakeLists.txt", "main.cpp"].map(|file| format!("tests/bindings/consumer/{file}"));
    let project = installed.project("cpp", &files.each_ref().map(String::as_str));
    let configure = |build: &str, wanted: &str| {
        let mut command = Command::new("cmake");
        command.args(["-G", "Unix Makefiles", "-S"]).arg(&project).arg("-B").arg(project.join(build));
        command.arg(format!("-DCMAKE_PREFIX_PATH={}", installed.path("moved").display()));
        command.arg(format!("-DYINIAN_WANTED={wanted}"));
        command
    };
    for wanted in ["0.2", "0.1.99", "1", "0.0"] {
        let out = configure("refused", wanted).output().unwrap();
        assert!(!out.status.success(), "{VERSION} was taken for {wanted}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("yinian"), "{out:?}");
    }
    run(&mut configure("build", "0.1"));
    run(Command::new("cmake").arg("--build").arg(project.join("build")));
    installed.check_answers(project.join("build/consumer"), false);
}

/// As `go get` does it: a module from a proxy, in a program outside of this repository.
#[test]
fn go_from_a_proxy() {
    let tools = [("cc", "--version"), ("pkg-config", "--version")];
    if let Some(why) = golang::missing() {
        return skip("bindings/install.sh, Go from a proxy", &why);
    }
    let Some(installed) = Installed::of(WHOLE, "Go from a proxy", &tools) else { return };
    run(Command::new("python3")
        .arg("-c")
        .arg(PROXY)
        .arg(root().join("bindings/go"))
        .arg(installed.path("proxy"))
        .arg(VERSION));
    let project = installed.project("go", &["tests/bindings/consumer/main.go"]);
    let go = |args: &[&str]| {
        let mut go = golang::alone(installed.with_pkg_config("go"), installed.dir.path());
        go.env("GOPROXY", format!("file://{}", installed.path("proxy").display())).env("GONOSUMDB", "*");
        // What is downloaded can be removed again.
        go.env("GOFLAGS", "-mod=mod -modcacherw").args(args).current_dir(&project);
        go
    };
    run(&mut go(&["mod", "init", "consumer"]));
    run(&mut go(&["get", &format!("yinian.ai/yinian@v{VERSION}")]));
    for (tags, told) in [("", true), ("yinian_static", false), ("yinian_dlopen", true)] {
        let program = format!("consumer{tags}");
        let mut build = go(&["build", "-tags", tags, "-o", &program]);
        if tags == "yinian_dlopen" {
            build.env("PKG_CONFIG", "false");
        }
        run(&mut build);
        installed.check_answers(project.join(program), told);
    }
}

/// A proxy's files of bindings/go: arguments are the module, where to put them, and the version.
const PROXY: &str = r#"
import pathlib, sys, zipfile
module, proxy, version = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), "v" + sys.argv[3]
at = proxy / "yinian.ai/yinian/@v"
at.mkdir(parents=True)
(at / "list").write_text(version + "\n")
(at / f"{version}.info").write_text('{"Version": "%s"}' % version)
(at / f"{version}.mod").write_bytes((module / "go.mod").read_bytes())
with zipfile.ZipFile(at / f"{version}.zip", "w") as z:
    for file in module.iterdir():
        z.write(file, f"yinian.ai/yinian@{version}/{file.name}")
"#;
