//! What a capture layer reads from one request, and when it rejects the request.
//!
//! It may not know rules or upstreams: it is given names, and how each of them is read.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode,
    header::{CONNECTION, COOKIE},
    request::Parts,
};
use smallvec::SmallVec;

use crate::{
    carry::{Entry, Inbound},
    reply::Rejection,
};

/// How many header names `Connection` may list, `close`, `keep-alive` and `upgrade` aside.
const MAX_NOMINATED: usize = 9;

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
        let (names, sources): (Vec<_>, _) = sources.into_values().unzip();
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

    /// The request as it goes on, and what it said; or the answer to it.
    pub(super) fn read<B>(&self, request: Request<B>) -> Result<(Request<B>, Inbound), Rejection> {
        if request.headers().contains_key(CONNECTION) {
            self.check_connection(request.headers())?;
        }
        let mut request = self.attest(request)?;
        let inbound = self.snapshot(request.headers_mut())?;
        Ok((request, inbound))
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
    fn attest<B>(&self, request: Request<B>) -> Result<Request<B>, Rejection> {
        let is_attested = |source: &Source| matches!(source, Source::Attested(_));
        if !self.sources.iter().any(is_attested) {
            return Ok(request);
        }
        let (mut parts, body) = request.into_parts();
        // All are asked before any is written, so that each sees the request as it came.
        let mut values = Vec::new();
        for (name, source) in self.names.iter().zip(&self.sources) {
            if let Source::Attested(attest) = source {
                let value = attest(&parts).filter(|value| !value.is_empty());
                let value = value.map(|value| self.attested(name, &value)).transpose()?;
                values.push((name, value));
            }
        }
        for (name, value) in values {
            parts.headers.remove(name);
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

    fn snapshot(&self, headers: &mut HeaderMap) -> Result<Inbound, Rejection> {
        // Each slot is filled; `Option`, so that they can be moved out into one allocation.
        let mut found = SmallVec::<[Option<Entry>; INLINE]>::new();
        let mut total = 0;
        for (index, (name, source)) in self.names.iter().zip(&self.sources).enumerate() {
            let attested = matches!(source, Source::Attested(_));
            self.lines(name, source, headers, |value| {
                total += value.len();
                found.push(Some(Entry {
                    name: index,
                    value,
                    attested,
                }));
            })?;
        }
        if total > self.max_total {
            let message = format!(
                "the forwarded headers are longer than {} bytes",
                self.max_total
            );
            return Err(too_large(message));
        }
        let moved = found.iter_mut().map(|slot| {
            slot.take().unwrap_or_else(|| Entry {
                name: usize::MAX,
                value: HeaderValue::from_static(""),
                attested: false,
            })
        });
        let snapshot = (moved.len() > 0).then(|| moved.collect());
        Ok(Inbound::new(Arc::clone(&self.names), snapshot))
    }

    /// Gives `found` each value under `name`, sensitive from here on; an empty one is absent.
    fn lines(
        &self,
        name: &HeaderName,
        source: &Source,
        headers: &mut HeaderMap,
        mut found: impl FnMut(HeaderValue),
    ) -> Result<(), Rejection> {
        let Some(first) = headers.get_mut(name) else {
            return Ok(());
        };
        first.set_sensitive(true);
        let first = first.clone();
        self.check(name, &first)?;
        let several = headers.get_all(name).iter().nth(1).is_some();
        if !several {
            if !first.is_empty() {
                found(first);
            }
            return Ok(());
        }
        // `HeaderMap` lends several lines mutably only by an entry, which may allocate and fail.
        for (_, line) in headers.iter_mut().filter(|(found, _)| *found == name) {
            line.set_sensitive(true);
            self.check(name, line)?;
        }
        let lines = headers.get_all(name).iter().filter(|line| !line.is_empty());
        match source {
            Source::Lines => lines.cloned().for_each(found),
            Source::Cookie => {
                let lines: Vec<_> = lines.map(HeaderValue::as_bytes).collect();
                let joined = HeaderValue::from_maybe_shared(lines.join(&b"; "[..]));
                let mut joined = joined.map_err(|_| {
                    bad_request("the lines of `cookie` cannot be joined; send one".to_owned())
                })?;
                joined.set_sensitive(true);
                self.check(name, &joined)?;
                if !joined.is_empty() {
                    found(joined);
                }
            }
            Source::Line | Source::Attested(_) => {
                return Err(bad_request(format!(
                    "`{name}` came on several lines; send it once"
                )));
            }
        }
        Ok(())
    }

    fn check(&self, name: &HeaderName, value: &HeaderValue) -> Result<(), Rejection> {
        if value.len() > self.max_value {
            let message = format!("`{name}` is longer than {} bytes", self.max_value);
            return Err(too_large(message));
        }
        // HTTP/1 parsers trim; in HTTP/2 it is malformed (RFC 9113 section 8.2.1), and servers differ.
        if value.as_bytes().trim_ascii().len() != value.len() {
            let message = format!("`{name}` begins or ends with white space; remove it");
            return Err(bad_request(message));
        }
        Ok(())
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
