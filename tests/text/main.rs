//! Chat templates and tokenizers against the reference implementation (tests/text/make.py).

mod jinja;
mod tokenizers;

use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use yinian::base::Token;
use yinian::base::rng::SplitMix64;
use yinian::text::{ChatTemplate, Detokenizer, ShowSpecial, SpecialTokens, StopMatcher, Tokenizer};

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text")
}

pub(crate) fn read(path: &str) -> Value {
    let path = folder().join(path);
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; make it with make.py", path.display()));
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn chat_templates_render_as_in_the_reference() {
    let all = read("chat.json");
    let specials = all["specials"].as_object().unwrap();
    let specials = specials.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
    let mut wrong = Vec::new();
    let cases = all["cases"].as_array().unwrap();
    for case in cases {
        let (name, chat) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        let mut request = Map::from_iter([
            ("messages".to_owned(), all["chats"][chat].clone()),
            ("add_generation_prompt".to_owned(), case["add_generation_prompt"].clone()),
            ("chat_template_kwargs".to_owned(), case["kwargs"].clone()),
        ]);
        if case["tools"] == true {
            request.insert("tools".to_owned(), all["tools"].clone());
        }
        let source = all["templates"][name].as_str().unwrap();
        let found = ChatTemplate::new(source, Clone::clone(&specials)).and_then(|t| t.render(&Value::Object(request)));
        match (&found, case["rendered"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(_), None) => {}
            _ => wrong.push(format!("{name} of {chat}: {found:?}\n   instead of {:?}", case["rendered"])),
        }
    }
    assert!(cases.len() > 80, "{} cases", cases.len());
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

pub(crate) fn ids(v: &Value) -> Vec<Token> {
    v.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as Token).collect()
}

/// What a host reads when the tokens come one by one.
pub(crate) fn streamed(tokenizer: &Arc<Tokenizer>, prompt: &[Token], tokens: &[Token]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), prompt);
    let mut deltas = Vec::new();
    for token in tokens {
        let mut delta = String::new();
        detokenizer.push(*token, &mut delta).unwrap();
        deltas.push(delta);
    }
    let mut last = String::new();
    detokenizer.finish(&mut last);
    deltas.push(last);
    deltas
}

fn check_tokenizer(name: &str) {
    let tokenizer = Arc::new(Tokenizer::open(&folder().join(name)).unwrap());
    let all = read(&format!("{name}/expected.json"));
    for case in all["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let with = tokenizer.encode(text, SpecialTokens::Add).unwrap();
        assert_eq!(with, ids(&case["ids"]), "{name}: {text:?}");
        assert_eq!(tokenizer.encode(text, SpecialTokens::Omit).unwrap(), ids(&case["plain"]), "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&with, ShowSpecial::Hide).unwrap(), case["decoded"], "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&with, ShowSpecial::Show).unwrap(), case["shown"], "{name}: {text:?}");
    }
    for case in all["decode"].as_array().unwrap() {
        let tokens = ids(&case["ids"]);
        assert_eq!(tokenizer.decode(&tokens, ShowSpecial::Hide).unwrap(), case["decoded"], "{name}: {tokens:?}");
    }
}

#[test]
fn byte_level_tokenizers_agree_with_the_reference() {
    check_tokenizer("byte_bpe");
}

#[test]
fn metaspace_tokenizers_agree_with_the_reference() {
    check_tokenizer("metaspace");
}

/// Texts of make.py, cut into prompt and output anywhere: the stream is what decoding the whole adds to the prompt, and no
/// delta holds half a code point.
#[test]
fn streams_add_up_to_the_whole_text() {
    for name in ["byte_bpe", "metaspace"] {
        let tokenizer = Arc::new(Tokenizer::open(&folder().join(name)).unwrap());
        for case in read(&format!("{name}/expected.json"))["encode"].as_array().unwrap() {
            let tokens = ids(&case["ids"]);
            for cut in 0..=tokens.len() {
                let (prompt, output) = tokens.split_at(cut);
                let prompt_text = tokenizer.decode(prompt, ShowSpecial::Hide).unwrap();
                // Where a character is split by the cut there is no text to compare with.
                if prompt_text.ends_with('\u{FFFD}') {
                    continue;
                }
                let whole = tokenizer.decode(&tokens, ShowSpecial::Hide).unwrap();
                let Some(expected) = whole.strip_prefix(&prompt_text) else { continue };
                let deltas = streamed(&tokenizer, prompt, output);
                assert_eq!(deltas.concat(), expected, "{name}: {tokens:?} cut at {cut}");
                assert!(!deltas.iter().any(|d| d.contains('\u{FFFD}')), "{name}: half a code point in {deltas:?}");
            }
        }
    }
}

/// A byte-fallback run that is not UTF-8 as a whole decodes to replacement characters alone, those included that a stream has
/// long shown as text; everything else must be equal.
#[test]
fn streams_of_random_tokens_equal_decoding_the_whole() {
    let mut rng = SplitMix64(3);
    for (name, runs_fall_together) in [("byte_bpe", false), ("metaspace", true)] {
        let tokenizer = Arc::new(Tokenizer::open(&folder().join(name)).unwrap());
        let mut compared = 0;
        for _ in 0..4000 {
            let tokens = random_tokens(&tokenizer, &mut rng);
            let whole = tokenizer.decode(&tokens, ShowSpecial::Hide).unwrap();
            if runs_fall_together && whole.contains('\u{FFFD}') {
                continue;
            }
            assert_eq!(streamed(&tokenizer, &[], &tokens).concat(), whole, "{name}: {tokens:?}");
            compared += 1;
        }
        assert!(compared > 2000, "{name}: {compared} compared");
    }
}

/// Ids at random, or the ids of characters at random, most of which no tokenizer here has as a token.
fn random_tokens(tokenizer: &Tokenizer, rng: &mut SplitMix64) -> Vec<Token> {
    let n = 1 + rng.below(30);
    if rng.below(3) == 0 {
        return (0..n).map(|_| rng.below(tokenizer.vocab_size() as u64) as Token).collect();
    }
    let ranges = [(0x20, 0x7f), (0xa0, 0x500), (0x4e00, 0x9fff), (0x1f300, 0x1f700)];
    let mut any = || {
        let (from, to) = ranges[rng.below(4) as usize];
        char::from_u32(from + rng.below(u64::from(to - from)) as u32).unwrap_or(' ')
    };
    let text: String = (0..n).map(|_| any()).collect();
    tokenizer.encode(&text, SpecialTokens::Omit).unwrap()
}

/// Stop texts are cut at their first occurrence in the text, wherever the token borders are.
#[test]
fn stop_texts_are_cut_at_their_first_occurrence() {
    let mut rng = SplitMix64(5);
    let mut hits = 0;
    for name in ["byte_bpe", "metaspace"] {
        let tokenizer = Arc::new(Tokenizer::open(&folder().join(name)).unwrap());
        for case in read(&format!("{name}/expected.json"))["encode"].as_array().unwrap() {
            let tokens = ids(&case["ids"]);
            let deltas = streamed(&tokenizer, &[], &tokens);
            let text = deltas.concat();
            let chars: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            for _ in 0..20 {
                let from = rng.below(chars.len() as u64) as usize;
                let to = (from + 1 + rng.below(5) as usize).min(chars.len() - 1);
                if from >= to {
                    continue;
                }
                let stop = text[chars[from]..chars[to]].to_owned();
                let mut matcher = StopMatcher::new(vec!["never#".to_owned(), stop.clone()]);
                let mut out = String::new();
                let hit = deltas.iter().any(|d| matcher.push(d, &mut out).is_some());
                assert!(hit, "{name}: {stop:?} was not found in {text:?}");
                assert_eq!(out, text[..text.find(&stop).unwrap()], "{name}: {stop:?} in {text:?}");
                hits += 1;
            }
        }
    }
    assert!(hits > 300, "{hits} stop texts");
}

/// The demo model's template, tokenizer and files, as transformers reads them.
#[test]
fn the_demo_model_s_chats_render_and_tokenize_as_in_the_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = yinian::text::TextModel::open(&root.join("examples/demo_model"), None, None).unwrap();
    let all: Value = serde_json::from_slice(&std::fs::read(root.join("tests/golden/demo.json")).unwrap()).unwrap();
    for case in all["cases"].as_array().unwrap() {
        let chat = json!({"messages": case["messages"]});
        assert_eq!(text.render(&chat).unwrap(), case["rendered"], "{chat}");
        assert_eq!(text.encode_chat(&chat).unwrap(), ids(&case["prompt"]), "{chat}");
        let answer = text.tokenizer.decode(&ids(&case["greedy"]), ShowSpecial::Hide).unwrap();
        assert!(!answer.is_empty());
    }
}
