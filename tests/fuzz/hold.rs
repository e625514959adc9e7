//! Any body, in any pieces: the caller gets all of it or the refusal, and never a bit of both.

use std::{cell::Cell, convert::Infallible, future::ready, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use mcp_forward::{Inbound, RefusalLayer};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

use super::{
    paused,
    script::{Fate, Scripted, Step, read},
};

const HOLD_LIMIT: Duration = Duration::from_secs(10);
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What the body does, and how it comes.
#[derive(Debug)]
struct Plan {
    steps: Vec<Step>,
    is_events: bool,
    is_get: bool,
    is_encoded: bool,
}

/// When the head of the answer comes, and what was read of the body by then.
#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    read: usize,
    after: Duration,
}

/// On the first line what the body does, among which a `J` says that it is no event stream, a `Z` that it is
/// encoded, and a `G` that the request is a GET; its bytes are the other lines. Whether the response was
/// released.
pub fn check(input: &[u8]) -> bool {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let bytes = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let plan = Plan {
        steps: read(line, bytes),
        is_events: !line.contains(&b'J'),
        is_get: line.contains(&b'G'),
        is_encoded: line.contains(&b'Z'),
    };
    let (head, came) = paused(answer(&plan));
    assert_eq!(head, plan.head(), "{plan:?}");
    if head.status != 200 {
        return false;
    }
    // Nothing comes behind a failure.
    let end = plan.steps.iter().position(|step| *step == Step::Fail);
    let sent = end.map_or(&plan.steps[..], |end| &plan.steps[..=end]);
    assert_eq!(whole(&came), whole(sent));
    true
}

/// What came, however it was cut: bytes between whatever is none.
fn whole(steps: &[Step]) -> Vec<Step> {
    let mut whole = Vec::new();
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Frame(more) => bytes.extend_from_slice(more),
            Step::Report | Step::Wait(_) => {}
            other => {
                whole.push(Step::Frame(std::mem::take(&mut bytes).into()));
                whole.push(other.clone());
            }
        }
    }
    whole.push(Step::Frame(bytes.into()));
    whole
}

/// The answer's head, and its body.
async fn answer(plan: &Plan) -> (Head, Vec<Step>) {
    let content_type = if plan.is_events {
        "text/event-stream; x"
    } else {
        "application/json"
    };
    let fate = Rc::new(Cell::new(Fate::default()));
    let service = RefusalLayer::new().layer(service_fn(|_: Request<()>| {
        let mut response = Response::builder().header("content-type", content_type);
        if plan.is_encoded {
            response = response.header("content-encoding", "gzip");
        }
        let body = Scripted::new(&plan.steps, &fate);
        ready(Ok::<_, Infallible>(response.body(body).unwrap()))
    }));
    let method = if plan.is_get { "GET" } else { "POST" };
    let request = Request::builder().method(method).uri("/mcp");
    let mut request = request.body(()).unwrap();
    Inbound::empty().attach(request.extensions_mut());
    let begin = Instant::now();
    let response = service.oneshot(request).await.unwrap();
    let (parts, mut body) = response.into_parts();
    let head = Head {
        status: parts.status.as_u16(),
        read: fate.get().read,
        after: begin.elapsed(),
    };
    assert_eq!(
        parts.headers.contains_key("www-authenticate"),
        head.status == 401
    );
    // Nothing is left of what the caller does not get.
    assert!(head.status == 200 || fate.get().is_dropped, "{plan:?}");
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
    (head, came)
}

impl Plan {
    /// What DESIGN 4.4 says about the head.
    fn head(&self) -> Head {
        let head = |status, read, after| Head {
            status,
            read,
            after,
        };
        let mut after = Duration::ZERO;
        if self.is_get || self.is_encoded {
            return head(200, 0, after);
        }
        let (mut came, mut pieces) = (Vec::new(), 0);
        for (step, read) in self.steps.iter().zip(1..) {
            match step {
                Step::Report => {
                    let (more, drained) = drained(&self.steps[read..]);
                    return head(401, read + more, after + drained);
                }
                Step::Fail => return head(502, read, after),
                Step::Trailers => return head(200, read, after),
                Step::Wait(time) => {
                    after += *time;
                    if after >= HOLD_LIMIT {
                        return head(200, read, HOLD_LIMIT);
                    }
                }
                Step::Frame(bytes) => {
                    came.extend_from_slice(bytes);
                    pieces += bytes.len().max(1);
                    let speaks = if self.is_events {
                        speaks(&came)
                    } else {
                        !came.is_empty()
                    };
                    if speaks || pieces >= 8 * 1024 {
                        return head(200, read, after);
                    }
                }
            }
        }
        head(200, self.steps.len() + 1, after)
    }
}

/// How much is read of what follows a report, and how long that takes: all of it, where there is time.
fn drained(rest: &[Step]) -> (usize, Duration) {
    let mut after = Duration::ZERO;
    for (step, read) in rest.iter().zip(1..) {
        match step {
            Step::Fail => return (read, after),
            Step::Wait(time) if after + *time >= DRAIN_LIMIT => return (read, DRAIN_LIMIT),
            Step::Wait(time) => after += *time,
            _ => {}
        }
    }
    (rest.len() + 1, after)
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
