//! The house rules that a compiler does not check: imports point down, rooms stay small, `unsafe` stays in its places.

use std::fs;
use std::path::{Path, PathBuf};

/// Each floor and the floors it may import besides itself.
const FLOORS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("plan", &["base"]),
    ("hal", &["base"]),
    ("text", &["base"]),
    ("sched", &["plan", "base"]),
    ("model", &["hal", "base"]),
    ("runner", &["plan", "model", "hal", "base"]),
    ("exec", &["plan", "runner", "hal", "base"]),
    ("engine", &["sched", "exec", "text", "plan", "base"]),
    ("ffi", &["engine", "plan", "text", "base"]),
];

/// The one file that assembles: it may see these too.
const ASSEMBLY: (&str, &[&str]) = ("src/engine/build.rs", &["model", "runner", "hal"]);

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &["src/ffi/", "src/hal/cpu/", "src/hal/cuda/", "src/hal/ascend/", "src/model/weights/mmap.rs"];

const MAX_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no .{extension} file under {dir}");
    found
}

fn name(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string()
}

/// Code of a line: comments cut, and the insides of string literals with them.
fn code(line: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            c if !quoted => out.push(c),
            _ => {}
        }
    }
    out
}

/// Floors named by `crate::floor` paths in a source text, `use crate::{a::.., b::..}` groups included.
fn imports(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (i, line) in source.lines().enumerate() {
        let line = code(line);
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + 7..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split(',').map(|g| g.trim().split("::").next().unwrap_or_default()).collect(),
                None => vec![rest],
            };
            for n in names {
                let floor: String = n.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if FLOORS.iter().any(|f| f.0 == floor) {
                    found.push((i + 1, floor));
                }
            }
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let name = name(&path);
        let Some(floor) = name.strip_prefix("src/").and_then(|n| n.split_once('/')).map(|n| n.0) else { continue };
        let allowed = FLOORS.iter().find(|f| f.0 == floor).unwrap_or_else(|| panic!("{name} stands on no floor")).1;
        for (line, target) in imports(&fs::read_to_string(&path).unwrap()) {
            let assembly = name == ASSEMBLY.0 && ASSEMBLY.1.contains(&target.as_str());
            if target != floor && !allowed.contains(&target.as_str()) && !assembly {
                wrong.push(format!("{name}:{line} imports {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that point up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn the_import_check_sees_what_it_should() {
    let source = "use crate::sched::X;\nlet a = crate::{base, hal::Y};\n// crate::ffi\n\"crate::exec\"";
    let seen: Vec<_> = imports(source).into_iter().map(|i| i.1).collect();
    assert_eq!(seen, ["sched", "base", "hal"]);
}

/// First line and length of each function, by rustfmt's indentation: a body ends at the `}` in the column of its `fn`.
fn functions(source: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = source.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let before = text.split("fn ").next().unwrap_or_default();
        let qualifiers = ["pub ", "pub(crate) ", "pub(super) ", "const ", "unsafe ", "extern \"C\" "];
        let rest = qualifiers.iter().fold(before.to_owned(), |rest, q| rest.replace(q, ""));
        if before.len() == text.len() || !rest.is_empty() || text.ends_with(';') || text.ends_with('}') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(line.len() - text.len()));
        if let Some(len) = lines[i..].iter().position(|l| *l == end) {
            found.push((i + 1, len + 1));
        }
    }
    found
}

#[test]
fn rooms_stay_small() {
    let mut wrong = Vec::new();
    for path in files("src", "rs").into_iter().chain(files("tests", "rs")).chain(files("examples", "rs")) {
        let source = fs::read_to_string(&path).unwrap();
        let lines = source.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{} has {lines} lines", name(&path)));
        }
        for (line, len) in functions(&source).into_iter().filter(|f| f.1 > MAX_FUNCTION_LINES) {
            wrong.push(format!("{}:{line} is a function of {len} lines", name(&path)));
        }
    }
    let others =
        [("kernels", "cu"), ("kernels", "cuh"), ("ascend", "cpp"), ("tests", "c"), ("tests", "h"), ("tests", "cpp")];
    for path in others.into_iter().flat_map(|(folder, kind)| files(folder, kind)) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{} has {lines} lines", name(&path)));
        }
    }
    assert!(
        wrong.is_empty(),
        "over {MAX_LINES} lines a file or {MAX_FUNCTION_LINES} a function:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_function_check_sees_what_it_should() {
    let source = "pub(crate) fn a() {\n    1\n}\n    fn b(&self);\n    fn c(\n        x: fn(),\n    ) {\n        {\n        }\n    }\n";
    assert_eq!(functions(source), [(1, 3), (5, 6)]);
}

#[test]
fn unsafe_stays_in_its_places() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let name = name(&path);
        for (i, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let line = code(line);
            let uses = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
            if uses && !UNSAFE.iter().any(|place| name.starts_with(place)) {
                wrong.push(format!("{name}:{}", i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside {UNSAFE:?}:\n{}", wrong.join("\n"));
}

#[test]
fn no_features_and_no_device_names_above_hal() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let name = name(&path);
        let tests = name.ends_with("tests.rs");
        if tests || name.starts_with("src/hal/") || name == "src/base/config.rs" {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let product = source.split("#[cfg(test)]").next().unwrap_or_default();
        for (i, line) in product.lines().enumerate() {
            if code(line).contains("cfg(feature")
                || line.contains("\"cpu\"")
                || line.contains("\"cuda\"")
                || line.contains("\"ascend\"")
            {
                wrong.push(format!("{name}:{}", i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "features or device names outside hal:\n{}", wrong.join("\n"));
}

#[test]
fn the_code_map_names_every_floor() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    assert!(map.lines().count() <= 200, "ARCHITECTURE.md has more than 200 lines");
    for (floor, _) in FLOORS {
        assert!(map.contains(&format!("`{floor}`")), "ARCHITECTURE.md does not mention `{floor}`");
    }
}

/// Launches overlap: a kernel that did not wait for the one before it would read what is not there yet, and the one behind it
/// would not wait for either.
#[test]
fn every_kernel_waits_for_the_launch_in_front() {
    // Launched alone.
    const ALONE: &[&str] = &["kernels/planted.cu", "kernels/random.cu"];
    let mut kernels = 0;
    for path in files("kernels", "cu").into_iter().filter(|path| !ALONE.contains(&name(path).as_str())) {
        let source = fs::read_to_string(&path).unwrap();
        for (at, _) in source.match_indices("__global__") {
            let (head, body) = source[at..].split_once('{').expect("a body");
            let first = body.trim_start_matches(|c: char| c.is_whitespace() || c == '\\');
            // The others say that it waits later.
            let waits = ["after_prior();", "let_next_start();", "let_next_start_if("]
                .iter()
                .any(|call| first.starts_with(call));
            assert!(waits, "{}: a kernel does not begin with after_prior(): {head}", name(&path));
            kernels += 1;
        }
        let later = source.matches("let_next_start").count();
        let waits = |text: &str| text.contains("wait_for_prior();");
        // What defines the wait is no header of a kernel.
        let headers = source.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
        let mut headers = headers.filter(|header| *header != "ptx.cuh");
        let in_header = |header: &str| waits(&fs::read_to_string(path.with_file_name(header)).unwrap());
        assert!(later == 0 || waits(&source) || headers.any(in_header), "{} never waits", name(&path));
    }
    assert!(kernels > 30, "{kernels} kernels were found");
}
