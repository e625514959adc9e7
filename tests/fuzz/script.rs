//! A body that does what it is told.

use std::{
    cell::Cell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
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

/// How long a `T` takes, of which the fourth passes the hold limit of 10 s, and an `S`, of which the third
/// passes the 1 s for the rest of a refused response. No sum of them meets a limit.
const LONG: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(450);

static REFUSAL: LazyLock<Refusal> = LazyLock::new(|| refusal(401, &HeaderMap::new()));

/// What a body does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Frame(Bytes),
    Trailers,
    Report,
    Wait(Duration),
    Fail,
}

/// On the first line what the body does: a letter is a frame of 0 to 25 bytes, `K` one of 1 KiB, `R` a
/// report, `T` and `S` time that passes, `E` a failure, `H` trailers. The bytes are those of the other lines.
pub fn read(plan: &[u8], mut bytes: Bytes) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in plan {
        let mut take = |length: usize| bytes.split_to(length.min(bytes.len()));
        steps.push(match step {
            b'a'..=b'z' => Step::Frame(take(usize::from(step - b'a'))),
            b'K' => Step::Frame(take(1024)),
            b'R' => Step::Report,
            b'T' => Step::Wait(LONG),
            b'S' => Step::Wait(SHORT),
            b'E' => Step::Fail,
            b'H' => Step::Trailers,
            _ => continue,
        });
    }
    steps
}

/// What became of a body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    /// How many steps were taken; its end is one.
    pub read: usize,
    pub is_dropped: bool,
}

pub struct Scripted {
    steps: VecDeque<Step>,
    waiting: Option<Pin<Box<Sleep>>>,
    fate: Rc<Cell<Fate>>,
}

impl Scripted {
    pub fn new(steps: &[Step], fate: &Rc<Cell<Fate>>) -> Self {
        Self {
            steps: steps.iter().cloned().collect(),
            waiting: None,
            fate: Rc::clone(fate),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Fate)) {
        let mut fate = self.fate.get();
        change(&mut fate);
        self.fate.set(fate);
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.tell(|fate| fate.is_dropped = true);
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
            self.tell(|fate| fate.read += 1);
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
                Some(Step::Wait(time)) => {
                    self.waiting = Some(Box::pin(sleep(time)));
                    continue;
                }
            });
        }
    }
}
