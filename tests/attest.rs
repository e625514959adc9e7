//! What a capture layer takes from the embedder, on several lines, and how much of it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{borrow::Cow, convert::Infallible};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use mcp_forward::{
    BuildError, CaptureLayer, ClientFactory, Inbound, MistakeKind, OnConflict, OutboundErrorKind,
    Rule, Upstream, inbound::CaptureBuilder,
};
use support::{
    OK, RawUpstream, headers, http_client, identity, lines, own_error, post, raw, serve, status,
};
use tower::{Layer, ServiceExt, service_fn};

fn upstream(rules: impl IntoIterator<Item = Rule>) -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    rules
        .into_iter()
        .fold(builder, mcp_forward::UpstreamBuilder::rule)
        .build()
        .unwrap()
}

fn kinds(built: Result<CaptureLayer, BuildError>) -> Vec<MistakeKind> {
    let error = built.unwrap_err();
    error
        .mistakes()
        .iter()
        .map(mcp_forward::Mistake::kind)
        .collect()
}

/// The inbound and the headers behind `layer`; or the status and body of its answer.
async fn through(
    layer: CaptureBuilder,
    sent: HeaderMap,
) -> Result<(Inbound, HeaderMap), (u16, Vec<u8>)> {
    let (seen, mut got) = tokio::sync::mpsc::unbounded_channel();
    let service = layer
        .build()
        .unwrap()
        .layer(service_fn(move |request: Request<Full<Bytes>>| {
            seen.send((Inbound::current().unwrap(), request.headers().clone()))
                .unwrap();
            async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
        }));
    let mut request = Request::new(Full::default());
    *request.headers_mut() = sent;
    let response = service.oneshot(request).await.unwrap();
    match got.try_recv() {
        Ok(seen) => Ok(seen),
        Err(_) => Err((response.status().as_u16(), support::body_of(response).await)),
    }
}

fn get<'a>(inbound: &'a Inbound, name: &str) -> Option<&'a str> {
    inbound
        .get(&name.parse().unwrap())
        .map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn an_attested_value_replaces_every_line_of_the_callers() {
    let up = upstream([Rule::new("x-subject"), Rule::new("x-other")]);
    let layer = || {
        CaptureLayer::for_upstreams([&up]).attest("X-Subject", |parts| {
            // The request is seen as it came.
            let lines = parts.headers.get_all("x-subject").iter().count();
            let user = parts.headers.get("x-user")?.to_str().ok()?;
            Some(format!("{user}/{lines}").into())
        })
    };
    for sent in [
        headers([("x-user", "alice"), ("x-other", "o")]),
        headers([
            ("x-user", "alice"),
            ("x-subject", "mallory"),
            ("x-other", "o"),
        ]),
        headers([
            ("x-user", "alice"),
            ("x-subject", "m1"),
            ("x-subject", "m2"),
            ("x-other", "o"),
        ]),
    ] {
        let lines = sent.get_all("x-subject").iter().count();
        let (inbound, headers) = through(layer(), sent).await.unwrap();
        let expected = format!("alice/{lines}");
        assert_eq!(get(&inbound, "x-subject"), Some(expected.as_str()));
        assert_eq!(get(&inbound, "x-other"), Some("o"));
        let values: Vec<_> = headers.get_all("x-subject").iter().collect();
        assert_eq!(values, [expected.as_str()]);
        assert!(values[0].is_sensitive());
    }
    // Nothing given: absent, never the caller's.
    let sent = headers([("x-subject", "mallory"), ("x-subject", "m2")]);
    let (inbound, headers) = through(layer(), sent).await.unwrap();
    assert!(inbound.is_empty() && !headers.contains_key("x-subject"));
}

#[tokio::test]
async fn an_attested_value_that_is_none_is_500_and_not_shown() {
    let up = upstream([Rule::new("x-subject")]);
    let long = "s3cret".repeat(3_000);
    for (value, expected) in [
        ("", None),
        ("alice", Some("alice")),
        ("a\r\ns3cret", Some("500")),
        ("s3cret\0", Some("500")),
        (" s3cret", Some("500")),
        ("s3cret\t", Some("500")),
        (long.as_str(), Some("500")),
    ] {
        let value: &'static str = Box::leak(value.to_owned().into_boxed_str());
        let layer = CaptureLayer::for_upstreams([&up])
            .attest("x-subject", move |_| Some(Cow::Borrowed(value)));
        match through(layer, headers([("x-subject", "mallory")])).await {
            Ok((inbound, _)) => assert_eq!(get(&inbound, "x-subject"), expected),
            Err((status, body)) => {
                assert_eq!((status, expected), (500, Some("500")), "{value:?}");
                let message = support::check_error(&body, -32603);
                assert!(
                    message.contains("`x-subject`") && !message.contains("s3c"),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn what_can_be_attested() {
    let up = upstream([
        Rule::new("x-subject"),
        Rule::credential("authorization").only_with("x-admitted"),
    ]);
    let attest = |name: &str| {
        let layer = CaptureLayer::for_upstreams([&up]);
        layer.attest(name, |_| None).build()
    };
    for name in ["x-subject", "X-SUBJECT", "authorization", "x-admitted"] {
        assert!(attest(name).is_ok(), "{name}");
    }
    for (name, kind) in [
        ("x-unread", MistakeKind::Attested),
        ("x_subject", MistakeKind::Attested),
        ("host", MistakeKind::Restricted),
        ("mcp-session-id", MistakeKind::Restricted),
        ("x y", MistakeKind::InvalidName),
    ] {
        assert_eq!(kinds(attest(name)), [kind], "{name}");
    }
    for (second, wrong) in [
        ("x-subject", "attested twice"),
        ("x_subject", "no rule reads it"),
    ] {
        let twice = CaptureLayer::for_upstreams([&up])
            .attest("x-subject", |_| None)
            .attest(second, |_| None);
        let error = twice.build().unwrap_err();
        let [mistake] = error.mistakes() else {
            panic!("{error}");
        };
        assert_eq!(mistake.kind(), MistakeKind::Attested);
        assert!(mistake.to_string().contains(wrong), "{mistake}");
    }
}

#[tokio::test]
async fn provenance_tells_the_attested_from_the_callers() {
    let up = upstream([Rule::new("x-subject")]);
    let sent = || headers([("x-subject", "same")]);
    let (callers, _) = through(CaptureLayer::for_upstreams([&up]), sent())
        .await
        .unwrap();
    let attest = CaptureLayer::for_upstreams([&up]).attest("x-subject", |_| Some("same".into()));
    let (attested, _) = through(attest, sent()).await.unwrap();
    let callers = identity().connect_for(&up, &callers).await.unwrap();
    let attested = identity().connect_for(&up, &attested).await.unwrap();
    assert_eq!(lines(&callers), lines(&attested));
    assert_ne!(callers, attested);
}

#[tokio::test]
async fn an_attested_credential_follows_the_rules_of_credentials() {
    let up = upstream([Rule::credential("authorization")]);
    let layer =
        CaptureLayer::for_upstreams([&up]).attest("authorization", |_| Some("NTLM x".into()));
    let (inbound, _) = through(layer, HeaderMap::new()).await.unwrap();
    let error = identity().connect_for(&up, &inbound).await.unwrap_err();
    let invalid = mcp_forward::ConnectErrorKind::Outbound(OutboundErrorKind::Invalid);
    assert_eq!(error.kind(), invalid);
}

#[tokio::test]
async fn e2_a_nomination_does_not_remove_what_is_attested_static_or_injected() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-subject")
        .set("x-static", "s")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).attest("x-subject", |_| Some("alice".into()));
    let service = capture
        .build()
        .unwrap()
        .layer(mcp_forward::Relay::new(&up, http_client()));
    let addr = serve(service).await;
    let answer = raw(addr, post(addr, "connection: x-static\r\n")).await;
    assert_eq!(status(&answer), 200);
    let seen = server.only_request();
    assert_eq!(
        (seen.all("x-static"), seen.all("x-subject")),
        (vec!["s"], vec!["alice"])
    );
    // One that the rules read is refused, attested or not.
    let answer = raw(addr, post(addr, "connection: x-subject\r\n")).await;
    assert_eq!(status(&answer), 400);
    own_error(&answer, -32600);
}

#[tokio::test]
async fn d3_d4_several_lines_are_kept_in_order_where_every_rule_takes_them() {
    let multi = || Rule::new("x-group").multi();
    let sent = || {
        headers([
            ("x-group", "a"),
            ("x-o", "o"),
            ("x-group", "b, c"),
            ("x-group", ""),
            ("x-group", "a"),
        ])
    };
    let up = upstream([multi(), Rule::new("x-group").multi().to("x-copy")]);
    let (inbound, _) = through(CaptureLayer::for_upstreams([&up]), sent())
        .await
        .unwrap();
    assert_eq!(get(&inbound, "x-group"), Some("a"));
    let outbound = identity().connect_for(&up, &inbound).await.unwrap();
    let values = |map: &HeaderMap, name: &str| -> Vec<String> {
        map.get_all(name)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    let map = outbound.to_header_map();
    assert_eq!(values(&map, "x-group"), ["a", "b, c", "a"]);
    assert_eq!(values(&map, "x-copy"), ["a", "b, c", "a"]);
    assert!(map.values().all(http::HeaderValue::is_sensitive));
    let mut applied = headers([("x-group", "stale"), ("x-group", "stale")]);
    outbound.apply(&mut applied).unwrap();
    assert_eq!(applied, map);

    // One rule that does not take several: ambiguous.
    for rules in [
        vec![Rule::new("x-group")],
        vec![multi(), Rule::new("x-group").to("x-b")],
        vec![Rule::new("x-group").to("x-b"), multi()],
        vec![multi(), Rule::new("x-b").only_with("x-key")],
    ] {
        let admits = rules.len() == 2;
        let up = upstream(rules);
        let result = through(CaptureLayer::for_upstreams([&up]), sent()).await;
        let only_admission =
            admits && up == upstream([multi(), Rule::new("x-b").only_with("x-key")]);
        assert_eq!(result.is_ok(), only_admission);
    }
    let up = upstream([multi(), Rule::new("x-b").only_with("x-key")]);
    let keys = headers([("x-key", "1"), ("x-key", "2")]);
    assert_eq!(
        through(CaptureLayer::for_upstreams([&up]), keys)
            .await
            .unwrap_err()
            .0,
        400
    );
}

#[tokio::test]
async fn several_lines_each_obey_their_rule_and_one_caller_line_beats_the_static() {
    let up = |rule: Rule| {
        Upstream::builder("up", "https://up.example/mcp")
            .rule(rule.multi())
            .set("x-t", "static")
            .build()
            .unwrap()
    };
    let rule = || Rule::new("x-s").to("x-t").on_conflict(OnConflict::Caller);
    let sent = |value: &str| headers([("x-s", "one"), ("x-s", value)]);
    let caller = up(rule());
    let (inbound, _) = through(CaptureLayer::for_upstreams([&caller]), sent("two"))
        .await
        .unwrap();
    let outbound = identity().connect_for(&caller, &inbound).await.unwrap();
    assert_eq!(lines(&outbound), ["x-t: one", "x-t: two"]);
    let bearer = up(rule().bearer());
    let (inbound, _) = through(CaptureLayer::for_upstreams([&bearer]), sent("two"))
        .await
        .unwrap();
    let outbound = identity().connect_for(&bearer, &inbound).await.unwrap();
    assert_eq!(lines(&outbound), ["x-t: Bearer one", "x-t: Bearer two"]);
    let (inbound, _) = through(CaptureLayer::for_upstreams([&bearer]), sent("t w o"))
        .await
        .unwrap();
    assert!(identity().connect_for(&bearer, &inbound).await.is_err());
}

#[test]
fn what_has_one_value_cannot_have_several_lines() {
    for name in ["authorization", "cookie", "proxy-authorization"] {
        for rule in [
            Rule::credential(name).multi(),
            Rule::new("x-a").to(name).multi(),
        ] {
            let error = Upstream::builder("up", "https://up.example/")
                .rule(rule)
                .build()
                .unwrap_err();
            assert_eq!(error.mistakes()[0].kind(), MistakeKind::SingleValued);
            assert_eq!(error.mistakes().len(), 1);
        }
    }
}

#[tokio::test]
async fn c2_c3_too_long_is_431_and_never_cut() {
    let up = upstream([
        Rule::new("x-a"),
        Rule::new("x-b").multi(),
        Rule::credential("cookie"),
    ]);
    let default = || CaptureLayer::for_upstreams([&up]);
    let small = || default().max_value(10).max_total(20);
    let of = |length: usize| "v".repeat(length);
    let quarter = of(16 * 1024);
    for (layer, sent, expected) in [
        (default(), vec![("x-a", quarter.clone())], 200),
        (default(), vec![("x-a", of(16 * 1024 + 1))], 431),
        (default(), vec![("x-other", of(400_000))], 200),
        (
            default(),
            [(); 4].map(|()| ("x-b", quarter.clone())).to_vec(),
            200,
        ),
        (
            default(),
            [
                vec![("x-a", of(1))],
                [(); 4].map(|()| ("x-b", quarter.clone())).to_vec(),
            ]
            .concat(),
            431,
        ),
        // Joined, it is one value.
        (
            default(),
            vec![("cookie", of(8 * 1024)), ("cookie", of(8 * 1024 - 2))],
            200,
        ),
        (
            default(),
            vec![("cookie", of(8 * 1024)), ("cookie", of(8 * 1024 - 1))],
            431,
        ),
        (small(), vec![("x-a", of(10)), ("x-b", of(10))], 200),
        (small(), vec![("x-a", of(11))], 431),
        (small(), vec![("x-b", of(1)), ("x-b", of(11))], 431),
        (
            small(),
            vec![("x-a", of(10)), ("x-b", of(6)), ("x-b", of(5))],
            431,
        ),
    ] {
        let mut map = HeaderMap::new();
        let mut total = 0;
        for (name, value) in &sent {
            total += value.len();
            map.append(*name, value.parse().unwrap());
        }
        match through(layer, map).await {
            Ok((inbound, _)) => {
                assert_eq!(expected, 200, "{total}");
                let got: usize = inbound.iter().map(|(_, value)| value.len()).sum();
                let joined = 2 * usize::from(sent[0].0 == "cookie");
                let captured = if sent[0].0 == "x-other" {
                    0
                } else {
                    total + joined
                };
                assert_eq!(got, captured);
            }
            Err((status, body)) => {
                assert_eq!(status, expected, "{total}");
                support::check_error(&body, -32600);
            }
        }
    }
}

#[tokio::test]
async fn names_alone_can_be_captured() {
    let layer = || CaptureLayer::for_names(["X-A", "authorization"]);
    assert_eq!(layer().build().unwrap().names(), ["authorization", "x-a"]);
    let sent = headers([("x-a", "1"), ("authorization", "Bearer t"), ("x-b", "2")]);
    let (inbound, _) = through(layer(), sent).await.unwrap();
    // An upstream that was built later: its own rules still decide.
    let up = upstream([Rule::new("x-a")]);
    assert_eq!(
        lines(&identity().connect_for(&up, &inbound).await.unwrap()),
        ["x-a: 1"]
    );
    let unknown = upstream([Rule::new("x-b")]);
    assert!(identity().connect_for(&unknown, &inbound).await.is_err());

    assert_eq!(
        through(layer(), headers([("x-a", "1"), ("x-a", "2")]))
            .await
            .unwrap_err()
            .0,
        400
    );
    assert_eq!(
        kinds(CaptureLayer::for_names(["host", "x y"]).build()),
        [MistakeKind::Restricted, MistakeKind::InvalidName]
    );
    assert_eq!(
        kinds(CaptureLayer::for_names(["x_a", "x-a"]).build()),
        [MistakeKind::Ambiguous]
    );
    assert!(CaptureLayer::for_names(["x-a", "X-A"]).build().is_ok());
    let attested = layer().attest("x-a", |_| Some("mine".into()));
    let (inbound, _) = through(attested, headers([("x-a", "1")])).await.unwrap();
    assert_eq!(get(&inbound, "x-a"), Some("mine"));
}

#[tokio::test]
async fn a_compact_copy_holds_the_same_and_stays_sensitive() {
    let up = upstream([Rule::new("x-a").multi(), Rule::new("x-b")]);
    let sent = headers([("x-a", "1"), ("x-a", "2"), ("x-b", "3")]);
    let (inbound, _) = through(CaptureLayer::for_upstreams([&up]), sent)
        .await
        .unwrap();
    let compact = inbound.compact();
    let all = |inbound: &Inbound| -> Vec<(String, String)> {
        let lines = inbound.iter();
        lines
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect()
    };
    assert_eq!(all(&inbound), all(&compact));
    assert!(compact.iter().all(|(_, value)| value.is_sensitive()));
    for ((_, value), (_, copy)) in inbound.iter().zip(compact.iter()) {
        assert_ne!(value.as_bytes().as_ptr(), copy.as_bytes().as_ptr());
    }
    let of = |inbound: Inbound| {
        let up = up.clone();
        async move { identity().connect_for(&up, &inbound).await.unwrap() }
    };
    assert_eq!(of(inbound).await, of(compact).await);
    assert!(Inbound::empty().compact().is_empty());
}

#[tokio::test]
async fn an_attested_name_is_the_callers_in_no_spelling() {
    let up = upstream([Rule::new("x-mcp-subject")]);
    let layer = |value: Option<&'static str>| {
        CaptureLayer::for_upstreams([&up])
            .attest("x-mcp-subject", move |_| value.map(Cow::Borrowed))
    };
    let sent = || {
        headers([
            ("x_mcp_subject", "m"),
            ("x-mcp_subject", "m"),
            ("x-mcp-subjects", "kept"),
        ])
    };
    let (_, left) = through(layer(Some("alice")), sent()).await.unwrap();
    assert_eq!(
        left,
        headers([("x-mcp-subject", "alice"), ("x-mcp-subjects", "kept")])
    );
    let (_, left) = through(layer(None), sent()).await.unwrap();
    assert_eq!(left, headers([("x-mcp-subjects", "kept")]));
}

#[tokio::test]
async fn too_much_attested_is_the_embedders_fault() {
    let up = upstream([Rule::new("x-a"), Rule::new("x-b")]);
    for (total, expected) in [(20, None), (19, Some(500))] {
        let layer = CaptureLayer::for_upstreams([&up])
            .max_total(total)
            .attest("x-a", |_| Some("0123456789".into()))
            .attest("x-b", |_| Some("0123456789".into()));
        let refused = through(layer, HeaderMap::new()).await.err();
        assert_eq!(refused.map(|(status, _)| status), expected, "{total}");
    }
}

#[tokio::test]
async fn c5_an_inbound_has_at_most_256_lines() {
    let up = upstream([Rule::new("x-g").multi()]);
    for (lines, expected) in [(256, 200), (257, 431), (65_536, 431)] {
        let mut sent = HeaderMap::new();
        for _ in 0..lines {
            sent.append("x-g", http::HeaderValue::from_static("v"));
        }
        match through(CaptureLayer::for_upstreams([&up]), sent).await {
            Ok((inbound, _)) => {
                assert_eq!((inbound.iter().count(), expected), (lines, 200));
                let outbound = identity().connect_for(&up, &inbound).await.unwrap();
                assert_eq!(outbound.to_header_map().len(), lines);
            }
            Err((status, _)) => assert_eq!(status, expected),
        }
    }
}

#[tokio::test]
async fn several_lines_are_refused_by_a_rule_that_came_later_and_takes_one() {
    let listed = upstream([Rule::new("x-tok").multi()]);
    let sent = headers([("x-tok", "one"), ("x-tok", "two")]);
    let (inbound, _) = through(CaptureLayer::for_upstreams([&listed]), sent)
        .await
        .unwrap();
    let later = upstream([Rule::new("x-tok").to("authorization").bearer()]);
    let error = identity().connect_for(&later, &inbound).await.unwrap_err();
    let invalid = mcp_forward::ConnectErrorKind::Outbound(OutboundErrorKind::Invalid);
    assert_eq!(error.kind(), invalid);
}

#[tokio::test]
async fn a_full_map_is_an_error_and_no_panic() {
    let up = upstream([Rule::new("x-g").multi()]);
    let sent = headers([("x-g", "1"), ("x-g", "2"), ("x-g", "3")]);
    let (inbound, _) = through(CaptureLayer::for_upstreams([&up]), sent)
        .await
        .unwrap();
    let outbound = identity().connect_for(&up, &inbound).await.unwrap();
    let mut errors = 0;
    for others in 24_570..24_580 {
        let mut map = HeaderMap::new();
        for i in 0..others {
            let name = http::HeaderName::try_from(format!("n{i}")).unwrap();
            map.try_insert(name, http::HeaderValue::from_static("v"))
                .unwrap_or_default();
        }
        errors += usize::from(outbound.apply(&mut map).is_err());
    }
    assert!(errors > 0 && errors < 10, "{errors}");
}
