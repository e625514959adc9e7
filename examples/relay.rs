//! A reverse proxy for one MCP server: `cargo run --example relay -- --help`.
//!
//! Stdout has one line, which says where it listens. Logs go to stderr: `RUST_LOG` chooses them, and
//! `--features tracing` adds those of the crate. No header value is printed anywhere.
#![allow(clippy::print_stdout, reason = "the line that says where it listens")]

use std::{net::SocketAddr, sync::Arc};

use axum::body::Body;
use clap::Parser;
use http::{HeaderName, Request, uri::Scheme};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mcp_forward::{
    BuildError, CaptureLayer, Challenge, Mistake, MistakeKind, OnConflict, OriginGuardLayer,
    ProbeLayer, RefusalLayer, Relay, Rule, SessionLayer, Upstream,
};
use tokio::{net::TcpListener, signal::ctrl_c};
use tower::{BoxError, ServiceBuilder};
use tower_http::{sensitive_headers::SetSensitiveRequestHeadersLayer, trace::TraceLayer};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// Headers that mean a credential.
const GUARDED: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Relays MCP over HTTP to one server, with those headers of the caller that flags name.
///
/// No other header travels, except those of MCP's transport itself. NAME, FROM and TO are header
/// names; every flag that takes one can be repeated, except --admission-header.
#[derive(Parser)]
struct Args {
    /// Where to listen; callers use http://ADDR/mcp
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8808")]
    listen: SocketAddr,
    /// The MCP server, http or https
    #[arg(long, value_name = "URL")]
    upstream: String,
    /// Copy this header when the caller sent it
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    /// Copy this credential, such as authorization, which was issued for the upstream
    #[arg(long, value_name = "NAME")]
    allow_credential: Vec<String>,
    /// Send the caller's FROM as TO. Naming authorization, cookie or proxy-authorization as FROM
    /// says, as --allow-credential does, that the upstream may have it
    #[arg(long, value_name = "FROM=TO")]
    rename: Vec<String>,
    /// Like --rename, with `Bearer ` in front of a bare token
    #[arg(long, value_name = "FROM=TO")]
    bearer: Vec<String>,
    /// Send nothing to the upstream unless the caller sent NAME, which another flag forwards
    #[arg(long, value_name = "NAME")]
    require: Vec<String>,
    /// Send this header on the operator's behalf. Other users of this machine can see VALUE in the
    /// list of processes; --set-env avoids that
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Like --set, with the value of the environment variable VAR
    #[arg(long, value_name = "NAME=VAR")]
    set_env: Vec<String>,
    /// Who wins where the caller and --set write one header. With `caller`, callers who send nothing
    /// act with the operator's value
    #[arg(long, value_name = "WINNER", value_parser = ["static", "caller"])]
    on_conflict: Option<String>,
    /// The header with the proxy's own key, which is never forwarded. Credentials travel only where
    /// it came too: those of --allow-credential, and authorization, cookie and proxy-authorization
    /// as FROM
    #[arg(long, value_name = "NAME")]
    admission_header: Option<String>,
    /// Let headers cross a network to an http upstream; normal inside a service mesh
    #[arg(long)]
    allow_cleartext: bool,
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

/// What the flags mean, without a mistake in it.
struct Config {
    upstream: Upstream,
    capture: CaptureLayer,
    guard: OriginGuardLayer,
    challenge: Challenge,
    probe: bool,
    fail_closed: bool,
    sessions: Option<Sessions>,
}

type Sessions = SessionLayer<Arc<[u8]>>;

impl Args {
    /// The configuration; or every mistake in it.
    fn config(&self) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        if !self.stray.is_empty() {
            mistakes.push("an argument has no flag; quote a value that has spaces".to_owned());
        }
        let rules = self.rules(&mut mistakes);
        let mut sources = rules.iter().map(|(source, _)| source);
        let credential = sources.any(|source| among(GUARDED.iter(), source));
        if self.admission_header.is_some() && !credential && self.allow_credential.is_empty() {
            mistakes.push("--admission-header: no other flag forwards a credential".to_owned());
        }
        let mut upstream = Upstream::builder("mcp", &self.upstream);
        for (_, rule) in rules {
            upstream = upstream.rule(rule);
        }
        for (name, value) in pairs("--set", &self.set, &mut mistakes) {
            upstream = upstream.set(name, value);
        }
        for (name, variable) in pairs("--set-env", &self.set_env, &mut mistakes) {
            match std::env::var(variable) {
                Ok(value) => upstream = upstream.set(name, value),
                Err(_) => mistakes.push(format!(
                    "--set-env: `{}` is not set to a text",
                    shown(variable)
                )),
            }
        }
        if self.allow_cleartext {
            upstream = upstream.allow_cleartext();
        }
        let guard = OriginGuardLayer::builder();
        let hosts = self.allow_host.iter();
        let guard = hosts.fold(guard, |guard, host| guard.allow_host(host));
        let origins = self.allow_origin.iter();
        let guard = origins.fold(guard, |guard, origin| guard.allow_origin(origin));

        let upstream = built(upstream.build(), &mut mistakes);
        // For the one upstream; for none, if it has mistakes.
        let capture = built(
            CaptureLayer::for_upstreams(&upstream).build(),
            &mut mistakes,
        );
        let guard = built(guard.build(), &mut mistakes);
        let challenge = self.challenge(&mut mistakes);
        if self.fail_closed && !self.probe {
            mistakes.push("--fail-closed: there is no --probe".to_owned());
        }
        let sessions = self.sessions(&mut mistakes);
        match (upstream, capture, guard, challenge) {
            (Some(upstream), Some(capture), Some(guard), Some(challenge))
                if mistakes.is_empty() =>
            {
                Ok(Config {
                    upstream,
                    capture,
                    guard,
                    challenge,
                    probe: self.probe,
                    fail_closed: self.fail_closed,
                    sessions,
                })
            }
            _ => Err(mistakes),
        }
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

    /// The rules, each with the name of the header that it reads.
    fn rules(&self, mistakes: &mut Vec<String>) -> Vec<(&str, Rule)> {
        let mut rules = Vec::new();
        for name in &self.allow {
            rules.push((name.as_str(), Rule::new(name)));
        }
        for name in &self.allow_credential {
            rules.push((name, self.rule(name, true)));
        }
        for (from, to) in pairs("--rename", &self.rename, mistakes) {
            rules.push((from, self.rule(from, false).to(to)));
        }
        for (from, to) in pairs("--bearer", &self.bearer, mistakes) {
            rules.push((from, self.rule(from, false).to(to).bearer()));
        }
        for name in &self.require {
            if !among(rules.iter().map(|(source, _)| *source), name) {
                mistakes.push(format!("--require: no other flag forwards `{name}`"));
            }
        }
        for (source, rule) in &mut rules {
            if among(self.require.iter(), source) {
                *rule = rule.clone().required();
            }
            match self.on_conflict.as_deref() {
                None => {}
                Some("caller") => *rule = rule.clone().on_conflict(OnConflict::Caller),
                Some(_) => *rule = rule.clone().on_conflict(OnConflict::Static),
            }
        }
        rules
    }

    /// A rule that reads `name`; one for a credential is only for callers who were admitted.
    fn rule(&self, name: &str, credential: bool) -> Rule {
        match &self.admission_header {
            _ if !credential && !among(GUARDED.iter(), name) => Rule::new(name),
            None => Rule::credential(name),
            Some(admission) => Rule::credential(name).only_with(admission),
        }
    }
}

/// Whether `name` is one of `names`, whatever the case of its letters.
fn among(mut names: impl Iterator<Item = impl AsRef<str>>, name: &str) -> bool {
    names.any(|it| it.as_ref().eq_ignore_ascii_case(name))
}

/// The halves of each text. One without `=` is a mistake, and not shown: it may be a value.
fn pairs<'a>(
    flag: &str,
    texts: &'a [String],
    mistakes: &mut Vec<String>,
) -> Vec<(&'a str, &'a str)> {
    let whole = texts.iter().filter(|text| !text.contains('='));
    mistakes.extend(whole.map(|_| format!("{flag}: there is no `=` between two parts")));
    texts
        .iter()
        .filter_map(|text| text.split_once('='))
        .collect()
}

/// The name of a variable; of anything else, which may be the value itself, nothing.
fn shown(variable: &str) -> &str {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if variable.bytes().all(named) {
        variable
    } else {
        "…"
    }
}

/// A mistake, and the flag that mends it where the crate's own words name a function.
fn with_flag(mistake: &Mistake) -> String {
    let flag = match mistake.kind() {
        MistakeKind::Guarded => " (--allow-credential)",
        MistakeKind::Conflict => " (--on-conflict)",
        MistakeKind::Cleartext => " (--allow-cleartext)",
        _ => "",
    };
    format!("{mistake}{flag}")
}

/// What was built; or nothing, and its mistakes beside those that are known already.
fn built<T>(outcome: Result<T, BuildError>, mistakes: &mut Vec<String>) -> Option<T> {
    let found = |error: BuildError| mistakes.extend(error.mistakes().iter().map(with_flag));
    outcome.map_err(found).ok()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args = Args::parse();
    let config = args.config().unwrap_or_else(|mistakes| {
        mistakes.iter().for_each(|it| eprintln!("error: {it}"));
        std::process::exit(2)
    });
    let logs = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let logs = tracing_subscriber::fmt().with_env_filter(logs.from_env_lossy());
    logs.with_writer(std::io::stderr).init();
    if config.upstream.url().scheme() == Some(&Scheme::HTTPS) {
        let connector = HttpsConnectorBuilder::new().with_native_roots()?;
        let connector = connector.https_only().enable_all_versions().build();
        serve(args.listen, config, connector).await
    } else {
        serve(args.listen, config, HttpConnector::new()).await
    }
}

async fn serve<C>(listen: SocketAddr, config: Config, connector: C) -> Result<(), BoxError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let guarded = GUARDED.map(HeaderName::from_static);
    let sensitive = config.capture.names().iter().cloned().chain(guarded);
    // The query may hold a token, so the span has the path only.
    let trace = TraceLayer::new_for_http().make_span_with(|request: &Request<Body>| {
        tracing::debug_span!("request", method = %request.method(), path = request.uri().path())
    });
    // Without --probe it has nobody to ask.
    let target = config.probe.then(|| config.upstream.clone());
    let probe = ProbeLayer::new(client.clone(), move |_| target.clone());
    let mut probe = probe.challenge(config.challenge.clone());
    if config.fail_closed {
        probe = probe.fail_closed();
    }
    // Outermost first. The relay has its origin guard inside.
    let relay = ServiceBuilder::new()
        .layer(probe)
        .layer(RefusalLayer::new().challenge(config.challenge))
        .service(Relay::new(&config.upstream, client).origin_guard(config.guard));
    let mut app = axum::Router::new().route_service("/mcp", relay);
    if let Some(sessions) = config.sessions {
        app = app.route_layer(sessions);
    }
    // Outermost first, and all around what is above.
    let app = app.route_layer(
        ServiceBuilder::new()
            .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
            .layer(trace)
            .layer(config.capture),
    );
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    println!("listening on http://{}/mcp", listener.local_addr()?);

    let interrupt = async {
        let _ = ctrl_c().await;
        tracing::info!("ends after the open requests; Ctrl-C again ends at once");
    };
    let second_interrupt = async {
        ctrl_c().await?;
        ctrl_c().await
    };
    let served = axum::serve(listener, app).with_graceful_shutdown(interrupt);
    tokio::select! {
        ended = served.into_future() => Ok(ended?),
        Ok(()) = second_interrupt => std::process::exit(130),
    }
}
