//! Text to token ids and back, over a Hugging Face tokenizer.json.

use super::config::TokenizerConfig;
use super::files::{MAX_TOKENIZER_BYTES, read_bounded};
use crate::base::{Error, Result, Token};
use std::fmt;
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

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a directory, with the settings beside it.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        Self::open_with(path, &mut TokenizerConfig::read(dir)?)
    }

    pub(super) fn open_with(path: &Path, config: &mut TokenizerConfig) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let json = read_bounded(&file, MAX_TOKENIZER_BYTES)?;
        let mut parsed = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|e| Error::invalid(format!("{} is not a tokenizer: {e}", file.display())))?;
        config.apply(&mut parsed).map_err(|e| e.within(file.display()))?;
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
                let encoded = t.encode_fast(text, special == SpecialTokens::Add);
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
            Kind::HuggingFace(t) => t
                .decode(tokens, special == ShowSpecial::Hide)
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
