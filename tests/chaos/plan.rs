//! What happens to each call: all of it follows from the seed, the way, the principal and the number of
//! the call.
//!
//! It may not know how a fault is done, nor what a caller sees of it.

use std::fmt;

pub const PRINCIPALS: u64 = 64;

/// How many calls of each principal are all probed and proved at first, so that what the layers remember
/// of both for a while needs as much room as it ever will.
pub const FILLING: u64 = 40;

/// How many calls of each principal after those go round all faults, so that none is left to chance.
const ROUND: u64 = 4;

/// And how many there are after a rest. Those of the first few principals are probed and proved, too: they
/// find that nothing of what is remembered is worth anything.
pub const RESTING: u64 = 8;
const WAKING: u64 = 4;

/// At how many numbers there is a rest.
pub const RESTS: usize = 5;

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

    /// Whether two calls of one principal differ there.
    pub fn tells_calls(self) -> bool {
        self != Self::Gamma
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

impl Fault {
    /// Whether it can meet what comes before the call: where no call can come after it.
    fn may_be_early(self) -> bool {
        use Fault::{Delay, LoseSession, Silent, StallInBody};
        let goes_on = matches!(
            self,
            Self::None | Delay | LoseSession | Silent | StallInBody
        );
        !goes_on && !self.is_callers()
    }

    /// Whether it is the caller who does it.
    pub fn is_callers(self) -> bool {
        matches!(self, Self::Vanish | Self::Leave | Self::Stranger)
    }
}

/// How often, of 4,096 calls; the rest has none. An upstream is silent only after a rest, not before one.
pub const WEIGHTS: [(Fault, u64); 16] = [
    (Fault::Delay, 20),
    (Fault::ResetBeforeHead, 14),
    (Fault::ResetInBody, 14),
    (Fault::CloseInBody, 14),
    (Fault::RedirectSame, 8),
    (Fault::RedirectOther, 14),
    (Fault::Refuse401, 20),
    (Fault::Refuse403, 10),
    (Fault::ForbidScope, 8),
    (Fault::Silent, 3),
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
    /// Whether all upstreams are asked for their tools, instead of one for a call.
    pub list: bool,
    /// Whether the fault meets the first message to the upstream, before the call itself is sent.
    pub early: bool,
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
    /// At which number the calls of each principal have a rest.
    pub rests: [u64; RESTS],
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
        let is_waking = call.principal < WAKING && self.is_resting(call, 0);
        let is_marked = call.number < FILLING || is_waking;
        let place = PLACES[usize::try_from(self.roll(call, 1, 4)).unwrap()];
        let in_session = self.in_session(call.principal, place);
        let in_gateway = self.way == Way::Gateway;
        // A pool that nobody uses for a while is gone: the last calls before a rest need all of them.
        let is_last = self.is_resting(call, RESTING / 2);
        let list = in_gateway && (is_last || self.roll(call, 4, 16) == 0);
        let probed = !list && (is_marked || self.roll(call, 5, 128) == 0);
        // Such a call has a connection of its own. (What a probe sends is no part of the call.)
        let alone = in_gateway && !probed && place.tells_calls() && !in_session;
        let drawn = self.fault(call);
        let is_possible = match drawn {
            Fault::LoseSession => place.has_sessions(),
            Fault::Stranger => in_session && (!list || place.tells_calls()),
            // Which list it is, cannot be told there.
            _ => !list || place.tells_calls() || drawn == Fault::Leave,
        };
        let fault = if is_possible { drawn } else { Fault::None };
        let early = alone && fault.may_be_early() && self.roll(call, 9, 4) == 0;
        Plan {
            place,
            fault,
            list,
            early,
            events: !early && self.roll(call, 3, 2) == 0,
            scoped: !in_gateway || (!list && !in_session && self.roll(call, 10, 2) == 0),
            probed,
            claim: match self.roll(call, 6, 512) {
                _ if is_marked => Claim::Proved,
                0..8 => Claim::Forged,
                8 => Claim::Proved,
                _ => Claim::None,
            },
        }
    }

    /// Whether there is a rest at the call, and so many calls of its principal have been made in it.
    fn is_resting(&self, call: Call, made: u64) -> bool {
        let mut rests = self.rests.iter();
        rests.any(|rest| (*rest + made..*rest + RESTING).contains(&call.number))
    }

    fn fault(&self, call: Call) -> Fault {
        // Nothing lasts there: a pool that nobody uses for a while begins anew, and smaller.
        if self.is_resting(call, 0) {
            return Fault::None;
        }
        if (FILLING..FILLING + ROUND).contains(&call.number) {
            // Half of the principals have sessions with the gateway.
            let at = usize::try_from(call.principal / 2 + call.number).unwrap();
            return WEIGHTS[at % WEIGHTS.len()].0;
        }
        let mut rest = self.roll(call, 2, 4096);
        let drawn = WEIGHTS.iter().find(|(_, weight)| {
            let is_drawn = rest < *weight;
            rest = rest.wrapping_sub(*weight);
            is_drawn
        });
        match drawn {
            Some((Fault::Silent, _)) if !self.is_after_rest(call) => Fault::None,
            drawn => drawn.map_or(Fault::None, |(fault, _)| *fault),
        }
    }

    /// Whether the next rest is so far away that nobody has to wait there for a call that takes long.
    fn is_after_rest(&self, call: Call) -> bool {
        let (over, ahead) = self
            .rests
            .split_at(self.rests.partition_point(|it| *it <= call.number));
        let last = over.last().copied().unwrap_or_default();
        ahead
            .first()
            .is_some_and(|next| (call.number - last) * 3 < next - last)
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
