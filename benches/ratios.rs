//! Prints the tables of `README.md`: what each part costs as a ratio to its peer in the same run.
//!
//! The cases take turns, so that whatever else the machine does falls on all of them alike. A round
//! gives each case one sample, and of each sample that of the same round without any layer is taken
//! away; a pass takes the median over its rounds, and the table shows the median, the least and the
//! greatest over the passes. Without `--bench` (`cargo test --benches`) it only shows that it runs.
#![allow(clippy::print_stdout, reason = "it prints a table")]

mod support;

use support::cases::{Case, layers, merges, polls, spawns};

/// How long it measures.
#[derive(Clone, Copy)]
struct Effort {
    passes: usize,
    rounds: usize,
}

/// One line of a table: what `ours` adds over `bare`, divided by what `peer` adds over it.
struct Row {
    ours: &'static str,
    peer: &'static str,
    bare: &'static str,
    goal: Option<f64>,
}

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
        ours,
        peer,
        bare,
        goal,
    };
    let layer = |ours, peer, goal| row(ours, peer, "bare", goal);
    table(
        effort,
        layers(),
        512,
        &[
            layer("ours, 1 absent", "PropagateHeader, 1 absent", Some(1.0)),
            layer("ours, 4 absent", "PropagateHeader, 4 absent", Some(0.5)),
            layer("ours, 1 present", "PropagateHeader, 1 present", Some(1.6)),
            layer("ours, 4 present", "PropagateHeader, 4 present", Some(1.0)),
            layer("ours, 16 present", "PropagateHeader, 16 present", Some(0.6)),
            layer("ours, 4 present", "SetRequestId, made", None),
            layer("ours, 4 present", "SetRequestId, present", None),
        ],
    );
    table(
        effort,
        polls(),
        20_000,
        &[
            row(
                "future, ours",
                "future, tokio",
                "future, no scope",
                Some(1.0),
            ),
            row(
                "stream, ours",
                "stream, tokio",
                "stream, no scope",
                Some(1.0),
            ),
            row(
                "body frame, ours",
                "body frame, tokio",
                "body frame, no scope",
                Some(1.0),
            ),
        ],
    );
    table(
        effort,
        spawns(),
        2_000,
        &[
            row(
                "ours",
                "tokio, the same value",
                "nothing carried",
                Some(1.0),
            ),
            row(
                "ours",
                "tokio, an Arc of a HeaderMap",
                "nothing carried",
                None,
            ),
        ],
    );
    table(
        effort,
        merges(),
        512,
        &[
            row("ours, 4 headers", "by hand, 4 headers", "bare", None),
            row(
                "ours, 4 headers, 1 bearer",
                "by hand, 4 headers",
                "bare",
                None,
            ),
        ],
    );
}

/// Measures `cases` in turns, `count` times each a round, and prints `rows`.
fn table(effort: Effort, mut cases: Vec<Case>, count: u64, rows: &[Row]) {
    let names: Vec<_> = cases.iter().map(|case| case.name).collect();
    let at = |wanted: &str| names.iter().position(|name| *name == wanted);
    let passes: Vec<Vec<Vec<f64>>> = (0..effort.passes)
        .map(|_| pass(&mut cases, effort.rounds, count))
        .collect();
    // What a case took longer than another, by pass.
    let added = |case: usize, bare: usize| -> Vec<f64> {
        let of_pass = |rounds: &Vec<Vec<f64>>| {
            median(
                rounds
                    .iter()
                    .map(|round| round[case] - round[bare])
                    .collect(),
            )
        };
        passes.iter().map(of_pass).collect()
    };

    println!("\n| case | ns | added ns |");
    println!("|---|---|---|");
    for (case, name) in names.iter().enumerate() {
        let time = passes
            .iter()
            .map(|rounds| median(rounds.iter().map(|round| round[case]).collect()));
        let bare = rows.iter().find(|row| [row.ours, row.peer].contains(name));
        let added = bare
            .and_then(|row| at(row.bare))
            .map(|bare| added(case, bare));
        let added = added.map(|added| format!("{:.1}", median(added)));
        let time = median(time.collect());
        println!("| {name} | {time:.1} | {} |", added.unwrap_or_default());
    }

    println!("\n| added by | to that of | ratio | least to greatest | goal |");
    println!("|---|---|---|---|---|");
    for row in rows {
        let (Some(ours), Some(peer), Some(bare)) = (at(row.ours), at(row.peer), at(row.bare))
        else {
            continue;
        };
        let pairs = added(ours, bare).into_iter().zip(added(peer, bare));
        let ratios: Vec<f64> = pairs.map(|(ours, peer)| ours / peer).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ratio = median(ratios);
        let goal = row.goal.map_or(String::new(), |goal| {
            let verdict = if ratio <= goal { "met" } else { "missed" };
            format!("<= {goal:.2}, {verdict}")
        });
        let (ours, peer) = (row.ours, row.peer);
        println!("| {ours} | {peer} | {ratio:.2} | {least:.2} to {greatest:.2} | {goal} |");
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
