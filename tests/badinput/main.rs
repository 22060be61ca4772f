//! What outside files and requests can hold that they should not: each is a typed error that says where, soon, without
//! taking gigabytes; and the engine serves on.

mod chats;
mod files;
mod templates;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::{Error, ErrorKind};
use yinian::engine::{Engine, EventQueue};

/// Longest time a bad model may take to be refused.
const LIMIT: Duration = Duration::from_secs(5);
/// Most memory it may have taken on the way, above what was there before.
const MOST_BYTES: u64 = 400 << 20;

pub(crate) fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo_model")
}

/// The demo model with other contents in one file; `None` takes the file away.
pub(crate) fn with(file: &str, contents: Option<Vec<u8>>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    {
        // A single file would be taken before an index.
        let hidden = name == "model.safetensors" && file == "model.safetensors.index.json";
        if name != file && !hidden {
            std::os::unix::fs::symlink(demo_model().join(name), dir.path().join(name)).unwrap();
        }
    }
    if let Some(contents) = contents {
        std::fs::write(dir.path().join(file), contents).unwrap();
    }
    dir
}

fn config_of(dir: &Path) -> EngineConfig {
    let json = serde_json::json!({"model": dir, "threads": 1, "max_num_seqs": 4, "kv_cache_bytes": 1 << 20});
    EngineConfig::from_json(json.to_string().as_bytes()).unwrap()
}

pub(crate) fn open(dir: &Path) -> Result<(), Error> {
    let clock = Arc::new(MonotonicClock::starting_at(0));
    Engine::start(config_of(dir), EventQueue::new(None), clock).map(|engine| engine.close())
}

/// Most memory this process ever had resident.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// One row of a table: what is wrong, the file as it is then, the kinds of error it may be, and what the message names.
pub(crate) struct Bad {
    pub(crate) what: String,
    pub(crate) file: &'static str,
    pub(crate) contents: Option<Vec<u8>>,
    pub(crate) kinds: &'static [ErrorKind],
    pub(crate) says: &'static str,
}

/// The complaint about a row, if there is any.
fn judge(bad: Bad) -> Option<String> {
    let (dir, start, before) = (with(bad.file, bad.contents), Instant::now(), peak_bytes());
    let found = std::panic::catch_unwind(|| open(dir.path()));
    let (took, grew) = (start.elapsed(), peak_bytes().saturating_sub(before));
    let what = format!("{} ({})", bad.what, bad.file);
    match found {
        Err(_) => Some(format!("{what}: panicked")),
        Ok(Ok(())) => Some(format!("{what}: was taken")),
        Ok(Err(e)) if !bad.kinds.contains(&e.kind) => Some(format!("{what}: {:?}: {}", e.kind, e.message)),
        Ok(Err(e)) if !e.message.contains(bad.says) => Some(format!("{what}: no {:?} in: {}", bad.says, e.message)),
        Ok(Err(e)) if e.message.len() > 2000 => Some(format!("{what}: a message of {} bytes", e.message.len())),
        Ok(Err(_)) if took > LIMIT => Some(format!("{what}: took {took:?}")),
        Ok(Err(_)) if grew > MOST_BYTES => Some(format!("{what}: took {grew} bytes")),
        Ok(Err(_)) => None,
    }
}

fn check(table: Vec<Bad>, least: usize) {
    let rows = table.len();
    let wrong: Vec<String> = table.into_iter().filter_map(judge).collect();
    println!("{rows} rows");
    assert!(rows >= least, "{rows} rows");
    assert!(wrong.is_empty(), "{} of {rows}:\n{}", wrong.len(), wrong.join("\n"));
    open(&demo_model()).unwrap();
}

#[test]
fn the_demo_model_itself_opens() {
    open(with("none", None).path()).unwrap();
}

#[test]
fn configs() {
    check(files::configs(), 60);
}

#[test]
fn weights() {
    check(files::weights(), 40);
}

#[test]
fn tokenizers_and_templates() {
    check(files::texts(), 14);
}
