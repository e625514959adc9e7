//! The merge: DESIGN 4.2 for one inbound and one upstream, with ToolHive's merge matrix.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{collections::HashSet, convert::Infallible};

use http::HeaderMap;
use mcp_forward::{
    BoxClientFactory, ClientFactory, ConnectErrorKind, Inbound, InboundExt, OnConflict, Outbound,
    OutboundErrorKind, Rule, Upstream, UpstreamBuilder,
};
use support::{capture, headers, identity, lines, merge};

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
}

async fn merged<const N: usize>(builder: UpstreamBuilder, sent: [(&str, &str); N]) -> Vec<String> {
    lines(&merge(&builder.build().unwrap(), sent).await.unwrap())
}

async fn refused<const N: usize>(
    builder: UpstreamBuilder,
    sent: [(&str, &str); N],
) -> (OutboundErrorKind, String) {
    let error = merge(&builder.build().unwrap(), sent).await.unwrap_err();
    assert_eq!(error.upstream(), "up");
    match error.kind() {
        ConnectErrorKind::Outbound(kind) => (kind, error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn toolhive_matrix() {
    // Nothing forwarded, with and without a base.
    assert!(merged(builder(), [("x-api-key", "k")]).await.is_empty());
    assert_eq!(
        merged(builder().set("x-static", "s"), []).await,
        ["x-static: s"]
    );
    // Forwarded only; any case.
    assert_eq!(
        merged(builder().allow("X-Api-Key"), [("x-API-key", "k")]).await,
        ["x-api-key: k"]
    );
    // Both.
    assert_eq!(
        merged(
            builder().allow("x-dynamic").set("x-static", "s"),
            [("x-dynamic", "d")]
        )
        .await,
        ["x-dynamic: d", "x-static: s"]
    );
    // A restricted one beside an allowed one: refused when built, so only the allowed one can be.
    assert!(
        builder()
            .allow("x-forwarded-for")
            .allow("x-api-key")
            .build()
            .is_err()
    );
    // Forwarded and static: refused when built.
    assert!(builder().allow("x-a").set("x-a", "s").build().is_err());
}

#[tokio::test]
async fn only_what_is_allowed_is_sent() {
    let sent = [
        ("x-a", "1"),
        ("x-b", "2"),
        ("authorization", "Bearer t"),
        ("cookie", "c=1"),
    ];
    assert_eq!(merged(builder().allow("x-a"), sent).await, ["x-a: 1"]);
    assert_eq!(
        merged(builder().allow_credential("authorization"), sent).await,
        ["authorization: Bearer t"]
    );
}

#[tokio::test]
async fn a8_names_are_compared_as_they_are() {
    assert!(
        merged(builder().allow("x-user-id"), [("x_user_id", "evil")])
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn each_of_many_names_is_found_however_it_is_spelled() {
    // Without `-` for `_`, these are in another order than with it.
    let names = ["x-c", "x0", "x_b", "x-b-c", "x-aa", "z", "a", "y_", "xa"];
    let all = names.iter().fold(builder(), |it, name| it.allow(name));
    let sent = merged(all, names.map(|name| (name, name))).await;
    let mut expected = names.map(|name| format!("{name}: {name}"));
    expected.sort();
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn g1_nothing_forwarded_is_the_static_headers_themselves() {
    let upstream = builder()
        .allow("x-a")
        .set("x-b", "s")
        .set("x-c", "s")
        .build()
        .unwrap();
    let one = merge(&upstream, []).await.unwrap();
    let two = merge(&upstream, [("x-other", "o")]).await.unwrap();
    let place = |outbound: &Outbound| std::ptr::from_ref(outbound.iter().next().unwrap().1);
    assert_eq!(place(&one), place(&two), "the same memory");
    let three = merge(&upstream, [("x-a", "v")]).await.unwrap();
    assert_ne!(place(&one), place(&three));
}

#[tokio::test]
async fn g5_static_headers_are_unchanged_by_merges() {
    let upstream = builder().allow("x-a").set("x-b", "s").build().unwrap();
    let before = merge(&upstream, []).await.unwrap();
    for _ in 0..100 {
        let outbound = merge(&upstream, [("x-a", "v")]).await.unwrap();
        let mut map = headers([("x-b", "other")]);
        outbound.apply(&mut map).unwrap();
    }
    assert_eq!(before, merge(&upstream, []).await.unwrap());
    assert_eq!(lines(&before), ["x-b: s"]);
}

#[tokio::test]
async fn b5_empty_is_absent() {
    assert!(
        merged(builder().allow("x-a"), [("x-a", "")])
            .await
            .is_empty()
    );
    let required = builder().rule(Rule::new("x-a").required());
    assert_eq!(
        refused(required, [("x-a", "")]).await.0,
        OutboundErrorKind::Missing
    );
    let caller = Rule::new("x-a").on_conflict(OnConflict::Caller);
    assert_eq!(
        merged(builder().rule(caller).set("x-a", "s"), [("x-a", "")]).await,
        ["x-a: s"]
    );
}

#[tokio::test]
async fn g2_required_and_missing_names_the_header() {
    let rule = || Rule::credential("authorization").to("x-token").required();
    let (kind, text) = refused(builder().rule(rule()), [("x-other", "o")]).await;
    assert_eq!(kind, OutboundErrorKind::Missing);
    assert!(
        text.contains("`authorization`") && text.contains("`up`"),
        "{text}"
    );
    assert_eq!(
        merged(builder().rule(rule()), [("authorization", "t")]).await,
        ["x-token: t"]
    );
    // A static header of another rule's target never stands in, nor does one that wins.
    let wins = Rule::new("x-a").required().on_conflict(OnConflict::Static);
    let (kind, _) = refused(builder().rule(wins.clone()).set("x-a", "s"), []).await;
    assert_eq!(kind, OutboundErrorKind::Missing);
    assert_eq!(
        merged(builder().rule(wins).set("x-a", "s"), [("x-a", "c")]).await,
        ["x-a: s"]
    );
}

#[tokio::test]
async fn g3_g4_who_wins_is_as_said() {
    let rule = |winner| Rule::new("x-src").to("x-a").on_conflict(winner);
    let up = |winner| builder().rule(rule(winner)).set("x-a", "static");
    assert_eq!(
        merged(up(OnConflict::Static), [("x-src", "caller")]).await,
        ["x-a: static"]
    );
    assert_eq!(
        merged(up(OnConflict::Caller), [("x-src", "caller")]).await,
        ["x-a: caller"]
    );
    assert_eq!(merged(up(OnConflict::Static), []).await, ["x-a: static"]);
    assert_eq!(merged(up(OnConflict::Caller), []).await, ["x-a: static"]);
}

#[tokio::test]
async fn a_proxy_key_keeps_its_own_credential_here() {
    let rule = Rule::credential("authorization").only_with("x-litellm-api-key");
    let up = || builder().rule(rule.clone());
    let bearer = ("authorization", "Bearer t");
    assert!(merged(up(), [bearer]).await.is_empty());
    assert!(
        merged(up(), [bearer, ("x-litellm-api-key", "")])
            .await
            .is_empty()
    );
    assert_eq!(
        merged(up(), [bearer, ("x-litellm-api-key", "sk")]).await,
        ["authorization: Bearer t"]
    );
    let required = builder().rule(rule.required());
    assert_eq!(
        refused(required, [bearer]).await.0,
        OutboundErrorKind::Missing
    );
}

#[tokio::test]
async fn b7_bearer_is_prefixed_once() {
    let up = || builder().rule(Rule::new("x-token").to("authorization").bearer());
    for token in ["abc", "a.b-c_d~e+f/9==", "ghp_1"] {
        assert_eq!(
            merged(up(), [("x-token", token)]).await,
            [format!("authorization: Bearer {token}")]
        );
    }
    // As it was sent, whatever the case of its scheme and whatever follows.
    for value in ["Bearer abc", "bEaReR abc", "bearer a b", "BEARER é"] {
        assert_eq!(
            merged(up(), [("x-token", value)]).await,
            [format!("authorization: {value}")]
        );
    }
    for value in [
        "a b",
        "a,b",
        "a\"b",
        "é",
        "=",
        "a=b",
        "Bearer",
        "bearer",
        "Basic YQ==",
        "Bearer\tabc",
    ] {
        let (kind, text) = refused(up(), [("x-token", value)]).await;
        assert_eq!(kind, OutboundErrorKind::Invalid, "{value:?}");
        assert!(
            text.contains("`x-token`") && !text.contains(value),
            "{text}"
        );
    }
}

#[tokio::test]
async fn b8_schemes_of_another_hop_are_invalid() {
    let targets = [
        "authorization",
        "proxy-authorization",
        "proxy_authorization",
    ];
    for target in targets {
        for value in [
            "Negotiate YII=",
            "NTLM TlRM",
            "ntlm",
            "Kerberos x",
            "Digest username=\"a\"",
            "DPoP eyJ",
            "OAuth oauth_nonce=\"1\"",
            "Signature keyId=\"a\"",
            "AWS4-HMAC-SHA256 Credential=x",
            "aws4-ecdsa-p256-sha256 x",
            "SharedKey acct:sig",
            "SharedKeyLite acct:sig",
            "nEgOtIaTe x",
        ] {
            let up = builder().rule(Rule::credential("authorization").to(target));
            let (kind, text) = refused(up, [("authorization", value)]).await;
            assert_eq!(kind, OutboundErrorKind::Invalid, "{value} to {target}");
            assert!(!text.contains(value));
            // Never the fallback.
            let fallback = Rule::credential("authorization")
                .to(target)
                .on_conflict(OnConflict::Caller);
            let up = builder().rule(fallback).set(target, "Bearer service");
            assert_eq!(
                refused(up, [("authorization", value)]).await.0,
                OutboundErrorKind::Invalid
            );
        }
    }
    // Under another target it is opaque, and other schemes pass byte for byte.
    let up = builder().rule(Rule::credential("authorization").to("x-orig"));
    assert_eq!(
        merged(up, [("authorization", "Negotiate x")]).await,
        ["x-orig: Negotiate x"]
    );
    for value in [
        "Basic YTpi",
        "bAsIc YTpi",
        "Bearer  two  spaces",
        "Token t",
        "Digestive x",
        "AWS4 x",
        "t",
        "Bearer a, Bearer b",
        "é",
    ] {
        let up = builder().allow_credential("authorization");
        assert_eq!(
            merged(up, [("authorization", value)]).await,
            [format!("authorization: {value}")]
        );
    }
}

#[tokio::test]
async fn b3_b11_b13_values_are_opaque() {
    for value in [
        "\u{ff}\u{80}",
        "a, b",
        "=?base64?eA==?=",
        "{\"a\":1}",
        "a  b",
    ] {
        assert_eq!(
            merged(builder().allow("x-a"), [("x-a", value)]).await,
            [format!("x-a: {value}")]
        );
    }
}

#[tokio::test]
async fn no_inbound_is_never_the_static_identity() {
    let reads = builder()
        .rule(Rule::credential("authorization").on_conflict(OnConflict::Caller))
        .set("authorization", "Bearer service")
        .build()
        .unwrap();
    let factory = |_: Outbound| async { panic!("called") as Result<(), Infallible> };
    let error = factory.connect(&reads).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ConnectErrorKind::Outbound(OutboundErrorKind::NoInbound)
    );
    assert!(
        error.to_string().contains("with_current_inbound"),
        "{error}"
    );

    // On behalf of nobody, said so.
    let outbound = async { identity().connect(&reads).await.unwrap() };
    let outbound = outbound.with_inbound(Inbound::empty()).await;
    assert_eq!(lines(&outbound), ["authorization: Bearer service"]);
    let outbound = identity()
        .connect_for(&reads, &Inbound::empty())
        .await
        .unwrap();
    assert_eq!(lines(&outbound), ["authorization: Bearer service"]);

    // Nobody is read, so nobody is needed.
    let reads_nobody = builder().set("x-a", "s").build().unwrap();
    let outbound = identity().connect(&reads_nobody).await.unwrap();
    assert_eq!(lines(&outbound), ["x-a: s"]);
}

#[tokio::test]
async fn connect_merges_when_called_not_when_polled() {
    let up = builder().allow("x-user").build().unwrap();
    let alice = capture(&[&up], [("x-user", "alice")]).await;
    let bob = capture(&[&up], [("x-user", "bob")]).await;
    let factory = identity();
    let connecting = alice.sync_scope(|| factory.connect(&up));
    let outbound = connecting.with_inbound(bob).await.unwrap();
    assert_eq!(lines(&outbound), ["x-user: alice"]);
}

#[tokio::test]
async fn apply_replaces_and_to_header_map_agrees() {
    let up = builder().allow("x-a").set("x-b", "s").build().unwrap();
    let outbound = merge(&up, [("x-a", "caller")]).await.unwrap();
    let mut map = headers([("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("x-other", "o")]);
    outbound.apply(&mut map).unwrap();
    assert_eq!(
        map,
        headers([("x-a", "caller"), ("x-b", "s"), ("x-other", "o")])
    );
    assert_eq!(
        outbound.to_header_map(),
        headers([("x-a", "caller"), ("x-b", "s")])
    );
    assert!(
        outbound
            .to_header_map()
            .values()
            .all(http::HeaderValue::is_sensitive)
    );
    assert!(map["x-a"].is_sensitive() && map["x-b"].is_sensitive());
}

#[tokio::test]
async fn c6_a_full_map_is_an_error_and_untouched() {
    let up = builder().set("x-a", "s").build().unwrap();
    let outbound = merge(&up, []).await.unwrap();
    let mut map = HeaderMap::new();
    let full = (0..).map(|i| http::HeaderName::try_from(format!("n{i}")).unwrap());
    for name in full {
        if map
            .try_insert(name, http::HeaderValue::from_static("v"))
            .is_err()
        {
            break;
        }
    }
    let before = map.len();
    let error = outbound.apply(&mut map).unwrap_err();
    assert_eq!(error.kind(), OutboundErrorKind::TooManyHeaders);
    assert_eq!(map.len(), before);
}

#[tokio::test]
async fn outbounds_are_equal_exactly() {
    let up = |name: &str, value: &str| {
        Upstream::builder(name, "https://up.example/mcp")
            .allow_credential("authorization")
            .set("x-b", value)
            .build()
            .unwrap()
    };
    let sent = |token| [("authorization", token)];
    let alice = merge(&up("a", "1"), sent("alice")).await.unwrap();
    let again = merge(&up("a", "1"), sent("alice")).await.unwrap();
    assert_eq!(alice, again);
    let others = [
        merge(&up("a", "1"), sent("bob")).await.unwrap(),
        merge(&up("a", "1"), []).await.unwrap(),
        merge(&up("b", "1"), sent("alice")).await.unwrap(),
        merge(&up("a", "2"), sent("alice")).await.unwrap(),
    ];
    for other in &others {
        assert_ne!(&alice, other);
    }
    let set: HashSet<_> = others.into_iter().chain([alice, again]).collect();
    assert_eq!(set.len(), 5);
}

#[tokio::test]
async fn provenance_is_part_of_equality() {
    let up = builder()
        .rule(Rule::credential("authorization").on_conflict(OnConflict::Caller))
        .set("authorization", "same")
        .build()
        .unwrap();
    let from_caller = merge(&up, [("authorization", "same")]).await.unwrap();
    let from_operator = merge(&up, []).await.unwrap();
    assert_eq!(lines(&from_caller), lines(&from_operator));
    assert_ne!(from_caller, from_operator);
}

#[tokio::test]
async fn a_factory_can_be_boxed_shared_and_fail() {
    let up = builder().allow("x-a").build().unwrap();
    let inbound = capture(&[&up], [("x-a", "v")]).await;
    let boxed: BoxClientFactory<Outbound> = BoxClientFactory::new(identity());
    let shared = std::sync::Arc::new(boxed.clone());
    for outbound in [
        boxed.connect_for(&up, &inbound).await.unwrap(),
        shared.connect_for(&up, &inbound).await.unwrap(),
    ] {
        assert_eq!(lines(&outbound), ["x-a: v"]);
        assert_eq!(outbound.upstream(), &up);
    }
    let failing = |_: Outbound| async { Err::<(), _>(std::io::Error::other("s3cret down")) };
    let error = BoxClientFactory::new(failing)
        .connect_for(&up, &inbound)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ConnectErrorKind::Create);
    assert!(!error.to_string().contains("s3cret"));
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.downcast_ref::<std::io::Error>().is_some());
}

#[tokio::test]
async fn nothing_printed_holds_a_value() {
    let up = builder().allow("x-a").set("x-b", "s3cret").build().unwrap();
    let inbound = capture(&[&up], [("x-a", "s3cret")]).await;
    let outbound = identity().connect_for(&up, &inbound).await.unwrap();
    let shown = format!("{inbound:?} {inbound:#?} {outbound:?} {outbound:#?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(shown.contains("x-a") && shown.contains("x-b"));
    assert!(format!("{:?}", outbound.to_header_map()).contains("Sensitive"));
}

#[tokio::test]
async fn an_upstream_that_the_capture_layer_does_not_know_is_not_called() {
    let a = Upstream::builder("a", "https://a.example/")
        .allow("x-a")
        .build()
        .unwrap();
    let b = Upstream::builder("b", "https://b.example/")
        .rule(Rule::new("x-b").on_conflict(OnConflict::Caller))
        .set("x-b", "service")
        .build()
        .unwrap();
    let admitted = Upstream::builder("c", "https://c.example/")
        .rule(Rule::new("x-a").only_with("x-key"))
        .build()
        .unwrap();
    // Whether the caller sent something for `a` or nothing at all.
    for inbound in [
        capture(&[&a], [("x-a", "1"), ("x-b", "bob")]).await,
        capture(&[&a], [("x-b", "bob")]).await,
    ] {
        for (upstream, header) in [(&b, "x-b"), (&admitted, "x-a")] {
            let error = identity()
                .connect_for(upstream, &inbound)
                .await
                .unwrap_err();
            let kind = ConnectErrorKind::Outbound(OutboundErrorKind::NotCaptured);
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(header), "{error}");
        }
    }
    // Captured for both, or nobody.
    let inbound = capture(&[&a, &b], [("x-a", "1")]).await;
    let outbound = identity().connect_for(&b, &inbound).await.unwrap();
    assert_eq!(lines(&outbound), ["x-b: service"]);
}

#[tokio::test]
async fn apply_removes_what_could_stand_in() {
    let up = builder()
        .rule(Rule::credential("authorization").only_with("x-proxy-key"))
        .rule(Rule::new("x-up-token").to("x-token"))
        .allow("x-user-id")
        .set("x-role", "reader")
        .build()
        .unwrap();
    let mut copied = headers([
        ("authorization", "Bearer proxys-own"),
        ("x-up-token", "t"),
        ("x_up_token", "t"),
        ("x-token", "evil"),
        ("x_user_id", "admin"),
        ("x-user_id", "admin"),
        ("x_role", "admin"),
        ("x-other", "o"),
        ("x_other", "o"),
    ]);
    let outbound = merge(
        &up,
        [("authorization", "Bearer proxys-own"), ("x-up-token", "t")],
    )
    .await
    .unwrap();
    outbound.apply(&mut copied).unwrap();
    assert_eq!(
        copied,
        headers([
            ("x-token", "t"),
            ("x-role", "reader"),
            ("x-other", "o"),
            ("x_other", "o")
        ])
    );
}

#[tokio::test]
async fn a_bound_scheme_behind_separators_is_still_one() {
    for value in [", Negotiate abc", ",,\tNTLM x", "Negotiate,Bearer x"] {
        let up = builder().allow_credential("authorization");
        let (kind, _) = refused(up, [("authorization", value)]).await;
        assert_eq!(kind, OutboundErrorKind::Invalid, "{value}");
    }
}

#[tokio::test]
async fn a_factorys_error_is_a_source_and_not_printed() {
    let failing = |_: Outbound| async { Err::<(), _>(std::io::Error::other("GET /?token=s3cret")) };
    let up = builder().build().unwrap();
    let error = failing.connect(&up).await.unwrap_err();
    assert!(!format!("{error} {error:?} {error:#?}").contains("s3cret"));
    assert_eq!(error.upstream(), "up");
}
