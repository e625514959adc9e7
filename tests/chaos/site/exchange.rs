//! What an upstream does with each request.
//!
//! It may not know which connection it came over, nor what a caller sees.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{PATIENCE, Site};
use crate::{
    plan::{Call, Fault, PLACES, Plan, Way},
    support::Recorded,
    values::{SECRET, seen, told},
    wire::{EVENTS, JSON, Kept, begin, refuse, reset, respond, result_of},
};

const CHALLENGE: &str = "Bearer resource_metadata=\"http://up.example/secret-of-upstream\"";
const SCOPE: &str = "Bearer error=\"insufficient_scope\", \
    resource_metadata=\"http://up.example/secret-of-upstream\"";

impl Site {
    pub(super) async fn answer(&self, request: &Recorded, stream: &mut TcpStream) -> Kept {
        let (place, newest) = (self.place, !self.place.has_sessions());
        if !request.line.ends_with(" /mcp HTTP/1.1") {
            let came = format!("a redirect was followed to {}: {request:?}", place.name());
            self.world.wrong(came);
            return Ok(false);
        }
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let method = message["method"].as_str().unwrap_or_default();
        let session = request.all("mcp-session-id").first().copied();
        let owner = self.owner(session);
        // What begins a session, or looks whether there is such a thing, is in none.
        let begins = matches!(method, "initialize" | "server/discover");
        if session.is_some() != (place.has_sessions() && !begins) {
            let came = format!("{session:?} came to {}: {request:?}", place.name());
            self.world.wrong(came);
            return Ok(false);
        }
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
        self.world
            .judge_call(self.place, self.owner(session), call, request);
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
            self.world.done(Fault::LoseSession);
            let mut losses = self.losses.lock().unwrap();
            *losses.entry(call.principal).or_default() += 1;
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
        if !matches!(plan.fault, Fault::LoseSession | Fault::Leave) {
            self.world.done(plan.fault);
        }
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
            Fault::Stranger => self.world.wrong(format!("{call} came, as a stranger")),
            Fault::None | Fault::Leave | Fault::LoseSession => {}
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
        let lines = format!("location: http://{to}/{SECRET}\r\n");
        respond(stream, status, &lines, SECRET).await
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
