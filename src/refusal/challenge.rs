//! `Challenge`: what the caller is told with a refusal, and the answer that tells it.
//!
//! It may not know how the refusal was learnt.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Response, StatusCode, Uri, header::WWW_AUTHENTICATE};

use crate::{
    carry::{Refusal, Refused},
    error::{BuildError, Mistake, MistakeKind},
    events,
    reply::{self, Rejection},
};

/// How long a parameter of the upstream's challenge may be that is told on, in bytes.
const MAX_PARAMETER: usize = 1024;

const INVALID_TOKEN: &str = "invalid_token";
const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

/// Which `WWW-Authenticate` a caller gets with an upstream's refusal.
///
/// An MCP client reads there where to get a token (RFC 9728 section 5.1), so it should name the
/// metadata of *this proxy*, by [`rewrite`](Self::rewrite). Nothing of it is ever made from `Host`,
/// which the caller writes.
///
/// A 401 always has a challenge. A 403 has one only where the upstream said `insufficient_scope` (RFC
/// 6750 section 3.1): at any other, clients would ask for the same token again.
#[derive(Clone)]
pub struct Challenge {
    kind: Kind,
}

type MakeUrl = Arc<dyn Fn(&Uri, &Refusal) -> Option<String> + Send + Sync>;

#[derive(Clone)]
enum Kind {
    Rewrite(Arc<str>),
    RewriteWith(MakeUrl),
    Relay,
    Omit,
}

impl Challenge {
    /// `Bearer resource_metadata="…"` with this URL: where this proxy's own metadata is (RFC 9728).
    ///
    /// `error` and `scope` are the upstream's, where they are at most 1 KiB of the characters that RFC
    /// 6750 section 3 allows. Where the upstream's challenge cannot be read, `error` is `invalid_token`.
    ///
    /// ```
    /// use mcp_forward::{Challenge, RefusalLayer};
    ///
    /// let url = "https://proxy.example/.well-known/oauth-protected-resource";
    /// let layer = RefusalLayer::new().challenge(Challenge::rewrite(url)?);
    /// # let _ = layer;
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BuildError`] where it is no `http` or `https` URL, or has a byte that would have to be escaped.
    pub fn rewrite(url: impl AsRef<str>) -> Result<Self, BuildError> {
        let url = url.as_ref();
        if is_plain_url(url) {
            let kind = Kind::Rewrite(url.into());
            return Ok(Self { kind });
        }
        let message = "the URL of the metadata cannot be used; write it as `https://host/path`";
        let mistake = Mistake::new(MistakeKind::InvalidUrl, message);
        Err(BuildError::new("the challenge", vec![mistake]))
    }

    /// Like [`rewrite`](Self::rewrite), with one URL per request or upstream.
    ///
    /// The `Uri` is the request's as the layer sees it: inside axum's `nest` only the rest of the path.
    /// Its path is the caller's text; where `url` gives none, or one that [`rewrite`](Self::rewrite)
    /// would refuse, the challenge is that of [`omit`](Self::omit).
    #[must_use]
    pub fn rewrite_with<F>(url: F) -> Self
    where
        F: Fn(&Uri, &Refusal) -> Option<String> + Send + Sync + 'static,
    {
        Self {
            kind: Kind::RewriteWith(Arc::new(url)),
        }
    }

    /// The upstream's own challenges: at most four lines of 4 KiB each.
    ///
    /// They name the upstream's metadata, so a client asks for a token *for the upstream*: right only
    /// where callers send that one.
    #[must_use]
    pub fn relay() -> Self {
        Self { kind: Kind::Relay }
    }

    /// `Bearer error="invalid_token"` and nothing of the upstream's; the default.
    #[must_use]
    pub fn omit() -> Self {
        Self { kind: Kind::Omit }
    }

    /// The answer to a request for `uri` that `refusal` is the end of, built from nothing.
    pub(crate) fn answer<B>(
        &self,
        uri: &Uri,
        refusal: &Refusal,
        how: &'static str,
    ) -> Response<reply::Body<B>> {
        events::refused(refusal, how);
        let rejection = self.rejection(uri, refusal);
        let mut response = rejection.response();
        Refused::mark(refusal, response.extensions_mut());
        response
    }

    fn rejection(&self, uri: &Uri, refusal: &Refusal) -> Rejection {
        let name = refusal.upstream();
        if !refusal.is_callers() {
            // With a 401 the caller would renew a token that has nothing to do with it, forever.
            let message = format!("upstream `{name}` refused the proxy's own credential");
            return Rejection::new(StatusCode::BAD_GATEWAY, message);
        }
        let message = match refusal.status() {
            StatusCode::FORBIDDEN => format!("upstream `{name}` forbids this"),
            _ => format!("upstream `{name}` wants another credential; renew it"),
        };
        let rejection = Rejection::new(refusal.status(), message);
        self.lines(uri, refusal)
            .into_iter()
            .fold(rejection, |rejection, mut line| {
                line.set_sensitive(true);
                rejection.with(WWW_AUTHENTICATE, line)
            })
    }

    fn lines(&self, uri: &Uri, refusal: &Refusal) -> Vec<HeaderValue> {
        let said = Said::by(refusal);
        let is_scope = said.error.as_deref() == Some(INSUFFICIENT_SCOPE);
        if refusal.status() == StatusCode::FORBIDDEN && !is_scope {
            return Vec::new();
        }
        let url = match &self.kind {
            Kind::Relay if refusal.challenges().next().is_some() => {
                return refusal.challenges().cloned().collect();
            }
            Kind::Relay | Kind::Omit => None,
            Kind::Rewrite(url) => Some(url.to_string()),
            Kind::RewriteWith(url) => url(uri, refusal).filter(|url| is_plain_url(url)),
        };
        let said = match url {
            Some(_) => said,
            None => Said {
                error: Some(
                    if is_scope {
                        INSUFFICIENT_SCOPE
                    } else {
                        INVALID_TOKEN
                    }
                    .to_owned(),
                ),
                scope: None,
            },
        };
        let parameters = [
            ("error", said.error),
            ("scope", said.scope),
            ("resource_metadata", url),
        ];
        let parameters: Vec<_> = parameters
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}=\"{}\"", value?)))
            .collect();
        let line = format!("Bearer {}", parameters.join(", "));
        HeaderValue::try_from(line).into_iter().collect()
    }
}

impl Default for Challenge {
    fn default() -> Self {
        Self::omit()
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Rewrite(_) => "Challenge::rewrite",
            Kind::RewriteWith(_) => "Challenge::rewrite_with",
            Kind::Relay => "Challenge::relay",
            Kind::Omit => "Challenge::omit",
        })
    }
}

/// What is told on of the upstream's challenges.
struct Said {
    error: Option<String>,
    scope: Option<String>,
}

impl Said {
    /// What the first `Bearer` challenge says; `invalid_token` where none can be read.
    fn by(refusal: &Refusal) -> Self {
        refusal
            .challenges()
            .find_map(|line| Self::in_line(line.to_str().ok()?))
            .unwrap_or_else(|| Self {
                error: Some(INVALID_TOKEN.to_owned()),
                scope: None,
            })
    }

    /// `None` where the line cannot be read to its end, or has no `Bearer`.
    fn in_line(line: &str) -> Option<Self> {
        let challenges = http_auth::parse_challenges(line).ok()?;
        let mut challenges = challenges.iter();
        let bearer = challenges.find(|it| it.scheme.eq_ignore_ascii_case("bearer"))?;
        let parameter = |name: &str| {
            let mut parameters = bearer.params.iter();
            let (_, value) = parameters.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
            Some(value.to_unescaped()).filter(|value| is_parameter(value))
        };
        Some(Self {
            error: parameter("error"),
            scope: parameter("scope"),
        })
    }
}

/// RFC 6750 section 3: what `error` and `scope` may hold needs no escape in quotes.
fn is_parameter(value: &str) -> bool {
    let allowed = |byte| matches!(byte, 0x20 | 0x21 | 0x23..=0x5B | 0x5D..=0x7E);
    !value.is_empty() && value.len() <= MAX_PARAMETER && value.bytes().all(allowed)
}

/// Whether it is absolute, and safe within quotes.
fn is_plain_url(url: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    let is_web = |uri: Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    url.len() <= MAX_PARAMETER && url.bytes().all(safe) && url.parse().is_ok_and(is_web)
}
