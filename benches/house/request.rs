//! One request of 20 headers as hyper's server makes it, and the layers that read it.
//!
//! `tests/allocations.rs` uses it too, so that times and allocations are those of one request. As in
//! hyper, the values are slices of the connection's read buffer, and names that `http` does not know
//! are parsed from bytes: values that own their memory would cost one allocation more at their first
//! copy, and names made by `from_static` less than real ones.

use std::{convert::Infallible, hint::black_box};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use mcp_forward::{CaptureLayer, Inbound, ServerIdLayer, Upstream};
use tower::{Layer, Service};

pub type Body = Full<Bytes>;
pub type Head = Request<Body>;
pub type Answer = Result<Response<Body>, Infallible>;

/// Headers of every client.
const USUAL: [(&str, &str); 4] = [
    ("host", "mcp.example.com"),
    ("user-agent", "example-client/1.0"),
    ("accept", "application/json, text/event-stream"),
    ("content-type", "application/json"),
];

/// Headers that are sent, and that rules may read.
pub const PRESENT: [&str; 16] = [
    "x-user-id",
    "x-tenant-id",
    "x-github-token",
    "x-request-group",
    "x-session-token",
    "x-organisation",
    "x-team",
    "x-role",
    "x-region",
    "x-client-version",
    "x-device-id",
    "x-locale",
    "x-correlation-id",
    "x-feature-set",
    "x-plan",
    "x-api-key",
];

/// Headers that rules may read, and that nobody sends.
pub const ABSENT: [&str; 4] = ["x-account-id", "x-trace-id", "x-jira-token", "x-cluster"];

/// The value of every header that is not of every client.
const VALUE: &str = "0123456789abcdefghijklmnopqrstuv";

/// A keep-alive connection: all its requests lie in one buffer.
pub struct Connection {
    buffer: BytesMut,
    lines: Vec<(String, &'static str)>,
}

impl Default for Connection {
    /// One of 20 headers.
    fn default() -> Self {
        Self::with(PRESENT.map(String::from))
    }
}

impl Connection {
    /// One whose requests say `connection: keep-alive`, as those of Node.js and of httpx do.
    pub fn keep_alive() -> Self {
        let mut connection = Self::default();
        let line = ("connection".to_owned(), "keep-alive");
        connection.lines.push(line);
        connection
    }

    /// One whose requests have these headers, beside those of every client.
    pub fn with(names: impl IntoIterator<Item = String>) -> Self {
        let usual = USUAL.map(|(name, value)| (name.to_owned(), value));
        let own = names.into_iter().map(|name| (name, VALUE));
        Self {
            buffer: BytesMut::new(),
            lines: usual.into_iter().chain(own).collect(),
        }
    }

    /// One whose requests have the first `count` of these headers, then those of every client, then
    /// others.
    pub fn of(names: &[&str], count: usize) -> Self {
        let mut connection = Self::with((0..count).map(|at| format!("x-other-{at}")));
        let own = names.iter().map(|name| (String::from(*name), VALUE));
        connection.lines.splice(..0, own);
        connection.lines.truncate(count);
        connection
    }

    /// The next request.
    pub fn request(&mut self) -> Head {
        let mut request = Request::new(Body::default());
        *request.headers_mut() = self.headers();
        request
    }

    fn headers(&mut self) -> HeaderMap {
        self.buffer.reserve(8 * 1024);
        for (name, value) in &self.lines {
            self.buffer.extend_from_slice(name.as_bytes());
            self.buffer.extend_from_slice(value.as_bytes());
        }
        let mut head = self.buffer.split().freeze();
        let mut headers = HeaderMap::new();
        headers.reserve(self.lines.len());
        for (name, value) in &self.lines {
            let name = HeaderName::from_bytes(&head.split_to(name.len())).unwrap();
            let value = HeaderValue::from_maybe_shared(head.split_to(value.len())).unwrap();
            headers.append(name, value);
        }
        headers
    }
}

/// An upstream that is allowed `names`.
pub fn upstream(names: &[&str]) -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    let builder = names
        .iter()
        .fold(builder, |builder, name| builder.allow(name));
    builder.build().unwrap()
}

/// The layer that captures `names`.
pub fn capture(names: &[&str]) -> CaptureLayer {
    let layer = CaptureLayer::for_upstreams([&upstream(names)]).build();
    layer.unwrap()
}

/// What the layer for `names` makes of one request.
pub fn inbound(names: &[&str]) -> Inbound {
    captured(&capture(names), Connection::default().request())
}

/// What `layer` makes of `request`.
pub fn captured(layer: &CaptureLayer, request: Head) -> Inbound {
    let mut seen = None;
    let mut service = layer.layer(tower::service_fn(|_: Head| {
        seen = Inbound::current();
        async { Answer::Ok(Response::default()) }
    }));
    exchange(&mut service, request);
    drop(service);
    seen.unwrap()
}

/// The service under every layer: it drops the request.
pub fn bare() -> impl Service<Head, Response = Response<Body>, Error = Infallible> + Clone {
    tower::service_fn(|request: Head| async {
        drop(black_box(request));
        Answer::Ok(Response::default())
    })
}

/// A service like [`bare`], under a layer that edits the body.
pub fn bare_for<B>()
-> impl Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone {
    tower::service_fn(|request: Request<B>| async {
        drop(black_box(request));
        Answer::Ok(Response::default())
    })
}

/// What a tool is called with.
#[derive(Clone, Copy)]
pub enum Arguments {
    /// Of 120 bytes each.
    Records,
    /// One long text with three escapes in 63 bytes.
    Text,
    /// One long text without any.
    Plain,
}

/// A tool call of about `length` bytes.
pub fn tool_call(length: usize, arguments: Arguments) -> Bytes {
    let (start, piece, end) = match arguments {
        Arguments::Records => (
            "[",
            r#"{"id":12345678,"name":"Example record","tags":["alpha","beta"],"score":0.875,"active":true,"note":"a line of \"text\"\n"},"#,
            "null]}}",
        ),
        Arguments::Text => (
            "\"",
            r#"All work and no play makes a dull example; it says \"this\".\n"#,
            "\"}}",
        ),
        Arguments::Plain => (
            "\"",
            "QWxsIHdvcmsgYW5kIG5vIHBsYXkgbWFrZXMgYSBkdWxsIGV4YW1wbGU7",
            "\"}}",
        ),
    };
    let head =
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"store","arguments":"#;
    let mut call = format!("{head}{start}");
    while call.len() + piece.len() < length {
        call.push_str(piece);
    }
    call.push_str(end);
    call.into()
}

/// A request with `body` for one server.
pub fn scoped(body: &Bytes) -> Head {
    let mut request = Request::post("/servers/github/mcp")
        .body(body.clone().into())
        .unwrap();
    let length = HeaderValue::from(body.len());
    request.headers_mut().insert("content-length", length);
    request
}

/// The layer that writes the server id.
pub fn server_id() -> ServerIdLayer {
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp");
    layer.max_body(8 * 1024 * 1024).build().unwrap()
}

/// One call of a service that needs no waiting, until the response is dropped.
pub fn exchange<S: Service<Head, Error = E>, E>(service: &mut S, request: Head) {
    let answer = service.call(request).now_or_never();
    assert!(black_box(answer).is_some_and(|answer| answer.is_ok()));
}
