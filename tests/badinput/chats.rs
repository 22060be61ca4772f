//! Chats through the C API: what a host may send, and what comes of it.

use crate::{LIMIT, demo_model};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;
use yinian::ffi::*;

const PLAIN: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{{ tools | length if tools }}";
const QUOTED: &str = "{{ messages | tojson }}";

fn bytes(b: &[u8]) -> yn_bytes {
    yn_bytes { data: b.as_ptr(), len: b.len() }
}

/// A tokenizer handle of the demo model, with its own template or another.
struct Model(yn_tokenizer);

impl Model {
    fn with(template: Option<&str>) -> Self {
        let dir = template.map(|text| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::copy(demo_model().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
            std::fs::write(dir.path().join("chat_template.jinja"), text).unwrap();
            dir
        });
        let demo = demo_model();
        let path: &Path = dir.as_ref().map_or(demo.as_path(), |d| d.path());
        let mut tokenizer = yn_tokenizer { id: 0 };
        // SAFETY: the path is text that lives, the handle writable, and no error is wanted.
        let status = unsafe {
            yn_tokenizer_open(bytes(path.to_str().unwrap().as_bytes()), &mut tokenizer, std::ptr::null_mut())
        };
        assert_eq!(status, YN_OK);
        Self(tokenizer)
    }

    fn render(&self, chat: &[u8]) -> Result<Vec<u8>, (yn_status, String)> {
        let mut err = yn_error { status: 0, flags: 0, message: [0; 504] };
        // SAFETY: the chat lives, the buffer and the error are writable; what comes back is read within its length and freed.
        unsafe {
            let mut buf: yn_buf = std::mem::zeroed();
            let status = yn_chat_render(self.0, bytes(chat), &mut buf, &mut err);
            if status != YN_OK {
                let text: Vec<u8> = err.message.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
                return Err((status, String::from_utf8(text).unwrap()));
            }
            let text = std::slice::from_raw_parts(buf.data, buf.len).to_vec();
            yn_buf_free(&mut buf);
            Ok(text)
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: always safe to call.
        unsafe { yn_tokenizer_free(self.0) };
    }
}

/// What must come of a chat: a text, so much of it, or a refusal that says this.
enum Comes {
    Text(String),
    Length(usize),
    Refusal(&'static str),
}
use Comes::{Length, Refusal, Text};

fn text(t: &str) -> Comes {
    Text(t.to_owned())
}

fn user(content: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": content}]})
}

/// Of an odd shape, for a template that writes role and content of each message.
fn shapes() -> Vec<(Vec<u8>, Comes)> {
    let mut table: Vec<(Vec<u8>, Comes)> = [
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), text("wizard:x\n")),
        (json!({"messages": [{"role": "", "content": ""}]}), text(":\n")),
        (json!({"messages": [{"role": "user"}]}), text("user:\n")),
        (json!({"messages": [{"role": "user", "content": null}]}), text("user:\n")),
        (user(&json!(7)), text("user:7\n")),
        (user(&json!(1e16)), text("user:1e+16\n")),
        (user(&json!(u64::MAX)), text("user:18446744073709551615\n")),
        (user(&json!(true)), text("user:True\n")),
        (user(&json!({})), text("user:{}\n")),
        (
            user(&json!([{"type": "text", "text": "it's"}, null])),
            text("user:[{'type': 'text', 'text': \"it's\"}, None]\n"),
        ),
        (user(&json!("a\u{0}b")), text("user:a\0b\n")),
        (user(&json!("{{ 7 * 7 }}{% if %}{#")), text("user:{{ 7 * 7 }}{% if %}{#\n")),
        (user(&json!("\u{feff}\u{202e}<|end|>\r\n")), text("user:\u{feff}\u{202e}<|end|>\r\n\n")),
        (json!({"messages": [{"role": "user", "content": "x", "a\u{0}": 1, "": 2, "__yn_kept": 3}]}), text("user:x\n")),
        (json!({"messages": [{"role": "u", "content": "x"}], "tools": []}), text("u:x\n")),
        (json!({"messages": [{"role": "u", "content": "x"}], "tools": [{}, {"type": 7}]}), text("u:x\n2")),
        (json!({"messages": [{"role": "u", "content": "x"}], "tools": {}}), Refusal("\"tools\"")),
        (json!({"messages": [{"role": "u", "content": "x"}], "tools": ["f"]}), Refusal("tools[0]")),
        (json!({"messages": [{"role": "u", "content": "x"}], "documents": "d"}), Refusal("\"documents\"")),
        (json!({"messages": [{"content": "x"}]}), Refusal("messages[0]")),
        (json!({"messages": [{"role": "u", "content": "x"}, {"role": 7}]}), Refusal("messages[1]")),
        (json!({"messages": [{"role": "u", "content": "x"}, "hello"]}), Refusal("messages[1]")),
        (json!({"messages": []}), Refusal("empty")),
        (json!({"messages": "hello"}), Refusal("\"messages\"")),
        (json!({"messages": {"role": "u"}}), Refusal("\"messages\"")),
        (json!({}), Refusal("\"messages\"")),
        (json!([]), Refusal("object")),
        (json!(null), Refusal("object")),
        (json!({"messages": [{"role": "u", "content": "x"}], "model": "m"}), Refusal("\"model\"")),
        (json!({"messages": [{"role": "u"}], "chat_template_kwargs": {"messages": []}}), Refusal("beside")),
        (json!({"messages": [{"role": "u"}], "chat_template_kwargs": {"__yn_kept": 1}}), Refusal("reserved")),
        (json!({"messages": [{"role": "u"}], "chat_template_kwargs": [1]}), Refusal("chat_template_kwargs")),
        (json!({"messages": [{"role": "u"}], "add_generation_prompt": "yes"}), Refusal("add_generation_prompt")),
        (json!({"messages": [{"role": "u"}], "continue_final_message": true}), Refusal("continue_final_message")),
        (json!({"messages": [{"role": "u"}], "continue_final_message": 1}), Refusal("continue_final_message")),
    ]
    .into_iter()
    .map(|(chat, comes)| (chat.to_string().into_bytes(), comes))
    .collect();
    let raw: [(&[u8], Comes); 10] = [
        (b"", Refusal("not JSON")),
        (b"{", Refusal("not JSON")),
        (b"{\"messages\": [{\"role\": \"u\", \"content\": \"a\0b\"}]}", Refusal("not JSON")),
        (b"{\"messages\": [{\"role\": \"u\", \"content\": \"\xff\"}]}", Refusal("not JSON")),
        (b"{\"messages\": [{\"role\": \"u\", \"content\": \"\\ud800\"}]}", Refusal("not JSON")),
        (b"{\"messages\": [{\"role\": \"u\", \"content\": 1e999}]}", Refusal("not JSON")),
        (b"{\"messages\": [{\"role\": \"u\", \"content\": NaN}]}", Refusal("not JSON")),
        (b"\xef\xbb\xbf{\"messages\": [{\"role\": \"u\"}]}", Refusal("not JSON")),
        (b"{\"messages\": [{\"role\": \"u\", \"content\": \"\\u0000\"}]}", text("u:\0\n")),
        (b"{\"messages\": [{\"role\": \"u\", \"role\": \"v\", \"content\": \"x\"}]}", Refusal("twice")),
    ];
    table.extend(raw.map(|(chat, comes)| (chat.to_vec(), comes)));
    for (levels, comes) in [(100, Length(206)), (1000, Refusal("not JSON")), (1_000_000, Refusal("not JSON"))] {
        let deep = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        table.push((format!("{{\"messages\": [{{\"role\": \"user\", \"content\": {deep}}}]}}").into_bytes(), comes));
    }
    table
}

/// As large as is taken, and larger.
fn sizes() -> Vec<(&'static str, Vec<u8>, Comes)> {
    let one = |content: String| user(&content.into()).to_string().into_bytes();
    let many = |n: usize| {
        let message = json!({"role": "user", "content": "hi"});
        json!({"messages": vec![message; n]}).to_string().into_bytes()
    };
    let tools =
        json!({"messages": [{"role": "u", "content": "x"}], "tools": vec![json!({"type": "function"}); 100_000]});
    vec![
        (PLAIN, one("é".repeat(5_000_000)), Length(10_000_006)),
        (PLAIN, one("x".repeat(16_000_000)), Length(16_000_006)),
        (PLAIN, one("x".repeat(17_000_000)), Refusal("chat_json")),
        (PLAIN, one("\u{0}".repeat(2_000_000)), Length(2_000_006)),
        (PLAIN, many(100_000), Length(800_000)),
        (PLAIN, tools.to_string().into_bytes(), Length(10)),
        (QUOTED, one("\"".repeat(5_000_000)), Length(10_000_000 + "[{\"role\": \"user\", \"content\": \"\"}]".len())),
        (QUOTED, one("\u{1}".repeat(2_700_000)), Length(6 * 2_700_000 + 33)),
        ("{{ messages | tojson }}{{ messages }}", one("x".repeat(10_000_000)), Refusal("more than 16777216 bytes")),
        (
            "{% for i in range(100) %}{{ messages | tojson | length }}{% endfor %}",
            one("x".repeat(10_000_000)),
            Refusal("fuel"),
        ),
    ]
}

/// The complaint about a row, if there is any.
fn judge(model: &Model, chat: &[u8], comes: &Comes) -> Option<String> {
    let start = Instant::now();
    let found = model.render(chat);
    let right = match (&found, comes) {
        (Ok(found), Text(wanted)) => found == wanted.as_bytes(),
        (Ok(found), Length(wanted)) => found.len() == *wanted,
        (Err((YN_E_INVALID, message)), Refusal(says)) => message.contains(says),
        _ => false,
    };
    let shown = found.map(|t| (t.len(), String::from_utf8_lossy(&t[..t.len().min(100)]).into_owned()));
    let chat = String::from_utf8_lossy(&chat[..chat.len().min(100)]).into_owned();
    (!right || start.elapsed() > LIMIT).then(|| format!("{chat}: {shown:?} after {:?}", start.elapsed()))
}

#[test]
fn chats_of_any_shape() {
    let (model, table) = (Model::with(Some(PLAIN)), shapes());
    assert!(table.len() > 45);
    let wrong: Vec<String> = table.iter().filter_map(|(chat, comes)| judge(&model, chat, comes)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

#[test]
fn chats_of_any_size() {
    let table = sizes();
    let judged = table.iter().filter_map(|(source, chat, comes)| judge(&Model::with(Some(source)), chat, comes));
    let wrong: Vec<String> = judged.collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

/// Roles are the template's business, and so is what it says of them.
#[test]
fn a_template_s_own_refusals_reach_the_host() {
    let model = Model::with(None);
    let wizard = json!({"messages": [{"role": "wizard", "content": "x"}]}).to_string();
    assert!(judge(&model, wizard.as_bytes(), &Refusal("Unknown role: wizard")).is_none());
    assert!(model.render(user(&json!("hi")).to_string().as_bytes()).is_ok());
}
