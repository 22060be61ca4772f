//! The `tojson` filter: JSON as Python's `json.dumps` writes it, which is what chat templates were written for.

use super::python;
use minijinja::value::{Kwargs, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Longest indentation of one level.
const MAX_INDENT: usize = 64;

/// How to write: Hugging Face's defaults unless the template says otherwise.
#[derive(Debug)]
pub(super) struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Style {
    /// From the arguments of the filter: ensure_ascii, indent, separators, sort_keys.
    pub(super) fn new(args: &[Value], more: &Kwargs) -> Result<Self, Error> {
        let get = |i: usize, name: &str| -> Result<Value, Error> {
            let named: Option<Value> = more.get(name)?;
            match (args.get(i), named) {
                (Some(_), Some(_)) => Err(wrong(format!("tojson has two values for {name}"))),
                (given, named) => Ok(given.cloned().or(named).unwrap_or_default()),
            }
        };
        let (ascii, indent) = (get(0, "ensure_ascii")?, get(1, "indent")?);
        let (separators, sorted) = (get(2, "separators")?, get(3, "sort_keys")?);
        more.assert_all_used()?;
        if args.len() > 4 {
            return Err(wrong("tojson has at most four arguments"));
        }
        let indent = match indent.kind() {
            ValueKind::None | ValueKind::Undefined => None,
            ValueKind::String => indent.as_str().map(str::to_owned),
            _ => Some(" ".repeat(i64::try_from(indent)?.clamp(0, MAX_INDENT as i64 + 1) as usize)),
        };
        if indent.as_ref().is_some_and(|i| i.len() > MAX_INDENT) {
            return Err(wrong(format!("tojson indents by at most {MAX_INDENT}")));
        }
        let (item, key) = match separators.kind() {
            ValueKind::None | ValueKind::Undefined => {
                (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
            }
            _ => {
                let both: Vec<Value> = separators.try_iter()?.collect();
                let [Some(item), Some(key)] = [0, 1].map(|i| both.get(i).and_then(Value::as_str)) else {
                    return Err(wrong("separators of tojson are two strings"));
                };
                (item.to_owned(), key.to_owned())
            }
        };
        Ok(Self { indent, item, key, ascii: ascii.is_true(), sorted: sorted.is_true() })
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Recurses; values are bounded where they are made.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write(value, style, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, style: &Style, level: usize, out: &mut String) -> Result<(), Error> {
    let object = match (value.kind(), value.as_object()) {
        (ValueKind::String, _) => {
            string(value.as_str().unwrap_or_default(), style.ascii, out);
            return Ok(());
        }
        (ValueKind::None | ValueKind::Bool | ValueKind::Number, _) => {
            out.push_str(&scalar(value));
            return Ok(());
        }
        (_, Some(object)) if object.repr() != ObjectRepr::Plain => object,
        (kind, _) => return Err(wrong(format!("{kind} is not JSON serializable"))),
    };
    if object.repr() != ObjectRepr::Map {
        let items: Vec<Value> = object.try_iter().into_iter().flatten().collect();
        return list(&items, ('[', ']'), (style, level), out, |item, out| write(item, style, level + 1, out));
    }
    let mut pairs: Vec<(Value, Value)> = object.try_iter_pairs().into_iter().flatten().collect();
    if style.sorted {
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
    }
    list(&pairs, ('{', '}'), (style, level), out, |(key, value), out| {
        match key.kind() {
            ValueKind::String => string(key.as_str().unwrap_or_default(), style.ascii, out),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => string(&scalar(key), style.ascii, out),
            kind => return Err(wrong(format!("{kind} is no key of JSON"))),
        }
        out.push_str(&style.key);
        write(value, style, level + 1, out)
    })
}

fn scalar(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => value.is_true().to_string(),
        _ => match python::number(value).as_str() {
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            "nan" => "NaN".to_owned(),
            number => number.to_owned(),
        },
    }
}

fn list<T>(
    items: &[T],
    (open, close): (char, char),
    (style, level): (&Style, usize),
    out: &mut String,
    mut each: impl FnMut(&T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let newline = |level: usize, out: &mut String| {
        if let (Some(indent), false) = (&style.indent, items.is_empty()) {
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i > 0 { &style.item } else { "" });
        newline(level + 1, out);
        each(item, out)?;
    }
    newline(level, out);
    out.push(close);
    Ok(())
}

fn string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\x08' => out.write_str("\\b"),
            '\x0c' => out.write_str("\\f"),
            c if c < ' ' => write!(out, "\\u{:04x}", c as u32),
            c if ascii && c > '~' => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|u| write!(out, "\\u{u:04x}")),
            c => out.write_char(c),
        };
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    fn shown(value: serde_json::Value, options: &[(&str, Value)]) -> String {
        let more = options.iter().map(|(k, v)| (*k, v.clone())).collect();
        dumps(&Value::from(Serde(value)), &Style::new(&[], &more).unwrap()).unwrap()
    }

    /// Expected texts are Python's.
    #[test]
    fn as_python_writes_it() {
        let v = serde_json::json!({"b": [1, 2.5, "é\"\n"], "a": {}, "c": [], "d": null, "e": true, "f": 1e-7});
        assert_eq!(
            shown(v.clone(), &[]),
            r#"{"b": [1, 2.5, "é\"\n"], "a": {}, "c": [], "d": null, "e": true, "f": 1e-07}"#
        );
        let v = serde_json::json!({"b": [1], "a": {}, "🦊": "\u{7f}"});
        assert_eq!(
            shown(v.clone(), &[("indent", 2.into())]),
            "{\n  \"b\": [\n    1\n  ],\n  \"a\": {},\n  \"🦊\": \"\u{7f}\"\n}"
        );
        let all = [("sort_keys", true.into()), ("ensure_ascii", true.into()), ("separators", vec![",", ":"].into())];
        assert_eq!(shown(v, &all), r#"{"a":{},"b":[1],"\ud83e\udd8a":"\u007f"}"#);
    }
}
