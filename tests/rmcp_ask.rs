//! What an upstream asks (sampling, elicitation, roots) reaches the caller whom it is about, on the
//! stream of the call that it is about, and nobody else.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use http::{HeaderName, HeaderValue};
use mcp::{Caller, Front, KINDS, Kind, PATIENCE, Server, bearer, call, factory, told, until};
use mcp_forward::{ClientFactory, rmcp::Factory};
use rmcp::{
    ErrorData, RoleClient, Service, ServiceExt,
    model::{
        CallToolRequest, CallToolResponse, ClientConfig, ClientResult, Implementation,
        ProtocolVersion, RequestId, ServerNotification, ServerRequest, ServerResult,
    },
    service::{
        InboundStreamOrigin, NotificationContext, PeerRequestOptions, RequestContext,
        RunningService,
    },
    transport::streamable_http_client::{
        StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};

/// What a caller was asked, and in which of its calls.
type Heard = (Value, Option<RequestId>);

const SILENT: &str = "silent";

/// A caller who answers with its name.
struct Asked {
    name: String,
    capabilities: Value,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Service<RoleClient> for Asked {
    async fn handle_request(
        &self,
        request: ServerRequest,
        context: RequestContext<RoleClient>,
    ) -> Result<ClientResult, ErrorData> {
        let call = match context.extensions.get::<InboundStreamOrigin>() {
            Some(InboundStreamOrigin::OutboundRequest(call)) => Some(call.clone()),
            _ => None,
        };
        let asked = serde_json::to_value(&request).unwrap();
        let answer = match asked["method"].as_str().unwrap() {
            "sampling/createMessage" => json!({
                "role": "assistant",
                "model": self.name,
                "content": { "type": "text", "text": self.name },
            }),
            "elicitation/create" => {
                json!({ "action": "accept", "content": { "name": self.name } })
            }
            _ => json!({ "roots": [{ "uri": format!("file:///{}", self.name) }] }),
        };
        self.heard.lock().unwrap().push((asked, call));
        if self.name == SILENT {
            std::future::pending::<()>().await;
        }
        Ok(serde_json::from_value(answer).unwrap())
    }

    async fn handle_notification(
        &self,
        _: ServerNotification,
        _: NotificationContext<RoleClient>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    fn get_info(&self) -> ClientConfig {
        let capabilities = serde_json::from_value(self.capabilities.clone()).unwrap();
        ClientConfig::new(capabilities, Implementation::new("caller", "1"))
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

/// An rmcp client in a session of the front.
struct Person {
    running: RunningService<RoleClient, Asked>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Person {
    async fn open(front: &Front, name: &str, capabilities: Value) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/mcp", front.addr);
        let token = HeaderValue::from_str(&bearer(name)).unwrap();
        let headers = [(HeaderName::from_static("authorization"), token)];
        let config = StreamableHttpClientTransportConfig::with_uri(url)
            .custom_headers(headers.into_iter().collect());
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let asked = Asked {
            name: name.to_owned(),
            capabilities,
            heard: Arc::clone(&heard),
        };
        let transport = StreamableHttpClientTransport::with_client(http, config);
        Self {
            running: asked.serve(transport).await.unwrap(),
            heard,
        }
    }

    /// Calls a tool that asks `question`; returns the call's id and what the upstream was answered.
    async fn ask(&self, tool: &str, question: &Value) -> (RequestId, Value) {
        let params = call(tool, json!({ "request": question }));
        let options = PeerRequestOptions::no_options();
        let request = CallToolRequest::new(params).into();
        let sent = self.running.send_cancellable_request(request, options);
        let handle = sent.await.unwrap();
        let id = handle.id.clone();
        let answer = tokio::time::timeout(PATIENCE, handle.await_response());
        let ServerResult::CallToolResult(result) = answer.await.unwrap().unwrap() else {
            panic!("no result");
        };
        (id, told(CallToolResponse::Complete(result)))
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

fn everything() -> Value {
    json!({ "sampling": {}, "elicitation": {}, "roots": {} })
}

fn sampling(text: &str) -> Value {
    json!({ "method": "sampling/createMessage", "params": {
        "messages": [{ "role": "user", "content": { "type": "text", "text": text } }],
        "maxTokens": 1,
    } })
}

fn elicitation(text: &str) -> Value {
    json!({ "method": "elicitation/create", "params": {
        "message": text,
        "requestedSchema": { "type": "object", "properties": { "name": { "type": "string" } } },
    } })
}

fn roots() -> Value {
    json!({ "method": "roots/list" })
}

/// Whose answer it is.
fn answered(answer: &Value) -> &str {
    let root = answer["roots"][0]["uri"].as_str();
    let root = root.and_then(|uri| uri.strip_prefix("file:///"));
    let others = [&answer["model"], &answer["content"]["name"]];
    let other = others.into_iter().find_map(Value::as_str);
    root.or(other).unwrap_or_else(|| panic!("{answer}"))
}

async fn start(kind: Kind) -> (Server, Front, Factory) {
    let server = Server::start(Kind::Sessions).await;
    let factory = factory();
    let front = Front::start(kind, &server.upstream(), &factory).await;
    (server, front, factory)
}

const REFUSED: i64 = -32601;

#[tokio::test]
async fn each_question_reaches_the_caller_of_its_call_in_that_call() {
    let (_server, front, _factory) = start(Kind::Sessions).await;
    let alice = Person::open(&front, "alice", everything()).await;
    let bob = Person::open(&front, "bob", everything()).await;
    let rounds = (0..10).flat_map(|round| {
        [("alice", &alice), ("bob", &bob)].map(|(name, person)| {
            let text = format!("{name} {round}");
            async move {
                for question in [sampling(&text), elicitation(&text), roots()] {
                    let (id, answer) = person.ask("ask", &question).await;
                    assert_eq!(answered(&answer), name);
                    let heard = person.heard();
                    let mut heard = heard.iter().filter(|(_, call)| *call == Some(id.clone()));
                    let (asked, _) = heard.next().unwrap();
                    assert_eq!(asked["method"], question["method"]);
                    let said = asked["params"].to_string();
                    assert!(question == roots() || said.contains(&text), "{said}");
                    assert!(heard.next().is_none(), "asked twice");
                }
            }
        })
    });
    join_all(rounds).await;
    for person in [&alice, &bob] {
        assert_eq!(person.heard().len(), 30);
    }
}

#[tokio::test]
async fn a_question_that_belongs_to_no_call_reaches_the_front_session() {
    let (server, front, _factory) = start(Kind::Sessions).await;
    let alice = Arc::new(Person::open(&front, "alice", everything()).await);
    let bob = Person::open(&front, "bob", everything()).await;
    bob.ask("whoami", &Value::Null).await;
    // Calls that are under way, with the ids that the upstream's own requests will have.
    let mut held = Vec::new();
    for count in 1..=3 {
        let alice = Arc::clone(&alice);
        held.push(tokio::spawn(async move {
            alice.ask("hold", &Value::Null).await
        }));
        let holding = |it: &Server| it.events().len() == count;
        server.wait("call", holding).await;
    }
    for question in [sampling("1"), elicitation("2"), roots(), sampling("3")] {
        alice.ask("ask_later", &question).await;
    }
    server.ask_now(4);
    server.wait("answer", |it| it.events().len() == 3 + 4).await;
    for event in &server.events()[3..] {
        assert_eq!(answered(&serde_json::from_str(event).unwrap()), "alice");
    }
    assert!(bob.heard().is_empty());
    let heard = alice.heard();
    assert_eq!(heard.len(), 4);
    for (asked, call) in heard {
        assert_eq!(call, None, "it came in another call: {asked}");
    }
    server.release(3);
    for held in held {
        held.await.unwrap();
    }
}

/// What a connection declared, by what the upstream was told in the handshake.
fn declared(server: &Server) -> Vec<Value> {
    let handshakes = server.of("initialize");
    let declared = handshakes
        .iter()
        .map(|it| it.body["params"]["capabilities"].clone());
    declared.collect()
}

#[tokio::test]
async fn only_what_the_caller_declared_can_be_asked() {
    let (server, front, _factory) = start(Kind::Sessions).await;
    for (name, question) in [
        ("sampling", sampling("?")),
        ("elicitation", elicitation("?")),
        ("roots", roots()),
    ] {
        server.forget();
        let person = Person::open(&front, name, json!({ name: {} })).await;
        for (other, question) in [
            ("sampling", sampling("?")),
            ("elicitation", elicitation("?")),
            ("roots", roots()),
        ] {
            let (_, answer) = person.ask("ask", &question).await;
            if other == name {
                assert_eq!(answered(&answer), name);
            } else {
                assert_eq!(answer["error"], REFUSED, "{name} {other}");
            }
        }
        assert_eq!(declared(&server), [json!({ name: {} })]);
        let heard = person.heard();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].0["method"], question["method"]);
    }
}

#[tokio::test]
async fn a_connection_without_a_front_session_declares_nothing_and_answers_nothing() {
    for kind in KINDS {
        let (server, front, _factory) = start(kind).await;
        // In a session, but with nothing declared.
        let caller = Caller::open(&front, [("authorization", "Bearer alice")]).await;
        for question in [sampling("?"), elicitation("?"), roots()] {
            let answer = caller.call("ask", json!({ "request": question })).await;
            assert_eq!(answer["error"], REFUSED, "{kind:?}");
        }
        assert_eq!(declared(&server), [json!({})], "{kind:?}");
    }
}

#[tokio::test]
async fn a_2026_07_28_upstream_is_told_that_nothing_can_be_asked() {
    let server = Server::start(Kind::NewestOnly).await;
    let factory = factory();
    let front = Front::start(Kind::Sessions, &server.upstream(), &factory).await;
    let alice = Person::open(&front, "alice", everything()).await;
    alice.ask("whoami", &Value::Null).await;
    let seen = server.seen();
    assert_eq!(seen[0].rpc(), "initialize");
    for seen in &seen[1..] {
        let meta = &seen.body["params"]["_meta"];
        let declared = &meta["io.modelcontextprotocol/clientCapabilities"];
        assert_eq!(*declared, json!({}), "{}", seen.body);
    }
}

#[tokio::test]
async fn a_server_can_ask_from_the_first_connection_on() {
    // Also one that speaks 2026-07-28, where nobody could be asked.
    for kind in [Kind::Sessions, Kind::Newest] {
        let server = Server::start(kind).await;
        let factory = factory();
        let front = Front::start(Kind::Sessions, &server.upstream(), &factory).await;
        let alice = Person::open(&front, "alice", everything()).await;
        for question in [sampling("?"), elicitation("?"), roots()] {
            let (_, answer) = alice.ask("ask", &question).await;
            assert_eq!(answered(&answer), "alice");
        }
        assert_eq!(declared(&server), [everything()]);
        assert!(server.of("server/discover").is_empty());
    }
}

#[tokio::test]
async fn who_leaves_while_being_asked_answers_nothing() {
    let (server, front, factory) = start(Kind::Sessions).await;
    let silent = Person::open(&front, SILENT, everything()).await;
    silent.ask("lend", &Value::Null).await;
    let inbound = front.lent().await;
    let client = factory
        .connect_for(&server.upstream(), &inbound)
        .await
        .unwrap();
    let asking = tokio::spawn(async move {
        let params = call("ask", json!({ "request": sampling("?") }));
        client.call_tool(params).await
    });
    until("it was not asked", async || !silent.heard().is_empty()).await;
    asking.abort();
    let answers = server.wait_for("answer", 1).await;
    assert_eq!(
        answers[0].body["error"]["code"], -32603,
        "{}",
        answers[0].body
    );
    assert_eq!(server.wait_for("notifications/cancelled", 1).await.len(), 1);
}
