//! Typed, bounded access to the keys of a JSON file. Every error names the file, the key, what it holds and what was
//! expected.

use crate::base::error::clipped;
use crate::base::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

const POSITIVE: &str = "a number from 1e-15 to 1e15";

/// One JSON object of a file.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// File and, for a nested object, its key.
    place: String,
}

impl Fields {
    /// Reads a file of at most `limit` bytes. `NotFound` when there is none.
    pub(crate) fn read(path: &Path, limit: u64) -> Result<Self> {
        let place = path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                format!("{place} does not exist; expected a Hugging Face model directory"),
            ),
            _ => Error::io(format!("cannot open {place}: {e}")),
        })?;
        let mut text = Vec::new();
        file.take(limit + 1).read_to_end(&mut text).map_err(|e| Error::io(format!("cannot read {place}: {e}")))?;
        if text.len() as u64 > limit {
            return Err(Error::invalid(format!("{place} is larger than {limit} bytes, the most that is read")));
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Self { map, place }),
            Ok(_) => Err(Error::invalid(format!("{place} is not a JSON object"))),
            Err(e) => Err(Error::invalid(format!("{place} is not JSON: {e}"))),
        }
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The value of a key; null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The key is there and null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { map: map.clone(), place: format!("{}: {key}", self.place) })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// The same object without one of its keys.
    pub(crate) fn without(&self, key: &str) -> Self {
        let mut map = self.map.clone();
        map.remove(key);
        Self { map, place: self.place.clone() }
    }

    /// An integer in `0..=most`; absent is `None`.
    pub(crate) fn whole(&self, key: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= most) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, &format!("an integer from 0 to {most}"))),
        }
    }

    /// An integer in `1..=most`; absent is `None`.
    pub(crate) fn count(&self, key: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=most).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, &format!("an integer from 1 to {most}"))),
        }
    }

    pub(crate) fn need_count(&self, key: &str, most: usize) -> Result<usize> {
        self.count(key, most)?.ok_or_else(|| self.missing(key, &format!("an integer from 1 to {most}")))
    }

    /// A number above 0 whose products and quotients stay within f32; absent is `None`.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|x| (1e-15..=1e15).contains(x)) {
            Some(x) => Ok(Some(x)),
            None => Err(self.wrong(key, POSITIVE)),
        }
    }

    pub(crate) fn need_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key, POSITIVE))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// One token id or a list of them, each below `vocab`; absent is `None`.
    pub(crate) fn tokens(&self, key: &str, vocab: usize) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = |v: &Value| v.as_u64().filter(|id| *id < vocab as u64).map(|id| id as u32);
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            value => one(value).map(|id| vec![id]),
        };
        match ids {
            Some(ids) => Ok(Some(ids)),
            None => Err(self.wrong(key, &format!("a token id below the vocabulary size {vocab}, or a list of them"))),
        }
    }

    pub(crate) fn wrong(&self, key: &str, expected: &str) -> Error {
        Error::invalid(format!("{}: key {key:?} is {}; expected {expected}", self.place, self.shown(key)))
    }

    pub(crate) fn missing(&self, key: &str, expected: &str) -> Error {
        Error::invalid(format!("{}: key {key:?} is missing; expected {expected}", self.place))
    }

    pub(crate) fn unsupported(&self, key: &str, supported: &str) -> Error {
        let (place, value) = (&self.place, self.shown(key));
        Error::unsupported(format!("{place}: key {key:?} is {value}; this build supports {supported}"))
    }

    fn shown(&self, key: &str) -> String {
        clipped(&self.map.get(key).map_or_else(String::new, Value::to_string), 100).into_owned()
    }
}
