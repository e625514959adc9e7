//! The sessions of the callers: how each begins, and that each ends.
//!
//! It may not know what is called in one.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::Request;
use serde_json::json;
use tokio::{sync::Mutex, task::yield_now};

use crate::{
    answer::Answer,
    line::Line,
    message::Proxy,
    plan::{Call, PRINCIPALS},
    site::Site,
    world::World,
};

/// Of each principal, by path; its lanes share them.
pub struct Sessions {
    proxy: Proxy,
    all: Vec<Mutex<HashMap<String, Arc<str>>>>,
}

impl Sessions {
    pub fn new(proxy: Proxy) -> Self {
        let all = (0..PRINCIPALS).map(|_| Mutex::default()).collect();
        Self { proxy, all }
    }

    fn of(&self, principal: u64) -> &Mutex<HashMap<String, Arc<str>>> {
        &self.all[usize::try_from(principal).unwrap()]
    }

    /// The principal's session at this path; begun now where there is none.
    pub async fn session(
        &self,
        line: &mut Line,
        path: &str,
        call: Call,
        site: &Site,
    ) -> Result<Arc<str>, String> {
        let mut sessions = self.of(call.principal).lock().await;
        if let Some(session) = sessions.get(path) {
            return Ok(Arc::clone(session));
        }
        loop {
            let before = site.restarts();
            match self.begin(line, path, call).await {
                Ok(session) => {
                    sessions.insert(path.to_owned(), Arc::clone(&session));
                    return Ok(session);
                }
                Err(_) if site.has_restarted(before) => yield_now().await,
                Err(what) => return Err(format!("no session: {what}")),
            }
        }
    }

    async fn begin(&self, line: &mut Line, path: &str, call: Call) -> Result<Arc<str>, String> {
        let message = json!({ "jsonrpc": "2.0", "id": "first", "method": "initialize", "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": { "name": "caller", "version": "1" },
        } });
        let answer = asked(line, self.proxy.message(path, call, None, &message)).await?;
        let Some(session) = answer.session().filter(|_| answer.status == 200) else {
            return Err(answer.show());
        };
        let message = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let initialized = self.proxy.message(path, call, Some(&session), &message);
        let answer = asked(line, initialized).await?;
        if answer.status == 202 {
            return Ok(session.into());
        }
        // The upstream has restarted since, and may not be back yet.
        while self.end(line, path, call, &session).await.is_err() {
            yield_now().await;
        }
        Err(answer.show())
    }

    async fn end(
        &self,
        line: &mut Line,
        path: &str,
        call: Call,
        session: &str,
    ) -> Result<(), String> {
        let answer = asked(line, self.proxy.delete(path, call, session)).await?;
        let is_over = answer.status.is_success() || answer.status == 404;
        is_over.then_some(()).ok_or_else(|| answer.show())
    }

    /// The caller has learnt that its session is gone.
    pub async fn forget(&self, principal: u64, path: &str, session: &Arc<str>) {
        let mut sessions = self.of(principal).lock().await;
        if sessions.get(path) == Some(session) {
            sessions.remove(path);
        }
    }

    /// A session of somebody else's, if there is one at the moment: at a gateway every other principal
    /// has sessions.
    pub async fn strangers(&self, path: &str, call: Call) -> Option<Arc<str>> {
        let sessions = self.of((call.principal + 2) % PRINCIPALS).lock().await;
        sessions.get(path).cloned()
    }

    /// In a session, going away is no cancellation.
    pub async fn cancel(&self, path: &str, call: Call, session: &str) -> Result<(), String> {
        let message = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": {
            "requestId": call.number, "reason": "it takes too long",
        } });
        let request = self.proxy.message(path, call, Some(session), &message);
        let answer = asked(&mut Line::new(self.proxy.addr), request).await?;
        let is_taken = answer.status == 202;
        is_taken.then_some(()).ok_or_else(|| answer.show())
    }

    /// Everybody ends all of theirs.
    pub async fn end_all(&self, number: u64, world: &World) {
        let mut line = Line::new(self.proxy.addr);
        for (principal, sessions) in (0..).zip(&self.all) {
            for (path, session) in sessions.lock().await.drain() {
                let call = Call { principal, number };
                if let Err(what) = self.end(&mut line, &path, call, &session).await {
                    world.wrong(format!("a session did not end: {what}"));
                }
            }
        }
    }
}

async fn asked(line: &mut Line, request: Request<Bytes>) -> Result<Answer, String> {
    let response = line.send(request).await;
    Ok(Answer::read(response.map_err(|error| error.to_string())?).await)
}
