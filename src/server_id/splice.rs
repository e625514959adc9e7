//! The edit: which bytes of a JSON-RPC message become which others. Bytes in, bytes out.
//!
//! What cannot be edited with certainty is refused. It may not know HTTP beyond the status of a
//! refusal, nor where a message came from.

use std::ops::Range;

use bytes::{Buf, Bytes};
use http::StatusCode;
use smallvec::SmallVec;

use super::scan::{Broken, Likeness, Scanner};
use crate::reply::Rejection;

/// How many messages one batch may have: each of them grows.
const MAX_BATCH: usize = 1024;

/// The members of a message that say what it is.
const NAMES: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
const METHOD: &str = "method";
const PARAMS: &str = "params";

const NOT_JSON: Rejection = refusal("the body is not JSON; send one JSON-RPC message").code(-32700);
const TOO_DEEP: Rejection = refusal("the message is nested deeper than 128; send it flatter");
const NO_OBJECT: Rejection = refusal("the message is no object; send a JSON-RPC message");
const BATCH: Rejection = refusal("batches are not accepted; send the messages one by one");
const NO_BATCH: Rejection = refusal("the batch is empty, or a batch is in it; send messages");
const LONG_BATCH: Rejection = Rejection::fixed(
    StatusCode::PAYLOAD_TOO_LARGE,
    "the batch has more than 1024 messages; send fewer at once",
);
const AMBIGUOUS: Rejection =
    refusal("a member of the message is repeated or spelled another way; send it once");
const AMBIGUOUS_PARAM: Rejection =
    refusal("the server parameter is repeated or spelled another way in `params`; leave it out");
const METHOD_TYPE: Rejection = refusal("`method` is no string; send its name");
const NEITHER: Rejection =
    refusal("the message is neither a request nor a response; send one of the two");
const BOTH: Rejection =
    refusal("the message is both a request and a response; send one of the two");
const POSITIONAL: Rejection =
    refusal("`params` is no object, so it cannot name the server; send it by name").code(-32602);

const fn refusal(message: &'static str) -> Rejection {
    Rejection::fixed(StatusCode::BAD_REQUEST, message)
}

impl From<Broken> for Rejection {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Syntax => NOT_JSON,
            Broken::Depth => TOO_DEEP,
        }
    }
}

/// What becomes of one parameter of each request.
pub(super) struct Edit<'a> {
    pub(super) param: &'a str,
    /// Its new value, as JSON; `None` removes it.
    pub(super) value: Option<String>,
    pub(super) accept_batches: bool,
}

/// A body in pieces; one message has at most three.
pub(super) type Pieces = SmallVec<[Bytes; 3]>;

/// Bytes that others take the place of.
struct Patch {
    old: Range<usize>,
    new: Bytes,
}

/// The pieces of the edited body; `None` where it stays as it is.
pub(super) fn splice(body: &Bytes, edit: &Edit<'_>) -> Result<Option<Pieces>, Rejection> {
    let mut scanner = Scanner::new(body);
    let mut patches = SmallVec::<[Patch; 1]>::new();
    if scanner.take(b'[') {
        if !edit.accept_batches {
            return Err(BATCH);
        }
        for count in 1.. {
            if count > MAX_BATCH {
                return Err(LONG_BATCH);
            }
            if matches!(scanner.peek(), Some(b'[' | b']')) {
                return Err(NO_BATCH);
            }
            patches.extend(message(&mut scanner, 1, edit)?);
            if scanner.take(b']') {
                break;
            }
            scanner.require(b',')?;
        }
    } else {
        patches.extend(message(&mut scanner, 0, edit)?);
    }
    scanner.end()?;
    Ok((!patches.is_empty()).then(|| pieces(body, patches)))
}

fn pieces(body: &Bytes, patches: SmallVec<[Patch; 1]>) -> Pieces {
    let mut rest = body.clone();
    let mut pieces = Pieces::with_capacity(patches.len() * 2 + 1);
    let mut at = 0;
    for Patch { old, new } in patches {
        pieces.push(rest.split_to(old.start - at));
        pieces.push(new);
        rest.advance(old.len());
        at = old.end;
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// Reads one message that stands in `depth` containers.
fn message(
    scanner: &mut Scanner<'_>,
    depth: u32,
    edit: &Edit<'_>,
) -> Result<Option<Patch>, Rejection> {
    if scanner.peek() != Some(b'{') {
        scanner.value(depth)?;
        return Err(NO_OBJECT);
    }
    let mut found = [false; NAMES.len()];
    let mut first = None;
    let mut has_name = true;
    let mut params = Params::Missing;
    scanner.object(|scanner, key| {
        first.get_or_insert(key.start);
        let mut name = None;
        for (candidate, found) in NAMES.into_iter().zip(&mut found) {
            match key.likeness(candidate) {
                Likeness::Same if !*found => {
                    *found = true;
                    name = Some(candidate);
                }
                Likeness::Other => {}
                _ => return Err(AMBIGUOUS),
            }
        }
        match name {
            Some(PARAMS) => params = Params::read(scanner, depth + 1, edit.param)?,
            _ => {
                if name == Some(METHOD) {
                    has_name = scanner.peek() == Some(b'"');
                }
                scanner.value(depth + 1)?;
            }
        }
        Ok(())
    })?;
    let [_, _, is_request, _, has_result, has_error] = found;
    match (is_request, has_result || has_error) {
        (true, true) => Err(BOTH),
        (false, false) => Err(NEITHER),
        (false, true) => Ok(None),
        (true, false) if !has_name => Err(METHOD_TYPE),
        (true, false) => params.patch(first.unwrap_or_default(), edit),
    }
}

/// What stands under `params`.
enum Params {
    Missing,
    Null(Range<usize>),
    /// Where the first member would stand, and whether one does.
    Object {
        start: usize,
        is_empty: bool,
    },
    /// An object that has the parameter.
    Named(Member),
    Positional,
}

/// A member of an object.
struct Member {
    start: usize,
    value: Range<usize>,
    /// Where the value before it ended.
    before: Option<usize>,
    /// Where the member after it begins.
    after: Option<usize>,
}

impl Member {
    /// All of it, and one comma where there is one.
    fn whole(&self) -> Range<usize> {
        match (self.before, self.after) {
            (_, Some(after)) => self.start..after,
            (Some(before), None) => before..self.value.end,
            (None, None) => self.start..self.value.end,
        }
    }
}

impl Params {
    /// Reads what stands in `depth` containers.
    fn read(scanner: &mut Scanner<'_>, depth: u32, param: &str) -> Result<Self, Rejection> {
        match scanner.peek() {
            Some(b'{') => {}
            Some(b'n') => return Ok(Self::Null(scanner.value(depth)?)),
            _ => {
                scanner.value(depth)?;
                return Ok(Self::Positional);
            }
        }
        let start = scanner.at() + 1;
        let mut named: Option<Member> = None;
        let mut last = None;
        scanner.object(|scanner, key| {
            if let Some(named) = &mut named {
                named.after.get_or_insert(key.start);
            }
            let likeness = key.likeness(param);
            let value = scanner.value(depth + 1)?;
            let before = last.replace(value.end);
            match likeness {
                Likeness::Other => Ok(()),
                Likeness::Same if named.is_none() => {
                    named = Some(Member {
                        start: key.start,
                        value,
                        before,
                        after: None,
                    });
                    Ok(())
                }
                _ => Err(AMBIGUOUS_PARAM),
            }
        })?;
        let is_empty = last.is_none();
        Ok(named.map_or(Self::Object { start, is_empty }, Self::Named))
    }

    /// The edit of a request whose first member begins at `first`.
    fn patch(self, first: usize, edit: &Edit<'_>) -> Result<Option<Patch>, Rejection> {
        let param = edit.param;
        let (old, new) = match (self, &edit.value) {
            (Self::Named(member), None) => (member.whole(), String::new()),
            (_, None) => return Ok(None),
            (Self::Missing, Some(value)) => {
                let new = format!(r#""params":{{"{param}":{value}}},"#);
                (first..first, new)
            }
            (Self::Null(old), Some(value)) => (old, format!(r#"{{"{param}":{value}}}"#)),
            (Self::Object { start, is_empty }, Some(value)) => {
                let comma = if is_empty { "" } else { "," };
                (start..start, format!(r#""{param}":{value}{comma}"#))
            }
            (Self::Named(member), Some(value)) => (member.value, value.clone()),
            (Self::Positional, Some(_)) => return Err(POSITIONAL),
        };
        let new = new.into();
        Ok(Some(Patch { old, new }))
    }
}
