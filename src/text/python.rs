//! Values as Python writes them: `str` and `repr`, which is what templates print.

use minijinja::value::{ObjectRepr, Value, ValueKind};
use std::fmt::Write;

/// What `{{ value }}` prints.
pub(super) fn str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => repr(value),
    }
}

pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// Recurses; values are bounded where they are made.
fn write(value: &Value, out: &mut String) {
    match (value.kind(), value.as_object()) {
        (ValueKind::Undefined, _) => out.push_str("Undefined"),
        (ValueKind::None, _) => out.push_str("None"),
        (ValueKind::Bool, _) => out.push_str(if value.is_true() { "True" } else { "False" }),
        (ValueKind::Number, _) => out.push_str(&number(value)),
        (ValueKind::String, _) => quote(value.as_str().unwrap_or_default(), out),
        (_, Some(object)) => match object.repr() {
            ObjectRepr::Map => {
                out.push('{');
                for (i, (key, value)) in object.try_iter_pairs().into_iter().flatten().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    write(&key, out);
                    out.push_str(": ");
                    write(&value, out);
                }
                out.push('}');
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
                out.push(open);
                let mut count = 0;
                for item in object.try_iter().into_iter().flatten() {
                    out.push_str(if count > 0 { ", " } else { "" });
                    write(&item, out);
                    count += 1;
                }
                out.push_str(if value.is_tuple() && count == 1 { "," } else { "" });
                out.push(close);
            }
            _ => out.push_str(&value.to_string()),
        },
        _ => out.push_str(&value.to_string()),
    }
}

/// An integer, or a float with the fewest digits that name it.
pub(super) fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => self::float(float),
        _ => value.to_string(),
    }
}

fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".to_owned() } else { value.to_string() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{value:?}"),
        e => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
    }
}

/// A string literal: single quotes unless they would have to be escaped and double ones would not.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = match c {
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            c if c == mark => write!(out, "\\{c}"),
            c if printable(c) => out.write_char(c),
            c if (c as u32) < 0x100 => write!(out, "\\x{:02x}", c as u32),
            c if (c as u32) < 0x10000 => write!(out, "\\u{:04x}", c as u32),
            c => write!(out, "\\U{:08x}", c as u32),
        };
    }
    out.push(mark);
}

/// Rust's `escape_debug` escapes what Python's `repr` does; behind the first character combining marks stand as they are.
fn printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let mut shown = String::from("a");
    shown.push(c);
    !shown.escape_debug().any(|c| c == '\\')
}

/// White space of `str.strip` and `str.split`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are Python's.
    #[test]
    fn floats_and_strings_are_python_s() {
        let floats = [1.0, 1e16, 123_456_789_012_345_680.0, 1e-7, 0.0001, -2.5e-5, 0.1 + 0.2, 1e15, -0.0, 1e22, 5e-324];
        let shown = floats.map(float).join(" ");
        assert_eq!(
            shown,
            "1.0 1e+16 1.2345678901234568e+17 1e-07 0.0001 -2.5e-05 0.30000000000000004 1000000000000000.0 -0.0 1e+22 5e-324"
        );
        let mut out = String::new();
        quote("it's \"q\" \\\n\x01\x7f\u{200b}e\u{301}\u{a0}é🦊\u{e0001}", &mut out);
        assert_eq!(out, r#"'it\'s "q" \\\n\x01\x7f\u200b"#.to_owned() + "e\u{301}" + r"\xa0é🦊\U000e0001'");
    }
}
