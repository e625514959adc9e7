//! The examples, as a user meets them: real processes and real sockets.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{ExitStatus, Output, Stdio},
    sync::LazyLock,
    time::Duration,
};

use proxy::{Caller, ERAS, Era, Offer, Site};
use serde_json::json;
use support::{
    OK, RawUpstream, post, raw,
    refusal::{answer, challenges},
    status,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStderr, ChildStdout, Command},
};

#[path = "../examples/demo/sent.rs"]
mod sent;

/// What a test may take, once the examples are built.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `test` within the limit.
async fn bounded(test: impl Future<Output = ()>) {
    LazyLock::force(&EXAMPLES);
    tokio::time::timeout(LIMIT, test)
        .await
        .expect("the test did not end in time");
}

/// The folder of the examples, built as this test was.
///
/// Cargo builds no examples for `cargo test --test examples`, so they could be missing or old; where
/// they are neither, this takes a moment.
static EXAMPLES: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let name = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        name => name,
    };
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--examples", "--profile", name])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .args(cfg!(feature = "tracing").then_some("--all-features"))
        .arg("--target-dir")
        .arg(profile.parent().unwrap());
    // What Cargo tells a test about its package would look to build scripts like a change.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    assert!(
        cargo.status().unwrap().success(),
        "the examples do not build"
    );
    profile.join("examples")
});

fn command(example: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(EXAMPLES.join(example));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs an example to its end.
async fn run(example: &str, arguments: &[&str]) -> Output {
    command(example, arguments).output().await.unwrap()
}

/// An example that serves.
struct Server {
    child: Child,
    addr: SocketAddr,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Server {
    /// Starts an example and reads its one line, which has to end in `path`.
    async fn start(example: &str, arguments: &[&str], path: &str) -> Self {
        let mut child = command(example, arguments).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = stdout.next_line().await.unwrap();
        let line = line.expect("the example ended before it listened");
        let addr = line
            .strip_prefix("listening on http://")
            .and_then(|rest| rest.strip_suffix(path)?.parse().ok());
        Self {
            child,
            addr: addr.unwrap_or_else(|| panic!("another line than expected: {line}")),
            stdout,
            stderr,
        }
    }

    /// What Ctrl-C sends.
    #[cfg(unix)]
    async fn interrupt(&self) {
        let id = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().await;
        assert!(sent.unwrap().success());
    }

    /// Reads the log up to a line that has `text`.
    async fn logged(&mut self, text: &str) {
        while let Some(line) = self.stderr.next_line().await.unwrap() {
            if line.contains(text) {
                return;
            }
        }
        panic!("the log ended without {text:?}");
    }

    /// Its status, and what it had printed since it listened.
    async fn end(mut self) -> (ExitStatus, String) {
        let mut printed = String::new();
        let stdout = self.stdout.get_mut();
        stdout.read_to_string(&mut printed).await.unwrap();
        (self.child.wait().await.unwrap(), printed)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn demo_shows_what_arrives_and_no_whole_value() {
    bounded(async {
        let demo = run("demo", &[]).await;
        let printed = text(&demo.stdout);
        assert!(demo.status.success(), "{printed}{}", text(&demo.stderr));
        for (name, value) in sent::SENT {
            let row = printed.lines().find(|line| line.starts_with(name));
            let row = row.unwrap_or_else(|| panic!("no row for {name}: {printed}"));
            let marks: String = row.chars().filter(|c| "✓✗".contains(*c)).collect();
            let expected = if name == "cookie" {
                "✗✗✗"
            } else {
                "✗✓✓"
            };
            assert_eq!(marks, expected, "{name}: no rules, relay, factory");
            assert!(!printed.contains(value), "{name} is shown whole: {printed}");
        }
        assert_eq!(text(&demo.stderr), "");
    })
    .await;
}

#[tokio::test]
async fn relay_sends_what_its_flags_say_and_prints_one_line() {
    bounded(async {
        let upstream = RawUpstream::answering(OK).await;
        let url = upstream.url("/mcp?key=s3cr3t");
        let flags = "--allow x-user-id --bearer x-token=authorization --set x-proxy=s3cr3t-edge \
                     --require x-token --listen 127.0.0.1:0 --upstream";
        let mut flags: Vec<_> = flags.split_whitespace().collect();
        flags.push(&url);
        let mut relay = Server::start("relay", &flags, "/mcp").await;

        let caller = "x-user-id: alice\r\nx-token: s3cr3t-token\r\ncookie: s3cr3t=1\r\n";
        let answer = raw(relay.addr, post(relay.addr, caller)).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let sent = upstream.only_request();
        assert_eq!(sent.line, "POST /mcp?key=s3cr3t HTTP/1.1");
        assert_eq!(sent.all("x-user-id"), ["alice"]);
        assert_eq!(sent.all("authorization"), ["Bearer s3cr3t-token"]);
        assert_eq!(sent.all("x-proxy"), ["s3cr3t-edge"]);
        for name in ["cookie", "x-token"] {
            assert!(sent.all(name).is_empty(), "{name} travelled");
        }

        let without = raw(relay.addr, post(relay.addr, "x-user-id: alice\r\n")).await;
        assert_eq!(status(&without), 401, "x-token is required: {without}");
        let elsewhere = post(relay.addr, caller).replace("/mcp", "/other");
        assert_eq!(status(&raw(relay.addr, elsewhere).await), 404);
        assert_eq!(upstream.requests().len(), 1);

        relay.child.kill().await.unwrap();
        let mut logged = String::new();
        let stderr = relay.stderr.get_mut();
        stderr.read_to_string(&mut logged).await.unwrap();
        let (_, printed) = relay.end().await;
        assert_eq!(printed, "");
        assert!(!logged.contains("s3cr3t"), "{logged}");
    })
    .await;
}

#[tokio::test]
async fn relay_speaks_tls_to_an_https_upstream() {
    bounded(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/mcp", listener.local_addr().unwrap());
        let flags = ["--allow", "x-user-id", "--listen", "127.0.0.1:0"];
        let flags = [&flags[..], &["--upstream", &url]].concat();
        let relay = Server::start("relay", &flags, "/mcp").await;
        let first_byte = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap()
        };
        let (answer, first_byte) = tokio::join!(
            raw(relay.addr, post(relay.addr, "x-user-id: alice\r\n")),
            first_byte
        );
        // A handshake (RFC 8446 section 5.1), which the upstream then leaves.
        assert_eq!((status(&answer), first_byte), (502, 22));
    })
    .await;
}

#[tokio::test]
async fn relay_lets_credentials_through_for_admitted_callers_only() {
    bounded(async {
        let upstream = RawUpstream::answering(OK).await;
        let url = upstream.url("/mcp");
        let flags = "--allow-credential authorization --rename Cookie=x-session \
                     --admission-header x-proxy-key --listen 127.0.0.1:0 --upstream";
        let mut flags: Vec<_> = flags.split_whitespace().collect();
        flags.push(&url);
        let relay = Server::start("relay", &flags, "/mcp").await;
        let credentials = "authorization: Bearer a\r\ncookie: b=1\r\n";
        let admitted = format!("{credentials}x-proxy-key: c\r\n");
        for caller in [credentials, &admitted] {
            let answer = raw(relay.addr, post(relay.addr, caller)).await;
            assert_eq!(status(&answer), 200, "{answer}");
        }
        let requests = upstream.requests();
        assert!(requests[0].all("authorization").is_empty());
        assert!(requests[0].all("x-session").is_empty());
        assert_eq!(requests[1].all("authorization"), ["Bearer a"]);
        assert_eq!(requests[1].all("x-session"), ["b=1"]);
        assert!(requests[1].all("x-proxy-key").is_empty());
    })
    .await;
}

#[tokio::test]
async fn relay_tells_refusals_as_its_flags_say() {
    const METADATA: &str = "https://proxy.example/md";
    bounded(async {
        let foreign = r#"Bearer error="expired", resource_metadata="https://up.example/md""#;
        let lines = format!("www-authenticate: {foreign}\r\n");
        let upstream = RawUpstream::answering(answer(401, &lines)).await;
        let url = upstream.url("/mcp");
        let ours = format!(r#"Bearer error="expired", resource_metadata="{METADATA}""#);
        let none = r#"Bearer error="invalid_token""#;
        let rewrite = ["--challenge", "rewrite", "--resource-metadata", METADATA];
        for (more, expected) in [
            (&[][..], none),
            (&["--challenge", "omit"], none),
            (&["--challenge", "relay"], foreign),
            (&["--resource-metadata", METADATA], &ours),
            (&rewrite, &ours),
            (&["--challenge", "omit", "--probe"], none),
        ] {
            let flags = ["--allow-credential", "authorization", "--upstream", &url];
            let flags = [&flags[..], &["--listen", "127.0.0.1:0"], more].concat();
            let relay = Server::start("relay", &flags, "/mcp").await;
            let asked = upstream.requests().len();
            let answer = raw(relay.addr, post(relay.addr, "authorization: Bearer a\r\n")).await;
            assert_eq!(status(&answer), 401, "{more:?} {answer}");
            assert_eq!(challenges(&answer), [expected], "{more:?}");
            assert_eq!(upstream.requests().len(), asked + 1);
        }
    })
    .await;
}

#[tokio::test]
async fn relay_probes_and_fails_closed_as_its_flags_say() {
    bounded(async {
        let upstream = RawUpstream::new(|request| {
            let is_probe = request.body != b"{}";
            answer(if is_probe { 500 } else { 200 }, "").into()
        })
        .await;
        let url = upstream.url("/mcp");
        for (more, expected, sent) in [
            (&[][..], 200, 1),
            (&["--probe"], 200, 2),
            (&["--probe", "--fail-closed"], 502, 1),
        ] {
            let flags = ["--allow-credential", "authorization", "--upstream", &url];
            let flags = [&flags[..], &["--listen", "127.0.0.1:0"], more].concat();
            let relay = Server::start("relay", &flags, "/mcp").await;
            let before = upstream.requests().len();
            let answer = raw(relay.addr, post(relay.addr, "authorization: Bearer a\r\n")).await;
            assert_eq!(status(&answer), expected, "{more:?} {answer}");
            assert_eq!(upstream.requests().len(), before + sent, "{more:?}");
        }
        for flags in [
            &["--fail-closed"][..],
            &["--challenge", "rewrite"],
            &[
                "--challenge",
                "omit",
                "--resource-metadata",
                "https://proxy.example/md",
            ],
            &["--resource-metadata", "proxy.example/s3cr3t"],
        ] {
            let flags = [&["--upstream", "http://localhost/"], flags].concat();
            let relay = run("relay", &flags).await;
            let errors = text(&relay.stderr);
            assert_eq!(relay.status.code(), Some(2), "{flags:?} {errors}");
            assert!(
                errors.contains("error: ") && !errors.contains("s3cr3t"),
                "{errors}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn relay_names_every_mistake_and_shows_no_value() {
    bounded(async {
        let flags = [
            [
                "--upstream",
                "http://user:s3cr3t@mcp.example/mcp?key=s3cr3t",
            ],
            ["--allow", "host"],
            ["--allow", "authorization"],
            ["--rename", "x-no-target"],
            ["--bearer", "x-token=content-type"],
            ["--require", "x-nobody"],
            ["--set", "s3cr3t"],
            ["--set", "authorization: Bearer s3cr3t=="],
            ["--set", "x-edge= s3cr3t"],
            ["--set-env", "x-env=MCP_FORWARD_IS_NOT_SET"],
            ["--set-env", "x-env=Bearer s3cr3t"],
            ["--allow-host", "a/b"],
            ["--allow-origin", "nowhere"],
        ];
        let mut arguments = flags.concat();
        arguments.push("s3cr3t");
        let relay = run("relay", &arguments).await;
        let errors = text(&relay.stderr);
        assert_eq!(relay.status.code(), Some(2), "{errors}");
        assert_eq!(text(&relay.stdout), "");
        assert!(!errors.contains("s3cr3t"), "{errors}");
        let expected = [
            "userinfo",
            "`host` is never",
            "`authorization` carries a credential",
            "--rename",
            "`content-type`",
            "`x-nobody`",
            "--set:",
            "begins with `authorization`",
            "`x-edge`",
            "`MCP_FORWARD_IS_NOT_SET`",
            "`…`",
            "allowed host 1 is not",
            "allowed origin 1 is not",
            "an argument has no flag",
        ];
        for text in expected {
            let lines = errors.lines().filter(|line| line.contains(text)).count();
            assert_eq!(lines, 1, "{text}: {errors}");
        }
        assert_eq!(errors.lines().count(), expected.len(), "{errors}");
        assert!(errors.lines().all(|line| line.starts_with("error: ")));

        // What can be seen only where the upstream itself has no mistake.
        let flags = "--upstream http://localhost/mcp --allow x-user-id --rename x_user_id=x-other \
                     --admission-header x-proxy-key";
        let flags: Vec<_> = flags.split_whitespace().collect();
        let relay = run("relay", &flags).await;
        let errors = text(&relay.stderr);
        assert_eq!(relay.status.code(), Some(2), "{errors}");
        assert!(errors.contains("error: --admission-header"), "{errors}");
        assert!(errors.contains("error: `x_user_id` and"), "{errors}");
    })
    .await;
}

#[cfg(all(feature = "session", feature = "tracing"))]
#[tokio::test]
async fn relay_keeps_a_session_for_its_user() {
    bounded(async {
        let upstream = RawUpstream::new(|request| {
            let begins = request.all("mcp-session-id").is_empty();
            let id = if begins { "mcp-session-id: s\r\n" } else { "" };
            format!("HTTP/1.1 200 OK\r\n{id}connection: close\r\ncontent-length: 0\r\n\r\n").into()
        })
        .await;
        let url = upstream.url("/mcp");
        for (how, expected) in [("bind", "b"), ("pin", "a")] {
            let flags = "--allow x-team --principal-header x-user --listen 127.0.0.1:0 --session";
            let mut flags: Vec<_> = flags.split_whitespace().collect();
            flags.extend([how, "--upstream", &url]);
            let relay = Server::start("relay", &flags, "/mcp").await;
            for (lines, expected) in [
                ("x-team: a\r\n", 401),
                ("x-user: alice\r\nx-team: a\r\n", 200),
                ("x-user: bob\r\nmcp-session-id: s\r\n", 404),
                ("x-user: alice\r\nx-team: b\r\nmcp-session-id: s\r\n", 200),
            ] {
                let answer = raw(relay.addr, post(relay.addr, lines)).await;
                assert_eq!(status(&answer), expected, "{lines}");
            }
            let last = upstream.requests().pop().unwrap();
            assert_eq!(last.all("x-team"), [expected]);
        }
        let alone = ["--upstream", &url, "--session", "bind"];
        assert_eq!(run("relay", &alone).await.status.code(), Some(2));
        let wrong = [&alone[..], &["--principal-header", "x user"]].concat();
        let relay = run("relay", &wrong).await;
        assert_eq!(relay.status.code(), Some(2));
        assert!(text(&relay.stderr).contains("error: a header name that begins with `x`"));
    })
    .await;
}

#[tokio::test]
async fn gateway_sends_each_upstream_what_its_flags_say() {
    bounded(async {
        let github = Site::start("github", Offer::default()).await;
        let search = Site::start("search", Offer::default()).await;
        let urls = [
            format!("github=http://{}/mcp?key=s3cr3t", github.addr),
            format!("search=http://{}/mcp", search.addr),
        ];
        let flags = "--allow x-user --allow search:x-org --bearer github:x-token=authorization \
                     --set github:x-proxy=s3cr3t:edge=1 --set x-edge=a:b --require github:x-token \
                     --listen 127.0.0.1:0";
        let mut flags: Vec<_> = flags.split_whitespace().collect();
        flags.extend(["--upstream", &urls[0], "--upstream", &urls[1]]);
        let mut gateway = Server::start("gateway", &flags, "/mcp").await;
        let lines = [
            ("x-user", "alice"),
            ("x-org", "s3cr3t-org"),
            ("x-token", "s3cr3t-token"),
            ("cookie", "s3cr3t=1"),
        ];
        for era in ERAS {
            let caller = Caller::with(gateway.addr, era, "alice", &lines).await;
            let tools = caller.list("tools/list").await;
            let expected = [
                "github_whoami",
                "github_for-alice",
                "search_whoami",
                "search_for-alice",
            ];
            assert_eq!(tools, expected);
            let told = caller.call("search_whoami", json!({})).await;
            assert_eq!(
                (&told["at"], &told["user"]),
                (&json!("search"), &json!("alice"))
            );
            assert!(github.of("tools/call").is_empty());
        }
        for heard in github.heard.all() {
            assert_eq!(heard.header("x-user"), Some("alice"));
            assert_eq!(heard.header("authorization"), Some("Bearer s3cr3t-token"));
            assert_eq!(heard.header("x-proxy"), Some("s3cr3t:edge=1"));
            assert_eq!(heard.header("x-edge"), Some("a:b"));
            for name in ["x-org", "x-token", "cookie"] {
                assert_eq!(heard.header(name), None, "{name} travelled");
            }
        }
        for heard in search.heard.all() {
            assert_eq!(heard.header("x-user"), Some("alice"));
            assert_eq!(heard.header("x-org"), Some("s3cr3t-org"));
            assert_eq!(heard.header("x-edge"), Some("a:b"));
            for name in ["authorization", "x-proxy", "x-token", "cookie"] {
                assert_eq!(heard.header(name), None, "{name} travelled");
            }
        }

        // The guard stands outside: of whom it refuses, nobody hears.
        let heard = github.heard.all().len();
        let elsewhere = post(gateway.addr, "").replace("host: 127.0.0.1", "host: evil.example");
        assert_eq!(status(&raw(gateway.addr, elsewhere).await), 403);
        let elsewhere = post(gateway.addr, "").replace("/mcp", "/other");
        assert_eq!(status(&raw(gateway.addr, elsewhere).await), 404);
        assert_eq!(github.heard.all().len(), heard);

        gateway.child.kill().await.unwrap();
        let mut logged = String::new();
        let stderr = gateway.stderr.get_mut();
        stderr.read_to_string(&mut logged).await.unwrap();
        let (_, printed) = gateway.end().await;
        assert_eq!(printed, "");
        assert!(!logged.contains("s3cr3t"), "{logged}");
        assert!(!logged.contains("session_id"), "{logged}");
    })
    .await;
}

#[tokio::test]
async fn gateway_with_one_upstream_needs_no_name() {
    bounded(async {
        let site = Site::start("site", Offer::default()).await;
        let url = format!("http://{}/mcp?key=1", site.addr);
        let flags = [
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            &url,
            "--allow",
            "x-user",
        ];
        let gateway = Server::start("gateway", &flags, "/mcp").await;
        let caller = Caller::open(gateway.addr, Era::Sessions, "alice").await;
        assert_eq!(caller.call("whoami", json!({})).await["user"], "alice");
    })
    .await;
}

#[tokio::test]
async fn gateway_tells_refusals_and_keeps_a_session_for_its_user() {
    bounded(async {
        let site = Site::start("site", Offer::default()).await;
        let url = format!("site=http://{}/mcp", site.addr);
        let flags = "--allow x-user --allow-credential authorization --session bind \
                     --principal-header x-principal --resource-metadata https://me.example/meta \
                     --listen 127.0.0.1:0 --upstream";
        let mut flags: Vec<_> = flags.split_whitespace().collect();
        flags.push(&url);
        let gateway = Server::start("gateway", &flags, "/mcp").await;
        let lines = [("x-user", "alice"), ("x-principal", "alice")];
        let alice = Caller::with(gateway.addr, Era::Sessions, "alice", &lines).await;
        assert_eq!(alice.call("whoami", json!({})).await["user"], "alice");

        // Whoever else knows the session's id has none of it.
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let call = |principal: &str, session: &str| {
            let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
            let request = http.post(format!("http://{}/mcp", gateway.addr));
            let request = request
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .header("x-principal", principal)
                .header("mcp-session-id", session);
            request.body(message.to_string()).send()
        };
        let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": { "name": "raw", "version": "1" },
        } });
        let begun = http.post(format!("http://{}/mcp", gateway.addr));
        let begun = begun
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        let anonymous = begun
            .try_clone()
            .unwrap()
            .body(initialize.to_string())
            .send();
        assert_eq!(anonymous.await.unwrap().status(), 401);
        let begun = begun
            .header("x-principal", "bob")
            .body(initialize.to_string());
        let begun = begun.send().await.unwrap();
        let session = begun.headers()["mcp-session-id"].to_str().unwrap();
        assert_eq!(call("mallory", session).await.unwrap().status(), 404);
        assert_eq!(call("bob", session).await.unwrap().status(), 200);

        site.refuse(Some(http::StatusCode::UNAUTHORIZED));
        let refused = call("bob", session).await.unwrap();
        assert_eq!(refused.status(), 401);
        let challenge = refused.headers()["www-authenticate"].to_str().unwrap();
        assert!(challenge.contains("https://me.example/meta"), "{challenge}");
        assert!(!challenge.contains("up.example"), "{challenge}");
    })
    .await;
}

#[tokio::test]
async fn gateway_names_every_mistake_and_shows_no_value() {
    bounded(async {
        let flags = [
            ["--upstream", "one=http://localhost/mcp?key=s3cr3t"],
            ["--upstream", "http://localhost/mcp?key=s3cr3t"],
            ["--upstream", "two=http://user:s3cr3t@localhost/mcp"],
            ["--allow", "one:host"],
            ["--rename", "two:x-no-target"],
            ["--set", "s3cr3t"],
            ["--set", "s3cr3t:x-edge=1"],
            ["--set", "authorization: Bearer s3cr3t=="],
            ["--require", "one:x-nobody"],
            ["--allow-host", "a/b"],
        ];
        let mut arguments = flags.concat();
        arguments.push("s3cr3t");
        let gateway = run("gateway", &arguments).await;
        let errors = text(&gateway.stderr);
        assert_eq!(gateway.status.code(), Some(2), "{errors}");
        assert_eq!(text(&gateway.stdout), "");
        assert!(!errors.contains("s3cr3t"), "{errors}");
        for (text, times) in [
            ("each of several needs a name", 1),
            ("upstream two: the URL has userinfo", 1),
            ("upstream one: `host` is never", 1),
            ("upstream two: --rename", 1),
            // For each of the three.
            ("--set: there is no `=`", 3),
            ("--set: what stands before `:` is no upstream's name", 2),
            (
                "upstream one: --require: no other flag forwards `x-nobody`",
                1,
            ),
            ("allowed host 1 is not", 1),
            ("an argument has no flag", 1),
        ] {
            let lines = errors.lines().filter(|line| line.contains(text)).count();
            assert_eq!(lines, times, "{text}: {errors}");
        }
        assert!(errors.lines().all(|line| line.starts_with("error: ")));

        // What can be seen only where the upstreams themselves have no mistake.
        let flags = "--upstream one=http://localhost:1/mcp --upstream two=http://localhost:2/mcp \
                     --allow-credential authorization";
        let flags: Vec<_> = flags.split_whitespace().collect();
        let gateway = run("gateway", &flags).await;
        let errors = text(&gateway.stderr);
        assert_eq!(gateway.status.code(), Some(2), "{errors}");
        assert!(errors.contains("(--allow-fan-out)"), "{errors}");
        let flags = "--upstream one=http://localhost:1/mcp --upstream one=http://localhost:2/mcp";
        let flags: Vec<_> = flags.split_whitespace().collect();
        let gateway = run("gateway", &flags).await;
        let errors = text(&gateway.stderr);
        assert!(
            errors.contains("two upstreams have the name `one`"),
            "{errors}"
        );
    })
    .await;
}

/// A relay with one open request: the task that awaits the answer, and the upstream's socket.
#[cfg(unix)]
async fn open_request() -> (
    Server,
    tokio::task::JoinHandle<String>,
    tokio::net::TcpStream,
) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", upstream.local_addr().unwrap());
    let flags = ["--listen", "127.0.0.1:0", "--upstream", &url];
    let relay = Server::start("relay", &flags, "/mcp").await;
    let answer = tokio::spawn(raw(relay.addr, post(relay.addr, "")));
    let (mut socket, _) = upstream.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
    }
    (relay, answer, socket)
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_the_relay_after_the_open_request() {
    bounded(async {
        let (mut relay, answer, mut upstream) = open_request().await;
        relay.interrupt().await;
        relay.logged("ends after the open requests").await;
        upstream.write_all(OK.as_bytes()).await.unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.ends_with("ok"), "{answer}");
        let (status, printed) = relay.end().await;
        assert_eq!((status.code(), printed.as_str()), (Some(0), ""));
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_second_ctrl_c_ends_the_relay_at_once() {
    bounded(async {
        let (mut relay, answer, _upstream) = open_request().await;
        relay.interrupt().await;
        relay.logged("ends after the open requests").await;
        relay.interrupt().await;
        let (status, _) = relay.end().await;
        assert_eq!(status.code(), Some(130));
        assert_eq!(answer.await.unwrap(), "");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_the_gateway_after_the_open_request() {
    bounded(async {
        let site = Site::start("site", Offer::default()).await;
        let url = format!("http://{}/mcp", site.addr);
        let flags = [
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            &url,
            "--allow",
            "x-user",
        ];
        let mut gateway = Server::start("gateway", &flags, "/mcp").await;
        let caller = Caller::open(gateway.addr, Era::Newest, "alice").await;
        let call = tokio::spawn(async move { caller.call("hold", json!({})).await });
        let held = |all: &[String]| all.contains(&"holding alice".to_owned());
        site.events.wait("call", held).await;
        gateway.interrupt().await;
        gateway.logged("ends after the open requests").await;
        site.release();
        assert_eq!(call.await.unwrap()["user"], "alice");
        let (status, printed) = gateway.end().await;
        assert_eq!((status.code(), printed.as_str()), (Some(0), ""));
    })
    .await;
}

#[tokio::test]
async fn axum_handler_calls_the_upstream_as_its_caller() {
    bounded(async {
        let upstream = RawUpstream::answering(OK).await;
        let app = Server::start("axum", &[&upstream.url("/mcp")], "/tools").await;
        let request = "GET /tools HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                       x-user-id: alice\r\ncookie: secret\r\n\r\n";
        let answer = raw(app.addr, request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.ends_with("ok"), "{answer}");
        let sent = upstream.only_request();
        assert_eq!(sent.all("x-user-id"), ["alice"]);
        assert!(sent.all("cookie").is_empty());
    })
    .await;
}

#[tokio::test]
async fn hyper_server_relays_as_its_caller() {
    bounded(async {
        let upstream = RawUpstream::answering(OK).await;
        let app = Server::start("hyper", &[&upstream.url("/mcp")], "/mcp").await;
        let caller = "x-user-id: alice\r\ncookie: secret\r\n";
        let answer = raw(app.addr, post(app.addr, caller)).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.ends_with("ok"), "{answer}");
        let sent = upstream.only_request();
        assert_eq!(sent.all("x-user-id"), ["alice"]);
        assert!(sent.all("cookie").is_empty());
    })
    .await;
}

#[cfg(all(feature = "hmac", feature = "tracing"))]
#[tokio::test]
async fn workers_answer_for_the_server_through_either_and_believe_a_proof_once() {
    bounded(async {
        let workers = run("workers", &[]).await;
        let printed = text(&workers.stdout);
        assert!(
            workers.status.success(),
            "{printed}{}",
            text(&workers.stderr)
        );
        let scoped = "create_issue, list_pulls";
        let at = |row: &str| {
            let mut words = row.split_whitespace().skip_while(|word| *word != "worker");
            words
                .nth(1)
                .unwrap_or_default()
                .trim_matches(',')
                .to_owned()
        };
        let rows: Vec<_> = printed
            .lines()
            .filter(|line| line.starts_with("  "))
            .collect();
        assert_eq!(rows.len(), 10, "{printed}");
        // Every other connection is the other worker's: half of the answers were passed on.
        for pair in rows.chunks(2).take(4) {
            for (row, way) in pair.iter().zip(["direct", "passed on"]) {
                assert!(row.ends_with(scoped) && row.contains(way), "{printed}");
                assert_eq!(at(row), "0", "{printed}");
            }
        }
        // The proof is good at the worker that has not the session, and only once.
        assert!(rows[8].ends_with("404: no such session here"), "{printed}");
        assert!(rows[9].ends_with(scoped), "{printed}");
        assert_eq!([at(rows[8]), at(rows[9])], ["1", "0"], "{printed}");
    })
    .await;
}
