//! How an engine's info and logs name its model.

use crate::base::config::EngineConfig;
use serde_json::{Value, json};
use std::path::Path;

/// As the config asks, else the last part of the model's path.
pub(crate) fn served_name(config: &EngineConfig) -> String {
    let last = || Path::new(&config.model).file_name().map(|n| n.to_string_lossy().into_owned());
    config.served_model_name.clone().or_else(last).unwrap_or_else(|| config.model.clone())
}

pub(crate) fn model_json(config: &EngineConfig, architecture: &str, dtype: &str) -> Value {
    json!({"name": served_name(config), "path": config.model, "architecture": architecture, "dtype": dtype})
}
