//! What is wrong with a body that is sent as a message: DESIGN 4.6, read again.

use super::tree::{Reader, Tree, read};

/// How deep a message may be nested, and how many one batch may have.
const MAX_DEPTH: usize = 128;
const MAX_BATCH: usize = 1024;

/// The members of a message that say what it is.
const NAMES: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

const NOT_JSON: i64 = -32700;
const INVALID: i64 = -32600;
const POSITIONAL: i64 = -32602;

/// What `body` says, if it is JSON.
pub fn said(body: &[u8]) -> Option<Tree> {
    // It goes over a value without a limit of depth, and does not look at surrogates: `read` does.
    serde_json::from_slice::<serde::de::IgnoredAny>(body).ok()?;
    read(std::str::from_utf8(body).ok()?)
}

/// The codes with which a body that says `said` may be refused, where an id is written into it or not; none
/// where it has to be let through. Of several mistakes any may be told.
pub fn wrong(said: Option<&Tree>, has_id: bool, accepts_batches: bool) -> Vec<i64> {
    let Some(tree) = said else {
        // What stands before the mistake may be another one.
        return vec![NOT_JSON, INVALID, POSITIONAL];
    };
    let mut wrong = Vec::new();
    if depth(tree) > MAX_DEPTH {
        wrong.push(INVALID);
    }
    let messages = match tree {
        Tree::List(batch) => {
            if !accepts_batches || batch.is_empty() || batch.len() > MAX_BATCH {
                wrong.push(INVALID);
            }
            &batch[..]
        }
        one => std::slice::from_ref(one),
    };
    wrong.extend(messages.iter().filter_map(|it| in_message(it, has_id)));
    wrong
}

fn depth(tree: &Tree) -> usize {
    let inside = match tree {
        Tree::List(list) => list.iter().map(depth).max(),
        Tree::Object(members) => members.iter().map(|(_, it)| depth(it)).max(),
        _ => return 0,
    };
    1 + inside.unwrap_or_default()
}

fn in_message(message: &Tree, has_id: bool) -> Option<i64> {
    let Tree::Object(members) = message else {
        return Some(INVALID);
    };
    if is_unclear(members, &NAMES) {
        return Some(INVALID);
    }
    let get = |name| members.iter().find(|(key, _)| key == name).map(|it| &it.1);
    let params = get("params");
    if let Some(Tree::Object(params)) = params
        && is_unclear(params, &["server_id"])
    {
        return Some(INVALID);
    }
    match (get("method"), get("result").or(get("error"))) {
        (Some(Tree::Text(_)), None) => match params {
            None | Some(Tree::Null | Tree::Object(_)) => None,
            Some(_) => has_id.then_some(POSITIONAL),
        },
        (None, Some(_)) => None,
        _ => Some(INVALID),
    }
}

/// Whether some reader finds other `names` in an object than others do: also one that stops at a zero, as
/// those in C, or folds as in Turkish, where the dotted capital is an `i`.
fn is_unclear(members: &[(String, Tree)], names: &[&str]) -> bool {
    let folded = |(key, _): &(String, Tree)| {
        let read = key.split('\0').next().unwrap_or_default();
        let read = Reader::Folding.name(&read.replace('\u{130}', "i"));
        (key.clone(), read)
    };
    let keys: Vec<_> = members.iter().map(folded).collect();
    names.iter().any(|name| {
        let folded = name.replace('_', "");
        let mut alike = keys.iter().filter(|(_, read)| *read == folded);
        alike.next().is_some_and(|(key, _)| key != name) || alike.next().is_some()
    })
}
