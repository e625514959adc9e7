//! What the workers do, seen from outside: two processes of this program behind one port.
//!
//! Every answer is held against what it should be; another one ends the program with an error.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::worker::{ANSWERED_BY, BELIEVED, SESSION, TOKEN};
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

const MARK: &str = "x-forwarded-internally";
pub(crate) const PATH: &str = "/servers/github/mcp";

const HERE: &str = "worker 0, direct    create_issue, list_pulls";
pub(crate) const PASSED_ON: &str = "worker 0, passed on create_issue, list_pulls";
const NOT_HERE: &str = "worker 1, passed on 404: no such session here";

/// The worker processes, and the session that worker 0 has.
pub(crate) struct Show {
    pub(crate) gateway: Workers,
    pub(crate) caller: Caller,
    pub(crate) session: (&'static str, String),
}

/// What every worker is told, and the processes that were.
pub(crate) struct Workers {
    key: [u8; 32],
    store: String,
    pub(crate) children: Vec<Child>,
    pub(crate) addrs: Vec<SocketAddr>,
}

/// Shows two workers; `store` is what their `Owners` are told.
pub(crate) async fn show(store: String) -> Result<Show, BoxError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    let mut gateway = Workers {
        key,
        store,
        children: Vec::new(),
        addrs: Vec::new(),
    };
    gateway.start(2).await?;
    let workers = gateway.addrs.clone();
    let front = balance(workers.clone()).await?;
    let caller = Caller::new();
    let url = format!("http://{front}{PATH}");

    let (answer, session) = caller.begin(&url).await?;
    println!(
        "one port, two workers; the session is at worker {}",
        answer.worker()
    );
    let session = [session];

    // Each is a connection of its own, so the next worker's turn.
    for (what, params, expected) in [
        ("tools/list", json!({}), HERE),
        ("tools/list again", json!({}), PASSED_ON),
        (
            "as `jira` in the message",
            json!({ "server_id": "jira" }),
            HERE,
        ),
        ("the same again", json!({ "server_id": "jira" }), PASSED_ON),
    ] {
        let answer = caller.post(&url, "tools/list", &params, &session).await?;
        print(what, &answer, expected)?;
    }

    println!("\na mark from outside");
    let [session] = session;
    for (what, mark) in [
        ("true", "true"),
        ("made up", "v1;t=1;k=example;n=x;d=x;m=x"),
    ] {
        for expected in [HERE, PASSED_ON] {
            let marked = [session.clone(), (MARK, mark.to_owned())];
            let answer = caller.post(&url, "tools/list", &json!({}), &marked).await?;
            print(what, &answer, expected)?;
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
        std::slice::from_ref(&session),
    )?;
    forward.sign(&mut request)?;
    for (what, expected) in [("the first time", NOT_HERE), ("again", PASSED_ON)] {
        let answer = caller.send(request.clone()).await?;
        print(what, &answer, expected)?;
    }
    Ok(Show {
        gateway,
        caller,
        session,
    })
}

pub(crate) fn print(what: &str, answer: &Answer, expected: &str) -> Result<(), BoxError> {
    let believed = match answer.header(BELIEVED) {
        Some(_) => "passed on",
        None => "direct",
    };
    let tools = match answer.status {
        StatusCode::OK => answer.tools().join(", "),
        status => format!("{}: no such session here", status.as_u16()),
    };
    let worker = answer.worker();
    let row = format!("worker {worker}, {believed:<9} {tools}");
    println!("  {what:<26} {row}");
    let is_right = row == expected;
    is_right
        .then_some(())
        .ok_or_else(|| format!("`{what}` should be: {expected}").into())
}

impl Workers {
    /// More processes of this program.
    pub(crate) async fn start(&mut self, count: usize) -> Result<(), BoxError> {
        let first = self.children.len();
        for _ in 0..count {
            let mut child = Command::new(std::env::current_exe()?)
                .arg("worker")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let stdout = child.stdout.take().ok_or("it has no stdout")?;
            let line = BufReader::new(stdout).lines().next_line().await?;
            self.addrs.push(line.ok_or("a worker ended")?.parse()?);
            self.children.push(child);
        }
        for (number, child) in self.children.iter_mut().enumerate().skip(first) {
            let (key, workers, store) = (self.key, &self.addrs, &self.store);
            let told = json!({ "number": number, "key": key, "workers": workers, "store": store });
            let stdin = child.stdin.as_mut().ok_or("it has no stdin")?;
            // Not on the command line, which other users can see.
            stdin.write_all(format!("{told}\n").as_bytes()).await?;
        }
        Ok(())
    }
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

pub(crate) struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    next_id: AtomicUsize,
}

pub(crate) struct Answer {
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

    pub(crate) async fn post(
        &self,
        url: &str,
        method: &str,
        params: &Value,
        headers: &[(&str, String)],
    ) -> Result<Answer, BoxError> {
        self.send(self.request(url, method, params, headers)?).await
    }

    /// Begins a session, which is the line that later requests have.
    pub(crate) async fn begin(
        &self,
        url: &str,
    ) -> Result<(Answer, (&'static str, String)), BoxError> {
        let initialize = json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": { "name": "example", "version": "1" },
        });
        let answer = self.post(url, "initialize", &initialize, &[]).await?;
        let session = (
            SESSION,
            answer.header(SESSION).ok_or("there is no session")?,
        );
        let lines = std::slice::from_ref(&session);
        self.post(url, "notifications/initialized", &json!({}), lines)
            .await?;
        Ok((answer, session))
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
