//! The table that the docs show is this file's own.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::{ALLOWED, RESTRICTED, RESTRICTED_PREFIXES};

/// One line for each reason, in the order of the tables.
fn documented() -> String {
    let names = RESTRICTED
        .iter()
        .map(|(name, why)| (format!("`{name}`"), why));
    let prefixes = RESTRICTED_PREFIXES
        .iter()
        .map(|(prefix, why)| (format!("every `{prefix}` name"), why));
    let mut lines: Vec<(&str, Vec<String>)> = Vec::new();
    for (name, why) in names.chain(prefixes) {
        match lines.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, names)) => names.push(name),
            None => lines.push((why, vec![name])),
        }
    }
    let mut table = "| header | it |\n|---|---|\n".to_owned();
    for (why, names) in lines {
        table += &format!("| {} | {why} |\n", names.join(", "));
    }
    let allowed: Vec<_> = ALLOWED.iter().map(|name| format!("`{name}`")).collect();
    table + &format!("\nNot {}.\n", allowed.join(", "))
}

#[test]
fn the_docs_have_the_same_names() {
    let table = documented();
    let shown = include_str!("../restricted.md");
    assert!(
        shown == table,
        "`src/rules/restricted.md` should be:\n{table}"
    );
}
