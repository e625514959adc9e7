//! The ways out, without a network: the merge into a request, and the relay.

use std::{convert::Infallible, hint::black_box, sync::Arc};

use http::{HeaderName, HeaderValue, Request, Response};
use mcp_forward::{CaptureLayer, ForwardLayer, Inbound, OriginGuardLayer, Relay, Rule, Upstream};
use tower::{Layer, Service, ServiceBuilder};

use crate::{
    measure::{Case, Measured},
    request::{Body, Connection, Head, PRESENT, bare, inbound, upstream},
    table::{Report, Row},
};

/// A request of an MCP client, as it stands before the caller's headers are put in.
fn outbound() -> Head {
    let request = Request::post("https://up.example/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("user-agent", "example-client/1.0")
        .header("mcp-session-id", "0123456789abcdef")
        .header("mcp-protocol-version", "2025-11-25");
    request.body(Body::default()).unwrap()
}

/// An upstream that gets four headers, one of them as a bearer token.
fn bearer() -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    let token = Rule::new(PRESENT[2]).to("authorization").bearer();
    let [a, b, _, c] = [PRESENT[0], PRESENT[1], PRESENT[2], PRESENT[3]];
    let builder = builder.allow(a).allow(b).rule(token).allow(c);
    builder.build().unwrap()
}

/// The headers of `inbound` that `upstream` gets, into a request that has five.
pub(crate) fn merge(name: impl Into<String>, upstream: &Upstream, inbound: Inbound) -> Case {
    let url = upstream.url().clone();
    let service = ForwardLayer::new(upstream).layer(bare());
    let mut case = Case::service("", service, move || {
        let mut request = outbound();
        request.uri_mut().clone_from(&url);
        request
    });
    Case::new(name, move |count| {
        inbound.clone().sync_scope(|| (case.run)(count))
    })
}

/// What [`merge`] is compared with.
pub(crate) fn unmerged(name: &str) -> Case {
    Case::service(name, bare(), outbound)
}

/// The least code that puts all headers of `inbound` into a request that has five.
pub(crate) fn by_hand(name: impl Into<String>, inbound: &Inbound) -> Case {
    let lines: Arc<[(HeaderName, HeaderValue)]> = inbound
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let service = ServiceBuilder::new()
        .map_request(move |mut request: Head| {
            let headers = request.headers_mut();
            headers.reserve(lines.len());
            for (name, value) in lines.iter() {
                headers.insert(name.clone(), value.clone());
            }
            request
        })
        .service(bare());
    Case::service(name, service, outbound)
}

/// Four headers of the current inbound into a request, and a relay.
pub(crate) fn cases() -> Vec<Case> {
    let value = inbound(&PRESENT[..4]);
    let moving = tower::service_fn(move |request: Head| {
        let (head, body) = request.into_parts();
        let mut outbound = Request::new(body);
        *outbound.method_mut() = head.method;
        *outbound.headers_mut() = head.headers;
        upstream_in_memory().call(outbound)
    });
    vec![
        unmerged("bare"),
        by_hand("by hand", &value),
        merge("4 headers", &upstream(&PRESENT[..4]), value.clone()),
        merge("4 headers, 1 bearer", &bearer(), value),
        posting("moved", moving, Connection::default()),
        posting("relayed", relay(&PRESENT[..4]), Connection::default()),
    ]
}

pub(crate) fn report(measured: &Measured) -> Report {
    let row = |label, ours| Row::new(label, ours, "by hand", "bare");
    let rows = [
        row("4 headers", "4 headers"),
        row("4 headers, one with `.bearer()`", "4 headers, 1 bearer"),
    ];
    let mut report = Report::default();
    report.added("merge and apply, by hand", measured, &rows);
    let rows = [Row::new(
        "20 headers, of which 4 go on",
        "relayed",
        "moved",
        "",
    )];
    report.times("relay in memory, headers moved", measured, &rows);
    report
}

/// An upstream that is no further than a function call: what remains is the relay itself.
fn upstream_in_memory<B: 'static>()
-> impl Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone {
    let lines = [
        ("content-type", "application/json"),
        ("content-length", "1024"),
        ("mcp-session-id", "0123456789abcdef"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ];
    tower::service_fn(move |request: Request<B>| {
        drop(black_box(request));
        let mut response = Response::new(Body::default());
        response.headers_mut().reserve(lines.len());
        for (name, value) in lines {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        async { Ok(response) }
    })
}

/// `CaptureLayer` and `Relay`, for an upstream that gets `names`.
pub(crate) fn relay(names: &[&str]) -> impl Service<Head> + use<> {
    let rules = upstream(names);
    let guard = OriginGuardLayer::builder().allow_host("mcp.example.com");
    let relay = Relay::new(&rules, upstream_in_memory()).origin_guard(guard.build().unwrap());
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    capture.layer(relay)
}

/// Sends the requests of `connection` through a service that needs a runtime's clock.
pub(crate) fn posting<S>(name: impl Into<String>, service: S, mut connection: Connection) -> Case
where
    S: Service<Head> + 'static,
{
    let mut case = Case::service("", service, move || {
        let mut request = connection.request();
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("http://mcp.example.com/mcp");
        request
    });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    Case::new(name, move |count| {
        let _entered = runtime.enter();
        (case.run)(count)
    })
}
