//! Inputs to start from: the files of `tests/fuzz/corpus/<target>`, and what a run adds to them.

use crate::jinja::Template;
use crate::mutate::{Dictionary, bytes, document, weights};
use serde_json::Value;
use std::path::{Path, PathBuf};
use yinian::base::rng::SplitMix64;

/// Longest input.
pub(crate) const MAX_INPUT: usize = 1 << 16;
/// Longest input that is kept.
const MAX_KEPT: usize = 8 << 10;

/// What inputs are made of: how to change one so that it is still read further than its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A JSON document, one time in eight with broken bytes.
    Json,
    /// A JSON document, always.
    WholeJson,
    /// A safetensors file.
    Weights,
    /// A Jinja template.
    Template,
}

#[derive(Debug)]
pub(crate) struct Corpus {
    shape: Shape,
    inputs: Vec<Vec<u8>>,
    /// Of `inputs`, those that parse; of weights their headers.
    documents: Vec<Value>,
    /// By `inputs`: their place in `documents` or `templates`.
    places: Vec<Option<usize>>,
    /// Places of inputs that are taken: what is mutated most.
    preferred: Vec<usize>,
    templates: Template,
    dictionary: Dictionary,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// How many targets have a corpus.
pub(crate) fn folders() -> usize {
    std::fs::read_dir(folder()).unwrap().count()
}

impl Corpus {
    pub(crate) fn read(name: &str, shape: Shape, words: &[&str]) -> Self {
        let mut paths: Vec<_> = std::fs::read_dir(folder().join(name)).unwrap().map(|e| e.unwrap().path()).collect();
        // The order of a directory is not the same everywhere, and seeds shall replay.
        paths.sort();
        let words = words.iter().map(|w| (*w).to_owned()).collect();
        let dictionary = Dictionary { words, keys: Vec::new() };
        let mut corpus = Self {
            shape,
            inputs: Vec::new(),
            documents: Vec::new(),
            places: Vec::new(),
            preferred: Vec::new(),
            templates: Template::default(),
            dictionary,
        };
        for path in paths {
            let input = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            corpus.keep(&input);
            assert!(corpus.inputs.last() == Some(&input), "{} is too long", path.display());
        }
        assert!(!corpus.inputs.is_empty(), "no corpus of {name}");
        corpus
    }

    pub(crate) fn len(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn files(&self) -> Vec<Vec<u8>> {
        self.inputs.clone()
    }

    /// One more to mutate.
    pub(crate) fn keep(&mut self, input: &[u8]) {
        if input.len() > MAX_KEPT {
            return;
        }
        self.inputs.push(input.to_vec());
        let json = if self.shape == Shape::Weights { weights::header(input).unwrap_or_default() } else { input };
        let mut place = None;
        if self.shape == Shape::Template {
            place = Some(self.templates.learn(&String::from_utf8_lossy(input)));
        } else if let Ok(value) = serde_json::from_slice::<Value>(json) {
            self.dictionary.learn(&value);
            place = Some(self.documents.len());
            self.documents.push(value);
        }
        self.places.push(place);
    }

    /// Input `i` is taken.
    pub(crate) fn prefer(&mut self, i: usize) {
        self.preferred.extend(self.places[i]);
    }

    /// Where a mutation starts, of `all` places.
    fn place(&self, rng: &mut SplitMix64, all: usize) -> usize {
        match self.preferred.as_slice() {
            preferred @ [_, ..] if rng.below(8) != 0 => preferred[rng.below(preferred.len() as u64) as usize],
            _ => rng.below(all as u64) as usize,
        }
    }

    pub(crate) fn mutated(&self, rng: &mut SplitMix64) -> Vec<u8> {
        let mut input = match self.shape {
            Shape::Template => {
                let from = self.place(rng, self.templates.len());
                self.templates.mutated(rng, from, &self.dictionary.words).into_bytes()
            }
            _ if self.documents.is_empty() => self.any(rng),
            Shape::Json | Shape::WholeJson => self.changed(rng).to_string().into(),
            Shape::Weights => {
                let header = self.changed(rng);
                weights::file(rng, header)
            }
        };
        if self.shape != Shape::WholeJson && rng.below(8) == 0 {
            if rng.below(4) == 0 {
                input = self.any(rng);
            }
            let other = self.any(rng);
            bytes::mutate(rng, &mut input, &other, &self.dictionary.words);
        }
        // Cut JSON would be refused at once.
        if self.shape != Shape::WholeJson {
            input.truncate(MAX_INPUT);
        }
        input
    }

    fn changed(&self, rng: &mut SplitMix64) -> Value {
        let mut value = self.documents[self.place(rng, self.documents.len())].clone();
        document::mutate(rng, &mut value, &self.documents, &self.dictionary);
        value
    }

    fn any(&self, rng: &mut SplitMix64) -> Vec<u8> {
        self.inputs[rng.below(self.inputs.len() as u64) as usize].clone()
    }
}
