//! The caller in the handlers of rmcp's server.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use mcp::{Caller, Front, Kind, Server, factory};
use mcp_forward::{
    CaptureLayer, ClientFactory, ConnectErrorKind, Inbound, OutboundErrorKind, Upstream,
    rmcp::ContextExt,
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{CallToolRequestParams, CallToolResponse, CallToolResult, CustomNotification},
    service::{NotificationContext, RequestContext},
    transport::streamable_http_server::{
        StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::json;
use support::{identity, lines};
use tokio::sync::mpsc;
use tower::Layer;

const USER: HeaderName = HeaderName::from_static("x-user");

fn upstream() -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    builder.allow(USER.as_str()).build().unwrap()
}

/// Tells the caller that each handler finds, or that it finds none.
#[derive(Clone)]
struct Telling(mpsc::UnboundedSender<(&'static str, Option<HeaderValue>)>);

impl Telling {
    async fn tell(&self, handler: &'static str, context: &impl ContextExt) {
        assert!(Inbound::current().is_none(), "rmcp carries by itself");
        match context.inbound() {
            Ok(inbound) => {
                let user = inbound.get(&USER).cloned();
                let scoped = context.scope(async { identity().connect(&upstream()).await });
                let scoped = lines(&scoped.await.unwrap());
                assert_eq!(scoped.len(), usize::from(user.is_some()));
                self.0.send((handler, user)).unwrap();
            }
            Err(error) => {
                assert!(error.to_string().contains("streamable HTTP"), "{error}");
                let scoped = context.scope(async { identity().connect(&upstream()).await });
                let error = scoped.await.unwrap_err();
                let expected = ConnectErrorKind::Outbound(OutboundErrorKind::NoInbound);
                assert_eq!(error.kind(), expected);
                self.0.send(("missing", None)).unwrap();
            }
        }
    }
}

impl ServerHandler for Telling {
    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.tell("call", &context).await;
        Ok(CallToolResult::success(Vec::new()).into())
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.tell("initialized", &context).await;
    }

    async fn on_custom_notification(
        &self,
        _: CustomNotification,
        context: NotificationContext<RoleServer>,
    ) {
        self.tell("custom", &context).await;
    }
}

#[tokio::test]
async fn each_message_has_the_caller_of_its_own_request() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = StreamableHttpService::new(
        move || Ok(Telling(tell.clone())),
        Arc::<LocalSessionManager>::default(),
        Default::default(),
    );
    let layer = CaptureLayer::for_upstreams([&upstream()]).build().unwrap();
    let addr = support::serve(layer.layer(service.clone())).await;
    // Any front: only its address and kind count.
    let server = Server::start(Kind::Sessions).await;
    let factory = factory();
    let mut front = Front::start(Kind::Sessions, &server.upstream(), &factory).await;
    front.addr = addr;

    let alice = Caller::open(&front, [("x-user", "alice")]).await;
    let value = |user| Some(HeaderValue::from_static(user));
    assert_eq!(told.recv().await.unwrap(), ("initialized", value("alice")));
    alice.call("any", json!({})).await;
    assert_eq!(told.recv().await.unwrap(), ("call", value("alice")));
    let bob = alice.with([("x-user", "bob")]);
    bob.call("any", json!({})).await;
    assert_eq!(told.recv().await.unwrap(), ("call", value("bob")));
    let custom = json!({ "jsonrpc": "2.0", "method": "notifications/any" });
    assert_eq!(bob.post(&custom).await.0, 202);
    assert_eq!(told.recv().await.unwrap(), ("custom", value("bob")));
    alice.with([]).call("any", json!({})).await;
    assert_eq!(told.recv().await.unwrap(), ("call", None));

    // Without a capture layer there is a caller, of whom nothing is known.
    front.addr = support::serve(service).await;
    let alice = Caller::open(&front, [("x-user", "alice")]).await;
    assert_eq!(told.recv().await.unwrap(), ("initialized", None));
    alice.call("any", json!({})).await;
    assert_eq!(told.recv().await.unwrap(), ("call", None));
}

#[tokio::test]
async fn a_message_without_an_http_request_has_no_inbound() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let (near, far) = tokio::io::duplex(4_096);
    let server = tokio::spawn(async move { Telling(tell).serve(far).await.unwrap() });
    let client = ().serve(near).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), ("missing", None));
    client.call_tool(mcp::call("any", json!({}))).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), ("missing", None));
    drop(server.await.unwrap());
}

#[tokio::test]
async fn the_factory_calls_nobody_where_there_is_no_inbound() {
    let server = Server::start(Kind::Sessions).await;
    let factory = factory();
    let error = factory.connect(&server.upstream()).await.unwrap_err();
    let expected = ConnectErrorKind::Outbound(OutboundErrorKind::NoInbound);
    assert_eq!(error.kind(), expected);
    assert!(server.seen().is_empty());
}
