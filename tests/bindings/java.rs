//! bindings/java: its tests on each JDK that is there, the Maven build with a project that uses what it installs, and the server.

use super::{Workshop, ask, host, root, run, skip};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A JDK of version 17 or later, with what compiles and what JNI needs.
struct Jdk {
    home: PathBuf,
    release: u32,
}

impl Jdk {
    fn of(java: &Path) -> Option<Self> {
        let settings = ask(java.to_str()?, &["-XshowSettings:properties", "-version"])?;
        let release = property(&settings, "java.specification.version")?.parse().ok()?;
        let home = PathBuf::from(property(&settings, "java.home")?);
        let whole = home.join("bin/javac").exists() && home.join("include/jni.h").exists();
        (release >= 17 && whole).then_some(Self { home, release })
    }

    /// The one that is on the path, and the newest one where JDKs are installed if it is a newer one: of 21 or later it has
    /// virtual threads.
    fn all() -> Vec<Self> {
        let mut found: Vec<_> = Self::of(Path::new("java")).into_iter().collect();
        let others = std::fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
        let newest = others.filter_map(|dir| Self::of(&dir.path().join("bin/java"))).max_by_key(|jdk| jdk.release);
        found.extend(newest.filter(|jdk| found.first().is_none_or(|first| first.release < jdk.release)));
        found
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.home.join("bin").join(name));
        command.env("JAVA_HOME", &self.home);
        command
    }
}

/// A value of `java -XshowSettings:properties`.
fn property<'a>(settings: &'a str, name: &str) -> Option<&'a str> {
    settings.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('=')).map(str::trim)
}

/// What all tests here need; `None`, and said aloud, when something is missing.
fn jdks(what: &str, tools: &[(&str, &str)]) -> Option<Vec<Jdk>> {
    let found = Jdk::all();
    if found.is_empty() {
        skip(what, "there is no JDK of version 17 or later (java, javac, jni.h)");
        return None;
    }
    for (tool, question) in [("cc", "--version"), ("strip", "--version"), ("readelf", "--version")].iter().chain(tools) {
        if ask(tool, &[question]).is_none() {
            skip(what, &format!("there is no {tool}"));
            return None;
        }
    }
    Some(found)
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // What is in tck needs a framework, which Maven has.
        if path.is_dir() && !path.ends_with("tck") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "java") {
            found.push(path);
        }
    }
}

/// The glue and the library that it finds beside itself.
fn glue(shop: &Workshop, jdk: &Jdk) -> PathBuf {
    run(Command::new("bash")
        .arg(root().join("bindings/java/src/main/native/build.sh"))
        .args([shop.path(""), shop.path("native")])
        .env("JAVA_HOME", &jdk.home));
    shop.path("native").join(format!("linux-{}", std::env::consts::ARCH)).join("libyinian_jni.so")
}

#[test]
fn java() {
    let Some(jdks) = jdks("bindings/java", &[]) else { return };
    let shop = Workshop::new();
    let (jni, classes) = (glue(&shop, &jdks[0]), shop.path("classes"));
    let mut files = Vec::new();
    sources(&root().join("bindings/java/src"), &mut files);
    run(jdks[0]
        .tool("javac")
        .args(["-Xlint:all,-try", "-Werror", "--release", "17", "-encoding", "UTF-8", "-d"])
        .arg(&classes)
        .args(&files));
    for jdk in &jdks {
        let mut java = shop.test(jdk.home.join("bin/java"));
        java.args(["-Xcheck:jni", "-ea", "-Xmx512m"]).arg(format!("-Dai.yinian.library={}", jni.display()));
        let out = run(java.arg("-cp").arg(&classes).arg("ai.yinian.Suite"));
        // -Xcheck:jni warns on standard output.
        assert_eq!(out, "ok\n", "JDK {}", jdk.release);
    }
}
