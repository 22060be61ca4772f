//! The chat object of a request: its keys are checked, and its messages made as Hugging Face hands them to templates.

use super::values::RESERVED;
use crate::base::config::nearest;
use crate::base::error::clipped;
use crate::base::{Error, Result};
use serde_json::{Map, Value};

const KEYS: [&str; 7] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "date_string",
];
/// Names under which hosts send what a model thought. Templates read the first, some the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Written behind the text that is to be continued; what a template adds behind it is cut off.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// What a template sees of a request.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) variables: Map<String, Value>,
    pub(super) has_tools: bool,
    continued: Option<Continued>,
}

/// The final message is to be continued rather than answered.
#[derive(Debug)]
struct Continued {
    /// Of one of these a template must write the text.
    fields: Vec<String>,
    text: String,
}

impl Conversation {
    /// `specials` are variables too, which `chat_template_kwargs` may replace.
    pub(super) fn new(chat: &Value, specials: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let Value::Object(chat) = chat else {
            return Err(Error::invalid("the chat is not a JSON object; expected {\"messages\": [...]}"));
        };
        if let Some(key) = chat.keys().find(|k| !KEYS.contains(&k.as_str())) {
            let hint = nearest(key, KEYS.into_iter()).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
            return Err(Error::invalid(format!(
                "chat key {key:?} is unknown{hint} (variables of a template go under \"chat_template_kwargs\")"
            )));
        }
        let mut messages = messages(chat.get("messages"))?;
        let continued = match chat.get("continue_final_message") {
            None | Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(Continued::mark(&mut messages, "content")?),
            Some(Value::String(field)) => Some(Continued::mark(&mut messages, field)?),
            Some(other) => return Err(wrong("continue_final_message", other, "true, false or the name of a field")),
        };
        let prompt = match chat.get("add_generation_prompt") {
            None => continued.is_none(),
            Some(Value::Bool(true)) if continued.is_some() => {
                return Err(Error::invalid(
                    "chat keys \"add_generation_prompt\" and \"continue_final_message\" are both true; a message is continued or answered",
                ));
            }
            Some(Value::Bool(prompt)) => *prompt,
            Some(other) => return Err(wrong("add_generation_prompt", other, "true or false")),
        };
        let mut variables: Map<_, _> = specials.map(|(k, v)| (k, v.into())).collect();
        variables.insert("messages".to_owned(), messages.into());
        variables.insert("add_generation_prompt".to_owned(), prompt.into());
        for key in ["tools", "documents"] {
            variables.insert(key.to_owned(), objects(key, chat.get(key))?);
        }
        match chat.get("date_string") {
            None => {}
            Some(Value::String(date)) => drop(variables.insert("date_string".to_owned(), date.as_str().into())),
            Some(other) => return Err(wrong("date_string", other, "a string")),
        }
        let has_tools = !variables["tools"].is_null();
        variables.extend(more(chat.get("chat_template_kwargs"))?);
        Ok(Self { variables, has_tools, continued })
    }

    /// Refuses a template that does not write what is to be continued.
    pub(super) fn check(&self, source: &str) -> Result<()> {
        match &self.continued {
            Some(c) if !c.fields.iter().any(|f| source.contains(f.as_str())) => Err(Error::invalid(format!(
                "continue_final_message: the chat template does not read {:?}",
                c.fields[0]
            ))),
            _ => Ok(()),
        }
    }

    /// The prompt: of a continued message without what the template wrote behind it.
    pub(super) fn finish(&self, mut rendered: String) -> Result<String> {
        let Some(continued) = &self.continued else { return Ok(rendered) };
        let at = rendered.rfind(TAG.trim_end()).filter(|_| rendered.contains(continued.text.trim()));
        let Some(at) = at else {
            return Err(Error::invalid(
                "continue_final_message: the final message does not appear in the rendered chat; the template changes it",
            ));
        };
        let whole = rendered[at..].starts_with(TAG);
        rendered.truncate(if whole { at } else { rendered[..at].trim_end().len() });
        Ok(rendered)
    }
}

impl Continued {
    /// Writes the tag behind the text of the final message.
    fn mark(messages: &mut [Value], field: &str) -> Result<Self> {
        let missing =
            || Error::invalid(format!("continue_final_message: the final message has no text under {field:?}"));
        let last = messages.last_mut().and_then(Value::as_object_mut).ok_or_else(missing)?;
        let whole = last.get(field).cloned().ok_or_else(missing)?;
        let same = |name: &&&str| REASONING.contains(&field) && last.get(**name) == Some(&whole);
        let mut fields: Vec<String> = REASONING.iter().filter(same).map(|n| (*n).to_owned()).collect();
        if fields.is_empty() {
            fields.push(field.to_owned());
        }
        let text = match &whole {
            Value::String(text) => {
                fields.iter().for_each(|f| drop(last.insert(f.clone(), format!("{text}{TAG}").into())));
                text.clone()
            }
            Value::Array(parts) => {
                let place = parts.iter().rposition(|p| p["text"].is_string()).ok_or_else(missing)?;
                let text = parts[place]["text"].as_str().unwrap_or_default().to_owned();
                last[field][place]["text"] = format!("{text}{TAG}").into();
                text
            }
            _ => return Err(missing()),
        };
        Ok(Self { fields, text })
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    let shown = value.to_string();
    let shown = clipped(&shown, 100);
    Error::invalid(format!("chat key {key:?} is {shown}; expected {expected}"))
}

fn messages(given: Option<&Value>) -> Result<Vec<Value>> {
    let Some(Value::Array(messages)) = given else {
        return Err(Error::invalid(
            "chat key \"messages\" is missing or no array; expected [{\"role\": ..., \"content\": ...}]",
        ));
    };
    if messages.is_empty() {
        return Err(Error::invalid("chat key \"messages\" is empty; expected at least one message"));
    }
    if let Some(i) = messages.iter().position(|m| !m["role"].is_string()) {
        return Err(Error::invalid(format!("messages[{i}] has no role; expected {{\"role\": ..., \"content\": ...}}")));
    }
    Ok(messages.iter().filter_map(Value::as_object).map(message).collect())
}

/// A key without a value counts as absent, because that is what templates can handle.
fn message(given: &Map<String, Value>) -> Value {
    let mut message: Map<_, _> =
        given.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(thought) = REASONING.iter().find_map(|name| message.get(*name)).cloned() {
        let mut known = Map::from_iter([(REASONING[1].to_owned(), thought.clone())]);
        known.extend(message);
        known.insert(REASONING[0].to_owned(), thought);
        message = known;
    }
    message.into()
}

fn objects(key: &str, given: Option<&Value>) -> Result<Value> {
    match given {
        None | Some(Value::Null) => Ok(Value::Null),
        Some(Value::Array(list)) => match list.iter().position(|v| !v.is_object()) {
            Some(i) => Err(wrong(&format!("{key}[{i}]"), &list[i], "an object")),
            None => Ok(list.clone().into()),
        },
        Some(other) => Err(wrong(key, other, "an array of objects or null")),
    }
}

/// Further variables.
fn more(given: Option<&Value>) -> Result<Map<String, Value>> {
    let Some(given) = given else { return Ok(Map::new()) };
    let Value::Object(more) = given else {
        return Err(wrong("chat_template_kwargs", given, "an object"));
    };
    if let Some(key) = more.keys().find(|k| k.starts_with(RESERVED)) {
        return Err(Error::invalid(format!("chat_template_kwargs key {key:?} is reserved")));
    }
    // Else it would replace what was checked.
    match more.keys().find(|k| KEYS.contains(&k.as_str())) {
        Some(key) => Err(Error::invalid(format!(
            "chat_template_kwargs key {key:?} is a key of the chat itself; put it beside \"messages\""
        ))),
        None => Ok(more.clone()),
    }
}
