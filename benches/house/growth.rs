//! How cost grows: with a request's headers, with rules, with upstreams, and with sessions.

use std::{collections::HashMap, sync::Mutex};

use http::{HeaderValue, Request, Response};
use mcp_forward::{CaptureLayer, SessionLayer, Upstream};
use tower::{Layer, service_fn};

use crate::{
    chart::{Curve, Panel},
    layers::{propagate, propagate4, propagate16},
    measure::{Case, Measured, median},
    request::{
        Answer, Body, Connection, Head, PRESENT, bare, capture, captured, exchange, upstream,
    },
    table::{Report, number},
    ways::{by_hand, merge, posting, relay, unmerged},
};

/// A curve: its name, its cases `name, size`, and what each of them is added to.
type Line = (&'static str, fn(usize) -> String);

/// What the curves of one panel add, by size; a size that a curve has no case of is left out.
fn report(
    measured: &Measured,
    title: &'static str,
    unit: &'static str,
    sizes: &[usize],
    lines: &[Line],
) -> Report {
    let mut curves = Vec::new();
    for (name, bare) in lines {
        let cases = sizes.iter().map(|size| (*size, case(name, *size)));
        let cases = cases.filter(|(_, case)| measured.has(case));
        let point = |(size, case): (usize, String)| {
            let added = measured.added(&case, &bare(size));
            (size as f64, median(&added))
        };
        curves.push(Curve {
            name,
            points: cases.map(point).collect(),
        });
    }
    let names: Vec<_> = curves.iter().map(|curve| curve.name).collect();
    let mut text = format!("| {unit} | {} |\n|---|", names.join(" | "));
    text.push_str(&"---|".repeat(names.len()));
    text.push('\n');
    for size in sizes {
        let added = curves.iter().map(|curve| {
            let mut points = curve.points.iter();
            let point = points.find(|(at, _)| *at == *size as f64);
            point.map_or(String::new(), |(_, added)| number(*added))
        });
        let added: Vec<_> = added.collect();
        text.push_str(&format!("| {size} | {} |\n", added.join(" | ")));
    }
    text.push('\n');
    let panel = Panel {
        title,
        unit,
        curves,
    };
    Report {
        text,
        goals: Vec::new(),
        panel: Some(panel),
    }
}

fn case(name: &str, size: usize) -> String {
    format!("{name}, {size}")
}

const HEADERS: [usize; 7] = [1, 2, 5, 10, 20, 50, 100];
const CAPTURED: [&str; 1] = [PRESENT[0]];

/// Requests with so many headers, of which one is captured.
pub(crate) fn headers() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in HEADERS {
        let connection = || Connection::of(&CAPTURED, size);
        let mut plain = connection();
        let mut ours = connection();
        let mut peer = connection();
        let layer = capture(&CAPTURED).layer(bare());
        let propagated = propagate(bare(), CAPTURED[0]);
        cases.extend([
            Case::service(case("bare", size), bare(), move || plain.request()),
            Case::service(case("capture", size), layer, move || ours.request()),
            Case::service(case("PropagateHeader", size), propagated, move || {
                peer.request()
            }),
            posting(
                case("capture and relay", size),
                relay(&CAPTURED),
                connection(),
            ),
        ]);
    }
    cases
}

pub(crate) fn report_headers(measured: &Measured) -> Report {
    let bare = |size| case("bare", size);
    let lines: [Line; 3] = [
        ("capture", bare),
        ("PropagateHeader", bare),
        ("capture and relay", bare),
    ];
    let title = "Headers of a request, one captured";
    report(measured, title, "request headers", &HEADERS, &lines)
}

const RULES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// So many rules, and a request with 64 headers that they read; or with none of them.
pub(crate) fn rules() -> Vec<Case> {
    let names = |of: &str| -> [String; 64] { std::array::from_fn(|at| format!("x-{of}-{at}")) };
    let (sent, unsent) = (names("rule"), names("absent"));
    let request = || {
        let mut connection = Connection::with(names("rule"));
        move || connection.request()
    };
    let mut cases = vec![
        Case::service("bare", bare(), request()),
        unmerged("unmerged"),
    ];
    for size in RULES {
        let [present, absent] = [&sent, &unsent].map(|names| {
            let names: Vec<_> = names[..size].iter().map(String::as_str).collect();
            names
        });
        let layer = capture(&present);
        let inbound = captured(&layer, request()());
        let layers = [
            ("capture, present", layer),
            ("capture, absent", capture(&absent)),
        ];
        cases.extend(
            layers.map(|(name, layer)| {
                Case::service(case(name, size), layer.layer(bare()), request())
            }),
        );
        cases.push(by_hand(case("merge by hand", size), &inbound));
        cases.push(merge(case("merge", size), &upstream(&present), inbound));
    }
    let [a, b, c, d] = std::array::from_fn(|at| sent[at].clone());
    let [p, q, r, s]: [[String; 16]; 4] =
        std::array::from_fn(|part| std::array::from_fn(|at| sent[part * 16 + at].clone()));
    let sixteen = propagate16(bare(), p.clone());
    let all = propagate16(propagate16(propagate16(propagate16(bare(), p), q), r), s);
    let name = |size| case("PropagateHeader", size);
    cases.extend([
        Case::service(name(1), propagate(bare(), &a), request()),
        Case::service(name(4), propagate4(bare(), [a, b, c, d]), request()),
        Case::service(name(16), sixteen, request()),
        Case::service(name(64), all, request()),
    ]);
    cases
}

pub(crate) fn report_rules(measured: &Measured) -> Report {
    let bare = |_| "bare".to_owned();
    let unmerged = |_| "unmerged".to_owned();
    let lines: [Line; 5] = [
        ("capture, present", bare),
        ("PropagateHeader", bare),
        ("merge", unmerged),
        ("merge by hand", unmerged),
        ("capture, absent", bare),
    ];
    report(measured, "Rules of one upstream", "rules", &RULES, &lines)
}

const UPSTREAMS: [usize; 7] = [1, 3, 10, 30, 100, 300, 1000];

/// One layer for so many upstreams, and the merge for the first of them.
pub(crate) fn upstreams() -> Vec<Case> {
    let request = || {
        let more = "x-token-0".to_owned();
        let names = PRESENT.map(String::from).into_iter().chain([more]);
        let mut connection = Connection::with(names);
        move || connection.request()
    };
    let upstream = |at: usize, has_own: bool| -> Upstream {
        let url = format!("https://up-{at}.example/mcp");
        let upstream = Upstream::builder(format!("up-{at}"), url).allow(PRESENT[0]);
        let own = has_own.then(|| format!("x-token-{at}"));
        let upstream = own.iter().fold(upstream, |it, name| it.allow(name));
        upstream.build().unwrap()
    };
    let mut cases = vec![
        Case::service("bare", bare(), request()),
        unmerged("unmerged"),
    ];
    for size in UPSTREAMS {
        for (name, has_own) in [
            ("capture, a header each", true),
            ("capture, one for all", false),
        ] {
            let upstreams: Vec<_> = (0..size).map(|at| upstream(at, has_own)).collect();
            let layer = CaptureLayer::for_upstreams(&upstreams).build().unwrap();
            let inbound = captured(&layer, request()());
            let service = layer.layer(bare());
            cases.push(Case::service(case(name, size), service, request()));
            if has_own {
                cases.push(merge(case("merge for one", size), &upstreams[0], inbound));
            }
        }
    }
    cases
}

pub(crate) fn report_upstreams(measured: &Measured) -> Report {
    let bare = |_| "bare".to_owned();
    let lines: [Line; 3] = [
        ("capture, a header each", bare),
        ("capture, one for all", bare),
        ("merge for one", |_| "unmerged".to_owned()),
    ];
    let title = "Upstreams of one capture layer";
    report(measured, title, "upstreams", &UPSTREAMS, &lines)
}

const SESSIONS: [usize; 6] = [1, 10, 100, 1000, 10_000, 100_000];

/// A request in one of so many live sessions, each of another user.
pub(crate) fn sessions() -> Vec<Case> {
    let mut cases = vec![Case::service("bare", bare(), visits(SESSIONS[5]))];
    for size in SESSIONS {
        let layer = SessionLayer::bind_header(PRESENT[0]).unwrap();
        let layer = layer.max_sessions(size);
        // The service begins the session that the request asks for.
        let mut beginning = layer.layer(service_fn(|request: Head| {
            let id = request.headers()["x-begin"].clone();
            let response = Response::builder().header("mcp-session-id", id);
            std::future::ready(Answer::Ok(response.body(Body::default()).unwrap()))
        }));
        for user in 0..size {
            let mut request = visit(user);
            let id = request.headers_mut().remove("mcp-session-id").unwrap();
            request.headers_mut().insert("x-begin", id);
            exchange(&mut beginning, request);
        }
        assert_eq!(layer.live(), size);
        let known = (0..size).map(|user| (id(user).as_bytes().into(), user));
        let known: Mutex<HashMap<Box<[u8]>, usize>> = Mutex::new(known.collect());
        let found = service_fn(move |request: Head| {
            let id = request.headers()["mcp-session-id"].as_bytes();
            assert!(known.lock().unwrap().get(id).is_some());
            drop(request);
            std::future::ready(Answer::Ok(Response::default()))
        });
        cases.extend([
            Case::service(
                case("SessionLayer", size),
                layer.layer(bare()),
                visits(size),
            ),
            Case::service(case("a HashMap's get", size), found, visits(size)),
        ]);
    }
    cases
}

pub(crate) fn report_sessions(measured: &Measured) -> Report {
    let bare = |_| "bare".to_owned();
    let lines: [Line; 2] = [("SessionLayer", bare), ("a HashMap's get", bare)];
    report(measured, "Live sessions", "sessions", &SESSIONS, &lines)
}

/// As long as a UUID.
fn id(user: usize) -> HeaderValue {
    format!("{user:036}").parse().unwrap()
}

fn visit(user: usize) -> Head {
    let request = Request::post("/mcp")
        .header("mcp-session-id", id(user))
        .header(PRESENT[0], format!("user-{user:08}"));
    request.body(Body::default()).unwrap()
}

/// Requests in any of so many sessions, in no order.
fn visits(size: usize) -> impl FnMut() -> Head {
    let mut at = 0_usize;
    move || {
        // A prime above every size, so that all have their turn.
        at = (at + 7_368_787) % size;
        visit(at)
    }
}
