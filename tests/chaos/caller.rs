//! The callers: each principal's calls, what comes of them, and whether the table has it.
//!
//! It may not know how a fault is done.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use mcp_forward::InternalForward;
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    task::yield_now,
    time::{sleep, timeout},
};

use crate::{
    answer::Answer,
    house::PROBE,
    line::{Line, request},
    plan::{Call, Claim, Fault, PRINCIPALS, Place, Plan, Way, sent},
    site::Site,
    table::{Outcome, allows},
    world::World,
};

/// How many calls of one principal are under way.
pub const LANES: u64 = 2;

/// What a call that hangs is ended after; far beyond what any takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everybody who calls, and whom they call.
pub struct Callers {
    pub world: Arc<World>,
    pub sites: Vec<Arc<Site>>,
    pub proxy: SocketAddr,
    pub forward: InternalForward,
    /// Of each principal, by path.
    pub sessions: Vec<Mutex<HashMap<String, Arc<str>>>>,
}

/// One of a principal's lanes.
struct Lane {
    all: Arc<Callers>,
    line: Line,
}

impl Callers {
    /// Everybody makes their calls from `first` to before `last`.
    pub async fn run(self: &Arc<Self>, first: u64, last: u64) {
        let mut lanes = tokio::task::JoinSet::new();
        for principal in 0..PRINCIPALS {
            for lane in 0..LANES {
                let mut caller = Lane {
                    all: Arc::clone(self),
                    line: Line::new(self.proxy),
                };
                let numbers = (first..last).filter(move |number| number % LANES == lane);
                lanes.spawn(async move {
                    for number in numbers {
                        caller.call(Call { principal, number }).await;
                    }
                });
            }
        }
        lanes.join_all().await;
        self.world.idle().await;
        self.end_sessions(last).await;
    }

    /// Whoever has a session ends it.
    async fn end_sessions(&self, number: u64) {
        let mut line = Line::new(self.proxy);
        for (principal, sessions) in (0..).zip(&self.sessions) {
            for (path, id) in sessions.lock().await.drain() {
                let call = Call { principal, number };
                if let Err(what) = self.end_session(&mut line, &path, call, &id).await {
                    self.world.wrong(format!("a session did not end: {what}"));
                }
            }
        }
    }

    async fn end_session(
        &self,
        line: &mut Line,
        path: &str,
        call: Call,
        id: &str,
    ) -> Result<(), String> {
        let request = request(self.proxy, path, "DELETE", headers(call, Some(id), false));
        let response = line.send(request).await;
        let answer = Answer::read(response.map_err(|error| error.to_string())?).await;
        let is_over = answer.status.is_success() || answer.status == 404;
        is_over.then_some(()).ok_or_else(|| answer.show())
    }

    fn path(plan: &Plan) -> String {
        match plan.scoped {
            true => format!("/servers/{}/mcp", plan.place.name()),
            false => "/mcp".to_owned(),
        }
    }

    fn site(&self, place: Place) -> &Site {
        self.sites.iter().find(|site| site.place == place).unwrap()
    }
}

/// What goes with every request of a call.
fn headers(call: Call, session: Option<&str>, newest: bool) -> HeaderMap {
    let mut headers: HeaderMap = sent(call)
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    if let Some(session) = session {
        headers.insert("mcp-session-id", session.parse().unwrap());
    }
    let version = if newest { "2026-07-28" } else { "2025-11-25" };
    headers.insert("mcp-protocol-version", HeaderValue::from_static(version));
    headers
}

impl Lane {
    async fn call(&mut self, call: Call) {
        let made = timeout(PATIENCE, self.made(call)).await;
        if let Err(what) = made.unwrap_or_else(|_| Err("it hangs".to_owned())) {
            self.line.hang_up();
            let world = &self.all.world;
            let plan = world.chaos.plan(call);
            world.wrong(format!("{call}: {plan:?}: {what}"));
        }
    }

    /// What is wrong with the call, if anything.
    async fn made(&mut self, call: Call) -> Result<(), String> {
        let all = Arc::clone(&self.all);
        let (world, chaos) = (&all.world, all.world.chaos);
        let plan = chaos.plan(call);
        let site = all.site(plan.place);
        let path = Callers::path(&plan);
        let session = match chaos.in_session(call.principal, plan.place) {
            true => Some(self.session(&path, call, plan.place).await),
            false => None,
        };
        let named = match plan.fault {
            Fault::Stranger => Some(all.strangers(&path, call).await),
            _ => session.clone(),
        };
        let request = self.tool_call(call, &plan, &path, named.as_deref());
        let before = site.restarts();
        let outcome = self.outcome(call, &plan, request).await?;
        let restarting = before % 2 == 1 || site.restarts() != before;
        let is_lost = |id: &Arc<str>| chaos.way == Way::Relay && !site.knows(id);
        let lost = session.filter(is_lost);
        // Also the layer that bound it has learnt of it then.
        if let Some(lost) = &lost
            && outcome == Outcome::Status(404)
            && named.as_ref() == Some(lost)
        {
            let mut sessions = all.sessions[usize::try_from(call.principal).unwrap()]
                .lock()
                .await;
            if sessions.get(&path) == Some(lost) {
                sessions.remove(&path);
            }
        }
        let is_expected = (lost.is_some() && outcome == Outcome::Status(404))
            || allows(chaos.way, &plan, restarting, outcome);
        world.count(plan.fault, outcome);
        let lost = lost.is_some();
        is_expected
            .then_some(())
            .ok_or_else(|| format!("{outcome:?} (restarting: {restarting}, session lost: {lost})"))
    }

    fn tool_call(
        &self,
        call: Call,
        plan: &Plan,
        path: &str,
        session: Option<&str>,
    ) -> Request<Bytes> {
        let Call { principal, number } = call;
        let prefix = match plan.scoped {
            true => String::new(),
            false => format!("{}_", plan.place.name()),
        };
        let tool = format!("{prefix}echo");
        let newest = session.is_none();
        let mut message = json!({ "jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {
            "name": tool,
            "arguments": { "principal": principal, "number": number },
        } });
        let mut headers = headers(call, session, newest);
        if newest {
            headers.insert("mcp-method", HeaderValue::from_static("tools/call"));
            headers.insert("mcp-name", tool.parse().unwrap());
            message["params"]["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "caller", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            });
        }
        if plan.probed {
            headers.insert(PROBE, HeaderValue::from_static(plan.place.name()));
        }
        if plan.claim == Claim::Forged {
            let mark = HeaderValue::from_static("chaos.nobody.mark");
            headers.insert("x-forwarded-internally", mark);
        }
        let mut request = self.post(path, headers, &message);
        if plan.claim == Claim::Proved {
            self.all.forward.sign(&mut request).unwrap();
        }
        request
    }

    fn post(&self, path: &str, headers: HeaderMap, message: &Value) -> Request<Bytes> {
        let request = request(self.all.proxy, path, "POST", headers);
        request.map(|_| Bytes::from(message.to_string()))
    }

    /// Sends the call, or goes away during it, as its plan has it.
    async fn outcome(
        &mut self,
        call: Call,
        plan: &Plan,
        request: Request<Bytes>,
    ) -> Result<Outcome, String> {
        let world = Arc::clone(&self.all.world);
        let in_gateway = world.chaos.way == Way::Gateway;
        match plan.fault {
            Fault::Leave => {
                let at = Duration::from_micros(world.chaos.roll(call, 8, 100_000));
                let leaves = sleep(at);
                tokio::select! {
                    biased;
                    () = leaves => {}
                    outcome = exchange(&mut self.line, request, call, plan) => return outcome,
                }
            }
            Fault::Vanish => {
                let arrival = world.arrival(call);
                tokio::select! {
                    outcome = exchange(&mut self.line, request, call, plan) => return outcome,
                    _ = arrival => {}
                }
            }
            Fault::Silent | Fault::StallInBody if in_gateway => {
                let (arrival, path) = (world.arrival(call), request.uri().path().to_owned());
                let session = request.headers().get("mcp-session-id").cloned();
                tokio::select! {
                    outcome = exchange(&mut self.line, request, call, plan) => return outcome,
                    _ = arrival => {}
                }
                if let Some(session) = session {
                    self.cancel(call, &path, session.to_str().unwrap()).await?;
                }
            }
            Fault::StallInBody => {
                let response = self.line.send(request).await;
                let response = response.map_err(|error| error.to_string())?;
                if response.status() != 200 {
                    return Answer::read(response).await.outcome(plan.place, call);
                }
                let came = response.into_body().frame().await;
                if !matches!(came, Some(Ok(_))) {
                    return Ok(Outcome::Cut);
                }
            }
            _ => return exchange(&mut self.line, request, call, plan).await,
        }
        self.line.hang_up();
        Ok(Outcome::Left)
    }

    /// In a session, going away is no cancellation.
    async fn cancel(&self, call: Call, path: &str, session: &str) -> Result<(), String> {
        let message = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": {
            "requestId": call.number, "reason": "it takes too long",
        } });
        let request = self.post(path, headers(call, Some(session), false), &message);
        let response = Line::new(self.all.proxy).send(request).await;
        match response.map_err(|error| error.to_string())? {
            response if response.status() == 202 => Ok(()),
            response => Err(Answer::read(response).await.show()),
        }
    }

    /// The principal's session at this path, which its lanes share.
    async fn session(&mut self, path: &str, call: Call, place: Place) -> Arc<str> {
        let all = Arc::clone(&self.all);
        let mut sessions = all.sessions[usize::try_from(call.principal).unwrap()]
            .lock()
            .await;
        if let Some(session) = sessions.get(path) {
            return Arc::clone(session);
        }
        let site = all.site(place);
        loop {
            let before = site.restarts();
            match self.initialize(path, call).await {
                Ok(session) => {
                    sessions.insert(path.to_owned(), Arc::clone(&session));
                    return session;
                }
                Err(_) if before % 2 == 1 || site.restarts() != before => {}
                Err(what) => all.world.wrong(format!("no session for {call}: {what}")),
            }
            yield_now().await;
        }
    }

    async fn initialize(&mut self, path: &str, call: Call) -> Result<Arc<str>, String> {
        let message = json!({ "jsonrpc": "2.0", "id": "first", "method": "initialize", "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": { "name": "caller", "version": "1" },
        } });
        let answer = self
            .message(path, headers(call, None, false), &message)
            .await?;
        let Some(session) = answer.session().filter(|_| answer.status == 200) else {
            return Err(answer.show());
        };
        let message = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let headers = headers(call, Some(&session), false);
        let answer = self.message(path, headers, &message).await?;
        if answer.status == 202 {
            return Ok(session.into());
        }
        // The upstream has restarted since, and is not back yet.
        let all = Arc::clone(&self.all);
        while all
            .end_session(&mut self.line, path, call, &session)
            .await
            .is_err()
        {
            yield_now().await;
        }
        Err(answer.show())
    }

    async fn message(
        &mut self,
        path: &str,
        headers: HeaderMap,
        message: &Value,
    ) -> Result<Answer, String> {
        let request = self.post(path, headers, message);
        let response = self.line.send(request).await;
        Ok(Answer::read(response.map_err(|error| error.to_string())?).await)
    }
}

impl Callers {
    /// A session of somebody else's; one of nobody's where there is none.
    async fn strangers(&self, path: &str, call: Call) -> Arc<str> {
        let next = (call.principal + 1) % PRINCIPALS;
        let sessions = self.sessions[usize::try_from(next).unwrap()].lock().await;
        let found = sessions.get(path).cloned();
        found.unwrap_or_else(|| "of-nobody".into())
    }
}

async fn exchange(
    line: &mut Line,
    request: Request<Bytes>,
    call: Call,
    plan: &Plan,
) -> Result<Outcome, String> {
    let response = line
        .send(request)
        .await
        .map_err(|error| error.to_string())?;
    Answer::read(response).await.outcome(plan.place, call)
}
