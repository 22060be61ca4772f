//! The text files of a model directory, read within bounds.

use super::chat::{ChatTemplate, SpecialMap};
use crate::base::{Error, ErrorKind, Result};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

pub(super) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads a file of at most `max` bytes.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            // A NUL in the path.
            std::io::ErrorKind::InvalidInput => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{} cannot be read: {e}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > max {
        return Err(Error::invalid(format!("{} has more than {max} bytes", path.display())));
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = read_bounded(path, MAX_CONFIG_BYTES)?;
    String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{} is not UTF-8", path.display())))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path)?;
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|e| Error::invalid(format!("{} is not JSON: {e}", path.display())))
}

/// The chat template: `given` (text or path) first, then chat_template.jinja, chat_template.json, tokenizer_config.json.
pub(super) fn chat_template(dir: &Path, given: Option<&str>) -> Result<Option<ChatTemplate>> {
    let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let specials = specials(&config);
    let jinja = dir.join("chat_template.jinja");
    let source = match given {
        Some(path) if path.ends_with(".jinja") => Some(read_text(Path::new(path))?),
        Some(text) => Some(text.to_owned()),
        None if jinja.exists() => Some(read_text(&jinja)?),
        None => {
            let extra = read_json(&dir.join("chat_template.json"))?.unwrap_or_default();
            match named(&extra["chat_template"])? {
                None => named(&config["chat_template"])?,
                found => found,
            }
        }
    };
    source.map(|s| ChatTemplate::new(&s, specials)).transpose()
}

/// A template, or the one called `default` in a list of named ones.
fn named(value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s.clone())),
        Value::Array(list) => {
            let default = list.iter().find(|t| t["name"] == "default");
            Ok(default.and_then(|t| t["template"].as_str()).map(str::to_owned))
        }
        _ => Err(Error::invalid(
            "chat_template of the model's tokenizer_config.json or chat_template.json is neither text nor a list of named \
             templates",
        )),
    }
}

/// The special tokens that templates name: strings, or objects with a `content`.
fn specials(config: &Value) -> SpecialMap {
    let mut map = SpecialMap::default();
    for name in ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"] {
        let text = config[name].as_str().or_else(|| config[name]["content"].as_str());
        if let Some(text) = text {
            map.insert(name.to_owned(), text.to_owned());
        }
    }
    map
}
