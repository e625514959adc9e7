//! Any request, any rules: what leaves is what the rules make of it, by every way out.

use std::{borrow::Cow, collections::BTreeSet};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request::Parts};
use mcp_forward::{
    CaptureLayer, ClientFactory, ConnectErrorKind, ForwardLayer, Inbound, OutboundError,
    OutboundErrorKind as Kind, Upstream, inbound::CaptureBuilder,
};
use tower::{Layer, ServiceExt, service_fn};

use super::{
    capture,
    config::{Config, folded},
    headers, identity,
    model::{MAX_TOTAL, MAX_VALUE, Model, by_name},
    oracle::done,
};

/// A configuration, an empty line, and the caller's headers, among which `@name: value` is what is attested;
/// whether anything of theirs was sent.
pub fn check(text: &[u8]) -> bool {
    let end = text.windows(2).position(|bytes| bytes == b"\n\n");
    let end = end.unwrap_or(text.len());
    let config = Config::read(&text[..end]);
    let Ok(upstream) = config.builder().build() else {
        return false;
    };
    let builder = CaptureLayer::for_upstreams([&upstream]);
    let builder = builder.max_value(MAX_VALUE).max_total(MAX_TOTAL);
    let Ok(layer) = builder.clone().build() else {
        return false;
    };
    let text = text.get(end + 2..).unwrap_or_default();
    let attested = attested(text);
    let builder = attested.iter().cloned().fold(builder, attest);
    let layer = match builder.build() {
        Ok(built) if is_attestable(&attested, layer.names()) => built,
        Err(_) if !is_attestable(&attested, layer.names()) => return false,
        built => panic!("{built:?} of {attested:?}"),
    };
    let sent = headers(text);
    let captured = capture(&layer, sent.clone());
    let Some(replaced) = replaced(&sent, &attested) else {
        assert_eq!(captured.err(), Some(500));
        return false;
    };
    let model = Model {
        config: &config,
        sent: &replaced,
    };
    let refused = model.refused(layer.names());
    let inbound = match captured {
        Ok((inbound, headers)) => {
            assert_eq!(by_name(&headers), by_name(&replaced));
            inbound
        }
        Err(status) => {
            assert!(refused.contains(&status), "{status}, not {refused:?}");
            return false;
        }
    };
    assert!(refused.is_empty(), "not refused: {refused:?}");
    let expected = model.expected();
    let merged = done(identity().connect_for(&upstream, &inbound));
    let merged = merged.map_err(|error| match error.kind() {
        ConnectErrorKind::Outbound(kind) => kind,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        merged
            .as_ref()
            .map(|it| by_name(it.iter()))
            .map_err(Kind::clone),
        expected.clone()
    );
    // Worst of all, the request has a copy of everything that the caller sent.
    let whole = expected.map(|lines| model.written(lines));
    let forwarded = forward(&upstream, inbound, sent.clone());
    assert_eq!(
        forwarded.as_ref().map(by_name).map_err(Kind::clone),
        whole.clone()
    );
    let (Ok(outbound), Ok(whole)) = (merged, whole) else {
        return false;
    };
    let mut applied = sent.clone();
    outbound.apply(&mut applied).unwrap();
    assert_eq!(by_name(&applied), whole);
    assert!(outbound.iter().all(|(_, value)| value.is_sensitive()));
    let names: Vec<_> = outbound.iter().map(|(name, _)| name).collect();
    let shown = format!("Outbound {{ upstream: \"up\", headers: {names:?} }}");
    assert_eq!(format!("{outbound:?}"), shown);
    outbound.iter().count() > config.statics.len()
}

/// What `ForwardLayer` sends for a request that has `headers` already.
fn forward(upstream: &Upstream, inbound: Inbound, headers: HeaderMap) -> Result<HeaderMap, Kind> {
    let service = ForwardLayer::new(upstream).layer(service_fn(|request: Request<()>| {
        std::future::ready(Ok::<_, OutboundError>(Response::new(
            request.into_parts().0.headers,
        )))
    }));
    let mut request = Request::post(upstream.url()).body(()).unwrap();
    *request.headers_mut() = headers;
    inbound.attach(request.extensions_mut());
    let response = done(service.oneshot(request)).map(Response::into_body);
    response.map_err(|error| error.downcast_ref::<OutboundError>().unwrap().kind())
}

/// What stands behind an `@`.
fn attested(text: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(text);
    let lines = text.split('\n').filter_map(|line| line.strip_prefix('@'));
    let lines = lines.map(|line| line.split_once(':').unwrap_or((line, "")));
    let lines = lines.map(|(name, value)| (name, value.strip_prefix(' ').unwrap_or(value)));
    lines
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn attest(builder: CaptureBuilder, (name, value): (String, String)) -> CaptureBuilder {
    builder.attest(name, move |_: &Parts| -> Option<Cow<'_, str>> {
        Some(Cow::Owned(value.clone()))
    })
}

/// Whether a rule reads each of them, and none is there twice.
fn is_attestable(attested: &[(String, String)], names: &[HeaderName]) -> bool {
    let unique: BTreeSet<_> = attested.iter().map(|(name, _)| folded(name)).collect();
    let is_read = |name: &str| {
        names
            .iter()
            .any(|read| name.eq_ignore_ascii_case(read.as_str()))
    };
    unique.len() == attested.len() && attested.iter().all(|(name, _)| is_read(name))
}

/// The caller's headers with what is attested in their place; `None` where that is no header value.
fn replaced(sent: &HeaderMap, attested: &[(String, String)]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in sent {
        if attested.iter().all(|(it, _)| folded(it) != folded(name)) {
            headers.append(name, value.clone());
        }
    }
    let mut total = 0;
    for (name, value) in attested {
        total += value.len();
        let has_edge = value.trim_ascii() != value;
        if has_edge || value.len() > MAX_VALUE || total > MAX_TOTAL {
            return None;
        }
        let value = HeaderValue::from_str(value).ok()?;
        if !value.is_empty() {
            headers.append(name.parse::<HeaderName>().ok()?, value);
        }
    }
    Some(headers)
}
