//! What happens to each call, and which values are its own: all of it follows from the seed, the way,
//! the principal and the number of the call.
//!
//! It may not know how a fault is done, nor what a caller sees of it.

use std::fmt;

use crate::support::Recorded;

pub const PRINCIPALS: u64 = 64;

/// How many calls of one principal go on with one token at `gamma`.
const GENERATION: u64 = 16;

/// How many calls of each principal are all probed and proved, so that what the layers remember of
/// both for a while is as much as it will ever be.
pub const FILLING: u64 = 40;

/// What begins each value that is somebody's.
pub const MARK: &str = "chaos.";

/// The service under attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Relay,
    Gateway,
}

/// The upstreams, each of its own origin and with its own rules: `house.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Has sessions and event streams; the caller's `authorization`.
    Alpha,
    /// Has sessions; a required credential under another name.
    Beta,
    /// 2026-07-28; a credential that several calls have in common.
    Gamma,
    /// 2026-07-28; the operator's credential, and an attested name.
    Delta,
}

pub const PLACES: [Place; 4] = [Place::Alpha, Place::Beta, Place::Gamma, Place::Delta];

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
            Self::Gamma => "gamma",
            Self::Delta => "delta",
        }
    }

    pub fn has_sessions(self) -> bool {
        matches!(self, Self::Alpha | Self::Beta)
    }

    /// Whether it answers GET, and takes up an event stream that broke off.
    pub fn has_streams(self) -> bool {
        self == Self::Alpha
    }

    /// Whether a refused credential was the caller's.
    pub fn is_callers(self) -> bool {
        self != Self::Delta
    }
}

/// What goes wrong with a call: at the upstream, or with its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    None,
    Delay,
    ResetBeforeHead,
    ResetInBody,
    CloseInBody,
    RedirectSame,
    RedirectOther,
    Refuse401,
    Refuse403,
    ForbidScope,
    Silent,
    StallInBody,
    LoseSession,
    Restart,
    /// The caller goes away while the upstream works.
    Vanish,
    /// The caller goes away at any time.
    Leave,
    /// The caller names a session of somebody else.
    Stranger,
}

/// How often, of 4,096 calls; the rest has none.
const WEIGHTS: [(Fault, u64); 16] = [
    (Fault::Delay, 20),
    (Fault::ResetBeforeHead, 14),
    (Fault::ResetInBody, 14),
    (Fault::CloseInBody, 14),
    (Fault::RedirectSame, 8),
    (Fault::RedirectOther, 14),
    (Fault::Refuse401, 20),
    (Fault::Refuse403, 10),
    (Fault::ForbidScope, 8),
    (Fault::Silent, 2),
    (Fault::StallInBody, 8),
    (Fault::LoseSession, 10),
    (Fault::Restart, 2),
    (Fault::Vanish, 16),
    (Fault::Leave, 20),
    (Fault::Stranger, 10),
];

/// One call; `number` is its principal's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    pub principal: u64,
    pub number: u64,
}

impl Call {
    /// How the events of its answer are named, so that they can be asked for again.
    pub fn event_id(self) -> String {
        format!("{}-{}", self.principal, self.number)
    }

    pub fn in_event_id(id: &str) -> Option<Self> {
        let (principal, number) = id.split_once('-')?;
        let (principal, number) = (principal.parse().ok()?, number.parse().ok()?);
        Some(Self { principal, number })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {} of {}", self.number, self.principal)
    }
}

/// What a caller says of being another worker of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    None,
    Forged,
    Proved,
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub place: Place,
    pub fault: Fault,
    /// Whether the upstream answers in an event stream.
    pub events: bool,
    /// Whether the path names the upstream. A relay's always does.
    pub scoped: bool,
    pub probed: bool,
    pub claim: Claim,
}

impl Plan {
    /// Whether the answer can be asked for again where it broke off.
    pub fn is_taken_up(&self) -> bool {
        self.events && self.place.has_streams()
    }
}

/// The seed of everything.
#[derive(Clone, Copy, Debug)]
pub struct Chaos {
    pub way: Way,
    pub seed: u64,
}

impl Chaos {
    /// A number below `bound` that is always the same for this call and `salt`.
    pub fn roll(&self, call: Call, salt: u64, bound: u64) -> u64 {
        let mixed = [self.seed, call.principal, call.number, salt]
            .into_iter()
            .fold(0, |mixed, part| split_mix(mixed ^ part));
        mixed % bound
    }

    pub fn plan(&self, call: Call) -> Plan {
        let place = PLACES[usize::try_from(self.roll(call, 1, 4)).unwrap()];
        let in_session = self.in_session(call.principal, place);
        let mut rest = self.roll(call, 2, 4096);
        let drawn = WEIGHTS.iter().find(|(_, weight)| {
            let is_drawn = rest < *weight;
            rest = rest.wrapping_sub(*weight);
            is_drawn
        });
        let fault = match drawn.map_or(Fault::None, |(fault, _)| *fault) {
            Fault::LoseSession if !place.has_sessions() => Fault::None,
            Fault::Stranger if !in_session => Fault::None,
            fault => fault,
        };
        let is_filling = call.number < FILLING;
        Plan {
            place,
            fault,
            events: self.roll(call, 3, 2) == 0,
            scoped: self.way == Way::Relay || (!in_session && self.roll(call, 4, 2) == 0),
            probed: is_filling || self.roll(call, 5, 128) == 0,
            claim: match self.roll(call, 6, 512) {
                _ if is_filling => Claim::Proved,
                0..8 => Claim::Forged,
                8 => Claim::Proved,
                _ => Claim::None,
            },
        }
    }

    /// Whether the principal calls in a session; a relay's sessions are the upstream's.
    pub fn in_session(&self, principal: u64, place: Place) -> bool {
        match self.way {
            Way::Relay => place.has_sessions(),
            Way::Gateway => principal.is_multiple_of(2),
        }
    }
}

/// <https://prng.di.unimi.it/splitmix64.c>
fn split_mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn value(owner: &str, kind: &str, principal: u64, number: u64) -> String {
    format!("{MARK}{owner}.{kind}.{principal}.{number}")
}

/// What the caller sends with every call: something for each upstream, for the proxy, and for nobody.
pub fn sent(call: Call) -> Vec<(&'static str, String)> {
    let Call { principal, number } = call;
    let own = |owner, kind| value(owner, kind, principal, number);
    vec![
        ("x-proxy-key", own("proxy", "key")),
        ("cookie", format!("jar={}", own("nobody", "cookie"))),
        ("x-unknown", own("nobody", "unknown")),
        ("authorization", format!("Bearer {}", own("alpha", "token"))),
        ("x-alpha-call", own("alpha", "call")),
        ("x-beta-token", own("beta", "token")),
        ("x-beta-call", own("beta", "call")),
        ("x-gamma-token", gamma(call)),
        ("x-delta-call", own("delta", "call")),
        // Somebody else's, which the proxy must not believe.
        ("x-subject", subject((principal + 1) % PRINCIPALS)),
    ]
}

fn gamma(call: Call) -> String {
    value("gamma", "token", call.principal, call.number / GENERATION)
}

pub fn subject(principal: u64) -> String {
    value("delta", "subject", principal, 0)
}

/// Every line that an upstream must see of this call, and no other of anybody's; sorted by name.
pub fn expected(place: Place, call: Call) -> Vec<(&'static str, String)> {
    let Call { principal, number } = call;
    let own = |kind| value(place.name(), kind, principal, number);
    match place {
        Place::Alpha => vec![
            ("authorization", format!("Bearer {}", own("token"))),
            ("x-alpha-call", own("call")),
        ],
        Place::Beta => vec![
            ("authorization", format!("Bearer {}", own("token"))),
            ("x-call", own("call")),
            ("x-proxy", "edge".to_owned()),
        ],
        Place::Gamma => vec![("authorization", format!("Bearer {}", gamma(call)))],
        Place::Delta => vec![
            ("authorization", "Bearer operator".to_owned()),
            ("x-delta-call", own("call")),
            ("x-subject", subject(principal)),
        ],
    }
}

/// Every line of a request that is anybody's, sorted by name.
pub fn seen(request: &Recorded) -> Vec<(&str, &str)> {
    let lines = request.headers.iter();
    let lines = lines.map(|(name, value)| (name.as_str(), value.as_str()));
    let is_ours = |(name, value): &(&str, &str)| {
        value.contains(MARK)
            || name.starts_with("x-")
            || matches!(*name, "authorization" | "cookie")
    };
    let mut lines: Vec<_> = lines.filter(is_ours).collect();
    lines.sort_unstable();
    lines
}

/// The call that a request without a call's body belongs to, by what `place` is sent.
pub fn call_of(place: Place, request: &Recorded) -> Option<Call> {
    let name = match place {
        Place::Alpha => "x-alpha-call",
        Place::Beta => "x-call",
        Place::Gamma => "authorization",
        Place::Delta => "x-delta-call",
    };
    let value = request.all(name).first()?.rsplit(['.']);
    let mut numbers = value.map_while(|part| part.parse::<u64>().ok());
    let (number, principal) = (numbers.next()?, numbers.next()?);
    let scale = if place == Place::Gamma { GENERATION } else { 1 };
    Some(Call {
        principal,
        number: number * scale,
    })
}

/// What the upstream tells of a call: everything that it saw of anybody's.
pub fn told<N: AsRef<str>, V: AsRef<str>>(place: Place, call: Call, lines: &[(N, V)]) -> String {
    let lines = lines.iter();
    let lines: Vec<_> = lines
        .map(|(name, value)| [name.as_ref(), value.as_ref()].join(": "))
        .collect();
    format!("{} to {}: {}", call, place.name(), lines.join(", "))
}
