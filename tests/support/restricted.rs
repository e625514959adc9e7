//! Which names are never forwarded, and which only as a credential: the contract, written down a second
//! time, so that a name lost from the crate's table is seen.
#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

/// Each name, and some of each prefix.
pub const RESTRICTED: &str = "
    host digest repr-digest want-repr-digest want-content-digest transfer-encoding expect accept
    accept-encoding range if-match if-none-match if-modified-since if-unmodified-since if-range
    x-http-method x-http-method-override x-method-override
    connection close keep-alive proxy-connection proxy-features te trailer upgrade http2-settings
    proxy-authenticate proxy-authentication-info alt-svc early-data max-forwards
    last-event-id
    dpop signature signature-input
    forwarded via x-real-ip x-client-ip x-cluster-client-ip x-original-url x-original-host
    x-rewrite-url true-client-ip cf-connecting-ip fastly-client-ip
    origin referer dnt set-cookie cookie2
    content-length content-type content-encoding content-digest content-future
    mcp-session-id mcp-protocol-version mcp-method mcp-name mcp-param-region mcp-future
    x-envoy-original-path x-envoy-future
    x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port x-forwarded-prefix
    x-forwarded-client-cert x-forwarded-anything
    sec-fetch-site sec-websocket-key access-control-allow-origin access-control-request-method
";

const PREFIXES: [&str; 6] = [
    "access-control-",
    "content-",
    "mcp-",
    "sec-",
    "x-envoy-",
    "x-forwarded-",
];

pub const RELAYED: [&str; 5] = [
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-access-token",
];

pub const GUARDED: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Whether a name with `-` for every `_`, in small letters, is never forwarded.
pub fn is_restricted(folded: &str) -> bool {
    let is_listed = RESTRICTED
        .split_ascii_whitespace()
        .any(|name| name == folded);
    let is_prefixed = PREFIXES.iter().any(|prefix| folded.starts_with(prefix));
    !RELAYED.contains(&folded) && (is_listed || is_prefixed)
}
