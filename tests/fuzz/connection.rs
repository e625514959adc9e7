//! Any lines of `Connection`: what they list is never captured, and what they do not list is.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderName, HeaderValue, header::CONNECTION};
use mcp_forward::CaptureLayer;

use super::capture;

/// Whether a request with these lines is refused where `names` are read (RFC 9110 section 7.6.1).
pub fn refuses(headers: &HeaderMap, names: &[HeaderName]) -> bool {
    let lines = headers.get_all(CONNECTION).iter();
    let lines: Vec<_> = lines.map(HeaderValue::as_bytes).collect();
    let is_readable = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let listed = listed(&lines);
    let usual = ["close", "keep-alive", "upgrade", ""];
    let unusual = listed.iter().filter(|token| !usual.contains(&&***token));
    !lines.concat().iter().all(is_readable)
        || names
            .iter()
            .any(|name| listed.iter().any(|token| token == name.as_str()))
        || unusual.count() > 9
}

fn listed(lines: &[&[u8]]) -> Vec<String> {
    let tokens = lines
        .iter()
        .flat_map(|line| line.split(|byte| *byte == b','));
    let token = |token: &[u8]| String::from_utf8_lossy(token.trim_ascii()).to_ascii_lowercase();
    tokens.map(token).collect()
}

/// On the first line the names that are read, parted by spaces; every other line is one of `Connection`.
/// Whether the request was let through.
pub fn check(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let names = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let names = names.split(' ').filter(|name| !name.is_empty());
    let Ok(layer) = CaptureLayer::for_names(names).build() else {
        return false;
    };
    let lines: Vec<_> = lines
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .collect();
    let mut headers = HeaderMap::new();
    for name in layer.names() {
        headers.append(name, HeaderValue::from_static("v"));
    }
    for line in &lines {
        headers.append(CONNECTION, line.clone());
    }
    let refused = refuses(&headers, layer.names());
    match capture(&layer, headers) {
        Ok((inbound, _)) => {
            assert!(!refused);
            let captured: BTreeSet<_> = inbound.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(captured.len(), layer.names().len());
            let lines: Vec<_> = lines.iter().map(HeaderValue::as_bytes).collect();
            assert!(
                listed(&lines)
                    .iter()
                    .all(|token| !captured.contains(&**token))
            );
            true
        }
        Err(status) => {
            assert!(refused, "{status}");
            assert_eq!(status, 400);
            false
        }
    }
}
