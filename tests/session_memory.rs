//! What a live session weighs, over sockets, and that nothing of it stays.
//!
//! Everything runs on the one thread whose allocations are counted; nothing here measures time.
#![cfg(feature = "session")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests, and the figure that is written down"
)]

#[path = "support/session.rs"]
mod session;
mod support;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, SessionLayer, Upstream};
use session::{INITIALIZE, Stage, front};
use support::{serve, status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
};
use tower::{Layer, service_fn};

const SESSIONS: usize = 100_000;

/// What is captured of each request, in bytes: `Bearer `, and a token of 90 bytes.
const CAPTURED: usize = 97;

type Header = SessionLayer<Arc<[u8]>>;

fn layer() -> Header {
    let layer = SessionLayer::bind_header("x-user").unwrap();
    layer.max_sessions(SESSIONS)
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn upstream() -> Upstream {
    let builder = Upstream::builder("up", "http://localhost/mcp");
    builder.allow_credential("authorization").build().unwrap()
}

/// What more is allocated after `work` than before it.
fn grown<T>(runtime: &Runtime, work: impl Future<Output = T>) -> i64 {
    let measured = allocation_counter::measure(|| {
        runtime.block_on(work);
    });
    measured.bytes_current
}

/// A bare hyper service that makes sessions, behind `layer`.
async fn hyper(layer: &Header) -> TcpStream {
    let made = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |_: Request<Incoming>| {
        // As long as a UUID.
        let id = format!("{:036}", made.fetch_add(1, Ordering::Relaxed));
        let response = Response::builder().header("mcp-session-id", id);
        let response = response.body(Full::<Bytes>::default()).unwrap();
        async move { Ok::<_, Infallible>(response) }
    });
    let capture = CaptureLayer::for_upstreams([&upstream()]).build().unwrap();
    let addr = serve(capture.layer(layer.layer(service))).await;
    TcpStream::connect(addr).await.unwrap()
}

/// Begins a session for each of so many users, over one connection.
async fn fill(stream: &mut TcpStream, sessions: usize) {
    let mut answer = Vec::new();
    for user in 0..sessions {
        let request = format!(
            "POST /mcp HTTP/1.1\r\nhost: localhost\r\nx-user: user-{user:08}\r\n\
             authorization: Bearer {user:090}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        answer.clear();
        while !answer.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    }
}

/// Moves the clock on, and lets the sessions end by themselves.
async fn expire(layer: &Header) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(30 * 60)).await;
    tokio::time::resume();
    // The table's own task has to be first, so that nothing is left for `live`.
    tokio::time::sleep(Duration::from_millis(1)).await;
    for _ in 0..SESSIONS {
        tokio::task::yield_now().await;
    }
    assert_eq!((layer.live(), layer.principals()), (0, 0));
}

/// The bytes of a session in each round.
fn rounds(layer: &Header, sessions: usize, rounds: usize) -> Vec<usize> {
    let runtime = runtime();
    let mut stream = runtime.block_on(hyper(layer));
    // Buffers of the connection, and whatever is made only once.
    runtime.block_on(async {
        fill(&mut stream, 100).await;
        expire(layer).await;
    });
    let mut bytes = Vec::new();
    for _ in 0..rounds {
        let filled = grown(&runtime, fill(&mut stream, sessions));
        assert_eq!(layer.live(), sessions);
        let kept = filled + grown(&runtime, expire(layer));
        assert!(kept.abs() < 64 * 1024, "{kept} bytes stay");
        bytes.push(usize::try_from(filled).unwrap() / sessions);
    }
    bytes
}

#[test]
fn a_session_weighs_no_more_than_its_bound() {
    for (layer, captured) in [(layer(), 0), (layer().pin(), CAPTURED)] {
        let bytes = rounds(&layer, SESSIONS, 1)[0];
        println!("{bytes} bytes a session, {captured} of them captured");
        assert!(bytes <= captured * 2 + 1024, "{bytes}");
        // A pinned value that held on to its connection's buffer would weigh 8 KiB.
        assert!(bytes >= captured, "{bytes}: nothing was kept");
    }
}

#[test]
fn round_after_round_weighs_the_same() {
    let bytes = rounds(&layer().pin(), 2_000, 10);
    let (second, tenth) = (bytes[1], bytes[9]);
    assert!(second.abs_diff(tenth) * 10 <= second, "{bytes:?}");
}

#[test]
fn in_front_of_rmcp_nothing_of_the_table_stays() {
    let runtime = runtime();
    let layer = layer().pin();
    runtime.block_on(async {
        let front = front(Stage::Rmcp, &layer).await;
        for number in 0..1_000 {
            let lines = format!("x-user: user-{number}\r\nauthorization: Bearer {number:090}\r\n");
            let answer = front.send("POST", &lines, INITIALIZE).await;
            assert_eq!(status(&answer), 200, "{answer}");
        }
        assert_eq!((layer.live(), layer.principals()), (1_000, 1_000));
        expire(&layer).await;
    });
}
