//! A body that does what it is told.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use mcp_forward::{Inbound, Refusal};
use tokio::time::{Sleep, sleep};

use super::refusal;

/// How long each `T` takes; the fourth passes the hold limit of 10 s.
pub const STEP: Duration = Duration::from_secs(3);

static REFUSAL: LazyLock<Refusal> = LazyLock::new(|| refusal(401, &HeaderMap::new()));

/// What a body does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Frame(Bytes),
    Trailers,
    Report,
    Wait,
    Fail,
}

/// On the first line what the body does: a letter is a frame of 0 to 25 bytes, `K` one of 1 KiB, `R` a
/// report, `T` time that passes, `E` a failure, `H` trailers. The bytes are those of the other lines.
pub fn read(plan: &[u8], mut bytes: Bytes) -> Vec<Step> {
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

pub struct Scripted {
    steps: VecDeque<Step>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Scripted {
    pub fn new(steps: &[Step]) -> Self {
        Self {
            steps: steps.iter().cloned().collect(),
            waiting: None,
        }
    }
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
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            return Poll::Ready(match self.steps.pop_front() {
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
