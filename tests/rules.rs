//! What a configuration may say: the build errors of DESIGN 4.2, and those between upstreams of 4.1.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use mcp_forward::{
    BuildError, CaptureLayer, MistakeKind, OnConflict, OriginGuardLayer, Rule, Upstream,
    UpstreamBuilder,
};

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
}

fn kinds<T: std::fmt::Debug>(built: Result<T, BuildError>) -> Vec<MistakeKind> {
    let error = built.unwrap_err();
    error
        .mistakes()
        .iter()
        .map(|mistake| mistake.kind())
        .collect()
}

#[test]
fn every_mistake_is_reported_at_once_in_order() {
    let error = Upstream::builder("Git Hub", "ftp://user:pw@up.example/mcp#x")
        .allow("host")
        .allow("authorization")
        .allow("x y")
        .rule(Rule::new("x-a").to("connection"))
        .set("content-length", "5")
        .set("x-b", " s3cret")
        .build()
        .unwrap_err();
    let kinds: Vec<_> = error
        .mistakes()
        .iter()
        .map(|mistake| mistake.kind())
        .collect();
    assert_eq!(
        kinds,
        [
            MistakeKind::InvalidUpstream,
            MistakeKind::InvalidUrl,
            MistakeKind::Restricted,
            MistakeKind::Guarded,
            MistakeKind::InvalidName,
            MistakeKind::Restricted,
            MistakeKind::Restricted,
            MistakeKind::InvalidValue,
        ]
    );
    let names: Vec<_> = error
        .mistakes()
        .iter()
        .filter_map(|mistake| mistake.header())
        .collect();
    assert_eq!(
        names,
        [
            "host",
            "authorization",
            "connection",
            "content-length",
            "x-b"
        ]
    );
    let text = error.to_string();
    for mistake in error.mistakes() {
        assert!(text.contains(&mistake.to_string()));
    }
    assert!(!format!("{text} {error:?}").contains("s3cret"));
}

#[test]
fn a_rule_with_a_mistake_is_still_held_against_the_others() {
    let built = builder()
        .allow("authorization")
        .set("authorization", "Bearer s3cret")
        .build();
    assert_eq!(kinds(built), [MistakeKind::Guarded, MistakeKind::Conflict]);
}

#[test]
fn an_upstreams_name_is_plain() {
    for name in ["a", "git-hub-2", "0"] {
        assert!(
            Upstream::builder(name, "https://up.example/")
                .build()
                .is_ok()
        );
    }
    for name in ["", "GitHub", "git_hub", "git hub", "é", "a\u{202e}b"] {
        let built = Upstream::builder(name, "https://up.example/").build();
        assert_eq!(kinds(built), [MistakeKind::InvalidUpstream], "{name:?}");
    }
}

#[test]
fn a_url_is_absolute_http_without_userinfo_fragment_or_dots() {
    for url in [
        "https://up.example",
        "https://up.example:8443/mcp?tenant=1",
        "http://127.0.0.1:1/mcp",
        "http://[::1]:1/mcp",
        "HTTPS://UP.example/a/b/",
    ] {
        assert!(Upstream::builder("up", url).build().is_ok(), "{url}");
    }
    for url in [
        "",
        "/mcp",
        "up.example/mcp",
        "ftp://up.example/mcp",
        "https://",
        "https:///mcp",
        "https://user:s3cret@up.example/mcp",
        "https://s3cret@up.example/mcp",
        "https://up.example/mcp#s3cret",
        "https://up.example:99999/mcp",
        "https://up.example:+80/mcp",
        "https://up.example/a/../mcp",
        "https://up.example/a/%2e%2E/mcp",
        "https://up.example/a%2fb",
        "https://up.example/a b?s3cret",
    ] {
        let built = Upstream::builder("up", url).build();
        let text = format!("{built:?}");
        assert_eq!(kinds(built), [MistakeKind::InvalidUrl], "{url}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn b6_a_static_value_has_no_edge_spaces_and_no_control_bytes() {
    for value in [
        "", " ", " v", "v ", "\tv", "v\t", "a\tb", "a\r\nb", "a\nb", "a\0b", "a\x7fb",
    ] {
        let built = builder().set("x-a", value).build();
        assert_eq!(kinds(built), [MistakeKind::InvalidValue], "{value:?}");
    }
    assert!(
        builder()
            .set("x-a", "Bearer a, b")
            .set("x-b", b"\xff\x80")
            .build()
            .is_ok()
    );
}

#[test]
fn a10_one_target_has_one_writer() {
    let two_rules = builder().allow("x-a").rule(Rule::new("x-b").to("x-a"));
    assert_eq!(kinds(two_rules.build()), [MistakeKind::Duplicate]);
    let two_statics = builder().set("x-a", "1").set("X-A", "2");
    assert_eq!(kinds(two_statics.build()), [MistakeKind::Duplicate]);
    // Also where a rule writes it, and somebody wins.
    let rule = Rule::new("x-a").on_conflict(OnConflict::Static);
    let with_rule = builder().rule(rule).set("x-a", "1").set("x-a", "2");
    assert_eq!(kinds(with_rule.build()), [MistakeKind::Duplicate]);
    let one_source = builder().allow("x-a").rule(Rule::new("x-a").to("x-b"));
    assert!(one_source.build().is_ok());
}

#[test]
fn d5_a_rule_and_a_static_header_need_a_winner() {
    let rule = || Rule::new("x-a");
    assert_eq!(
        kinds(builder().rule(rule()).set("x-a", "1").build()),
        [MistakeKind::Conflict]
    );
    for winner in [OnConflict::Static, OnConflict::Caller] {
        let built = builder()
            .rule(rule().on_conflict(winner))
            .set("x-a", "1")
            .build();
        assert!(built.is_ok(), "{winner:?}");
        // Said, and not needed.
        assert!(builder().rule(rule().on_conflict(winner)).build().is_ok());
    }
    let fallback = rule().required().on_conflict(OnConflict::Caller);
    assert_eq!(
        kinds(builder().rule(fallback.clone()).set("x-a", "1").build()),
        [MistakeKind::Conflict]
    );
    assert!(builder().rule(fallback).build().is_ok());
}

#[test]
fn a9_names_that_fold_together_are_refused() {
    assert_eq!(
        kinds(builder().allow("x_user_id").allow("x-user-id").build()),
        [MistakeKind::Ambiguous]
    );
    assert_eq!(
        kinds(builder().set("x_a", "1").set("x-a", "2").build()),
        [MistakeKind::Ambiguous]
    );
    assert_eq!(
        kinds(builder().allow("x_a").set("x-a", "2").build()),
        [MistakeKind::Ambiguous]
    );

    let a = Upstream::builder("a", "https://a.example/")
        .allow("x_user_id")
        .build()
        .unwrap();
    let b = Upstream::builder("b", "https://b.example/")
        .allow("x-user-id")
        .build()
        .unwrap();
    assert_eq!(
        kinds(CaptureLayer::for_upstreams([&a, &b]).build()),
        [MistakeKind::Ambiguous]
    );
    assert!(CaptureLayer::for_upstreams([&a]).build().is_ok());
}

#[test]
fn what_admits_to_the_proxy_is_never_forwarded() {
    let admitted = || Rule::credential("authorization").only_with("x-proxy-key");
    assert!(builder().rule(admitted()).build().is_ok());
    for forwarded in [Rule::new("x-proxy-key"), Rule::new("x-proxy-key").to("x-b")] {
        assert_eq!(
            kinds(builder().rule(admitted()).rule(forwarded).build()),
            [MistakeKind::Admission]
        );
    }
    let itself = Rule::credential("authorization").only_with("Authorization");
    assert_eq!(
        kinds(builder().rule(itself).build()),
        [MistakeKind::Admission]
    );

    let a = Upstream::builder("a", "https://a.example/")
        .rule(admitted())
        .build()
        .unwrap();
    let b = Upstream::builder("b", "https://a.example/b")
        .allow("x-proxy-key")
        .build()
        .unwrap();
    assert_eq!(
        kinds(CaptureLayer::for_upstreams([&a, &b]).build()),
        [MistakeKind::Admission]
    );
}

#[test]
fn h14_no_credential_in_clear_text() {
    let plain = |url: &str| Upstream::builder("up", url);
    let cleartext = |built: UpstreamBuilder| {
        let error = built.clone().build().unwrap_err();
        assert!(error.to_string().contains("allow_cleartext()"), "{error}");
        assert_eq!(kinds(built.clone().build()), [MistakeKind::Cleartext]);
        assert!(built.allow_cleartext().build().is_ok());
    };
    for url in [
        "http://up.example/mcp",
        "http://127.0.0.1.example/mcp",
        "http://localhost.example/mcp",
        "http://10.0.0.1/mcp",
        "http://[::2]/mcp",
        "http://[::ffff:127.0.0.1]/mcp",
    ] {
        cleartext(plain(url).allow("x-user-id"));
        cleartext(plain(url).allow_credential("authorization"));
        for guarded in ["authorization", "cookie", "proxy-authorization"] {
            cleartext(plain(url).set(guarded, "v"));
        }
        assert!(plain(url).set("x-proxy", "edge-1").build().is_ok(), "{url}");
        assert!(plain(url).build().is_ok(), "{url}");
    }
    for url in [
        "https://up.example/mcp",
        "http://localhost/mcp",
        "http://LOCALHOST:1/mcp",
        "http://127.0.0.1/mcp",
        "http://127.9.9.9:1/mcp",
        "http://[::1]/mcp",
    ] {
        assert!(
            plain(url).allow_credential("authorization").build().is_ok(),
            "{url}"
        );
    }
}

#[test]
fn upstreams_of_one_layer_have_their_own_names() {
    let a = Upstream::builder("a", "https://a.example/")
        .build()
        .unwrap();
    let same = Upstream::builder("a", "https://b.example/")
        .build()
        .unwrap();
    assert_eq!(
        kinds(CaptureLayer::for_upstreams([&a, &same]).build()),
        [MistakeKind::DuplicateUpstream]
    );
}

#[test]
fn a_guarded_source_is_read_for_one_origin_only() {
    let reads = |name: &str, url: &str, source: &str| {
        let rule = Rule::credential(source);
        Upstream::builder(name, url).rule(rule).build().unwrap()
    };
    for source in ["authorization", "cookie", "proxy-authorization"] {
        let a = reads("a", "https://a.example/mcp", source);
        let b = reads("b", "https://b.example/mcp", source);
        let port = reads("port", "https://a.example:8443/mcp", source);
        let path = reads("path", "https://A.example:443/other", source);
        for other in [&b, &port] {
            let layer = || CaptureLayer::for_upstreams([&a, other]);
            assert_eq!(kinds(layer().build()), [MistakeKind::FanOut]);
            assert!(layer().allow_fan_out(source).build().is_ok());
            assert_eq!(
                kinds(layer().allow_fan_out("x-other").build()),
                [MistakeKind::FanOut]
            );
        }
        assert!(CaptureLayer::for_upstreams([&a, &path]).build().is_ok());
    }
    let a = reads("a", "https://a.example/mcp", "x-user-id");
    let b = reads("b", "https://b.example/mcp", "x-user-id");
    assert!(CaptureLayer::for_upstreams([&a, &b]).build().is_ok());
}

#[test]
fn the_guard_knows_hosts_and_origins() {
    let guard = OriginGuardLayer::builder;
    for host in [
        "mcp.example",
        "mcp.example:8443",
        "[::1]",
        "[::1]:80",
        "127.0.0.1",
    ] {
        assert!(guard().allow_host(host).build().is_ok(), "{host}");
    }
    for host in [
        "",
        "https://mcp.example",
        "a b",
        "mcp.example/x",
        "u@mcp.example",
        "*",
        "*.example",
        "h:x",
        "h:99999",
    ] {
        assert_eq!(
            kinds(guard().allow_host(host).build()),
            [MistakeKind::InvalidHost],
            "{host}"
        );
    }
    for origin in [
        "https://app.example",
        "http://localhost:3000",
        "vscode-webview://abc",
    ] {
        assert!(guard().allow_origin(origin).build().is_ok(), "{origin}");
    }
    for origin in [
        "",
        "null",
        "*",
        "app.example",
        "https://app.example/",
        "https://app.example/x",
        "https://u@app.example",
        "https://*.example",
    ] {
        assert_eq!(
            kinds(guard().allow_origin(origin).build()),
            [MistakeKind::InvalidOrigin],
            "{origin}"
        );
    }
    let both = guard()
        .allow_host("*")
        .allow_origin("*")
        .allow_host("ok")
        .build();
    assert_eq!(
        kinds(both),
        [MistakeKind::InvalidHost, MistakeKind::InvalidOrigin]
    );
}

#[test]
fn nothing_printed_holds_a_value() {
    let upstream = Upstream::builder("up", "https://up.example/s3cret/mcp?key=s3cret")
        .set("authorization", "Bearer s3cret")
        .allow("x-a");
    let built = upstream.clone().build().unwrap();
    let shown = format!("{upstream:?} {upstream:#?} {built:?} {built:#?} {built}");
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(format!("{built:?}").contains("https://up.example,"));
    for (url, shown) in [
        ("HTTPS://UP.example:443/mcp?k=s3cret", "https://up.example "),
        ("http://localhost:80/", "http://localhost "),
        ("https://up.example:80/", "https://up.example:80 "),
    ] {
        let up = Upstream::builder("up", url).build().unwrap();
        assert!(
            format!("{up:?} ").replace(',', " ").contains(shown),
            "{up:?}"
        );
    }
}

#[test]
fn upstreams_are_equal_over_everything() {
    let build = |name: &str, url: &str, value: &str| {
        let builder = Upstream::builder(name, url);
        builder.allow("x-a").set("x-b", value).build().unwrap()
    };
    let one = build("up", "https://up.example/mcp", "1");
    assert_eq!(one, build("up", "https://up.example/mcp", "1"));
    assert_ne!(one, build("up2", "https://up.example/mcp", "1"));
    assert_ne!(one, build("up", "https://up.example/mcp2", "1"));
    assert_ne!(one, build("up", "https://up.example/mcp", "2"));
}

#[test]
fn c8_an_upstream_has_at_most_256_headers() {
    let many =
        |count: usize| (0..count).fold(builder(), |builder, i| builder.set(format!("x-{i}"), "v"));
    assert!(many(256).build().is_ok());
    assert_eq!(
        kinds(many(256).allow("x-a").build()),
        [MistakeKind::TooMany]
    );
    assert_eq!(kinds(many(70_000).build()), [MistakeKind::TooMany]);
}

#[test]
fn texts_that_nobody_has_checked_are_not_printed() {
    let rule = Rule::new("authorization: Bearer s3cret");
    assert_eq!(format!("{rule:?} {rule:#?}"), "Rule { .. } Rule { .. }");
    // Name and URL in the wrong order.
    let swapped = Upstream::builder("https://user:s3cret@up.example/", "up");
    assert!(
        !format!(
            "{swapped:?} {:?} {}",
            swapped.clone().build(),
            swapped.clone().build().unwrap_err()
        )
        .contains("s3cret")
    );
    let guard = OriginGuardLayer::builder()
        .allow_host("user:s3cret@host")
        .allow_origin("https://app.example/cb?token=s3cret");
    assert!(!format!("{guard:?}").contains("s3cret"));
    let error = guard.build().unwrap_err();
    assert!(!format!("{error:?} {error}").contains("s3cret"));
}
