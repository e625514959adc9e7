//! What a caller sees of each fault, by either way: `README.md` shows the same table.

use std::fmt;

use crate::{
    answer::Came,
    plan::{Fault, Place, Plan, Way},
};

/// What a caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The result of this very call.
    Answered,
    /// A list of what the other upstreams have.
    Without,
    /// 401 or 403, with this proxy's challenge.
    Refused(u16),
    /// Another status: with this proxy's error, or 404.
    Status(u16),
    /// 200, with a JSON-RPC error of this proxy's.
    Error(i64),
    /// 200, and the connection breaks before the body is at its end.
    Cut,
    /// Nothing: it has gone away.
    Left,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answered => write!(f, "its answer"),
            Without => write!(f, "the list without that upstream, which is named in it"),
            Refused(status) => write!(f, "{status}, with a challenge of the proxy's"),
            Status(404) => write!(f, "404"),
            Status(status) => write!(f, "{status}, with an error of the proxy's"),
            Error(code) => write!(f, "200, with error {code}"),
            Cut => write!(f, "200, and a body that breaks off"),
            Left => write!(f, "nothing"),
        }
    }
}

use Outcome::{Answered, Cut, Error, Left, Refused, Status, Without};
use To::{All, Callers, Meanwhile, Operators, Others, Streams};

/// To which calls a row applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    All,
    /// The credential is the caller's.
    Callers,
    Operators,
    /// The upstream answers in an event stream, and knows how to take it up.
    Streams,
    Others,
    /// It befell another call.
    Meanwhile,
}

/// What may come of a fault: through the relay; through the gateway to a call, and to a list of all
/// upstreams.
pub struct Row(Fault, To, Outcomes, Outcomes, Outcomes);

type Outcomes = &'static [Outcome];

const ANSWERED: Outcomes = &[Answered];
const BAD: Outcomes = &[Status(502)];
const CUT: Outcomes = &[Cut];
const FAILED: Outcomes = &[Error(-32603)];
const GONE: Outcomes = &[Status(404)];
const LEFT: Outcomes = &[Left];
const R401: Outcomes = &[Refused(401)];
const R403: Outcomes = &[Refused(403)];
const FORBIDDEN: Outcomes = &[Status(403)];
const WITHOUT: Outcomes = &[Without];
const OR_FAILED: Outcomes = &[Answered, Error(-32603)];
const OR_WITHOUT: Outcomes = &[Answered, Without];
const EITHER: Outcomes = &[Answered, Left];

pub const TABLE: &[Row] = &[
    Row(Fault::None, All, ANSWERED, ANSWERED, ANSWERED),
    Row(Fault::Delay, All, ANSWERED, ANSWERED, ANSWERED),
    Row(Fault::ResetBeforeHead, All, BAD, FAILED, WITHOUT),
    Row(Fault::ResetInBody, Streams, CUT, ANSWERED, ANSWERED),
    Row(Fault::ResetInBody, Others, CUT, FAILED, WITHOUT),
    Row(Fault::CloseInBody, Streams, CUT, ANSWERED, ANSWERED),
    Row(Fault::CloseInBody, Others, CUT, FAILED, WITHOUT),
    Row(Fault::RedirectSame, All, BAD, FAILED, WITHOUT),
    Row(Fault::RedirectOther, All, BAD, FAILED, WITHOUT),
    Row(Fault::Refuse401, Callers, R401, R401, WITHOUT),
    Row(Fault::Refuse401, Operators, BAD, BAD, WITHOUT),
    Row(Fault::Refuse403, Callers, FORBIDDEN, FORBIDDEN, WITHOUT),
    Row(Fault::Refuse403, Operators, BAD, BAD, WITHOUT),
    Row(Fault::ForbidScope, Callers, R403, R403, WITHOUT),
    Row(Fault::ForbidScope, Operators, BAD, BAD, WITHOUT),
    Row(Fault::Silent, All, &[Status(504)], LEFT, LEFT),
    Row(Fault::StallInBody, All, LEFT, LEFT, LEFT),
    Row(Fault::LoseSession, All, GONE, ANSWERED, ANSWERED),
    Row(Fault::LoseSession, Meanwhile, GONE, OR_FAILED, OR_WITHOUT),
    Row(Fault::Restart, All, BAD, FAILED, WITHOUT),
    Row(
        Fault::Restart,
        Meanwhile,
        &[Status(502), Cut],
        FAILED,
        WITHOUT,
    ),
    Row(Fault::Vanish, All, LEFT, LEFT, LEFT),
    Row(Fault::Leave, All, EITHER, EITHER, EITHER),
    Row(Fault::Stranger, All, GONE, GONE, GONE),
];

/// What befell upstreams, during a call, because of other calls.
#[derive(Debug)]
pub struct Meantime {
    pub restarted: Vec<Place>,
    /// The session of the call is lost.
    pub lost: bool,
}

/// Whether the table has it.
pub fn allows(way: Way, plan: &Plan, meantime: &Meantime, came: &Came) -> bool {
    let befell = |place: &Place| meantime.restarted.contains(place);
    let applies = |Row(fault, to, ..): &&Row| match to {
        All => *fault == plan.fault,
        Callers | Operators => *fault == plan.fault && plan.place.is_callers() == (*to == Callers),
        Streams | Others => *fault == plan.fault && plan.is_taken_up() == (*to == Streams),
        Meanwhile if *fault == Fault::LoseSession => meantime.lost,
        Meanwhile if plan.list => !meantime.restarted.is_empty(),
        Meanwhile => befell(&plan.place),
    };
    let outcomes = |Row(_, _, relay, call, list): &Row| match way {
        Way::Relay => *relay,
        Way::Gateway if plan.list => *list,
        Way::Gateway => *call,
    };
    let mut rows = TABLE.iter().filter(applies);
    let mut missing = came.missing.iter();
    let may_miss = |place: &Place| {
        befell(place)
            || (*place == plan.place && plan.fault != Fault::None)
            || (place.has_sessions() && meantime.lost)
    };
    rows.any(|row| outcomes(row).contains(&came.outcome)) && missing.all(may_miss)
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(fault, to, relay, call, list) = self;
        let to = match to {
            All => "",
            Callers => "; the credential is the caller's",
            Operators => "; the credential is the operator's",
            Streams => "; of an event stream that the upstream takes up again",
            Others => "; of anything else",
            Meanwhile => ", for another call",
        };
        let all = |outcomes: &[Outcome]| -> String {
            let outcomes: Vec<_> = outcomes.iter().map(ToString::to_string).collect();
            outcomes.join("; or ")
        };
        let (relay, call, list) = (all(relay), all(call), all(list));
        write!(f, "| {}{to} | {relay} | {call} | {list} |", words(*fault))
    }
}

fn words(fault: Fault) -> &'static str {
    match fault {
        Fault::None => "nothing goes wrong",
        Fault::Delay => "the upstream takes its time",
        Fault::ResetBeforeHead => "the upstream resets the connection before it answers",
        Fault::ResetInBody => "the upstream resets the connection in mid-body",
        Fault::CloseInBody => "the upstream closes the connection in mid-body",
        Fault::RedirectSame => "the upstream redirects within its origin",
        Fault::RedirectOther => "the upstream redirects to another origin",
        Fault::Refuse401 => "the upstream answers 401",
        Fault::Refuse403 => "the upstream answers 403",
        Fault::ForbidScope => "the upstream answers 403 with `insufficient_scope`",
        Fault::Silent => "the upstream never answers",
        Fault::StallInBody => "the upstream stops in mid-body, and the caller gives up",
        Fault::LoseSession => "the upstream has lost the session",
        Fault::Restart => "the upstream restarts",
        Fault::Vanish => "the caller goes away while the upstream works",
        Fault::Leave => "the caller goes away at any time",
        Fault::Stranger => "the caller names somebody else's session",
    }
}

#[test]
fn the_readme_has_the_table() {
    let rows: Vec<_> = TABLE.iter().map(ToString::to_string).collect();
    let table = rows.join("\n");
    let readme = include_str!("README.md");
    assert!(readme.contains(&table), "README.md does not have\n{table}");
}
