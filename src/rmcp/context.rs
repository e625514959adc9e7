//! `ContextExt`: the caller, in a handler of rmcp's server.
//!
//! It may not know what is done as the caller.

use std::sync::Arc;

use http::request::Parts;
use rmcp::{
    RoleServer,
    model::Extensions,
    service::{NotificationContext, Peer, RequestContext},
};

use crate::{
    carry::{Inbound, SessionKey, WithInbound},
    error::MissingInbound,
};

const SESSION_ID: &str = "mcp-session-id";

/// Who sent the message that a handler of rmcp's server was called for.
pub trait ContextExt {
    /// The inbound of the HTTP request that the message came with.
    ///
    /// Nothing that is bound to a task reaches a handler; [`Inbound::current`] is `None` there.
    ///
    /// # Errors
    ///
    /// [`MissingInbound`] where the message came with no HTTP request: over another transport than
    /// streamable HTTP. A request that no capture layer saw is one without headers, as in
    /// [`Inbound::of`].
    fn inbound(&self) -> Result<Inbound, MissingInbound>;

    /// Runs `future` as the caller; with no inbound where [`inbound`](Self::inbound) fails.
    fn scope<F>(&self, future: F) -> WithInbound<F> {
        WithInbound::scoped(future, self.inbound().ok())
    }
}

impl ContextExt for RequestContext<RoleServer> {
    fn inbound(&self) -> Result<Inbound, MissingInbound> {
        // A request that names its version is served on its own, whatever session id it also has.
        let in_session = self.protocol_version().is_none_or(|it| it.has_initialize());
        inbound(&self.extensions, &self.peer, in_session)
    }
}

impl ContextExt for NotificationContext<RoleServer> {
    fn inbound(&self) -> Result<Inbound, MissingInbound> {
        inbound(&self.extensions, &self.peer, true)
    }
}

/// Whether no message can come in `session` any more: it has ended, or its caller has shaken hands anew.
///
/// To a server without sessions each request with a session id is one, since rmcp makes up a handshake
/// that a client may have sent as well.
pub(super) fn is_over(session: &SessionKey) -> bool {
    let peer = session.get::<Peer<RoleServer>>();
    peer.is_some_and(|peer| {
        let handshake = peer.peer_info();
        peer.is_transport_closed() || !handshake.is_some_and(|it| session.is_identified_by(&it))
    })
}

/// The HTTP side of a message whose sender speaks 2026-07-28 or later.
pub(super) fn since_2026_07_28(context: &RequestContext<RoleServer>) -> Option<&Parts> {
    let version = context.protocol_version()?;
    let parts = context.extensions.get::<Parts>();
    parts.filter(|_| !version.has_initialize())
}

fn inbound(
    extensions: &Extensions,
    peer: &Peer<RoleServer>,
    in_session: bool,
) -> Result<Inbound, MissingInbound> {
    let parts = extensions.get::<Parts>();
    let parts = parts.ok_or(MissingInbound::new(
        "the message came without an HTTP request; serve it over streamable HTTP",
    ))?;
    let inbound = Inbound::of(&parts.extensions);
    // The id alone proves nothing, since a server without sessions ignores it. What the handshake
    // left at the peer belongs to this session only.
    let handshake = peer.peer_info();
    let handshake = handshake.filter(|_| in_session && parts.headers.contains_key(SESSION_ID));
    Ok(match handshake {
        Some(handshake) => inbound.in_session(SessionKey::new(handshake, Arc::new(peer.clone()))),
        None => inbound,
    })
}
