//! A request in a session, and what should become of it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use http::HeaderValue;
use tokio::time::Instant;

pub const IDLE: Duration = Duration::from_secs(60);
pub const PER_PRINCIPAL: usize = 2;
pub const SESSIONS: usize = 4;

/// Who is behind a request; `None` is anonymous.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User(String);

/// What the layer is told to do.
#[derive(Clone, Copy, Default)]
pub struct Policy {
    pub pins: bool,
    pub requires: bool,
    pub passes: bool,
}

impl Policy {
    /// Of a first line `layer` with the words `pin`, `require` and `pass`.
    pub fn read(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let words: Vec<_> = line.split(' ').collect();
        let has = |word| words.first() == Some(&"layer") && words.contains(&word);
        Self {
            pins: has("pin"),
            requires: has("require"),
            passes: has("pass"),
        }
    }
}

/// A request and its response, on one line: `alice POST id -> 200 id`. Whatever is `-` is not there.
/// More words: `modern` names a protocol without sessions, and `list` a method that begins none; `event` adds
/// `last-event-id`, `twice` the id on a second line, and `spelled` one as `mcp_session_id`; `at=a` is for the
/// server `a`, `as=t` carries the token `t`, and `refused` is what the upstream says to it.
pub struct Visit<'a> {
    pub user: Option<User>,
    pub method: &'a str,
    pub id: Option<&'a str>,
    pub status: u16,
    pub answered: Option<&'a str>,
    pub server: Option<&'a str>,
    pub token: Option<&'a str>,
    more: Vec<&'a str>,
}

impl<'a> Visit<'a> {
    pub fn read(line: &'a str) -> Option<Self> {
        let given = |word: &'a str| Some(word).filter(|word| *word != "-");
        let mut words = line.split(' ');
        let mut visit = Self {
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
            server: None,
            token: None,
            more: words.collect(),
        };
        let is_plain = |text: &&str| {
            (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let named = |prefix| visit.more.iter().find_map(|word| word.strip_prefix(prefix));
        let (server, token) = (named("at="), named("as="));
        (visit.server, visit.token) = (server.filter(is_plain), token.filter(is_plain));
        let mut ids = [visit.id, visit.answered].into_iter().flatten();
        ids.all(|id| HeaderValue::from_str(id).is_ok())
            .then_some(visit)
    }

    pub fn has(&self, word: &str) -> bool {
        self.more.contains(&word)
    }
}

/// A session, as it should be.
struct Live {
    user: Option<User>,
    server: Option<String>,
    /// With which token it began.
    token: Option<String>,
    used: Instant,
}

impl Live {
    fn is_of(&self, visit: &Visit<'_>) -> bool {
        self.user == visit.user && self.server.as_deref() == visit.server
    }
}

/// Who owns which.
pub struct Model {
    pub policy: Policy,
    live: BTreeMap<String, Live>,
}

/// What became of a visit.
#[derive(Debug, PartialEq)]
pub struct Came {
    pub status: u16,
    /// Whether the service behind was called, with which id, and as whom.
    pub reached: bool,
    pub id: Option<String>,
    pub token: Option<String>,
}

impl Came {
    fn rejected(status: u16) -> Self {
        Self {
            status,
            reached: false,
            id: None,
            token: None,
        }
    }
}

impl Model {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            live: BTreeMap::new(),
        }
    }

    /// How many sessions there are, and of how many users.
    pub fn counts(&self) -> (usize, usize) {
        let users: HashSet<_> = self.live.values().map(|live| &live.user).collect();
        (self.live.len(), users.len())
    }

    pub fn expire(&mut self) {
        self.live.retain(|_, live| live.used.elapsed() < IDLE);
    }

    /// Ends a session; whether there was one.
    pub fn end(&mut self, id: &str) -> bool {
        self.live.remove(id).is_some()
    }

    /// DESIGN 4.5, read again.
    pub fn visit(&mut self, visit: &Visit<'_>) -> Came {
        self.expire();
        let mut token = visit.token;
        let frozen;
        if let Some(id) = visit.id {
            if !is_id(id) || visit.has("twice") {
                return Came::rejected(400);
            }
            match self.live.get_mut(id) {
                Some(live) if live.is_of(visit) => {
                    live.used = Instant::now();
                    if self.policy.pins && !visit.has("modern") {
                        frozen = live.token.clone();
                        token = frozen.as_deref();
                    }
                }
                None if self.policy.passes => {}
                _ => return Came::rejected(404),
            }
        }
        let inside = visit.id.filter(|_| !visit.has("modern"));
        // In a protocol without sessions it was removed together with the id.
        if visit.id.is_none() && visit.has("event") {
            return Came::rejected(404);
        }
        let creates = inside.is_none() && visit.method == "POST";
        if creates && self.policy.requires && visit.user.is_none() {
            return Came::rejected(401);
        }
        let is_list = visit.has("modern") && visit.has("list");
        if creates && !is_list && self.is_full(visit) {
            return Came::rejected(503);
        }
        // Of a GET nobody is told.
        let refused = visit.has("refused") && visit.method == "POST";
        let (status, answered) = match refused {
            true => (401, None),
            false => (visit.status, visit.answered),
        };
        let is_success = (200..300).contains(&status);
        if let Some(id) = inside {
            let is_deleted = visit.method == "DELETE" && is_success;
            if status == 404 || is_deleted || refused && self.policy.pins {
                self.live.remove(id);
            }
        }
        let binds = creates && is_success;
        let is_stray = match (answered, inside) {
            (Some(answered), Some(id)) => answered != id,
            (Some(answered), None) => {
                let live = self.live.get(answered);
                !is_id(answered) || live.is_some_and(|live| !live.is_of(visit))
            }
            (None, _) => false,
        };
        let is_full = binds && is_list && answered.is_some_and(is_id) && self.is_full(visit);
        if let Some(id) = answered.filter(|_| binds && !is_stray && !is_full) {
            let live = Live {
                user: visit.user.clone(),
                server: visit.server.map(str::to_owned),
                token: visit.token.map(str::to_owned),
                used: Instant::now(),
            };
            self.live.insert(id.to_owned(), live);
        }
        Came {
            status: match (is_full, is_stray) {
                (true, _) => 503,
                (_, true) => 502,
                _ => status,
            },
            reached: true,
            id: inside.map(str::to_owned),
            token: token.map(str::to_owned),
        }
    }

    fn is_full(&self, visit: &Visit<'_>) -> bool {
        let own = self.live.values().filter(|live| live.user == visit.user);
        own.count() >= PER_PRINCIPAL || self.live.len() >= SESSIONS
    }
}

fn is_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}
