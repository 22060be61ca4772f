//! Servers with OpenAI's API over the wrappers, driven by `openai_server.py` from the outside.

use super::{Workshop, ask, golang, root, run, skip};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The official client of OpenAI's API.
pub(crate) fn client() -> Result<PathBuf, String> {
    packages("openai_client")
}

/// Where the Python packages that tests/bindings/NAME.txt pins are, installed once into the build's own directory; else why not.
pub(super) fn packages(name: &str) -> Result<PathBuf, String> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    ask("python3", &["-m", "pip", "--version"]).ok_or("there is no python3 with pip")?;
    let versions = root().join("tests/bindings").join(name).with_extension("txt");
    let wanted = std::fs::read(&versions).unwrap();
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
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
        .arg(versions)
        .output()
        .map_err(|e| format!("timeout: {e}"))?;
    if !out.status.success() {
        return Err(format!("pip installs no {name}: {}", String::from_utf8_lossy(&out.stderr).trim()));
    }
    std::fs::write(complete, wanted).unwrap();
    Ok(to)
}

/// A script of tests/bindings, which starts servers by itself.
fn script(name: &str, packages: &[PathBuf]) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/bindings").join(name)).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("PYTHONPATH", std::env::join_paths(packages).unwrap());
    command
}

/// Runs the suite on a server; `command` starts it, with {model}, {addr} and {config} in it.
pub(crate) fn check(command: &str, client: impl AsRef<Path>) {
    let model = root().join("examples/demo_model");
    run(script("openai_server.py", &[client.as_ref().to_owned()]).args(["--command", command, "--model"]).arg(model));
}

const GO_DIR: &str = "examples/server-go";

/// What starts the Go server.
fn go_command(shop: &Workshop) -> String {
    let server = shop.path("server-go").display().to_string();
    run(&mut shop.go(GO_DIR, &["build", "-o", &server, "."]));
    format!("{server} -model {{model}} -addr {{addr}} -config {{config}}")
}

#[test]
fn go_server() {
    if let Some(why) = golang::missing() {
        return skip(GO_DIR, &why);
    }
    let shop = Workshop::new();
    run(&mut shop.go(GO_DIR, &["vet", "./..."]));
    match client() {
        Ok(client) => check(&go_command(&shop), client),
        Err(why) => skip(GO_DIR, &why),
    }
}

/// The one page that all servers have at /.
#[test]
fn web_page() {
    const PAGE: &str = "examples/web/index.html";
    let browser = |name| ask(name, &["--version"]).ok_or(format!("there is no {name}"));
    let found = browser("chromium").and(browser("chromedriver")).and(golang::missing().map_or(Ok(()), Err));
    match found.and_then(|()| Ok([client()?, packages("web_client")?])) {
        Ok(packages) => {
            let shop = Workshop::new();
            let command = format!("{} -web {}", go_command(&shop), root().join(PAGE).display());
            run(script("web_page.py", &packages).args(["--command", &command]));
        }
        Err(why) => skip(PAGE, &why),
    }
}
