//! `extra_json`: the rare rest of a request.

use crate::base::config::nearest;
use crate::base::{Error, Result, Token};
use serde_json::{Map, Value};

/// Keys that are planned, with no effect in this build.
const LATER: &[&str] = &[
    "json_schema",
    "regex",
    "grammar",
    "structural_tag",
    "bad_words",
    "lora",
    "adapter",
    "images",
    "audio",
    "speculative",
    "best_of",
    "thinking_budget",
];

/// What a request's `extra_json` says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Extra {
    /// Not yet checked for ranges.
    pub(super) logit_bias: Vec<(Token, f32)>,
}

impl Extra {
    pub(super) fn parse(json: &Value) -> Result<Self> {
        let Some(map) = json.as_object() else {
            return Err(Error::invalid("extra_json is not a JSON object"));
        };
        let mut extra = Self::default();
        for (key, value) in map {
            match key.as_str() {
                "logit_bias" => extra.logit_bias = logit_bias(value)?,
                key if LATER.contains(&key) && value.is_null() => {}
                key if LATER.contains(&key) => {
                    return Err(Error::unsupported(format!(
                        "key {key:?} of extra_json is not in this build; leave it out"
                    )));
                }
                key => {
                    let known = LATER.iter().copied().chain(["logit_bias"]);
                    let hint = nearest(key, known).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
                    return Err(Error::invalid(format!("key {key:?} of extra_json is unknown{hint}")));
                }
            }
        }
        Ok(extra)
    }
}

/// `{"token id": bias, ...}`, as in OpenAI's API.
fn logit_bias(value: &Value) -> Result<Vec<(Token, f32)>> {
    let expected = "expected an object of token ids to numbers, as {\"1234\": -5.0}";
    let empty = Map::new();
    let map = match value {
        Value::Null => &empty,
        Value::Object(map) => map,
        _ => return Err(Error::invalid(format!("logit_bias of extra_json is no object; {expected}"))),
    };
    let entry = |(id, bias): (&String, &Value)| match (id.parse::<Token>(), bias.as_f64()) {
        (Ok(id), Some(bias)) => Ok((id, bias as f32)),
        _ => Err(Error::invalid(format!("logit_bias of extra_json has {id:?}: {bias}; {expected}"))),
    };
    map.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    fn parse(text: &str) -> Result<Extra> {
        Extra::parse(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn keys_are_known_planned_or_typos() {
        assert_eq!(parse("{}").unwrap(), Extra::default());
        assert_eq!(parse(r#"{"lora": null, "logit_bias": null}"#).unwrap(), Extra::default());
        assert_eq!(parse(r#"{"lora": "x"}"#).unwrap_err().kind, ErrorKind::Unsupported);
        let e = parse(r#"{"json_shema": {}}"#).unwrap_err();
        assert!(e.kind == ErrorKind::Invalid && e.message.contains("json_schema"), "{e}");
        assert_eq!(parse("[]").unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn biases_are_ids_and_numbers() {
        let extra = parse(r#"{"logit_bias": {"7": -100, "3": 1.5}}"#).unwrap();
        assert_eq!(extra.logit_bias.iter().find(|b| b.0 == 7), Some(&(7, -100.0)));
        for wrong in [r#"{"x": 1}"#, r#"{"-1": 1}"#, r#"{"1": "2"}"#, r#"{"1": null}"#, "[]", "3"] {
            let e = parse(&format!(r#"{{"logit_bias": {wrong}}}"#)).unwrap_err();
            assert!(e.kind == ErrorKind::Invalid && e.message.contains("logit_bias"), "{e}");
        }
    }
}
