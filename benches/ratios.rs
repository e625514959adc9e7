//! Prints the tables of `README.md`: what each part costs as a ratio to its peer in the same run.
//!
//! The cases take turns, so that whatever else the machine does falls on all of them alike. A round
//! gives each case one sample, and of each sample that of the same round without any layer is taken
//! away; a pass takes the median over its rounds, and the table shows the median, the least and the
//! greatest over the passes. Without `--bench` (`cargo test --benches`) it only shows that it runs.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

mod support;

use support::cases::{Case, large_server_ids, layers, merges, polls, relays, server_ids, spawns};

/// How long it measures.
#[derive(Clone, Copy)]
struct Effort {
    passes: usize,
    rounds: usize,
}

/// One line of a table: what `ours` adds over its `bare`, divided by what `peer` adds over its own.
struct Row {
    ours: [&'static str; 2],
    peer: [&'static str; 2],
    goal: Option<f64>,
}

/// In the place of a bare case, where there is none to take away.
const NOTHING: &str = "";

fn main() {
    let effort = if std::env::args().any(|argument| argument == "--bench") {
        Effort {
            passes: 7,
            rounds: 61,
        }
    } else {
        Effort {
            passes: 1,
            rounds: 1,
        }
    };
    let row = |ours, peer, bare, goal| Row {
        ours: [ours, bare],
        peer: [peer, bare],
        goal,
    };
    let layer = |ours, peer, goal| row(ours, peer, "bare", goal);
    let other = |ours, bare, peer| Row {
        ours: [ours, bare],
        peer: [peer, "bare"],
        goal: None,
    };
    let keep_alive = |ours, peer| other(ours, "bare, keep-alive", peer);
    let in_use = |ours, peer| other(ours, "bare, extensions in use", peer);
    let rows = [
        layer("ours, 1 absent", "PropagateHeader, 1 absent", Some(1.0)),
        layer("ours, 4 absent", "PropagateHeader, 4 absent", Some(0.5)),
        layer("ours, 1 present", "PropagateHeader, 1 present", Some(1.6)),
        layer("ours, 4 present", "PropagateHeader, 4 present", Some(1.0)),
        layer("ours, 16 present", "PropagateHeader, 16 present", Some(0.6)),
        keep_alive("ours, 1 absent, keep-alive", "PropagateHeader, 1 absent"),
        keep_alive("ours, 4 absent, keep-alive", "PropagateHeader, 4 absent"),
        keep_alive("ours, 4 present, keep-alive", "PropagateHeader, 4 present"),
        in_use(
            "ours, 1 present, extensions in use",
            "PropagateHeader, 1 present",
        ),
        in_use(
            "ours, 4 present, extensions in use",
            "PropagateHeader, 4 present",
        ),
        layer("one extension", "PropagateHeader, 1 present", None),
        layer("ours, 4 present", "SetRequestId, made", None),
        layer("ours, 4 present", "SetRequestId, present", None),
    ];
    table("Layers", effort, layers(), 512, &rows);
    let poll = |ours, peer, bare| row(ours, peer, bare, Some(1.0));
    let rows = [
        poll("future, ours", "future, tokio", "future, no scope"),
        poll("stream, ours", "stream, tokio", "stream, no scope"),
        poll(
            "body frame, ours",
            "body frame, tokio",
            "body frame, no scope",
        ),
    ];
    table("Polls", effort, polls(), 20_000, &rows);
    let spawn = |peer, goal| row("ours", peer, "nothing carried", goal);
    let rows = [
        spawn("tokio, the same value", Some(1.0)),
        spawn("tokio, an Arc of a HeaderMap", None),
    ];
    table("Spawns", effort, spawns(), 2_000, &rows);
    let merge = |ours| row(ours, "by hand, 4 headers", "bare", None);
    let rows = [merge("ours, 4 headers"), merge("ours, 4 headers, 1 bearer")];
    table("Merge and apply", effort, merges(), 512, &rows);
    table("Relay in memory", effort, relays(), 512, &[]);
    let edit = |ours, peer, goal| Row {
        ours: [ours, NOTHING],
        peer: [peer, NOTHING],
        goal,
    };
    let rows = [
        edit("ours, 1 KiB records", "Value, 1 KiB records", None),
        edit("ours, 1 KiB text", "Value, 1 KiB text", None),
        edit("ours, 64 KiB records", "Value, 64 KiB records", None),
        edit("ours, 64 KiB text", "Value, 64 KiB text", None),
    ];
    table("Server id", effort, server_ids(), 16, &rows);
    let rows = [
        edit("ours, 1 MiB records", "Value, 1 MiB records", Some(0.125)),
        edit("ours, 1 MiB text", "Value, 1 MiB text", Some(0.125)),
        edit("ours, 4 MiB records", "Value, 4 MiB records", None),
        edit("ours, 4 MiB text", "Value, 4 MiB text", None),
    ];
    table("Server id, large", effort, large_server_ids(), 1, &rows);
}

/// Measures `cases` in turns, `count` times each a round, and prints them and `rows`.
fn table(title: &str, effort: Effort, mut cases: Vec<Case>, count: u64, rows: &[Row]) {
    let names: Vec<_> = cases.iter().map(|case| case.name).collect();
    let at = |wanted: &str| {
        if wanted == NOTHING {
            return None;
        }
        let found = names.iter().position(|name| *name == wanted);
        Some(found.unwrap_or_else(|| panic!("there is no case {wanted}")))
    };
    let passes: Vec<Vec<Vec<f64>>> = (0..effort.passes)
        .map(|_| pass(&mut cases, effort.rounds, count))
        .collect();
    // What a case took longer than another, by pass.
    let added = |case: Option<usize>, bare: Option<usize>| -> Vec<f64> {
        let time = |round: &[f64], case: Option<usize>| case.map_or(0.0, |case| round[case]);
        let of_pass = |rounds: &Vec<Vec<f64>>| {
            median(
                rounds
                    .iter()
                    .map(|round| time(round, case) - time(round, bare))
                    .collect(),
            )
        };
        passes.iter().map(of_pass).collect()
    };

    println!("\n{title}\n\n| case | ns |\n|---|---|");
    for (case, name) in names.iter().enumerate() {
        let of_pass =
            |rounds: &Vec<Vec<f64>>| median(rounds.iter().map(|round| round[case]).collect());
        let time = median(passes.iter().map(of_pass).collect());
        println!("| {name} | {time:.1} |");
    }
    if rows.is_empty() {
        return;
    }

    println!("\n| added by | ns | to that of | ns | ratio | least to greatest | goal |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        let ([ours, its_bare], [peer, bare]) = (row.ours, row.peer);
        let (added_ours, added_peer) = (added(at(ours), at(its_bare)), added(at(peer), at(bare)));
        let pairs = added_ours.iter().zip(&added_peer);
        let ratios: Vec<f64> = pairs.map(|(ours, peer)| ours / peer).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ratio = median(ratios);
        let goal = row.goal.map_or(String::new(), |goal| {
            let verdict = if ratio <= goal { "met" } else { "missed" };
            format!("<= {goal:?}, {verdict}")
        });
        let (added_ours, added_peer) = (median(added_ours), median(added_peer));
        println!(
            "| {ours} | {added_ours:.1} | {peer} | {added_peer:.1} | {ratio:.3} \
             | {least:.3} to {greatest:.3} | {goal} |"
        );
    }
}

/// Nanoseconds for one of each case, by round; every round begins with another case.
fn pass(cases: &mut [Case], rounds: usize, count: u64) -> Vec<Vec<f64>> {
    let round = |round: usize| {
        let mut times = vec![0.0; cases.len()];
        for turn in 0..cases.len() {
            let case = (round + turn) % cases.len();
            let spent = (cases[case].run)(count);
            times[case] = spent.as_secs_f64() * 1e9 / count as f64;
        }
        times
    };
    (0..rounds).map(round).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
