//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, which is what chat templates were written for.

use serde_json::Value;
use std::fmt::Write;

/// `indent` `None` is one line with `", "` and `": "`.
pub(super) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write(value, indent, 0, &mut out);
    out
}

fn write(value: &Value, indent: Option<usize>, level: usize, out: &mut String) {
    match value {
        Value::Array(items) => list(items.iter(), ('[', ']'), (indent, level), out, |item, out| {
            write(item, indent, level + 1, out);
        }),
        Value::Object(map) => list(map.iter(), ('{', '}'), (indent, level), out, |(key, item), out| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{}: ", Value::from(key.as_str()));
            write(item, indent, level + 1, out);
        }),
        scalar => {
            let _ = write!(out, "{scalar}");
        }
    }
}

fn list<T>(
    items: impl ExactSizeIterator<Item = T>,
    (open, close): (char, char),
    (indent, level): (Option<usize>, usize),
    out: &mut String,
    mut each: impl FnMut(T, &mut String),
) {
    let empty = items.len() == 0;
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        match indent {
            Some(n) => newline(n * (level + 1), out),
            None if i > 0 => out.push(' '),
            None => {}
        }
        each(item, out);
    }
    if let (Some(n), false) = (indent, empty) {
        newline(n * level, out);
    }
    out.push(close);
}

fn newline(spaces: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', spaces));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are Python's.
    #[test]
    fn as_python_writes_it() {
        let v = serde_json::json!({"a": [1, 2.5, "é\"\n"], "b": {}, "c": [], "d": null, "e": true});
        assert_eq!(dumps(&v, None), r#"{"a": [1, 2.5, "é\"\n"], "b": {}, "c": [], "d": null, "e": true}"#);
        let v = serde_json::json!({"a": [1], "b": {}});
        assert_eq!(dumps(&v, Some(2)), "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
    }
}
