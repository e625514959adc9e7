//! Six headers of one caller, through three proxies, to a real MCP server: `cargo run --example demo`.
//!
//! Everything runs here, on loopback ports. The exit status is 1 if a header that the rules allow is
//! missing or changed behind a proxy, or if one arrives that they do not allow.
#![allow(clippy::print_stdout, reason = "the table is what the demo is for")]

mod proxies;
mod sent;
mod upstream;
mod verdict;
mod wire;

use std::{process::ExitCode, time::Duration};

use rmcp::model::CallToolRequestParams;
use tower::BoxError;

use proxies::ALLOWED;
use sent::SENT;
use upstream::TOOL;
use verdict::{Headers, faults, survived};
use wire::{Server, connect};

/// Far more than it takes; so that it ends whatever happens.
const LIMIT: Duration = Duration::from_secs(30);

/// What arrived at the upstream through one proxy.
struct Column {
    proxy: &'static str,
    allowed: &'static [&'static str],
    arrived: Headers,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match tokio::time::timeout(LIMIT, run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("it did not end in time".into()),
    };
    match outcome {
        Ok(columns) if report(&columns) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<Vec<Column>, BoxError> {
    let upstream = Server::start(upstream::app()).await?;
    let proxies = [
        ("no rules", &[][..], proxies::no_rules(&upstream.url)?),
        ("relay", &ALLOWED, proxies::relay(&upstream.url)?),
        ("factory", &ALLOWED, proxies::factory(&upstream.url)?),
    ];
    let mut columns = Vec::new();
    for (proxy, allowed, app) in proxies {
        let server = Server::start(app).await?;
        let arrived = call(&server.url).await;
        let arrived = arrived.map_err(|error| format!("{proxy}: {error}"))?;
        server.stop().await?;
        columns.push(Column {
            proxy,
            allowed,
            arrived,
        });
    }
    upstream.stop().await?;
    Ok(columns)
}

/// The caller: an MCP client that lists the tools and calls the one that it finds.
async fn call(url: &str) -> Result<Headers, BoxError> {
    let mut headers = std::collections::HashMap::new();
    for (name, value) in SENT {
        headers.insert(name.try_into()?, value.try_into()?);
    }
    let client = connect(url.to_owned(), headers).await?;
    let tools = client.list_all_tools().await?;
    let tool = tools.into_iter().find(|tool| tool.name == TOOL);
    let tool = tool.ok_or("the upstream's tool is not in the list")?;
    let answer = client.call_tool(CallToolRequestParams::new(tool.name));
    let answer = answer.await?.structured_content;
    client.cancel().await?;
    Ok(serde_json::from_value(answer.unwrap_or_default())?)
}

/// Prints the table and what it means; whether all is as the rules say.
fn report(columns: &[Column]) -> bool {
    let sent: Headers = SENT
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    print!("{:<19} {:<12}", "header", "sent");
    for column in columns {
        print!(" {:<9}", column.proxy);
    }
    println!(" why");
    for (name, value) in SENT {
        print!("{name:<19} {:<12}", masked(value));
        for column in columns {
            let survived = survived(name, &sent, &column.arrived);
            print!(" {:<9}", if survived { '✓' } else { '✗' });
        }
        println!(" {}", why(name));
    }
    println!();

    let mut good = true;
    for Column {
        proxy,
        allowed,
        arrived,
    } in columns
    {
        let names = || SENT.iter().map(|(name, _)| *name);
        let recovered = names().filter(|name| survived(name, &sent, arrived));
        let absent = names().filter(|name| !allowed.contains(name) && !arrived.contains_key(*name));
        println!(
            "{proxy}: recovered {}; absent for want of a rule: {}",
            list(recovered),
            list(absent)
        );
        for fault in faults(&sent, allowed, arrived) {
            println!("{proxy}: WRONG: {fault}");
            good = false;
        }
    }
    good
}

fn why(name: &str) -> &'static str {
    match name {
        "authorization" => "a credential: its rule says so by name",
        "cookie" => "a guarded name without a rule of its own",
        _ => "allowed by name",
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

/// The beginning of a value, and never more than half of it.
fn masked(value: &str) -> String {
    let shown = value.chars().take((value.len() / 2).min(10));
    shown.chain(['…']).collect()
}
