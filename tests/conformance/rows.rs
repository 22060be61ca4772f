//! Which rows of the table run: `YN_CONFORMANCE_ROWS` has beginnings of their names, dtype included, with commas between:
//! `attention,logprobs in float32`. Those behind a minus are left out, of all rows where nothing else is named: `-linear`. Race
//! checkers need it, as products of the modes `fast` and `aligned` (`linear`, `aligned logits`, `aligned biases`) run kernels
//! of a library that are none of ours to judge.

use yinian::base::DType;

#[derive(Debug, Default)]
pub(crate) struct Rows {
    with: Vec<String>,
    without: Vec<String>,
}

impl Rows {
    /// All when the variable is not set. The error lists the rows there are.
    pub(crate) fn from_env(known: &[&str]) -> Result<Self, String> {
        std::env::var("YN_CONFORMANCE_ROWS").map_or(Ok(Self::default()), |text| Self::parse(&text, known))
    }

    fn parse(text: &str, known: &[&str]) -> Result<Self, String> {
        let mut rows = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (list, start) = match entry.strip_prefix('-') {
                Some(start) => (&mut rows.without, start),
                None => (&mut rows.with, entry),
            };
            let acts = [DType::F32, DType::F16, DType::Bf16];
            if !known.iter().any(|name| acts.iter().any(|act| label(name, *act).starts_with(start))) {
                return Err(format!("no row begins with {start:?}; there are {known:?}"));
            }
            list.push(start.to_owned());
        }
        Ok(rows)
    }

    pub(crate) fn takes(&self, name: &str, act: DType) -> bool {
        let label = label(name, act);
        let among = |list: &[String]| list.iter().any(|start| label.starts_with(start));
        (self.with.is_empty() || among(&self.with)) && !among(&self.without)
    }
}

fn label(name: &str, act: DType) -> String {
    format!("{name} in {act}")
}

#[test]
fn rows_are_chosen_by_how_they_begin() {
    let known = ["linear", "linear: edges", "sample: greedy", "logprobs"];
    let taken = |text: &str| {
        let rows = Rows::parse(text, &known).unwrap();
        known.iter().map(|name| u8::from(rows.takes(name, DType::F16))).collect::<Vec<_>>()
    };
    assert_eq!(taken(""), [1, 1, 1, 1]);
    assert_eq!(taken("sample, logprobs"), [0, 0, 1, 1]);
    assert_eq!(taken("-linear"), [0, 0, 1, 1]);
    assert_eq!(taken("linear,-linear: edges"), [1, 0, 0, 0]);
    assert_eq!(taken("linear in float16,logprobs in float32"), [1, 0, 0, 0]);
    let e = Rows::parse("sample,attention", &known).unwrap_err();
    assert!(e.contains("\"attention\"") && known.iter().all(|name| e.contains(name)), "{e}");
}
