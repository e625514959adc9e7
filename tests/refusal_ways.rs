//! Who reports: each way out by itself, any handler, and `collect`, which keeps reports from the caller.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::Shared};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use mcp_forward::{
    CaptureLayer, ClientFactory, Inbound, InboundExt, Outbound, Refusal, RefusalLayer, Relay, Rule,
    Upstream, refusal::collect, task,
};
use support::{
    RawUpstream, capture, http_client, own_error, post, raw,
    refusal::{answer, call, challenges, takes_credential},
    serve, status,
};
use tokio::sync::Semaphore;
use tower::{BoxError, Layer, ServiceBuilder, service_fn};

const URL: &str = "https://up.example/mcp";
const INVALID: &str = r#"Bearer error="invalid_token""#;

/// The raw answer of a service that runs `work` as the caller, says 200 in any case, and stands
/// behind both layers.
async fn served<const N: usize, F, Fut>(upstreams: [&Upstream; N], lines: &str, work: F) -> String
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let service = service_fn(move |_: Request<Incoming>| {
        let work = work.clone();
        async move {
            work().await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served")))
        }
    });
    let capture = CaptureLayer::for_upstreams(upstreams);
    let capture = capture.allow_fan_out("authorization").build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(capture)
        .layer(RefusalLayer::new());
    let addr = serve(layers.service(service)).await;
    raw(addr, post(addr, lines)).await
}

#[tokio::test]
async fn a_required_credential_that_is_missing_is_a_401_by_each_way() {
    let server = RawUpstream::answering(support::OK).await;
    let rule = Rule::new("x-up-token")
        .to("authorization")
        .bearer()
        .required();
    let up = Upstream::builder("up", server.url("/mcp")).rule(rule);
    let up = up.build().unwrap();

    let target = up.clone();
    let forwarded = served([&up], "", move || {
        let target = target.clone();
        async move { assert!(call(&target).await.is_err()) }
    });
    let target = up.clone();
    let connected = served([&up], "", move || {
        let target = target.clone();
        async move {
            let factory = |_: Outbound| async { Ok::<_, Infallible>(()) };
            assert!(factory.connect(&target).await.is_err());
        }
    });
    for answer in [forwarded.await, connected.await] {
        assert_eq!(status(&answer), 401, "{answer}");
        assert_eq!(challenges(&answer), [INVALID]);
        own_error(&answer, -32000);
    }
    for method in ["POST", "GET", "DELETE"] {
        let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
        let relay = Relay::new(&up, http_client());
        let addr = serve(capture.layer(RefusalLayer::new().layer(relay.clone()))).await;
        let answer = raw(addr, post(addr, "").replace("POST", method)).await;
        assert_eq!(status(&answer), 401, "{method}");
        assert_eq!(challenges(&answer), [INVALID]);
        // Without the layer, the relay's own words.
        let addr = serve(capture.layer(relay)).await;
        let answer = raw(addr, post(addr, "").replace("POST", method)).await;
        assert_eq!(status(&answer), 400, "{method}");
        assert!(own_error(&answer, -32600).contains("`x-up-token` is required"));
    }
    assert!(server.requests().is_empty());

    // What is required and no credential stays what it is.
    let up = Upstream::builder("up", server.url("/mcp")).rule(Rule::new("x-user").required());
    let up = up.build().unwrap();
    let target = up.clone();
    let forwarded = served([&up], "", move || {
        let target = target.clone();
        async move { assert!(call(&target).await.is_err()) }
    });
    assert_eq!(status(&forwarded.await), 200);
}

/// Whose fault it is, the rules decide, by each way alike.
#[tokio::test]
async fn the_rules_say_whose_credential_was_refused() {
    use mcp_forward::OnConflict::{Caller, Static};

    let server = RawUpstream::answering(answer(401, "")).await;
    let builder = || Upstream::builder("up", server.url("/mcp"));
    let rule = || Rule::credential("authorization");
    let with = "authorization: Bearer alice\r\n";
    for (up, lines, expected) in [
        // No rule for a credential: whatever is in the statics.
        (builder(), "", 502),
        (builder().allow("x-user"), "x-user: alice\r\n", 502),
        (builder().set("authorization", "Bearer op"), with, 502),
        // A rule for one, whether or not it was sent.
        (builder().rule(rule()), with, 401),
        (builder().rule(rule()), "", 401),
        (builder().rule(Rule::new("x-key").bearer()), "", 401),
        (builder().rule(Rule::credential("cookie")), "", 401),
        // A static header stood in for it, or not.
        (
            builder()
                .rule(rule().on_conflict(Caller))
                .set("authorization", "Bearer op"),
            with,
            401,
        ),
        (
            builder()
                .rule(rule().on_conflict(Caller))
                .set("authorization", "Bearer op"),
            "",
            502,
        ),
        (
            builder()
                .rule(rule().on_conflict(Static))
                .set("authorization", "Bearer op"),
            with,
            502,
        ),
        // One of several: what did not come is not what was refused.
        (
            builder()
                .rule(rule().on_conflict(Static))
                .set("authorization", "Bearer op")
                .allow_credential("cookie"),
            "",
            502,
        ),
        (
            builder()
                .set("authorization", "Bearer op")
                .allow_credential("cookie"),
            "",
            502,
        ),
        (
            builder()
                .set("authorization", "Bearer op")
                .allow_credential("cookie"),
            "cookie: a=b\r\n",
            401,
        ),
        // The operator says what is a credential.
        (builder().allow_credential("x-api-key"), "", 401),
        (
            builder().allow_credential("x-api-key"),
            "x-api-key: k\r\n",
            401,
        ),
        (
            builder()
                .rule(Rule::credential("x-api-key").on_conflict(Caller))
                .set("x-api-key", "op"),
            "",
            502,
        ),
    ] {
        let up = up.build().unwrap();
        let target = up.clone();
        let forwarded = served([&up], lines, move || {
            let target = target.clone();
            async move { assert_eq!(call(&target).await.unwrap(), 401) }
        })
        .await;
        let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
        let layers = ServiceBuilder::new()
            .layer(capture)
            .layer(RefusalLayer::new());
        let addr = serve(layers.service(Relay::new(&up, http_client()))).await;
        let relayed = raw(addr, post(addr, lines)).await;
        let target = up.clone();
        let connected = served([&up], lines, move || {
            let target = target.clone();
            async move { assert!(refusing.connect(&target).await.is_err()) }
        })
        .await;
        let found = [&forwarded, &relayed, &connected].map(|answer| status(answer));
        assert_eq!(found, [expected; 3], "{up:?} {lines}");
    }
}

/// A factory whose upstream says 401.
async fn refusing(outbound: Outbound) -> Result<(), Wrapped> {
    let refusal = outbound.refusal(StatusCode::UNAUTHORIZED, &HeaderMap::new());
    Err(Wrapped(refusal.unwrap()))
}

/// An error as clients have them: the refusal is its source.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the client failed")]
struct Wrapped(#[source] Refusal);

type Connecting = Shared<Pin<Box<dyn Future<Output = Result<(), Wrapped>> + Send>>>;

#[tokio::test]
async fn two_waiters_of_one_connect_are_both_told() {
    let up = takes_credential(URL);
    let flight: Arc<Mutex<Option<Connecting>>> = Arc::default();
    let arrived = Arc::new(Semaphore::new(0));
    let begun = Arc::clone(&arrived);
    let factory = Arc::new(move |outbound: Outbound| {
        begun.add_permits(1);
        let begun = Arc::clone(&begun);
        let connecting = async move {
            let _both = begun.acquire_many(2).await.unwrap();
            refusing(outbound).await
        };
        let mut flight = flight.lock().unwrap();
        flight
            .get_or_insert_with(|| connecting.boxed().shared())
            .clone()
    });
    let connected = || {
        let (target, factory) = (up.clone(), Arc::clone(&factory));
        served([&up], "", move || {
            let (target, factory) = (target.clone(), Arc::clone(&factory));
            async move { assert!(factory.connect(&target).await.is_err()) }
        })
    };
    let (first, second) = tokio::join!(connected(), connected());
    assert_eq!([status(&first), status(&second)], [401, 401]);
}

/// Two upstreams that read the same header: one takes the token, the other does not.
async fn two() -> ([RawUpstream; 2], [Upstream; 2]) {
    let servers = [
        RawUpstream::answering(support::OK).await,
        RawUpstream::answering(answer(401, "")).await,
    ];
    let [good, bad] = &servers;
    let builder = Upstream::builder("other", bad.url("/mcp")).allow_credential("authorization");
    let upstreams = [takes_credential(good.url("/mcp")), builder.build().unwrap()];
    (servers, upstreams)
}

#[tokio::test]
async fn what_is_collected_is_not_told() {
    let (_servers, [good, bad]) = two().await;
    for (reports, expected) in [(false, 200), (true, 401)] {
        let targets = [good.clone(), bad.clone()];
        let answer = served(
            [&good, &bad],
            "authorization: Bearer alice\r\n",
            move || {
                let [good, bad] = targets.clone();
                async move {
                    // A fan-out, of which a part runs in another task.
                    let both = async {
                        let refused = task::spawn(async move { call(&bad).await });
                        (call(&good).await.unwrap(), refused.await.unwrap().unwrap())
                    };
                    let (said, refusals) = collect(both).await;
                    assert_eq!(said, (StatusCode::OK, StatusCode::UNAUTHORIZED));
                    let [refusal] = &refusals[..] else {
                        panic!("{refusals:?}");
                    };
                    assert_eq!(
                        (refusal.upstream(), refusal.status().as_u16()),
                        ("other", 401)
                    );
                    if reports {
                        Inbound::current().unwrap().report(refusal.clone());
                    }
                }
            },
        )
        .await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
}

#[tokio::test]
async fn a_retry_that_succeeds_is_a_200() {
    let server = RawUpstream::new(|request| {
        let is_renewed = request.all("authorization") == ["Bearer renewed"];
        answer(if is_renewed { 200 } else { 401 }, "").into()
    })
    .await;
    let up = takes_credential(server.url("/mcp"));
    for collects in [true, false] {
        let target = up.clone();
        let answer = served([&up], "authorization: Bearer old\r\n", move || {
            let target = target.clone();
            async move {
                let renewed = capture(&[&target], [("authorization", "Bearer renewed")]).await;
                let first = if collects {
                    let (said, refusals) = collect(call(&target)).await;
                    assert_eq!(refusals.len(), 1);
                    said
                } else {
                    call(&target).await
                };
                assert_eq!(first.unwrap(), 401);
                let retried = call(&target).with_inbound(renewed).await;
                assert_eq!(retried.unwrap(), 200);
            }
        })
        .await;
        let expected = if collects { 200 } else { 401 };
        assert_eq!(status(&answer), expected, "{answer}");
    }
}

#[tokio::test]
async fn collect_does_not_invent_a_caller() {
    let (current, refusals) = collect(async { Inbound::current().is_some() }).await;
    assert!(!current && refusals.is_empty());
    // What comes too late is heard by nobody.
    let up = takes_credential(URL);
    let inbound = capture(&[&up], [("authorization", "Bearer alice")]).await;
    let collecting = async {
        let (inside, refusals) = collect(async { Inbound::current().unwrap() }).await;
        assert!(refusals.is_empty());
        let outbound = support::identity().connect_for(&up, &inside).await.unwrap();
        let refusal = outbound.refusal(StatusCode::FORBIDDEN, &HeaderMap::new());
        inside.report(refusal.unwrap());
        support::lines(&outbound)
    };
    let lines = collecting.with_inbound(inbound).await;
    assert_eq!(lines, ["authorization: Bearer alice"]);
}

/// A factory's error of another kind, a refusal that is no 401 or 403: nothing to tell.
#[tokio::test]
async fn other_failures_are_not_reported() {
    let up = takes_credential(URL);
    let target = up.clone();
    let answer = served([&up], "", move || {
        let target = target.clone();
        async move {
            let failing = |outbound: Outbound| async move {
                assert!(
                    outbound
                        .refusal(StatusCode::NOT_FOUND, &HeaderMap::new())
                        .is_none()
                );
                Err::<(), BoxError>("401".into())
            };
            assert!(failing.connect(&target).await.is_err());
        }
    });
    assert_eq!(status(&answer.await), 200);
}

/// A capture layer inside replaces what was captured, and not where the answer waits.
#[tokio::test]
async fn a_report_as_what_an_inner_layer_captured_is_told() {
    let server = RawUpstream::answering(answer(401, "")).await;
    let up = takes_credential(server.url("/mcp"));
    for lines in ["authorization: Bearer alice\r\n", ""] {
        let target = up.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let target = target.clone();
            let inbound = Inbound::of(request.extensions());
            async move {
                // By what is attached alone, as an actor would.
                let work = async move { call(&target).await.unwrap() };
                assert_eq!(tokio::spawn(work.with_inbound(inbound)).await.unwrap(), 401);
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        });
        let capture = || CaptureLayer::for_upstreams([&up]).build().unwrap();
        let layers = ServiceBuilder::new()
            .layer(capture())
            .layer(RefusalLayer::new())
            .layer(capture());
        let addr = serve(layers.service(service)).await;
        assert_eq!(status(&raw(addr, post(addr, lines)).await), 401, "{lines}");
    }
}

/// What outlives the request has nobody to answer.
#[tokio::test]
async fn a_report_as_a_compact_copy_is_told_to_nobody() {
    let server = RawUpstream::answering(answer(401, "")).await;
    let up = takes_credential(server.url("/mcp"));
    let target = up.clone();
    let answer = served([&up], "authorization: Bearer alice\r\n", move || {
        let target = target.clone();
        let compact = Inbound::current().unwrap().compact();
        let work = async move { assert_eq!(call(&target).await.unwrap(), 401) };
        work.with_inbound(compact)
    });
    assert_eq!(status(&answer.await), 200);
    assert_eq!(server.requests().len(), 1);
}
