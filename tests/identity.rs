//! Identity: work that outlives a request never acts as the wrong caller, nor as the operator.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use mcp_forward::{
    CaptureLayer, ClientFactory, ConnectErrorKind, Inbound, InboundExt, OnConflict,
    OutboundErrorKind, Rule, Upstream, task,
};
use support::{capture, http_client, identity, lines, serve};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tower::{Layer, service_fn};

/// The caller's token where one came, else the service's own.
fn upstream() -> Upstream {
    Upstream::builder("up", "https://up.example/mcp")
        .rule(Rule::credential("authorization").on_conflict(OnConflict::Caller))
        .set("authorization", "service")
        .build()
        .unwrap()
}

struct Message {
    parts: http::request::Parts,
    answer: oneshot::Sender<String>,
}

/// What the upstream would see from here.
async fn seen_upstream() -> String {
    match identity().connect(&upstream()).await {
        Ok(outbound) => lines(&outbound).join(","),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// A worker for everybody, started by whoever comes first: here inside a request's scope.
async fn actor(mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        let inbound = Inbound::of(&message.parts.extensions);
        let _ = message
            .answer
            .send(seen_upstream().with_inbound(inbound).await);
    }
}

#[tokio::test]
async fn an_actor_serves_each_message_as_its_own_caller() {
    let mailbox: &'static OnceCell<mpsc::Sender<Message>> = Box::leak(Box::default());
    let layer = CaptureLayer::for_upstreams([&upstream()]).build().unwrap();
    let addr = serve(layer.layer(service_fn(
        move |request: Request<hyper::body::Incoming>| async move {
            let start = || async {
                let (sender, messages) = mpsc::channel(1);
                // The worst case: the actor itself carries its first caller.
                task::spawn(actor(messages));
                sender
            };
            let (answer, answered) = oneshot::channel();
            let (parts, _) = request.into_parts();
            let message = Message { parts, answer };
            mailbox
                .get_or_init(start)
                .await
                .send(message)
                .await
                .unwrap();
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answered.await.unwrap())))
        },
    )))
    .await;
    let client = http_client();
    for (sent, seen) in [
        (Some("alice"), "authorization: alice"),
        (Some("bob"), "authorization: bob"),
        (None, "authorization: service"),
        (Some("alice"), "authorization: alice"),
    ] {
        let mut request = Request::builder().uri(format!("http://{addr}/"));
        if let Some(token) = sent {
            request = request.header("authorization", token);
        }
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let answer = support::body_of(client.request(request).await.unwrap()).await;
        assert_eq!(String::from_utf8(answer).unwrap(), seen, "{sent:?}");
    }
}

#[tokio::test]
async fn a_forgotten_carry_is_no_inbound_never_the_static_identity() {
    let alice = capture(&[&upstream()], [("authorization", "alice")]).await;
    async {
        assert_eq!(seen_upstream().await, "authorization: alice");
        let forgotten = tokio::spawn(seen_upstream()).await.unwrap();
        let no_inbound = ConnectErrorKind::Outbound(OutboundErrorKind::NoInbound);
        assert_eq!(forgotten, format!("{no_inbound:?}"));
    }
    .with_inbound(alice)
    .await;
}

#[tokio::test]
async fn nothing_attached_is_not_the_static_identity() {
    // What a spawned handler without a capture layer around it sees.
    let unknown = Inbound::of(&http::Extensions::new());
    let error = identity()
        .connect_for(&upstream(), &unknown)
        .await
        .unwrap_err();
    let not_captured = ConnectErrorKind::Outbound(OutboundErrorKind::NotCaptured);
    assert_eq!(error.kind(), not_captured);
    let compact = unknown.compact();
    assert!(identity().connect_for(&upstream(), &compact).await.is_err());

    // Nothing is at stake where the absent has no fallback.
    let optional = Upstream::builder("up", "https://up.example/mcp")
        .allow("x-user")
        .set("x-key", "s")
        .build()
        .unwrap();
    let outbound = identity().connect_for(&optional, &unknown).await.unwrap();
    assert_eq!(lines(&outbound), ["x-key: s"]);

    // A layer for such a rule attaches what it knows of a caller who sent nothing, and so says it.
    for layer in [
        CaptureLayer::for_upstreams([&upstream()]),
        CaptureLayer::for_names(["authorization"]),
    ] {
        let (seen, mut got) = mpsc::unbounded_channel();
        let service = layer
            .build()
            .unwrap()
            .layer(service_fn(move |request: Request<()>| {
                seen.send(Inbound::of(request.extensions())).unwrap();
                async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
            }));
        tower::ServiceExt::oneshot(service, Request::new(()))
            .await
            .unwrap();
        let inbound = got.recv().await.unwrap();
        assert!(inbound.is_empty());
        let outbound = identity().connect_for(&upstream(), &inbound).await.unwrap();
        assert_eq!(lines(&outbound), ["authorization: service"]);
    }
}

#[tokio::test]
async fn a_static_winner_needs_no_caller() {
    let wins = Upstream::builder("up", "https://up.example/mcp")
        .rule(Rule::new("x-a").on_conflict(OnConflict::Static))
        .set("x-a", "service")
        .build()
        .unwrap();
    let unknown = Inbound::of(&http::Extensions::new());
    let outbound = identity().connect_for(&wins, &unknown).await.unwrap();
    assert_eq!(lines(&outbound), ["x-a: service"]);
}
