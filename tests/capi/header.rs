//! The committed header, and what it declares.

use std::collections::BTreeSet;
use std::path::Path;

pub(crate) fn header() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("include/yinian.h")).unwrap()
}

/// Functions the header declares.
pub(crate) fn declared() -> BTreeSet<String> {
    let header = header();
    header
        .match_indices("yn_")
        .filter_map(|(at, _)| header[at..].split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_') && name != "yn_log_fn")
        .collect()
}
