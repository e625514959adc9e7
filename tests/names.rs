//! Which names a configuration may hold: DESIGN's table, in every position.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/restricted.rs"]
mod restricted;

use mcp_forward::{BuildError, MistakeKind, Rule, Upstream, UpstreamBuilder};
use restricted::{GUARDED, RELAYED, RESTRICTED};

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
}

/// `name` as allow, rename source, rename target and static header.
fn positions(name: &str) -> [(&'static str, Result<Upstream, BuildError>); 4] {
    [
        ("allow", builder().allow(name).build()),
        (
            "source",
            builder().rule(Rule::new(name).to("x-other")).build(),
        ),
        (
            "target",
            builder().rule(Rule::new("x-other").to(name)).build(),
        ),
        ("static", builder().set(name, "value").build()),
    ]
}

fn kinds(error: &BuildError) -> Vec<MistakeKind> {
    error
        .mistakes()
        .iter()
        .map(|mistake| mistake.kind())
        .collect()
}

#[test]
fn a1_to_a5_restricted_in_every_position_and_spelling() {
    for name in RESTRICTED.split_whitespace() {
        for spelling in [
            name.to_owned(),
            name.to_ascii_uppercase(),
            name.replace('-', "_"),
        ] {
            for (position, built) in positions(&spelling) {
                let error = built.expect_err(&format!("{spelling} as {position}"));
                assert_eq!(
                    kinds(&error),
                    [MistakeKind::Restricted],
                    "{spelling} as {position}"
                );
                let mistake = &error.mistakes()[0];
                assert_eq!(
                    mistake.header().unwrap(),
                    spelling.to_ascii_lowercase().as_str()
                );
                let text = mistake.to_string();
                assert!(text.contains(&spelling.to_ascii_lowercase()), "{text}");
                assert!(text.contains("it "), "no reason: {text}");
            }
        }
        let admission = Rule::new("x-other").only_with(name);
        let error = builder().rule(admission).build().unwrap_err();
        assert_eq!(
            kinds(&error),
            [MistakeKind::Restricted],
            "{name} as admission"
        );
    }
}

#[test]
fn what_a_front_proxy_verified_is_allowed_in_every_position() {
    for name in RELAYED {
        for (position, built) in positions(name) {
            assert!(built.is_ok(), "{name} as {position}");
        }
    }
}

#[test]
fn a11_guarded_names_need_a_credential_rule_to_be_read() {
    for name in GUARDED {
        for spelling in [
            name.to_owned(),
            name.to_ascii_uppercase(),
            name.replace('-', "_"),
        ] {
            for (position, built) in positions(&spelling) {
                match (position, built) {
                    ("target" | "static", built) => {
                        assert!(built.is_ok(), "{spelling} as {position}")
                    }
                    (_, Ok(_)) => panic!("{spelling} as {position}"),
                    (_, Err(error)) => {
                        assert_eq!(kinds(&error), [MistakeKind::Guarded]);
                        assert!(error.to_string().contains("Rule::credential"), "{error}");
                    }
                }
            }
            assert!(builder().allow_credential(&spelling).build().is_ok());
        }
    }
}

#[test]
fn a6_a7_a12_what_is_no_name_is_refused_in_every_position() {
    let long = "x".repeat(257);
    for name in [
        "",
        ":authority",
        "X Y",
        "x:y",
        "Café",
        "a\r\nb",
        "x\0",
        "\u{212A}ey",
        "*",
        "x-*",
        "x(",
        &long,
        &"x".repeat(70_000),
    ] {
        for (position, built) in positions(name) {
            let error = built.expect_err(&format!("{name:?} as {position}"));
            assert_eq!(
                kinds(&error),
                [MistakeKind::InvalidName],
                "{name:?} as {position}"
            );
            assert!(error.mistakes()[0].header().is_none());
            assert!(error.to_string().len() < 300, "{error}");
        }
    }
    for (_, built) in positions(&"x".repeat(256)) {
        assert!(built.is_ok());
    }
}

#[test]
fn a_value_written_into_a_name_is_not_shown() {
    for name in [
        "authorization: Bearer s3cret",
        "x-key=a;s3cret",
        "x-key s3cret",
    ] {
        let error = builder().allow(name).set(name, "v").build().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        let start = &name[..name.find([':', '=', ' ']).unwrap()];
        assert!(shown.contains(&format!("`{start}`")), "{shown}");
    }
}
