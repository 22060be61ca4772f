//! Chat templates, rendered as Hugging Face does: Jinja with trimmed blocks, Python's methods and a few functions.

use super::deep::on_deep_stack;
use super::{date, json, syntax, values};
use crate::base::config::nearest;
use crate::base::error::clipped;
use crate::base::{Error, Result};
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind as JinjaErrorKind, State};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;

/// Special tokens by the names templates use (`bos_token`, `eos_token`, ...).
pub type SpecialMap = BTreeMap<String, String>;

/// Instructions one rendering may take: enough for long conversations, an end for a loop without one.
const FUEL: u64 = 20_000_000;
const MAX_OUTPUT_BYTES: usize = 16 << 20;
const MAX_SOURCE_BYTES: usize = 1 << 20;
const RECURSION: usize = 64;
/// The keys of a chat object.
const KEYS: [&str; 7] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "date_string",
];

/// A compiled chat template. Immutable; any thread may render.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    specials: SpecialMap,
}

impl ChatTemplate {
    pub fn new(source: &str, specials: SpecialMap) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::invalid(format!(
                "the chat template has {} bytes; at most {MAX_SOURCE_BYTES} are compiled",
                source.len()
            )));
        }
        on_deep_stack(|| Ok(Self { env: compile(source).map_err(broken)?, specials }))
    }

    /// Renders `{"messages": [...]}` with, optionally, `tools`, `documents`, `add_generation_prompt` (true unless said otherwise)
    /// and further variables under `chat_template_kwargs`.
    pub fn render(&self, chat: &Value) -> Result<String> {
        on_deep_stack(|| {
            let variables = self.variables(chat)?;
            let template = self.env.get_template("chat").map_err(broken)?;
            let mut text = Bounded(Vec::new());
            template.render_captured_to(Jinja::from(Serde(variables)), &mut text).map_err(|e| {
                Error::invalid(format!("the chat template does not render these messages: {}", describe(&e)))
            })?;
            String::from_utf8(text.0).map_err(|e| Error::internal(format!("the rendered chat is not UTF-8: {e}")))
        })
    }

    fn variables(&self, chat: &Value) -> Result<serde_json::Map<String, Value>> {
        let Value::Object(chat) = chat else {
            return Err(Error::invalid("the chat is not a JSON object; expected {\"messages\": [...]}"));
        };
        if let Some(key) = chat.keys().find(|k| !KEYS.contains(&k.as_str())) {
            let hint = nearest(key, KEYS.into_iter()).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
            return Err(Error::invalid(format!(
                "chat key {key:?} is unknown{hint} (variables of a template go under \"chat_template_kwargs\")"
            )));
        }
        check_messages(chat.get("messages"))?;
        let mut variables: serde_json::Map<_, _> =
            self.specials.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        variables.insert("add_generation_prompt".to_owned(), true.into());
        variables.insert("tools".to_owned(), Value::Null);
        variables.insert("documents".to_owned(), Value::Null);
        for (key, value) in chat {
            match (key.as_str(), value) {
                ("chat_template_kwargs", Value::Object(more)) => {
                    if let Some(key) = more.keys().find(|k| k.starts_with(values::RESERVED)) {
                        return Err(Error::invalid(format!("chat_template_kwargs key {key:?} is reserved")));
                    }
                    // Else it would replace what was checked, or not, by the order of the keys.
                    if let Some(key) = more.keys().find(|k| KEYS.contains(&k.as_str())) {
                        return Err(Error::invalid(format!(
                            "chat_template_kwargs key {key:?} is a key of the chat itself; put it beside \"messages\""
                        )));
                    }
                    variables.extend(more.clone());
                }
                ("chat_template_kwargs", _) => return Err(Error::invalid("chat_template_kwargs is not an object")),
                ("continue_final_message", Value::Bool(false)) => {}
                ("continue_final_message", _) => {
                    return Err(Error::unsupported("chat key \"continue_final_message\" is not supported"));
                }
                ("add_generation_prompt", Value::Bool(_))
                | ("messages", _)
                | ("tools" | "documents", Value::Array(_) | Value::Null)
                | ("date_string", Value::String(_)) => drop(variables.insert(key.clone(), value.clone())),
                _ => {
                    let expected = match key.as_str() {
                        "add_generation_prompt" => "true or false",
                        "date_string" => "a string",
                        _ => "an array or null",
                    };
                    let value = clipped(&value.to_string(), 100).into_owned();
                    return Err(Error::invalid(format!("chat key {key:?} is {value}; expected {expected}")));
                }
            }
        }
        Ok(variables)
    }
}

fn compile(source: &str) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    env.set_syntax(syntax::config()?);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    values::install(&mut env)?;
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", |format: String| date::strftime_now(&format).map_err(invalid_operation));
    env.add_filter("tojson", tojson);
    env.add_template_owned("chat", syntax::prepare(source)?)?;
    Ok(env)
}

/// The rendered chat, as far as it may grow.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > MAX_OUTPUT_BYTES - self.0.len() {
            return Err(std::io::Error::other(format!("the rendered chat has more than {MAX_OUTPUT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn check_messages(messages: Option<&Value>) -> Result<()> {
    let Some(Value::Array(messages)) = messages else {
        return Err(Error::invalid(
            "chat key \"messages\" is missing or no array; expected [{\"role\": ..., \"content\": ...}]",
        ));
    };
    if messages.is_empty() {
        return Err(Error::invalid("chat key \"messages\" is empty; expected at least one message"));
    }
    match messages.iter().position(|m| !m["role"].is_string()) {
        Some(i) => {
            Err(Error::invalid(format!("messages[{i}] has no role; expected {{\"role\": ..., \"content\": ...}}")))
        }
        None => Ok(()),
    }
}

fn broken(e: minijinja::Error) -> Error {
    Error::invalid(format!("the chat template does not compile: {}", describe(&e)))
}

/// What failed, the cause beneath it, and where.
fn describe(e: &minijinja::Error) -> String {
    let mut what = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    let mut cause = std::error::Error::source(e);
    while let Some(inner) = cause {
        what = format!("{what}: {inner}");
        cause = inner.source();
    }
    e.line().map_or(what.clone(), |line| format!("{what} (line {line} of the template)"))
}

fn invalid_operation(message: String) -> minijinja::Error {
    minijinja::Error::new(JinjaErrorKind::InvalidOperation, message)
}

fn raise_exception(message: String) -> std::result::Result<Jinja, minijinja::Error> {
    Err(invalid_operation(message))
}

fn tojson(state: &mut State, value: Jinja, options: Kwargs) -> std::result::Result<Jinja, minijinja::Error> {
    values::walk(state, &value, None)?;
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for templates that spell out Hugging Face's defaults.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(|e| invalid_operation(e.to_string()))?;
    Ok(Jinja::from_safe_string(json::dumps(&value, indent.map(|n| n.min(16)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, chat: &Value) -> Result<String> {
        let specials = SpecialMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, specials)?.render(chat)
    }

    fn hello() -> Value {
        json!({"messages": [{"role": "user", "content": " Hi "}]})
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[{{ m.content.strip() }}]\n  {% endif %}\n\
                      {% endfor %}\n{% if add_generation_prompt %}>{% endif %}\n";
        assert_eq!(render(source, &hello()).unwrap(), "<s>[Hi]\n>");
        let mut quiet = hello();
        quiet["add_generation_prompt"] = json!(false);
        assert_eq!(render(source, &quiet).unwrap(), "<s>[Hi]\n");
    }

    #[test]
    fn values_print_as_in_python() {
        let source = "{{ true }} {{ none }} {{ tools }} {{ {'a': 'é<'} | tojson }} {{ messages | length }}";
        assert_eq!(render(source, &hello()).unwrap(), "True None None {\"a\": \"é<\"} 1");
    }

    #[test]
    fn generation_blocks_are_transparent() {
        let source = "a{%- generation %}\nb{% endgeneration -%}\n c";
        assert_eq!(render(source, &hello()).unwrap(), "abc");
    }

    #[test]
    fn failures_are_sentences() {
        for (source, chat, part) in [
            ("{{ raise_exception('roles must alternate') }}", hello(), "roles must alternate"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", hello(), "fuel"),
            ("{% if %}", hello(), "does not compile"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", hello(), "recursion"),
            ("x", json!({"messages": []}), "empty"),
            ("x", json!({"message": []}), "did you mean \"messages\""),
            ("x", json!({"messages": [{"content": "a"}]}), "messages[0]"),
            ("x", json!([]), "object"),
            ("x", json!({"messages": [{"role": "user"}], "add_generation_prompt": 1}), "add_generation_prompt"),
            ("x", json!({"messages": [{"role": "user"}], "tools": {"a": 1}}), "expected an array or null"),
            ("x", json!({"messages": [{"role": "user"}], "date_string": null}), "expected a string"),
            ("x", json!({"messages": [{"role": "user"}], "chat_template_kwargs": {"messages": []}}), "beside"),
        ] {
            let e = render(source, &chat).unwrap_err().message;
            assert!(e.contains(part), "{source}: {e}");
        }
    }
}
