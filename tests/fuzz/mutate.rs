//! How inputs are changed: as bytes, as JSON documents, as safetensors files.

pub(crate) mod bytes;
pub(crate) mod document;
pub(crate) mod weights;

use serde_json::Value;

/// What mutations put in.
#[derive(Debug)]
pub(crate) struct Dictionary {
    pub(crate) words: Vec<String>,
    /// Names of the corpus's JSON objects.
    pub(crate) keys: Vec<String>,
}

impl Dictionary {
    pub(crate) fn learn(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::Object(map) => {
                for (key, value) in map {
                    if key.len() < 64 && !self.keys.contains(key) {
                        self.keys.push(key.clone());
                    }
                    self.learn(value);
                }
            }
            _ => {}
        }
    }
}
