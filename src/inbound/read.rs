//! What a capture layer reads from one request, and when it rejects the request.
//!
//! It may not know rules or upstreams, only how names fold: it is given names, and how each of them is read.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode,
    header::{CONNECTION, COOKIE},
    request::Parts,
};
use smallvec::SmallVec;

use crate::{
    carry::{Entry, Inbound},
    reply::Rejection,
    rules::names,
};

/// How many header names `Connection` may list, `close`, `keep-alive` and `upgrade` aside.
const MAX_NOMINATED: usize = 9;

/// How many lines one inbound holds.
const MAX_LINES: usize = 256;

/// How many lines are collected before one more allocation.
const INLINE: usize = 16;

/// What the embedder vouches for.
pub(super) type Attest = Arc<dyn for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync>;

/// How one name is read.
#[derive(Clone)]
pub(super) enum Source {
    /// One line.
    Line,
    /// Several lines, each on its own.
    Lines,
    /// Several lines, joined to one: RFC 9113 section 8.2.3.
    Cookie,
    /// What the embedder says, whatever the caller wrote.
    Attested(Attest),
}

impl Source {
    /// How `name` is read unless something else is said.
    pub(super) fn of(name: &HeaderName) -> Self {
        if name == COOKIE {
            Self::Cookie
        } else {
            Self::Line
        }
    }
}

/// Reads the same names from every request.
pub(super) struct Reader {
    names: Arc<[HeaderName]>,
    /// How each of `names` is read.
    sources: Vec<Source>,
    max_value: usize,
    max_total: usize,
    /// Whether the inbound of a caller who sent nothing is attached as well.
    always_attaches: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(
        sources: BTreeMap<String, (HeaderName, Source)>,
        max_value: usize,
        max_total: usize,
        always_attaches: bool,
    ) -> Self {
        let mut sources: Vec<_> = sources.into_values().collect();
        // An inbound finds a name by halves: with many upstreams there are many.
        sources.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        let (names, sources): (Vec<_>, _) = sources.into_iter().unzip();
        Self {
            names: names.into(),
            sources,
            max_value,
            max_total,
            always_attaches,
        }
    }

    pub(super) fn always_attaches(&self) -> bool {
        self.always_attaches
    }

    pub(super) fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// What `headers` say, in which the values are sensitive from here on; or the answer to them.
    pub(super) fn read(&self, headers: &mut HeaderMap) -> Result<Inbound, Rejection> {
        if headers.contains_key(CONNECTION) {
            self.check_connection(headers)?;
        }
        let mut found = Found {
            entries: SmallVec::new(),
            total: 0,
            max_total: self.max_total,
        };
        for (index, (name, source)) in self.names.iter().zip(&self.sources).enumerate() {
            self.read_name(index, name, source, headers, &mut found)?;
        }
        Ok(Inbound::new(Arc::clone(&self.names), found.snapshot()))
    }

    /// Whether any header is the embedder's to say.
    pub(super) fn attests(&self) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|source| matches!(source, Source::Attested(_)))
    }

    /// RFC 9110 section 7.6.1 makes every header that `Connection` lists one of this hop only.
    fn check_connection(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        let mut nominated = 0;
        for line in headers.get_all(CONNECTION) {
            let Ok(line) = line.to_str() else {
                return Err(bad_request(
                    "`connection` is not readable; send header names".into(),
                ));
            };
            let tokens = line.split(',').map(str::trim);
            for token in tokens.filter(|token| !token.is_empty()) {
                let mut names = self.names.iter();
                if let Some(name) = names.find(|name| token.eq_ignore_ascii_case(name.as_str())) {
                    return Err(bad_request(format!(
                        "`connection` lists `{name}`; remove it from there"
                    )));
                }
                let usual = ["close", "keep-alive", "upgrade"];
                if !usual.iter().any(|usual| token.eq_ignore_ascii_case(usual)) {
                    nominated += 1;
                }
            }
        }
        if nominated > MAX_NOMINATED {
            return Err(bad_request(format!(
                "`connection` lists {nominated} names; send at most {MAX_NOMINATED}"
            )));
        }
        Ok(())
    }

    /// Puts what the embedder vouches for in place of what the caller wrote.
    pub(super) fn attest<B>(&self, request: Request<B>) -> Result<Request<B>, Rejection> {
        let (mut parts, body) = request.into_parts();
        // All are asked before any is written, so that each sees the request as it came.
        let mut values = Vec::new();
        let mut total = 0;
        for (name, source) in self.names.iter().zip(&self.sources) {
            if let Source::Attested(attest) = source {
                let value = attest(&parts).filter(|value| !value.is_empty());
                total += value.as_ref().map_or(0, |value| value.len());
                if total > self.max_total {
                    return Err(not_attestable(name));
                }
                let value = value.map(|value| self.attested(name, &value)).transpose()?;
                values.push((name, value));
            }
        }
        for (name, value) in values {
            // In every spelling that a server may take for it.
            let folded = names::folded(name);
            let callers = parts
                .headers
                .keys()
                .filter(|key| names::is_folded(key, &folded));
            for key in callers.cloned().collect::<Vec<_>>() {
                parts.headers.remove(key);
            }
            if let Some(value) = value {
                let room = parts.headers.try_insert(name, value);
                room.map_err(|_| not_attestable(name))?;
            }
        }
        Ok(Request::from_parts(parts, body))
    }

    fn attested(&self, name: &HeaderName, value: &str) -> Result<HeaderValue, Rejection> {
        let fits = value.len() <= self.max_value && value.trim_ascii() == value;
        let value = HeaderValue::from_str(value).ok().filter(|_| fits);
        value.ok_or_else(|| not_attestable(name))
    }

    /// Adds each value under `name`, sensitive from here on, to `found`.
    fn read_name(
        &self,
        index: usize,
        name: &HeaderName,
        source: &Source,
        headers: &mut HeaderMap,
        found: &mut Found,
    ) -> Result<(), Rejection> {
        let Some(first) = headers.get_mut(name) else {
            return Ok(());
        };
        first.set_sensitive(true);
        let first = first.clone();
        let attested = matches!(source, Source::Attested(_));
        // Mostly no header at all has several lines, which is known without a search.
        let several = headers.len() > headers.keys_len();
        if !several || headers.get_all(name).iter().nth(1).is_none() {
            self.check(name, &first)?;
            return found.push(index, first, attested);
        }
        if !matches!(source, Source::Lines | Source::Cookie) {
            let message = format!("`{name}` came on several lines; send it once");
            return Err(bad_request(message));
        }
        // `HeaderMap` lends several lines mutably only by an entry, which may allocate and fail.
        for (_, line) in headers.iter_mut().filter(|(found, _)| *found == name) {
            line.set_sensitive(true);
            self.check(name, line)?;
        }
        let lines = headers.get_all(name).iter();
        if matches!(source, Source::Lines) {
            return lines
                .cloned()
                .try_for_each(|line| found.push(index, line, attested));
        }
        let mut joined = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(line.as_bytes());
            if joined.len() > self.max_value {
                return Err(self.too_long(name));
            }
        }
        let Ok(mut joined) = HeaderValue::from_maybe_shared(Bytes::from(joined)) else {
            return Err(bad_request(
                "the lines of `cookie` cannot be joined; send one".into(),
            ));
        };
        joined.set_sensitive(true);
        found.push(index, joined, attested)
    }

    fn too_long(&self, name: &HeaderName) -> Rejection {
        too_large(format!("`{name}` is longer than {} bytes", self.max_value))
    }

    fn check(&self, name: &HeaderName, value: &HeaderValue) -> Result<(), Rejection> {
        if value.len() > self.max_value {
            return Err(self.too_long(name));
        }
        // HTTP/1 parsers trim; in HTTP/2 it is malformed (RFC 9113 section 8.2.1), and servers differ.
        if value.as_bytes().trim_ascii().len() != value.len() {
            let message = format!("`{name}` begins or ends with white space; remove it");
            return Err(bad_request(message));
        }
        Ok(())
    }
}

/// What has been read so far, within the limits.
struct Found {
    /// Each is `Some`; `Option`, so that they can be moved out into one allocation.
    entries: SmallVec<[Option<Entry>; INLINE]>,
    total: usize,
    max_total: usize,
}

impl Found {
    /// Adds a line; an empty one is absent.
    fn push(&mut self, name: usize, value: HeaderValue, attested: bool) -> Result<(), Rejection> {
        if value.is_empty() {
            return Ok(());
        }
        self.total += value.len();
        if self.total > self.max_total {
            let message = format!(
                "the forwarded headers are longer than {} bytes",
                self.max_total
            );
            return Err(too_large(message));
        }
        if self.entries.len() == MAX_LINES {
            let message = format!("the forwarded headers have more than {MAX_LINES} lines");
            return Err(too_large(message));
        }
        self.entries.push(Some(Entry {
            name,
            value,
            attested,
        }));
        Ok(())
    }

    fn snapshot(&mut self) -> Option<Arc<[Entry]>> {
        let moved = self.entries.iter_mut().map(|slot| {
            slot.take().unwrap_or_else(|| Entry {
                name: usize::MAX,
                value: HeaderValue::from_static(""),
                attested: false,
            })
        });
        (moved.len() > 0).then(|| moved.collect())
    }
}

fn not_attestable(name: &HeaderName) -> Rejection {
    let message = format!("what was attested for `{name}` is no header value, or too long");
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

fn bad_request(message: String) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST, message)
}

fn too_large(message: String) -> Rejection {
    Rejection::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
}
