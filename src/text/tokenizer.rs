//! Text to token ids and back, over a Hugging Face tokenizer.json.

use super::config::TokenizerConfig;
use super::files::{MAX_TOKENIZER_BYTES, read_bounded};
use crate::base::error::panic_text;
use crate::base::{Error, Result, Token};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Longest text one call encodes, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Ids of the byte tokenizer: 256 bytes and the end of a sequence.
const BYTES_VOCAB: usize = 257;

/// Whether encoding adds the tokenizer's own begin and end tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    Add,
    Omit,
}

/// Whether decoding shows special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowSpecial {
    Show,
    Hide,
}

enum Kind {
    Bytes { panic_byte: Option<u8> },
    HuggingFace(Box<tokenizers::Tokenizer>),
}

/// A tokenizer. Immutable; any thread may use it.
pub struct Tokenizer {
    kind: Kind,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// The tokenizer's crate indexes and unwraps by what its file says: a panic in it is an error of the model.
fn guarded<T>(body: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(payload) => {
            Err(format!("the tokenizer panicked, its tokenizer.json may be broken: {}", panic_text(&*payload)))
        }
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a directory, with the settings beside it.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        Self::open_with(path, &mut TokenizerConfig::read(dir)?)
    }

    pub(super) fn open_with(path: &Path, config: &mut TokenizerConfig) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let json = read_bounded(&file, MAX_TOKENIZER_BYTES)?;
        let broken = |why: String| Error::invalid(format!("{} is not a tokenizer: {why}", file.display()));
        let mut parsed = guarded(|| tokenizers::Tokenizer::from_bytes(&json)).map_err(broken)?;
        check_growth(&parsed).map_err(broken)?;
        config.apply(&mut parsed).map_err(|e| e.within(file.display()))?;
        // Some of what is wrong in a file shows only in use.
        guarded(|| parsed.encode_fast("a 1", true).and_then(|e| parsed.decode(e.get_ids(), false))).map_err(broken)?;
        Ok(Self { kind: Kind::HuggingFace(Box::new(parsed)) })
    }

    /// The tokenizer of the mock model: ids 0..=255 are bytes, 256 ends a sequence. It panics at `panic_byte`.
    pub fn bytes(panic_byte: Option<u8>) -> Self {
        Self { kind: Kind::Bytes { panic_byte } }
    }

    /// Ids of `text`. Special tokens written out in the text become their ids.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<Token>> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::invalid(format!(
                "the text has {} bytes; at most {MAX_TEXT_BYTES} are encoded",
                text.len()
            )));
        }
        match &self.kind {
            Kind::Bytes { panic_byte } => {
                assert!(
                    panic_byte.is_none_or(|b| !text.as_bytes().contains(&b)),
                    "the mock tokenizer was told to panic"
                );
                Ok(text.bytes().map(Token::from).collect())
            }
            Kind::HuggingFace(t) => {
                let encoded = guarded(|| t.encode_fast(text, special == SpecialTokens::Add));
                encoded
                    .map(|e| e.get_ids().to_vec())
                    .map_err(|e| Error::invalid(format!("the text does not encode: {e}")))
            }
        }
    }

    /// Text of `tokens`. An id outside the vocabulary is an error.
    pub fn decode(&self, tokens: &[Token], special: ShowSpecial) -> Result<String> {
        if let Some(wrong) = tokens.iter().find(|&&t| !self.knows(t)) {
            return Err(Error::invalid(format!("token {wrong} is not in the vocabulary of {} ids", self.vocab_size())));
        }
        self.decode_known(tokens, special)
    }

    /// Text of those of `tokens` that are in the vocabulary: models may have more ids than their tokenizers.
    pub(super) fn decode_known(&self, tokens: &[Token], special: ShowSpecial) -> Result<String> {
        match &self.kind {
            Kind::Bytes { panic_byte } => {
                let bytes: Vec<u8> = tokens.iter().filter_map(|&t| u8::try_from(t).ok()).collect();
                assert!(panic_byte.is_none_or(|b| !bytes.contains(&b)), "the mock tokenizer was told to panic");
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::HuggingFace(t) => guarded(|| t.decode(tokens, special == ShowSpecial::Hide))
                .map_err(|e| Error::invalid(format!("the tokens do not decode: {e}"))),
        }
    }

    fn knows(&self, token: Token) -> bool {
        match &self.kind {
            Kind::Bytes { .. } => (token as usize) < BYTES_VOCAB,
            Kind::HuggingFace(t) => t.id_to_token(token).is_some(),
        }
    }

    /// Ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Bytes { .. } => BYTES_VOCAB,
            Kind::HuggingFace(t) => t.get_vocab_size(true),
        }
    }

    /// The id of a token's exact text.
    pub fn token_id(&self, token: &str) -> Option<Token> {
        match &self.kind {
            Kind::Bytes { .. } => match token.as_bytes() {
                [byte] => Some(Token::from(*byte)),
                _ => None,
            },
            Kind::HuggingFace(t) => t.token_to_id(token),
        }
    }
}

/// Each ByteLevel stage writes a byte that is no plain ASCII as two, so that a row of them doubles a text again and again.
const MAX_BYTE_LEVELS: usize = 4;

fn check_growth(parsed: &tokenizers::Tokenizer) -> std::result::Result<(), String> {
    let stages = serde_json::to_string(&(parsed.get_normalizer(), parsed.get_pre_tokenizer()));
    let found = stages.map_err(|e| e.to_string())?.matches(r#""type":"ByteLevel""#).count();
    match found {
        0..=MAX_BYTE_LEVELS => Ok(()),
        _ => Err(format!(
            "it has {found} ByteLevel stages, each of which may double a text; at most {MAX_BYTE_LEVELS} run"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(changes: serde_json::Value) -> Result<Tokenizer> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/text/byte_bpe/tokenizer.json");
        let mut whole: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), whole.to_string()).unwrap();
        Tokenizer::open(dir.path())
    }

    #[test]
    fn prompts_are_neither_cut_nor_padded() {
        let text = "one two three four five six seven eight nine ten";
        let plain = with(json!({})).unwrap().encode(text, SpecialTokens::Add).unwrap();
        let truncation = json!({"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        let padding = json!({"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": 1_u64 << 51,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
        let both = with(json!({"truncation": truncation, "padding": padding})).unwrap();
        assert!(plain.len() > 8 && plain.len() < 512);
        assert_eq!(both.encode(text, SpecialTokens::Add).unwrap(), plain);
    }

    #[test]
    fn a_panic_of_the_parser_is_an_error() {
        let processor = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
                               "pair": [], "special_tokens": {}});
        let e = with(json!({"post_processor": processor})).unwrap_err().message;
        assert!(e.contains("tokenizer.json is not a tokenizer"), "{e}");
    }
}
