//! The text files of a model directory, read within bounds.

use super::chat::ChatTemplate;
use super::config::TokenizerConfig;
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

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path)?;
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|e| Error::invalid(format!("{} is not JSON: {e}", path.display())))
}

/// The chat template: `given` (text or path) first, then chat_template.jinja, tokenizer_config.json, chat_template.json.
pub(super) fn chat_template(dir: &Path, given: Option<&str>, config: &TokenizerConfig) -> Result<Option<ChatTemplate>> {
    let jinja = |path: &Path| if path.exists() { read_text(path).map(Some) } else { Ok(None) };
    let (default, tool_use) = match given {
        Some(path) if path.ends_with(".jinja") => (Some(read_text(Path::new(path))?), None),
        Some(text) => (Some(text.to_owned()), None),
        None => {
            let tool_use = jinja(&dir.join("additional_chat_templates/tool_use.jinja"))?;
            match (jinja(&dir.join("chat_template.jinja"))?, &config.chat_template) {
                (Some(found), _) => (Some(found), tool_use),
                (None, Value::Null) => {
                    let extra = read_json(&dir.join("chat_template.json"))?.unwrap_or_default();
                    named(&extra["chat_template"])?
                }
                (None, list) => named(list)?,
            }
        }
    };
    let Some(source) = default else { return Ok(None) };
    let template = ChatTemplate::new(&source, config.names())?;
    match tool_use {
        None => Ok(Some(template)),
        Some(source) => template.with_tool_use(&source).map(Some),
    }
}

/// A template, or of a list of named ones those called `default` and `tool_use`.
fn named(value: &Value) -> Result<(Option<String>, Option<String>)> {
    match value {
        Value::Null => Ok((None, None)),
        Value::String(s) => Ok((Some(s.clone()), None)),
        Value::Array(list) => {
            let find = |name: &str| list.iter().find(|t| t["name"] == name).map(|t| t["template"].as_str());
            let names = || list.iter().map(|t| t["name"].to_string()).collect::<Vec<_>>().join(", ");
            let broken = |name: &str| Error::invalid(format!("the chat template named {name:?} has no text"));
            let default = find("default").ok_or_else(|| {
                Error::invalid(format!(
                    "none of the model's chat templates ({}) is named \"default\"; set \"chat_template\" in the config",
                    names()
                ))
            })?;
            let default = default.ok_or_else(|| broken("default"))?.to_owned();
            let tool_use = find("tool_use").map(|t| t.ok_or_else(|| broken("tool_use"))).transpose()?;
            Ok((Some(default), tool_use.map(str::to_owned)))
        }
        _ => Err(Error::invalid(
            "chat_template of the model's tokenizer_config.json or chat_template.json is neither text nor a list of named \
             templates",
        )),
    }
}
