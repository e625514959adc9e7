//! Any `WWW-Authenticate` of an upstream: the caller gets one of ours, or at most what RFC 6750 allows.

use std::{convert::Infallible, future::ready};

use http::{HeaderMap, HeaderValue, Request, Response, header::WWW_AUTHENTICATE};
use http_body_util::{BodyExt, Empty};
use mcp_forward::{Challenge, Inbound, Refusal, RefusalLayer, refusal::collect};
use tower::{Layer, ServiceExt, service_fn};

use super::{oracle::done, refusal};

const METADATA: &str = "https://proxy.example/.well-known/oauth-protected-resource";

/// On the first line `401` or `403`; every other line is one of the upstream's `WWW-Authenticate`. Whether
/// something of them was told.
pub fn check(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let status: u16 = if lines.next() == Some(b"403") {
        403
    } else {
        401
    };
    let mut headers = HeaderMap::new();
    for line in lines.filter_map(|line| HeaderValue::from_bytes(line).ok()) {
        headers.append(WWW_AUTHENTICATE, line);
    }
    let said: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().collect();
    let refusal = refusal(status, &headers);
    let kept: Vec<_> = said
        .iter()
        .filter(|line| line.len() <= 4096)
        .take(4)
        .copied()
        .collect();
    assert_eq!(refusal.challenges().collect::<Vec<_>>(), kept);
    let shown = format!(
        "Refusal {{ upstream: \"up\", status: {status}, fault: Caller, challenges: {} }}",
        kept.len()
    );
    assert_eq!(format!("{refusal:?}"), shown);
    assert_eq!(
        refusal.to_string(),
        format!("upstream `up` refused with {status}")
    );

    let omitted = told(Challenge::omit(), &refusal);
    let is_scope = omitted == ["Bearer error=\"insufficient_scope\""];
    assert!(
        is_scope || omitted == ["Bearer error=\"invalid_token\""][usize::from(status == 403)..]
    );
    assert!(!is_scope || has_said(&kept, "error", "insufficient_scope"));

    let relayed = told(Challenge::relay(), &refusal);
    match omitted.is_empty() || kept.is_empty() {
        true => assert_eq!(relayed, omitted),
        false => assert_eq!(relayed, kept),
    }

    let rewritten = told(Challenge::rewrite(METADATA).unwrap(), &refusal);
    assert_eq!(rewritten.len(), omitted.len());
    let Some(line) = rewritten.first() else {
        return false;
    };
    let line = line
        .to_str()
        .expect("not ASCII")
        .strip_prefix("Bearer ")
        .unwrap();
    let mut rest = line
        .strip_suffix(&format!("resource_metadata=\"{METADATA}\""))
        .unwrap();
    let mut is_told = false;
    for name in ["error", "scope"] {
        let Some(value) = rest.strip_prefix(name) else {
            continue;
        };
        let end = value[2..].find('"').unwrap() + 2;
        let (value, after) = (&value[2..end], &value[end..]);
        assert!(!value.is_empty() && value.len() <= 1024 && !value.contains('\\'));
        let is_ours = name == "error" && value == "invalid_token";
        assert!(is_ours || has_said(&kept, name, value), "{name}={value}");
        is_told |= !is_ours;
        rest = after.strip_prefix("\", ").unwrap();
    }
    assert_eq!(rest, "");
    is_told
}

/// The challenges of the answer to a caller whose request ends in `refusal`.
fn told(challenge: Challenge, refusal: &Refusal) -> Vec<HeaderValue> {
    let service = RefusalLayer::new()
        .challenge(challenge)
        .layer(service_fn(|_: Request<()>| {
            let again = refusal.clone();
            let call = async { Inbound::current().expect("no scope").report(again) };
            // What is collected is told once it is reported again.
            let ((), collected) = done(collect(call));
            assert_eq!(collected.len(), 1);
            Inbound::current()
                .expect("no scope")
                .report(collected[0].clone());
            ready(Ok::<_, Infallible>(Response::new(
                Empty::<bytes::Bytes>::new(),
            )))
        }));
    let mut request = Request::post("/mcp").body(()).unwrap();
    Inbound::empty().attach(request.extensions_mut());
    let (head, body) = done(service.oneshot(request)).unwrap().into_parts();
    assert_eq!(head.status, refusal.status());
    let message = match head.status.as_u16() {
        403 => "upstream `up` forbids this",
        _ => "upstream `up` wants another credential; renew it",
    };
    let body = done(body.collect()).unwrap().to_bytes();
    let expected =
        serde_json::json!({"jsonrpc": "2.0", "error": {"code": -32000, "message": message}});
    assert_eq!(body, expected.to_string());
    let mut names: Vec<_> = head.headers.keys().collect();
    names.retain(|name| !["content-type", "www-authenticate"].contains(&name.as_str()));
    assert!(names.is_empty(), "{names:?}");
    let lines = head.headers.get_all(WWW_AUTHENTICATE).iter();
    lines
        .inspect(|line| assert!(line.is_sensitive()))
        .cloned()
        .collect()
}

/// Whether some line has the parameter `name` with this value, in quotes or without.
fn has_said(lines: &[&HeaderValue], name: &str, value: &str) -> bool {
    let plain = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes);
        text.chars().filter(|c| !" \t\\".contains(*c)).collect()
    };
    let value = plain(value.as_bytes());
    lines.iter().any(|line| {
        let line = plain(line.as_bytes());
        let starts = line.to_ascii_lowercase();
        let mut starts = starts
            .match_indices(name)
            .map(|(at, _)| &line[at + name.len()..]);
        starts.any(|rest| {
            rest.strip_prefix('=')
                .is_some_and(|rest| rest.trim_start_matches('"').starts_with(&value))
        })
    })
}
