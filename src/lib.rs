//! Tower middleware that carries the caller's headers, above all authentication, through an MCP
//! proxy.
//!
//! ```text
//!              capture            carry                merge + inject
//!  caller ──▶ CaptureLayer ──▶ your handler, its  ──▶ Relay, ForwardLayer ──▶ upstream
//!              (allowlist)      tasks, its bodies      or ClientFactory        (its own headers)
//! ```
//!
//! A whole proxy, with `axum`, `hyper-util` (`client-legacy`, `http1`, `tokio`) and `tokio` (`macros`, `net`,
//! `rt-multi-thread`) beside this crate:
//!
//! ```no_run
//! use axum::Router;
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use mcp_forward::{CaptureLayer, Relay, Rule, Upstream};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let github = Upstream::builder("github", "http://localhost:9000/mcp")
//!         .allow("x-user-id") // copied when the caller sent it
//!         .rule(Rule::new("x-github-token").to("authorization").bearer().required())
//!         .set("x-proxy", "edge-1") // static, from the operator
//!         .build()?; // every mistake is reported here, all at once
//!
//!     let client = Client::builder(TokioExecutor::new()).build_http();
//!     let app = Router::new()
//!         .route_service("/mcp", Relay::new(&github, client))
//!         .layer(CaptureLayer::for_upstreams([&github]).build()?);
//!
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:8808").await?;
//!     Ok(axum::serve(listener, app).await?)
//! }
//! ```
//!
//! An MCP client that is given `http://127.0.0.1:8808/mcp` and sends `x-github-token` is now at the server on
//! port 9000, which gets `authorization: Bearer …`; one that does not send it gets 400 (behind
//! [`RefusalLayer`] 401), and the server hears nothing of it.
//!
//! # Guides
//!
//! [`guide`] has a page for each of: an existing axum service, a bare hyper one, an MCP client of your own, a
//! gateway, an upstream's 401, a header that does not arrive, exchanging a token, and whether a token may
//! be forwarded at all.
//!
//! # Three ways out, one merge
//!
//! [`Relay`] streams the HTTP exchange to one upstream; no MCP client is needed. [`ForwardLayer`]
//! goes around any tower HTTP client. [`ClientFactory`] makes any MCP client; a closure is one, and
//! [`rmcp::Factory`] is one for rmcp, and [`rmcp::Proxy`] a whole gateway.
//!
//! # What comes back
//!
//! An MCP server sends `200 text/event-stream` before its handler knows what the upstream says, so an
//! upstream's 401 arrives as an empty list. [`RefusalLayer`] waits with the head and tells the caller:
//! 401 or 403 with a [`Challenge`] of this proxy's, 502 where the refused credential was the
//! operator's. [`Relay`], [`ForwardLayer`] and [`rmcp::Factory`] report to it by themselves, and so does any factory
//! whose `create` fails with a [`Refusal`]; other code by [`Inbound::report`]. Retries and fan-outs run in [`refusal::collect`]. [`ProbeLayer`] asks first, for a service that
//! swallows refusals.
//!
//! # What is carried across what
//!
//! | boundary | carried | how |
//! |---|---|---|
//! | `.await`, `join!`, `select!`, the body of `call`, `Drop` | yes | |
//! | a response body, polled after the response future is gone | yes | by `CaptureLayer` |
//! | [`tokio::spawn`] | no | [`task::spawn`] |
//! | `tokio::task::spawn_blocking` | no | [`task::spawn_blocking`] |
//! | `JoinSet::spawn`, `TaskTracker::spawn`, `Handle::spawn` | no | [`.with_current_inbound()`](InboundExt::with_current_inbound) |
//! | `std::thread::spawn`, `JoinSet::spawn_blocking`, thread pools | no | [`task::wrap`] |
//! | a task that outlives the request, as its caller | no | `.with_inbound(inbound.compact())`: [`Inbound::compact`] |
//! | an actor that serves messages of many callers | no | start it by a plain spawn; [`Inbound::of`] the message, [`.with_inbound(…)`](InboundExt::with_inbound) |
//! | a handler of rmcp's server | no | [`rmcp::ContextExt`] |
//! | the initializer of a cache or a `OnceCell` | **as the caller who comes first** | key by the whole [`Outbound`], else [`.detached()`](InboundExt::detached) |
//! | `tower::Buffer` | no | put none between these layers |
//! | a runtime, `LocalSet` or `FuturesUnordered` driven *inside* a scope | **to all its tasks** | drive none there |
//!
//! A forgotten carry is an error, [`OutboundErrorKind::NoInbound`], where the upstream's rules read
//! the caller; it never becomes the service's own identity. A header that the
//! capture layer was not built to read is an error too: [`OutboundErrorKind::NotCaptured`].
//!
//! # Order of layers
//!
//! Outermost first: CORS, compression, `SetSensitiveRequestHeadersLayer`, trace, body time-out,
//! [`OriginGuardLayer`], [`InternalForwardLayer`], your authentication, [`ServerIdLayer`],
//! [`CaptureLayer`], [`SessionLayer`], [`ProbeLayer`], [`RefusalLayer`], the service. [`ForwardLayer`]
//! stands on the client's side, below any redirect or retry layer. Leave out what you do not use. axum's
//! `.layer` lines read inside out: the last one is the outermost. [`Relay`] has a guard of its own beside
//! [`OriginGuardLayer`]: open both.
//!
//! Here with tower-http 0.7, features `compression-gzip`, `cors`, `sensitive-headers`, `timeout` and `trace`:
//!
//! ```
//! # use std::time::Duration;
//! # use axum::Router;
//! # use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! # use http::{HeaderValue, request::Parts};
//! # use mcp_forward::{CaptureLayer, InternalForwardLayer, OriginGuardLayer, ProbeLayer, RefusalLayer};
//! # use mcp_forward::{Relay, ServerIdLayer, SessionLayer, Upstream};
//! # use tower_http::{compression::CompressionLayer, cors::CorsLayer, timeout::RequestBodyTimeoutLayer};
//! # use tower_http::{sensitive_headers::SetSensitiveRequestHeadersLayer, trace::TraceLayer};
//! # let up = Upstream::builder("up", "http://localhost:9000/mcp").build()?;
//! # let client = Client::builder(TokioExecutor::new()).build_http();
//! # let (relay, target) = (Relay::new(&up, client.clone()), up.clone());
//! # let authentication = tower::layer::util::Identity::new();
//! # let sessions = SessionLayer::bind(|parts| parts.extensions.get::<String>().cloned());
//! # let internal_forward = InternalForwardLayer::for_peers(|_: &Parts| false);
//! let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").build()?;
//! let capture = CaptureLayer::for_upstreams([&up]).build()?;
//! let sensitive = capture.names().to_vec();
//! let app: Router = Router::new()
//!     .route_service("/servers/{server_id}/mcp", relay)
//!     .layer(RefusalLayer::new())
//!     .layer(ProbeLayer::new(client, move |_| [target.clone()]))
//!     .layer(sessions)
//!     .layer(capture)
//!     .layer(server_id)
//!     .layer(authentication)
//!     .layer(internal_forward)
//!     .layer(OriginGuardLayer::loopback())
//!     .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(30)))
//!     .layer(TraceLayer::new_for_http())
//!     .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
//!     .layer(CompressionLayer::new())
//!     .layer(CorsLayer::new().allow_origin(HeaderValue::from_static("https://app.example")));
//! # let _ = app;
//! # Ok::<_, mcp_forward::BuildError>(())
//! ```
//!
//! `TraceLayer::new_for_http()` records the URI with its query: where that may hold a token, let its
//! `make_span_with` take the path alone.
//!
//! On bare hyper, one `ServiceBuilder` reads outermost first. tower-http's bodies need two boxes
//! there (features `map-request-body`, `map-response-body`): CORS wants a response body with a default, and hyper's client a request body that is
//! `Unpin`, which a body time-out's is not.
//!
//! ```
//! # use std::time::Duration;
//! # use bytes::Bytes;
//! # use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
//! # use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! # use http::{HeaderValue, request::Parts};
//! # use mcp_forward::{CaptureLayer, InternalForwardLayer, OriginGuardLayer, ProbeLayer, RefusalLayer};
//! # use mcp_forward::{Relay, ServerIdLayer, SessionLayer, Upstream};
//! # use tower::{BoxError, ServiceBuilder};
//! # use tower_http::{compression::CompressionLayer, cors::CorsLayer, timeout::RequestBodyTimeoutLayer};
//! # use tower_http::{map_request_body::MapRequestBodyLayer, map_response_body::MapResponseBodyLayer};
//! # use tower_http::{sensitive_headers::SetSensitiveRequestHeadersLayer, trace::TraceLayer};
//! # let up = Upstream::builder("up", "http://localhost:9000/mcp").build()?;
//! # let client = Client::builder(TokioExecutor::new()).build_http();
//! # let (relay, target) = (Relay::new(&up, client.clone()), up.clone());
//! # let authentication = tower::layer::util::Identity::new();
//! # let sessions = SessionLayer::bind(|parts| parts.extensions.get::<String>().cloned());
//! # let internal_forward = InternalForwardLayer::for_peers(|_: &Parts| false);
//! # let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").build()?;
//! # let capture = CaptureLayer::for_upstreams([&up]).build()?;
//! # let sensitive = capture.names().to_vec();
//! fn boxed<B>(body: B) -> UnsyncBoxBody<Bytes, BoxError>
//! where
//!     B: http_body::Body<Data = Bytes> + Send + 'static,
//!     B::Error: Into<BoxError>,
//! {
//!     body.map_err(Into::into).boxed_unsync()
//! }
//!
//! let service = ServiceBuilder::new()
//!     .layer(CorsLayer::new().allow_origin(HeaderValue::from_static("https://app.example")))
//!     .layer(MapResponseBodyLayer::new(boxed))
//!     .layer(CompressionLayer::new())
//!     .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
//!     .layer(TraceLayer::new_for_http())
//!     .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(30)))
//!     .layer(OriginGuardLayer::loopback())
//!     .layer(internal_forward)
//!     .layer(authentication)
//!     .layer(server_id)
//!     .layer(capture)
//!     .layer(sessions)
//!     .layer(MapRequestBodyLayer::new(boxed))
//!     .layer(ProbeLayer::new(client, move |_| [target.clone()]))
//!     .layer(RefusalLayer::new())
//!     .service(relay);
//! # async fn serve<S: tower::Service<http::Request<hyper::body::Incoming>>>(_: S) {}
//! # let _ = serve(service);
//! # Ok::<_, mcp_forward::BuildError>(())
//! ```
//!
//! # Many servers, many workers
//!
//! Where one gateway serves many servers, [`ServerIdLayer`] writes the id from the path into each
//! message, so that a list or a call is for that server alone. A worker that passes a message on to the
//! one that has its session sends it to the same path: it is scoped there again, by the same layer.
//! `x-forwarded-internally` tells that worker not to pass it on again, and [`InternalForwardLayer`]
//! believes it only from a peer.
//!
//! Code that hands a request to another worker stands **between [`ServerIdLayer`] and [`CaptureLayer`], outside
//! [`SessionLayer`]**, which knows the sessions of its own process only and answers 404 to others. Where
//! [`OriginGuardLayer`] stands outside, it has to allow the hosts under which workers reach each
//! other. [`InternalForwardLayer`] stands around the whole router and not inside axum's `nest`.
//!
//! # Security
//!
//! MCP, *Security Best Practices*, "Token Passthrough", forbids a server to pass on the token that
//! it was sent as its own, and *Authorization* to transit any other; [`Rule::credential`] says when forwarding is legitimate. Nothing else is
//! forwarded than what a rule names; restricted names are refused in every position. Headers reach
//! the upstream's origin and path only. No header value is in any `Debug`, error or event of this
//! crate. It verifies nobody: your authentication stands outside [`CaptureLayer`]. `SECURITY.md` in the
//! repository has the list of what is promised, and of what only you can do.
//!
//! # Features
//!
//! None is on by default. `tracing`: events, what is as it should be at DEBUG, what is not at WARN.
//! `axum`: [`Inbound`] as an extractor, and the path outside `nest` for [`ServerIdLayer`]. [`rmcp`]: both
//! ends of a proxy that is built on rmcp. `session`: [`SessionLayer`], which lets only those use an MCP
//! session who began it. `hmac`: [`InternalForward`], the proof that one worker gives another.
#![doc(test(attr(deny(warnings))))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod carry;
mod error;
mod events;
#[cfg(any(doc, doctest))]
pub mod guide;
pub mod inbound;
pub mod outbound;
pub mod refusal;
pub mod reply;
#[cfg(feature = "rmcp")]
pub mod rmcp;
mod rules;
pub mod server_id;

pub use carry::{Inbound, InboundExt, Refusal, WithInbound, task};
#[cfg(any(feature = "axum", feature = "rmcp"))]
pub use error::MissingInbound;
pub use error::{
    BuildError, ConnectError, ConnectErrorKind, Mistake, MistakeKind, OutboundError,
    OutboundErrorKind,
};
#[cfg(feature = "hmac")]
pub use error::{SignError, SignErrorKind};
#[cfg(feature = "session")]
pub use inbound::session::SessionLayer;
pub use inbound::{capture::CaptureLayer, origin::OriginGuardLayer};
pub use outbound::{
    Outbound,
    client::{BoxClientFactory, ClientFactory},
    forward::ForwardLayer,
    relay::Relay,
};
pub use refusal::{challenge::Challenge, hold::RefusalLayer, probe::ProbeLayer};
pub use rules::{OnConflict, Rule, Upstream, UpstreamBuilder};
#[cfg(feature = "hmac")]
pub use server_id::proof::InternalForward;
pub use server_id::{
    ServerId,
    internal::{ForwardedInternally, InternalForwardLayer, VerifyPeer},
    layer::ServerIdLayer,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
