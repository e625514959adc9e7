//! `CaptureLayer` beside tower-http's layers, on the same request.

use std::sync::Arc;

use http::HeaderName;
use tower::{Layer, Service, ServiceBuilder};
use tower_http::{
    propagate_header::PropagateHeader,
    request_id::{MakeRequestUuid, SetRequestIdLayer},
};

use crate::{
    measure::{Case, Measured},
    request::{ABSENT, Connection, Head, PRESENT, bare, capture},
    table::{Goal::AtMost, Report, Row},
};

pub(crate) fn cases() -> Vec<Case> {
    fn plain<S: Service<Head> + 'static>(name: &str, service: S) -> Case {
        let mut connection = Connection::default();
        Case::service(name, service, move || connection.request())
    }
    fn keep_alive<S: Service<Head> + 'static>(name: &str, service: S) -> Case {
        let mut connection = Connection::keep_alive();
        Case::service(name, service, move || connection.request())
    }
    fn in_use<S: Service<Head> + 'static>(name: &str, service: S) -> Case {
        let mut connection = Connection::default();
        Case::service(name, service, move || {
            let mut request = connection.request();
            request.extensions_mut().insert("of an outer layer");
            request
        })
    }
    let ours = |names: &[&str]| capture(names).layer(bare());
    let request_id = SetRequestIdLayer::new(HeaderName::from_static("x-made-id"), MakeRequestUuid);
    let known_id = SetRequestIdLayer::new(HeaderName::from_static("x-user-id"), MakeRequestUuid);
    let handle: Arc<str> = Arc::from("handle");
    let extension = ServiceBuilder::new()
        .map_request(move |mut request: Head| {
            request.extensions_mut().insert(Arc::clone(&handle));
            request
        })
        .service(bare());
    let four = [PRESENT[0], PRESENT[1], PRESENT[2], PRESENT[3]];
    vec![
        plain("bare", bare()),
        plain("ours, 1 absent", ours(&ABSENT[..1])),
        plain("ours, 4 absent", ours(&ABSENT)),
        plain("ours, 1 present", ours(&PRESENT[..1])),
        plain("ours, 4 present", ours(&PRESENT[..4])),
        plain("ours, 16 present", ours(&PRESENT)),
        plain("peer, 1 absent", propagate(bare(), ABSENT[0])),
        plain("peer, 4 absent", propagate4(bare(), ABSENT)),
        plain("peer, 1 present", propagate(bare(), PRESENT[0])),
        plain("peer, 4 present", propagate4(bare(), four)),
        plain("peer, 16 present", propagate16(bare(), PRESENT)),
        plain("id, made", request_id.layer(bare())),
        plain("id, present", known_id.layer(bare())),
        plain("extension", extension),
        keep_alive("bare, keep-alive", bare()),
        keep_alive("ours, 1 absent, keep-alive", ours(&ABSENT[..1])),
        keep_alive("ours, 4 absent, keep-alive", ours(&ABSENT)),
        keep_alive("ours, 4 present, keep-alive", ours(&PRESENT[..4])),
        in_use("bare, in use", bare()),
        in_use("ours, 1 present, in use", ours(&PRESENT[..1])),
        in_use("ours, 4 present, in use", ours(&PRESENT[..4])),
    ]
}

pub(crate) fn report(measured: &Measured) -> Report {
    let row = |label, ours, peer, goal| Row::new(label, ours, peer, "bare").goal(AtMost(goal));
    let other = |label, ours, bare, peer| Row::new(label, ours, peer, "bare").over(bare);
    let keep_alive = |label, ours, peer| other(label, ours, "bare, keep-alive", peer);
    let in_use = |label, ours, peer| other(label, ours, "bare, in use", peer);
    let mut report = Report::default();
    let rows = [
        row("1, absent", "ours, 1 absent", "peer, 1 absent", 1.0),
        row("4, absent", "ours, 4 absent", "peer, 4 absent", 0.5),
        row("1, present", "ours, 1 present", "peer, 1 present", 1.6),
        row("4, present", "ours, 4 present", "peer, 4 present", 1.0),
        row("16, present", "ours, 16 present", "peer, 16 present", 0.6),
    ];
    report.added("captured headers", measured, &rows);
    let rows = [
        keep_alive(
            "1, absent; says `connection: keep-alive`",
            "ours, 1 absent, keep-alive",
            "peer, 1 absent",
        ),
        keep_alive(
            "4, absent; the same",
            "ours, 4 absent, keep-alive",
            "peer, 4 absent",
        ),
        keep_alive(
            "4, present; the same",
            "ours, 4 present, keep-alive",
            "peer, 4 present",
        ),
        in_use(
            "1, present; has an extension already, as behind axum",
            "ours, 1 present, in use",
            "peer, 1 present",
        ),
        in_use(
            "4, present; the same",
            "ours, 4 present, in use",
            "peer, 4 present",
        ),
    ];
    report.added("on other requests", measured, &rows);
    let cases = [
        ["`SetRequestIdLayer`, which makes an id", "id, made", "bare"],
        [
            "`SetRequestIdLayer`, which finds one",
            "id, present",
            "bare",
        ],
        ["one insert into empty extensions", "extension", "bare"],
    ];
    report.costs("beside them", measured, &cases);
    report
}

/// tower-http's layer for `name`, around `inner`.
pub(crate) fn propagate<S>(inner: S, name: impl AsRef<str>) -> PropagateHeader<S> {
    let name = HeaderName::from_bytes(name.as_ref().as_bytes()).unwrap();
    PropagateHeader::new(inner, name)
}

pub(crate) type Propagate4<S> =
    PropagateHeader<PropagateHeader<PropagateHeader<PropagateHeader<S>>>>;
pub(crate) type Propagate16<S> = Propagate4<Propagate4<Propagate4<Propagate4<S>>>>;

pub(crate) fn propagate4<S, N: AsRef<str>>(inner: S, [a, b, c, d]: [N; 4]) -> Propagate4<S> {
    propagate(propagate(propagate(propagate(inner, a), b), c), d)
}

pub(crate) fn propagate16<S, N: AsRef<str>>(inner: S, names: [N; 16]) -> Propagate16<S> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = names;
    let inner = propagate4(inner, [a, b, c, d]);
    let inner = propagate4(inner, [e, f, g, h]);
    propagate4(propagate4(inner, [i, j, k, l]), [m, n, o, p])
}
