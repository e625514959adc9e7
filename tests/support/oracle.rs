//! What has to hold of any bytes that are sent as a message, or as the mark of an internal forward.
//!
//! Through the public layers; the fuzz targets run it on what they find, `corpus.rs` on what they
//! found, and `splice.rs` on messages that it makes. The readers are its own.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod judge;
mod tree;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    pin::pin,
    rc::Rc,
    sync::LazyLock,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use judge::{said, wrong};
use mcp_forward::{
    ForwardedInternally, InternalForward, InternalForwardLayer, ServerIdLayer, server_id::Body,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tree::{READERS, Reader, Tree, canonical, read};

fn get<'a>(tree: &'a Tree, key: &str) -> Option<&'a Tree> {
    let Tree::Object(members) = tree else {
        return None;
    };
    let mut members = members.iter();
    members
        .find(|(found, _)| found == key)
        .map(|(_, tree)| tree)
}

fn set(tree: &Tree, key: &str, value: Option<Tree>) -> Tree {
    let Tree::Object(members) = tree else {
        panic!("no object: {tree:?}");
    };
    let mut members: BTreeMap<_, _> = members.iter().cloned().collect();
    match value {
        Some(value) => members.insert(key.to_owned(), value),
        None => members.remove(key),
    };
    Tree::Object(members.into_iter().collect())
}

/// What a message, as some reader has it, should have become.
fn edited(message: &Tree, reader: Reader, id: Option<&str>) -> Tree {
    if get(message, "method").is_none() {
        return message.clone();
    }
    let params = match get(message, "params") {
        None | Some(Tree::Null) if id.is_some() => Tree::Object(Vec::new()),
        Some(params @ Tree::Object(_)) => params.clone(),
        _ => return message.clone(),
    };
    let id = id.map(|id| Tree::Text(id.to_owned()));
    set(
        message,
        "params",
        Some(set(&params, &reader.name("server_id"), id)),
    )
}

/// What a future that waits for nothing gives.
pub fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// What came through the layers: the body, and whether the request counts as a worker's.
type Came = Rc<RefCell<Option<(Bytes, bool)>>>;

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn keep(
    came: &Came,
) -> impl Service<
    Request<Body<Full<Bytes>>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Future<Output = Answer>,
> + Clone {
    let came = Rc::clone(came);
    service_fn(move |request: Request<Body<Full<Bytes>>>| {
        let came = Rc::clone(&came);
        async move {
            let forwarded = request.extensions().get::<ForwardedInternally>().is_some();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            *came.borrow_mut() = Some((body, forwarded));
            Ok(Response::default())
        }
    })
}

/// What becomes of `body` on `path`, or the code with which it is refused.
pub fn scoped(layer: &ServerIdLayer, path: &str, body: &[u8]) -> Result<Bytes, i64> {
    let came = Came::default();
    let request = Request::post(path).body(Bytes::copy_from_slice(body).into());
    let service = layer.layer(keep(&came));
    let answer = done(service.oneshot(request.unwrap())).unwrap();
    let came = came.take().map(|(body, _)| body);
    let expected: &[u16] = if came.is_some() { &[200] } else { &[400, 413] };
    assert!(expected.contains(&answer.status().as_u16()), "{answer:?}");
    came.ok_or_else(|| {
        let answer = done(answer.into_body().collect()).unwrap().to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        answer["error"]["code"].as_i64().expect("no code")
    })
}

/// Holds the edit of `body`, if there is one, against every reader.
pub fn check(
    layer: &ServerIdLayer,
    path: &str,
    id: Option<&str>,
    body: &[u8],
) -> Result<Bytes, i64> {
    let came = scoped(layer, path, body)?;
    let texts = [body, &came].map(|bytes| std::str::from_utf8(bytes).expect("not UTF-8"));
    // serde_json is stricter in two things: 127 levels, and numbers that a double can hold.
    let error = serde_json::from_slice::<serde_json::Value>(body).err();
    let error = error.map_or_else(String::new, |error| error.to_string());
    let stricter = ["recursion limit exceeded", "number out of range"];
    assert!(
        error.is_empty() || stricter.iter().any(|text| error.starts_with(text)),
        "{error}: {}",
        texts[0]
    );
    let [before, after] = texts.map(|text| read(text).expect("not JSON"));
    let messages = |tree: &Tree| match tree {
        Tree::List(batch) => batch.clone(),
        one => vec![one.clone()],
    };
    let (before, after) = (messages(&before), messages(&after));
    assert_eq!(before.len(), after.len());
    for reader in READERS {
        for (before, after) in before.iter().zip(&after) {
            let expected = edited(&canonical(before, reader), reader, id);
            assert_eq!(
                canonical(after, reader),
                canonical(&expected, Reader::Last),
                "{reader:?}"
            );
        }
    }
    // A second worker that edits it again changes nothing.
    assert_eq!(scoped(layer, path, &came), Ok(came.clone()));
    Ok(came)
}

fn layer() -> mcp_forward::server_id::ServerIdBuilder {
    ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"])
}

static SINGLE: LazyLock<ServerIdLayer> = LazyLock::new(|| layer().build().unwrap());
static BATCHES: LazyLock<ServerIdLayer> =
    LazyLock::new(|| layer().accept_batches().build().unwrap());

/// Any bytes as a message, on a path with an id and on one without; whether any edit was made.
pub fn splice(body: &[u8]) -> bool {
    let one = check(&SINGLE, "/servers/a%22/mcp", Some("a\""), body);
    let batch = check(&BATCHES, "/servers/a%22/mcp", Some("a\""), body);
    if one.is_ok() {
        assert_eq!(one, batch);
    }
    let none = check(&BATCHES, "/mcp", None, body);
    let said = said(body);
    let judged = [
        (&one, wrong(said.as_ref(), true, false)),
        (&batch, wrong(said.as_ref(), true, true)),
        (&none, wrong(said.as_ref(), false, true)),
    ];
    for (came, wrong) in judged {
        match came {
            Ok(_) => assert!(wrong.is_empty(), "let through: {wrong:?}"),
            Err(code) => assert!(wrong.contains(code), "{code}, not {wrong:?}"),
        }
    }
    [one, batch, none]
        .into_iter()
        .flatten()
        .any(|came| came != body)
}

static FORWARD: LazyLock<InternalForward> =
    LazyLock::new(|| InternalForward::new([("k1", [7; 32])]).unwrap());

fn believed(mark: &[u8]) -> Option<bool> {
    let came = Came::default();
    let mut request = Request::post("/servers/a/mcp");
    request = request.header(
        "x-forwarded-internally",
        HeaderValue::from_bytes(mark).ok()?,
    );
    let request = request.body(Full::from(r#"{"method":"m"}"#)).unwrap();
    let layer = InternalForwardLayer::for_keys(&FORWARD);
    let service = layer.layer(SINGLE.layer(keep(&came)));
    assert_eq!(done(service.oneshot(request)).unwrap().status(), 200);
    let (body, forwarded) = came.take().unwrap();
    assert_eq!(body, r#"{"params":{"server_id":"a"},"method":"m"}"#);
    Some(forwarded)
}

/// Any bytes as a mark, and in the place of a part of a good one, which the first byte says; whether
/// it was believed.
pub fn proof(bytes: &[u8]) -> bool {
    assert_ne!(believed(bytes), Some(true));
    let Some((at, patch)) = bytes.split_first() else {
        return false;
    };
    let mut request = Request::post("/servers/a/mcp")
        .body(r#"{"method":"m"}"#)
        .unwrap();
    FORWARD.sign(&mut request).unwrap();
    let good = request.headers()["x-forwarded-internally"].as_bytes();
    let at = usize::from(*at) % good.len();
    let end = (at + patch.len()).min(good.len());
    let forged = [&good[..at], patch, &good[end..]].concat();
    let is_good = forged == good;
    let believed = believed(&forged);
    assert_eq!(believed.unwrap_or(false), is_good);
    is_good
}
