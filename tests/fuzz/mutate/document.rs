//! Changes of JSON documents: the result is JSON again.

use super::{Dictionary, bytes};
use serde_json::{Map, Value, json};
use yinian::base::rng::SplitMix64;

/// Changes a few values.
pub(crate) fn mutate(rng: &mut SplitMix64, value: &mut Value, corpus: &[Value], dictionary: &Dictionary) {
    for _ in 0..rng.below(4) {
        let n = rng.below(count(value));
        if let Some(node) = nth(value, &mut { n }) {
            change(rng, node, corpus, dictionary);
        }
    }
}

fn any<'a, T>(rng: &mut SplitMix64, of: &'a [T]) -> &'a T {
    &of[rng.below(of.len() as u64) as usize]
}

/// Values in a document, itself included.
fn count(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<u64>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<u64>(),
        _ => 1,
    }
}

fn nth<'a>(value: &'a mut Value, n: &mut u64) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, n)),
        Value::Object(map) => map.values_mut().find_map(|item| nth(item, n)),
        _ => None,
    }
}

/// A value at one of the borders of something.
fn scalar(rng: &mut SplitMix64, words: &[String]) -> Value {
    const WHOLE: [i64; 14] = [0, 1, -1, 2, 3, 7, 16, 64, 255, 257, 65_536, i64::MAX, i64::MIN, -1000];
    const REAL: [f64; 9] = [0.5, -0.5, -0.0, 1e308, -1e308, 5e-324, 1e-40, 1e39, 1.000_000_1];
    match rng.below(10) {
        0 | 1 => json!(any(rng, &WHOLE)),
        2 => json!((1_u64 << rng.below(64)).wrapping_sub(rng.below(2))),
        3 => json!(any(rng, &REAL)),
        4 => json!(rng.below(300)),
        5 => any(rng, &[json!(null), json!(true), json!(false), json!([]), json!({}), json!(u64::MAX)]).clone(),
        6 => json!(any(rng, &["", "\0", "NaN", "0", "\u{10FFFF}", "é🦊", "\u{feff}", "\\", "../x", "/"])),
        7 => json!("x".repeat(rng.below(3000) as usize)),
        _ if words.is_empty() => json!(null),
        _ => json!(any(rng, words)),
    }
}

fn change(rng: &mut SplitMix64, node: &mut Value, corpus: &[Value], dictionary: &Dictionary) {
    match rng.below(8) {
        0 | 1 => *node = scalar(rng, &dictionary.words),
        2 => *node = transplant(rng, corpus),
        3 if rng.below(4) == 0 => wrap(rng, node, dictionary),
        _ => match node {
            Value::Object(map) => change_map(rng, map, corpus, dictionary),
            Value::Array(items) => change_list(rng, items, corpus, &dictionary.words),
            Value::String(text) => change_text(rng, text, corpus, dictionary),
            Value::Number(n) => *node = near(rng, n),
            _ => *node = scalar(rng, &dictionary.words),
        },
    }
}

/// Any part of any document.
fn transplant(rng: &mut SplitMix64, corpus: &[Value]) -> Value {
    let mut donor = any(rng, corpus).clone();
    let n = rng.below(count(&donor));
    nth(&mut donor, &mut { n }).map_or(Value::Null, |v| v.take())
}

/// Deeper, sometimes deeper than a parser goes.
fn wrap(rng: &mut SplitMix64, node: &mut Value, dictionary: &Dictionary) {
    let depth = any(rng, &[1, 2, 30, 110, 126, 127, 128, 140]);
    for _ in 0..*depth {
        let inner = node.take();
        *node = match rng.below(2) {
            0 => json!([inner]),
            _ => Value::Object(Map::from_iter([(key(rng, dictionary), inner)])),
        };
    }
}

fn key(rng: &mut SplitMix64, dictionary: &Dictionary) -> String {
    if dictionary.keys.is_empty() || rng.below(10) == 0 {
        return any(rng, &["", "\0", "a", "0", "-1", "é", "4294967296"]).to_string();
    }
    let mut key = any(rng, &dictionary.keys).clone();
    if rng.below(10) == 0 {
        key.push('s');
    }
    key
}

fn change_map(rng: &mut SplitMix64, map: &mut Map<String, Value>, corpus: &[Value], dictionary: &Dictionary) {
    let old = map.keys().nth(rng.below(map.len() as u64) as usize).cloned();
    match (rng.below(4), old) {
        (0, Some(old)) => drop(map.shift_remove(&old)),
        (1, Some(old)) => {
            let value = map.shift_remove(&old).unwrap_or_default();
            map.insert(key(rng, dictionary), value);
        }
        (2, _) => drop(map.insert(key(rng, dictionary), transplant(rng, corpus))),
        _ => drop(map.insert(key(rng, dictionary), scalar(rng, &dictionary.words))),
    }
}

fn change_list(rng: &mut SplitMix64, items: &mut Vec<Value>, corpus: &[Value], words: &[String]) {
    let at = rng.below(items.len() as u64) as usize;
    match rng.below(5) {
        0 if !items.is_empty() => drop(items.remove(at)),
        1 if !items.is_empty() => {
            let item = items[at].clone();
            let most = 20_000 / item.to_string().len().max(10);
            items.extend(std::iter::repeat_n(item, rng.below(most as u64) as usize));
        }
        2 if !items.is_empty() => {
            let other = rng.below(items.len() as u64) as usize;
            items.swap(at, other);
        }
        3 => items.push(transplant(rng, corpus)),
        _ => items.push(scalar(rng, words)),
    }
}

/// Text, unless it is a JSON document itself.
fn change_text(rng: &mut SplitMix64, text: &mut String, corpus: &[Value], dictionary: &Dictionary) {
    let inner = serde_json::from_str::<Value>(text).ok().filter(|v| v.is_object() || v.is_array());
    if let Some(mut inner) = inner.filter(|_| rng.below(8) != 0) {
        let n = rng.below(count(&inner));
        if let Some(node) = nth(&mut inner, &mut { n }) {
            change(rng, node, corpus, dictionary);
        }
        *text = inner.to_string();
        return;
    }
    let mut raw = std::mem::take(text).into_bytes();
    bytes::mutate(rng, &mut raw, b"<s>\0\n", &dictionary.words);
    *text = String::from_utf8_lossy(&raw).into_owned();
}

fn near(rng: &mut SplitMix64, n: &serde_json::Number) -> Value {
    match (n.as_i64(), n.as_f64()) {
        (Some(n), _) => match rng.below(6) {
            0 => json!(n.saturating_add(1)),
            1 => json!(n.saturating_sub(1)),
            2 => json!(n.saturating_mul(2)),
            3 => json!(n.saturating_neg()),
            4 => json!(n / 2),
            _ => json!(n as f64 + 0.5),
        },
        (None, Some(x)) => json!(x * any(rng, &[-1.0, 2.0, 0.5, 1e10, 0.0, 1e-50])),
        _ => json!(0),
    }
}
