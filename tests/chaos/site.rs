//! One upstream: an MCP server of bare sockets that judges what comes, and does to each call what its
//! plan says.
//!
//! It may not know which proxy is in front of it, nor what a caller sees.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    plan::{Call, Fault, PLACES, Place, Plan, Way},
    support::{Recorded, read_request},
    values::{seen, told},
    wire::{EVENTS, JSON, Kept, begin, refuse, reset, respond, result_of},
    world::World,
};

/// How long a proxy may take to let go of what its caller has left.
const PATIENCE: Duration = Duration::from_secs(30);

const CHALLENGE: &str = "Bearer resource_metadata=\"http://up.example/secret\"";
const SCOPE: &str =
    "Bearer error=\"insufficient_scope\", resource_metadata=\"http://up.example/secret\"";

pub struct Site {
    pub place: Place,
    pub addr: SocketAddr,
    world: Arc<World>,
    /// All of them, to redirect to.
    neighbours: OnceLock<Vec<SocketAddr>>,
    /// Whose session it is.
    sessions: Mutex<HashMap<String, u64>>,
    made: AtomicU64,
    /// What a call would have been told, had its event stream not broken off.
    untold: Mutex<HashMap<Call, String>>,
    /// The calls whose session has been lost for them.
    lost: Mutex<HashSet<Call>>,
    /// Odd while nothing listens.
    restarts: AtomicU64,
    restart: Notify,
}

impl Site {
    pub async fn start(place: Place, world: &Arc<World>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Arc::new(Self {
            place,
            addr: listener.local_addr().unwrap(),
            world: Arc::clone(world),
            neighbours: OnceLock::new(),
            sessions: Mutex::default(),
            made: AtomicU64::default(),
            untold: Mutex::default(),
            lost: Mutex::default(),
            restarts: AtomicU64::default(),
            restart: Notify::default(),
        });
        tokio::spawn(Arc::clone(&site).live(listener));
        site
    }

    pub fn meet(&self, neighbours: &[SocketAddr]) {
        self.neighbours.set(neighbours.to_vec()).unwrap();
    }

    /// Changes with every restart; odd during one.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::SeqCst)
    }

    /// Whether it restarts, or has since it was `before`.
    pub fn has_restarted(&self, before: u64) -> bool {
        before % 2 == 1 || self.restarts() != before
    }

    pub fn knows(&self, session: &str) -> bool {
        self.sessions.lock().unwrap().contains_key(session)
    }

    fn forget(&self, session: Option<&str>) {
        let mut sessions = self.sessions.lock().unwrap();
        session.and_then(|id| sessions.remove(id));
    }

    async fn live(self: Arc<Self>, mut listener: TcpListener) {
        loop {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        connections.spawn(Arc::clone(&self).serve(stream));
                        while connections.try_join_next().is_some() {}
                    }
                    () = self.restart.notified() => break,
                }
            }
            self.restarts.fetch_add(1, Ordering::SeqCst);
            drop(listener);
            connections.shutdown().await;
            self.sessions.lock().unwrap().clear();
            sleep(Duration::from_millis(5)).await;
            listener = loop {
                match TcpListener::bind(self.addr).await {
                    Ok(listener) => break listener,
                    Err(_) => sleep(Duration::from_millis(1)).await,
                }
            };
            self.restarts.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        while let Some(request) = read_request(&mut stream).await {
            if !request.complete || !self.answer(&request, &mut stream).await.unwrap_or(false) {
                return;
            }
        }
    }

    async fn answer(&self, request: &Recorded, stream: &mut TcpStream) -> Kept {
        let (place, newest) = (self.place, !self.place.has_sessions());
        if !request.line.ends_with(" /mcp HTTP/1.1") {
            let came = format!("a redirect was followed to {}: {request:?}", place.name());
            self.world.wrong(came);
            return Ok(false);
        }
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let method = message["method"].as_str().unwrap_or_default();
        let session = request.all("mcp-session-id").first().copied();
        let owner = session.and_then(|id| self.sessions.lock().unwrap().get(id).copied());
        if method == "tools/call" {
            return self.call(request, &message, session, stream).await;
        }
        if session.is_some() && owner.is_none() {
            return respond(stream, 404, "", "").await;
        }
        let Some(call) = self.world.judge_message(place, owner, request) else {
            return Ok(false);
        };
        let plan = self.world.chaos.plan(call);
        let is_early = plan.early && plan.place == place && message["id"].is_number();
        if method == "tools/list" || is_early {
            return self.list(call, &message, session, request, stream).await;
        }
        let principal = call.principal;
        let is_get = request.line.starts_with("GET ");
        let result = match method {
            "initialize" if !newest => {
                let made = self.made.fetch_add(1, Ordering::Relaxed);
                let id = format!("{}-{made}", place.name());
                self.sessions.lock().unwrap().insert(id.clone(), principal);
                let lines = format!("mcp-session-id: {id}\r\n{JSON}");
                let result = json!({
                    "protocolVersion": "2025-11-25",
                    "capabilities": { "tools": {} },
                    "serverInfo": { "name": place.name(), "version": "1" },
                });
                return respond(stream, 200, &lines, &result_of(&message, result)).await;
            }
            "server/discover" if newest => json!({
                "supportedVersions": ["2026-07-28"],
                "capabilities": { "tools": {} },
                "ttlMs": 0,
                "cacheScope": "private",
            }),
            "notifications/initialized" | "notifications/cancelled" => {
                return respond(stream, 202, "", "").await;
            }
            "" if is_get && place.has_streams() => {
                return self.stream(principal, request, stream).await;
            }
            "" if is_get => return respond(stream, 405, "", "").await,
            "" if request.line.starts_with("DELETE ") => {
                self.forget(session);
                return respond(stream, 200, "", "").await;
            }
            _ => return respond(stream, 404, "", "").await,
        };
        respond(stream, 200, JSON, &result_of(&message, result)).await
    }

    /// An event stream of the session's; or the rest of one that broke off.
    async fn stream(&self, principal: u64, request: &Recorded, stream: &mut TcpStream) -> Kept {
        let mut answer = "HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n\r\n".to_owned();
        let last = request.all("last-event-id").first().copied();
        let call = last.and_then(Call::in_event_id);
        if let Some(call) = call {
            let untold = self.untold.lock().unwrap().remove(&call);
            let (Some(event), true) = (untold, call.principal == principal) else {
                self.world
                    .wrong(format!("{principal} wants to know of {call}"));
                return Ok(false);
            };
            answer += &event;
        }
        stream.write_all(answer.as_bytes()).await?;
        if call.is_none() {
            stream.read_u8().await?;
        }
        Ok(false)
    }

    async fn call(
        &self,
        request: &Recorded,
        message: &Value,
        session: Option<&str>,
        stream: &mut TcpStream,
    ) -> Kept {
        let number = |name: &str| message["params"]["arguments"][name].as_u64();
        let (Some(principal), Some(number)) = (number("principal"), number("number")) else {
            self.world
                .wrong(format!("a call without arguments: {request:?}"));
            return Ok(false);
        };
        let call = Call { principal, number };
        if self.is_lost(call, session) {
            return respond(stream, 404, "", "").await;
        }
        self.world.judge_call(self.place, call, request);
        let text = told(self.place, &seen(request));
        let result = json!({ "content": [{ "type": "text", "text": text }] });
        let plan = self.world.chaos.plan(call);
        self.perform(call, plan, &result_of(message, result), stream)
            .await
    }

    /// The list of tools, of which one says who asks; or what comes before a call that is to fail.
    async fn list(
        &self,
        call: Call,
        message: &Value,
        session: Option<&str>,
        request: &Recorded,
        stream: &mut TcpStream,
    ) -> Kept {
        let plan = self.world.chaos.plan(call);
        let is_meant = plan.place == self.place && (plan.list || plan.early);
        if is_meant && self.is_lost(call, session) {
            return respond(stream, 404, "", "").await;
        }
        let text = told(self.place, &seen(request));
        let result = json!({
            "tools": [{ "name": "echo", "description": text, "inputSchema": { "type": "object" } }],
            "ttlMs": 0,
            "cacheScope": "private",
        });
        let body = result_of(message, result);
        match is_meant {
            true => self.perform(call, plan, &body, stream).await,
            false => respond(stream, 200, JSON, &body).await,
        }
    }

    /// Whether the session is gone; for a call that is to lose its own, the first time.
    fn is_lost(&self, call: Call, session: Option<&str>) -> bool {
        let plan = self.world.chaos.plan(call);
        if plan.fault == Fault::LoseSession && self.lost.lock().unwrap().insert(call) {
            self.forget(session);
        }
        session.is_some_and(|id| !self.knows(id))
    }

    /// Does what is planned, with `body` as the answer.
    async fn perform(&self, call: Call, plan: Plan, body: &str, stream: &mut TcpStream) -> Kept {
        let body = if plan.events {
            let id = call.event_id();
            format!("id: {id}\nretry: 100\ndata:\n\nevent: message\ndata: {body}\n\n")
        } else {
            body.to_owned()
        };
        self.world.tell(call);
        match plan.fault {
            Fault::Delay => sleep(self.pause(call)).await,
            Fault::ResetBeforeHead => return reset(stream),
            Fault::ResetInBody | Fault::CloseInBody => {
                if plan.is_taken_up() {
                    self.untold.lock().unwrap().insert(call, body.clone());
                }
                begin(stream, plan.events, &body).await?;
                // So that the head is not overtaken by the reset.
                sleep(self.pause(call)).await;
                return match plan.fault {
                    Fault::ResetInBody => reset(stream),
                    _ => Ok(false),
                };
            }
            Fault::RedirectSame => return self.redirect(call, self.addr, stream).await,
            Fault::RedirectOther => {
                let at = PLACES.iter().position(|it| *it == self.place).unwrap();
                let there = self.neighbours.get().unwrap()[(at + 1) % PLACES.len()];
                return self.redirect(call, there, stream).await;
            }
            Fault::Refuse401 => return refuse(stream, 401, CHALLENGE).await,
            Fault::Refuse403 => return refuse(stream, 403, CHALLENGE).await,
            Fault::ForbidScope => return refuse(stream, 403, SCOPE).await,
            Fault::Silent => return self.until_left(call, stream).await,
            Fault::StallInBody => {
                begin(stream, plan.events, &body).await?;
                return self.until_left(call, stream).await;
            }
            Fault::Vanish if self.ends_with_caller(call) => {
                return self.until_left(call, stream).await;
            }
            Fault::Vanish => sleep(self.pause(call)).await,
            Fault::Restart => {
                self.restart.notify_one();
                return std::future::pending().await;
            }
            Fault::None | Fault::Leave | Fault::LoseSession | Fault::Stranger => {}
        }
        respond(stream, 200, if plan.events { EVENTS } else { JSON }, &body).await
    }

    /// Whether a call ends where its caller goes away: not in a session of the proxy's own, where it may
    /// come back for the answer (MCP 2025-11-25, Streamable HTTP, "Sending Messages to the Server").
    fn ends_with_caller(&self, call: Call) -> bool {
        let chaos = self.world.chaos;
        chaos.way == Way::Relay || !chaos.in_session(call.principal, self.place)
    }

    fn pause(&self, call: Call) -> Duration {
        Duration::from_millis(1 + self.world.chaos.roll(call, 7, 10))
    }

    async fn redirect(&self, call: Call, to: SocketAddr, stream: &mut TcpStream) -> Kept {
        let status = [301, 302, 303, 307, 308][call.number as usize % 5];
        let lines = format!("location: http://{to}/stolen\r\n");
        respond(stream, status, &lines, "").await
    }

    /// Until the proxy lets go of it, which it has to.
    async fn until_left(&self, call: Call, stream: &mut TcpStream) -> Kept {
        let _busy = self.world.busy();
        if timeout(PATIENCE, stream.read_u8()).await.is_err() {
            let plan = self.world.chaos.plan(call);
            self.world
                .wrong(format!("nobody let go of {call}: {plan:?}"));
        }
        Ok(false)
    }
}
