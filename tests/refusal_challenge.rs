//! `Challenge`: what the caller is told, for every kind of upstream's challenge.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use mcp_forward::{CaptureLayer, Challenge, MistakeKind, RefusalLayer, Relay};
use support::{
    RawUpstream, http_client, logged, post, raw,
    refusal::{answer, challenges, takes_credential},
    serve, status,
};
use tower::ServiceBuilder;

const URL: &str = "https://proxy.example/md";

/// What the caller of a relay gets, whose upstream answers `said` with these challenges.
async fn told(challenge: Challenge, said: u16, lines: &[&str]) -> (u16, Vec<String>) {
    let lines = lines
        .iter()
        .map(|line| format!("www-authenticate: {line}\r\n"));
    let server = RawUpstream::answering(answer(said, &lines.collect::<String>())).await;
    let upstream = takes_credential(server.url("/mcp"));
    let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(capture)
        .layer(RefusalLayer::new().challenge(challenge));
    let addr = serve(layers.service(Relay::new(&upstream, http_client()))).await;
    let answer = raw(addr, post(addr, "authorization: Bearer alice\r\n")).await;
    assert!(!answer.ends_with("ok"), "the upstream's body: {answer}");
    let challenges = challenges(&answer).into_iter().map(str::to_owned);
    (status(&answer), challenges.collect())
}

fn rewrite() -> Challenge {
    Challenge::rewrite(URL).unwrap()
}

const OMITTED: &str = r#"Bearer error="invalid_token""#;

#[tokio::test]
async fn o1_the_upstreams_metadata_is_not_passed_on_as_ours() {
    let foreign = r#"Bearer resource_metadata="https://up.example/md""#;
    let expected = format!("Bearer resource_metadata=\"{URL}\"");
    assert_eq!(
        told(rewrite(), 401, &[foreign]).await,
        (401, vec![expected])
    );
    assert_eq!(
        told(Challenge::omit(), 401, &[foreign]).await,
        (401, vec![OMITTED.into()])
    );
    assert_eq!(
        told(Challenge::default(), 401, &[foreign]).await.1,
        [OMITTED]
    );
    // Only where the operator says so.
    assert_eq!(told(Challenge::relay(), 401, &[foreign]).await.1, [foreign]);
}

#[tokio::test]
async fn what_is_kept_of_the_upstreams_challenges() {
    let url = format!("resource_metadata=\"{URL}\"");
    let unread = format!("Bearer error=\"invalid_token\", {url}");
    let bare = format!("Bearer {url}");
    let long = format!("Bearer error=\"{}\"", "e".repeat(1025));
    let longest = format!("Bearer error=\"{}\"", "e".repeat(1024));
    let kept = format!("{longest}, {url}");
    let rows: &[(&[&str], &str)] = &[
        (&[], &unread),
        (&["Bearer"], &bare),
        (
            &[r#"Bearer error="expired""#],
            &format!("Bearer error=\"expired\", {url}"),
        ),
        (
            &["bEaReR ERROR=expired, SCOPE=a"],
            &format!("Bearer error=\"expired\", scope=\"a\", {url}"),
        ),
        (
            &[r#"Bearer realm="r", scope="a b", error="x", error_description="no""#],
            &format!("Bearer error=\"x\", scope=\"a b\", {url}"),
        ),
        // Several lines, and several challenges on one; those that cannot be read are passed by.
        (
            &[
                "Negotiate abc==",
                r#"Basic realm="r", Bearer scope="a""#,
                r#"Bearer scope="b""#,
            ],
            &format!("Bearer scope=\"a\", {url}"),
        ),
        (
            &["Bearer authorization_uri=https://example.test/auth"],
            &unread,
        ),
        (&["Negotiate abc=="], &unread),
        (&[r#"Basic realm="r""#], &unread),
        (&["Bearer error=\"\u{e9}\""], &unread),
        (&[r#"Bearer error="open"#], &unread),
        // What would have to be escaped, is empty or too long is left out.
        (&[r#"Bearer error="a\"b", scope="a\\b""#], &bare),
        (&["Bearer error=\"a\tb\", scope=\"\""], &bare),
        (&[&long], &bare),
        (&[&longest], &kept),
    ];
    for (lines, expected) in rows {
        let (status, challenges) = told(rewrite(), 401, lines).await;
        assert_eq!(
            (status, &challenges[..]),
            (401, &[(*expected).to_owned()][..]),
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn o3_a_403_has_a_challenge_for_insufficient_scope_alone() {
    let scope = r#"Bearer error="insufficient_scope", scope="a b", resource_metadata="https://up.example/md""#;
    let kept =
        format!(r#"Bearer error="insufficient_scope", scope="a b", resource_metadata="{URL}""#);
    let scopeless = r#"Bearer error="insufficient_scope""#;
    for (challenge, expected) in [
        (rewrite(), kept.as_str()),
        (Challenge::relay(), scope),
        (Challenge::omit(), scopeless),
    ] {
        assert_eq!(
            told(challenge, 403, &[scope]).await,
            (403, vec![expected.into()])
        );
    }
    for other in [
        r#"Bearer error="access_denied""#,
        "Bearer",
        "Negotiate abc==",
    ] {
        for challenge in [rewrite(), Challenge::relay(), Challenge::omit()] {
            assert_eq!(
                told(challenge, 403, &[other]).await,
                (403, vec![]),
                "{other}"
            );
        }
    }
}

#[tokio::test]
async fn l5_long_and_many_challenges_are_bounded_and_in_no_log() {
    let fits = format!("Bearer x=\"{}\"", "a".repeat(4 * 1024 - 11));
    let long = format!("Bearer x=\"s3cret{}\"", "a".repeat(10 * 1024));
    let (relayed, log) = logged(async {
        let lines = [long.as_str(), "A b=s3cret", &fits, "C", "D", "E"];
        let relayed = told(Challenge::relay(), 401, &lines).await;
        // A byte that would colour a terminal is no header, and hyper refuses it.
        let coloured = told(Challenge::relay(), 401, &["Bearer \u{1b}[31m"]).await;
        assert_eq!(coloured, (502, vec![]));
        relayed
    })
    .await;
    assert_eq!(fits.len(), 4 * 1024);
    assert_eq!(
        relayed,
        (401, vec!["A b=s3cret".into(), fits, "C".into(), "D".into()])
    );
    let ours = log.lines().filter(|line| line.contains("mcp_forward"));
    let ours: Vec<_> = ours.collect();
    assert!(!ours.is_empty() || cfg!(not(feature = "tracing")));
    assert!(!ours.concat().contains("s3cret"), "{ours:?}");
    // A 401 without a challenge to relay has one all the same: RFC 9110 section 15.5.2.
    assert_eq!(told(Challenge::relay(), 401, &[]).await.1, [OMITTED]);
}

#[tokio::test]
async fn one_url_per_path_never_leaves_its_quotes() {
    let by_path = || {
        Challenge::rewrite_with(|uri, refusal| {
            assert_eq!(refusal.upstream(), "up");
            let path = uri.path();
            (path != "/none").then(|| format!("https://proxy.example/md{path}"))
        })
    };
    let server = RawUpstream::answering(answer(401, "")).await;
    let upstream = takes_credential(server.url("/mcp"));
    let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(capture)
        .layer(RefusalLayer::new().challenge(by_path()));
    let addr = serve(layers.service(Relay::new(&upstream, http_client()))).await;
    let named = r#"Bearer error="invalid_token", resource_metadata="https://proxy.example/md/a/b""#;
    for (path, expected) in [
        ("/a/b", named),
        ("/none", OMITTED),
        ("/\",x=\"y", OMITTED),
        (&format!("/{}", "a".repeat(1024)), OMITTED),
    ] {
        let answer = raw(addr, post(addr, "").replace("/mcp", path)).await;
        assert_eq!(challenges(&answer), [expected], "{path}");
    }
}

#[test]
fn a_url_that_cannot_be_quoted_is_a_mistake() {
    for url in [
        "",
        "/md",
        "proxy.example",
        "ftp://proxy.example/",
        "https://a.example/\"",
        "https://a.example/ b",
        "https://a.example/\\",
        "https://a.example/\u{e9}",
    ] {
        let error = Challenge::rewrite(url).unwrap_err();
        assert_eq!(error.mistakes()[0].kind(), MistakeKind::InvalidUrl, "{url}");
        assert!(url.len() < 3 || !error.to_string().contains(url), "{error}");
    }
    for (challenge, shown) in [
        (rewrite(), "Challenge::rewrite"),
        (
            Challenge::rewrite_with(|_, _| None),
            "Challenge::rewrite_with",
        ),
        (Challenge::relay(), "Challenge::relay"),
        (Challenge::default(), "Challenge::omit"),
    ] {
        assert_eq!(format!("{challenge:?}"), shown);
    }
}
