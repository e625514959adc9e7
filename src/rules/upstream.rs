//! `Upstream`: one MCP server behind the proxy, with its rules and static headers, and its builder.
//!
//! A built upstream has no mistake in it. It may not know a caller's values.

use std::{collections::BTreeSet, fmt, sync::Arc};

use http::{HeaderName, HeaderValue, Uri};

use super::{
    names,
    place::{self, Origin},
    rule::{CompiledRule, OnConflict, Rule},
};
use crate::error::{BuildError, Mistake, MistakeKind};

/// How many headers one upstream can have: far from what a `HeaderMap` can hold.
const MAX_LINES: usize = 256;

/// One MCP server behind the proxy: its name, its URL and what may travel to it.
///
/// A cheap handle. Equality is over everything in it. `Debug` prints the URL's origin alone,
/// and headers by name only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    inner: Arc<Inner>,
}

#[derive(PartialEq, Eq, Hash)]
struct Inner {
    name: String,
    url: Uri,
    origin: Origin,
    rules: Vec<CompiledRule>,
    lines: Arc<[Line]>,
    /// Every name in the rules and the static headers, folded.
    governed: Vec<String>,
}

/// One header line of an outbound request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) name: HeaderName,
    pub(crate) value: HeaderValue,
    pub(crate) provenance: Provenance,
}

/// Where the value of a line comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Provenance {
    Caller,
    Attested,
    Static,
}

impl Upstream {
    /// Starts an upstream: a `name` of `a-z`, `0-9` and `-`, and an `http` or `https` URL.
    ///
    /// ```
    /// use mcp_forward::Upstream;
    ///
    /// let upstream = Upstream::builder("search", "https://search.example/mcp")
    ///     .allow("x-user-id")
    ///     .set("x-proxy", "edge-1")
    ///     .build()?;
    /// assert_eq!(upstream.name(), "search");
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    pub fn builder(name: impl AsRef<str>, url: impl AsRef<str>) -> UpstreamBuilder {
        UpstreamBuilder {
            name: name.as_ref().to_owned(),
            url: url.as_ref().to_owned(),
            rules: Vec::new(),
            statics: Vec::new(),
            allow_cleartext: false,
        }
    }

    /// Its name: errors and events show it, and it is unique in one capture layer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its URL. The path and the query may hold a secret: print [`Upstream`] itself instead.
    #[must_use]
    pub fn url(&self) -> &Uri {
        &self.inner.url
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.inner.origin
    }

    pub(crate) fn rules(&self) -> &[CompiledRule] {
        &self.inner.rules
    }

    /// Whether the rules read or write `name` or write it statically, in any spelling of `-`.
    pub(crate) fn governs(&self, name: &HeaderName) -> bool {
        let mut governed = self.inner.governed.iter();
        governed.any(|governed| names::is_folded(name, governed))
    }

    /// Whether the operator writes `name` itself.
    pub(crate) fn is_static(&self, name: &HeaderName) -> bool {
        self.lines().iter().any(|line| line.name == *name)
    }

    /// Whether a rule writes a credential under `name`.
    pub(crate) fn takes_credential(&self, name: &HeaderName) -> bool {
        let mut credentials = self.rules().iter().filter(|rule| rule.credential);
        credentials.any(|rule| rule.target == *name)
    }

    /// Whether a static header is a credential.
    pub(crate) fn has_own_credential(&self) -> bool {
        let mut names = self.lines().iter().map(|line| &line.name);
        names.any(|name| names::guarded(name) || self.takes_credential(name))
    }

    /// The static headers.
    pub(crate) fn lines(&self) -> &Arc<[Line]> {
        &self.inner.lines
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            name,
            // Its path may hold a key, as its query may.
            url: _,
            origin,
            rules,
            lines,
            governed: _,
        } = &*self.inner;
        let names: Vec<_> = lines.iter().map(|line| &line.name).collect();
        f.debug_struct("Upstream")
            .field("name", name)
            .field("origin", &format_args!("{origin}"))
            .field("rules", rules)
            .field("static", &names)
            .finish()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Collects what one upstream may receive; every mistake is reported by [`build`](Self::build).
#[derive(Clone)]
#[must_use = "nothing is checked before `build`"]
pub struct UpstreamBuilder {
    name: String,
    url: String,
    rules: Vec<Rule>,
    statics: Vec<(String, Vec<u8>)>,
    allow_cleartext: bool,
}

impl UpstreamBuilder {
    /// Copies the header `name` when the caller sent it: [`Rule::new`].
    pub fn allow(self, name: impl AsRef<str>) -> Self {
        self.rule(Rule::new(name))
    }

    /// Copies the credential `name` when the caller sent it: [`Rule::credential`], whose page says
    /// when that is legitimate.
    pub fn allow_credential(self, name: impl AsRef<str>) -> Self {
        self.rule(Rule::credential(name))
    }

    /// Adds a rule.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Adds a static header, sent with every request on the operator's behalf.
    pub fn set(mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref().to_owned();
        self.statics.push((name.as_ref().to_owned(), value));
        self
    }

    /// Lets credentials travel to an `http` URL that is not loopback.
    ///
    /// Everybody on the path can read them. Inside a service mesh, which encrypts below HTTP, this
    /// is normal.
    pub fn allow_cleartext(mut self) -> Self {
        self.allow_cleartext = true;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    ///
    /// [`BuildError`] lists every mistake, each with the header that it is about: names that are
    /// not header names, [restricted](MistakeKind::Restricted) or [guarded](MistakeKind::Guarded),
    /// two values for one header, a static value that is empty, has spaces at an edge or holds
    /// control bytes, more than 256 rules and static headers, a URL that is not `http` or `https` or has userinfo, a fragment or dot
    /// segments, and a credential over clear text.
    pub fn build(self) -> Result<Upstream, BuildError> {
        let mut mistakes = Vec::new();
        let mut subject = "an upstream".to_owned();
        if is_name(&self.name) {
            subject = format!("upstream `{}`", self.name);
        } else {
            mistakes.push(Mistake::new(
                MistakeKind::InvalidUpstream,
                "its name may hold `a-z`, `0-9` and `-` only, as in `my-server`",
            ));
        }
        if self.rules.len() + self.statics.len() > MAX_LINES {
            let message = format!("more than {MAX_LINES} rules and static headers; use fewer");
            mistakes.push(Mistake::new(MistakeKind::TooMany, message));
            return Err(BuildError::new(subject, mistakes));
        }
        let url = parse_url(&self.url, &mut mistakes);
        let rules: Vec<_> = self
            .rules
            .iter()
            .filter_map(|rule| rule.compile(&mut mistakes))
            .collect();
        let lines: Vec<_> = self
            .statics
            .iter()
            .filter_map(|line| parse_line(line, &mut mistakes))
            .collect();
        check_targets(&rules, &lines, &mut mistakes);
        check_admission(&rules, &mut mistakes);

        let read = rules.iter().flat_map(CompiledRule::reads);
        let written = rules.iter().map(|rule| &rule.target);
        let fixed = lines.iter().map(|line| &line.name);
        let governed: BTreeSet<_> = read
            .chain(written)
            .chain(fixed)
            .map(names::folded)
            .collect();

        let credentials = !rules.is_empty() || lines.iter().any(|line| names::guarded(&line.name));
        if let Some((_, origin)) = &url
            && origin.is_cleartext()
            && !origin.is_loopback()
            && credentials
            && !self.allow_cleartext
        {
            mistakes.push(Mistake::new(
                MistakeKind::Cleartext,
                "the caller's headers, or a static credential, would cross the network in clear \
                 text; use `https`, or call `allow_cleartext()`, which is normal inside a service \
                 mesh",
            ));
        }
        match url {
            Some((url, origin)) if mistakes.is_empty() => Ok(Upstream {
                inner: Arc::new(Inner {
                    name: self.name,
                    url,
                    origin,
                    rules,
                    lines: lines.into(),
                    governed: governed.into_iter().collect(),
                }),
            }),
            _ => Err(BuildError::new(subject, mistakes)),
        }
    }
}

impl fmt::Debug for UpstreamBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the texts, which nobody has checked: one may hold a value.
        f.debug_struct("UpstreamBuilder").finish_non_exhaustive()
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    !name.is_empty() && name.bytes().all(allowed)
}

fn parse_url(text: &str, mistakes: &mut Vec<Mistake>) -> Option<(Uri, Origin)> {
    let mut wrong = |message: &str| {
        mistakes.push(Mistake::new(MistakeKind::InvalidUrl, message));
        None
    };
    // `Uri` drops a fragment without a word.
    if text.contains('#') {
        return wrong("the URL has a fragment, which is never sent; remove it");
    }
    let Ok(url) = text.parse::<Uri>() else {
        return wrong("the URL cannot be read; write it as `https://host/path`");
    };
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return wrong("the URL has userinfo; use `set(\"authorization\", …)` instead");
    }
    match Origin::of(&url) {
        Some(origin) if !origin.is_http() => {
            wrong("the URL's scheme is neither `http` nor `https`")
        }
        Some(_) if !place::is_plain(url.path()) => {
            wrong("the URL's path has dot segments or encoded slashes; write it plainly")
        }
        Some(origin) => Some((url, origin)),
        None => wrong("the URL is not absolute; write it as `https://host/path`"),
    }
}

fn parse_line((name, value): &(String, Vec<u8>), mistakes: &mut Vec<Mistake>) -> Option<Line> {
    let name = names::forwardable(name)
        .map_err(|mistake| mistakes.push(mistake))
        .ok()?;
    let edges = [value.first(), value.last()];
    let wrong = if value.is_empty() {
        Some("is empty; remove the header or give it a value")
    } else if edges.contains(&Some(&b' ')) {
        Some("has spaces at an edge; remove them")
    } else if value.iter().any(u8::is_ascii_control) {
        Some("holds a control byte, perhaps a line end; remove it")
    } else {
        None
    };
    match (wrong, HeaderValue::from_bytes(value)) {
        (None, Ok(mut value)) => {
            value.set_sensitive(true);
            Some(Line {
                name,
                value,
                provenance: Provenance::Static,
            })
        }
        (wrong, _) => {
            let wrong = wrong.unwrap_or("is no header value; remove what is not text");
            let message = format!("has a static value that {wrong}");
            mistakes.push(Mistake::of(MistakeKind::InvalidValue, &name, message));
            None
        }
    }
}

/// No header is written twice, and no two are one to a server that takes `_` for `-`.
fn check_targets(rules: &[CompiledRule], lines: &[Line], mistakes: &mut Vec<Mistake>) {
    let mut seen: Vec<(&HeaderName, Option<&CompiledRule>)> = Vec::new();
    let targets = rules.iter().map(|rule| (&rule.target, Some(rule)));
    let statics = lines.iter().map(|line| (&line.name, None));
    for (name, rule) in targets.chain(statics) {
        let folded = names::folded(name);
        let same = |is_alike: bool| {
            seen.iter().find(|(earlier, other)| {
                (other.is_some() == rule.is_some()) == is_alike && names::folded(earlier) == folded
            })
        };
        // Among its like first: a static header that a rule may write too is still written once.
        match same(true).or_else(|| same(false)) {
            None => {}
            Some((earlier, _)) if *earlier != name => mistakes.push(Mistake::of(
                MistakeKind::Ambiguous,
                name,
                format!("and `{earlier}` are one header to many servers; keep one of them"),
            )),
            Some((_, Some(earlier))) if rule.is_none() => check_conflict(earlier, mistakes),
            Some((_, earlier)) => {
                let from = |rule: Option<&CompiledRule>| match rule {
                    Some(rule) => format!("from `{}`", rule.source),
                    None => "as a static header".to_owned(),
                };
                let (first, second) = (from(*earlier), from(rule));
                mistakes.push(Mistake::of(
                    MistakeKind::Duplicate,
                    name,
                    format!("would be written twice, {first} and {second}; keep one"),
                ));
            }
        }
        seen.push((name, rule));
    }
}

/// `rule` writes a header that is also static.
fn check_conflict(rule: &CompiledRule, mistakes: &mut Vec<Mistake>) {
    let message = match rule.on_conflict {
        None => "is also a static header; say with `on_conflict` who wins",
        Some(OnConflict::Caller) if rule.required => {
            "is required, so its static fallback would never be used; remove one of the two"
        }
        Some(_) => return,
    };
    mistakes.push(Mistake::of(MistakeKind::Conflict, &rule.target, message));
}

/// A header that admits callers to the proxy is no rule's source.
fn check_admission(rules: &[CompiledRule], mistakes: &mut Vec<Mistake>) {
    for rule in rules {
        if rules
            .iter()
            .any(|other| other.only_with.as_ref() == Some(&rule.source))
        {
            mistakes.push(admission_forwarded(&rule.source));
        }
    }
}

pub(crate) fn admission_forwarded(name: &HeaderName) -> Mistake {
    Mistake::of(
        MistakeKind::Admission,
        name,
        "admits callers to the proxy (`only_with`), so it is never forwarded; remove its rule",
    )
}
