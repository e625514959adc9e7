//! Two worker processes of one gateway behind one port: `cargo run --example workers`.
//!
//! Connections go to one worker and the other in turns, whoever has the session; what lands in the
//! wrong worker is passed on with a proof. It shows that a server's tools are the same through either,
//! what a forged mark gets, and what a proof gets that is used again. It ends by itself.
#![allow(clippy::print_stdout, reason = "it shows what happens")]

mod gateway;
mod owners;
mod worker;

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mcp_forward::InternalForward;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tower::BoxError;
use worker::{ANSWERED_BY, BELIEVED, SESSION, TOKEN};

const MARK: &str = "x-forwarded-internally";
const PATH: &str = "/servers/github/mcp";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => worker::run().await,
        _ => show().await,
    }
}

async fn show() -> Result<(), BoxError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    let (_children, workers) = start(&key).await?;
    let front = balance(workers.clone()).await?;
    let caller = Caller::new();
    let url = format!("http://{front}{PATH}");

    let initialize = json!({
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": { "name": "example", "version": "1" },
    });
    let answer = caller.post(&url, "initialize", &initialize, &[]).await?;
    let session = answer.header(SESSION).ok_or("there is no session")?;
    let session = [(SESSION, session)];
    println!(
        "one port, two workers; the session is at worker {}",
        answer.worker()
    );
    caller
        .post(&url, "notifications/initialized", &json!({}), &session)
        .await?;

    // Each is a connection of its own, so the next worker's turn.
    for (what, params) in [
        ("tools/list", json!({})),
        ("tools/list again", json!({})),
        ("as `jira` in the message", json!({ "server_id": "jira" })),
        ("the same again", json!({ "server_id": "jira" })),
    ] {
        let answer = caller.post(&url, "tools/list", &params, &session).await?;
        print(what, &answer);
    }

    println!("\na mark from outside");
    let [session] = session;
    for (what, mark) in [
        ("true", "true"),
        ("made up", "v1;t=1;k=example;n=x;d=x;m=x"),
    ] {
        for _ in &workers {
            let marked = [session.clone(), (MARK, mark.to_owned())];
            let answer = caller.post(&url, "tools/list", &json!({}), &marked).await?;
            print(what, &answer);
        }
    }

    // A proof that a worker could have sent, straight to the worker that has not the session.
    println!("\na worker's proof, at worker 1");
    let forward = InternalForward::new([("example", key)])?;
    let other = workers.get(1).ok_or("there is one worker")?;
    let mut request = caller.request(
        &format!("http://{other}{PATH}"),
        "tools/list",
        &json!({}),
        &[session],
    )?;
    forward.sign(&mut request)?;
    for what in ["the first time", "again"] {
        let answer = caller.send(request.clone()).await?;
        print(what, &answer);
    }
    Ok(())
}

fn print(what: &str, answer: &Answer) {
    let believed = match answer.header(BELIEVED) {
        Some(_) => "passed on",
        None => "direct",
    };
    let tools = match answer.status {
        StatusCode::OK => answer.tools().join(", "),
        status => format!("{}: no such session here", status.as_u16()),
    };
    let worker = answer.worker();
    println!("  {what:<26} worker {worker}, {believed:<9} {tools}");
}

/// Two processes of this program, and where each listens.
async fn start(key: &[u8]) -> Result<(Vec<Child>, Vec<SocketAddr>), BoxError> {
    let mut children = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("it has no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        workers.push(line.ok_or("a worker ended")?.parse()?);
        children.push(child);
    }
    for (number, child) in children.iter_mut().enumerate() {
        let told = json!({ "number": number, "key": key, "workers": workers });
        let stdin = child.stdin.as_mut().ok_or("it has no stdin")?;
        // Not on the command line, which other users can see.
        stdin.write_all(format!("{told}\n").as_bytes()).await?;
    }
    Ok((children, workers))
}

/// One port whose connections go to one worker after the other.
async fn balance(workers: Vec<SocketAddr>) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let front = listener.local_addr()?;
    tokio::spawn(async move {
        let mut turns = workers.into_iter().cycle();
        while let (Ok((mut caller, _)), Some(worker)) = (listener.accept().await, turns.next()) {
            tokio::spawn(async move {
                let mut worker = TcpStream::connect(worker).await?;
                copy_bidirectional(&mut caller, &mut worker).await
            });
        }
    });
    Ok(front)
}

struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    next_id: AtomicUsize,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Caller {
    fn new() -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        // A connection for each request.
        client.pool_max_idle_per_host(0);
        Self {
            client: client.build_http(),
            next_id: AtomicUsize::new(1),
        }
    }

    fn request(
        &self,
        url: &str,
        method: &str,
        params: &Value,
        headers: &[(&str, String)],
    ) -> Result<Request<Bytes>, BoxError> {
        let mut message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        if !method.starts_with("notifications/") {
            message["id"] = self.next_id.fetch_add(1, Ordering::Relaxed).into();
        }
        let mut request = Request::post(url)
            .header("authorization", TOKEN)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        Ok(request.body(message.to_string().into())?)
    }

    async fn post(
        &self,
        url: &str,
        method: &str,
        params: &Value,
        headers: &[(&str, String)],
    ) -> Result<Answer, BoxError> {
        self.send(self.request(url, method, params, headers)?).await
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Answer, BoxError> {
        let response = self.client.request(request.map(Full::new)).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    }

    fn worker(&self) -> String {
        self.header(ANSWERED_BY).unwrap_or_default()
    }

    /// The names in the answer to `tools/list`, which is JSON or an event.
    fn tools(&self) -> Vec<String> {
        let events = self.body.lines();
        let data = events.map(|line| line.strip_prefix("data:").unwrap_or(line));
        let messages = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let tools = messages.filter_map(|message| message["result"]["tools"].as_array().cloned());
        let names = tools
            .flatten()
            .filter_map(|tool| Some(tool["name"].as_str()?.to_owned()));
        names.collect()
    }
}
