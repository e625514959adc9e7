//! Both ends of a proxy that is built on rmcp, the MCP SDK: the caller in its handlers, and clients
//! that reach the upstream as the caller. Feature `rmcp`.
//!
//! [`Proxy`] is a whole one: a handler that passes everything on. For one of your own:
//!
//! ```
//! use mcp_forward::{ClientFactory, Upstream, rmcp::{ContextExt, Factory}};
//! use rmcp::{
//!     ErrorData, RoleServer, ServerHandler,
//!     model::{CallToolRequestParams, CallToolResponse},
//!     service::RequestContext,
//! };
//!
//! # #[allow(dead_code, reason = "nobody serves it here")]
//! struct Gateway {
//!     search: Upstream,
//!     factory: Factory,
//! }
//!
//! impl ServerHandler for Gateway {
//!     async fn call_tool(
//!         &self,
//!         request: CallToolRequestParams,
//!         context: RequestContext<RoleServer>,
//!     ) -> Result<CallToolResponse, ErrorData> {
//!         let caller = context.inbound()?;
//!         let client = self.factory.connect_for(&self.search, &caller).await?;
//!         let client = client.in_call(&context); // progress and logs go to this call
//!         Ok(client.call_tool(request).await?)
//!     }
//! }
//! # let _ = |search, factory| Gateway { search, factory };
//! ```
//!
//! [`Proxy`] is such a gateway, ready made, for any number of upstreams.
//!
//! Depend on `rmcp` 3.9 yourself, with its features `server` and `transport-streamable-http-server`. Its
//! server answers only requests for loopback hosts unless told otherwise (`with_allowed_hosts`).
//!
//! rmcp runs each handler in a task of its own, where no inbound is current; [`ContextExt`] finds the
//! caller in the HTTP request that came with the message.
//!
//! # Which upstream connection a call uses
//!
//! | caller | upstream | connection |
//! |---|---|---|
//! | in a session of rmcp's server | speaks versions from before 2026-07-28, too | one for each front session, in one of those versions; every message has its own caller's headers, a renewed token goes on in it |
//! | in a session of rmcp's server | 2026-07-28 and later only | one for each front session and the exact headers in it: a renewed token has a new one |
//! | in none | any | one for each exact [`Outbound`](crate::Outbound), in 2026-07-28 where the upstream speaks it |
//!
//! So a caller from before 2026-07-28 keeps what that version has no way for: a log level, subscriptions,
//! and being asked. An upstream that does not know `initialize` is asked `server/discover` after it; one that
//! fails is not. For a caller in no session each connection begins with `server/discover`, and with
//! `initialize` after it where the upstream is older: one request more than it takes.
//!
//! Callers who send nothing that is forwarded are one and the same to an upstream. Where it keeps state in
//! its sessions, and your server has none, give each call a connection of its own:
//! [`FactoryBuilder::fresh`].
//!
//! rmcp binds a session to nobody: whoever knows its id is served in it. Put a session layer in front
//! of rmcp's server, else a stranger in a front session is in its upstream session too.
//!
//! What an upstream asks during a call (sampling, elicitation, roots) reaches the caller of that call,
//! where there is a front session; a connection without one declares that it can answer nothing.
//!
//! # What rmcp logs
//!
//! rmcp has events of its own, which this crate cannot change: notifications, session ids and answers of
//! upstreams at INFO and WARN, whole messages at DEBUG. Headers are not in them. `rmcp=error` keeps almost
//! all of it out of a log.

mod bridge;
mod client;
mod connection;
mod context;
mod custom;
mod error;
mod factory;
mod failure;
mod owner;
mod page;
mod param_headers;
mod pool;
mod proxy;
mod reach;
mod result_type;
mod status;
mod streams;
mod wire;

pub use client::Client;
pub use context::ContextExt;
pub use error::{Error, ErrorKind};
pub use factory::{Factory, FactoryBuilder};
pub use proxy::Proxy;
