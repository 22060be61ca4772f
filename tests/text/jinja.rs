//! One template a line against the reference (tests/text/make.py), and what is refused although the reference has an answer.

use crate::{folder, read};
use serde_json::Value;
use yinian::base::ErrorKind;
use yinian::text::{ChatTemplate, SpecialMap};

fn specials() -> SpecialMap {
    let all = read("jinja/expected.json");
    all["specials"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect()
}

fn lines(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder().join("jinja").join(name)).unwrap();
    let plain = |line: &str| {
        let json = format!("\"{}\"", line.replace('"', "\\\"").replace("\\v", "\\u000b"));
        serde_json::from_str(&json).unwrap_or_else(|e| panic!("{line}: {e}"))
    };
    text.lines().map(plain).collect()
}

fn render(template: &str, chat: &Value) -> Result<String, yinian::base::Error> {
    ChatTemplate::new(template, specials())?.render(chat)
}

/// The complaint about a template, if there is any.
fn judge(template: &str, chat: &Value, expected: &Value) -> Option<String> {
    match (render(template, chat), expected.as_str()) {
        (Ok(text), Some(wanted)) if text == wanted => None,
        (Err(e), None) if matches!(e.kind, ErrorKind::Invalid | ErrorKind::Unsupported) => None,
        (found, _) => Some(format!("{template}\n  {found:?}\n  instead of {expected}")),
    }
}

fn check(table: &str, chats: &[Value], least: usize) {
    let (all, lines) = (read("jinja/expected.json"), lines(&format!("{table}.txt")));
    let expected = all[table].as_array().unwrap();
    assert_eq!(lines.len(), expected.len(), "make {table} again with make.py");
    let each = lines.iter().zip(expected).flat_map(|(template, outcomes)| {
        chats.iter().zip(outcomes.as_array().unwrap()).filter_map(|(chat, wanted)| judge(template, chat, wanted))
    });
    let wrong: Vec<String> = each.collect();
    assert!(lines.len() >= least, "{} templates", lines.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
}

fn chats() -> Vec<Value> {
    read("jinja/chats.json").as_array().unwrap().clone()
}

#[test]
fn expressions_are_python_s() {
    check("expressions", &chats()[..1], 500);
}

#[test]
fn statements_are_jinja_s() {
    check("statements", &chats()[1..], 140);
}

#[test]
fn what_is_not_supported_is_refused() {
    let table = lines("refused.txt");
    assert!(table.len() > 30);
    for template in table {
        for chat in chats() {
            let found = render(&template, &chat);
            assert!(found.as_ref().is_err_and(|e| e.kind == ErrorKind::Invalid), "{template}: {found:?}");
        }
    }
}

#[test]
fn final_messages_are_continued_as_in_the_reference() {
    let all = read("jinja/continued.json");
    let cases = all["cases"].as_array().unwrap();
    let judged = cases.iter().filter_map(|c| judge(c["template"].as_str().unwrap(), &c["chat"], &c["rendered"]));
    let wrong: Vec<String> = judged.collect();
    assert!(cases.len() > 15);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
