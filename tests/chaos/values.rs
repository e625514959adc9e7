//! Which values a call sends, and which of them each upstream must see.
//!
//! Every value says where it belongs, whose it is and of which call.

use crate::{
    plan::{Call, PRINCIPALS, Place},
    support::Recorded,
};

/// What begins each value that is somebody's.
pub const MARK: &str = "chaos.";

/// What is in all that upstreams say of themselves where they refuse a call.
pub const SECRET: &str = "secret-of-upstream";

/// How many calls of one principal go on with one token at `gamma`.
const GENERATION: u64 = 16;

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
    let value = request.all(name).first()?.rsplit('.');
    let mut numbers = value.map_while(|part| part.parse::<u64>().ok());
    let (number, principal) = (numbers.next()?, numbers.next()?);
    Some(match place {
        Place::Gamma => Call {
            principal,
            number: number * GENERATION,
        },
        _ => Call { principal, number },
    })
}

/// What an upstream tells its caller: where that was, and every line that it saw of anybody's.
pub fn told<N: AsRef<str>, V: AsRef<str>>(place: Place, lines: &[(N, V)]) -> String {
    let lines = lines.iter();
    let lines: Vec<_> = lines
        .map(|(name, value)| [name.as_ref(), value.as_ref()].join(": "))
        .collect();
    format!("{}: {}", place.name(), lines.join(", "))
}
