//! bindings/java: its tests on each JDK that is there, the Maven build with a project that uses what it installs, and the server.

use super::{Workshop, ask, host, root, run, server, skip, soak_seconds};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    for (tool, question) in [("cc", "--version"), ("strip", "--version"), ("readelf", "--version")].iter().chain(tools)
    {
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

/// The ways to the library that the package's documentation has, besides the jar.
fn check_load_order(jdk: &Jdk, classes: &Path, jni: &Path) {
    let name = "theLibrarySaysWhatItIs";
    let java = |option: String| {
        let mut java = jdk.tool("java");
        java.arg("-ea").arg(option).arg("-cp").arg(classes).args(["ai.yinian.Suite", name]).env("LD_LIBRARY_PATH", "");
        java
    };
    assert_eq!(run(&mut java(format!("-Djava.library.path={}", jni.parent().unwrap().display()))), "ok\n");
    for (wrong, told) in
        [("-Dai.yinian.library=/no/such.so", "/no/such.so"), ("-Djava.library.path=/no", "ai.yinian.library")]
    {
        let out = java(wrong.to_owned()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains("UnsatisfiedLinkError") && said.contains(told),
            "{wrong}: {said}"
        );
    }
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
    check_load_order(&jdks[0], &classes, &jni);
    for (i, jdk) in jdks.iter().enumerate() {
        let mut java = shop.test(jdk.home.join("bin/java"));
        // A long soak is for one of them.
        java.env("YINIAN_SOAK_SECONDS", if i == 0 { soak_seconds() } else { 6 }.to_string());
        // A heap that does not grow: what grows is a leak.
        java.args(["-Xcheck:jni", "-ea", "-Xms256m", "-Xmx256m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC"])
            .arg(format!("-Dai.yinian.library={}", jni.display()));
        let out = run(java.arg("-cp").arg(&classes).arg("ai.yinian.Suite"));
        // -Xcheck:jni warns on standard output.
        assert_eq!(out, "ok\n", "JDK {}", jdk.release);
    }
}

/// Maven, with a local repository of ours and without the user's settings; what it builds goes to `dir`.
fn maven(jdk: &Jdk, dir: &Path, project: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["600", "mvn", "--batch-mode", "--quiet", "-f"]).arg(root().join(project));
    command.arg(format!("-Dmaven.repo.local={}", repository().display()));
    for (name, value) in [("yinian.build.dir", "java"), ("server.build.dir", "server")] {
        command.arg(format!("-D{name}={}", dir.join(value).display()));
    }
    command.env("JAVA_HOME", &jdk.home).env("MAVEN_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx512m");
    // A long soak is for the suite of `java`.
    command.env_remove("YINIAN_SOAK_SECONDS");
    command
}

/// In the build's own directory, so that plugins are fetched once.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("maven")
}

/// Runs Maven; why it cannot work when it does not get what it needs. A build or a test that fails is a panic.
fn build(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("timeout: {e}"))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    let offline = ["Could not transfer artifact", "Cannot access", "Unknown host"];
    match said.lines().find(|line| offline.iter().any(|sign| line.contains(sign))) {
        Some(line) if !out.status.success() => Err(format!("Maven does not get its plugins: {}", line.trim())),
        _ if !out.status.success() => panic!("{command:?}: {}\n{said}", out.status),
        _ => Ok(()),
    }
}

/// Builds, tests and installs bindings/java, once for all tests; why not when that is not possible here.
fn installed() -> Result<(), String> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let install = || {
        let Some(jdk) = Jdk::all().into_iter().next() else { return Err("there is no JDK".to_owned()) };
        ask("mvn", &["--version"]).ok_or("there is no Maven, mvn")?;
        let shop = Workshop::new();
        let mut command = maven(&jdk, shop.dir.path(), "bindings/java");
        build(command.arg(format!("-Dyinian.library.dir={}", shop.path("").display())).arg("install"))
    };
    DONE.get_or_init(install).clone()
}

/// A JDK, once bindings/java is installed; `None`, and said aloud, when it cannot be.
fn jdk_with_installed(what: &str) -> Option<Jdk> {
    let jdk = jdks(what, &[("python3", "--version")])?.into_iter().next()?;
    match installed() {
        Ok(()) => Some(jdk),
        Err(why) => {
            skip(what, &why);
            None
        }
    }
}

#[test]
fn java_by_maven() {
    let Some(jdk) = jdk_with_installed("a Maven project") else { return };
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("project");
    run(Command::new("cp").arg("-r").arg(root().join("tests/bindings/consumer-maven")).arg(&project));
    build(maven(&jdk, dir.path(), project.to_str().unwrap()).arg("package")).unwrap();
    let jars = [
        project.join("target/consumer.jar"),
        repository().join(format!("ai/yinian/yinian/{VERSION}/yinian-{VERSION}.jar")),
    ];
    let models = ["mock:words".to_owned(), root().join("examples/demo_model").display().to_string()];
    let mut java = jdk.tool("java");
    // The library comes out of the jar, and nothing of it stays behind.
    java.arg(format!("-Djava.io.tmpdir={}", dir.path().display())).env("LD_LIBRARY_PATH", "");
    let out = run(java.arg("-cp").arg(std::env::join_paths(jars).unwrap()).arg("consumer.Main").args(&models));
    assert_eq!(out, models.iter().map(|model| host::text_of(model)).collect::<String>());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("yinian-")), "{left:?}");
}

/// A process that does not outlive a test that fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets a server load what it needs and end, so that the next one starts faster; the file that makes it so.
fn archive(java: &Path, jar: &Path, dir: &Path) -> PathBuf {
    let archive = dir.join("server.jsa");
    let mut command = Command::new(java);
    command.arg(format!("-XX:ArchiveClassesAtExit={}", archive.display()));
    command.args(["-Xlog:disable", "-Xlog:all=off", "-jar"]).arg(jar);
    command.args(["-model", "mock:words", "-addr", "127.0.0.1:0"]).stderr(Stdio::piped());
    let mut first = Process(command.spawn().unwrap());
    let mut lines = BufReader::new(first.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let port = lines.find_map(|line| line.rsplit_once(':')?.1.parse::<u16>().ok()).expect("a line with a port");
    lines.find(|line| line.starts_with("serving ")).expect("a line when it is loaded");
    let body = "{\"prompt\": \"x\", \"stream\": true}";
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("[DONE]"), "{answer}");
    run(Command::new("kill").arg(first.0.id().to_string()));
    assert!(first.0.wait().unwrap().success());
    archive
}

#[test]
fn java_server() {
    const DIR: &str = "examples/server-java";
    let Some(jdk) = jdk_with_installed(DIR) else { return };
    let dir = tempfile::tempdir().unwrap();
    build(maven(&jdk, dir.path(), DIR).arg("package")).unwrap();
    let (java, jar) = (jdk.home.join("bin/java"), dir.path().join("server/server-java.jar"));
    let archive = archive(&java, &jar, dir.path());
    let start = format!(
        "{} -XX:SharedArchiveFile={} -XX:TieredStopAtLevel=1 -jar {} -model {{model}} -addr {{addr}} -config {{config}} -web {}",
        java.display(),
        archive.display(),
        jar.display(),
        root().join("examples/web/index.html").display()
    );
    match server::client() {
        Ok(client) => server::check(&start, &client),
        Err(why) => skip(DIR, &why),
    }
}

/// What Maven knows as a version is what Cargo does.
#[test]
fn java_versions() {
    for project in ["bindings/java", "tests/bindings/consumer-maven", "examples/server-java"] {
        let pom = std::fs::read_to_string(root().join(project).join("pom.xml")).unwrap();
        let (_, after) = pom.split_once("<artifactId>yinian</artifactId>").unwrap();
        let version = after.trim_start().strip_prefix("<version>").and_then(|rest| rest.split_once('<')).unwrap().0;
        assert_eq!(version, VERSION, "{project}");
    }
}
