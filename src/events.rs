//! What is told to the log, with feature `tracing`: names, counts and reasons, never a value.
//!
//! Each of these does nothing without the feature, so that its callers need not know of it. What is
//! as it should be is told at DEBUG, what is not at WARN.
#![cfg_attr(
    not(feature = "tracing"),
    expect(unused_variables, reason = "nothing to tell")
)]

use http::{HeaderName, HeaderValue, StatusCode};

use crate::{
    carry::{Inbound, Refusal},
    error::OutboundError,
    reply::Rejection,
    rules::Upstream,
};

/// What a request said, of what the rules read.
pub(crate) fn captured(inbound: &Inbound) {
    #[cfg(feature = "tracing")]
    if tracing::enabled!(tracing::Level::DEBUG) {
        let mut names: Vec<_> = inbound.iter().map(|(name, _)| name.as_str()).collect();
        let count = names.len();
        names.dedup();
        tracing::debug!(count, ?names, "captured");
    }
}

/// A request that got no further than `layer`.
pub(crate) fn rejected(layer: &'static str, rejection: &Rejection) {
    #[cfg(feature = "tracing")]
    tracing::warn!(layer, reason = %rejection, "rejected");
}

/// A response has made a session.
#[cfg(feature = "session")]
pub(crate) fn session_created() {
    #[cfg(feature = "tracing")]
    tracing::debug!("session created");
}

/// The first session of a layer that is everybody's who has no principal.
#[cfg(feature = "session")]
pub(crate) fn anonymous_session() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        "a session of nobody; if you have authentication, put it outside `SessionLayer`, else all \
         callers are one"
    );
}

/// A request was answered as if its session did not exist. The caller does not learn `reason`.
#[cfg(feature = "session")]
pub(crate) fn session_denied(reason: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::warn!(reason, "session denied");
}

/// A session is known no more.
#[cfg(feature = "session")]
pub(crate) fn session_ended(reason: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::debug!(reason, "session ended");
}

/// Nobody has used them for too long.
#[cfg(feature = "session")]
pub(crate) fn sessions_expired(count: usize) {
    #[cfg(feature = "tracing")]
    if count > 0 {
        tracing::debug!(count, reason = "expired", "session ended");
    }
}

/// A request said that another worker passed it on, and is believed; or why it is not.
pub(crate) fn internal_forward(believed: Result<(), &'static str>) {
    #[cfg(feature = "tracing")]
    match believed {
        Ok(()) => tracing::debug!("forwarded internally"),
        Err(reason) => tracing::warn!(reason, "an internal forward is not believed"),
    }
}

/// The headers could not be merged, so nothing was sent.
pub(crate) fn not_merged(error: &OutboundError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(upstream = error.upstream(), kind = ?error.kind(), reason = %error, "not merged");
}

/// The headers `names` are on their way to the upstream.
#[cfg_attr(
    not(feature = "tracing"),
    allow(clippy::needless_pass_by_value, reason = "nothing to tell")
)]
pub(crate) fn injected<'a>(upstream: &Upstream, names: impl Iterator<Item = &'a HeaderName>) {
    #[cfg(feature = "tracing")]
    if tracing::enabled!(tracing::Level::DEBUG) {
        let names: Vec<_> = names.map(HeaderName::as_str).collect();
        tracing::debug!(upstream = upstream.name(), ?names, "injected");
    }
}

/// A redirect would have left the upstream.
pub(crate) fn location_removed(upstream: &Upstream, status: StatusCode, location: &HeaderValue) {
    #[cfg(feature = "tracing")]
    {
        let (upstream, status, target) = (upstream.name(), status.as_u16(), origin(location));
        tracing::warn!(
            upstream,
            status,
            target,
            "a redirect leaves the upstream; not followed"
        );
    }
}

/// The upstream answered.
pub(crate) fn relayed(upstream: &Upstream, status: StatusCode) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        upstream = upstream.name(),
        status = status.as_u16(),
        "relayed"
    );
}

/// A redirect, or a proxy's challenge: the upstream's URL is wrong.
pub(crate) fn astray(upstream: &Upstream, status: StatusCode, location: Option<&HeaderValue>) {
    #[cfg(feature = "tracing")]
    {
        let target = location.and_then(origin);
        let (upstream, status) = (upstream.name(), status.as_u16());
        tracing::warn!(
            upstream,
            status,
            target,
            "the upstream redirects; check its URL"
        );
    }
}

/// There was no answer.
pub(crate) fn unreachable(upstream: &Upstream, error: &(dyn std::error::Error + 'static)) {
    #[cfg(feature = "tracing")]
    {
        // The transport's text may quote a URL or a header; the kind of its cause cannot.
        let sources = std::iter::successors(Some(error), |error| error.source());
        let causes = sources.filter_map(|error| error.downcast_ref::<std::io::Error>());
        let cause = causes.last().map(|error| error.kind().to_string());
        let upstream = upstream.name();
        tracing::warn!(upstream, cause, "the upstream cannot be reached");
    }
}

/// There was no answer in time.
pub(crate) fn late(upstream: &Upstream) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        upstream = upstream.name(),
        "the upstream did not answer in time"
    );
}

/// A list goes out without what this upstream would have listed.
#[cfg(feature = "rmcp")]
pub(crate) fn left_out(upstream: &Upstream) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        upstream = upstream.name(),
        "failed; left out of what several upstreams answer"
    );
}

/// A front session that goes on has lost its connection to this upstream, for there is a limit.
#[cfg(feature = "rmcp")]
pub(crate) fn crowded_out(upstream: &Upstream, max_connections: u64) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        upstream = upstream.name(),
        max_connections,
        "a live session's connection is closed, and its subscriptions with it; raise `max_connections`"
    );
}

/// The caller is told of a refusal; where they cannot help it, it is the operator's matter.
pub(crate) fn refused(refusal: &Refusal, how: &'static str) {
    #[cfg(feature = "tracing")]
    {
        let (upstream, status) = (refusal.upstream(), refusal.status().as_u16());
        if refusal.is_callers() {
            tracing::debug!(upstream, status, whose = "caller", how, "refused");
        } else {
            tracing::warn!(upstream, status, whose = "operator", how, "refused");
        }
    }
}

/// What a probe of the upstream has shown.
pub(crate) fn probed(upstream: &Upstream, outcome: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::debug!(upstream = upstream.name(), outcome, "probed");
}

/// Where a redirect leads, without its path and query.
#[cfg(feature = "tracing")]
fn origin(location: &HeaderValue) -> Option<String> {
    let uri = location.to_str().ok()?.parse().ok()?;
    crate::rules::place::Origin::of(&uri).map(|origin| origin.to_string())
}
