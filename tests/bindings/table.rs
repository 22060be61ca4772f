//! The table in bindings/README.md: each function of the header against its forms in the wrappers.

use crate::{header, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What has no form, and why; `*` is every language. A line goes when the form comes.
const WITHOUT: &[(&str, &str, &str)] = &[
    ("*", "yn_buf_free", "called inside, behind every copy"),
    ("C++", "yn_tokenizer_free", "called inside, by the destructor"),
    ("Go", "yn_engine_fd", "the engine's goroutine polls"),
    ("Go", "yn_engine_wake", "the engine's goroutine polls"),
    ("Go", "yn_queue_create", "called inside, by LogTo: goroutines need no queue each"),
    ("Go", "yn_queue_poll", "called inside, by LogTo: goroutines need no queue each"),
    ("Go", "yn_queue_fd", "the engine's goroutine polls"),
    ("Go", "yn_queue_wake", "the engine's goroutine polls"),
    ("Go", "yn_queue_free", "called inside, by LogTo: goroutines need no queue each"),
    ("Go", "yn_log_to_callback", "LogTo reads a queue, as the library's threads run no Go"),
    ("Java", "yn_status_name", "Status is an enum with the same names; called inside, for an error without a message"),
    ("Java", "yn_engine_fd", "the engine's thread polls"),
    ("Java", "yn_engine_wake", "the engine's thread polls"),
    ("Java", "yn_queue_fd", "the engine's thread polls"),
    ("Java", "yn_queue_wake", "the engine's thread polls"),
    ("Java", "yn_log_to_callback", "a queue with a thread of its own serves: no thread of the library enters the JVM"),
];

/// A wrapper's sources, without tests.
struct Language {
    name: &'static str,
    /// File stem and text, comments and the insides of literals cut.
    files: Vec<(String, String)>,
    declares: fn(&Language, &str) -> bool,
}

impl Language {
    fn all() -> [Self; 3] {
        [
            Self::new("C++", &["cpp"], &["hpp"], declared_in_cpp),
            Self::new("Go", &["go", "flat_request.h"], &["go", "h", "c"], declared_in_go),
            Self::new("Java", &["java/src/main", "flat_request.h"], &["java", "c", "h"], declared_in_java),
        ]
    }

    fn new(name: &'static str, places: &[&str], extensions: &[&str], declares: fn(&Self, &str) -> bool) -> Self {
        let mut paths: Vec<PathBuf> = places.iter().map(|place| root().join("bindings").join(place)).collect();
        let mut files = Vec::new();
        while let Some(path) = paths.pop() {
            let file = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if extensions.iter().any(|e| path.extension().is_some_and(|x| x == *e)) && counts(file) {
                let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
                files.push((stem, code(&std::fs::read_to_string(&path).unwrap())));
            }
        }
        assert!(!files.is_empty(), "no sources of {name}");
        Self { name, files, declares }
    }

    fn calls(&self, function: &str) -> bool {
        self.files.iter().any(|(_, text)| words(text, function).any(|at| text[at + function.len()..].starts_with('(')))
    }
}

/// Neither a test nor a copy of the C header, which would declare everything.
fn counts(file: &str) -> bool {
    !file.ends_with("_test.go") && file != "yinian.h"
}

/// A source without comments and without what stands in quotes, so that braces and names are the language's own.
fn code(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let closed = |from: usize, by: &str| rest[from..].find(by).map_or(rest.len(), |at| from + at + by.len());
        let cut = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            closed(2, "*/")
        } else if c == '`' {
            closed(1, "`")
        } else if rest.starts_with("R\"(") {
            closed(3, ")\"")
        } else if c == '"' || c == '\'' {
            let mut escaped = false;
            let end = rest[1..].find(|x| {
                let end = !escaped && (x == c || x == '\n');
                escaped = !escaped && x == '\\';
                end
            });
            end.map_or(rest.len(), |at| at + 2)
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        rest = &rest[cut..];
    }
    out
}

/// Where `name` stands as a word of its own.
fn words<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name)
        .map(|(at, _)| at)
        .filter(move |at| !text[..*at].ends_with(part) && !text[at + name.len()..].starts_with(part))
}

/// The start of the line, up to `at`.
fn line_before(text: &str, at: usize) -> &str {
    text[..at].rsplit('\n').next().unwrap_or_default()
}

/// Whether the body that begins at `text`'s first brace declares a `member(` that `public` takes for such by what stands before
/// it in the body.
fn has_member(text: &str, member: &str, public: fn(&str) -> bool) -> bool {
    let Some(open) = text.find('{') else { return false };
    let body = &text[open + 1..];
    words(body, member).any(|at| {
        let (before, depth) = (&body[..at], depth(&body[..at]));
        let declared = before.ends_with([' ', '&', '*', '~']) && body[at + member.len()..].starts_with('(');
        depth == Some(0) && declared && public(before)
    })
}

/// Braces open at the end; `None` once the text has closed more than it opened.
fn depth(text: &str) -> Option<usize> {
    text.chars().try_fold(0usize, |depth, c| match c {
        '{' => Some(depth + 1),
        '}' => depth.checked_sub(1),
        _ => Some(depth),
    })
}

fn declared_in_cpp(language: &Language, form: &str) -> bool {
    let free = |text: &str, name: &str| {
        words(text, name).any(|at| {
            let line = line_before(text, at);
            line.starts_with(|c: char| c.is_alphabetic() || c == '[')
                && line.ends_with(' ')
                && text[at + name.len()..].starts_with('(')
        })
    };
    language.files.iter().any(|(_, text)| match form.split_once("::") {
        None => free(text, form),
        Some((class, member)) => words(text, class).any(|at| {
            let head = text[at..].split(['{', ';']).next().unwrap_or_default();
            let opens = text[at + head.len()..].starts_with('{');
            let line = line_before(text, at);
            let public = match line.split_whitespace().last() {
                Some("class") => |before: &str| before.rfind("public:") > before.rfind("private:"),
                Some("struct") => |before: &str| before.rfind("private:") <= before.rfind("public:"),
                _ => return false,
            };
            opens && has_member(&text[at..], member, public)
        }),
    })
}

fn declared_in_go(language: &Language, form: &str) -> bool {
    language.files.iter().any(|(_, text)| {
        text.lines().filter_map(|line| line.strip_prefix("func ")).any(|head| match form.split_once('.') {
            None => head.strip_prefix(form).is_some_and(|rest| rest.starts_with(['(', '['])),
            Some((kind, method)) => {
                head.strip_prefix('(').and_then(|head| head.split_once(") ")).is_some_and(|(receiver, rest)| {
                    let of = receiver.rsplit(' ').next().unwrap_or_default().trim_start_matches('*');
                    of == kind && rest.strip_prefix(method).is_some_and(|rest| rest.starts_with('('))
                })
            }
        })
    }) && form.rsplit('.').next().is_some_and(|name| name.starts_with(char::is_uppercase))
}

fn declared_in_java(language: &Language, form: &str) -> bool {
    let Some((class, method)) = form.split_once('.') else { return false };
    // Up to the statement or body before it.
    let public =
        |before: &str| before.rsplit([';', '{', '}']).next().is_some_and(|head| words(head, "public").next().is_some());
    language.files.iter().any(|(stem, text)| {
        let kind =
            ["class", "interface", "enum", "record"].iter().any(|kind| text.contains(&format!("{kind} {class}")));
        stem == class && kind && has_member(text, method, public)
    })
}

/// Cells of each row, by function.
fn rows() -> BTreeMap<String, Vec<String>> {
    let page = std::fs::read_to_string(root().join("bindings/README.md")).unwrap();
    let (_, table) =
        page.split_once("\n| C | C++ | Go | Java |\n").expect("the table of functions in bindings/README.md");
    let mut rows = BTreeMap::new();
    for line in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        assert_eq!(cells.len(), 4, "{line}");
        let name = cells[0].trim_matches('`').to_owned();
        assert!(rows.insert(name.clone(), cells[1..].to_vec()).is_none(), "{name} has two rows");
    }
    rows
}

fn reason(language: &str, function: &str) -> Option<&'static str> {
    let found = WITHOUT.iter().find(|(of, name, _)| (*of == "*" || *of == language) && *name == function);
    found.map(|(_, _, why)| *why)
}

#[test]
fn every_function_has_its_forms() {
    let (rows, mut wrong) = (rows(), Vec::new());
    assert_eq!(rows.keys().cloned().collect::<BTreeSet<_>>(), header::declared(), "rows and functions");
    for (column, language) in Language::all().iter().enumerate() {
        for (function, cells) in &rows {
            let (cell, why, name) = (&cells[column], reason(language.name, function), language.name);
            if cell == "-" {
                if why.is_none() {
                    wrong.push(format!("{function} has no form in {name}, and tests/bindings/table.rs has no reason"));
                }
                continue;
            }
            if why.is_some() {
                wrong.push(format!("{function} has a form in {name}: take its reason out of tests/bindings/table.rs"));
            }
            if !language.calls(function) {
                wrong.push(format!("{name} never calls {function}"));
            }
            for form in cell.split(", ").map(|form| form.trim_matches('`')) {
                if !(language.declares)(language, form) {
                    wrong.push(format!("{name} declares no {form}, the form of {function}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "bindings/README.md:\n{}", wrong.join("\n"));
}

#[test]
fn reasons_are_of_functions_that_exist() {
    for (language, function, why) in WITHOUT {
        assert!(header::declared().contains(*function), "{function} is no function");
        assert!(["*", "C++", "Go", "Java"].contains(language) && !why.is_empty(), "{language}: {function}");
    }
}

/// The finders find what is there and nothing else, on texts of the three languages' ways.
#[test]
fn declarations_are_told_from_calls() {
    let language = |stem: &str, text: &str| Language {
        name: "",
        files: vec![(stem.to_owned(), code(text))],
        declares: |_, _| false,
    };
    let cpp = language(
        "x",
        "class A;\nclass A {\n int hidden();\n public:\n  // void told();\n  static A open(int x) { return inner(\"}\"); }\n private:\n  int secret() {}\n};\nstruct B { int get() const; };\ninline int free_one(int a) { return 1; }\n",
    );
    let go = language(
        "x",
        "func Open(c int) {}\nfunc (e *Engine) Stats() {}\nfunc (s Status) Error() {}\nfunc (e *Engine) hidden() {}\n// func Told() {}\n",
    );
    let java = language(
        "A",
        "public final class A {\n  public A open(int x) { inner(); }\n  /** public void told() */\n  int hidden() {}\n}\n",
    );
    for (language, finder, there, absent) in [
        (
            &cpp,
            declared_in_cpp as fn(&Language, &str) -> bool,
            &["A::open", "B::get", "free_one"][..],
            &["A::hidden", "A::told", "A::inner", "A::secret", "inner", "B::open"][..],
        ),
        (
            &go,
            declared_in_go,
            &["Open", "Engine.Stats", "Status.Error"],
            &["Stats", "Engine.Open", "Engine.hidden", "Told", "Engine.Sta"],
        ),
        (&java, declared_in_java, &["A.open"], &["A.inner", "A.told", "A.hidden", "B.open"]),
    ] {
        for form in there {
            assert!(finder(language, form), "{form}");
        }
        for form in absent {
            assert!(!finder(language, form), "{form}");
        }
    }
}
