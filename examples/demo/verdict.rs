//! The verdict: did what the rules allow arrive unchanged, and nothing else? Pure, so that its
//! tests see every way to fail. A fault names headers and never holds a value.

use std::collections::BTreeMap;

/// Names in lower case with their values; several lines of one name are joined.
pub(crate) type Headers = BTreeMap<String, String>;

/// What HTTP and MCP write for themselves on each hop; so they do with every `mcp-` name.
const TRANSPORT: [&str; 7] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
];

/// Whether the header `name` arrived as it was sent.
pub(crate) fn survived(name: &str, sent: &Headers, arrived: &Headers) -> bool {
    sent.contains_key(name) && sent.get(name) == arrived.get(name)
}

/// Everything that is wrong with what `arrived` of what was `sent`; empty if nothing is.
pub(crate) fn faults(sent: &Headers, allowed: &[&str], arrived: &Headers) -> Vec<String> {
    let due = |name: &String| allowed.contains(&name.as_str()) && sent.contains_key(name);
    let lost = sent.keys().filter(|name| due(name)).filter_map(|name| {
        match (arrived.contains_key(name), survived(name, sent, arrived)) {
            (false, _) => Some(format!("`{name}` is allowed and did not arrive")),
            (true, false) => Some(format!("`{name}` arrived with another value")),
            (true, true) => None,
        }
    });
    let extra = arrived
        .keys()
        .filter(|name| !due(name) && !is_transport(name))
        .map(|name| format!("`{name}` arrived and should not"));
    lost.chain(extra).collect()
}

fn is_transport(name: &str) -> bool {
    TRANSPORT.contains(&name) || name.starts_with("mcp-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: [&str; 2] = ["authorization", "x-user-id"];

    fn headers<const N: usize>(lines: [(&str, &str); N]) -> Headers {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        lines.map(owned).into()
    }

    /// The faults where all that is allowed was sent, `cookie` too, and `arrived` arrived.
    fn faults_of<const N: usize>(arrived: [(&str, &str); N]) -> Vec<String> {
        let sent = headers([
            ("authorization", "Bearer s3cret"),
            ("cookie", "s3cret"),
            ("x-user-id", "alice"),
        ]);
        faults(&sent, &ALLOWED, &headers(arrived))
    }

    #[test]
    fn exactly_the_allowed_headers_pass() {
        let good = faults_of([
            ("authorization", "Bearer s3cret"),
            ("host", "127.0.0.1"),
            ("mcp-session-id", "1"),
            ("x-user-id", "alice"),
        ]);
        assert!(good.is_empty(), "{good:?}");
    }

    #[test]
    fn a_missing_header_fails() {
        let missing = faults_of([("authorization", "Bearer s3cret")]);
        assert_eq!(missing, ["`x-user-id` is allowed and did not arrive"]);
    }

    #[test]
    fn a_changed_header_fails_and_is_not_shown() {
        let changed = faults_of([("authorization", "Bearer other"), ("x-user-id", "alice")]);
        assert_eq!(changed, ["`authorization` arrived with another value"]);
    }

    #[test]
    fn a_header_that_was_not_allowed_fails() {
        let extra = faults_of([
            ("authorization", "Bearer s3cret"),
            ("cookie", "s3cret"),
            ("x-user-id", "alice"),
        ]);
        assert_eq!(extra, ["`cookie` arrived and should not"]);
    }

    #[test]
    fn a_header_that_nobody_sent_fails() {
        let sent = headers([("x-user-id", "alice")]);
        let arrived = headers([
            ("authorization", "Bearer of-whom"),
            ("via", "1.1 proxy"),
            ("x-user-id", "alice"),
        ]);
        let faults = faults(&sent, &ALLOWED, &arrived);
        let expected =
            ["authorization", "via"].map(|name| format!("`{name}` arrived and should not"));
        assert_eq!(faults, expected);
    }
}
