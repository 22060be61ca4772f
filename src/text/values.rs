//! What keeps the values of a template finite: printing, comparing and dropping a value recurse on the native stack and walk
//! shared parts again and again, so none may be nested too deep, hold itself, or unfold to too much. Every container literal and
//! every assignment of a template passes here (`syntax` writes the calls).

use super::python;
use minijinja::value::{Kwargs, ObjectRepr, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, functions};

/// No template and no request may use names that begin so.
pub(super) const RESERVED: &str = "__yn_";
pub(super) const ATTRIBUTE: &str = "__yn_attribute";
pub(super) const BUILT: &str = "__yn_built";
pub(super) const EACH: &str = "__yn_each";
pub(super) const KEPT: &str = "__yn_kept";
pub(super) const KEPT_IN_NAMESPACE: &str = "__yn_kept_in_namespace";

/// Containers in containers. JSON that was parsed has at most 128.
const MAX_DEPTH: usize = 256;
/// A value written out: the bytes of its strings and [`PART_BYTES`] for each of its parts.
const MAX_BYTES: usize = 64 << 20;
const PART_BYTES: usize = 24;
/// Parts looked at in one rendering, a second's work; entering a container counts as [`ENTERING`] parts.
const MAX_WALKED: usize = 50_000_000;
const ENTERING: usize = 8;

/// Puts the checks in place.
pub(super) fn install(env: &mut Environment<'_>) -> Result<(), Error> {
    let namespace = namespace_type()?;
    env.add_function(BUILT, move |state: &mut State, value: Value| {
        walk(state, &value, Some(namespace)).map(|()| value)
    });
    env.add_function(EACH, |value: Value| match value.is_none() {
        true => Err(Error::new(ErrorKind::InvalidOperation, "none is not iterable")),
        false => Ok(value),
    });
    env.add_function(KEPT, |state: &mut State, value: Value| keep(state, value, None));
    env.add_function(KEPT_IN_NAMESPACE, move |state: &mut State, value: Value| keep(state, value, Some(namespace)));
    env.add_function("namespace", move |state: &mut State, given: Option<ValueOrKwargs>| {
        for given in given.iter() {
            walk(state, given, Some(namespace))?;
            let hidden = given.try_iter()?.find(|k| k.as_str().is_some_and(|k| k.starts_with('_')));
            if let Some(name) = hidden {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("namespaces have no attribute {name}")));
            }
        }
        functions::namespace(given)
    });
    env.add_function("dict", move |state: &mut State, value: Option<Value>, more: Kwargs| {
        let map = functions::dict(value, more)?;
        walk(state, &map, Some(namespace)).map(|()| map)
    });
    env.remove_global("debug");
    env.set_formatter(|out, state, value| {
        walk(state, value, None)?;
        Ok(out.write_str(&python::str(value))?)
    });
    Ok(())
}

/// What the type of namespaces is called is the interpreter's business.
pub(super) fn namespace_type() -> Result<&'static str, Error> {
    Ok(functions::namespace(None)?.as_object().map_or("", |o| o.type_name()))
}

struct Walked(usize);

/// An error unless `value` may be printed, compared and dropped. `refused` is a type that it may not hold.
pub(super) fn walk(state: &mut State, value: &Value, refused: Option<&str>) -> Result<(), Error> {
    let mut open: Vec<Box<dyn Iterator<Item = Value>>> = Vec::new();
    let mut bytes = 0;
    let walked = state.get_or_insert_extension(Walked(0));
    let mut enter = |value: &Value, open: &mut Vec<Box<dyn Iterator<Item = Value>>>| {
        bytes += PART_BYTES + value.as_str().map_or(0, str::len);
        walked.0 += 1;
        if bytes > MAX_BYTES || walked.0 > MAX_WALKED {
            return Err(too(format!(
                "large: at most {MAX_BYTES} bytes when it is written out, and {MAX_WALKED} parts in all"
            )));
        }
        let Some(object) = value.as_object() else { return Ok(()) };
        walked.0 += ENTERING;
        if refused == Some(object.type_name()) {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "a namespace within a list, a map or a namespace is not supported",
            ));
        }
        if open.len() >= MAX_DEPTH {
            return Err(too(format!("deep: at most {MAX_DEPTH} lists and maps within each other")));
        }
        match object.repr() {
            ObjectRepr::Map => open.extend(object.try_iter_pairs().map(flat)),
            ObjectRepr::Seq | ObjectRepr::Iterable => open.extend(object.try_iter().map(|i| i as Box<_>)),
            _ => {}
        }
        Ok(())
    };
    enter(value, &mut open)?;
    while let Some(inner) = open.last_mut() {
        match inner.next() {
            Some(part) => enter(&part, &mut open)?,
            None => drop(open.pop()),
        }
    }
    Ok(())
}

fn flat(pairs: impl Iterator<Item = (Value, Value)> + 'static) -> Box<dyn Iterator<Item = Value>> {
    Box::new(pairs.flat_map(|(key, value)| [key, value]))
}

fn too(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value of the template is too {what}"))
}

/// What an assignment stores. Slices and sums are lazy views of what they were made of, and views of views would pile up.
fn keep(state: &mut State, value: Value, refused: Option<&str>) -> Result<Value, Error> {
    walk(state, &value, refused)?;
    match value.kind() {
        ValueKind::Iterable => Ok(value.try_iter()?.collect::<Vec<Value>>().into()),
        _ => Ok(value),
    }
}
