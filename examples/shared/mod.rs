//! What the examples `relay` and `gateway` share: their flags, and how they serve.
//!
//! It may not know what is served.

pub(crate) mod front;
pub(crate) mod headers;
pub(crate) mod serve;

use mcp_forward::{BuildError, Mistake, MistakeKind};

/// Headers that mean a credential.
pub(crate) const GUARDED: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// What was built; or nothing, and its mistakes beside those that are known already.
pub(crate) fn built<T>(outcome: Result<T, BuildError>, mistakes: &mut Vec<String>) -> Option<T> {
    let found = |error: BuildError| mistakes.extend(error.mistakes().iter().map(with_flag));
    outcome.map_err(found).ok()
}

/// A mistake, and the flag that mends it where the crate's own words name a function.
fn with_flag(mistake: &Mistake) -> String {
    let flag = match mistake.kind() {
        MistakeKind::Guarded => " (--allow-credential)",
        MistakeKind::Conflict => " (--on-conflict)",
        MistakeKind::Cleartext => " (--allow-cleartext)",
        MistakeKind::FanOut => " (--allow-fan-out)",
        _ => "",
    };
    format!("{mistake}{flag}")
}

/// Says every mistake, and ends.
pub(crate) fn give_up(mistakes: &[String]) -> ! {
    mistakes.iter().for_each(|it| eprintln!("error: {it}"));
    std::process::exit(2)
}
