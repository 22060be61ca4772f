//! What bindings/install.sh installs, moved to another place, and projects outside of this repository that use it.

use crate::{ask, go_alone, header, host, root, run, skip};
use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An installed tree that was moved, and room beside it for projects.
struct Installed {
    dir: tempfile::TempDir,
}

impl Installed {
    /// `None`, and said aloud, when a tool of the script or one of `tools` is missing.
    fn new(what: &str, tools: &[(&str, &str)]) -> Option<Self> {
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
        let library = std::env::current_exe().unwrap().parent().unwrap().join("libyinian.so");
        symlink(library, installed.path("target/release/libyinian.so")).unwrap();
        installed.run_script();
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
    fn run_script(&self) -> String {
        let mut command = Command::new("bash");
        command.args(["-c", "umask 077; exec \"$@\"", "bash"]).arg(root().join("bindings/install.sh"));
        command.arg(self.path("target")).env("PREFIX", "/usr").env("DESTDIR", self.path("staged"));
        run(&mut command)
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
    let Some(installed) = Installed::new("the tree", &[]) else { return };
    let tree = listing(&installed.path("moved"));
    let shared = format!("lib/libyinian.so.{VERSION}");
    let soname = shared.rsplit_once('.').unwrap().0;
    let files = [
        ("include/yinian.h", 0o644),
        ("include/yinian.hpp", 0o644),
        ("lib/libyinian.so", 0o777),
        (soname, 0o777),
        (shared.as_str(), 0o755),
        ("lib/pkgconfig/yinian.pc", 0o644),
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
    for name in ["lib/pkgconfig/yinian.pc", "lib/cmake/yinian/yinian-config.cmake"] {
        let text = installed.text(name);
        assert!(!text.contains("/usr") && !text.contains(&installed.path("").display().to_string()), "{name}: {text}");
        assert!(!text.contains('@'), "{name}: {text}");
    }
    let said = installed.run_script();
    assert!(said.contains(&format!("installed libyinian {VERSION}")), "{said}");
    installed.run_script();
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

#[test]
fn go_by_pkg_config() {
    let tools = [("go", "version"), ("cc", "--version"), ("pkg-config", "--version")];
    let Some(installed) = Installed::new("Go by pkg-config", &tools) else { return };
    let project = installed.project("go", &["tests/bindings/consumer/main.go"]);
    let module = format!(
        "module consumer\n\ngo 1.19\n\nrequire yinian v0.0.0\n\nreplace yinian => {}\n",
        root().join("bindings/go").display()
    );
    std::fs::write(project.join("go.mod"), module).unwrap();
    let mut go = go_alone(installed.with_pkg_config("go"), installed.dir.path());
    run(go.args(["build", "-o", "consumer"]).current_dir(&project));
    installed.check_answers(project.join("consumer"), true);
}
