//! From JSON to what C callers pass.

use serde_json::Value;
use std::ptr::null;
use yinian::ffi::yn_bytes;

/// Keeps what pointers lead to.
#[derive(Default)]
pub(super) struct Values {
    bytes: Vec<Box<[u8]>>,
    ids: Vec<Box<[u32]>>,
    texts: Vec<Box<[yn_bytes]>>,
}

/// Any number, cut to 64 bits.
pub(super) fn word(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_i64().map(|n| n as u64)).unwrap_or_else(|| value.as_f64().unwrap_or(0.0) as u64)
}

/// Any number; "NaN" and "inf" too.
pub(super) fn float(value: &Value) -> f32 {
    let text = || value.as_str().and_then(|s| s.parse().ok());
    value.as_f64().map(|x| x as f32).or_else(text).unwrap_or_default()
}

impl Values {
    /// A string or a list of bytes is what it says, a number is NULL with that length, `true` is empty without being NULL.
    pub(super) fn bytes(&mut self, value: &Value) -> yn_bytes {
        let content = match value {
            Value::String(text) => text.as_bytes().to_vec(),
            Value::Array(items) => items.iter().map(|n| word(n) as u8).collect(),
            Value::Bool(true) => b"?".to_vec(),
            Value::Number(_) => return yn_bytes { data: null(), len: word(value) as usize },
            _ => return yn_bytes { data: null(), len: 0 },
        };
        let (data, len) = (content.as_ptr(), if value.is_boolean() { 0 } else { content.len() });
        // The heap does not move when its box does.
        let kept = content.into_boxed_slice();
        let data = if kept.is_empty() { data } else { kept.as_ptr() };
        self.bytes.push(kept);
        yn_bytes { data, len }
    }

    /// A list is what it says, a number is NULL with that length.
    pub(super) fn ids(&mut self, value: &Value) -> (*const u32, usize) {
        match value {
            Value::Array(items) => {
                let ids: Box<[u32]> = items.iter().map(|n| word(n) as u32).collect();
                self.ids.push(ids);
                self.ids.last().map_or((null(), 0), |ids| (ids.as_ptr(), ids.len()))
            }
            _ => (null(), word(value) as usize),
        }
    }

    /// As [`Self::ids`].
    pub(super) fn texts(&mut self, value: &Value) -> (*const yn_bytes, usize) {
        match value {
            Value::Array(items) => {
                let texts: Box<[yn_bytes]> = items.iter().map(|item| self.bytes(item)).collect();
                self.texts.push(texts);
                self.texts.last().map_or((null(), 0), |texts| (texts.as_ptr(), texts.len()))
            }
            _ => (null(), word(value) as usize),
        }
    }
}
