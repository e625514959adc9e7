//! A refusal behind rmcp's server, in each of its modes, and before rmcp's client.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{HeaderName, StatusCode, header::AUTHORIZATION, request::Parts};
use mcp_forward::{
    CaptureLayer, Challenge, Inbound, InboundExt, RefusalLayer, Upstream, refusal::collect,
};
use rmcp::{
    ErrorData, RoleClient, RoleServer, ServerHandler, ServiceExt,
    model::{
        InitializeRequestParams, InitializeResult, ListToolsResult, PaginatedRequestParams,
        ServerCapabilities, ServerConfig, Tool,
    },
    service::{ClientInitializeError, RequestContext, RunningService, ServiceError},
    transport::{
        StreamableHttpClientTransport,
        streamable_http_client::{
            AuthRequiredError, InsufficientScopeError, StreamableHttpClientTransportConfig,
        },
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
        },
    },
};
use support::{
    RawUpstream, own_error, raw,
    refusal::{answer, call, challenges, takes_credential},
    serve, status,
};
use tower::{BoxError, ServiceBuilder};

/// A gateway as SDK users build it: each message asks the upstream, in a task of rmcp's.
#[derive(Clone)]
struct Gateway {
    upstream: Upstream,
    /// Whether a refused call is tried again with a token of the gateway's own.
    retries: bool,
}

impl Gateway {
    async fn asked(&self, context: &RequestContext<RoleServer>) -> Result<String, ErrorData> {
        let parts = context.extensions.get::<Parts>().unwrap();
        let inbound = Inbound::of(&parts.extensions);
        let said = async {
            let first = if self.retries {
                collect(call(&self.upstream)).await.0
            } else {
                call(&self.upstream).await
            };
            match first.unwrap() {
                StatusCode::UNAUTHORIZED if self.retries => Ok(StatusCode::OK),
                said => Ok::<_, BoxError>(said),
            }
        };
        match said.with_inbound(inbound.clone()).await.unwrap() {
            StatusCode::OK => {
                let token = inbound.get(&AUTHORIZATION);
                let token = token.map_or("none", |token| token.to_str().unwrap());
                Ok(token.trim_start_matches("Bearer ").to_owned())
            }
            said => Err(ErrorData::internal_error(said.to_string(), None)),
        }
    }
}

impl ServerHandler for Gateway {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        self.asked(&context).await?;
        context.peer.set_peer_info(request.clone());
        self.negotiate_initialize(&request)
    }

    /// One tool, which has the name of the token that the upstream took.
    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let token = self.asked(&context).await?;
        let no_arguments = serde_json::Map::from_iter([("type".to_owned(), "object".into())]);
        let tool = Tool::new(token, "", no_arguments);
        Ok(ListToolsResult::with_all_items(vec![tool]))
    }
}

/// rmcp's modes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Session,
    StatelessEvents,
    StatelessJson,
}

const MODES: [Mode; 3] = [Mode::Session, Mode::StatelessEvents, Mode::StatelessJson];

const METADATA: &str = "https://proxy.example/.well-known/oauth-protected-resource";

fn challenge() -> String {
    format!("Bearer error=\"invalid_token\", scope=\"a\", resource_metadata=\"{METADATA}\"")
}

/// An upstream that takes what `says` a token is good for.
#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<HashMap<String, u16>>>);

impl Tokens {
    fn set(&self, token: &str, status: u16) {
        let token = format!("Bearer {token}");
        self.0.lock().unwrap().insert(token, status);
    }

    async fn server(&self) -> RawUpstream {
        let tokens = self.clone();
        RawUpstream::new(move |request| {
            let sent = request.all("authorization").concat();
            let status = tokens.0.lock().unwrap().get(&sent).copied();
            let status = status.unwrap_or(401);
            let error = if status == 401 {
                "invalid_token"
            } else {
                "insufficient_scope"
            };
            let line = format!("www-authenticate: Bearer error=\"{error}\", scope=\"a\"\r\n");
            answer(status, if status == 200 { "" } else { &line }).into()
        })
        .await
    }
}

async fn gateway(mode: Mode, upstream: &Upstream, retries: bool) -> SocketAddr {
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(mode == Mode::Session)
        .with_json_response(mode == Mode::StatelessJson);
    let gateway = Gateway {
        upstream: upstream.clone(),
        retries,
    };
    let manager = Arc::<LocalSessionManager>::default();
    let mcp = StreamableHttpService::new(move || Ok(gateway.clone()), manager, config);
    let capture = CaptureLayer::for_upstreams([upstream]).build().unwrap();
    let refusal = RefusalLayer::new().challenge(Challenge::rewrite(METADATA).unwrap());
    let layers = ServiceBuilder::new().layer(capture).layer(refusal);
    serve(layers.service(mcp)).await
}

type McpClient = RunningService<RoleClient, ()>;

async fn connect(addr: SocketAddr, token: &str) -> Result<McpClient, ClientInitializeError> {
    let token = format!("Bearer {token}").parse().unwrap();
    let headers = HashMap::<HeaderName, _>::from([(AUTHORIZATION, token)]);
    let config = StreamableHttpClientTransportConfig::with_uri(format!("http://{addr}/mcp"));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let config = config.custom_headers(headers);
    ().serve(StreamableHttpClientTransport::with_client(http, config))
        .await
}

#[tokio::test]
async fn a_client_is_told_from_the_start_and_in_mid_session() {
    for mode in MODES {
        let tokens = Tokens::default();
        let server = tokens.server().await;
        let upstream = takes_credential(server.url("/mcp"));
        let addr = gateway(mode, &upstream, false).await;

        let error = connect(addr, "bad").await.unwrap_err();
        assert_eq!(
            error.auth_challenge(),
            Some(&*challenge()),
            "{mode:?} {error}"
        );

        tokens.set("alice", 200);
        let client = connect(addr, "alice").await.unwrap();
        let tools = client.list_tools(None).await.unwrap();
        assert_eq!(tools.tools[0].name, "alice", "{mode:?}");

        // The token is revoked, and then has too little scope. The cache of the client is passed by.
        for (status, is_scope) in [(401, false), (403, true)] {
            tokens.set("alice", status);
            let request = rmcp::model::ListToolsRequest::default();
            let error = client.send_request(request.into()).await.unwrap_err();
            let ServiceError::TransportSend(error) = error else {
                panic!("{error:?}");
            };
            let error: &(dyn std::error::Error + 'static) = &*error.error;
            let mut chain = std::iter::successors(Some(error), |&error| error.source());
            let found = chain.any(|error| match is_scope {
                false => error
                    .downcast_ref::<AuthRequiredError>()
                    .is_some_and(|it| it.www_authenticate_header.contains(METADATA)),
                true => error
                    .downcast_ref::<InsufficientScopeError>()
                    .is_some_and(|it| it.required_scope.as_deref() == Some("a")),
            });
            assert!(found, "{mode:?} {status} {error:?}");
        }
        // And is good again.
        tokens.set("alice", 200);
        client.list_tools(None).await.unwrap();
        client.cancel().await.unwrap();
    }
}

/// The raw answer to one message.
async fn message(addr: SocketAddr, lines: &str, body: &str) -> String {
    let length = body.len();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\n{lines}content-length: {length}\r\n\r\n{body}"
    );
    raw(addr, request).await
}

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const LIST: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#;

fn token(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// The header of the session that `addr` begins for the token, if it has sessions.
async fn session(addr: SocketAddr, mode: Mode, by: &str) -> String {
    if mode != Mode::Session {
        return String::new();
    }
    let begun = message(addr, &token(by), INITIALIZE).await;
    assert_eq!(status(&begun), 200, "{begun}");
    let mut lines = begun.split("\r\n");
    let line = lines
        .find(|line| line.starts_with("mcp-session-id: "))
        .unwrap();
    let line = format!("{line}\r\nmcp-protocol-version: 2025-11-25\r\n");
    let known = message(addr, &format!("{line}{}", token(by)), INITIALIZED).await;
    assert_eq!(status(&known), 202, "{known}");
    line
}

#[tokio::test]
async fn the_same_id_gets_the_fresh_result_after_a_refusal() {
    for mode in MODES {
        let tokens = Tokens::default();
        tokens.set("old", 200);
        let server = tokens.server().await;
        let upstream = takes_credential(server.url("/mcp"));
        let addr = gateway(mode, &upstream, false).await;
        let session = session(addr, mode, "old").await;
        tokens.set("old", 401);

        let refused = message(addr, &format!("{session}{}", token("old")), LIST).await;
        assert_eq!(status(&refused), 401, "{mode:?} {refused}");
        assert_eq!(challenges(&refused).len(), 1);
        own_error(&refused, -32000);

        tokens.set("renewed", 200);
        let fresh = message(addr, &format!("{session}{}", token("renewed")), LIST).await;
        assert_eq!(status(&fresh), 200, "{mode:?} {fresh}");
        assert!(
            fresh.contains("\"renewed\"") && fresh.contains("\"id\":7"),
            "{fresh}"
        );
    }
}

/// MCP's authorization begins with a 401.
#[tokio::test]
async fn the_first_contact_has_no_token() {
    for mode in MODES {
        let tokens = Tokens::default();
        tokens.set("alice", 200);
        let server = tokens.server().await;
        let addr = gateway(mode, &takes_credential(server.url("/mcp")), false).await;
        let refused = message(addr, "", INITIALIZE).await;
        assert_eq!(status(&refused), 401, "{mode:?} {refused}");
        assert_eq!(challenges(&refused), [challenge()]);
        let begun = message(addr, &token("alice"), INITIALIZE).await;
        assert_eq!(status(&begun), 200, "{mode:?} {begun}");
    }
}

#[tokio::test]
async fn a_403_stays_one_an_operators_is_a_502_and_a_retry_hides_it() {
    for mode in MODES {
        let tokens = Tokens::default();
        tokens.set("alice", 403);
        let server = tokens.server().await;
        let addr = gateway(mode, &takes_credential(server.url("/mcp")), false).await;
        let refused = message(addr, &token("alice"), INITIALIZE).await;
        assert_eq!(status(&refused), 403, "{mode:?} {refused}");

        let own = Upstream::builder("own", server.url("/mcp")).set("authorization", "Bearer own");
        let addr = gateway(mode, &own.build().unwrap(), false).await;
        let refused = message(addr, &token("alice"), INITIALIZE).await;
        assert_eq!(status(&refused), 502, "{mode:?} {refused}");
        assert!(challenges(&refused).is_empty());

        let addr = gateway(mode, &takes_credential(server.url("/mcp")), true).await;
        let begun = message(addr, &token("bad"), INITIALIZE).await;
        assert_eq!(status(&begun), 200, "{mode:?} {begun}");
    }
}
