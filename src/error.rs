//! Every public error of the crate.
//!
//! Each is an opaque struct with a `kind()`; its message says what to do and never holds a header
//! value. This file knows no other part of the crate.

use std::fmt;

use http::HeaderName;
use tower::BoxError;

/// The configuration of an upstream or of a layer is wrong; all its mistakes at once.
///
/// ```
/// use mcp_forward::Upstream;
///
/// let error = Upstream::builder("GitHub", "https://mcp.example/mcp")
///     .allow("host")
///     .allow("authorization")
///     .build()
///     .unwrap_err();
/// assert_eq!(error.mistakes().len(), 3);
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{subject}: {}", list(mistakes))]
pub struct BuildError {
    subject: String,
    mistakes: Vec<Mistake>,
}

impl BuildError {
    /// Everything that was wrong, in the order in which it was configured.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    pub(crate) fn new(subject: impl Into<String>, mistakes: Vec<Mistake>) -> Self {
        Self {
            subject: subject.into(),
            mistakes,
        }
    }
}

fn list(mistakes: &[Mistake]) -> String {
    let texts: Vec<_> = mistakes.iter().map(|m| m.message.as_str()).collect();
    texts.join("; ")
}

/// One mistake in a configuration; printed, it says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    kind: MistakeKind,
    header: Option<HeaderName>,
    message: String,
}

impl Mistake {
    pub(crate) fn new(kind: MistakeKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            header: None,
            message: message.into(),
        }
    }

    /// A mistake about the header `name`; the message begins with its name.
    pub(crate) fn of(kind: MistakeKind, name: &HeaderName, message: impl fmt::Display) -> Self {
        Self {
            kind,
            header: Some(name.clone()),
            message: format!("`{name}` {message}"),
        }
    }

    /// What sort of mistake it is.
    #[must_use]
    pub fn kind(&self) -> MistakeKind {
        self.kind
    }

    /// The header that it is about, if it is about one that can exist.
    #[must_use]
    pub fn header(&self) -> Option<&HeaderName> {
        self.header.as_ref()
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The sort of a [`Mistake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MistakeKind {
    /// The text is not a header name, or is longer than 256 bytes.
    InvalidName,
    /// A static value is empty, has spaces at an edge or holds control bytes.
    InvalidValue,
    /// The header is never forwarded, neither read nor written, in any spelling of `-`.
    ///
    #[doc = include_str!("rules/restricted.md")]
    Restricted,
    /// The header carries a credential: [`Rule::credential`](crate::Rule::credential) reads it.
    Guarded,
    /// A header that has one value is to be sent on several lines.
    SingleValued,
    /// The HTTP client cannot be built.
    HttpClient,
    /// A bound is out of its range.
    Limit,
    /// An attested header is attested twice, or read by no rule.
    Attested,
    /// Two names differ only by `_` and `-`.
    Ambiguous,
    /// Two rules, or two static headers, write the same header.
    Duplicate,
    /// A rule and a static header write the same header, and nothing says which one wins.
    Conflict,
    /// The header admits the caller to the proxy, so it is not for an upstream.
    Admission,
    /// The caller's headers, or a static credential, would cross a network in clear text.
    Cleartext,
    /// Upstreams of different origins read the same guarded header.
    FanOut,
    /// An upstream has more than 256 rules and static headers.
    TooMany,
    /// An upstream's name is not made of `a-z`, `0-9` and `-`.
    InvalidUpstream,
    /// Two upstreams of one capture layer have the same name.
    DuplicateUpstream,
    /// An upstream's URL cannot be used.
    InvalidUrl,
    /// An allowed host is not `host` or `host:port`.
    InvalidHost,
    /// An allowed origin is not `scheme://host` or `scheme://host:port`.
    InvalidOrigin,
    /// A path template has not exactly one segment in braces, or an unscoped path is not plain.
    InvalidPath,
    /// The name of a JSON parameter is empty, too long or not plain.
    InvalidParameter,
    /// A key is too short, has no plain id or the id of another, or there is none.
    InvalidKey,
}

/// A request could not be made into one for an upstream; nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing was sent to upstream `{upstream}`: {}", reason(*kind, header.as_ref()))]
pub struct OutboundError {
    kind: OutboundErrorKind,
    upstream: String,
    header: Option<HeaderName>,
}

impl OutboundError {
    pub(crate) fn new(
        kind: OutboundErrorKind,
        upstream: &str,
        header: Option<&HeaderName>,
    ) -> Self {
        Self {
            kind,
            upstream: upstream.to_owned(),
            header: header.cloned(),
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> OutboundErrorKind {
        self.kind
    }

    /// The name of the upstream.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The caller's header that it is about: the source of the rule.
    #[must_use]
    pub fn header(&self) -> Option<&HeaderName> {
        self.header.as_ref()
    }
}

/// The kind of an [`OutboundError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutboundErrorKind {
    /// The upstream's rules read the caller, and no caller is known here: the inbound was not
    /// carried to this task, or no `CaptureLayer` stands outside.
    NoInbound,
    /// No capture layer here looks for a header that the upstream's rules read, so whether it came
    /// is unknown: the `CaptureLayer` was built without this upstream, an inner one replaced it, or
    /// there is none.
    NotCaptured,
    /// A required header did not come.
    Missing,
    /// A header came with a value that must not be sent on.
    Invalid,
    /// The outbound request's URI has no scheme or no host, so where it would go is unknown.
    NotAbsolute,
    /// The outbound request has more headers than a [`HeaderMap`](http::HeaderMap) can hold.
    TooManyHeaders,
}

fn reason(kind: OutboundErrorKind, header: Option<&HeaderName>) -> String {
    let header = header.map_or("header", HeaderName::as_str);
    match kind {
        OutboundErrorKind::NoInbound => {
            "no inbound here: put `CaptureLayer` around the service (in axum, `.layer` comes after \
             the routes), and carry into spawned work with `.with_current_inbound()` or \
             `mcp_forward::task::spawn`"
                .to_owned()
        }
        OutboundErrorKind::NotCaptured => {
            format!(
                "`{header}` is not captured; give this upstream to the innermost `CaptureLayer`"
            )
        }
        OutboundErrorKind::Missing => {
            format!("`{header}` is required; send it, unless the proxy attests it")
        }
        OutboundErrorKind::Invalid => {
            format!("the value of `{header}` cannot be used there; send a plain token")
        }
        OutboundErrorKind::NotAbsolute => {
            "its URI is not absolute; give it a scheme and a host".to_owned()
        }
        OutboundErrorKind::TooManyHeaders => "it has too many headers; send fewer".to_owned(),
    }
}

/// [`ClientFactory::connect`](crate::ClientFactory::connect) gave no client.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct ConnectError(#[from] Connect);

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the factory's own error, which may quote a URL or a header.
        f.debug_struct("ConnectError")
            .field("kind", &self.kind())
            .field("upstream", &self.upstream())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum Connect {
    #[error(transparent)]
    Outbound(OutboundError),
    #[error("the client factory failed for upstream `{upstream}`")]
    Create { upstream: String, source: BoxError },
}

impl ConnectError {
    pub(crate) fn outbound(error: OutboundError) -> Self {
        Self(Connect::Outbound(error))
    }

    pub(crate) fn create(upstream: &str, source: BoxError) -> Self {
        Self(Connect::Create {
            upstream: upstream.to_owned(),
            source,
        })
    }

    /// Whether the headers or the factory failed.
    #[must_use]
    pub fn kind(&self) -> ConnectErrorKind {
        match &self.0 {
            Connect::Outbound(error) => ConnectErrorKind::Outbound(error.kind()),
            Connect::Create { .. } => ConnectErrorKind::Create,
        }
    }

    /// The name of the upstream.
    #[must_use]
    pub fn upstream(&self) -> &str {
        match &self.0 {
            Connect::Outbound(error) => error.upstream(),
            Connect::Create { upstream, .. } => upstream,
        }
    }
}

/// The kind of a [`ConnectError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectErrorKind {
    /// The factory was not asked: the headers could not be merged.
    Outbound(OutboundErrorKind),
    /// The factory failed; the error's source is its own.
    Create,
}

/// A request for another worker could not be signed.
#[cfg(feature = "hmac")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was not signed: {}", match kind {
    SignErrorKind::Session => "`mcp-session-id` came on several lines; send it once",
    SignErrorKind::Header => "it has too many headers; send fewer",
    SignErrorKind::Random => "the system has no random bytes; check its source of them",
})]
pub struct SignError {
    kind: SignErrorKind,
}

#[cfg(feature = "hmac")]
impl SignError {
    pub(crate) const fn new(kind: SignErrorKind) -> Self {
        Self { kind }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> SignErrorKind {
        self.kind
    }
}

/// The kind of a [`SignError`].
#[cfg(feature = "hmac")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignErrorKind {
    /// The request has several session ids.
    Session,
    /// The request cannot take one header more.
    Header,
    /// The system gave no random bytes.
    Random,
}

/// A handler asked for an [`Inbound`](crate::Inbound) where none can be.
#[cfg(any(feature = "axum", feature = "rmcp"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no inbound here: {0}")]
pub struct MissingInbound(&'static str);

#[cfg(any(feature = "axum", feature = "rmcp"))]
impl MissingInbound {
    /// `advice` says what to do.
    pub(crate) const fn new(advice: &'static str) -> Self {
        Self(advice)
    }
}
