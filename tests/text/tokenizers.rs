//! Tokenizers of several families, and what the files beside tokenizer.json make of one, against the reference
//! (tests/text/families.py).

use crate::{ids, read, streamed};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use yinian::base::ErrorKind;
use yinian::text::{ChatTemplate, ShowSpecial, SpecialTokens, TextModel};

/// A directory with these files; objects are written as JSON, `change` is what becomes different in tokenizer.json.
fn directory(tokenizer: &Value, files: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = tokenizer.clone();
    for (name, content) in files.as_object().unwrap() {
        if name == "change" {
            tokenizer.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
            continue;
        }
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content.as_str().map_or_else(|| content.to_string(), str::to_owned)).unwrap();
    }
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

fn open(dir: &Path) -> TextModel {
    TextModel::open(dir, None, None).unwrap()
}

/// Each case is a text, its ids with and without special tokens, and their text without and with special tokens.
fn check(name: &str, model: &TextModel, cases: &Value) -> usize {
    let t = &model.tokenizer;
    for case in cases.as_array().unwrap() {
        let (text, with) = (case[0].as_str().unwrap(), ids(&case[1]));
        assert_eq!(t.encode(text, SpecialTokens::Add).unwrap(), with, "{name}: {text:?}");
        assert_eq!(t.encode(text, SpecialTokens::Omit).unwrap(), ids(&case[2]), "{name}: {text:?}");
        assert_eq!(t.decode(&with, ShowSpecial::Hide).unwrap(), case[3], "{name}: {text:?}");
        assert_eq!(t.decode(&with, ShowSpecial::Show).unwrap(), case[4], "{name}: {text:?}");
        assert_eq!(streamed(&Arc::clone(t), &[], &with).concat(), case[3], "{name}: {text:?}");
    }
    cases.as_array().unwrap().len()
}

#[test]
fn families_agree_with_the_reference() {
    let all = read("families.json");
    let families = all["families"].as_object().unwrap();
    assert!(families.len() >= 6);
    for (name, family) in families {
        let dir = directory(&family["tokenizer"], &json!({"tokenizer_config.json": all["specials"]}));
        assert!(check(name, &open(dir.path()), &family["cases"]) > 10);
    }
}

#[test]
fn files_beside_the_tokenizer_count_as_in_the_reference() {
    let all = read("settings.json");
    let settings = all["settings"].as_array().unwrap();
    assert!(settings.len() >= 38);
    for setting in settings {
        let (base, files) = (setting["base"].as_str().unwrap(), &setting["files"]);
        let dir = directory(&read(&format!("{base}/tokenizer.json")), files);
        let mut model = open(dir.path());
        check(&format!("{base} {files}"), &model, &setting["cases"]);
        if model.chat.is_none() {
            let shown = all["template"].as_str().unwrap();
            model = TextModel::open(dir.path(), None, Some(shown)).unwrap();
        }
        for (tools, rendered) in
            [Value::Null, json!([{"type": "function"}])].iter().zip(setting["chats"].as_array().unwrap())
        {
            let mut chat = all["chat"].clone();
            chat["tools"] = tools.clone();
            chat["add_generation_prompt"] = json!(false);
            assert_eq!(model.render(&chat).unwrap(), *rendered, "{base} {files}");
        }
    }
}

/// Where the reference goes on with other ids than the files state, or without what they ask for.
#[test]
fn settings_that_cannot_be_met_are_refused() {
    let tokenizer = read("byte_bpe/tokenizer.json");
    let token = |content: &str| json!({"content": content, "special": true});
    for (file, content, says) in [
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"9000": token("<|x|>")}}), "the id 9000"),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"5": token("<s>")}}), "the id 5"),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"x": token("<|x|>")}}), "the id \"x\""),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"600": {"special": true}}}), "without \"content\""),
        ("tokenizer_config.json", json!({"added_tokens_decoder": []}), "added_tokens_decoder"),
        ("tokenizer_config.json", json!({"extra_special_tokens": 7}), "extra_special_tokens"),
        ("tokenizer_config.json", json!({"extra_special_tokens": [7]}), "extra_special_tokens"),
        ("tokenizer_config.json", json!({"bos_token": 7}), "bos_token"),
        ("tokenizer_config.json", json!({"split_special_tokens": "yes"}), "split_special_tokens"),
        ("tokenizer_config.json", json!([]), "not a JSON object"),
        ("tokenizer_config.json", json!({"chat_template": [{"name": "rag", "template": "x"}]}), "\"rag\""),
        ("tokenizer_config.json", json!({"chat_template": [{"name": "default"}]}), "no text"),
        ("special_tokens_map.json", json!({"eos_token": {}}), "eos_token"),
        ("added_tokens.json", json!({"<|x|>": "y"}), "<|x|>"),
        ("added_tokens.json", json!({"<|x|>": 9000}), "the id 9000"),
    ] {
        let files = json!({file: content});
        let dir = directory(&tokenizer, &files);
        let e = TextModel::open(dir.path(), None, None).unwrap_err();
        assert!(e.kind == ErrorKind::Invalid && e.message.contains(says), "{files}: {e:?}");
    }
    let words = &read("families.json")["families"]["word_pieces"]["tokenizer"];
    let dir = directory(words, &json!({"tokenizer_config.json": {"clean_up_tokenization_spaces": true}}));
    let e = TextModel::open(dir.path(), None, None).unwrap_err();
    assert!(e.kind == ErrorKind::Unsupported && e.message.contains("clean_up_tokenization_spaces"), "{e:?}");
}

/// The template that a list holds for tools is one like any other.
#[test]
fn a_template_for_tools_is_checked_when_it_is_read() {
    let e = ChatTemplate::new("x", Default::default()).unwrap().with_tool_use("{% if %}").unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.message.contains("does not compile"), "{e:?}");
}
