//! What a caller sees of each fault, by either way: `README.md` has the same table, in words.

use crate::plan::{Fault, Plan, Way};

/// What a caller sees of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The result of this very call.
    Answered,
    /// 401 or 403 with this proxy's challenge, if any.
    Refused(u16),
    /// Another status, with a JSON-RPC error of the proxy's; or the upstream's 404.
    Status(u16),
    /// 200, and a JSON-RPC error of the proxy's.
    Error(i64),
    /// 200, and the connection breaks before the body is at its end.
    Cut,
    /// The caller has gone away itself.
    Left,
}

use Outcome::{Answered, Cut, Error, Left, Refused, Status};
use To::{All, Callers, Operators, Others, Streams};

/// To which calls a row applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    All,
    /// The caller's credential is refused, not the operator's.
    Callers,
    Operators,
    /// The upstream answers in an event stream, and knows how to take it up.
    Streams,
    Others,
}

/// What may come of one fault.
pub struct Row {
    pub fault: Fault,
    pub to: To,
    pub relay: &'static [Outcome],
    pub gateway: &'static [Outcome],
}

const fn row(fault: Fault, to: To, relay: &'static [Outcome], gateway: &'static [Outcome]) -> Row {
    Row {
        fault,
        to,
        relay,
        gateway,
    }
}

/// The proxy's own JSON-RPC error for whatever the upstream did.
const FAILED: &[Outcome] = &[Error(-32603)];

pub const TABLE: &[Row] = &[
    row(Fault::None, All, &[Answered], &[Answered]),
    row(Fault::Delay, All, &[Answered], &[Answered]),
    row(Fault::ResetBeforeHead, All, &[Status(502)], FAILED),
    row(Fault::ResetInBody, Streams, &[Cut], &[Answered]),
    row(Fault::ResetInBody, Others, &[Cut], FAILED),
    row(Fault::CloseInBody, Streams, &[Cut], &[Answered]),
    row(Fault::CloseInBody, Others, &[Cut], FAILED),
    row(Fault::RedirectSame, All, &[Status(502)], FAILED),
    row(Fault::RedirectOther, All, &[Status(502)], FAILED),
    row(Fault::Refuse401, Callers, &[Refused(401)], &[Refused(401)]),
    row(Fault::Refuse401, Operators, &[Status(502)], &[Status(502)]),
    row(Fault::Refuse403, Callers, &[Refused(403)], &[Refused(403)]),
    row(Fault::Refuse403, Operators, &[Status(502)], &[Status(502)]),
    row(
        Fault::ForbidScope,
        Callers,
        &[Refused(403)],
        &[Refused(403)],
    ),
    row(
        Fault::ForbidScope,
        Operators,
        &[Status(502)],
        &[Status(502)],
    ),
    row(Fault::Silent, All, &[Status(504)], &[Left]),
    row(Fault::StallInBody, All, &[Left], &[Left]),
    row(Fault::LoseSession, All, &[Status(404)], &[Answered]),
    row(Fault::Restart, All, &[Status(502)], FAILED),
    row(Fault::Vanish, All, &[Left], &[Left]),
    row(Fault::Leave, All, &[Left, Answered], &[Left, Answered]),
    row(Fault::Stranger, All, &[Status(404)], &[Status(404)]),
];

/// What any call may come to while its upstream restarts for another one.
pub const WHILE_RESTARTING: Row = row(Fault::Restart, All, &[Status(502), Cut], &[Error(-32603)]);

impl Row {
    fn by(&self, way: Way) -> &'static [Outcome] {
        match way {
            Way::Relay => self.relay,
            Way::Gateway => self.gateway,
        }
    }
}

/// Whether the table has it.
pub fn allows(way: Way, plan: &Plan, restarting: bool, outcome: Outcome) -> bool {
    let applies = |row: &&Row| match row.to {
        All => true,
        Callers | Operators => plan.place.is_callers() == (row.to == Callers),
        Streams | Others => plan.is_taken_up() == (row.to == Streams),
    };
    let mut rows = TABLE.iter().filter(|row| row.fault == plan.fault);
    let row = rows.find(applies);
    row.is_some_and(|row| row.by(way).contains(&outcome))
        || (restarting && WHILE_RESTARTING.by(way).contains(&outcome))
}
