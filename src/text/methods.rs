//! Methods of Python's strings, lists and dictionaries, where templates call them and the interpreter does not have them or has
//! them with another meaning. What is not here goes to `minijinja_contrib::pycompat`.

use super::python::{self, is_space};
use super::values::{ATTRIBUTE, namespace_type};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// Widest text that padding makes.
const MAX_WIDTH: usize = 1 << 16;

/// For `Environment::set_unknown_method_callback`.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == ATTRIBUTE {
        return attribute(value, args);
    }
    let known = match (value.as_str(), value.kind()) {
        (Some(text), _) => text_method(state, text, method, args)?,
        (_, ValueKind::Seq | ValueKind::Iterable) => list_method(value, method, args)?,
        (_, ValueKind::Map) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match known {
        Some(found) => Ok(found),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// An attribute that is called like a method of maps: a namespace has it, of a map it is the method.
fn attribute(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (name,): (&str,) = from_args(args)?;
    let namespace = value.as_object().is_some_and(|o| namespace_type().is_ok_and(|n| n == o.type_name()));
    if value.kind() == ValueKind::Map && !namespace {
        return Err(wrong(format!("`.{name}` is a method; write `.{name}()` to call it, `['{name}']` for the value")));
    }
    value.get_attr(name)
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(list.clone()))
        }
        "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let at = list.try_iter()?.position(|v| v == wanted);
            at.map(|i| Some(Value::from(i))).ok_or_else(|| wrong(format!("{} is not in list", python::repr(&wanted))))
        }
        _ => Ok(None),
    }
}

fn text_method(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let found = match method {
        "strip" | "lstrip" | "rstrip" => strip(text, method, args)?.into(),
        "split" | "rsplit" => {
            let (sep, max): (Option<Value>, Option<Value>) = named(args, ["sep", "maxsplit"])?;
            let max = max.map(i64::try_from).transpose()?.and_then(|n| usize::try_from(n).ok());
            split(text, sep.as_ref().filter(|s| !s.is_none()), max, method == "rsplit")?.into()
        }
        "splitlines" => {
            let (keep, _): (Option<Value>, Option<Value>) = named(args, ["keepends", ""])?;
            lines(text, keep.is_some_and(|k| k.is_true())).into()
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let found = if method == "partition" { text.split_once(sep) } else { text.rsplit_once(sep) };
            let parts = match (found, method) {
                (Some((head, tail)), _) => [head, sep, tail],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            Value::from(minijinja::value::Tuple::from(parts.map(Value::from).to_vec()))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => position(text, method, args)?,
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let cut = if method == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            cut.unwrap_or(text).into()
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            join(state, text, &items)?.into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "capitalize" => {
            let () = from_args(args)?;
            let mut rest = text.chars();
            rest.next().map_or(String::new(), |c| first(c) + &rest.as_str().to_lowercase()).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swap).collect::<String>().into()
        }
        "isdigit" => {
            let () = from_args(args)?;
            if text.chars().any(|c| c.is_numeric() && !c.is_ascii()) {
                return Err(wrong("isdigit of digits beyond ASCII is not supported"));
            }
            (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(text, method, args)?.into(),
        _ => return Ok(None),
    };
    Ok(Some(found))
}

/// Two optional arguments, by place or by name.
fn named(args: &[Value], names: [&str; 2]) -> Result<(Option<Value>, Option<Value>), Error> {
    let (args, more): (Rest<Value>, Kwargs) = from_args(args)?;
    let get = |i: usize| -> Result<Option<Value>, Error> {
        Ok(args.get(i).cloned().or(if names[i].is_empty() { None } else { more.get(names[i])? }))
    };
    let found = (get(0)?, get(1)?);
    more.assert_all_used()?;
    if args.len() > names.iter().filter(|n| !n.is_empty()).count() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    Ok(found)
}

fn strip<'a>(text: &'a str, method: &str, args: &[Value]) -> Result<&'a str, Error> {
    let (chars,): (Option<Value>,) = from_args(args)?;
    let chars = chars.filter(|c| !c.is_none());
    let chars = match &chars {
        None => None,
        Some(c) => Some(c.as_str().ok_or_else(|| wrong(format!("{method} takes a string")))?),
    };
    let of = |c: char| chars.map_or(is_space(c), |set| set.contains(c));
    let text = if method == "rstrip" { text } else { text.trim_start_matches(of) };
    Ok(if method == "lstrip" { text } else { text.trim_end_matches(of) })
}

fn split(text: &str, sep: Option<&Value>, max: Option<usize>, from_right: bool) -> Result<Vec<Value>, Error> {
    let most = max.map_or(usize::MAX, |m| m.saturating_add(1));
    let Some(sep) = sep else {
        return Ok(if from_right { words_from_right(text, most) } else { words(text, most) });
    };
    let sep = sep.as_str().ok_or_else(|| wrong("split takes a string"))?;
    if sep.is_empty() {
        return Err(wrong("empty separator"));
    }
    Ok(if from_right {
        let mut parts: Vec<Value> = text.rsplitn(most, sep).map(Value::from).collect();
        parts.reverse();
        parts
    } else {
        text.splitn(most, sep).map(Value::from).collect()
    })
}

/// The last of `most` words keeps the white space within.
fn words(text: &str, most: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if parts.len() + 1 == most {
            parts.push(rest.into());
            break;
        }
        let (word, behind) = rest.split_at(rest.find(is_space).unwrap_or(rest.len()));
        parts.push(word.into());
        rest = behind.trim_start_matches(is_space);
    }
    parts
}

fn words_from_right(text: &str, most: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if parts.len() + 1 == most {
            parts.push(rest.into());
            break;
        }
        let from = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(i, c)| i + c.len_utf8());
        parts.push(rest[from..].into());
        rest = rest[..from].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

fn lines(text: &str, keep: bool) -> Vec<Value> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let breaks = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
        let end = rest.find(breaks).unwrap_or(rest.len());
        let wide =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(0, char::len_utf8) };
        found.push(rest[..if keep { end + wide } else { end }].into());
        rest = &rest[end + wide..];
    }
    found
}

/// Places count characters; `start` and `end` cut as slices do.
fn position(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let length = text.chars().count() as i64;
    let place = |i: i64| (if i < 0 { i + length } else { i }).clamp(0, length);
    let (from, to) = (start.unwrap_or(0), end.map_or(length, place));
    let from = if from > length { length + 1 } else { place(from) };
    let byte = |i: i64| text.char_indices().nth(i as usize).map_or(text.len(), |(at, _)| at);
    let part = if from > to { None } else { Some(&text[byte(from)..byte(to)]) };
    if method == "count" {
        return Ok(part.map_or(0, |p| p.matches(what).count()).into());
    }
    let found = part.and_then(|p| {
        let at = if method.starts_with('r') { p.rfind(what) } else { p.find(what) };
        at.map(|at| from + p[..at].chars().count() as i64)
    });
    match found {
        Some(at) => Ok(at.into()),
        None if method.ends_with("index") => Err(wrong("substring not found")),
        None => Ok((-1).into()),
    }
}

/// `items` must be strings.
fn join(state: &State, separator: &str, items: &Value) -> Result<String, Error> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let text = item.as_str().ok_or_else(|| wrong(format!("join takes strings, not {}", item.kind())))?;
        state.consume_fuel(1 + (text.len() + separator.len()) as u64 / 64)?;
        out.push_str(if i > 0 { separator } else { "" });
        out.push_str(text);
    }
    Ok(out)
}

/// Upper case of a first letter: of the digraphs only the first half.
fn first(c: char) -> String {
    match c {
        '\u{1c4}'..='\u{1c6}' => "\u{1c5}".to_owned(),
        '\u{1c7}'..='\u{1c9}' => "\u{1c8}".to_owned(),
        '\u{1ca}'..='\u{1cc}' => "\u{1cb}".to_owned(),
        '\u{1f1}'..='\u{1f3}' => "\u{1f2}".to_owned(),
        c => {
            // "ß" begins "Ss".
            let mut upper = c.to_uppercase();
            upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect()
        }
    }
}

/// A letter behind anything but a letter begins a word.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let cased = c.is_lowercase() || c.is_uppercase() || !c.to_lowercase().eq([c]);
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.push_str(&if cased { first(c) } else { c.to_string() })
        }
        inside = cased;
    }
    out
}

fn pad(text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = if method == "zfill" { "0" } else { fill.unwrap_or(" ") };
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_WIDTH || fill.chars().count() != 1 {
        return Err(wrong(format!("{method} takes a width of at most {MAX_WIDTH} and one character")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        // As in CPython: of an odd rest the left gets more when the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, text) = match text.strip_prefix(['+', '-']) {
        Some(digits) if method == "zfill" => text.split_at(text.len() - digits.len()),
        _ => ("", text),
    };
    Ok(format!("{sign}{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}
