//! A device's ops against the host processor's, with numbers for people: what a machine that nobody here has sends back.
//!
//! Every case runs on both with the same inputs, which the device's activations can hold. The host computes in F32, so results
//! may differ by roundings to the dtype of activations; how far they do is told beside what is allowed.

mod attention;
mod cases;
mod side;

use crate::base::{DType, Error, ErrorKind, Result};
use crate::hal::registry::{self, DeviceOptions};
use crate::hal::{Activations, Device};
use serde_json::{Value, json};
use side::Side;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs of each case on the device; the fastest is told.
const RUNS: usize = 3;

/// Numbers an op computed, and what roundings to the dtype of activations they may be off, relative to 1 and above.
struct Outcome {
    numbers: Vec<f32>,
    roundings: f64,
    /// What it may be off beside them.
    exact: f64,
    /// What the ops took, waiting included.
    took: Duration,
}

type Run = Box<dyn Fn(&Side) -> Result<Outcome>>;

/// An op with its shapes. On the device and on the host it does the same.
struct Case {
    op: &'static str,
    shape: String,
    run: Run,
}

impl Case {
    fn new(op: &'static str, shape: impl Into<String>, run: impl Fn(&Side) -> Result<Outcome> + 'static) -> Self {
        Self { op, shape: shape.into(), run: Box::new(run) }
    }
}

/// Compares all ops of `device` with the host's and writes what was found to a JSON file at `path`:
/// `{"device", "description", "found": {..}, "memory": {..}, "ops": [{"op", "shape", "dtype", "agrees", "off", "allowed",
/// "microseconds"} or {"op", "shape", "dtype", "agrees": false, "error"}, ..], "disagree": n}`. Ops that fail or disagree are in the report and
/// no error; `Err` when the host's own fail, or the file cannot be written. Nothing it allocates stays.
pub fn write(device: &Arc<dyn Device>, path: &Path) -> Result<()> {
    let report = run(device)?;
    let (all, bad) = (report["ops"].as_array().map_or(0, Vec::len), report["disagree"].as_u64().unwrap_or(0));
    let text = format!("{report:#}\n");
    std::fs::write(path, text)
        .map_err(|e| Error::new(ErrorKind::Io, format!("config key \"self_test\": {}: {e}", path.display())))?;
    let name = device.caps().name;
    if bad == 0 {
        log::info!("self-test of {name}: {all} ops agree with the host's, see {}", path.display());
    } else {
        log::warn!("self-test of {name}: {bad} of {all} ops do not agree with the host's, see {}", path.display());
    }
    Ok(())
}

/// The report itself.
pub fn run(device: &Arc<dyn Device>) -> Result<Value> {
    let host = registry::open_host(&DeviceOptions::default())?;
    let caps = device.caps();
    let memory = device.memory()?;
    let mut ops = Vec::new();
    for weights in dtypes(device.as_ref()) {
        let act = caps.activations.of(weights);
        let on_host = Side::new(&host, weights, act)?;
        let mut tested = Side::new(device, weights, act);
        for case in cases::all().into_iter().chain(attention::all()) {
            let expected = (case.run)(&on_host).map_err(|e| e.within(format!("{} on the host", case.op)))?;
            let rest =
                match tested.as_ref().map_err(|e| e.message.clone()).and_then(|side| compare(&case, side, &expected)) {
                    Ok(rest) => rest,
                    Err(error) => {
                        // Whatever the op left behind on its stream is not the next one's business.
                        tested = Side::new(device, weights, act);
                        json!({ "agrees": false, "error": error })
                    }
                };
            let mut told = json!({ "op": case.op, "shape": case.shape, "dtype": act.to_string() });
            if let (Value::Object(told), Value::Object(rest)) = (&mut told, rest) {
                told.extend(rest);
            }
            ops.push(told);
        }
    }
    let disagree = ops.iter().filter(|op| op["agrees"] != true).count();
    let found: serde_json::Map<String, Value> =
        device.facts().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    Ok(json!({
        "device": caps.name,
        "description": caps.description,
        "found": found,
        "memory": { "total_bytes": memory.total_bytes, "free_bytes": memory.free_bytes },
        "ops": ops,
        "disagree": disagree,
    }))
}

/// Dtypes of weights to run with: one for each dtype of activations there is.
fn dtypes(device: &dyn Device) -> Vec<DType> {
    let caps = device.caps();
    let mut dtypes = caps.weight_dtypes.clone();
    if let Activations::Always(_) = caps.activations {
        dtypes.truncate(1);
    }
    dtypes
}

/// How far the device is off, and how long it took; what went wrong as a text.
fn compare(case: &Case, side: &Side, expected: &Outcome) -> std::result::Result<Value, String> {
    let mut best = Duration::MAX;
    let mut worst = (0.0_f64, 0);
    for _ in 0..RUNS {
        // A backend asserts what it cannot do; in a report that is one more thing to tell.
        let found = catch_unwind(AssertUnwindSafe(|| (case.run)(side)));
        let found = found.map_err(|panic| words(panic.as_ref()))?.map_err(|e| e.message)?;
        best = best.min(found.took);
        let off = farthest(&found.numbers, &expected.numbers);
        worst = if off.0 > worst.0 || off.0.is_nan() { off } else { worst };
    }
    let allowed = expected.exact + expected.roundings * rounding(side.tested);
    let mut told = json!({
        "agrees": worst.0 <= allowed,
        "off": if worst.0.is_finite() { json!(worst.0) } else { json!("not a number, or another length") },
        "allowed": allowed,
        "microseconds": best.as_micros() as u64,
    });
    if worst.0 > 0.0 || worst.0.is_nan() {
        told["at"] = json!(worst.1);
    }
    Ok(told)
}

/// Half a unit in the last place of numbers near 1.
fn rounding(act: DType) -> f64 {
    match act {
        DType::F16 => 1.02 / 2048.0,
        DType::Bf16 => 1.02 / 256.0,
        _ => 0.0,
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked").to_owned()
}

/// Largest difference, relative above 1, and where; NaN when only one is a number, or lengths differ.
fn farthest(found: &[f32], expected: &[f32]) -> (f64, usize) {
    if found.len() != expected.len() {
        return (f64::NAN, 0);
    }
    let mut worst = (0.0, 0);
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let off = if f == e || (f.is_nan() && e.is_nan()) {
            0.0
        } else {
            (f64::from(*f) - f64::from(*e)).abs() / f64::from(e.abs()).max(1.0)
        };
        if !off.is_finite() {
            return (f64::NAN, i);
        }
        worst = if off > worst.0 { (off, i) } else { worst };
    }
    worst
}

/// Enqueues work, waits for it, and says how long that took.
fn timed(side: &Side, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    side.wait()?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        assert_eq!(farthest(&[1.0, 4.0, f32::INFINITY], &[1.0, 4.0, f32::INFINITY]), (0.0, 0));
        assert_eq!(farthest(&[1.0, 5.0], &[0.5, 4.0]), (0.5, 0));
        assert_eq!(farthest(&[1.0, 8.0], &[0.5, 4.0]), (1.0, 1));
        for (found, at) in [(vec![1.0, f32::NAN], 1), (vec![f32::INFINITY, 2.0], 0), (vec![1.0], 0)] {
            let (off, where_) = farthest(&found, &[1.0, 2.0]);
            assert!(off.is_nan() && where_ == at, "{found:?}");
        }
    }

    #[test]
    fn the_host_agrees_with_itself_in_every_op() {
        let host = registry::open_host(&DeviceOptions::default()).unwrap();
        let report = run(&host).unwrap();
        assert_eq!(report["disagree"], 0, "{report:#}");
        let ops = report["ops"].as_array().unwrap();
        let named = |op: &str| ops.iter().any(|o| o["op"] == op && o["off"] == 0.0);
        for op in [
            "embed",
            "rms_norm",
            "add_rms_norm",
            "linear",
            "act_mul",
            "soft_cap",
            "gather_rows",
            "copy_rows",
            "mask_logits",
            "sample",
            "logprobs",
            "rope_write_kv, paged_attention",
        ] {
            assert!(named(op), "no {op} in {report:#}");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_names_the_key() {
        let host = registry::open_host(&DeviceOptions::default()).unwrap();
        let e = write(&host, Path::new("/nowhere/at/all.json")).unwrap_err();
        assert!(e.message.contains("\"self_test\"") && e.message.contains("/nowhere/at/all.json"), "{e}");
    }
}
