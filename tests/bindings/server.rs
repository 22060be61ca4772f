//! Servers with OpenAI's API over the wrappers, driven by `openai_server.py` from the outside.

use super::{Workshop, ask, golang, root, run, skip};
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSIONS: &str = "tests/bindings/openai_client.txt";

/// Where the official client is, installed once into the build's own directory; else why it is not.
fn client() -> Result<PathBuf, String> {
    ask("python3", &["-m", "pip", "--version"]).ok_or("there is no python3 with pip")?;
    let wanted = std::fs::read(root().join(VERSIONS)).unwrap();
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let complete = to.join("complete");
    if std::fs::read(&complete).is_ok_and(|installed| installed == wanted) {
        return Ok(to);
    }
    let _ = std::fs::remove_dir_all(&to);
    let out = Command::new("timeout")
        .args(["300", "python3", "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .arg("--target")
        .arg(&to)
        .arg("-r")
        .arg(root().join(VERSIONS))
        .output()
        .map_err(|e| format!("timeout: {e}"))?;
    if !out.status.success() {
        return Err(format!("pip installs no OpenAI client: {}", String::from_utf8_lossy(&out.stderr).trim()));
    }
    std::fs::write(complete, wanted).unwrap();
    Ok(to)
}

/// Runs the suite on a server; `command` starts it, with {model}, {addr} and {config} in it.
fn check(command: &str, client: &Path) {
    run(Command::new("python3")
        .arg(root().join("tests/bindings/openai_server.py"))
        .args(["--command", command, "--model"])
        .arg(root().join("examples/demo_model"))
        .env("PYTHONPATH", client)
        .env("PYTHONDONTWRITEBYTECODE", "1"));
}

#[test]
fn go_server() {
    const DIR: &str = "examples/server-go";
    if let Some(why) = golang::missing() {
        return skip(DIR, &why);
    }
    let shop = Workshop::new();
    let server = shop.path("server-go").display().to_string();
    run(&mut shop.go(DIR, &["vet", "./..."]));
    run(&mut shop.go(DIR, &["build", "-o", &server, "."]));
    match client() {
        Ok(client) => check(&format!("{server} -model {{model}} -addr {{addr}} -config {{config}}"), &client),
        Err(why) => skip(DIR, &why),
    }
}
