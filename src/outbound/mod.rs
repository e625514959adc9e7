//! The upstream's side: `Outbound`, the merge of one inbound with one upstream's rules.
//!
//! What stands here beside the ways out, which are at the root of the crate, is named only where a
//! type has to be written down.

// Every way out goes through the one `resolve` here. It may not know how a request travels.

mod body;
pub(crate) mod client;
pub(crate) mod forward;
pub(crate) mod relay;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use body::Body;
pub use forward::{Forward, ForwardFuture, RemovedLocation};
pub use relay::RelayFuture;

use crate::{
    carry::{Fault, Inbound, Refusal, SessionKey, Slot, compact},
    error::{OutboundError, OutboundErrorKind as Kind},
    events,
    rules::{CompiledRule, Line, OnConflict, Provenance, Upstream},
};

/// Schemes bound to a connection, or to method and URL: on another hop they mean nothing, or they
/// make a pooled connection somebody's.
static BOUND_SCHEMES: &[&str] = &[
    "negotiate",
    "ntlm",
    "kerberos",
    "digest",
    "dpop",
    "oauth",
    "signature",
];

/// How other such schemes begin.
static BOUND_SCHEME_PREFIXES: &[&str] = &["aws4-", "sharedkey"];

/// The headers that one upstream receives for one inbound.
///
/// Equality and hash are exact, over the whole upstream, the session, and every line with its value
/// and its provenance: it can key a pool of clients without ever mixing two callers. The values are
/// copies, so that keeping one keeps nothing else of the request; `Debug` prints names only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Outbound {
    upstream: Upstream,
    session: Option<SessionKey>,
    lines: Arc<[Line]>,
}

impl Outbound {
    /// `inbound` is `None` where no caller is known.
    pub(crate) fn merge(
        upstream: &Upstream,
        inbound: Option<&Inbound>,
    ) -> Result<Self, OutboundError> {
        Self::try_merge(upstream, inbound).inspect_err(|error| not_merged(upstream, inbound, error))
    }

    /// As [`merge`](Self::merge), but nobody is told what went wrong.
    pub(crate) fn try_merge(
        upstream: &Upstream,
        inbound: Option<&Inbound>,
    ) -> Result<Self, OutboundError> {
        let inbound = known(upstream, inbound)?;
        let mut lines = Vec::new();
        for rule in upstream.rules() {
            resolve(upstream, rule, inbound, |value, provenance| {
                lines.push(Line {
                    name: rule.target.clone(),
                    value: compact(&value),
                    provenance,
                });
            })?;
        }
        let lines = if lines.is_empty() {
            Arc::clone(upstream.lines())
        } else {
            let statics = upstream.lines().iter();
            let kept = statics.filter(|line| lines.iter().all(|caller| caller.name != line.name));
            let kept: Vec<_> = kept.cloned().collect();
            lines.into_iter().chain(kept).collect()
        };
        Ok(Self {
            upstream: upstream.clone(),
            session: inbound.session().cloned(),
            lines,
        })
    }

    /// The upstream that they are for.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    #[cfg(feature = "rmcp")]
    pub(crate) fn session(&self) -> Option<&SessionKey> {
        self.session.as_ref()
    }

    /// The headers, line by line. The values are [sensitive](HeaderValue::set_sensitive).
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.lines.iter().map(|line| (&line.name, &line.value))
    }

    /// Writes the headers into those of a request.
    ///
    /// Whatever the request has under a name that the upstream's configuration reads or writes, in
    /// any spelling of `-`, is removed first: a copy of the caller's headers, or a client's default.
    ///
    /// # Errors
    ///
    /// [`TooManyHeaders`](Kind::TooManyHeaders), and nothing is written, where the map cannot hold
    /// them (`http` allows 32,768 entries).
    pub fn apply(&self, headers: &mut HeaderMap) -> Result<(), OutboundError> {
        clear(&self.upstream, headers)?;
        for (name, value) in self.iter() {
            headers.append(name.clone(), value.clone());
        }
        Ok(())
    }

    /// The refusal that an answer of the upstream is; `None` where `status` is neither 401 nor 403.
    ///
    /// Whose fault it is, the upstream's rules say: the caller's, where a rule wrote a credential
    /// ([`credential`](crate::Rule::credential), [`bearer`](crate::Rule::bearer), or anything that
    /// becomes `authorization`, `cookie` or `proxy-authorization`), or could have and no static header
    /// is a credential as well; else the operator's.
    #[must_use]
    pub fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> Option<Refusal> {
        let fault = fault(&self.upstream, self.has_credential());
        Refusal::new(self.upstream.name(), fault, status, headers)
    }

    /// Whether a credential of the caller's, or one attested for the caller, is in it.
    pub(crate) fn has_credential(&self) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|line| {
            line.provenance != Provenance::Static && self.upstream.takes_credential(&line.name)
        })
    }

    /// The headers as a map.
    #[must_use]
    pub fn to_header_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in self.iter() {
            headers.append(name.clone(), value.clone());
        }
        headers
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            upstream,
            session: _,
            lines: _,
        } = self;
        let names: Vec<_> = self.iter().map(|(name, _)| name).collect();
        f.debug_struct("Outbound")
            .field("upstream", &upstream.name())
            .field("headers", &names)
            .finish()
    }
}

/// What is kept of a merge until the upstream answers: whose fault a refusal would be, and where to
/// report it.
struct Merged {
    fault: Fault,
    slot: Option<Slot>,
}

impl Merged {
    /// The refusal that an answer of `upstream` is, which is now reported.
    fn report(
        &self,
        upstream: &Upstream,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<Refusal> {
        let refusal = Refusal::new(upstream.name(), self.fault, status, headers)?;
        if let Some(slot) = &self.slot {
            slot.report(refusal.clone());
        }
        Some(refusal)
    }
}

/// Merges straight into the headers of a request that is on its way, as [`Outbound::apply`], but
/// without a copy of a value. On an error the request must not be sent.
fn merge_into(
    upstream: &Upstream,
    inbound: Option<&Inbound>,
    headers: &mut HeaderMap,
) -> Result<Merged, OutboundError> {
    let merged = try_merge_into(upstream, inbound, headers);
    let merged = merged.inspect_err(|error| not_merged(upstream, inbound, error))?;
    let governed = headers.keys().filter(|name| upstream.governs(name));
    events::injected(upstream, governed);
    Ok(merged)
}

fn try_merge_into(
    upstream: &Upstream,
    inbound: Option<&Inbound>,
    headers: &mut HeaderMap,
) -> Result<Merged, OutboundError> {
    let inbound = known(upstream, inbound)?;
    clear(upstream, headers)?;
    let mut has_credential = false;
    for rule in upstream.rules() {
        resolve(upstream, rule, inbound, |value, _| {
            headers.append(rule.target.clone(), value);
            has_credential |= rule.credential;
        })?;
    }
    for line in upstream.lines().iter() {
        if !headers.contains_key(&line.name) {
            headers.insert(line.name.clone(), line.value.clone());
        }
    }
    Ok(Merged {
        fault: fault(upstream, has_credential),
        slot: inbound.slot().cloned(),
    })
}

/// Whose a refusal would be to mend, where a credential of the caller's was written, or not.
fn fault(upstream: &Upstream, has_credential: bool) -> Fault {
    let takes_any = upstream.rules().iter().any(|rule| rule.credential);
    if has_credential || (takes_any && !upstream.has_own_credential()) {
        Fault::Caller
    } else {
        Fault::Operator
    }
}

/// Tells the log; and the caller, if it was their credential that did not come.
fn not_merged(upstream: &Upstream, inbound: Option<&Inbound>, error: &OutboundError) {
    events::not_merged(error);
    if let (Some(inbound), Some(refusal)) = (inbound, missing(upstream, error)) {
        inbound.report(refusal);
    }
}

/// The refusal to expect of an upstream that was not asked, because the caller's credential is
/// missing.
fn missing(upstream: &Upstream, error: &OutboundError) -> Option<Refusal> {
    let is_credential =
        |rule: &CompiledRule| rule.credential && Some(&rule.source) == error.header();
    let is_missing = error.kind() == Kind::Missing && upstream.rules().iter().any(is_credential);
    is_missing.then(|| Refusal::missing(upstream.name()))
}

/// Removes what stands under the upstream's names, and makes room for what will.
fn clear(upstream: &Upstream, headers: &mut HeaderMap) -> Result<(), OutboundError> {
    // One for each name, and one more, which `append` wants also for a second line.
    let room = upstream.rules().len() + upstream.lines().len() + 1;
    headers
        .try_reserve(room)
        .map_err(|_| OutboundError::new(Kind::TooManyHeaders, upstream.name(), None))?;
    let stale = headers.keys().filter(|name| upstream.governs(name));
    for name in stale.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
    Ok(())
}

/// A forgotten carry must never turn into the service's own identity.
fn known<'a>(
    upstream: &Upstream,
    inbound: Option<&'a Inbound>,
) -> Result<&'a Inbound, OutboundError> {
    static NOBODY: Inbound = Inbound::empty();
    match inbound {
        Some(inbound) => Ok(inbound),
        None if upstream.rules().is_empty() => Ok(&NOBODY),
        None => Err(OutboundError::new(Kind::NoInbound, upstream.name(), None)),
    }
}

/// Gives `write` what `rule` makes of the caller's header, line by line; nothing where it is absent
/// or loses.
fn resolve(
    upstream: &Upstream,
    rule: &CompiledRule,
    inbound: &Inbound,
    mut write: impl FnMut(HeaderValue, Provenance),
) -> Result<(), OutboundError> {
    let error = |kind| OutboundError::new(kind, upstream.name(), Some(&rule.source));
    let entries = |name| {
        inbound
            .entries(name)
            .ok_or_else(|| error(Kind::NotCaptured))
    };
    let mut lines = entries(&rule.source)?;
    if let Some(admission) = &rule.only_with
        && entries(admission)?.is_empty()
    {
        lines = &[];
    }
    let is_static = || upstream.is_static(&rule.target);
    if lines.is_empty() {
        return if rule.required {
            Err(error(Kind::Missing))
        } else if inbound.is_unknown()
            && rule.on_conflict == Some(OnConflict::Caller)
            && is_static()
        {
            // The service's own identity would stand in for a caller whom nobody asked.
            Err(error(Kind::NotCaptured))
        } else {
            Ok(())
        };
    }
    if rule.on_conflict == Some(OnConflict::Static) && is_static() {
        return Ok(());
    }
    // The capture layer has seen to it, unless it was built for other rules.
    if !rule.multi && lines.len() > 1 {
        return Err(error(Kind::Invalid));
    }
    for line in lines {
        if rule.has_scheme && is_bound(line.value.as_bytes()) {
            return Err(error(Kind::Invalid));
        }
        let value = if rule.bearer {
            bearer(&line.value).ok_or_else(|| error(Kind::Invalid))?
        } else {
            line.value.clone()
        };
        let provenance = if line.attested {
            Provenance::Attested
        } else {
            Provenance::Caller
        };
        write(value, provenance);
    }
    Ok(())
}

/// Whether the value is of a scheme that only works on the hop that it was made for.
fn is_bound(value: &[u8]) -> bool {
    let start = value
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t' | b','));
    let value = &value[start.unwrap_or(value.len())..];
    let end = value
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b','));
    let scheme = &value[..end.unwrap_or(value.len())];
    let begins = |prefix: &str| {
        let start = scheme.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    BOUND_SCHEMES
        .iter()
        .any(|bound| scheme.eq_ignore_ascii_case(bound.as_bytes()))
        || BOUND_SCHEME_PREFIXES.iter().any(|prefix| begins(prefix))
}

/// `value` with `Bearer ` in front, unless it has that already; `None` if it is no token.
fn bearer(value: &HeaderValue) -> Option<HeaderValue> {
    const PREFIX: &[u8] = b"Bearer ";
    let bytes = value.as_bytes();
    let start = bytes.get(..PREFIX.len());
    if start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX)) {
        return Some(value.clone());
    }
    // A scheme without its token.
    if !is_token68(bytes) || bytes.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let value = Bytes::from([PREFIX, bytes].concat());
    let mut value = HeaderValue::from_maybe_shared(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// RFC 9110 section 11.2.
fn is_token68(bytes: &[u8]) -> bool {
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    let token = &bytes[..bytes.len() - padding];
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    !token.is_empty() && token.iter().all(allowed)
}
