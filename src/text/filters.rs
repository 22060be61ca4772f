//! Filters and tests of Jinja that the interpreter has with another meaning, and those of its own that Jinja has not.

use super::{json, methods, python, values};
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Not in Jinja, or with results that cannot be Jinja's.
const ABSENT: [&str; 7] = ["attr", "bool", "chain", "lines", "pprint", "split", "zip"];

pub(super) fn install(env: &mut Environment<'_>) {
    ABSENT.iter().for_each(|name| env.remove_filter(name));
    env.add_filter("float", float);
    env.add_filter("int", int);
    env.add_filter("join", join);
    env.add_filter("list", list);
    env.add_filter("string", |state: &mut State, value: Value| {
        values::walk(state, &value, None)
            .map(|()| if value.as_str().is_some() { value } else { python::str(&value).into() })
    });
    env.add_filter("tojson", |state: &mut State, value: Value, args: Rest<Value>, more: Kwargs| {
        values::walk(state, &value, None)?;
        json::dumps(&value, &json::Style::new(&args, &more)?)
    });
    // Whatever has a length and places: texts, maps and what is undefined included.
    env.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Map | ValueKind::Seq | ValueKind::Iterable
        )
    });
    env.set_unknown_method_callback(methods::call);
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// A number of any kind or the text of one.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim_matches(python::is_space).replace('_', "").parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    }
}

fn float(value: Value, default: Option<Value>) -> Value {
    number(&value).map_or(default.unwrap_or(Value::from(0.0)), Value::from)
}

fn int(value: Value, default: Option<Value>, base: Option<u32>, more: Kwargs) -> Result<Value, Error> {
    let base = base.or(more.get("base")?).unwrap_or(10);
    let default = default.or(more.get("default")?).unwrap_or(Value::from(0));
    more.assert_all_used()?;
    if !matches!(base, 2 | 8 | 10 | 16) {
        return Err(wrong(format!("int to base {base} is not supported")));
    }
    if value.is_integer() {
        return Ok(value);
    }
    let digits = value.as_str().map(|t| t.trim_matches(python::is_space).replace('_', "").to_lowercase());
    let whole = digits.and_then(|text| {
        let (sign, text) = text.strip_prefix('-').map_or((1, text.strip_prefix('+').unwrap_or(&text)), |t| (-1, t));
        let prefix = [(16, "0x"), (8, "0o"), (2, "0b")].iter().find(|p| p.0 == base).map_or("", |p| p.1);
        i128::from_str_radix(text.strip_prefix(prefix).unwrap_or(text), base).ok().map(|n| sign * n)
    });
    let truncated = || number(&value).filter(|n| n.is_finite() && n.abs() < 1e38).map(|n| n.trunc() as i128);
    Ok(whole.or_else(truncated).map_or(default, Value::from))
}

fn list(value: Value) -> Result<Vec<Value>, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::None => Err(wrong("none is not iterable")),
        _ => Ok(value.try_iter()?.collect()),
    }
}

fn join(
    state: &mut State,
    value: Value,
    joiner: Option<Value>,
    attribute: Option<Value>,
    more: Kwargs,
) -> Result<String, Error> {
    let joiner = joiner.or(more.get("d")?).map_or(String::new(), |j| python::str(&j));
    let attribute = attribute.or(more.get("attribute")?);
    more.assert_all_used()?;
    values::walk(state, &value, None)?;
    let mut out = String::new();
    for (i, item) in list(value)?.into_iter().enumerate() {
        let item = match attribute.as_ref().map(|a| (a, a.as_str())) {
            None => item,
            Some((_, Some(path))) => path.split('.').try_fold(item, |item, name| match name.parse::<usize>() {
                Ok(place) => item.get_item(&place.into()),
                Err(_) => item.get_attr(name),
            })?,
            Some((place, None)) => item.get_item(place)?,
        };
        let text = python::str(&item);
        state.consume_fuel(1 + (text.len() + joiner.len()) as u64 / 64)?;
        out.push_str(if i > 0 { &joiner } else { "" });
        out.push_str(&text);
    }
    Ok(out)
}
