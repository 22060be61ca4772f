//! Incremental detokenizing: whole code points as soon as they are certain.

use super::tokenizer::{ShowSpecial, Tokenizer};
use crate::base::{Result, Token};
use std::sync::Arc;

/// Prompt tokens kept as context for the first generated ones.
const CONTEXT: usize = 6;
/// Tokens that may wait for the rest of a code point. A code point has at most four bytes and a token at least one, so what waits
/// longer is not text; a byte-fallback run shows replacement characters for whole code points too, hence the slack.
const MAX_PENDING: usize = 32;

/// Turns a sequence of tokens into text, delta by delta. A token's text may depend on its neighbours (leading spaces,
/// code points spread over tokens), so a window of recent tokens is decoded with and without the new ones and the difference is
/// the delta. The window holds the tokens of the last two deltas, so a push costs the same at any length.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Context, then tokens whose text is out (up to `read`), then tokens that wait.
    window: Vec<Token>,
    read: usize,
}

impl Detokenizer {
    /// Starts behind `prompt`, whose text is not emitted.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[Token]) -> Self {
        let last = |n: usize| &prompt[prompt.len().saturating_sub(n)..];
        // Of a code point that is spread over tokens the context needs all or nothing: a byte-fallback run that begins in the
        // middle of one would turn into replacement characters as a whole.
        let whole =
            |n: &usize| tokenizer.decode_known(last(*n), ShowSpecial::Hide).is_ok_and(|t| !t.contains('\u{FFFD}'));
        let window = last((CONTEXT..CONTEXT + 4).find(whole).unwrap_or(CONTEXT)).to_vec();
        Self { tokenizer, read: window.len(), window }
    }

    /// Appends the text that is certain after `token`. Special tokens have no text.
    pub fn push(&mut self, token: Token, out: &mut String) -> Result<()> {
        self.window.push(token);
        let (before, all) = self.texts()?;
        let waits = all.ends_with('\u{FFFD}') && self.window.len() - self.read < MAX_PENDING;
        if !waits {
            let delta = delta(&before, &all);
            out.push_str(delta);
            // Special tokens alone are no context: what follows them would decode like the start of a text.
            if !delta.is_empty() || self.read > MAX_PENDING {
                self.window.drain(..self.read);
            }
            self.read = self.window.len();
        }
        Ok(())
    }

    /// Appends what still waits; an unfinished code point becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if self.read < self.window.len()
            && let Ok((before, all)) = self.texts()
        {
            out.push_str(delta(&before, &all));
        }
        self.window.clear();
        self.read = 0;
    }

    fn texts(&self) -> Result<(String, String)> {
        let decode = |tokens| self.tokenizer.decode_known(tokens, ShowSpecial::Hide);
        Ok((decode(&self.window[..self.read])?, decode(&self.window)?))
    }
}

/// What `all` has beyond `before`. Where a context of broken bytes decodes differently with what follows it, the common start
/// counts as out.
fn delta<'a>(before: &str, all: &'a str) -> &'a str {
    if let Some(rest) = all.strip_prefix(before) {
        return rest;
    }
    let common = before.chars().zip(all.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &all[common..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn deltas(tokenizer: &Arc<Tokenizer>, tokens: &[Token]) -> (String, Vec<String>) {
        let mut d = Detokenizer::new(Arc::clone(tokenizer), &[]);
        let mut parts = Vec::new();
        for &t in tokens {
            let mut part = String::new();
            d.push(t, &mut part).unwrap();
            parts.push(part);
        }
        let mut part = String::new();
        d.finish(&mut part);
        parts.push(part);
        (parts.concat(), parts)
    }

    /// A SentencePiece-style tokenizer: metaspace and byte fallback.
    fn byte_fallback() -> Arc<Tokenizer> {
        let mut vocab: Vec<(String, f64)> = vec![("<unk>".into(), 0.0)];
        vocab.extend((0..256).map(|b| (format!("<0x{b:02X}>"), 0.0)));
        vocab.extend(["▁", "▁hi", "▁you", "a", "b"].map(|s| (s.into(), -1.0)));
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true},
        });
        let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        Arc::new(Tokenizer::open(file.path()).unwrap())
    }

    #[test]
    fn half_a_code_point_is_never_seen() {
        let bytes = Arc::new(Tokenizer::bytes(None));
        let text = "héé 一念 🦊!";
        let tokens = bytes.encode(text, super::super::SpecialTokens::Omit).unwrap();
        let (all, parts) = deltas(&bytes, &tokens);
        assert_eq!(all, text);
        assert!(parts.iter().all(|p| !p.contains('\u{FFFD}')));
        assert_eq!(deltas(&bytes, &tokens[..tokens.len() - 3]).0, "héé 一念 \u{FFFD}");
    }

    #[test]
    fn byte_fallback_and_leading_spaces() {
        let t = byte_fallback();
        let id = |s: &str| t.token_id(s).unwrap();
        let fox = [id("<0xF0>"), id("<0x9F>"), id("<0xA6>"), id("<0x8A>")];
        let tokens = [&[id("▁hi")][..], &[id("▁you")], &fox, &[id("a")], &fox, &fox].concat();
        let (all, parts) = deltas(&t, &tokens);
        assert_eq!(all, "hi you🦊a🦊🦊");
        assert!(parts.iter().all(|p| !p.contains('\u{FFFD}')), "{parts:?}");
        let mut behind = Detokenizer::new(Arc::clone(&t), &[id("▁hi")]);
        let mut out = String::new();
        behind.push(id("▁you"), &mut out).unwrap();
        assert_eq!(out, " you");
    }

    proptest! {
        #[test]
        fn deltas_add_up(text in "\\PC{0,40}") {
            let bytes = Arc::new(Tokenizer::bytes(None));
            let tokens = bytes.encode(&text, super::super::SpecialTokens::Omit).unwrap();
            prop_assert_eq!(deltas(&bytes, &tokens).0, text);
        }

        #[test]
        fn garbage_never_fails(tokens in proptest::collection::vec(0u32..300, 0..80)) {
            deltas(&Arc::new(Tokenizer::bytes(None)), &tokens);
        }
    }
}
