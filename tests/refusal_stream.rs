//! What is not refused passes as it came: byte for byte, at the right moment, within the bounds.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, future::ready, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use mcp_forward::{CaptureLayer, RefusalLayer};
use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    prop_oneof,
    sample::select,
    test_runner::{Config, TestCaseError, TestRunner},
};
use support::refusal::{Events, Frames, PRIMING, event_stream, events, send};
use tower::{Layer, Service, ServiceExt, service_fn};

const MAX_KEPT: usize = 8 * 1024;

/// A service in memory that answers each request with the stream in it.
#[allow(clippy::needless_pass_by_value, reason = "the service would borrow it")]
fn service(
    layer: RefusalLayer,
) -> impl Service<
    Request<Events>,
    Response = Response<impl Body<Data = Bytes, Error: std::fmt::Debug>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    let echo = service_fn(|request: Request<Events>| {
        ready(Ok::<_, Infallible>(event_stream(request.into_body())))
    });
    let capture = CaptureLayer::for_upstreams([]).build().unwrap();
    capture.layer(layer.layer(echo))
}

/// How many of these bytes say something, by the standard's own words: a line that is `data` with a
/// value, or that is no field of the format. `None` if nothing does.
fn speaks_at(bytes: &[u8]) -> Option<usize> {
    (1..=bytes.len()).find(|end| {
        let bytes = &bytes[..*end];
        let mark: &[u8] = &[0xEF, 0xBB, 0xBF];
        let text = bytes.strip_prefix(mark).unwrap_or(bytes);
        if text.len() == bytes.len() && mark.starts_with(bytes) {
            return false;
        }
        let mut lines: Vec<_> = text.split(|byte| matches!(byte, b'\r' | b'\n')).collect();
        let last = lines.pop().unwrap();
        lines.iter().any(|line| says(line, true)) || says(last, false)
    })
}

/// Whether a line says something, or will in any case.
fn says(line: &[u8], is_whole: bool) -> bool {
    let fields: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        let known = |field: &&[u8]| {
            if is_whole {
                *field == line
            } else {
                field.starts_with(line)
            }
        };
        return !line.is_empty() && !fields.iter().any(known);
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let value = value.strip_prefix(b" ").unwrap_or(value);
    match name {
        b"data" => !value.is_empty(),
        b"" => false,
        _ => !fields.contains(&name),
    }
}

#[test]
fn the_reference_reads_as_it_should() {
    for (text, expected) in [
        ("data: x", Some(7)),
        ("data:x", Some(6)),
        ("data:\n\n", None),
        ("data: \r\ndata:  ", Some(15)),
        ("data\n:c\nid: 1\nretry: 3\nevent: e\n", None),
        ("\u{feff}data: x", Some(10)),
        ("\u{feff}\u{feff}", Some(4)),
        ("{", Some(1)),
        ("da\n", Some(3)),
        ("datum", Some(4)),
        ("\r\r\n\n", None),
        (PRIMING, None),
    ] {
        assert_eq!(speaks_at(text.as_bytes()), expected, "{text:?}");
    }
}

/// A piece of an event stream, or of something that is none.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&str] = &[
        "\u{feff}",
        ":",
        ": ping",
        ":data: x",
        "id: 1",
        "id",
        "retry: 3000",
        "event: message",
        "event:data: x",
        "data",
        "data:",
        "data: ",
        "data:  ",
        "data: {\"a\":1}",
        "data:x",
        "da",
        "dat",
        "data x",
        "{}",
        "x: y",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\r\n\r\n",
        "\r\r",
        "é",
    ];
    prop_oneof![
        9 => select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ]
}

/// Streams that say nothing for long are the interesting ones.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    const SILENT: &[&str] = &[
        ": ping\n",
        "id: 1\r\n",
        "data:\r",
        "retry: 3\n\n",
        "data\n",
        "event: e\r\n",
    ];
    let silent = vec(select(SILENT), 0..12);
    let silent = silent.prop_map(|pieces| pieces.concat().into_bytes());
    (silent, vec(piece(), 0..12)).prop_map(|(silent, pieces)| [silent, pieces.concat()].concat())
}

#[test]
fn any_stream_in_any_chunks_passes_unchanged_and_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let config = Config {
        cases: 2_000,
        failure_persistence: None,
        ..Config::default()
    };
    let strategy = (stream(), vec(1_usize..8, 1..64));
    let layer = RefusalLayer::new().hold_limit(Duration::MAX);
    let service = service(layer);
    TestRunner::new(config)
        .run(&strategy, |(bytes, sizes)| {
            runtime.block_on(check(service.clone(), &bytes, &sizes))
        })
        .unwrap();
}

/// Sends `bytes` in chunks of these sizes, over and over, and looks after each.
async fn check<S, R>(service: S, bytes: &[u8], sizes: &[usize]) -> Result<(), TestCaseError>
where
    S: Service<Request<Events>, Response = Response<R>, Error = Infallible>,
    R: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (frames, body) = events();
    let mut answering = Box::pin(service.oneshot(Request::post("/").body(body).unwrap()));
    let mut answer = None;
    let mut sent = 0;
    let spoken = speaks_at(bytes);
    for size in sizes.iter().cycle() {
        let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        let chunk = &rest[..(*size).min(rest.len())];
        send(&frames, chunk.to_vec());
        sent += chunk.len();
        if answer.is_none() {
            answer = answering.as_mut().now_or_never();
        }
        let is_spoken = spoken.is_some_and(|at| sent >= at);
        proptest::prop_assert_eq!(answer.is_some(), is_spoken, "after {} bytes", sent);
    }
    drop(frames);
    let answer = match answer {
        Some(answer) => answer,
        None => answering.await,
    };
    let got = answer.unwrap().into_body().collect().await.unwrap();
    proptest::prop_assert_eq!(got.to_bytes(), bytes);
    Ok(())
}

/// Frames after the first event are those of the inner body, and so are trailers.
#[tokio::test]
async fn frames_keep_their_order_and_trailers_their_place() {
    let (frames, body) = events();
    for text in [": a\n", "data:\n", "data: b\n\n", "data: c\n\n"] {
        send(&frames, text);
    }
    let trailers = support::headers([("x-end", "1")]);
    frames.send(Ok(Frame::trailers(trailers.clone()))).unwrap();
    drop(frames);
    let service = service(RefusalLayer::new());
    let answer = service
        .oneshot(Request::post("/").body(body).unwrap())
        .await;
    let mut body = Box::pin(answer.unwrap().into_body());
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap();
        match frame.into_data() {
            Ok(bytes) => seen.push(String::from_utf8(bytes.to_vec()).unwrap()),
            Err(frame) => assert_eq!(frame.into_trailers().unwrap(), trailers),
        }
    }
    // What was kept is one frame.
    assert_eq!(seen, [": a\ndata:\n", "data: b\n\n", "data: c\n\n"]);
    assert!(body.is_end_stream() || body.frame().await.is_none());

    // Trailers alone.
    let (frames, body) = events();
    frames.send(Ok(Frame::trailers(trailers.clone()))).unwrap();
    let answering = service_of(body).now_or_never().expect("held");
    let collected = {
        drop(frames);
        answering.into_body().collect().await.unwrap()
    };
    assert_eq!(collected.trailers(), Some(&trailers));
}

async fn service_of(body: Events) -> Response<impl Body<Data = Bytes, Error: std::fmt::Debug>> {
    let service = service(RefusalLayer::new());
    service
        .oneshot(Request::post("/").body(body).unwrap())
        .await
        .unwrap()
}

/// As many as the layer holds, and no more; every one that ends makes room.
#[tokio::test]
async fn a_flood_is_served_unheld() {
    let layer = RefusalLayer::new().hold_limit(Duration::MAX);
    // Two services of one layer count together.
    let services = [service(layer.clone()), service(layer)];
    let begin = |at: usize| {
        let (frames, body) = events();
        send(&frames, PRIMING);
        let request = Request::post("/").body(body).unwrap();
        let mut answering = Box::pin(services[at % 2].clone().oneshot(request));
        let answer = answering.as_mut().now_or_never();
        (answer.is_some(), frames, answering, answer)
    };
    let mut all: Vec<_> = (0..10_000).map(begin).collect();
    let unheld = all.iter().position(|(is_answered, ..)| *is_answered);
    assert_eq!(unheld, Some(4_096));
    assert!(all[4_096..].iter().all(|(is_answered, ..)| *is_answered));
    // One that is released, and one whose caller goes away.
    let (_, frames, answering, _) = all.swap_remove(0);
    send(&frames, "data: x");
    answering.await.unwrap();
    drop(all.swap_remove(1));
    for expected in [false, false, true] {
        let more = begin(0);
        assert_eq!(more.0, expected);
        all.push(more);
    }
}

/// What holding adds to a response: nothing that the caller or the service could make larger.
#[test]
fn memory_is_bounded() {
    let layer = RefusalLayer::new().hold_limit(Duration::MAX);
    let service = service(layer);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let _entered = runtime.enter();
    // Many small frames, each of which pins more than it has.
    let large = Bytes::from(vec![b'\n'; 64 * 1024]);
    let begin = |method: &str, count: usize| {
        let (frames, body): (Frames, Events) = events();
        let request = Request::builder().method(method).uri("/").body(body);
        let mut answering = Box::pin(service.clone().oneshot(request.unwrap()));
        let mut answer = answering.as_mut().now_or_never();
        for at in 0..count {
            send(&frames, large.slice(at..=at));
            answer = answer.or_else(|| answering.as_mut().now_or_never());
        }
        (frames, answering, answer)
    };
    let measure = |method: &str, count: usize| {
        let mut kept = Vec::new();
        let measured = allocation_counter::measure(|| {
            kept = (0..10_000 / (1 + count / 100))
                .map(|_| begin(method, count))
                .collect();
        });
        let expected = if method == "POST" {
            kept.len().min(4_096)
        } else {
            0
        };
        let held = kept.iter().filter(|(.., answer)| answer.is_none()).count();
        assert_eq!(held, expected);
        measured.bytes_current / i64::try_from(kept.len()).unwrap()
    };
    drop(begin("POST", 1));
    let (unheld, held) = (measure("GET", 0), measure("POST", 0));
    let full = measure("POST", MAX_KEPT - 1);
    // The body's box, the timer and the slot; and what is kept, in a buffer that doubles.
    assert!(held - unheld <= 1024, "{}", held - unheld);
    let kept = full - unheld;
    assert!(
        (MAX_KEPT as i64..=2 * MAX_KEPT as i64 + 1024).contains(&kept),
        "{kept}"
    );
}
