//! Changes of chat templates: words for words, and statements around each other.

use yinian::base::rng::SplitMix64;

/// Most words of one template.
const MAX_WORDS: usize = 4000;

/// What is known of a corpus of templates.
#[derive(Debug, Default)]
pub(crate) struct Template {
    sources: Vec<Vec<String>>,
    /// Every word of them, and whole `{{ }}` and `{% %}` pieces.
    words: Vec<String>,
}

/// Names, numbers, strings, delimiters, and each other character for itself.
fn split(source: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    for c in source.chars() {
        let joins = words.last().and_then(|w| w.chars().last()).is_some_and(|last| {
            is_name(last) && is_name(c)
                || matches!((last, c), ('{', '{' | '%' | '#') | ('}' | '%' | '#', '}') | ('%', '-') | ('-', '%' | '}'))
        });
        match words.last_mut() {
            Some(word) if joins => word.push(c),
            _ => words.push(c.to_string()),
        }
    }
    words
}

/// `{{ ... }}` and `{% ... %}` pieces of a source.
fn pieces(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (open, close) in [("{{", "}}"), ("{%", "%}")] {
        for (at, _) in source.match_indices(open) {
            if let Some(end) = source[at..].find(close) {
                found.push(source[at..at + end + close.len()].to_owned());
            }
        }
    }
    found
}

impl Template {
    pub(crate) fn len(&self) -> usize {
        self.sources.len()
    }

    /// One more to start from; its place among them.
    pub(crate) fn learn(&mut self, source: &str) -> usize {
        let words = split(source);
        for word in words.iter().cloned().chain(pieces(source)) {
            if word.len() < 200 && !self.words.contains(&word) {
                self.words.push(word);
            }
        }
        self.sources.push(words);
        self.sources.len() - 1
    }

    pub(crate) fn mutated(&self, rng: &mut SplitMix64, from: usize, more: &[String]) -> String {
        let mut words = self.sources[from].clone();
        for _ in 0..rng.below(4) {
            self.change(rng, &mut words, more);
            words.truncate(MAX_WORDS);
        }
        words.concat()
    }

    fn source(&self, rng: &mut SplitMix64) -> &[String] {
        &self.sources[rng.below(self.sources.len() as u64) as usize]
    }

    fn word(&self, rng: &mut SplitMix64, more: &[String]) -> String {
        let n = rng.below((self.words.len() + more.len()) as u64) as usize;
        self.words.get(n).or_else(|| more.get(n - self.words.len())).cloned().unwrap_or_default()
    }

    fn change(&self, rng: &mut SplitMix64, words: &mut Vec<String>, more: &[String]) {
        let at = rng.below(words.len() as u64 + 1) as usize;
        let end = (at + rng.below(12) as usize).min(words.len());
        match rng.below(9) {
            0 => drop(words.drain(at..end)),
            1 | 2 if at < words.len() => words[at] = self.word(rng, more),
            3 => words.insert(at, self.word(rng, more)),
            4 => {
                let piece = words[at..end].to_vec();
                let times = [1, 2, 20, 300][rng.below(4) as usize];
                let many = piece.iter().cycle().take(piece.len() * times).cloned();
                drop(words.splice(at..at, many.collect::<Vec<_>>()));
            }
            5 => {
                let other = self.source(rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                let to = (from + rng.below(30) as usize).min(other.len());
                drop(words.splice(at..end, other[from..to].iter().cloned()));
            }
            6 => {
                const AROUND: [(&str, &str); 7] = [
                    ("{% for x in messages %}", "{% endfor %}"),
                    ("{% for x in range(50) %}", "{% endfor %}"),
                    ("{% if true %}", "{% endif %}"),
                    ("{% macro f(a) %}", "{% endmacro %}{{ f(f) }}"),
                    ("{% set y %}", "{% endset %}{{ y }}"),
                    ("{% filter upper %}", "{% endfilter %}"),
                    ("{% generation %}", "{% endgeneration %}"),
                ];
                let (open, close) = AROUND[rng.below(AROUND.len() as u64) as usize];
                words.push(close.to_owned());
                words.insert(0, open.to_owned());
            }
            7 => words.insert(at, format!("{{{{ {} | {} }}}}", self.word(rng, more), self.word(rng, more))),
            _ => {
                let deep = [3, 60, 1000][rng.below(3) as usize];
                let (open, close) =
                    [("[", "]"), ("(", ")"), ("{'a':", "}"), ("not ", ""), ("-", "")][rng.below(5) as usize];
                words.insert(at, format!("{{{{ {}1{} }}}}", open.repeat(deep), close.repeat(deep)));
            }
        }
    }
}
