//! The scope: where an inbound is current, and where it is not.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use mcp_forward::{CaptureLayer, Inbound, InboundExt, Upstream, WithInbound, task};
use support::{capture, http_client, http2_client, serve};
use tokio::{sync::mpsc, task::JoinSet};
use tower::{Layer, service_fn};

fn upstream() -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    builder.allow("x-user").build().unwrap()
}

async fn user(name: &str) -> Inbound {
    capture(&[&upstream()], [("x-user", name)]).await
}

/// The user of the running task: a name, "" for a caller who sent none, "-" for no inbound.
fn who() -> String {
    match Inbound::current() {
        None => "-".to_owned(),
        Some(inbound) => {
            let value = inbound.get(&"x-user".parse().unwrap());
            value.map_or(String::new(), |value| value.to_str().unwrap().to_owned())
        }
    }
}

/// Tells who is current when it is dropped.
struct OnDrop(mpsc::UnboundedSender<String>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(who());
    }
}

#[tokio::test]
async fn await_and_join_stay_inside() {
    let alice = user("alice").await;
    let work = async {
        tokio::task::yield_now().await;
        let arm = async {
            tokio::task::yield_now().await;
            who()
        };
        let (one, two) = tokio::join!(arm, async { who() });
        [who(), one, two]
    };
    assert_eq!(work.with_inbound(alice).await, ["alice", "alice", "alice"]);
    assert_eq!(who(), "-");
}

#[tokio::test]
async fn i3_a_plain_spawn_loses_and_ours_carries() {
    let alice = user("alice").await;
    async {
        assert_eq!(tokio::spawn(async { who() }).await.unwrap(), "-");
        assert_eq!(task::spawn(async { who() }).await.unwrap(), "alice");
        assert_eq!(
            tokio::spawn(async { who() }.with_current_inbound())
                .await
                .unwrap(),
            "alice"
        );
        assert_eq!(task::spawn_blocking(who).await.unwrap(), "alice");
        assert_eq!(tokio::task::spawn_blocking(who).await.unwrap(), "-");
        assert_eq!(std::thread::spawn(task::wrap(who)).join().unwrap(), "alice");

        let mut set = JoinSet::new();
        set.spawn(async { who() });
        set.spawn(async { who() }.with_current_inbound());
        set.spawn_blocking(task::wrap(who));
        let mut all = set.join_all().await;
        all.sort();
        assert_eq!(all, ["-", "alice", "alice"]);

        let nested = task::spawn(async { task::spawn(async { who() }).await.unwrap() });
        assert_eq!(nested.await.unwrap(), "alice");
    }
    .with_inbound(alice)
    .await;
}

#[tokio::test]
async fn carrying_nothing_stays_nothing() {
    assert_eq!(async { who() }.with_current_inbound().await, "-");
    assert_eq!(task::spawn(async { who() }).await.unwrap(), "-");
    assert_eq!(async { who() }.with_inbound(Inbound::empty()).await, "");
}

#[tokio::test]
async fn i5_scopes_nest_and_restore_in_any_order() {
    let (alice, bob) = (user("alice").await, user("bob").await);
    async {
        assert_eq!(who(), "alice");
        bob.clone().sync_scope(|| {
            assert_eq!(who(), "bob");
            Inbound::empty().sync_scope(|| assert_eq!(who(), ""));
            assert_eq!(who(), "bob");
        });
        assert_eq!(who(), "alice");
        let (sender, mut dropped) = mpsc::unbounded_channel();
        let mut inner = Box::pin(
            async move {
                let _on_drop = OnDrop(sender);
                std::future::pending::<()>().await;
            }
            .with_inbound(bob),
        );
        assert!(futures_util::poll!(inner.as_mut()).is_pending());
        assert_eq!(who(), "alice");
        drop(inner);
        assert_eq!(dropped.recv().await.unwrap(), "bob");
        assert_eq!(who(), "alice");
    }
    .with_inbound(alice)
    .await;
    assert_eq!(who(), "-");
}

#[tokio::test]
async fn i4_a_panic_leaves_nothing_behind() {
    let alice = user("alice").await;
    let caught = AssertUnwindSafe(async { panic!("expected") as () }.with_inbound(alice.clone()));
    assert!(caught.catch_unwind().await.is_err());
    assert_eq!(who(), "-");
    let closure = AssertUnwindSafe(|| alice.clone().sync_scope(|| panic!("expected")));
    assert!(std::panic::catch_unwind(closure).is_err());
    assert_eq!(who(), "-");
    // In a task of its own, on the one worker of this runtime.
    let panicked = tokio::spawn(async { panic!("expected") as () }.with_inbound(alice)).await;
    assert!(panicked.unwrap_err().is_panic());
    assert_eq!(tokio::spawn(async { who() }).await.unwrap(), "-");
}

#[tokio::test]
async fn i6_drop_sees_the_scope_however_it_comes() {
    let alice = user("alice").await;
    let (sender, mut dropped) = mpsc::unbounded_channel();
    let pending = || {
        let on_drop = OnDrop(sender.clone());
        async move {
            let _on_drop = on_drop;
            std::future::pending::<()>().await;
        }
        .with_inbound(alice.clone())
    };
    // Before the first poll.
    drop(pending());
    assert_eq!(dropped.recv().await.unwrap(), "alice");
    // By a time-out outside the scope.
    assert!(
        tokio::time::timeout(Duration::from_millis(1), pending())
            .await
            .is_err()
    );
    assert_eq!(dropped.recv().await.unwrap(), "alice");
    // By abort.
    let task = tokio::spawn(pending());
    tokio::task::yield_now().await;
    task.abort();
    assert_eq!(dropped.recv().await.unwrap(), "alice");
    // On another thread.
    let future = pending();
    std::thread::spawn(move || drop(future)).join().unwrap();
    assert_eq!(dropped.recv().await.unwrap(), "alice");
    // After it completed.
    let on_drop = OnDrop(sender.clone());
    struct Done(OnDrop);
    impl Future for Done {
        type Output = ();
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            let _ = &self.0;
            Poll::Ready(())
        }
    }
    Done(on_drop).with_inbound(alice.clone()).await;
    assert_eq!(dropped.recv().await.unwrap(), "alice");
    assert_eq!(who(), "-");
}

#[test]
fn k9_outside_a_runtime_and_while_a_thread_exits() {
    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
    }
    struct Late(std::sync::mpsc::Sender<bool>);
    impl Drop for Late {
        fn drop(&mut self) {
            // The crate's slot may be gone by now: it must neither panic nor leak.
            let seen =
                Inbound::empty().sync_scope(|| Inbound::current().is_none_or(|i| i.is_empty()));
            drop(async {}.with_inbound(Inbound::empty()));
            let _ = self.0.send(seen);
        }
    }
    let (sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        LATE.with(|late| *late.borrow_mut() = Some(Late(sender)));
        Inbound::empty().sync_scope(|| assert!(Inbound::current().is_some()));
    })
    .join()
    .unwrap();
    assert!(seen.recv().unwrap());
}

#[tokio::test]
async fn a_stream_and_a_shared_future_stay_with_their_caller() {
    let (alice, bob) = (user("alice").await, user("bob").await);
    let stream = futures_util::stream::repeat_with(who)
        .take(2)
        .with_inbound(alice.clone());
    let seen = async { stream.collect::<Vec<_>>().await }
        .with_inbound(bob.clone())
        .await;
    assert_eq!(seen, ["alice", "alice"]);

    let slow = async {
        tokio::task::yield_now().await;
        who()
    };
    let shared = slow.with_inbound(alice).shared();
    let by_bob = shared.clone().with_inbound(bob);
    assert_eq!(
        tokio::join!(shared, by_bob),
        ("alice".to_owned(), "alice".to_owned())
    );
}

#[test]
fn every_wrapper_is_default_when_its_inner_type_is() {
    let body = WithInbound::<Full<Bytes>>::default();
    assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
}

/// An endless event stream that tells in each frame who is current, and so when it is dropped.
struct Events {
    sent: usize,
    _on_drop: OnDrop,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == 3 {
            // Nothing more: it hangs until the client goes.
            return Poll::Pending;
        }
        self.sent += 1;
        cx.waker().wake_by_ref();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(format!(
            "data: {}\n\n",
            who()
        ))))))
    }
}

#[tokio::test]
#[cfg_attr(miri, ignore = "sockets")]
async fn a_body_polled_after_the_response_future_is_gone_http1_and_http2() {
    let (sender, mut dropped) = mpsc::unbounded_channel();
    let in_call = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&in_call);
    let layer = CaptureLayer::for_upstreams([&upstream()]).build().unwrap();
    let addr = serve(
        layer.layer(service_fn(move |_: Request<hyper::body::Incoming>| {
            // The synchronous part of `call`.
            record.lock().unwrap().push(who());
            let events = Events {
                sent: 0,
                _on_drop: OnDrop(sender.clone()),
            };
            async move { Ok::<_, Infallible>(Response::new(events)) }
        })),
    )
    .await;
    for client in [http_client::<Full<Bytes>>(), http2_client()] {
        let request = Request::builder()
            .uri(format!("http://{addr}/"))
            .header("x-user", "alice")
            .body(Full::default())
            .unwrap();
        let mut body = client.request(request).await.unwrap().into_body();
        let mut text = String::new();
        while text.matches("data").count() < 3 {
            let frame = body.frame().await.unwrap().unwrap();
            text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
        }
        assert_eq!(text, "data: alice\n\n".repeat(3));
        drop(body);
        assert_eq!(dropped.recv().await.unwrap(), "alice");
        assert_eq!(in_call.lock().unwrap().pop().unwrap(), "alice");
    }
}

#[tokio::test]
async fn spawn_local_carries_and_detached_does_not() {
    let alice = user("alice").await;
    let local = tokio::task::LocalSet::new();
    // Driven outside the scope, as a runtime is.
    let spawned = local.run_until(
        async {
            let ours = task::spawn_local(async { who() });
            let plain = tokio::task::spawn_local(async { who() });
            (ours, plain)
        }
        .with_inbound(alice.clone()),
    );
    let (ours, plain) = spawned.await;
    let seen = local.run_until(async { (ours.await.unwrap(), plain.await.unwrap()) });
    assert_eq!(seen.await, ("alice".to_owned(), "-".to_owned()));

    async {
        assert_eq!(async { who() }.detached().await, "-");
        assert_eq!(who(), "alice");
        assert_eq!(task::spawn(async { who() }.detached()).await.unwrap(), "-");
    }
    .with_inbound(alice)
    .await;
}

/// How often a token's memory is shared, by a value made as hyper makes them.
fn tracked() -> (Arc<Vec<u8>>, http::HeaderValue) {
    struct Buffer(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let buffer = Arc::new(b"x-user: alice".to_vec());
    let bytes = Bytes::from_owner(Buffer(Arc::clone(&buffer)));
    let value = http::HeaderValue::from_maybe_shared(bytes.slice(8..)).unwrap();
    (buffer, value)
}

#[tokio::test]
async fn a_body_that_waits_lets_go_of_the_read_buffer() {
    let layer = CaptureLayer::for_upstreams([&upstream()]).build().unwrap();
    let (sender, mut dropped) = mpsc::unbounded_channel();
    let service = layer.layer(service_fn(move |_: Request<Full<Bytes>>| {
        let events = Events {
            sent: 0,
            _on_drop: OnDrop(sender.clone()),
        };
        async { Ok::<_, Infallible>(Response::new(events)) }
    }));
    let (buffer, value) = tracked();
    let request = Request::builder()
        .header("x-user", value)
        .body(Full::default())
        .unwrap();
    let mut body = tower::ServiceExt::oneshot(service, request)
        .await
        .unwrap()
        .into_body();
    assert_eq!(Arc::strong_count(&buffer), 2, "held until the body waits");
    for _ in 0..3 {
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "data: alice\n\n");
    }
    assert!(futures_util::poll!(Box::pin(body.frame())).is_pending());
    assert_eq!(Arc::strong_count(&buffer), 1);
    drop(body);
    assert_eq!(dropped.recv().await.unwrap(), "alice");
}
