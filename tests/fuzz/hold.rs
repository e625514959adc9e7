//! Any body, in any pieces: the caller gets all of it or the refusal, and never a bit of both.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use mcp_forward::{ClientFactory, Inbound, Refusal, RefusalLayer, Upstream};
use tokio::time::{Sleep, sleep};
use tower::{Layer, ServiceExt, service_fn};

use super::{identity, oracle::done, paused};

/// How long each `T` takes; the fourth passes the hold limit of 10 s.
const STEP: Duration = Duration::from_secs(3);

static REFUSAL: LazyLock<Refusal> = LazyLock::new(|| {
    let upstream =
        Upstream::builder("up", "https://up.example/mcp").allow_credential("authorization");
    let upstream = upstream.build().unwrap();
    let outbound = done(identity().connect_for(&upstream, &Inbound::empty())).unwrap();
    outbound
        .refusal(StatusCode::UNAUTHORIZED, &HeaderMap::new())
        .unwrap()
});

/// What a body does next.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Frame(Bytes),
    Trailers,
    Report,
    Wait,
    Fail,
}

/// On the first line what the body does: a letter is a frame of 0 to 25 bytes, `K` one of 1 KiB, `R` a
/// report, `T` time that passes, `E` a failure, `H` trailers. The bytes are those of the other lines.
fn read(plan: &[u8], mut bytes: Bytes) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in plan {
        let mut take = |length: usize| bytes.split_to(length.min(bytes.len()));
        steps.push(match step {
            b'a'..=b'z' => Step::Frame(take(usize::from(step - b'a'))),
            b'K' => Step::Frame(take(1024)),
            b'R' => Step::Report,
            b'T' => Step::Wait,
            b'E' => Step::Fail,
            b'H' => Step::Trailers,
            _ => continue,
        });
    }
    steps
}

struct Scripted {
    steps: std::vec::IntoIter<Step>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            return Poll::Ready(match self.steps.next() {
                None => None,
                Some(Step::Frame(bytes)) => Some(Ok(Frame::data(bytes))),
                Some(Step::Trailers) => Some(Ok(Frame::trailers(HeaderMap::new()))),
                Some(Step::Fail) => Some(Err("failed")),
                Some(Step::Report) => {
                    Inbound::current()
                        .expect("no scope")
                        .report(REFUSAL.clone());
                    continue;
                }
                Some(Step::Wait) => {
                    self.waiting = Some(Box::pin(sleep(STEP)));
                    continue;
                }
            });
        }
    }
}

/// The plan, the content type and the bytes, see above; whether the response was released.
pub fn check(input: &[u8]) -> bool {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let plan = lines.next().unwrap_or_default();
    let bytes = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let is_events = !plan.starts_with(b"J");
    let steps = read(plan, bytes);
    let expected = expected(&steps, is_events);
    let (status, came) = paused(answer(steps.clone(), is_events));
    assert_eq!(status, expected, "{steps:?}");
    if status != 200 {
        return false;
    }
    // An end by failure is one as well.
    let of_body = steps
        .iter()
        .filter(|step| !matches!(step, Step::Report | Step::Wait));
    let end = of_body.clone().position(|step| *step == Step::Fail);
    let of_body: Vec<_> = of_body
        .take(end.map_or(usize::MAX, |end| end + 1))
        .cloned()
        .collect();
    assert_eq!(whole(&came), whole(&of_body));
    true
}

/// What came, however it was cut.
fn whole(steps: &[Step]) -> Vec<Step> {
    let mut whole = Vec::new();
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Frame(more) => bytes.extend_from_slice(more),
            other => whole.extend([
                Step::Frame(std::mem::take(&mut bytes).into()),
                other.clone(),
            ]),
        }
    }
    whole.push(Step::Frame(bytes.into()));
    whole
}

async fn answer(steps: Vec<Step>, is_events: bool) -> (u16, Vec<Step>) {
    let content_type = if is_events {
        "text/event-stream; x"
    } else {
        "application/json"
    };
    let service = RefusalLayer::new().layer(service_fn(|_: Request<()>| {
        let body = Scripted {
            steps: steps.clone().into_iter(),
            waiting: None,
        };
        let response = Response::builder().header("content-type", content_type);
        ready(Ok::<_, Infallible>(response.body(body).unwrap()))
    }));
    let mut request = Request::post("/mcp").body(()).unwrap();
    Inbound::empty().attach(request.extensions_mut());
    let response = service.oneshot(request).await.unwrap();
    let (head, mut body) = response.into_parts();
    assert_eq!(
        head.headers.contains_key("www-authenticate"),
        head.status == 401
    );
    let mut came = Vec::new();
    while let Some(frame) = body.frame().await {
        came.push(match frame.map(Frame::into_data) {
            Ok(Ok(bytes)) => Step::Frame(bytes),
            Ok(Err(_)) => Step::Trailers,
            Err(_) => Step::Fail,
        });
        if came.last() == Some(&Step::Fail) {
            break;
        }
    }
    (head.status.as_u16(), came)
}

/// The status of the answer, as DESIGN 4.4 has it.
fn expected(steps: &[Step], is_events: bool) -> u16 {
    let (mut came, mut pieces, mut waits) = (Vec::new(), 0, 0);
    for step in steps {
        match step {
            Step::Report => return 401,
            Step::Fail => return 502,
            Step::Trailers => return 200,
            Step::Wait => {
                waits += 1;
                if waits * STEP >= Duration::from_secs(10) {
                    return 200;
                }
            }
            Step::Frame(bytes) => {
                came.extend_from_slice(bytes);
                pieces += bytes.len().max(1);
                let speaks = if is_events {
                    speaks(&came)
                } else {
                    !came.is_empty()
                };
                if speaks || pieces >= 8 * 1024 {
                    return 200;
                }
            }
        }
    }
    200
}

/// Whether the beginning of an event stream says something, or is none.
fn speaks(text: &[u8]) -> bool {
    const BOM: &[u8] = "\u{feff}".as_bytes();
    const FIELDS: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
    if text.len() < BOM.len() && BOM.starts_with(text) {
        return false;
    }
    let text = text.strip_prefix(BOM).unwrap_or(text);
    let mut lines: Vec<_> = text.split(|byte| matches!(byte, b'\r' | b'\n')).collect();
    let last = lines.pop().unwrap_or_default();
    let says = |line: &[u8]| match line.iter().position(|byte| *byte == b':') {
        Some(colon) => {
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            let is_known = name.is_empty() || FIELDS.contains(&name);
            !is_known || name == b"data" && !matches!(value, b"" | b" ")
        }
        None => !line.is_empty() && !FIELDS.contains(&line),
    };
    let begins_field = !last.contains(&b':') && FIELDS.iter().any(|field| field.starts_with(last));
    lines.into_iter().any(says) || !begins_field && says(last)
}
