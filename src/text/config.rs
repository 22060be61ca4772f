//! What stands beside tokenizer.json: tokenizer_config.json and, from older tools, special_tokens_map.json and added_tokens.json.
//! The begin and end tokens that encoding adds are tokenizer.json's; as in transformers, add_bos_token has no say beside it.

use super::chat::SpecialMap;
use super::files::read_json;
use crate::base::{Error, Result, Token};
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::AddedToken;

/// The names that every tokenizer may give its special tokens.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The settings of a folder; all of them empty when it has no such file.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    /// Text, or a list of named texts.
    pub(super) chat_template: Value,
    named: Vec<(String, AddedToken)>,
    unnamed: Vec<AddedToken>,
    /// Tokens with the ids they have to get, by id.
    added: Vec<(Token, AddedToken)>,
    split_special: bool,
    cleans_up: bool,
}

impl TokenizerConfig {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let mut config = object(&path)?;
        let within = |e: Error| e.within(path.display());
        let stated = added(config.get("added_tokens_decoder")).map_err(within)?;
        let mut read = Self { added: stated.unwrap_or_default(), ..Self::default() };
        if !config.contains_key("added_tokens_decoder") {
            config.extend(object(&dir.join("special_tokens_map.json"))?);
        }
        read.specials(&config).map_err(within)?;
        if !config.contains_key("added_tokens_decoder") {
            read.legacy(&dir.join("added_tokens.json"))?;
        }
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(within(Error::invalid(format!("{key:?} is neither true nor false")))),
        };
        read.split_special = flag("split_special_tokens")?.unwrap_or_default();
        read.cleans_up = flag("clean_up_tokenization_spaces")?.unwrap_or_default();
        read.chat_template = config.remove("chat_template").unwrap_or_default();
        Ok(read)
    }

    fn specials(&mut self, config: &Map<String, Value>) -> Result<()> {
        for (key, value) in config {
            let custom = key.ends_with("_token") && (value.is_string() || value["content"].is_string());
            if (NAMES.contains(&key.as_str()) || custom) && !value.is_null() {
                self.named.push((key.clone(), special(key, value)?));
            }
        }
        match config.get("extra_special_tokens").or(config.get("additional_special_tokens")) {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for token in list {
                    self.unnamed.push(special("extra_special_tokens", token)?);
                }
            }
            Some(Value::Object(names)) => {
                for (key, token) in names {
                    self.named.push((key.clone(), special(key, token)?));
                }
            }
            Some(_) => {
                return Err(Error::invalid("\"extra_special_tokens\" is neither a list nor an object of tokens"));
            }
        }
        Ok(())
    }

    fn legacy(&mut self, path: &Path) -> Result<()> {
        for (content, id) in object(path)? {
            let id = id.as_u64().and_then(|id| Token::try_from(id).ok());
            let id = id.ok_or_else(|| Error::invalid(format!("{}: {content:?} has no id", path.display())))?;
            let known = self.named.iter().map(|n| &n.1).chain(&self.unnamed).any(|t| t.content == content);
            self.added.push((id, AddedToken::from(content, known)));
        }
        self.added.sort_by_key(|a| a.0);
        Ok(())
    }

    /// What templates may call the special tokens.
    pub(super) fn names(&self) -> SpecialMap {
        self.named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect()
    }

    /// Makes the tokenizer what the files say together.
    pub(super) fn apply(&mut self, tokenizer: &mut tokenizers::Tokenizer) -> Result<()> {
        let fail = |e: tokenizers::Error| Error::invalid(format!("the added tokens do not fit the tokenizer: {e}"));
        if self.cleans_up && !matches!(tokenizer.get_model(), tokenizers::ModelWrapper::BPE(_)) {
            return Err(Error::unsupported(
                "tokenizer_config.json: \"clean_up_tokenization_spaces\" is not supported for this kind of tokenizer",
            ));
        }
        tokenizer.add_tokens(self.added.iter().map(|a| a.1.clone())).map_err(fail)?;
        for (id, token) in &self.added {
            if let Some(found) = tokenizer.token_to_id(&token.content).filter(|found| found != id) {
                return Err(Error::invalid(format!(
                    "tokenizer_config.json gives the added token {:?} the id {id}; with tokenizer.json it would be {found}",
                    token.content
                )));
            }
        }
        let padding = tokenizer.get_padding().map(|p| p.pad_token.clone());
        if let (Some(pad), false) = (padding, self.named.iter().any(|n| n.0 == "pad_token")) {
            self.named.push(("pad_token".to_owned(), AddedToken::from(pad, true)));
        }
        for token in self.named.iter().map(|n| &n.1).chain(&self.unnamed) {
            let known = tokenizer.get_added_tokens_decoder().values().any(|t| t.content == token.content);
            if !known && !token.content.is_empty() {
                tokenizer.add_special_tokens([token.clone()]).map_err(fail)?;
            }
        }
        tokenizer.set_encode_special_tokens(self.split_special);
        // What a file was saved with would cut prompts short or fill them up.
        tokenizer.with_truncation(None).map_err(fail)?;
        tokenizer.with_padding(None);
        Ok(())
    }
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    match read_json(path)? {
        None => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(_) => Err(Error::invalid(format!("{} is not a JSON object", path.display()))),
    }
}

fn added(given: Option<&Value>) -> Result<Option<Vec<(Token, AddedToken)>>> {
    let tokens = match given {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(tokens)) => tokens,
        Some(_) => return Err(Error::invalid("\"added_tokens_decoder\" is not an object of tokens by id")),
    };
    let mut found = Vec::new();
    for (id, token) in tokens {
        let id = id.parse().map_err(|_| Error::invalid(format!("\"added_tokens_decoder\" has the id {id:?}")))?;
        found.push((id, token_of("added_tokens_decoder", token, false)?));
    }
    found.sort_by_key(|a| a.0);
    Ok(Some(found))
}

fn special(key: &str, value: &Value) -> Result<AddedToken> {
    match value.as_str() {
        Some(content) => Ok(AddedToken::from(content, true)),
        None => token_of(key, value, true),
    }
}

/// A token with its flags.
fn token_of(key: &str, value: &Value, special: bool) -> Result<AddedToken> {
    let content = value["content"].as_str();
    let content = content.ok_or_else(|| Error::invalid(format!("{key:?} has a token without \"content\"")))?;
    let flag = |name: &str, default: bool| value[name].as_bool().unwrap_or(default);
    let special = special || flag("special", false);
    Ok(AddedToken::from(content, special)
        .normalized(flag("normalized", !special))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .single_word(flag("single_word", false)))
}
