//! What a request may do in its session, and what the response to it means for the table.
//!
//! It may not read a body, so that a POST without a session id may be an `initialize`.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header::WWW_AUTHENTICATE,
    request::Parts,
};

use super::{
    SessionLayer,
    table::{Found, NotFound, Owner, Permit, Principal},
};
use crate::{
    carry::{Inbound, Refused},
    events,
    reply::Rejection,
    rules::names,
};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");

/// What says here to which session a request belongs, or that it belongs to none.
static DECISIVE: [HeaderName; 4] = [SESSION_ID, LAST_EVENT_ID, PROTOCOL_VERSION, METHOD];

/// The first version of the protocol without sessions.
const WITHOUT_SESSIONS: &[u8] = b"2026-07-28";

/// How long an id may be, in bytes.
const MAX_ID: usize = 256;

const NO_INBOUND: Rejection = Rejection::fixed(
    StatusCode::INTERNAL_SERVER_ERROR,
    "no inbound here: put `CaptureLayer` directly around `SessionLayer` (in axum, its `.layer` line \
     comes after)",
);
const UNUSABLE: Rejection = Rejection::fixed(
    StatusCode::BAD_REQUEST,
    "send one `mcp-session-id`, of 1 to 256 visible ASCII characters",
);
const NOT_FOUND: Rejection = Rejection::fixed(
    StatusCode::NOT_FOUND,
    "there is no such session; initialize a new one",
);
const NOBODY: Rejection = Rejection::fixed(
    StatusCode::UNAUTHORIZED,
    "nobody is known to be behind this; authenticate first",
);
const FULL: Rejection = Rejection::fixed(
    StatusCode::SERVICE_UNAVAILABLE,
    "there are too many sessions; end one, or try later",
);
const STRAY: Rejection = Rejection::fixed(
    StatusCode::BAD_GATEWAY,
    "the server answered with a session id that cannot be this caller's",
);

/// A request that was let in, until its response.
pub(super) enum Visit<P: Principal> {
    /// One without a session.
    Outside {
        owner: Owner<P>,
        /// Whether the response may make one.
        creates: bool,
        permit: Option<Permit<P>>,
        /// What the session will be pinned to.
        inbound: Option<Inbound>,
    },
    /// One of a session.
    Inside {
        id: HeaderValue,
        /// `None` for one that is not known here.
        serial: Option<u64>,
        pinned: Option<Inbound>,
        /// Whether it asks for the session's end.
        ends: bool,
    },
}

impl<P: Principal> Visit<P> {
    /// The headers that go on in place of the request's own.
    pub(super) fn pinned(&self) -> Option<&Inbound> {
        match self {
            Self::Inside { pinned, .. } => pinned.as_ref(),
            Self::Outside { .. } => None,
        }
    }
}

impl<P: Principal> SessionLayer<P> {
    /// Whether the request may go on, without what the protocol it names does not know; or its answer.
    pub(super) fn admit(&self, parts: &mut Parts) -> Result<Visit<P>, Rejection> {
        remove_look_alikes(&mut parts.headers);
        let inbound = if self.policy.pin {
            let inbound = Inbound::attached(&parts.extensions).or_else(Inbound::current);
            Some(inbound.ok_or_else(|| rejected(NO_INBOUND))?)
        } else {
            None
        };
        let owner = Owner {
            principal: (self.principal)(parts).map_err(rejected)?,
            server: parts.extensions.get().cloned(),
        };
        let id = session_id(&mut parts.headers).map_err(|()| rejected(UNUSABLE))?;
        match id {
            Some(id) => self.admit_inside(parts, id, owner, inbound),
            None => self.admit_outside(parts, owner, inbound),
        }
    }

    fn admit_inside(
        &self,
        parts: &mut Parts,
        id: HeaderValue,
        owner: Owner<P>,
        inbound: Option<Inbound>,
    ) -> Result<Visit<P>, Rejection> {
        let (serial, pinned) = match self.table.find(id.as_bytes(), &owner) {
            Ok(Found { serial, pinned }) => (Some(serial), pinned),
            Err(NotFound::Unknown) if self.policy.pass_unknown => (None, None),
            Err(NotFound::Unknown) => return Err(denied("unknown")),
            Err(NotFound::Foreign) => return Err(denied("somebody else's")),
        };
        if is_sessionless(&parts.headers) {
            parts.headers.remove(SESSION_ID);
            parts.headers.remove(LAST_EVENT_ID);
            // The service sees no session, and may make one.
            return self.admit_outside(parts, owner, inbound);
        }
        Ok(Visit::Inside {
            id,
            serial,
            pinned,
            ends: parts.method == Method::DELETE,
        })
    }

    fn admit_outside(
        &self,
        parts: &Parts,
        owner: Owner<P>,
        inbound: Option<Inbound>,
    ) -> Result<Visit<P>, Rejection> {
        // It continues a stream, and nobody could say whose.
        if parts.headers.contains_key(LAST_EVENT_ID) {
            return Err(denied("an event without a session"));
        }
        let creates = parts.method == Method::POST;
        if creates && self.policy.require_principal && owner.principal.is_none() {
            let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
            return Err(rejected(NOBODY.with(WWW_AUTHENTICATE, challenge)));
        }
        let permit = if creates && !is_no_initialize(&parts.headers) {
            let permit = self.table.reserve(&owner.principal);
            Some(permit.ok_or_else(|| rejected(FULL))?)
        } else {
            None
        };
        Ok(Visit::Outside {
            owner,
            creates,
            permit,
            inbound,
        })
    }

    /// Does what the response says about sessions; or says what has to be answered instead.
    pub(super) fn settle<R>(
        &self,
        visit: Visit<P>,
        response: &mut Response<R>,
    ) -> Result<(), Rejection> {
        let status = response.status();
        let refused = response.extensions().get::<Refused>().is_some();
        let answered = session_id(response.headers_mut());
        match visit {
            Visit::Inside {
                id,
                serial,
                pinned,
                ends,
            } => {
                let reason = if ends && status.is_success() {
                    Some("deleted")
                } else if status == StatusCode::NOT_FOUND {
                    // So says a server that does not know it, and the client will initialize anew.
                    Some("gone")
                } else if pinned.is_some() && refused {
                    Some("refused")
                } else {
                    None
                };
                if let Some(reason) = reason.filter(|_| serial.is_some()) {
                    self.table.end(id.as_bytes(), serial, reason);
                }
                match answered {
                    Ok(None) => Ok(()),
                    Ok(Some(answered)) if answered == id => Ok(()),
                    _ => Err(rejected(STRAY)),
                }
            }
            Visit::Outside {
                owner,
                creates,
                permit,
                inbound,
            } => match answered.map_err(|()| rejected(STRAY))? {
                Some(id) if creates && status.is_success() => {
                    let permit = permit.or_else(|| self.table.reserve(&owner.principal));
                    let permit = permit.ok_or_else(|| rejected(FULL))?;
                    let pinned = inbound.map(|inbound| inbound.compact());
                    if !permit.bind(id.as_bytes(), owner, pinned) {
                        return Err(rejected(STRAY));
                    }
                    events::session_created();
                    Ok(())
                }
                Some(id) if self.table.is_foreign(id.as_bytes(), &owner) => Err(rejected(STRAY)),
                _ => Ok(()),
            },
        }
    }
}

fn rejected(rejection: Rejection) -> Rejection {
    events::rejected("session", &rejection);
    rejection
}

/// The caller gets the same bytes, whatever the reason.
fn denied(reason: &'static str) -> Rejection {
    events::session_denied(reason);
    NOT_FOUND
}

/// Removes what a service that takes `_` for `-` would read, and nothing here does.
fn remove_look_alikes(headers: &mut HeaderMap) {
    let is_one = |key: &HeaderName| {
        let mut decisive = DECISIVE.iter();
        decisive.any(|name| key != name && names::is_folded(key, name.as_str()))
    };
    let found: Vec<_> = headers.keys().filter(|key| is_one(key)).cloned().collect();
    for key in found {
        headers.remove(key);
    }
}

/// The one id in `headers`, sensitive from here on; an error where it is none that a session can have.
fn session_id(headers: &mut HeaderMap) -> Result<Option<HeaderValue>, ()> {
    let mut lines = headers.get_all(SESSION_ID).iter();
    let (first, second) = (lines.next(), lines.next());
    if second.is_some() {
        return Err(());
    }
    if first.is_none() {
        return Ok(None);
    }
    let Some(id) = headers.get_mut(SESSION_ID) else {
        return Ok(None);
    };
    id.set_sensitive(true);
    let is_usable =
        (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    is_usable.then(|| Some(id.clone())).ok_or(())
}

/// Whether a version that the request names has no sessions.
fn is_sessionless(headers: &HeaderMap) -> bool {
    let mut versions = headers.get_all(PROTOCOL_VERSION).iter();
    versions.any(is_without_sessions)
}

/// Whether the request cannot be an `initialize`, of which servers make a session whatever version its
/// header names.
///
/// From the first version without sessions on, a request has to say its method in a header (MCP
/// 2026-07-28, *Transports*), and a server refuses one whose body says another.
fn is_no_initialize(headers: &HeaderMap) -> bool {
    let is_other =
        |method: &[u8]| !method.is_empty() && !method.eq_ignore_ascii_case(b"initialize");
    only(headers, &PROTOCOL_VERSION).is_some_and(is_without_sessions)
        && only(headers, &METHOD).is_some_and(|method| is_other(method.as_bytes()))
}

/// The value of `name`, where it is on one line.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    lines.next().is_none().then_some(first)
}

/// Whether `version`, which is a date, is of a protocol without sessions.
fn is_without_sessions(version: &HeaderValue) -> bool {
    let version = version.as_bytes();
    let mut bytes = version.iter().enumerate();
    let is_date = version.len() == WITHOUT_SESSIONS.len()
        && bytes.all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    is_date && version >= WITHOUT_SESSIONS
}
