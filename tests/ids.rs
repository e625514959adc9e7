//! The account of the adversarial catalogue: each of its cases has a test, or a line that says why
//! not.
//!
//! `ids.txt` has every id, `ids.toml` those without a test. A test is a function, in any file here,
//! whose name begins with the id: `e3_two_connection_lines`. What is the embedder's to do, SECURITY.md
//! says in plain words.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What `ids.toml` may say, and under which key it says why.
const STATES: [(&str, &str); 2] = [("embedder", "why"), ("superseded", "row")];

/// The case that a line of Rust tests, if it begins a function whose name begins with an id.
fn tested(line: &str) -> Option<String> {
    let line = line.trim_start();
    let line = line.strip_prefix("async ").unwrap_or(line);
    let (id, _) = line.strip_prefix("fn ")?.split_once('_')?;
    let (group, number) = id.split_at_checked(1)?;
    let is_id = group.bytes().all(|byte| byte.is_ascii_lowercase())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit());
    is_id.then(|| id.to_ascii_uppercase())
}

/// An id and what is wrong with its line, from `ID = { state = "…", key = "…" }`.
fn entry(line: &str) -> Option<(&str, Result<(), String>)> {
    let (id, rest) = line.split_once('=')?;
    Some((id.trim(), check(rest)))
}

fn check(table: &str) -> Result<(), String> {
    let table = table.trim();
    let inner = table.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let mut rest = inner.ok_or("is no `{ … }` on one line")?.trim();
    let mut fields = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or("has a key without a value")?;
        let quoted = after.trim_start().strip_prefix('"');
        let (value, after) = quoted
            .and_then(|text| text.split_once('"'))
            .ok_or("has a value without quotes")?;
        if fields.insert(key.trim(), value.trim()).is_some() {
            return Err(format!("has `{}` twice", key.trim()));
        }
        rest = after.trim().trim_start_matches(',').trim();
    }
    let state = fields.remove("state").ok_or("has no state")?;
    let (_, key) = STATES
        .iter()
        .find(|(name, _)| *name == state)
        .ok_or(format!("has the unknown state `{state}`"))?;
    match fields.remove(key) {
        Some(reason) if !reason.is_empty() => {}
        _ => return Err(format!("is {state} and has no `{key}`")),
    }
    match fields.keys().next() {
        Some(key) => Err(format!("has the unknown key `{key}`")),
        None => Ok(()),
    }
}

/// Everything that is wrong, one line each.
fn mistakes(ids: &str, table: &str, tests: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for id in ids.lines().map(str::trim).filter(|id| !id.is_empty()) {
        if !known.insert(id) {
            wrong.push(format!("{id} is twice in ids.txt"));
        }
    }
    let mut listed = BTreeSet::new();
    for line in table.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((id, checked)) = entry(line) else {
            wrong.push(format!("ids.toml: `{line}` is no entry"));
            continue;
        };
        if !known.contains(id) {
            wrong.push(format!("{id} is in ids.toml and unknown"));
        }
        if !listed.insert(id) {
            wrong.push(format!("{id} is twice in ids.toml"));
        }
        if let Err(what) = checked {
            wrong.push(format!("{id} {what}"));
        }
    }
    let tests: BTreeSet<_> = tests.lines().filter_map(tested).collect();
    for id in &known {
        match (tests.contains(*id), listed.contains(id)) {
            (false, false) => wrong.push(format!("{id} has neither a test nor a line in ids.toml")),
            (true, true) => wrong.push(format!("{id} has a test and a line in ids.toml")),
            _ => {}
        }
    }
    for id in tests.iter().filter(|id| !known.contains(id.as_str())) {
        wrong.push(format!("{id} has a test and is unknown"));
    }
    wrong
}

#[test]
fn every_case_is_accounted_for() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let read = |name: &str| fs::read_to_string(here.join(name)).unwrap();
    let mut tests = String::new();
    for file in fs::read_dir(&here).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            tests += &fs::read_to_string(path).unwrap();
        }
    }
    let ids = read("ids.txt");
    assert_eq!(ids.lines().count(), 197, "the catalogue has 197 cases");
    let wrong = mistakes(&ids, &read("ids.toml"), &tests);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn each_mistake_is_found() {
    let good = r#"A2 = { state = "embedder", why = "x" }"#;
    let test = "    async fn a1_some_name() {\nfn helper_a3() {}\n// fn a3_comment\nfn a_name() {}";
    assert!(mistakes("A1\nA2\n", good, test).is_empty());
    for (ids, table, tests, expected) in [
        ("A1\nA2\nA3", good, test, "A3 has neither"),
        (
            "A1\nA2",
            good,
            "fn a1_x() {\nfn a2_x() {",
            "A2 has a test and a line",
        ),
        ("A1", good, test, "A2 is in ids.toml and unknown"),
        ("A2", good, test, "A1 has a test and is unknown"),
        ("A1\nA1\nA2", good, test, "A1 is twice in ids.txt"),
        ("A1\nA12\nA2", good, "fn a12_x() {", "A1 has neither"),
    ] {
        let found = mistakes(ids, table, tests);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(expected), "{found:?}");
    }
    for (table, expected) in [
        (r#"A2 = { state = "later", why = "x" }"#, "unknown state"),
        (r#"A2 = { state = "embedder", why = " " }"#, "no `why`"),
        (r#"A2 = { state = "embedder", row = "x" }"#, "no `why`"),
        (r#"A2 = { state = "superseded" }"#, "no `row`"),
        (r#"A2 = { why = "x" }"#, "no state"),
        (
            r#"A2 = { state = "embedder", why = "x", row = "y" }"#,
            "unknown key",
        ),
        (r#"A2 = { state = embedder }"#, "without quotes"),
        ("A2 = 1", "on one line"),
    ] {
        let found = mistakes("A2", table, "");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(expected), "{found:?}");
    }
    let twice = format!("{good}\n{good}");
    assert_eq!(mistakes("A2", &twice, ""), ["A2 is twice in ids.toml"]);
    let found = mistakes("A2", "A2", "");
    assert!(found[0].contains("is no entry"), "{found:?}");
}

#[test]
fn what_is_the_embedders_stands_in_security_md() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let security = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let words: BTreeSet<_> = security
        .split(|byte: char| !byte.is_ascii_alphanumeric())
        .collect();
    let table = fs::read_to_string(root.join("tests/ids.toml")).unwrap();
    let embedders = table
        .lines()
        .filter(|line| line.contains(r#"state = "embedder""#));
    for (id, _) in embedders.filter_map(entry) {
        assert!(words.contains(id), "{id} is in no row of SECURITY.md");
    }
    let mut files = 0;
    for file in security
        .split('`')
        .filter(|text| text.starts_with("tests/"))
    {
        assert!(root.join(file).exists(), "there is no {file}");
        files += 1;
    }
    assert!(files > 20, "{files}");
}
