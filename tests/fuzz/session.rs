//! Any sequence of requests: who began a session uses it, nobody else does, and there are never too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::ready,
    time::Duration,
};

use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use mcp_forward::SessionLayer;
use tokio::time::{Instant, advance};
use tower::{Layer, ServiceExt, service_fn};

use super::paused;

const IDLE: Duration = Duration::from_secs(60);
const PER_PRINCIPAL: usize = 2;
const SESSIONS: usize = 4;

const UNKNOWN: &str = r#"{"error":{"code":-32600,"message":"there is no such session; initialize a new one"},"jsonrpc":"2.0"}"#;

/// Who is behind a request; `None` is anonymous.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct User(String);

/// A request and its response, on one line: `alice POST id -> 200 id`. Whatever is `-` is not there; a
/// word more, `modern`, names a protocol without sessions.
struct Visit<'a> {
    user: Option<User>,
    method: &'a str,
    id: Option<&'a str>,
    status: u16,
    answered: Option<&'a str>,
    modern: bool,
}

impl<'a> Visit<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let given = |word: &'a str| Some(word).filter(|word| *word != "-");
        let mut words = line.split(' ');
        let visit = Self {
            user: given(words.next()?).map(|name| User(name.to_owned())),
            method: words
                .next()
                .filter(|it| ["GET", "POST", "DELETE"].contains(it))?,
            id: given(words.next()?),
            status: words
                .nth(1)?
                .parse()
                .ok()
                .filter(|status| (200..600).contains(status))?,
            answered: given(words.next()?),
            modern: words.next() == Some("modern"),
        };
        let mut ids = [visit.id, visit.answered].into_iter().flatten();
        ids.all(|id| HeaderValue::from_str(id).is_ok())
            .then_some(visit)
    }
}

/// A session, as it should be.
struct Live {
    user: Option<User>,
    used: Instant,
}

#[derive(Default)]
struct Model {
    live: BTreeMap<String, Live>,
}

/// Visits line by line, and `wait 10` for ten seconds; whether any went on in a session.
pub fn check(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).into_owned();
    paused(async move {
        let layer = SessionLayer::<User>::bind_extension()
            .idle(IDLE)
            .max_per_principal(PER_PRINCIPAL)
            .max_sessions(SESSIONS);
        let (mut model, mut any) = (Model::default(), false);
        for line in text.lines() {
            if let Some(seconds) = line
                .strip_prefix("wait ")
                .and_then(|it| it.parse::<u8>().ok())
            {
                advance(Duration::from_secs(seconds.into())).await;
            } else if let Some(visit) = Visit::read(line) {
                let expected = model.visit(&visit);
                let came = send(&layer, &visit).await;
                assert_eq!(came, expected, "{line}");
                any |= came.reached && visit.id.is_some();
            }
            model.expire();
            assert_eq!(layer.live(), model.live.len(), "{line}");
            let users: BTreeSet<_> = model.live.values().map(|live| &live.user).collect();
            assert_eq!(layer.principals(), users.len(), "{line}");
            assert!(layer.live() <= SESSIONS);
        }
        any
    })
}

/// What became of a visit.
#[derive(Debug, PartialEq)]
struct Came {
    status: u16,
    /// Whether the service behind was called, and with which id.
    reached: bool,
    id: Option<String>,
}

impl Came {
    fn rejected(status: u16) -> Self {
        Self {
            status,
            reached: false,
            id: None,
        }
    }
}

async fn send(layer: &SessionLayer<User>, visit: &Visit<'_>) -> Came {
    let mut seen = None;
    let service = layer.layer(service_fn(|request: Request<()>| {
        let id = request.headers().get("mcp-session-id");
        seen = Some(id.map(|id| id.to_str().unwrap().to_owned()));
        let mut response = Response::builder().status(visit.status);
        if let Some(id) = visit.answered {
            response = response.header("mcp-session-id", id);
        }
        ready(Ok::<_, Infallible>(
            response.body(Empty::<bytes::Bytes>::new()).unwrap(),
        ))
    }));
    let mut request = Request::builder().method(visit.method);
    if let Some(id) = visit.id {
        request = request.header("mcp-session-id", id);
    }
    if visit.modern {
        request = request.header("mcp-protocol-version", "2026-07-28");
    }
    let mut request = request.body(()).unwrap();
    if let Some(user) = &visit.user {
        request.extensions_mut().insert(user.clone());
    }
    let (head, body) = service.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // Byte for byte the same, whether a session is unknown or somebody else's.
    if seen.is_none() && head.status == 404 {
        assert_eq!(head.headers.len(), 1);
        assert_eq!(body, UNKNOWN);
    }
    Came {
        status: head.status.as_u16(),
        reached: seen.is_some(),
        id: seen.flatten(),
    }
}

impl Model {
    fn expire(&mut self) {
        self.live.retain(|_, live| live.used.elapsed() < IDLE);
    }

    /// DESIGN 4.5, read again.
    fn visit(&mut self, visit: &Visit<'_>) -> Came {
        self.expire();
        let is_id = |id: &str| {
            (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let Some(id) = visit.id {
            if !is_id(id) {
                return Came::rejected(400);
            }
            match self.live.get_mut(id).filter(|live| live.user == visit.user) {
                Some(live) => live.used = Instant::now(),
                None => return Came::rejected(404),
            }
        }
        let inside = visit.id.filter(|_| !visit.modern);
        let is_full = || {
            let own = self.live.values().filter(|live| live.user == visit.user);
            own.count() >= PER_PRINCIPAL || self.live.len() >= SESSIONS
        };
        let creates = inside.is_none() && visit.method == "POST";
        if creates && is_full() {
            return Came::rejected(503);
        }
        let is_success = (200..300).contains(&visit.status);
        if let Some(id) = inside
            && (visit.status == 404 || visit.method == "DELETE" && is_success)
        {
            self.live.remove(id);
        }
        let is_foreign = |id| {
            self.live
                .get(id)
                .is_some_and(|live| live.user != visit.user)
        };
        let is_stray = match (visit.answered, inside) {
            (Some(answered), Some(id)) => answered != id,
            (Some(answered), None) => !is_id(answered) || is_foreign(answered),
            (None, _) => false,
        };
        if let Some(id) = visit.answered
            && creates
            && is_success
            && !is_stray
        {
            let (user, used) = (visit.user.clone(), Instant::now());
            self.live.insert(id.to_owned(), Live { user, used });
        }
        Came {
            status: if is_stray { 502 } else { visit.status },
            reached: true,
            id: inside.map(str::to_owned),
        }
    }
}
