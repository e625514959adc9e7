//! The flags that say where callers are served, and whom.

use std::{net::SocketAddr, sync::Arc};

use mcp_forward::{Challenge, OriginGuardLayer, SessionLayer};

use super::built;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Where to listen; callers use http://ADDR/mcp
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8808")]
    listen: SocketAddr,
    /// Serve requests to this host or host:port, in place of those to loopback
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// Serve pages of this origin, in place of those of the allowed hosts
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// This proxy's own OAuth metadata (RFC 9728), which callers are pointed to when the upstream wants
    /// another token
    #[arg(long, value_name = "URL")]
    resource_metadata: Option<String>,
    /// What callers are told then: `rewrite` names --resource-metadata, and is the default with it;
    /// `relay` passes the upstream's own challenge on; `omit`, the default without it, says no more
    /// than that the token is not valid
    #[arg(long, value_name = "CHALLENGE", value_parser = ["rewrite", "relay", "omit"])]
    challenge: Option<String>,
    /// Ask the upstream whether it takes the caller's credential before a call is sent
    #[arg(long)]
    probe: bool,
    /// With --probe: answer 502 where the upstream does not say
    #[arg(long)]
    fail_closed: bool,
    /// A session is for the user who began it; with `pin`, also with the headers that began it, so that
    /// a renewed token is not used.
    #[arg(long, value_name = "HOW", value_parser = ["bind", "pin"], requires = "principal_header")]
    session: Option<String>,
    /// The header that names the user of --session: one that a proxy in front of this one sets, and
    /// removes from what callers send
    #[arg(long, value_name = "NAME", requires = "session")]
    principal_header: Option<String>,
    /// What has no flag: read here, so that no message of clap's shows what may be half a value.
    #[arg(hide = true)]
    stray: Vec<String>,
}

/// What they mean.
pub(crate) struct Front {
    pub(crate) listen: SocketAddr,
    pub(crate) guard: OriginGuardLayer,
    pub(crate) challenge: Challenge,
    pub(crate) probe: bool,
    pub(crate) fail_closed: bool,
    pub(crate) sessions: Option<Sessions>,
}

pub(crate) type Sessions = SessionLayer<Arc<[u8]>>;

impl Flags {
    pub(crate) fn front(&self, mistakes: &mut Vec<String>) -> Option<Front> {
        if !self.stray.is_empty() {
            mistakes.push("an argument has no flag; quote a value that has spaces".to_owned());
        }
        let guard = OriginGuardLayer::builder();
        let hosts = self.allow_host.iter();
        let guard = hosts.fold(guard, |guard, host| guard.allow_host(host));
        let origins = self.allow_origin.iter();
        let guard = origins.fold(guard, |guard, origin| guard.allow_origin(origin));
        let guard = built(guard.build(), mistakes);
        let challenge = self.challenge(mistakes);
        if self.fail_closed && !self.probe {
            mistakes.push("--fail-closed: there is no --probe".to_owned());
        }
        let sessions = self.sessions(mistakes);
        Some(Front {
            listen: self.listen,
            guard: guard?,
            challenge: challenge?,
            probe: self.probe,
            fail_closed: self.fail_closed,
            sessions,
        })
    }

    fn challenge(&self, mistakes: &mut Vec<String>) -> Option<Challenge> {
        match (self.challenge.as_deref(), &self.resource_metadata) {
            (None | Some("rewrite"), Some(url)) => built(Challenge::rewrite(url), mistakes),
            (None | Some("omit"), None) => Some(Challenge::omit()),
            (Some("relay"), None) => Some(Challenge::relay()),
            (Some("rewrite"), None) => {
                mistakes.push("--challenge rewrite: there is no --resource-metadata".to_owned());
                None
            }
            _ => {
                mistakes.push("--resource-metadata: --challenge does not use it".to_owned());
                None
            }
        }
    }

    fn sessions(&self, mistakes: &mut Vec<String>) -> Option<Sessions> {
        let name = self.principal_header.as_ref()?;
        let sessions = built(Sessions::bind_header(name), mistakes)?.require_principal();
        Some(match self.session.as_deref() {
            Some("pin") => sessions.pin(),
            _ => sessions,
        })
    }
}
