//! Algorithms of matrix products that were found by timing, kept in a file so that the next start need not look for them: an
//! object that names machines, and of each its products with the algorithm and a checksum in hexadecimal.

use super::driver::check;
use crate::base::{Error, Result};
use crate::hal::Tuned;
use cudarc::driver::sys;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time that one start may spend on timing products.
const MOST_TIME: Duration = Duration::from_secs(1);
/// What says that a file is one of ours, and of which layout.
const MARK: &str = "yinian_tuning";
const LAYOUT: u64 = 1;
/// A file that is larger is not one of ours.
const MOST_BYTES: u64 = 16 << 20;

/// An algorithm in the library's own form: opaque, and valid for one version of it.
pub(super) type Algorithm = [u64; 8];

/// What is known of one machine's products, by their names.
#[derive(Debug)]
pub(super) struct Tuning {
    path: PathBuf,
    /// GPU, driver and library, as the file names them.
    machine: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<String, Algorithm>,
    /// What was found since the file was read.
    found: BTreeMap<String, Algorithm>,
    tuned: Tuned,
    spent: Duration,
    closed: bool,
}

impl Tuning {
    /// Reads `path`, where there is such a file. One that cannot be read, or is not ours, is told of in the log and left alone.
    pub(super) fn open(path: &Path, machine: String) -> Self {
        let mut state = State::default();
        match read(path).map(|file| machine_of(&file, &machine)) {
            Ok(known) => state.known = known,
            Err(why) => {
                log::warn!(target: "yinian::cuda", "tuning_cache {} is not used: {why}", path.display());
                state.closed = true;
            }
        }
        Self { path: path.to_owned(), machine, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self, name: &str) -> Option<Algorithm> {
        self.lock().known.get(name).copied()
    }

    /// A product runs with what the file says.
    pub(super) fn used(&self) {
        self.lock().tuned.known += 1;
    }

    pub(super) fn may_search(&self) -> bool {
        let state = self.lock();
        !state.closed && state.spent < MOST_TIME
    }

    /// Keeps what was found for `name` since `from`.
    pub(super) fn found(&self, name: String, algorithm: Algorithm, from: Instant) {
        let mut state = self.lock();
        state.tuned.searched += 1;
        state.spent += from.elapsed();
        state.found.insert(name, algorithm);
    }

    pub(super) fn tuned(&self) -> Tuned {
        self.lock().tuned
    }

    /// Ends the search and writes what it found into the file, beside what others have written meanwhile.
    pub(super) fn close(&self) {
        let found = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.closed, true) {
                return;
            }
            std::mem::take(&mut state.found)
        };
        if found.is_empty() {
            return;
        }
        match self.write(&found) {
            Ok(()) => {
                log::info!(target: "yinian::cuda", "{} products were timed for {}", found.len(), self.path.display());
            }
            Err(why) => log::warn!(target: "yinian::cuda", "tuning_cache {} is not kept: {why}", self.path.display()),
        }
    }

    fn write(&self, found: &BTreeMap<String, Algorithm>) -> Result<()> {
        let _turn = turn(&self.path);
        let mut file = read(&self.path)?;
        let machine = &mut file["machines"][&self.machine];
        if !machine.is_object() {
            *machine = json!({});
        }
        for (name, algorithm) in found {
            machine[name] = to_text(algorithm, sum(&self.machine, name, algorithm)).into();
        }
        // Whole or not at all, whoever else reads or writes it.
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}-{:p}.new", std::process::id(), self));
        let fresh = self.path.with_file_name(name);
        let text = format!("{file:#}\n");
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &self.path));
        written.map_err(|e| {
            let _ = fs::remove_file(&fresh);
            Error::io(format!("{}: {e}", fresh.display()))
        })
    }
}

/// The only one of all processes, while it lives, who replaces the file: the folder is locked, as the file itself is another one
/// afterwards. Where that is not to be had in time the file is written all the same: at worst what another one found is lost.
fn turn(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).ok()?;
    let from = Instant::now();
    while from.elapsed() < MOST_TIME {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// The file's content; that of an empty one where there is none.
fn read(path: &Path) -> Result<Value> {
    let failed = |e: &std::io::Error| Error::io(e.to_string());
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(json!({MARK: LAYOUT, "machines": {}})),
        Err(e) => return Err(failed(&e)),
        Ok(meta) if !meta.is_file() => return Err(Error::io("it is not a file")),
        Ok(meta) if meta.len() > MOST_BYTES => {
            return Err(Error::io(format!("it has {} bytes, which is too much for one of ours", meta.len())));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|e| failed(&e))?;
    let file: Value = serde_json::from_slice(&bytes).map_err(|e| Error::io(format!("it is not JSON: {e}")))?;
    if file[MARK] != LAYOUT || !file["machines"].is_object() {
        return Err(Error::io(format!("it does not say \"{MARK}\": {LAYOUT}, so it is not one of ours")));
    }
    Ok(file)
}

/// What `file` knows of `machine`. Entries that do not parse are as if they were not there.
fn machine_of(file: &Value, machine: &str) -> BTreeMap<String, Algorithm> {
    let entries = file["machines"][machine].as_object();
    let parsed = |(name, text): (&String, &Value)| {
        let (algorithm, found) = from_text(text.as_str()?)?;
        (found == sum(machine, name, &algorithm)).then(|| (name.clone(), algorithm))
    };
    entries.into_iter().flatten().filter_map(parsed).collect()
}

/// FNV-1a of an entry: the library looks into an algorithm before it refuses one, so broken ones must not reach it.
fn sum(machine: &str, name: &str, algorithm: &Algorithm) -> u64 {
    let words = algorithm.iter().flat_map(|word| word.to_le_bytes());
    let bytes = machine.bytes().chain([0]).chain(name.bytes()).chain([0]).chain(words);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn to_text(algorithm: &Algorithm, sum: u64) -> String {
    algorithm.iter().chain([&sum]).map(|word| format!("{word:016x}")).collect()
}

/// The algorithm and its sum.
fn from_text(text: &str) -> Option<(Algorithm, u64)> {
    const WORDS: usize = 9;
    if text.len() != 16 * WORDS || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = [0; WORDS];
    for (i, word) in words.iter_mut().enumerate() {
        *word = u64::from_str_radix(&text[16 * i..16 * (i + 1)], 16).ok()?;
    }
    let [algorithm @ .., sum] = words;
    Some((algorithm, sum))
}

/// Events around work on one stream of the calling thread's context.
#[derive(Debug)]
pub(super) struct Stopwatch {
    events: [sys::CUevent; 2],
}

impl Stopwatch {
    pub(super) fn new() -> Result<Self> {
        let mut watch = Self { events: [null_mut(); 2] };
        for event in &mut watch.events {
            // SAFETY: `event` is writable.
            check(unsafe { sys::cuEventCreate(event, 0) }, "cuEventCreate")?;
        }
        Ok(watch)
    }

    /// Milliseconds that `work` takes on `stream`.
    pub(super) fn time(&self, stream: sys::CUstream, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let [start, end] = self.events;
        // SAFETY: live events and a live stream of one context.
        check(unsafe { sys::cuEventRecord(start, stream) }, "cuEventRecord")?;
        work()?;
        let mut ms = 0.0;
        // SAFETY: as above; `ms` is writable.
        unsafe {
            check(sys::cuEventRecord(end, stream), "cuEventRecord")?;
            check(sys::cuEventSynchronize(end), "timing a product")?;
            check(sys::cuEventElapsedTime_v2(&raw mut ms, start, end), "cuEventElapsedTime")?;
        }
        Ok(ms)
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        for event in self.events.into_iter().filter(|e| !e.is_null()) {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(path: &Path, machine: &str) -> Tuning {
        Tuning::open(path, machine.to_owned())
    }

    fn found(tuning: &Tuning, name: &str, algorithm: Algorithm) {
        tuning.found(name.to_owned(), algorithm, Instant::now());
    }

    #[test]
    fn what_was_found_is_known_to_the_next_start_on_such_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuning.json");
        let algorithm = [1, u64::MAX, 3, 4, 5, 6, 7, 1 << 63];
        let (first, second) = (tuning(&path, "a"), tuning(&path, "b"));
        assert!(first.may_search() && first.known("m1").is_none());
        found(&first, "m1", algorithm);
        found(&second, "m1", [2; 8]);
        first.close();
        second.close();
        assert!(!first.may_search());
        let again = tuning(&path, "a");
        assert_eq!((again.known("m1"), again.known("m2")), (Some(algorithm), None));
        assert_eq!((tuning(&path, "b").known("m1"), tuning(&path, "c").known("m1")), (Some([2; 8]), None));
        assert_eq!(first.tuned(), Tuned { searched: 1, known: 0 });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a file was left behind");
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        const WRITERS: u64 = 8;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuning.json");
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..10 {
                        let tuning = tuning(path, "a");
                        found(&tuning, &format!("m{writer}-{round}"), [writer; 8]);
                        tuning.close();
                    }
                });
            }
        });
        let all = tuning(&path, "a");
        for name in (0..WRITERS).flat_map(|w| (0..10).map(move |r| format!("m{w}-{r}"))) {
            assert!(all.known(&name).is_some(), "{name} was lost");
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (i, text) in ["", "{", "[]", "7", r#"{"machines": {}}"#, r#"{"yinian_tuning": 2, "machines": {}}"#, "\u{0}"]
            .iter()
            .enumerate()
        {
            let path = dir.path().join(i.to_string());
            fs::write(&path, text).unwrap();
            let tuning = tuning(&path, "a");
            assert!(!tuning.may_search(), "{text:?}");
            found(&tuning, "m1", [1; 8]);
            tuning.close();
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
        assert!(!tuning(dir.path(), "a").may_search());
    }

    #[test]
    fn entries_that_do_not_parse_are_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuning.json");
        let good = to_text(&[9; 8], sum("a", "m1", &[9; 8]));
        let broken = good.replacen('9', "8", 1);
        // The last one is of another product.
        let machine = json!({"m1": good, "m2": &good[1..], "m3": 7, "m4": format!("+{}", &good[1..]), "m5": good});
        let machine = machine.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone()));
        let machine: serde_json::Map<_, _> = machine.chain([("m6".to_owned(), broken.into())]).collect();
        fs::write(&path, json!({MARK: LAYOUT, "machines": {"a": machine, "b": 7}}).to_string()).unwrap();
        let known = tuning(&path, "a");
        assert_eq!(known.known("m1"), Some([9; 8]));
        assert!(["m2", "m3", "m4", "m5", "m6"].iter().all(|name| known.known(name).is_none()));
        let odd = tuning(&path, "b");
        found(&odd, "m1", [3; 8]);
        odd.close();
        assert_eq!(tuning(&path, "b").known("m1"), Some([3; 8]));
    }
}
