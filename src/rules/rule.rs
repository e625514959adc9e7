//! `Rule`: one of the caller's headers, and the header that it becomes at one upstream.
//!
//! It may not know upstreams, nor a caller's values.

use std::fmt;

use http::HeaderName;

use super::names;
use crate::error::{Mistake, MistakeKind};

/// One header of the caller's that one upstream receives, perhaps under another name.
///
/// ```
/// use mcp_forward::{Rule, Upstream};
///
/// let upstream = Upstream::builder("github", "https://mcp.example/mcp")
///     .rule(Rule::new("x-github-token").to("authorization").bearer().required())
///     .build()?;
/// # let _ = upstream;
/// # Ok::<_, mcp_forward::BuildError>(())
/// ```
#[derive(Clone)]
#[must_use = "a rule works once it is given to an upstream's builder"]
pub struct Rule {
    source: String,
    target: Option<String>,
    credential: bool,
    bearer: bool,
    required: bool,
    multi: bool,
    on_conflict: Option<OnConflict>,
    only_with: Option<String>,
}

/// Who wins when the caller and a static header of the upstream write the same header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnConflict {
    /// The static header; the caller's value is never used.
    Static,
    /// The caller; the static header is the fallback.
    ///
    /// A caller who sends nothing then acts with **the service's own identity**, where the static
    /// header is a credential.
    Caller,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the names, which nobody has checked: one may hold a value.
        f.debug_struct("Rule").finish_non_exhaustive()
    }
}

impl Rule {
    /// Copies the header `source` when the caller sent it.
    ///
    /// `authorization`, `cookie` and `proxy-authorization` need [`Rule::credential`].
    pub fn new(source: impl AsRef<str>) -> Self {
        Self {
            source: source.as_ref().to_owned(),
            target: None,
            credential: false,
            bearer: false,
            required: false,
            multi: false,
            on_conflict: None,
            only_with: None,
        }
    }

    /// Like [`Rule::new`], and says that forwarding this credential is meant.
    ///
    /// MCP, *Security Best Practices*, "Token Passthrough": "MCP servers MUST NOT accept any
    /// tokens that were not explicitly issued for the MCP server", and *Authorization*: "The MCP
    /// server MUST NOT pass through the token it received from the MCP client." Forwarding the
    /// caller's `authorization` is legitimate where the proxy is no MCP server of its own, but a
    /// [`Relay`](crate::Relay) in front of one, and the token was issued *for this upstream* (its
    /// audience), or proxy and upstream are one resource in one trust domain; or where an
    /// authentication layer exchanged it before. Otherwise
    /// let callers send the upstream's token in a header of its own, and rename that:
    /// `Rule::new("x-github-token").to("authorization").bearer()`.
    pub fn credential(source: impl AsRef<str>) -> Self {
        Self {
            credential: true,
            ..Self::new(source)
        }
    }

    /// Sends the value under the name `target`.
    pub fn to(self, target: impl AsRef<str>) -> Self {
        Self {
            target: Some(target.as_ref().to_owned()),
            ..self
        }
    }

    /// Puts `Bearer ` in front of a bare token (RFC 6750 section 2.1).
    ///
    /// A value that begins with `Bearer `, in any case, goes as it was sent, whatever follows. Any other
    /// that is no token (RFC 9110 section 11.2, `token68`) is refused.
    pub fn bearer(self) -> Self {
        Self {
            bearer: true,
            ..self
        }
    }

    /// Makes the call fail with [`Missing`](crate::OutboundErrorKind::Missing), and sends nothing,
    /// unless this header came with a value.
    pub fn required(self) -> Self {
        Self {
            required: true,
            ..self
        }
    }

    /// Takes a header that came on several lines, and sends them all, in their order.
    ///
    /// Without it such a request is answered with 400: which line is meant is anybody's guess. Every
    /// rule of one capture layer that reads the header has to say so, else the 400 stays. A header with one value by its definition
    /// (`authorization`, `cookie`, `proxy-authorization`) cannot have it.
    pub fn multi(self) -> Self {
        Self {
            multi: true,
            ..self
        }
    }

    /// Says who wins where a static header of the upstream has the same name.
    pub fn on_conflict(self, winner: OnConflict) -> Self {
        Self {
            on_conflict: Some(winner),
            ..self
        }
    }

    /// Reads the header only where the caller also sent `admission`, which is never forwarded.
    ///
    /// For proxies whose own key may come in the same header: with an `x-proxy-key`, the
    /// `authorization` is the upstream's; without it, it is the proxy's own and stays here. Only
    /// whether `admission` came is looked at: your authentication has to verify it.
    pub fn only_with(self, admission: impl AsRef<str>) -> Self {
        Self {
            only_with: Some(admission.as_ref().to_owned()),
            ..self
        }
    }

    /// The rule with its names read, where each is one; what is wrong with them is in `mistakes`.
    pub(crate) fn compile(&self, mistakes: &mut Vec<Mistake>) -> Option<CompiledRule> {
        let mut name = |text: &str| {
            names::forwardable(text)
                .map_err(|mistake| mistakes.push(mistake))
                .ok()
        };
        let source = name(&self.source);
        let target = match &self.target {
            Some(text) => name(text),
            None => source.clone(),
        };
        let only_with = self.only_with.as_deref().map(name);
        if let Some(source) = &source
            && names::guarded(source)
            && !self.credential
        {
            mistakes.push(Mistake::of(
                MistakeKind::Guarded,
                source,
                "carries a credential; if this upstream may have it, use `Rule::credential` \
                 (`allow_credential`)",
            ));
        }
        for name in source.iter().chain(&target) {
            if self.multi && names::guarded(name) {
                let message = "has one value; remove `multi`";
                mistakes.push(Mistake::of(MistakeKind::SingleValued, name, message));
                break;
            }
        }
        let (source, target) = (source?, target?);
        let has_scheme = names::has_scheme(&target);
        let credential = self.credential || self.bearer || names::guarded(&target);
        Some(CompiledRule {
            source,
            target,
            has_scheme,
            credential,
            bearer: self.bearer,
            required: self.required,
            multi: self.multi,
            on_conflict: self.on_conflict,
            only_with: only_with.flatten(),
        })
    }
}

/// A rule whose names are allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CompiledRule {
    pub(crate) source: HeaderName,
    pub(crate) target: HeaderName,
    /// Whether the target's value begins with an authentication scheme.
    pub(crate) has_scheme: bool,
    /// Whether what it writes is a credential.
    pub(crate) credential: bool,
    pub(crate) bearer: bool,
    pub(crate) required: bool,
    pub(crate) multi: bool,
    pub(crate) on_conflict: Option<OnConflict>,
    pub(crate) only_with: Option<HeaderName>,
}

impl CompiledRule {
    /// Every name that it reads from the caller.
    pub(crate) fn reads(&self) -> impl Iterator<Item = &HeaderName> {
        std::iter::once(&self.source).chain(&self.only_with)
    }
}
