//! One secret, the canary, in every place that can hold one: no public type prints it, and no log
//! has it, whatever comes back from the upstream.
//!
//! `public_types.txt` lists the public types with their auto traits. The list of what *is* public is
//! read out of the source (`pub struct`, `enum`, `union`, `trait` at the start of a line): rustdoc's JSON
//! needs a nightly compiler and a build of its own. `public-api.txt` comes from it (`.ci/run`), and has
//! to have the same names; it lacks the auto traits, and where in the source a type is.
#![cfg(all(
    feature = "axum",
    feature = "hmac",
    feature = "session",
    feature = "tracing"
))]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/canary.rs"]
mod canary;
#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::{Debug, Display},
    fs,
    future::Pending,
    marker::PhantomPinned,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::atomic::AtomicBool,
    task::{Context, Poll},
};

use axum::extract::FromRequestParts;
use bytes::Bytes;
use canary::{CANARY, PLACES, base64, check, log};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mcp::{Kind, Server};
use mcp_forward::{
    BoxClientFactory, BuildError, CaptureLayer, Challenge, ClientFactory, ConnectError,
    ConnectErrorKind, ForwardLayer, ForwardedInternally, Inbound, InboundExt, InternalForward,
    InternalForwardLayer, Mistake, MistakeKind, OnConflict, OriginGuardLayer, Outbound,
    OutboundError, OutboundErrorKind, ProbeLayer, Refusal, RefusalLayer, Relay, Rule, ServerId,
    ServerIdLayer, SessionLayer, Upstream, outbound, refusal, rmcp, server_id, task,
};
use support::{HttpClient, closed, http_client, http2_client, identity, serve};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::{
    classify::{ServerErrorsAsFailures, SharedClassifier},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    trace::{DefaultMakeSpan, TraceLayer},
};
use tracing::{Level, Span};

#[test]
fn the_check_sees_the_canary_in_any_dress() {
    let value = HeaderValue::from_static(CANARY);
    let basic = base64(format!("user:{CANARY}").as_bytes());
    for text in [
        format!("{value:?}"),
        format!("{:#?}", CANARY.as_bytes()),
        format!("{:?}", Bytes::from_static(CANARY.as_bytes())),
        format!("Basic {basic}"),
        CANARY[..8].to_owned(),
        CANARY[5..13].to_owned(),
    ] {
        let seen = std::panic::catch_unwind(|| check("it", &text));
        assert!(seen.is_err(), "{text}");
    }
    assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    assert_eq!(base64(b"fooba"), "Zm9vYmE");
}

/// What a type implements: the methods of `Probe` itself win over those of `Lacks` where their bound
/// holds, so a type that lacks a trait is told as well.
struct Probe<T>(Vec<T>);

trait Lacks {
    fn send(&self) -> bool {
        false
    }

    fn sync(&self) -> bool {
        false
    }

    fn unpin(&self) -> bool {
        false
    }

    fn cloned(&self) -> bool {
        false
    }

    fn shown(&self) -> Vec<String> {
        Vec::new()
    }
}

impl<T> Lacks for Probe<T> {}

impl<T: Send> Probe<T> {
    fn send(&self) -> bool {
        true
    }
}

impl<T: Sync> Probe<T> {
    fn sync(&self) -> bool {
        true
    }
}

impl<T: Unpin> Probe<T> {
    fn unpin(&self) -> bool {
        true
    }
}

impl<T: Clone> Probe<T> {
    fn cloned(&self) -> bool {
        true
    }
}

impl<T: Display> Probe<T> {
    fn shown(&self) -> Vec<String> {
        let texts = self.0.iter();
        texts
            .flat_map(|it| [format!("{it}"), format!("{it:#}")])
            .collect()
    }
}

#[test]
fn the_probe_sees_what_a_type_lacks() {
    let p = Probe(vec![(Rc::new(()), PhantomPinned, AtomicBool::default())]);
    let lacks = [p.send(), p.sync(), p.unpin(), p.cloned()];
    assert_eq!((lacks, p.shown().len()), ([false; 4], 0));
    let p = Probe(vec![0]);
    let has = [p.send(), p.sync(), p.unpin(), p.cloned()];
    assert_eq!((has, p.shown().len()), ([true; 4], 2));
}

/// The table, type by type: what each implements, by its path in the source.
#[derive(Default)]
struct Table(BTreeMap<String, String>);

impl Table {
    /// Checks every value of a type, and notes what the type implements.
    fn row<T: Debug>(&mut self, probe: &Probe<T>, traits: [bool; 4], displayed: Vec<String>) {
        let name = std::any::type_name::<T>();
        assert!(!probe.0.is_empty(), "{name} has no value here");
        let debugged = probe.0.iter();
        let debugged = debugged.flat_map(|it| [format!("{it:?}"), format!("{it:#?}")]);
        for text in debugged.chain(displayed) {
            assert!(!text.is_empty(), "{name} prints nothing");
            check(name, &text);
        }
        let name = name.split('<').next().unwrap();
        let name = name.strip_prefix("mcp_forward::").unwrap();
        let names = ["Send", "Sync", "Unpin", "Clone"];
        let traits = names.iter().zip(traits);
        let traits = traits.map(|(name, has)| if has { *name } else { "-" });
        let earlier = self
            .0
            .insert(name.to_owned(), traits.collect::<Vec<_>>().join(" "));
        assert_eq!(earlier, None, "{name} has two rows");
    }
}

/// Every public type and trait in the source below `folder`, by its path; `true` for a trait.
fn public(folder: &Path, module: &str, found: &mut BTreeMap<String, bool>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let inner = match stem {
            "lib" | "mod" => module.to_owned(),
            _ => format!("{module}{stem}::"),
        };
        if path.is_dir() {
            public(&path, &inner, found);
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("pub") {
                continue;
            }
            let mut words = words.skip_while(|word| ["unsafe", "auto"].contains(word));
            let (kind, name) = (words.next(), words.next().unwrap_or_default());
            if !matches!(kind, Some("struct" | "enum" | "union" | "trait")) {
                continue;
            }
            let end = name.find(|byte: char| !byte.is_alphanumeric() && byte != '_');
            let name = &name[..end.unwrap_or(name.len())];
            found.insert(format!("{inner}{name}"), kind == Some("trait"));
        }
    }
}

/// `public_types.txt`, without its comments.
fn table() -> BTreeMap<String, String> {
    let lines = include_str!("public_types.txt").lines();
    let rows = lines.filter(|line| !line.starts_with('#') && !line.is_empty());
    let rows = rows.map(|row| {
        let (name, traits) = row.split_once(' ').unwrap();
        (name.to_owned(), traits.trim().to_owned())
    });
    rows.collect()
}

fn printed(table: &BTreeMap<String, String>) -> String {
    let rows = table
        .iter()
        .map(|(name, traits)| format!("{name:<44} {traits}\n"));
    rows.collect()
}

#[test]
fn the_table_lists_every_public_type() {
    let mut found = BTreeMap::new();
    public(Path::new("src"), "", &mut found);
    assert!(found.len() > 30, "{found:?}");
    let table = table();
    let listed = table
        .iter()
        .map(|(name, traits)| (name.clone(), traits == "trait"));
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), found);

    let last = |path: &str| path.rsplit("::").next().unwrap_or(path).to_owned();
    let items = include_str!("../public-api.txt")
        .lines()
        .filter_map(|line| {
            let line = line.trim_start_matches("#[non_exhaustive] ");
            let kinds = ["pub struct ", "pub enum ", "pub union ", "pub trait "];
            let item = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
            let path = item.split(['<', '(', ' ']).next()?;
            Some(path.trim_end_matches(':'))
        });
    let paths: Vec<&str> = items.collect();
    // What is at the root may stand in its module as well.
    let is_again = |path: &str| {
        let root = format!("mcp_forward::{}", last(path));
        path != root && paths.contains(&root.as_str())
    };
    let mut reachable: Vec<_> = paths
        .iter()
        .filter(|path| !is_again(path))
        .map(|path| last(path))
        .collect();
    let mut names: Vec<_> = found.keys().map(|path| last(path)).collect();
    names.sort();
    reachable.sort();
    assert_eq!(
        reachable, names,
        "`.ci/run` says how `public-api.txt` is made"
    );
}

/// A service that never answers, and a body; both have every trait of the table.
#[derive(Clone, Debug)]
struct Quiet;

impl<B> Service<Request<B>> for Quiet {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pending<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::pending()
    }
}

/// An upstream with the canary in its URL and in a static header.
fn upstream(url: &str) -> Upstream {
    Upstream::builder("up", format!("{url}?key={CANARY}"))
        .rule(Rule::credential("authorization"))
        .rule(Rule::new("x-token").to("x-up-token").bearer())
        .allow("x-user")
        .allow("x-subject")
        .allow_credential("cookie")
        .rule(Rule::new("x-many").multi())
        .rule(Rule::new("x-both").on_conflict(OnConflict::Caller))
        .set("x-static", CANARY)
        .set("x-both", CANARY)
        .build()
        .unwrap()
}

fn capturing(upstream: &Upstream) -> CaptureLayer {
    CaptureLayer::for_upstreams([upstream])
        .attest("x-subject", |_| Some(CANARY.into()))
        .max_value(1_024)
        .build()
        .unwrap()
}

/// A caller's request, with the canary in its body too.
fn request(uri: impl AsRef<str>, lines: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post(uri.as_ref());
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    request.body(Full::from(CANARY)).unwrap()
}

fn bearer() -> String {
    format!("Bearer {CANARY}")
}

/// Mistakes around the canary, in whatever is configured.
fn build_errors() -> Vec<BuildError> {
    let line = format!("authorization: Bearer {CANARY}");
    let ended = format!("{CANARY}\n");
    let builder = || Upstream::builder("up", "https://up.example/mcp");
    let mut errors = vec![
        Upstream::builder(format!("up {CANARY}"), "https://up.example/").build(),
        builder().set(&line, CANARY).allow(&line).build(),
        builder().set("x-a", &ended).build(),
        builder().set("x-a", format!(" {CANARY}")).build(),
        builder().set("host", CANARY).build(),
        builder()
            .set("x-a", CANARY)
            .set("x-a", CANARY)
            .set("x_a", CANARY)
            .build(),
        builder().set("x-a", CANARY).allow("x-a").build(),
        builder()
            .rule(Rule::credential(&line).to(&line).only_with(&line))
            .build(),
    ];
    errors.extend(PLACES.map(|url| {
        Upstream::builder("up", url)
            .set("authorization", CANARY)
            .build()
    }));
    let mut errors: Vec<_> = errors.into_iter().map(Result::unwrap_err).collect();

    let up = || upstream("https://up.example/mcp");
    let other = upstream("https://other.example/mcp");
    let captures = [
        CaptureLayer::for_upstreams([&up(), &other]),
        CaptureLayer::for_upstreams([&up()]).allow_fan_out(&line),
        CaptureLayer::for_upstreams([&up()]).attest(&line, |_| Some(CANARY.into())),
        CaptureLayer::for_upstreams([&up()]).attest("x-a", |_| Some(CANARY.into())),
        CaptureLayer::for_names([&line]),
    ];
    errors.extend(captures.map(|builder| builder.build().unwrap_err()));

    let guard = OriginGuardLayer::builder;
    let guards = [
        guard().allow_host(PLACES[0]),
        guard().allow_host(format!("user:{CANARY}@host.example")),
        guard().allow_origin(PLACES[0]).allow_origin(PLACES[1]),
        guard().allow_origin(&line),
    ];
    errors.extend(guards.map(|builder| builder.build().unwrap_err()));
    errors.push(InternalForward::new([(&*line, CANARY)]).unwrap_err());
    let layer = ServerIdLayer::for_path(&line).unscoped_paths(PLACES);
    errors.push(layer.param(&line).build().unwrap_err());
    errors
}

/// What goes wrong when the headers are merged.
async fn outbound_errors() -> Vec<OutboundError> {
    let up = upstream("https://up.example/mcp");
    let required = Upstream::builder("other", "https://up.example/mcp");
    let required = required
        .rule(Rule::new("x-user").required())
        .build()
        .unwrap();
    let user = support::capture(&[&up], [("x-user", CANARY)]).await;
    let bound = format!("NTLM {CANARY}");
    let bound = support::capture(&[&up], [("authorization", &bound)]).await;
    let spaced = format!("{CANARY} {CANARY}");
    let spaced = support::capture(&[&up], [("x-token", &spaced)]).await;
    let elsewhere = Upstream::builder("else", "https://else.example/mcp");
    let elsewhere = elsewhere.allow("x-else").build().unwrap();
    let url = up.url().to_string();
    let mut errors = Vec::new();
    for (upstream, url, inbound) in [
        (&up, url.as_str(), None),
        (
            &up,
            PLACES[1].strip_prefix("http://elsewhere.example").unwrap(),
            None,
        ),
        (&up, &url, Some(bound)),
        (&up, &url, Some(spaced)),
        (&required, &url, Some(Inbound::empty())),
        (&elsewhere, "https://else.example/mcp", Some(user.clone())),
    ] {
        let mut request = request(url, &[]);
        if let Some(inbound) = inbound {
            inbound.attach(request.extensions_mut());
        }
        let error = ForwardLayer::new(upstream)
            .layer(Quiet)
            .oneshot(request)
            .await;
        errors.push(
            error
                .unwrap_err()
                .downcast_ref::<OutboundError>()
                .unwrap()
                .clone(),
        );
    }
    let mut full = HeaderMap::new();
    for number in 0..24_576 {
        let name = HeaderName::try_from(format!("x-{number}")).unwrap();
        full.insert(name, HeaderValue::from_static(CANARY));
    }
    let outbound = identity().connect_for(&up, &user).await.unwrap();
    errors.push(outbound.apply(&mut full).unwrap_err());
    errors
}

/// Clients of an upstream that says the canary wherever it can, and what goes wrong with it.
async fn rmcp_values(inbound: &Inbound) -> (Vec<rmcp::Client>, Vec<rmcp::Error>, Vec<Refusal>) {
    let server = Server::start(Kind::Sessions).await;
    let up = upstream(&server.url());
    let factory = rmcp::Factory::builder().build().unwrap();
    let mut errors = Vec::new();
    let mut clients = Vec::new();
    // While it connects, and while it is called.
    for rpc in ["initialize", "tools/call"] {
        for status in [200, 307, 401, 403, 404, 429, 500] {
            for content_type in ["application/json", "text/event-stream", "text/html"] {
                for challenged in [true, false] {
                    server.intercept(move |seen| {
                        let challenge = format!("Bearer error_description=\"{CANARY}\"");
                        let lines = [
                            ("content-type", content_type),
                            ("location", PLACES[2]),
                            ("x-echo", CANARY),
                            ("www-authenticate", &challenge),
                        ];
                        let lines = &lines[..if challenged { 4 } else { 3 }];
                        (seen.rpc() == rpc).then(|| mcp::answer(status, lines, CANARY))
                    });
                    match factory.connect_for(&up, inbound).await {
                        Ok(client) => {
                            let call = mcp::call("any", serde_json::json!({ "a": CANARY }));
                            errors.extend(client.call_tool(call).await.err());
                            clients.push(client);
                        }
                        Err(error) => {
                            check("no client", &format!("{error} {error:?}"));
                            let source = std::error::Error::source(&error).unwrap();
                            errors.push(source.downcast_ref::<rmcp::Error>().unwrap().clone());
                        }
                    }
                }
            }
        }
    }
    server.intercept(|_| None);
    let client = factory.connect_for(&up, inbound).await.unwrap();
    let text = serde_json::json!({ "text": CANARY });
    let failed = client.call_tool(mcp::call("fail", text)).await;
    errors.push(failed.unwrap_err());
    server.stop();
    let failed = client
        .call_tool(mcp::call("any", serde_json::json!({ "a": CANARY })))
        .await;
    errors.push(failed.unwrap_err());
    let refusals = errors.iter().filter_map(rmcp::Error::refusal);
    let refusals = refusals.cloned().collect();
    (clients, errors, refusals)
}

async fn connect_errors(inbound: &Inbound) -> Vec<ConnectError> {
    let up = upstream("https://up.example/mcp");
    let fails = |_: Outbound| async { Err::<(), BoxError>(PLACES[1].into()) };
    vec![
        fails.connect_for(&up, inbound).await.unwrap_err(),
        fails.connect(&up).await.unwrap_err(),
    ]
}

/// The server id: the canary is the server, the key, its id, and in the message.
async fn server_ids(t: &mut Table) {
    let builder = ServerIdLayer::for_path("/servers/{id}/mcp").unscoped_paths(["/mcp"]);
    let layer = builder.build().unwrap();
    let p = Probe(vec![
        ServerIdLayer::for_path(CANARY)
            .unscoped_paths([CANARY])
            .param(CANARY),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let path = format!("/servers/{CANARY}/mcp");
    let message = || {
        let message = format!(r#"{{"method":"{CANARY}"}}"#);
        Request::post(&path)
            .body(Full::<Bytes>::from(message))
            .unwrap()
    };
    let mut service = layer.layer(Quiet);
    let p = Probe(vec![
        service.call(message()),
        service.call(request("/", &[])),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let (come, mut came) = tokio::sync::mpsc::unbounded_channel();
    let keeping = service_fn(move |request: Request<server_id::Body<Full<Bytes>>>| {
        come.send(request).unwrap();
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    let worker = InternalForwardLayer::for_peers(|_: &http::request::Parts| true);
    let mut marked = message();
    let mark = HeaderValue::from_static(CANARY);
    marked.headers_mut().insert("x-forwarded-internally", mark);
    let service = worker.layer(layer.layer(keeping));
    service.oneshot(marked).await.unwrap();
    let (parts, body) = came.recv().await.unwrap().into_parts();
    let p = Probe(vec![parts.extensions.get::<ServerId>().unwrap().clone()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![
        *parts.extensions.get::<ForwardedInternally>().unwrap(),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![body, server_id::Body::default()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![layer]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());

    let forward = InternalForward::new([(CANARY, CANARY.repeat(2))]).unwrap();
    let keys = InternalForwardLayer::for_keys(&forward);
    let mut service = keys.layer(Quiet);
    let p = Probe(vec![service.call(message())]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![keys, worker]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let session = Request::post(&path)
        .header("mcp-session-id", CANARY)
        .header("mcp-session-id", CANARY);
    let error = forward
        .sign(&mut session.body(CANARY).unwrap())
        .unwrap_err();
    let p = Probe(vec![error]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![error.kind()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![forward]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
}

#[tokio::test]
async fn no_public_type_prints_it() {
    let mut t = Table::default();
    let url = "https://up.example/mcp";
    let up = upstream(url);
    let authorization = bearer();
    let good = [
        ("host", "localhost"),
        ("authorization", &authorization),
        ("x-user", CANARY),
    ];
    let twice = [good[0], good[1], good[1]];
    let captured = [good[1], good[2], ("x-many", CANARY), ("x-many", CANARY)];
    let alice = support::capture(&[&up], captured).await;
    let attached = |uri: &str| {
        let mut request = request(uri, &good);
        alice.clone().attach(request.extensions_mut());
        request
    };

    // What is configured.
    let p = Probe(vec![up.clone()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![
        Upstream::builder(CANARY, CANARY)
            .allow(CANARY)
            .set(CANARY, CANARY)
            .set("x-a", CANARY),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let rule = Rule::new(CANARY)
        .to(CANARY)
        .only_with(CANARY)
        .bearer()
        .multi()
        .required();
    let p = Probe(vec![rule, Rule::credential(CANARY)]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![OnConflict::Static, OnConflict::Caller]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let layer = capturing(&up);
    let p = Probe(vec![
        CaptureLayer::for_upstreams([&up]).allow_fan_out(CANARY),
        CaptureLayer::for_names([CANARY]).attest(CANARY, |_| Some(CANARY.into())),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![layer.clone()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![
        OriginGuardLayer::builder()
            .allow_host(CANARY)
            .allow_origin(CANARY),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![OriginGuardLayer::loopback()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![ForwardLayer::new(&up).whole_origin()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let text = CANARY.to_owned();
    let factory = move |_: Outbound| std::future::ready(Ok::<_, BoxError>(text.clone()));
    let p = Probe(vec![BoxClientFactory::new(factory)]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());

    let secret = reqwest::header::HeaderValue::from_static(CANARY);
    let http = || {
        let headers = [(http::header::AUTHORIZATION, secret.clone())];
        let headers = headers.into_iter().collect();
        reqwest::Client::builder().default_headers(headers)
    };
    let p = Probe(vec![rmcp::Factory::builder().http(http())]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let factory = rmcp::Factory::builder().http(http()).build().unwrap();
    let p = Probe(vec![rmcp::Proxy::new([&up], factory.clone()).unwrap()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![factory]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());

    // What is carried.
    let p = Probe(vec![alice.clone(), alice.compact(), Inbound::empty()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![Full::<Bytes>::default().with_inbound(alice.clone())]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![identity().connect_for(&up, &alice).await.unwrap()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());

    // The services, their futures and bodies, on the good path and on the bad one.
    let mut service = layer.layer(Quiet);
    let p = Probe(vec![
        service.call(request("/", &good)),
        service.call(request("/", &twice)),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let rejected = service.call(request("/", &twice)).await.unwrap();
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let answering = service_fn(|_: Request<Full<Bytes>>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::default())))
    });
    let answered = layer
        .layer(answering)
        .oneshot(request("/", &good))
        .await
        .unwrap();
    let p = Probe(vec![rejected.into_body(), answered.into_body()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let sessions = SessionLayer::bind(|_| Some(CANARY.to_owned())).pin();
    let mut service = sessions.layer(Quiet);
    let foreign = [good[0], ("mcp-session-id", CANARY)];
    let p = Probe(alice.clone().sync_scope(|| {
        vec![
            service.call(request("/", &good)),
            service.call(request("/", &foreign)),
        ]
    }));
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![sessions]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let mut service = OriginGuardLayer::loopback().layer(Quiet);
    let rebound = [("host", CANARY), ("origin", PLACES[1])];
    let p = Probe(vec![
        service.call(request("/", &good)),
        service.call(request("/", &rebound)),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let mut service = ForwardLayer::new(&up).layer(Quiet);
    let p = Probe(vec![
        service.call(attached(&up.url().to_string())),
        service.call(request("/", &good)),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let mut service = Relay::new(&up, Quiet);
    let p = Probe(vec![
        service.call(attached("/")),
        service.call(request("/", &good)),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![outbound::Body::<Full<Bytes>>::default()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let mut removed = Vec::new();
    for location in PLACES {
        let redirecting = service_fn(move |_: Request<Full<Bytes>>| async move {
            let response = Response::builder().status(307).header("location", location);
            Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
        });
        let service = ForwardLayer::new(&up).layer(redirecting);
        let response = service
            .oneshot(attached(&up.url().to_string()))
            .await
            .unwrap();
        let location = response.extensions().get::<outbound::RemovedLocation>();
        removed.push(location.unwrap().clone());
    }
    let p = Probe(removed);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());

    // What comes back.
    let outbound = identity().connect_for(&up, &alice).await.unwrap();
    let told = support::headers([("www-authenticate", CANARY)]);
    let refusal = outbound.refusal(http::StatusCode::UNAUTHORIZED, &told);
    let p = Probe(vec![refusal.unwrap()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let url = format!("https://proxy.example/{CANARY}");
    let p = Probe(vec![
        Challenge::rewrite(url).unwrap(),
        Challenge::rewrite_with(|_, _| Some(CANARY.to_owned())),
        Challenge::relay(),
        Challenge::omit(),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let layer = RefusalLayer::new();
    let mut service = layer.layer(Quiet);
    let p = Probe(vec![
        service.call(attached("/")),
        service.call(request("/", &good)),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![refusal::HeldBody::<Full<Bytes>>::default()]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![layer]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let target = up.clone();
    let layer = ProbeLayer::new(Quiet, move |_| [target.clone()]).fail_closed();
    let mut service = layer.layer(Quiet);
    let p = Probe(vec![
        service.call(attached("/")),
        service.call(request("/", &good)),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![service]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(vec![layer]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    server_ids(&mut t).await;

    // What goes wrong.
    let errors = build_errors();
    let mistakes: Vec<Mistake> = errors
        .iter()
        .flat_map(BuildError::mistakes)
        .cloned()
        .collect();
    let p = Probe(errors);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let kinds: Vec<MistakeKind> = mistakes.iter().map(Mistake::kind).collect();
    let p = Probe(mistakes);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(kinds);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let errors = outbound_errors().await;
    let kinds: Vec<OutboundErrorKind> = errors.iter().map(OutboundError::kind).collect();
    let p = Probe(errors);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let expected = [
        OutboundErrorKind::NoInbound,
        OutboundErrorKind::NotAbsolute,
        OutboundErrorKind::Invalid,
        OutboundErrorKind::Invalid,
        OutboundErrorKind::Missing,
        OutboundErrorKind::NotCaptured,
        OutboundErrorKind::TooManyHeaders,
    ];
    assert_eq!(kinds, expected);
    let p = Probe(kinds);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let errors = connect_errors(&alice).await;
    let kinds: Vec<ConnectErrorKind> = errors.iter().map(ConnectError::kind).collect();
    let p = Probe(errors);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(kinds);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let (clients, errors, refusals) = rmcp_values(&alice).await;
    assert!(refusals.iter().any(|it| it.challenges().count() > 0));
    let kinds: Vec<rmcp::ErrorKind> = errors.iter().map(rmcp::Error::kind).collect();
    for kind in [
        rmcp::ErrorKind::Refused,
        rmcp::ErrorKind::Answered,
        rmcp::ErrorKind::Unreachable,
        rmcp::ErrorKind::Unusable,
    ] {
        assert!(kinds.contains(&kind), "{kind:?}");
    }
    let p = Probe(clients);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(errors);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let p = Probe(kinds);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());
    let mut parts = request("/", &good).into_parts().0;
    let p = Probe(vec![
        Inbound::from_request_parts(&mut parts, &())
            .await
            .unwrap_err(),
    ]);
    t.row(&p, [p.send(), p.sync(), p.unpin(), p.cloned()], p.shown());

    let mut expected = table();
    expected.retain(|_, traits| traits != "trait");
    let (expected, found) = (printed(&expected), printed(&t.0));
    assert_eq!(expected, found, "`public_types.txt` should have:\n{found}");
}

/// An upstream that gives back what it is told, wherever it can: in the answer's headers and body.
async fn echo(status: u16) -> SocketAddr {
    serve(service_fn(move |request: Request<Incoming>| async move {
        let mut response = Response::builder().status(status);
        for name in ["authorization", "x-user", "x-static"] {
            if let Some(value) = request.headers().get(name) {
                let value = value.to_str().unwrap();
                let challenge = format!("Bearer error_description=\"{value}\"");
                response = response.header("www-authenticate", challenge);
                response = response.header(format!("x-echo-{name}"), value);
            }
        }
        if status == 307 {
            response = response.header("location", PLACES[2]);
        }
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, BoxError>(response.body(Full::<Bytes>::from(body)).unwrap())
    }))
    .await
}

/// What an embedder puts around everything: every request header is in the span.
fn trace() -> TraceLayer<SharedClassifier<ServerErrorsAsFailures>> {
    TraceLayer::new_for_http().make_span_with(
        DefaultMakeSpan::new()
            .level(Level::TRACE)
            .include_headers(true),
    )
}

/// And around a client. Not the URI, whose query is the operator's secret.
fn outbound_span<B>(request: &Request<B>) -> Span {
    tracing::trace_span!("outbound", headers = ?request.headers())
}

async fn through_relay(up: &Upstream, client: HttpClient<outbound::Body<Incoming>>) -> SocketAddr {
    let capture = capturing(up);
    let names = capture.names().to_vec();
    let client = TraceLayer::new_for_http()
        .make_span_with(outbound_span)
        .layer(client);
    let stack = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new(names))
        .layer(trace())
        .layer(capture)
        .service(Relay::new(up, client));
    serve(stack).await
}

/// A handler that calls from a task of its own, and logs all that it is given of ours.
///
/// Here nobody but this crate says what is sensitive, so the span of the request has no headers.
async fn through_forward(up: &Upstream, client: HttpClient<Full<Bytes>>) -> SocketAddr {
    let capture = capturing(up);
    let client = TraceLayer::new_for_http()
        .make_span_with(outbound_span)
        .layer(client);
    let client = ForwardLayer::new(up).layer(client);
    let up = up.clone();
    let handler = service_fn(move |request: Request<Incoming>| {
        let (client, up) = (client.clone(), up.clone());
        async move {
            let inbound = Inbound::of(request.extensions());
            tracing::info!(?inbound, current = ?Inbound::current(), upstream = ?up, "handled");
            let failing = |outbound: Outbound| async move {
                tracing::info!(?outbound, "asked");
                Err::<(), BoxError>(PLACES[1].into())
            };
            let error = failing.connect(&up).await.unwrap_err();
            tracing::warn!(%error, ?error, "no client");
            let request = Request::post(up.url()).body(Full::from(CANARY)).unwrap();
            let mut answer = Response::new(Full::<Bytes>::default());
            match task::spawn(client.oneshot(request)).await.unwrap() {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let removed = head.extensions.get::<outbound::RemovedLocation>();
                    tracing::info!(?removed, status = %head.status, "answered");
                    body.collect().await.unwrap();
                    *answer.status_mut() = head.status;
                }
                Err(error) => {
                    tracing::warn!(%error, ?error, "no answer");
                    *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                }
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(capture)
        .service(handler);
    serve(stack).await
}

/// The statuses of two good calls, and of four that get no answer but ours.
async fn statuses(client: &HttpClient<Full<Bytes>>, proxy: SocketAddr) -> Vec<u16> {
    let token = bearer();
    let basic = format!("Basic {}", base64(format!("user:{CANARY}").as_bytes()));
    let [one, two] = ["a", "b"].map(|name| format!("{name}={CANARY}"));
    let spaced = format!("{CANARY} {CANARY}");
    let bound = format!("Negotiate {CANARY}");
    let long = CANARY.repeat(100);
    let many = ("x-many", CANARY);
    let user = ("x-user", CANARY);
    let good = [
        ("authorization", token.as_str()),
        user,
        ("cookie", &one),
        ("cookie", &two),
    ];
    let other = [
        ("authorization", basic.as_str()),
        ("x-token", CANARY),
        many,
        many,
    ];
    let mut statuses = Vec::new();
    for lines in [
        &good[..],
        &other,
        &[user, user],
        &[("x-token", &spaced)],
        &[("authorization", &bound)],
        &[("x-user", &long)],
    ] {
        let request = request(format!("http://{proxy}/mcp"), lines);
        let (head, body) = client.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if statuses.len() >= 2 || head.status == 502 {
            let body = String::from_utf8_lossy(&body);
            check("an answer of ours", &format!("{head:?} {body}"));
        }
        statuses.push(head.status.as_u16());
    }
    statuses
}

#[tokio::test]
async fn no_log_has_it() {
    // rmcp tells at this level what messages say, and the test beside this one has the canary in them.
    let log = log("trace,rmcp=off");
    let (closed, _socket) = closed();
    let mut upstreams = vec![closed];
    for status in [200, 401, 307] {
        upstreams.push(echo(status).await);
    }
    let callers = [http_client(), http2_client()];
    for (addr, (relayed, forwarded)) in
        upstreams
            .into_iter()
            .zip([(502, 500), (200, 200), (401, 401), (502, 307)])
    {
        let up = upstream(&format!("http://{addr}/mcp"));
        for http2 in [false, true] {
            let client = if http2 { http2_client() } else { http_client() };
            let relay = through_relay(&up, client).await;
            let client = if http2 { http2_client() } else { http_client() };
            let forward = through_forward(&up, client).await;
            for caller in &callers {
                let expected = [relayed, relayed, 400, 400, 400, 431];
                assert_eq!(statuses(caller, relay).await, expected);
                let expected = [forwarded, forwarded, 400, 500, 500, 431];
                assert_eq!(statuses(caller, forward).await, expected);
            }
        }
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for part in [
        // Every crate on the way is heard, at every level.
        "mcp_forward::events: captured",
        "mcp_forward::events: injected",
        "mcp_forward::events: relayed",
        "mcp_forward::events: rejected",
        "mcp_forward::events: not merged",
        "mcp_forward::events: the upstream redirects",
        "mcp_forward::events: the upstream cannot be reached",
        "mcp_forward::events: a redirect leaves the upstream",
        "TRACE hyper_util::",
        "h2::",
        "tower_http::trace",
        // The spans have the headers, on both sides.
        "request{method=POST",
        "outbound{headers=",
        "\"authorization\": Sensitive",
        "\"x-static\": Sensitive",
        "\"x-up-token\"",
    ] {
        assert!(log.contains(part), "{part}");
    }
    check("the log", &log);
}
