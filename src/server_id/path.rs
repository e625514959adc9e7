//! Which server a path is for: the template, and what an id may be.
//!
//! Whatever cannot be read with certainty is no server's. It may not know any request.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// How long a decoded id may be, in bytes.
const MAX_ID: usize = 256;

/// A path of which one segment is the id.
#[derive(Debug)]
pub(super) struct Template {
    /// Up to the id, with its slash.
    before: String,
    /// From the id on.
    after: String,
}

impl Template {
    /// `None` where `text` is no path with exactly one segment `{…}`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let (before, rest) = text.split_once('{')?;
        let (name, after) = rest.split_once('}')?;
        let whole = before.ends_with('/') && (after.is_empty() || after.starts_with('/'));
        let named = !name.is_empty() && !name.contains('/');
        let plain = before.starts_with('/') && is_literal(before) && is_literal(after);
        (whole && named && plain).then(|| Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// The id in `path`, which may end in one slash; `None` for another path, and where the id is none.
    pub(super) fn id<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        let rest = path.strip_prefix(&self.before)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let segment = rest.strip_suffix(&self.after)?;
        decode(segment)
    }
}

/// Whether `text` is, in a path, what it looks like.
pub(super) fn is_literal(text: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_graphic() && !b"%?#{}\\\"<>^`|".contains(&byte);
    let dots = |segment: &str| matches!(segment, "." | "..");
    text.bytes().all(usual) && !text.contains("//") && !text.split('/').any(dots)
}

/// Decodes once, so that a second reader finds nothing left to decode: a malformed escape stays, and
/// its `%` makes it no id.
fn decode(segment: &str) -> Option<Cow<'_, str>> {
    let id = percent_decode_str(segment).decode_utf8().ok()?;
    let is_id = !matches!(&*id, "" | "." | "..") && id.len() <= MAX_ID && !id.contains(is_trick);
    is_id.then_some(id)
}

/// What makes an id look like another one, or like a path.
fn is_trick(c: char) -> bool {
    matches!(c, '/' | '\\' | '%') || c.is_control() || is_bidi_control(c)
}

/// Unicode's property `Bidi_Control`.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
