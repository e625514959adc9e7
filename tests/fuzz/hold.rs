//! Any body, in any pieces: the caller gets all of it or the refusal, and never a bit of both.

use std::{convert::Infallible, future::ready, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use mcp_forward::{Inbound, RefusalLayer};
use tower::{Layer, ServiceExt, service_fn};

use super::{
    paused,
    script::{STEP, Scripted, Step, read},
};

/// On the first line what the body does, of which a `J` in front says that it is no event stream; its bytes
/// are the other lines. Whether the response was released.
pub fn check(input: &[u8]) -> bool {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let plan = lines.next().unwrap_or_default();
    let bytes = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let is_events = !plan.starts_with(b"J");
    let steps = read(plan, bytes);
    let expected = expected(&steps, is_events);
    let (status, came) = paused(answer(&steps, is_events));
    assert_eq!(status, expected, "{steps:?}");
    if status != 200 {
        return false;
    }
    // Nothing comes behind a failure.
    let end = steps.iter().position(|step| *step == Step::Fail);
    let sent = end.map_or(&steps[..], |end| &steps[..=end]);
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
            Step::Report | Step::Wait => {}
            other => {
                whole.push(Step::Frame(std::mem::take(&mut bytes).into()));
                whole.push(other.clone());
            }
        }
    }
    whole.push(Step::Frame(bytes.into()));
    whole
}

/// The status of the answer, and its body.
async fn answer(steps: &[Step], is_events: bool) -> (u16, Vec<Step>) {
    let content_type = if is_events {
        "text/event-stream; x"
    } else {
        "application/json"
    };
    let service = RefusalLayer::new().layer(service_fn(|_: Request<()>| {
        let response = Response::builder().header("content-type", content_type);
        let body = Scripted::new(steps);
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
