//! The names that are never forwarded, and those that are only forwarded as a credential.
//!
//! This is data, to be read in a minute. It may not know rules, upstreams or requests.

use http::HeaderName;

use crate::error::{Mistake, MistakeKind};

/// The longest header name that a configuration may have, in bytes.
const MAX_NAME: usize = 256;

/// How much of a text that is no name is shown, in bytes.
const MAX_SHOWN: usize = 32;

/// Names that carry a credential: read only by [`Rule::credential`](crate::Rule::credential).
static GUARDED: &[&str] = &["authorization", "cookie", "proxy-authorization"];

/// Names that are never forwarded, each with its reason.
#[rustfmt::skip]
static RESTRICTED: &[(&str, &str)] = &[
    // Framing and representation: the outbound client describes the message that it sends.
    ("host", "names the server that this hop talks to"),
    ("digest", "is a digest of this message's body"),
    ("repr-digest", "is a digest of this message's body"),
    ("want-repr-digest", "asks for a digest of this hop's answer"),
    ("want-content-digest", "asks for a digest of this hop's answer"),
    ("transfer-encoding", "frames the body on this hop"),
    ("expect", "asks this hop to answer before the body"),
    ("accept", "is what the MCP transport can read"),
    ("accept-encoding", "is what this hop can decode"),
    ("range", "asks for a part of the answer"),
    ("if-match", "makes the request conditional"),
    ("if-none-match", "makes the request conditional"),
    ("if-modified-since", "makes the request conditional"),
    ("if-unmodified-since", "makes the request conditional"),
    ("if-range", "makes the request conditional"),
    ("x-http-method", "replaces the method"),
    ("x-http-method-override", "replaces the method"),
    ("x-method-override", "replaces the method"),
    // Hop by hop: RFC 9110 section 7.6.1, and what others handle alike.
    ("connection", "is about this hop's connection"),
    ("close", "is about this hop's connection"),
    ("keep-alive", "is about this hop's connection"),
    ("proxy-connection", "is about this hop's connection"),
    ("proxy-features", "is about this hop's connection"),
    ("te", "is about this hop's connection"),
    ("trailer", "announces fields after this hop's body"),
    ("upgrade", "is about this hop's connection"),
    ("http2-settings", "is about this hop's connection"),
    ("proxy-authenticate", "is a challenge of this hop's proxy"),
    ("proxy-authentication-info", "is an answer of this hop's proxy"),
    ("alt-svc", "names another server for this hop"),
    ("early-data", "says how this hop was encrypted"),
    ("max-forwards", "counts hops"),
    // Owned by the MCP transport (so is every `mcp-` name).
    ("last-event-id", "belongs to the MCP transport"),
    // Bound to this hop's method and URL.
    ("dpop", "proves this hop's method and URL"),
    ("signature", "signs this hop's message"),
    ("signature-input", "signs this hop's message"),
    // Topology: a proxy writes it and never copies it.
    ("forwarded", "is written by each proxy for itself"),
    ("via", "is written by each proxy for itself"),
    ("x-real-ip", "is written by each proxy for itself"),
    ("x-client-ip", "is written by each proxy for itself"),
    ("x-cluster-client-ip", "is written by each proxy for itself"),
    ("x-original-url", "replaces the URL"),
    ("x-original-host", "replaces the host"),
    ("x-rewrite-url", "replaces the URL"),
    ("true-client-ip", "is written by each proxy for itself"),
    ("cf-connecting-ip", "is written by each proxy for itself"),
    ("fastly-client-ip", "is written by each proxy for itself"),
    // Browser and response: meaningless, or a control that MCP servers rely on.
    ("origin", "is how an MCP server knows a browser's page"),
    ("referer", "is about the page of a browser"),
    ("dnt", "is about the user of a browser"),
    ("set-cookie", "belongs to responses"),
    ("cookie2", "is obsolete"),
];

/// Prefixes of names that are never forwarded, each with its reason.
#[rustfmt::skip]
static RESTRICTED_PREFIXES: &[(&str, &str)] = &[
    ("content-", "describes this message's body"),
    ("mcp-", "belongs to the MCP transport"),
    ("x-envoy-", "is written by each proxy for itself"),
    ("x-forwarded-", "is written by each proxy for itself"),
    ("sec-", "is about the page of a browser"),
    ("access-control-", "is about the page of a browser"),
];

/// What a front proxy verified about its user, and operators relay: no topology.
///
/// Strip them at the front, where the caller could write them, or use `attest`.
static ALLOWED: &[&str] = &[
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-access-token",
];

/// A configured name that may be read from a caller or written to an upstream; or the mistake.
pub(crate) fn forwardable(text: &str) -> Result<HeaderName, Mistake> {
    let name = parse(text)?;
    match restricted(&name) {
        None => Ok(name),
        Some(reason) => Err(Mistake::of(
            MistakeKind::Restricted,
            &name,
            format!("is never forwarded: it {reason}; remove it"),
        )),
    }
}

/// Why `name` is never forwarded, if so; `_` reads as `-`, as it does for many servers.
fn restricted(name: &HeaderName) -> Option<&'static str> {
    let name = folded(name);
    if ALLOWED.contains(&name.as_str()) {
        return None;
    }
    let exact = RESTRICTED
        .iter()
        .find(|(restricted, _)| *restricted == name);
    let prefix = || {
        RESTRICTED_PREFIXES
            .iter()
            .find(|(prefix, _)| name.starts_with(prefix))
    };
    exact.or_else(prefix).map(|(_, reason)| *reason)
}

/// Whether `name` carries a credential by its meaning.
pub(crate) fn guarded(name: &HeaderName) -> bool {
    GUARDED.contains(&folded(name).as_str())
}

/// Whether the value of `name` begins with an authentication scheme (RFC 9110 section 11.4).
pub(crate) fn has_scheme(name: &HeaderName) -> bool {
    matches!(
        folded(name).as_str(),
        "authorization" | "proxy-authorization"
    )
}

/// Whether `folded` is what [`folded`] makes of `name`.
pub(crate) fn is_folded(name: &HeaderName, folded: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let name = name.as_str();
    name.len() == folded.len() && name.bytes().map(fold).eq(folded.bytes())
}

/// `name` as servers see it that take `_` for `-`.
pub(crate) fn folded(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

/// A configured header name; or what is wrong with it.
///
/// A text may be a value in the wrong place, such as `authorization: Bearer …`; so it is shown up to
/// the first byte that no name has, and not for long.
pub(crate) fn parse(text: &str) -> Result<HeaderName, Mistake> {
    let mistake = |message: String| Mistake::new(MistakeKind::InvalidName, message);
    let length = text.bytes().take_while(|byte| is_token(*byte)).count();
    let shown = text.get(..length.min(MAX_SHOWN)).unwrap_or_default();
    if text.is_empty() {
        return Err(mistake("a header name is empty; name the header".into()));
    }
    if text.contains('*') {
        return Err(mistake(format!(
            "`{shown}` has a `*`; there are no patterns, name each header"
        )));
    }
    if text.len() > MAX_NAME {
        return Err(mistake(format!(
            "a header name is longer than {MAX_NAME} bytes; it begins with `{shown}`"
        )));
    }
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        mistake(format!(
            "a header name that begins with `{shown}` has a byte that no name can have, at byte {} \
             (RFC 9110 section 5.1)",
            length + 1
        ))
    })
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
