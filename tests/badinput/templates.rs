//! Chat templates that would take the interpreter's stack, time or memory, rendered by a caller who has hardly a stack himself.

use crate::LIMIT;
use serde_json::{Value, json};
use std::time::Instant;
use yinian::base::{Error, ErrorKind};
use yinian::text::{ChatTemplate, SpecialMap};

/// A caller's stack, such as a language with many threads may give.
const SMALL_STACK: usize = 64 << 10;

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}]})
}

fn on_small_stack<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(SMALL_STACK).spawn(body).unwrap().join().unwrap()
}

fn render(source: &str) -> Result<String, Error> {
    let source = source.to_owned();
    on_small_stack(move || ChatTemplate::new(&source, SpecialMap::default())?.render(&hello()))
}

/// A list within lists, one level for each turn of a loop.
fn nested(levels: usize, then: &str) -> String {
    format!(
        "{{% set ns = namespace(l=[], m=[]) %}}{{% for i in range({levels}) %}}{{% set ns.l = [ns.l] %}}{{% set ns.m = [ns.m] %}}{{% endfor %}}{then}"
    )
}

/// A view of a list of views, further down with each call.
fn views(then: &str) -> String {
    let view = "[0:]".repeat(8);
    format!(
        "{{% for x in [[1, 2]] recursive %}}{{% if loop.depth0 < 150 %}}{{{{ loop([x{view}]) }}}}{{% else %}}{then}{{% endif %}}{{% endfor %}}"
    )
}

/// Lists within lists made by filters, further down with each call.
fn batches(then: &str) -> String {
    let batch = "|batch(1)".repeat(36);
    format!(
        "{{% for x in [[1]] recursive %}}{{% if loop.depth0 < 150 %}}{{{{ loop(x{batch}) }}}}{{% else %}}{then}{{% endif %}}{{% endfor %}}"
    )
}

/// What can be done with a value that walks all of it.
const USES: [&str; 9] = [
    "{{ X }}",
    "{{ X | tojson }}",
    "{{ X | tojson(indent=2) | length }}",
    "{{ X == Y }}{{ X < Y }}{{ X in [Y] }}",
    "{{ {X: 1} | length }}",
    "{{ X ~ '' }}",
    "{{ X | string | length }}{{ [X] | join | length }}",
    "{{ [X, Y] | unique | list | length }}{{ [X, Y] | sort | length }}",
    "",
];

#[test]
fn the_deepest_values_are_used_on_a_small_stack() {
    for then in USES {
        let name = |x: &str, y: &str| then.replace('X', x).replace('Y', y);
        let found = render(&nested(200, &name("ns.l", "ns.m")));
        assert!(found.is_ok(), "{then}: {found:?}");
        for source in [views(&name("x", "[x]")), batches(&name("x", "[x]"))] {
            let (start, found) = (Instant::now(), render(&source));
            let known = found.as_ref().is_ok_and(|t| t.len() < 1 << 20)
                || found.as_ref().is_err_and(|e| e.kind == ErrorKind::Invalid && !e.message.contains("interpreter"));
            assert!(known && start.elapsed() < LIMIT, "{then}: {found:?} after {:?}", start.elapsed());
        }
    }
}

/// Sources, and what the refusal says.
fn refused() -> Vec<(String, &'static str)> {
    let long = |open: &str, middle: &str, n: usize, close: &str| format!("{open}{}{close}", middle.repeat(n));
    let mut table = vec![
        ("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_owned(), "a namespace within"),
        ("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns == ns }}".to_owned(), "a namespace within"),
        ("{% set ns = namespace() %}{% set ns.a = {'b': ns} %}{{ ns | tojson }}".to_owned(), "a namespace within"),
        ("{% set ns = namespace() %}{% set ns.a = dict(b=ns) %}".to_owned(), "a namespace within"),
        ("{% set a = namespace() %}{% set b = namespace(a=a) %}".to_owned(), "a namespace within"),
        (
            "{% set ns = namespace() %}{% set ns.a = [none]|map('default', ns, true)|list %}".to_owned(),
            "a namespace within",
        ),
        (nested(60, "").replace("[ns.l]", "[ns.l, ns.l]"), "too large"),
        (long("{% set a = [1] %}", "{% set a = [a, a, a] %}", 60, "{{ a }}"), "too large"),
        (long("{% set a = [1] %}", "{% set a = [a] %}", 30_000, ""), "too many tags"),
        (long("{% set a = [1] %}", "{% set a = [a] %}", 300, "{{ a }}"), "too deep"),
        (long("{{ a", ".a", 300_000, " }}"), "too many words"),
        (long("{{ a", ".a", 2000, " }}"), "nested deeper"),
        (long("{{ a", "|e", 1000, " }}"), "nested deeper"),
        (long("{{ 1", "+1", 1000, " }}"), "nested deeper"),
        (long("{{ ", "not ", 1000, "a }}"), ""),
        (long("{{ ", "-", 1000, "1 }}"), ""),
        (long("{{ 1", " if a else 1", 1000, " }}"), ""),
        (long("{{ ", "[", 1000, " }}"), ""),
        (long("{{ ", "{1:", 140, "1") + &"}".repeat(140) + " }}", ""),
        (long("", "{% if a %}", 1000, ""), ""),
        (long("{% if a %}", "{% elif a %}", 30_000, "{% endif %}"), "too many tags"),
        (long("{% for a in b %}", "{% with a=1 %}", 1000, ""), ""),
        ("{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}".to_owned(), "recursion"),
        (
            "{% macro f() %}{{ caller() }}{% call f() %}a{% endcall %}{% endmacro %}{% call f() %}a{% endcall %}"
                .to_owned(),
            "recursion",
        ),
        ("{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}".to_owned(), "recursion"),
        (
            "{% for m in messages %}{% with a = 1 %}{% continue %}{% endwith %}{% endfor %}".to_owned(),
            "{% continue %} within {% with %}",
        ),
        (
            "{% for m in messages %}{% set x %}{% break %}{% endset %}{% endfor %}".to_owned(),
            "{% break %} within {% set %}",
        ),
        (
            "{% for m in messages %}{% filter upper %}{% if true %}{% break %}{% endif %}{% endfilter %}{% endfor %}"
                .to_owned(),
            "{% break %} within {% filter %}",
        ),
        ("{% for m in messages %}{{ loop.cycle() }}{% endfor %}".to_owned(), "interpreter"),
        ("{% set __yn_kept = 1 %}".to_owned(), "reserved"),
        ("{% include 'chat' %}".to_owned(), "include"),
        ("{% import 'chat' as c %}".to_owned(), "import"),
        ("{% extends 'chat' %}".to_owned(), "extends"),
        ("{{ ('x' * 9999999) ~ ('x' * 9999999) }}".to_owned(), "more than 16777216 bytes"),
        ("{{ range(100000000) | list | length }}".to_owned(), "too many elements"),
        ("{{ [messages] * 100000000 }}".to_owned(), ""),
        ("{% set a = [messages] * 1000000 %}".to_owned(), ""),
    ];
    for form in ["{{ X }}", "{% if X %}{% endif %}", "{% for a in X %}{% endfor %}", "{{ f(a=X) }}", "{% set a = X %}"]
    {
        let deep = form.replace('X', &format!("{}1{}", "[".repeat(140), "]".repeat(140)));
        let wide = form.replace('X', &format!("[{}1]", "1, ".repeat(3000)));
        table.extend([(deep, ""), (wide, "too many words")]);
    }
    table
}

#[test]
fn templates_without_an_end_are_refused() {
    let mut wrong = Vec::new();
    for (source, says) in refused() {
        let (start, found) = (Instant::now(), render(&source));
        let shown: String = source.chars().take(100).collect();
        match found {
            Ok(text) => wrong.push(format!("{shown}: renders {} bytes", text.len())),
            Err(e) if e.kind != ErrorKind::Invalid || !e.message.contains(says) || e.message.len() > 2000 => {
                wrong.push(format!("{shown}: {:?}: {}", e.kind, e.message));
            }
            Err(_) if start.elapsed() > LIMIT => wrong.push(format!("{shown}: took {:?}", start.elapsed())),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the limits must not take away.
#[test]
fn templates_within_the_limits_render() {
    let mut chat = hello();
    chat["messages"] = (0..5000).map(|i| json!({"role": "user", "content": format!("message {i}")})).collect();
    for (source, says) in [
        (
            "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.content] %}{% endfor %}{{ ns.l[-1] }} {{ ns.l | length }}",
            "message 4999 5000",
        ),
        ("{% set a, b = namespace(x=1), [2] %}{% set a.x = b[0] %}{{ a.x }}", "2"),
        (
            "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if m.content == 'message 0' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
            "message 1",
        ),
        (
            "{% set l = messages[1:] %}{{ l | length }} {{ l[0].content }}{% set t = (1, 'b') %} {{ t[1] }}",
            "4999 message 1 b",
        ),
        (
            "{% set ns = namespace(items=[1], keys=2) %}{% set ns.items = ns.items + [3] %}{{ ns.items }}{{ ns.keys }}{% if not messages %}{{ messages[0].items }}{% endif %}{{ messages[0].items() | length }}",
            "[1, 3]22",
        ),
        ("{# {% set x = [ #}{% raw %}{% set a.b = [{{ x }}] %}{% endraw %}", "{% set a.b = [{{ x }}] %}"),
        ("{% set x = '%} [' %}{{ x }}{% set y = {'a': [x, {'b': x}]} %}{{ y.a[1]['b'] }}", "%} [%} ["),
        (
            "{%- set x -%} a {%- endset -%} {{- x -}} {% for (k, v) in {'p': x}.items() %}{{ k }}{{ (v) }}{% endfor %}",
            "apa",
        ),
        (
            "{% macro f(x, y=[1, 2]) %}{{ x[0] if x is not none else y[0] }}{{ y[1] }}{% endmacro %}{{ f([messages[0].role]) }}{{ f(none) }}",
            "user212",
        ),
    ] {
        let found = ChatTemplate::new(source, SpecialMap::default()).and_then(|t| t.render(&chat)).unwrap();
        assert_eq!(found, says, "{source}");
    }
    let elifs = format!("{{% if a %}}{}{{% else %}}z{{% endif %}}", "{% elif a %}".repeat(8000));
    let ifs = format!("{}z{}", "{% if not a %}".repeat(140), "{% endif %}".repeat(140));
    let brackets = format!("{{% set x = {}1{} %}}z", "[".repeat(70), "]".repeat(70));
    let wide = format!("{{% set x = [{}1] %}}z", "a, ".repeat(2000));
    let sum = format!("{{% set x = '' {} %}}z", "~ a".repeat(190));
    for source in [elifs, ifs, brackets, wide, sum] {
        assert_eq!(render(&source).unwrap(), "z");
    }
}
