//! F1: text in and out: tokenizer, chat templates, incremental detokenizing, stop strings. Host code only.

mod chat;
mod config;
mod conversation;
mod date;
mod deep;
mod detok;
mod files;
mod filters;
mod json;
mod methods;
mod python;
mod stop;
mod syntax;
mod tokenizer;
mod values;

pub use chat::{ChatTemplate, SpecialMap};
pub use detok::Detokenizer;
pub use stop::StopMatcher;
pub use tokenizer::{ShowSpecial, SpecialTokens, Tokenizer};

use crate::base::{Error, Result, Token};
use config::TokenizerConfig;
use std::path::Path;
use std::sync::Arc;

/// Tokenizer and chat template of one model. Immutable; any thread may use it.
#[derive(Debug)]
pub struct TextModel {
    pub tokenizer: Arc<Tokenizer>,
    /// `None` when the model has none.
    pub chat: Option<ChatTemplate>,
}

impl TextModel {
    /// Reads a model directory. `tokenizer` (a directory or a tokenizer.json) replaces the model's own; `chat_template` is the
    /// text of a template or the path of a `.jinja` file.
    pub fn open(model_dir: &Path, tokenizer: Option<&Path>, chat_template: Option<&str>) -> Result<Self> {
        let source = tokenizer.unwrap_or(model_dir);
        let beside = if source.is_dir() { source } else { source.parent().unwrap_or(Path::new("")) };
        let mut config = TokenizerConfig::read(beside)?;
        let tokenizer = Arc::new(Tokenizer::open_with(source, &mut config)?);
        let dir = if source.is_dir() { source } else { model_dir };
        let chat = if dir == beside {
            files::chat_template(dir, chat_template, &config)?
        } else {
            files::chat_template(dir, chat_template, &TokenizerConfig::read(dir)?)?
        };
        Ok(Self { tokenizer, chat })
    }

    /// The text side of the mock model: ids are bytes, 256 ends a sequence, `panic_byte` panics.
    pub fn mock(chat_template: Option<&str>, panic_byte: Option<u8>) -> Result<Self> {
        let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";
        let chat = match chat_template {
            None => Some(ChatTemplate::new(plain, SpecialMap::default())?),
            given => files::chat_template(Path::new(""), given, &TokenizerConfig::default())?,
        };
        Ok(Self { tokenizer: Arc::new(Tokenizer::bytes(panic_byte)), chat })
    }

    /// Renders `{"messages": [...], ...}` to prompt text.
    pub fn render(&self, chat: &serde_json::Value) -> Result<String> {
        let template = self.chat.as_ref().ok_or_else(|| {
            Error::invalid(
                "the model has no chat template; set \"chat_template\" in the config, or send plain text or tokens",
            )
        })?;
        template.render(chat)
    }

    /// Renders and tokenizes. The template writes the special tokens itself.
    pub fn encode_chat(&self, chat: &serde_json::Value) -> Result<Vec<Token>> {
        self.tokenizer.encode(&self.render(chat)?, SpecialTokens::Omit)
    }
}
