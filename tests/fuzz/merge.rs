//! Any request, any rules: what leaves is what the rules make of it, by every way out.

use http::{HeaderMap, Request, Response};
use mcp_forward::{
    CaptureLayer, ClientFactory, ConnectErrorKind, ForwardLayer, Inbound, OutboundError,
    OutboundErrorKind as Kind, Upstream,
};
use tower::{Layer, ServiceExt, service_fn};

use super::{
    capture,
    config::Config,
    headers, identity,
    model::{MAX_TOTAL, MAX_VALUE, Model, by_name},
    oracle::done,
};

/// A configuration, an empty line, and the caller's headers; whether anything of theirs was sent.
pub fn check(text: &[u8]) -> bool {
    let end = text.windows(2).position(|bytes| bytes == b"\n\n");
    let end = end.unwrap_or(text.len());
    let config = Config::read(&text[..end]);
    let Ok(upstream) = config.builder().build() else {
        return false;
    };
    let layer = CaptureLayer::for_upstreams([&upstream]);
    let Ok(layer) = layer.max_value(MAX_VALUE).max_total(MAX_TOTAL).build() else {
        return false;
    };
    let sent = headers(text.get(end + 2..).unwrap_or_default());
    let model = Model {
        config: &config,
        sent: &sent,
    };
    let refused = model.refused(layer.names());
    let inbound = match capture(&layer, sent.clone()) {
        Ok(inbound) => inbound,
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
