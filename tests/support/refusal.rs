//! What the tests of refusals share: an upstream's answers, and a server that answers too early.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use mcp_forward::{ForwardLayer, Inbound, InboundExt, Upstream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tower::{BoxError, Layer, ServiceExt, service_fn};

use super::http_client;

/// The answer of an upstream, with `lines` in its head.
pub fn answer(status: u16, lines: &str) -> String {
    let length = if status == 204 {
        ""
    } else {
        "content-length: 2\r\n"
    };
    let body = if status == 204 { "" } else { "ok" };
    format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{lines}{length}\r\n{body}")
}

/// An upstream that takes the caller's `authorization`.
pub fn takes_credential(url: impl AsRef<str>) -> Upstream {
    let builder = Upstream::builder("up", url).allow_credential("authorization");
    builder.build().unwrap()
}

pub type Frames = UnboundedSender<Result<Frame<Bytes>, BoxError>>;
pub type Events = StreamBody<UnboundedReceiverStream<Result<Frame<Bytes>, BoxError>>>;

/// A body, and where its frames come from.
pub fn events() -> (Frames, Events) {
    let (frames, received) = unbounded_channel();
    (
        frames,
        StreamBody::new(UnboundedReceiverStream::new(received)),
    )
}

pub fn send(frames: &Frames, text: impl Into<Bytes>) {
    // Whoever reads may be gone.
    let _ = frames.send(Ok(Frame::data(text.into())));
}

pub fn event_stream<B>(body: B) -> Response<B> {
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(body).unwrap()
}

/// How rmcp begins each stream.
pub const PRIMING: &str = "id: 0\nretry: 3000\ndata:\n\n";

/// One call of `upstream`, as the current inbound, with a plain HTTP client.
pub async fn call(upstream: &Upstream) -> Result<StatusCode, BoxError> {
    let client = ForwardLayer::new(upstream).layer(http_client::<Full<Bytes>>());
    let request = Request::post(upstream.url().clone()).body(Full::default())?;
    let response = client.oneshot(request).await?;
    let status = response.status();
    drop(response);
    Ok(status)
}

/// An MCP server as SDKs build them: the head goes out at once, and the handler runs in another task.
pub fn early<B: Send + 'static>(
    upstream: &Upstream,
) -> impl tower::Service<Request<B>, Response = Response<Events>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    let upstream = upstream.clone();
    service_fn(move |request: Request<B>| {
        let (upstream, inbound) = (upstream.clone(), Inbound::of(request.extensions()));
        let (frames, body) = events();
        send(&frames, PRIMING);
        let handler = async move {
            let said = match call(&upstream).await {
                Ok(status) => status.to_string(),
                Err(_) => "failed".to_owned(),
            };
            send(&frames, format!("data: {said}\n\n"));
        };
        tokio::spawn(handler.with_inbound(inbound));
        async { Ok(event_stream(body)) }
    })
}

/// The text of a whole body.
pub async fn text<B>(body: B) -> String
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let bytes = body.collect().await.unwrap().to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every `www-authenticate` line of a raw answer.
pub fn challenges(answer: &str) -> Vec<&str> {
    let lines = answer.split("\r\n");
    lines
        .filter_map(|line| line.strip_prefix("www-authenticate: "))
        .collect()
}

/// So that `impl Stream` can be written without a crate of its own.
pub fn body_of_stream<S>(stream: S) -> StreamBody<S>
where
    S: Stream<Item = Result<Frame<Bytes>, BoxError>>,
{
    StreamBody::new(stream)
}
