//! `RefusalLayer`: what ends the hold, what is never held, and what the caller gets.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    convert::Infallible,
    future::ready,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, ClientFactory, Inbound, Refusal, RefusalLayer, Relay, Upstream};
use mcp_forward::{refusal::HeldBody, reply};
use support::{
    RawUpstream, capture, check_error, http_client, identity, own_error, post, raw,
    refusal::{
        Events, Frames, PRIMING, answer, body_of_stream, call, challenges, early, event_stream,
        events, send, takes_credential, text,
    },
    serve, status,
};
use tokio::time::{Instant, advance};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};

const URL: &str = "https://up.example/mcp";

/// A refusal by an upstream that takes a credential of the caller's, or has one of the operator's.
async fn refusal(is_callers: bool, status: u16) -> Refusal {
    let own = Upstream::builder("own", URL).set("authorization", "Bearer s3cret");
    let upstream = if is_callers {
        takes_credential(URL)
    } else {
        own.build().unwrap()
    };
    let inbound = capture(&[&upstream], []).await;
    let outbound = identity().connect_for(&upstream, &inbound).await.unwrap();
    let refusal = outbound.refusal(status.try_into().unwrap(), &http::HeaderMap::new());
    let refusal = refusal.unwrap();
    assert_eq!(refusal.is_callers(), is_callers);
    refusal
}

type Answer = Response<reply::Body<mcp_forward::WithInbound<reply::Body<HeldBody<Events>>>>>;
type Respond = fn(Events) -> Response<Events>;
type Answering = Pin<Box<dyn Future<Output = io::Result<Answer>> + Send>>;

/// The answer to a request of `method` by a service that answers with `respond`, in memory.
fn ask_by<F>(method: &str, layer: &RefusalLayer, respond: F) -> Answering
where
    F: FnOnce(Inbound) -> io::Result<Response<Events>> + Send + 'static,
{
    let mut respond = Some(respond);
    let service = service_fn(move |_: Request<Empty<Bytes>>| {
        let respond = respond.take().unwrap();
        ready(respond(Inbound::current().unwrap()))
    });
    let capture = CaptureLayer::for_upstreams([]).build().unwrap();
    let service = capture.layer(layer.layer(service));
    let request = Request::builder().method(method).body(Empty::new());
    Box::pin(service.oneshot(request.unwrap()))
}

fn ask<F>(respond: F) -> Answering
where
    F: FnOnce(Inbound) -> io::Result<Response<Events>> + Send + 'static,
{
    ask_by("POST", &RefusalLayer::new(), respond)
}

/// A response that is held, its frames, and its inbound.
async fn begun(layer: &RefusalLayer) -> (Answering, Frames, Inbound) {
    let (frames, body) = events();
    send(&frames, PRIMING);
    let (seen, inbound) = tokio::sync::oneshot::channel();
    let mut answering = ask_by("POST", layer, move |inbound| {
        seen.send(inbound).unwrap();
        Ok(event_stream(body))
    });
    assert!(answering.as_mut().now_or_never().is_none(), "not held");
    (answering, frames, inbound.await.unwrap())
}

async fn check_refused(answer: Answer, expected: u16) {
    assert_eq!(answer.status(), expected);
    assert!(!answer.headers().contains_key("x-inner"));
    let code = if expected == 502 { -32603 } else { -32000 };
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    check_error(&body, code);
}

#[tokio::test]
async fn a_report_is_told_and_only_the_operator_can_mend_the_operators() {
    for (is_callers, said, expected) in [
        (true, 401, 401),
        (true, 403, 403),
        (false, 401, 502),
        (false, 403, 502),
    ] {
        let (answering, frames, inbound) = begun(&RefusalLayer::new()).await;
        inbound.report(refusal(is_callers, said).await);
        drop(frames);
        check_refused(answering.await.unwrap(), expected).await;
    }
    // Of several, the first of the caller's.
    for (reports, expected) in [
        ([(false, 401), (true, 403), (true, 401)], 403),
        ([(true, 401), (false, 401), (true, 403)], 401),
    ] {
        let (answering, frames, inbound) = begun(&RefusalLayer::new()).await;
        for (is_callers, said) in reports {
            inbound.report(refusal(is_callers, said).await);
        }
        drop(frames);
        check_refused(answering.await.unwrap(), expected).await;
    }
}

/// The body says nothing, so that only the report can wake the answer.
#[tokio::test(start_paused = true)]
async fn a_report_from_another_task_wakes_the_answer() {
    let (answering, _frames, inbound) = begun(&RefusalLayer::new()).await;
    let refusal = refusal(true, 401).await;
    let start = Instant::now();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        inbound.report(refusal);
    });
    check_refused(answering.await.unwrap(), 401).await;
    // The report, and what reading to the end may take.
    assert_eq!(start.elapsed(), Duration::from_secs(4));
}

#[tokio::test]
async fn a_report_in_the_poll_that_yields_the_first_event_wins() {
    let refusal = refusal(true, 401).await;
    let service = service_fn(move |_: Request<Empty<Bytes>>| {
        let refusal = refusal.clone();
        let reports = stream::once(async move {
            Inbound::current().unwrap().report(refusal);
            Ok(Frame::data(Bytes::from("data: old\n\n")))
        });
        ready(Ok::<_, Infallible>(event_stream(body_of_stream(reports))))
    });
    let capture = CaptureLayer::for_upstreams([]).build().unwrap();
    let service = capture.layer(RefusalLayer::new().layer(service));
    let answer = service
        .oneshot(Request::post("/").body(Empty::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    assert!(!text(answer.into_body()).await.contains("old"));
}

#[tokio::test]
async fn a_report_after_the_head_is_ignored() {
    let (answering, frames, inbound) = begun(&RefusalLayer::new()).await;
    send(&frames, "data: a\n\n");
    let answer = answering.await.unwrap();
    inbound.report(refusal(true, 401).await);
    send(&frames, "data: b\n\n");
    drop(frames);
    assert_eq!(answer.status(), 200);
    let expected = format!("{PRIMING}data: a\n\ndata: b\n\n");
    assert_eq!(text(answer.into_body()).await, expected);
}

/// What keeps the inbound must not keep whoever waited as well.
#[tokio::test]
async fn nobody_is_woken_once_the_hold_is_over() {
    struct Count;

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {}
    }

    for is_released in [true, false] {
        let (seen, inbound) = tokio::sync::oneshot::channel();
        let (sender, body) = events();
        let mut answering = ask_by("POST", &RefusalLayer::new(), move |inbound| {
            seen.send(inbound).unwrap();
            Ok(event_stream(body))
        });
        let count = Arc::new(Count);
        let waker = std::task::Waker::from(Arc::clone(&count));
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(answering.as_mut().poll(&mut cx).is_pending());
        let inbound = inbound.await.unwrap();
        if is_released {
            send(&sender, "data: a\n\n");
            let answer = answering.as_mut().poll(&mut cx);
            assert!(answer.is_ready());
        }
        drop((answering, sender, waker));
        assert_eq!(Arc::strong_count(&count), 1, "{is_released}");
        inbound.report(refusal(true, 401).await);
    }
}

/// A caller who repeats the same JSON-RPC id must not be given the old result.
#[tokio::test(start_paused = true)]
async fn a_refused_response_is_read_to_its_end_for_a_second_at_most() {
    let (mut answering, frames, inbound) = begun(&RefusalLayer::new()).await;
    inbound.report(refusal(true, 401).await);
    send(&frames, "data: old\n\n");
    advance(Duration::from_millis(900)).await;
    assert!(answering.as_mut().now_or_never().is_none(), "not drained");
    assert!(!frames.is_closed());
    drop(frames);
    check_refused(answering.await.unwrap(), 401).await;

    // One that does not end.
    let (answering, frames, inbound) = begun(&RefusalLayer::new()).await;
    inbound.report(refusal(true, 401).await);
    let start = Instant::now();
    check_refused(answering.await.unwrap(), 401).await;
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert!(frames.is_closed());
}

/// On a clock that runs: this body is never at rest.
#[tokio::test]
async fn a_refused_response_that_never_pauses_is_cut_too() {
    let refusal = refusal(true, 401).await;
    let service = service_fn(move |_: Request<Empty<Bytes>>| {
        Inbound::current().unwrap().report(refusal.clone());
        let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(b"data: x\n\n"))));
        ready(Ok::<_, Infallible>(event_stream(body_of_stream(endless))))
    });
    let capture = CaptureLayer::for_upstreams([]).build().unwrap();
    let service = capture.layer(RefusalLayer::new().layer(service));
    let answer = service.oneshot(Request::post("/").body(Empty::<Bytes>::new()).unwrap());
    assert_eq!(answer.await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_service_or_body_that_fails_is_told_at_once() {
    // Before the head.
    let failing = ask(|_| Err(io::Error::other("inner")));
    assert_eq!(failing.await.unwrap_err().to_string(), "inner");
    let caller = refusal(true, 401).await;
    let failing = ask(move |inbound| {
        inbound.report(caller);
        Err(io::Error::other("inner"))
    });
    check_refused(failing.await.unwrap(), 401).await;

    // While the head is held.
    let (answering, frames, _) = begun(&RefusalLayer::new()).await;
    frames.send(Err("s3cret".into())).unwrap();
    let answer = answering.await.unwrap();
    assert_eq!(answer.status(), 502);
    let body = text(answer.into_body()).await;
    assert!(check_error(body.as_bytes(), -32603).contains("failed"));
    let (answering, frames, inbound) = begun(&RefusalLayer::new()).await;
    inbound.report(refusal(true, 403).await);
    frames.send(Err("s3cret".into())).unwrap();
    check_refused(answering.await.unwrap(), 403).await;

    // After it, the body fails as it would.
    let (answering, frames, _) = begun(&RefusalLayer::new()).await;
    send(&frames, "data: a\n\n");
    frames.send(Err("later".into())).unwrap();
    let body = answering.await.unwrap().into_body();
    assert_eq!(body.collect().await.unwrap_err().to_string(), "later");
}

#[tokio::test(start_paused = true)]
async fn the_limit_ends_the_hold() {
    for (layer, limit) in [
        (RefusalLayer::new(), 10_000),
        (
            RefusalLayer::new().hold_limit(Duration::from_millis(30)),
            30,
        ),
    ] {
        let start = Instant::now();
        let (answering, frames, _) = begun(&layer).await;
        let answer = answering.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(limit));
        drop(frames);
        assert_eq!(answer.status(), 200);
        assert_eq!(text(answer.into_body()).await, PRIMING);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_tool_is_not_cut() {
    let service = service_fn(|_: Request<Empty<Bytes>>| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let json = Response::builder().header("content-type", "application/json");
        Ok::<_, Infallible>(
            json.body(http_body_util::Full::<Bytes>::from("{}"))
                .unwrap(),
        )
    });
    let capture = CaptureLayer::for_upstreams([]).build().unwrap();
    let service = capture.layer(RefusalLayer::new().layer(service));
    let start = Instant::now();
    let answer = service
        .oneshot(Request::post("/").body(Empty::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(60));
    assert_eq!(
        (answer.status().as_u16(), answer.body().size_hint().exact()),
        (200, Some(2))
    );
    assert_eq!(text(answer.into_body()).await, "{}");
}

#[tokio::test]
async fn what_says_something_or_ends_is_not_waited_for() {
    // Each with whether the stream has ended then.
    let plain = |body| Response::new(body);
    let cases: [(&str, Respond, bool); 6] = [
        ("data: x", event_stream, false),
        (": comment\n\ndata: x", event_stream, false),
        ("{", event_stream, false),
        (" ", plain, false),
        (PRIMING, event_stream, true),
        ("", plain, true),
    ];
    for (said, response, ends) in cases {
        let (frames, body) = events();
        send(&frames, said);
        let kept = (!ends).then_some(frames);
        let answering = ask(move |_| Ok(response(body)));
        let answer = answering.now_or_never().expect(said).unwrap();
        drop(kept);
        assert_eq!(answer.status(), 200);
        assert_eq!(text(answer.into_body()).await, said);
    }
}

#[tokio::test]
async fn eight_kibibytes_are_kept_and_no_more() {
    let comment = format!(":{}\n", "a".repeat(510));
    for (count, is_held) in [(15, true), (16, false)] {
        let (frames, body) = events();
        for _ in 0..count {
            send(&frames, comment.clone());
        }
        let mut answering = ask(move |_| Ok(event_stream(body)));
        let answer = answering.as_mut().now_or_never();
        assert_eq!(answer.is_none(), is_held, "{count}");
        drop(frames);
        let answer = match answer {
            Some(answer) => answer.unwrap(),
            None => answering.await.unwrap(),
        };
        assert_eq!(text(answer.into_body()).await, comment.repeat(count));
    }
    // Frames without a byte count as well, or they would go on forever.
    let (frames, body) = events();
    for _ in 0..8 * 1024 {
        send(&frames, "");
    }
    let layer = RefusalLayer::new().hold_limit(Duration::MAX);
    let answering = ask_by("POST", &layer, move |_| Ok(event_stream(body)));
    let answer = tokio::time::timeout(Duration::from_secs(10), answering).await;
    assert_eq!(answer.unwrap().unwrap().status(), 200);
    drop(frames);
}

#[tokio::test]
async fn what_is_never_held() {
    let layer = RefusalLayer::new();
    for method in ["GET", "DELETE"] {
        let (_frames, body) = events();
        let refusal = refusal(true, 401).await;
        let answering = ask_by(method, &layer, move |inbound| {
            inbound.report(refusal);
            Ok(event_stream(body))
        });
        assert_eq!(answering.now_or_never().unwrap().unwrap().status(), 200);
    }
    let encoded = |body| {
        let mut response = event_stream(body);
        let gzip = "gzip".parse().unwrap();
        response.headers_mut().insert("content-encoding", gzip);
        response
    };
    let (_frames, body) = events();
    let answering = ask(move |_| Ok(encoded(body)));
    assert_eq!(answering.now_or_never().unwrap().unwrap().status(), 200);
    // But what was refused before the head is told.
    let (frames, body) = events();
    drop(frames);
    let caller = refusal(true, 401).await;
    let answering = ask(move |inbound| {
        inbound.report(caller);
        Ok(encoded(body))
    });
    check_refused(answering.await.unwrap(), 401).await;
}

#[tokio::test]
async fn without_a_capture_layer_it_says_so() {
    let addr = serve(RefusalLayer::new().layer(early::<Incoming>(&takes_credential(URL)))).await;
    let answer = raw(addr, post(addr, "")).await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("put `CaptureLayer` outside `RefusalLayer`"));
}

/// The whole way, on sockets: the handler runs in another task, the body in its own polls.
#[tokio::test]
async fn a_body_that_calls_the_upstream_in_its_own_polls_is_held_and_refused() {
    for (said, expected) in [(401, 401), (200, 200)] {
        let server = RawUpstream::answering(answer(said, "")).await;
        let upstream = takes_credential(server.url("/mcp"));
        let target = upstream.clone();
        let lazy = service_fn(move |_: Request<Incoming>| {
            let target = target.clone();
            let first = stream::iter([Ok(Frame::data(Bytes::from(PRIMING)))]);
            let then = stream::once(async move {
                let said = call(&target).await?;
                Ok::<_, BoxError>(Frame::data(Bytes::from(format!("data: {said}\n\n"))))
            });
            let body = body_of_stream(first.chain(then));
            async { Ok::<_, Infallible>(event_stream(body)) }
        });
        let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
        let layers = ServiceBuilder::new()
            .layer(capture)
            .layer(RefusalLayer::new());
        let addr = serve(layers.service(lazy)).await;
        let answer = raw(addr, post(addr, "authorization: Bearer alice\r\n")).await;
        assert_eq!(status(&answer), expected, "{answer}");
        let sent = server.only_request();
        assert_eq!(sent.all("authorization"), ["Bearer alice"]);
    }
}

/// An open event stream of the upstream's: its head says all that there is to wait for.
#[tokio::test]
async fn a_relays_answer_is_never_held() {
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    let silent = service_fn(move |_: Request<Incoming>| {
        let (frames, body) = events();
        opened.store(true, Ordering::Relaxed);
        tokio::spawn(async move { frames.closed().await });
        async { Ok::<_, Infallible>(event_stream(body)) }
    });
    let url = format!("http://{}/mcp", serve(silent).await);
    let no_rule = Upstream::builder("up", &url).build().unwrap();
    for (upstream, is_lost) in [(takes_credential(&url), false), (no_rule, true)] {
        let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
        let layers = ServiceBuilder::new()
            .layer(capture)
            .layer(RefusalLayer::new().hold_limit(Duration::MAX));
        let relay = Relay::new(&upstream, http_client());
        // In a task that nobody carried the caller into, where that is allowed: no rule reads one.
        let relay = service_fn(move |mut request: Request<Incoming>| {
            let relay = relay.clone();
            async move {
                if !is_lost {
                    return relay.oneshot(request).await;
                }
                request.extensions_mut().clear();
                tokio::spawn(relay.oneshot(request)).await.unwrap()
            }
        });
        let addr = serve(layers.service(relay)).await;
        let client = http_client::<Empty<Bytes>>();
        let request = Request::post(format!("http://{addr}/mcp")).body(Empty::new());
        let head = client.request(request.unwrap());
        // Held, it would never come.
        let head = tokio::time::timeout(Duration::from_secs(10), head).await;
        assert_eq!(head.unwrap().unwrap().status(), 200, "{is_lost}");
        assert!(is_open.swap(false, Ordering::Relaxed));
    }
}

#[tokio::test]
async fn a_relays_refusal_is_rewritten() {
    let metadata = "www-authenticate: Bearer resource_metadata=\"https://up.example/md\"\r\n";
    for method in ["POST", "GET", "DELETE"] {
        let server = RawUpstream::answering(answer(401, metadata)).await;
        let upstream = takes_credential(server.url("/mcp"));
        let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
        let relay = Relay::new(&upstream, http_client());
        let with = serve(capture.layer(RefusalLayer::new().layer(relay.clone()))).await;
        let without = serve(capture.layer(relay)).await;
        let request = |addr| post(addr, "").replace("POST", method);
        let answer = raw(with, request(with)).await;
        assert_eq!(status(&answer), 401, "{method}");
        assert_eq!(challenges(&answer), [r#"Bearer error="invalid_token""#]);
        own_error(&answer, -32000);
        let answer = raw(without, request(without)).await;
        assert_eq!(status(&answer), 401);
        let upstreams = r#"Bearer resource_metadata="https://up.example/md""#;
        assert_eq!(challenges(&answer), [upstreams]);
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    // The operator's credential.
    let server = RawUpstream::answering(answer(401, metadata)).await;
    let own = Upstream::builder("own", server.url("/mcp")).set("authorization", "Bearer s3cret");
    let own = own.build().unwrap();
    let capture = CaptureLayer::for_upstreams([&own]).build().unwrap();
    let relay = Relay::new(&own, http_client());
    let addr = serve(capture.layer(RefusalLayer::new().layer(relay))).await;
    let answer = raw(addr, post(addr, "")).await;
    assert_eq!(status(&answer), 502);
    assert!(challenges(&answer).is_empty());
    assert!(own_error(&answer, -32603).contains("upstream `own` refused"));
}
