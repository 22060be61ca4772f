//! Chat templates, rendered as Hugging Face does: Jinja with trimmed blocks, Python's methods and a few functions.

use super::conversation::Conversation;
use super::deep::on_deep_stack;
use super::{date, filters, syntax, values};
use crate::base::{Error, Result};
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind as JinjaErrorKind};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;

/// Special tokens by the names templates use (`bos_token`, `eos_token`, ...).
pub type SpecialMap = BTreeMap<String, String>;

/// Instructions one rendering may take: enough for long conversations, an end for a loop without one.
const FUEL: u64 = 8_000_000;
const MAX_OUTPUT_BYTES: usize = 16 << 20;
const MAX_SOURCE_BYTES: usize = 1 << 20;
const RECURSION: usize = 200;
/// Names of the templates.
const DEFAULT: &str = "chat";
const TOOL_USE: &str = "tool_use";
/// A compiled chat template. Immutable; any thread may render.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    specials: SpecialMap,
}

impl ChatTemplate {
    pub fn new(source: &str, specials: SpecialMap) -> Result<Self> {
        let env = on_deep_stack(|| compile(source))?;
        Ok(Self { env, specials })
    }

    /// With another template for chats that have tools.
    pub fn with_tool_use(mut self, source: &str) -> Result<Self> {
        let prepared = on_deep_stack(|| prepare(source))?;
        let env = &mut self.env;
        on_deep_stack(move || env.add_template_owned(TOOL_USE, prepared).map_err(broken))?;
        Ok(self)
    }

    /// Renders `{"messages": [...]}` with, optionally, `tools`, `documents`, `add_generation_prompt` (true unless said otherwise),
    /// `continue_final_message` and further variables under `chat_template_kwargs`.
    pub fn render(&self, chat: &Value) -> Result<String> {
        on_deep_stack(|| {
            let specials = self.specials.iter().map(|(k, v)| (k.clone(), v.clone()));
            let mut conversation = Conversation::new(chat, specials)?;
            let tool_use = if conversation.has_tools { self.env.get_template(TOOL_USE).ok() } else { None };
            let template = tool_use.map_or_else(|| self.env.get_template(DEFAULT).map_err(broken), Ok)?;
            conversation.check(template.source())?;
            let variables = Jinja::from(Serde(std::mem::take(&mut conversation.variables)));
            let mut text = Bounded(Vec::new());
            template.render_captured_to(variables, &mut text).map_err(|e| {
                Error::invalid(format!("the chat template does not render these messages: {}", describe(&e)))
            })?;
            let text = String::from_utf8(text.0);
            conversation.finish(text.map_err(|e| Error::internal(format!("the rendered chat is not UTF-8: {e}")))?)
        })
    }
}

fn prepare(source: &str) -> Result<String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(Error::invalid(format!(
            "the chat template has {} bytes; at most {MAX_SOURCE_BYTES} are compiled",
            source.len()
        )));
    }
    syntax::prepare(source).map_err(broken)
}

fn compile(source: &str) -> Result<Environment<'static>> {
    let mut env = Environment::new();
    env.set_syntax(syntax::config().map_err(broken)?);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    values::install(&mut env).map_err(broken)?;
    filters::install(&mut env);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", |format: String| date::strftime_now(&format).map_err(invalid_operation));
    env.add_template_owned(DEFAULT, prepare(source)?).map_err(broken)?;
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
            ("x", json!({"messages": [{"role": "user"}], "tools": {"a": 1}}), "expected an array of objects or null"),
            ("x", json!({"messages": [{"role": "user"}], "tools": [1]}), "tools[0]"),
            ("x", json!({"messages": [{"role": "user"}], "date_string": null}), "expected a string"),
            ("x", json!({"messages": [{"role": "user"}], "chat_template_kwargs": {"messages": []}}), "beside"),
        ] {
            let e = render(source, &chat).unwrap_err().message;
            assert!(e.contains(part), "{source}: {e}");
        }
    }
}
