//! What the tests share: a raw upstream that records bytes, a server, clients, a capture.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

pub mod refusal;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mcp_forward::{CaptureLayer, ClientFactory, ForwardedInternally, Inbound, Outbound, Upstream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tower::{BoxError, Layer, Service, ServiceExt};
use tracing::{
    Dispatch,
    subscriber::{DefaultGuard, NoSubscriber},
};

pub type HttpClient<B> = Client<HttpConnector, B>;

pub fn http_client<B>() -> HttpClient<B>
where
    B: HttpBody + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

pub fn http2_client<B>() -> HttpClient<B>
where
    B: HttpBody + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http()
}

pub fn headers<const N: usize>(lines: [(&str, &str); N]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        map.append(HeaderName::try_from(name).unwrap(), value);
    }
    map
}

/// The inbound that a capture layer for `upstreams` makes of a request with `lines`.
pub async fn capture<const N: usize>(upstreams: &[&Upstream], lines: [(&str, &str); N]) -> Inbound {
    let layer = CaptureLayer::for_upstreams(upstreams.iter().copied())
        .build()
        .unwrap();
    let (seen, mut got) = tokio::sync::mpsc::unbounded_channel();
    let service = layer.layer(tower::service_fn(move |_: Request<Full<Bytes>>| {
        seen.send(Inbound::current().unwrap()).unwrap();
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    }));
    let mut request = Request::new(Full::default());
    *request.headers_mut() = headers(lines);
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200, "the capture refused the request");
    got.recv().await.unwrap()
}

/// The merge of `upstream` with the inbound of a request with `lines`.
pub async fn merge<const N: usize>(
    upstream: &Upstream,
    lines: [(&str, &str); N],
) -> Result<Outbound, mcp_forward::ConnectError> {
    let inbound = capture(&[upstream], lines).await;
    identity().connect_for(upstream, &inbound).await
}

/// A factory whose client is the `Outbound` itself.
pub fn identity() -> impl ClientFactory<Client = Outbound> {
    |outbound: Outbound| async move { Ok::<_, Infallible>(outbound) }
}

/// `name: value` of every line, sorted, for comparing whole header sets.
pub fn lines(outbound: &Outbound) -> Vec<String> {
    let mut lines: Vec<_> = outbound
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    lines
}

/// One request as it came over the socket.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body came to its framed end.
    pub complete: bool,
}

impl Recorded {
    /// Every value under `name`, line by line.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(found, _)| found == name);
        lines.map(|(_, value)| value.as_str()).collect()
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }
}

/// An HTTP/1 server of bare sockets: it records what comes and answers fixed bytes.
#[derive(Clone)]
pub struct RawUpstream {
    pub addr: SocketAddr,
    recorded: Arc<Mutex<Vec<Recorded>>>,
    changed: Arc<tokio::sync::Notify>,
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

impl RawUpstream {
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::new(move |_: &Recorded| answer.clone()).await
    }

    pub async fn new(answer: impl Fn(&Recorded) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            addr: listener.local_addr().unwrap(),
            recorded: Arc::default(),
            changed: Arc::default(),
        };
        let this = upstream.clone();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (this, answer) = (this.clone(), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Some(request) = read_request(&mut stream).await else {
                        return;
                    };
                    let bytes = answer(&request);
                    this.recorded.lock().unwrap().push(request);
                    this.changed.notify_waiters();
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                    // Until the peer closes, so that it never sees a reset.
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        upstream
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.recorded.lock().unwrap().clone()
    }

    pub fn only_request(&self) -> Recorded {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at the upstream: {requests:?}");
        requests.into_iter().next().unwrap()
    }

    /// Waits until `count` requests have come.
    pub async fn wait_for(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            if self.recorded.lock().unwrap().len() >= count {
                return;
            }
            changed.await;
        }
    }
}

/// The next request, where the peer sends one.
pub async fn read_request(stream: &mut TcpStream) -> Option<Recorded> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let mut body = bytes.split_off(head_end + 4);
    let find = |name: &str| headers.iter().find(|(found, _)| found == name);
    let length = find("content-length").map(|(_, value)| value.parse::<usize>().unwrap());
    let chunked = find("transfer-encoding").is_some();
    let ended = |body: &[u8]| match length {
        Some(length) => body.len() >= length,
        // With trailers, the end is an empty line after them.
        None if chunked => body.starts_with(b"0\r\n") || body.windows(5).any(|w| w == b"\r\n0\r\n"),
        None => true,
    };
    let mut complete = true;
    while !ended(&body) {
        match stream.read_buf(&mut body).await {
            Ok(0) | Err(_) => {
                complete = false;
                break;
            }
            Ok(_) => {}
        }
    }
    if chunked && complete {
        while !body.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
                break;
            }
        }
    }
    Some(Recorded {
        line,
        headers,
        body,
        complete,
    })
}

/// Serves `service` on loopback, HTTP/1 and HTTP/2, until the test ends.
pub async fn serve<S, R>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: HttpBody + Send + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    addr
}

/// Sends raw bytes and reads until the peer closes.
pub async fn raw(addr: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_ref()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the server keeps the connection; send `connection: close`")
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// An HTTP/1 request to `addr`, with `lines` in front of those that every request has.
pub fn post(addr: SocketAddr, lines: &str) -> String {
    format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n{lines}content-length: 2\r\n\r\n{{}}"
    )
}

/// The status code of a raw answer.
pub fn status(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1);
    code.and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// Checks that a raw answer is one of ours, with `code`, and returns its message.
pub fn own_error(answer: &str, expected: i64) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{answer}");
    check_error(body.as_bytes(), expected)
}

pub fn check_error(body: &[u8], expected: i64) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["jsonrpc"], "2.0");
    assert_eq!(body["error"]["code"], expected, "{body}");
    assert!(body.get("id").is_none(), "{body}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

pub async fn body_of<B>(response: Response<B>) -> Vec<u8>
where
    B: HttpBody,
    B::Error: std::fmt::Debug,
{
    let collected = response.into_body().collect().await.unwrap();
    collected.to_bytes().to_vec()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An address that refuses connections, and nobody else's while the socket is kept.
pub fn closed() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// Makes `subscriber` this thread's until what is returned is dropped.
///
/// While there is but one subscriber, tracing lets the thread that first comes to an event say, for all
/// threads, whether anybody wants it. With a second one every thread is asked.
pub fn subscribe(subscriber: impl tracing::Subscriber + Send + Sync) -> (DefaultGuard, Dispatch) {
    let second = Dispatch::new(NoSubscriber::default());
    (tracing::subscriber::set_default(subscriber), second)
}

/// What everybody logs, at every level, while `run` runs.
///
/// Only of this thread: the runtime around it has to have one.
pub async fn logged<T>(run: impl Future<Output = T>) -> (T, String) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _subscribed = subscribe(subscriber);
    let done = run.await;
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    (done, log)
}

/// What came through the layers in front of a service.
#[derive(Clone, Debug)]
pub struct Seen {
    pub parts: http::request::Parts,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn server(&self) -> Option<&str> {
        let server = self.parts.extensions.get::<mcp_forward::ServerId>();
        server.map(mcp_forward::ServerId::as_str)
    }

    pub fn is_forwarded(&self) -> bool {
        let mark = self.parts.extensions.get::<ForwardedInternally>();
        assert!(!self.parts.headers.contains_key("x-forwarded-internally"));
        mark.is_some()
    }

    /// The one value under `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.parts.headers.get_all(name).iter();
        let first = lines.next().map(|value| value.to_str().unwrap());
        assert_eq!(lines.next(), None, "{name} is on several lines");
        first
    }
}

/// A service that answers 200 and keeps what it saw.
#[derive(Clone, Default)]
pub struct Witness(Arc<Mutex<Vec<Seen>>>);

impl Witness {
    /// Everything since it was last asked.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl<B> Service<Request<B>> for Witness
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Debug,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let seen = Arc::clone(&self.0);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let hint = body.size_hint().exact();
            assert_eq!(body.is_end_stream(), hint == Some(0));
            let body = body.collect().await.unwrap().to_bytes().to_vec();
            assert!(hint.is_none_or(|hint| hint == body.len() as u64));
            seen.lock().unwrap().push(Seen { parts, body });
            Ok(Response::default())
        })
    }
}

/// An HTTP/1 request with a body, as bytes.
pub fn message(addr: SocketAddr, path: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n{lines}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
