//! What the crate costs, beside peers in the same run, and how that grows.
//!
//! Prints all of it, and writes it into `benches/README.md` and `benches/growth.svg`. With names of
//! parts behind `--`, it prints these alone and writes nothing. A pass of a part is a process of its own,
//! since where things lie in memory is chosen once for a process; the passes of all parts take turns.
//! Without `--bench` (`cargo test --benches`) it only shows that it runs.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails loudly"
)]

mod chart;
mod gateway;
mod growth;
mod layers;
mod measure;
mod polls;
mod readme;
mod refusal;
mod relay;
#[allow(unreachable_pub, reason = "tests/allocations.rs has it too")]
mod request;
mod server_id;
mod sockets;
mod table;
mod ways;

use std::{
    env,
    process::{Command, Stdio},
};

use measure::{Case, Measured, Pass, pass};
use table::Report;

/// How many processes measure each part.
const PASSES: usize = 5;

/// Says which part this process has to measure.
const PASS: &str = "--pass";

/// Cases that take turns, and what they show.
struct Part {
    name: &'static str,
    /// How many samples of each case there are in a pass, and how many times it is run for one.
    effort: (usize, u64),
    cases: fn() -> Vec<Case>,
    report: fn(&Measured) -> Report,
}

const fn part(
    name: &'static str,
    effort: (usize, u64),
    cases: fn() -> Vec<Case>,
    report: fn(&Measured) -> Report,
) -> Part {
    Part {
        name,
        effort,
        cases,
        report,
    }
}

const PARTS: [Part; 14] = [
    part("layers", (61, 512), layers::cases, layers::report),
    part("polls", (61, 20_000), polls::cases, polls::report),
    part("spawns", (61, 2_000), polls::spawns, polls::report_spawns),
    part("ways", (61, 512), ways::cases, ways::report),
    part("relay", (21, 1_600), relay::cases, relay::report),
    part("refusal", (21, 1_600), refusal::cases, refusal::report),
    part(
        "first-byte",
        (61, 50),
        refusal::first_bytes,
        refusal::report_first_bytes,
    ),
    part("gateway", (11, 800), gateway::cases, gateway::report),
    part("server-id", (31, 16), server_id::cases, server_id::report),
    part(
        "large-server-id",
        (21, 8),
        server_id::large,
        server_id::report_large,
    ),
    part(
        "headers",
        (31, 256),
        growth::headers,
        growth::report_headers,
    ),
    part("rules", (31, 128), growth::rules, growth::report_rules),
    part(
        "upstreams",
        (31, 128),
        growth::upstreams,
        growth::report_upstreams,
    ),
    part(
        "sessions",
        (31, 512),
        growth::sessions,
        growth::report_sessions,
    ),
];

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let wanted: Vec<_> = arguments
        .iter()
        .filter(|it| !it.starts_with("--"))
        .collect();
    let parts = PARTS.iter();
    let parts = parts.filter(|part| wanted.is_empty() || wanted.contains(&&part.name.to_owned()));
    let parts: Vec<_> = parts.collect();
    if arguments.iter().any(|argument| argument == PASS) {
        for part in parts {
            let (rounds, count) = part.effort;
            let pass = pass((part.cases)(), rounds, count);
            println!("{}", serde_json::to_string(&pass).unwrap());
        }
        return;
    }
    let mut passes: Vec<_> = parts.iter().map(|_| Vec::new()).collect();
    let mut loads = Vec::new();
    for number in 0..if is_bench { PASSES } else { 1 } {
        for (part, passes) in parts.iter().zip(&mut passes) {
            passes.push(if is_bench {
                eprintln!("pass {} of {PASSES}: {}", number + 1, part.name);
                elsewhere(part.name)
            } else {
                pass((part.cases)(), 1, 1)
            });
            loads.extend(readme::load());
        }
    }
    let mut texts = Vec::new();
    let mut goals =
        "| what | ratio | least to greatest | goal | verdict |\n|---|---|---|---|---|\n".to_owned();
    let mut panels = Vec::new();
    for (part, passes) in parts.iter().zip(passes) {
        let report = (part.report)(&Measured(passes));
        println!("\n{}\n\n{}", part.name, report.text);
        goals.extend(report.goals);
        panels.extend(report.panel);
        texts.push((part.name, report.text));
    }
    println!("goals\n\n{goals}");
    texts.extend([("goals", goals), ("machine", readme::machine(&loads))]);
    let chart = chart::svg(&panels);
    if is_bench && wanted.is_empty() {
        readme::write(&texts, &chart);
    }
}

/// A pass of the part `name`, by a process of its own.
fn elsewhere(name: &str) -> Pass {
    let mut measuring = Command::new(env::current_exe().unwrap());
    let measuring = measuring.args([PASS, name]).stderr(Stdio::inherit());
    let measured = measuring.output().unwrap();
    assert!(measured.status.success(), "{name} has failed");
    serde_json::from_slice(&measured.stdout).unwrap()
}
