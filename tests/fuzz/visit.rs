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

/// A request and its response, on one line: `alice POST id -> 200 id`. Whatever is `-` is not there.
/// More words: `modern` names a protocol without sessions, `event` adds `last-event-id`, `twice` the id on a
/// second line, and `spelled` one as `mcp_session_id`.
pub struct Visit<'a> {
    pub user: Option<User>,
    pub method: &'a str,
    pub id: Option<&'a str>,
    pub status: u16,
    pub answered: Option<&'a str>,
    more: Vec<&'a str>,
}

impl<'a> Visit<'a> {
    pub fn read(line: &'a str) -> Option<Self> {
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
            more: words.collect(),
        };
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
    used: Instant,
}

/// Who owns which.
#[derive(Default)]
pub struct Model {
    live: BTreeMap<String, Live>,
}

/// What became of a visit.
#[derive(Debug, PartialEq)]
pub struct Came {
    pub status: u16,
    /// Whether the service behind was called, and with which id.
    pub reached: bool,
    pub id: Option<String>,
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

impl Model {
    /// How many sessions there are, and of how many users.
    pub fn counts(&self) -> (usize, usize) {
        let users: HashSet<_> = self.live.values().map(|live| &live.user).collect();
        (self.live.len(), users.len())
    }

    pub fn expire(&mut self) {
        self.live.retain(|_, live| live.used.elapsed() < IDLE);
    }

    /// DESIGN 4.5, read again.
    pub fn visit(&mut self, visit: &Visit<'_>) -> Came {
        self.expire();
        let is_id = |id: &str| {
            (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let Some(id) = visit.id {
            if !is_id(id) || visit.has("twice") {
                return Came::rejected(400);
            }
            match self.live.get_mut(id).filter(|live| live.user == visit.user) {
                Some(live) => live.used = Instant::now(),
                None => return Came::rejected(404),
            }
        }
        let inside = visit.id.filter(|_| !visit.has("modern"));
        if visit.id.is_none() && visit.has("event") {
            return Came::rejected(404);
        }
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
