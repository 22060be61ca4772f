//! The README's table of configuration keys is the code's. `BLESS=1` rewrites it.

use std::fs;
use std::path::Path;
use yinian::base::config::{KEYS, Support};

const BEGIN: &str = "<!-- keys: generated from src/base/config.rs -->\n";
const END: &str = "<!-- end of keys -->";

fn table() -> String {
    let mut out = String::from("| key | type | default | |\n|---|---|---|---|\n");
    for key in KEYS {
        let note = match key.support {
            Support::Built => "",
            Support::OnlyDefault(_) => "(only the default in this version) ",
        };
        let cell = |s: &str| s.replace('|', "\\|");
        out += &format!("| `{}` | {} | {} | {note}{} |\n", key.name, cell(key.kind), cell(key.default), key.doc);
    }
    out
}

#[test]
fn the_key_table_is_the_code_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let begin = readme.find(BEGIN).expect("README.md has no begin marker of the key table") + BEGIN.len();
    let end = readme.find(END).expect("README.md has no end marker of the key table");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, format!("{}{}{}", &readme[..begin], table(), &readme[end..])).unwrap();
    } else {
        assert_eq!(&readme[begin..end], table(), "README.md's key table is out of date: run with BLESS=1");
    }
}
