//! The doctor's findings as text.

use std::fmt::Write;
use std::path::PathBuf;
use yinian::base::config::EngineConfig;
use yinian::hal::MemoryInfo;
use yinian::hal::registry::DeviceOptions;
use yinian::hal::survey::{Backend, Library, Processor, Survey, survey};

const USAGE: &str = "usage: doctor [--library-dir DIR] [--model DIR [--config JSON]]
  --library-dir DIR  where vendor libraries are looked for first, as the config key device_library_dir
  --model DIR        shows where the memory of an engine for this model would go
  --config JSON      further keys of its config; without --model, of any engine's";

/// Everything that was asked for; a text for people when the arguments are wrong or the model's memory cannot be planned.
pub(crate) fn report(args: &[String]) -> Result<String, String> {
    let (config, model) = config(args)?;
    let options = DeviceOptions {
        threads: config.threads,
        cpu_features: config.cpu_features.clone(),
        library_dir: config.device_library_dir.as_deref().map(PathBuf::from),
        ..DeviceOptions::default()
    };
    let mut text = written(&survey(&options));
    if let Some(model) = model {
        let plan = yinian::engine::plan_memory(&config).map_err(|e| format!("{text}\nno memory plan: {e}"))?;
        let _ = write!(text, "\nMemory of an engine for {model}\n{plan:#}\n");
    }
    Ok(text)
}

/// The config of the engine that is asked about, and its model when there is one.
fn config(args: &[String]) -> Result<(EngineConfig, Option<String>), String> {
    let (mut model, mut dir, mut json) = (None, None, "{}".to_owned());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().cloned().ok_or(format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--model" => model = Some(value()?),
            "--library-dir" => dir = Some(value()?),
            "--config" => json = value()?,
            "-h" | "--help" => return Err(USAGE.to_owned()),
            _ => return Err(format!("unexpected {arg:?}\n{USAGE}")),
        }
    }
    let mut keys: serde_json::Value = serde_json::from_str(&json).map_err(|e| format!("--config: {e}"))?;
    let Some(object) = keys.as_object_mut() else { return Err("--config: expected a JSON object".to_owned()) };
    if let Some(dir) = dir {
        object.insert("device_library_dir".to_owned(), dir.into());
    }
    // A config has a model; the survey does not look at it.
    object.insert("model".to_owned(), model.clone().unwrap_or_else(|| "none".to_owned()).into());
    Ok((EngineConfig::from_json(keys.to_string().as_bytes()).map_err(|e| e.to_string())?, model))
}

fn written(s: &Survey) -> String {
    let version = yinian_version();
    let mut text = format!("Yinian {version}\n");
    processor(&mut text, &s.processor);
    s.backends.iter().for_each(|backend| of_backend(&mut text, backend));
    text.push_str("\n\"device\": \"auto\"\n");
    match &s.auto {
        Ok((name, description)) => line(&mut text, "would be", &format!("{name}: {description}")),
        Err(e) => line(&mut text, "fails", &e.message),
    }
    if let Some(e) = &s.passed_over {
        line(&mut text, "no GPU, as", &e.message);
    }
    text
}

fn yinian_version() -> String {
    // SAFETY: always safe to call.
    let v = unsafe { yinian::ffi::yn_version() };
    format!("{}.{}.{}", v >> 24, v >> 16 & 0xff, v >> 8 & 0xff)
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:12} {value}");
}

fn gigabytes(bytes: usize) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

fn memory(info: MemoryInfo) -> String {
    format!("{} free of {}", gigabytes(info.free_bytes), gigabytes(info.total_bytes))
}

fn processor(text: &mut String, p: &Processor) {
    text.push_str("\nProcessor\n");
    match &p.description {
        Ok(description) => line(text, "would be", description),
        Err(e) => line(text, "fails", &e.message),
    }
    line(text, "features", &if p.features.is_empty() { "none that are used".to_owned() } else { p.features.join(" ") });
    line(text, "cores", &format!("{} that this process may use", p.cores));
    line(text, "memory", &p.memory.as_ref().map_or_else(|e| e.message.clone(), |info| memory(*info)));
}

fn of_backend(text: &mut String, backend: &Backend) {
    let _ = write!(text, "\nBackend {}\n", backend.name);
    let images = backend.images.as_deref().unwrap_or_default();
    if backend.images.is_some() && images.is_empty() {
        line(text, "kernels", "none: this build was made without a compiler for them");
    } else if !images.is_empty() {
        let bytes: usize = images.iter().map(|i| i.1).sum();
        let names: Vec<_> = images.iter().map(|(name, bytes)| format!("{name} {} KB", bytes.div_ceil(1000))).collect();
        line(text, "kernels", &format!("{} KB in {} images: {}", bytes / 1000, images.len(), names.join(", ")));
    }
    backend.libraries.iter().for_each(|l| library(text, l));
    if let Some(problem) = &backend.problem {
        let told = backend.libraries.iter().any(|l| l.problem.as_ref() == Some(problem));
        line(text, "no devices", if told { "see above" } else { problem });
    } else if backend.accelerators.is_empty() {
        line(text, "no devices", "the driver shows none");
    }
    for a in &backend.accelerators {
        line(text, &a.name, &a.description);
        if let Some(info) = a.memory {
            line(text, "", &memory(info));
        }
        line(text, "", &a.problem.as_ref().map_or("can be used".to_owned(), |p| format!("cannot be used: {p}")));
    }
}

fn library(text: &mut String, l: &Library) {
    let found = match &l.found {
        Some(found) => {
            let version = found.version.as_ref().map_or("of unknown version".to_owned(), |v| format!("version {v}"));
            format!("{} ({version})", found.path)
        }
        None => format!("not found; needed for {}", l.used_for),
    };
    line(text, l.name, &found);
    line(text, "", &format!("searched {}", l.searched.join(", ")));
    if let Some(needed) = &l.needed {
        line(text, "", &format!("needed {needed}"));
    }
    if let Some(problem) = &l.problem {
        line(text, "", problem);
    }
}
