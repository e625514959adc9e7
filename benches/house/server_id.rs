//! The server id into a message: the whole layer around a service that drops it, beside parse, edit and
//! print with `serde_json::Value` alone.

use std::{hint::black_box, time::Instant};

use tower::Layer;

use crate::{
    measure::{Case, Measured},
    request::{Arguments, bare_for, scoped, server_id, tool_call},
    table::{Goal::AtMost, Report, Row},
};

const KIB: usize = 1024;

/// Into small messages.
pub(crate) fn cases() -> Vec<Case> {
    edits(&[("1 KiB", KIB), ("64 KiB", 64 * KIB)])
}

/// And into large ones.
pub(crate) fn large() -> Vec<Case> {
    edits(&[("1 MiB", 1024 * KIB)])
}

fn edits(sizes: &[(&str, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (size, length) in sizes {
        for (kind, arguments) in [
            ("records", Arguments::Records),
            ("text", Arguments::Text),
            ("plain", Arguments::Plain),
        ] {
            let call = tool_call(*length, arguments);
            let peer = call.clone();
            let service = server_id().layer(bare_for());
            let name = |who| format!("{size}, {kind}, {who}");
            cases.push(Case::service(name("ours"), service, move || scoped(&call)));
            cases.push(Case::new(name("peer"), move |count| {
                let start = Instant::now();
                for _ in 0..count {
                    let mut message: serde_json::Value = serde_json::from_slice(&peer).unwrap();
                    message["params"]["server_id"] = "github".into();
                    black_box(serde_json::to_vec(&message).unwrap());
                }
                start.elapsed()
            }));
        }
    }
    cases
}

pub(crate) fn report(measured: &Measured) -> Report {
    let row = |label, ours, peer| Row::new(label, ours, peer, "");
    let rows = [
        row(
            "1 KiB, records",
            "1 KiB, records, ours",
            "1 KiB, records, peer",
        ),
        row("1 KiB, text", "1 KiB, text, ours", "1 KiB, text, peer"),
        row("1 KiB, plain", "1 KiB, plain, ours", "1 KiB, plain, peer"),
        row(
            "64 KiB, records",
            "64 KiB, records, ours",
            "64 KiB, records, peer",
        ),
        row("64 KiB, text", "64 KiB, text, ours", "64 KiB, text, peer"),
        row(
            "64 KiB, plain",
            "64 KiB, plain, ours",
            "64 KiB, plain, peer",
        ),
    ];
    table(measured, &rows)
}

pub(crate) fn report_large(measured: &Measured) -> Report {
    let row = |label, ours, peer| Row::new(label, ours, peer, "");
    let goal = AtMost(0.125);
    let rows = [
        row(
            "1 MiB, records",
            "1 MiB, records, ours",
            "1 MiB, records, peer",
        )
        .goal(goal),
        row("1 MiB, text", "1 MiB, text, ours", "1 MiB, text, peer").goal(goal),
        row("1 MiB, plain", "1 MiB, plain, ours", "1 MiB, plain, peer").goal(goal),
    ];
    table(measured, &rows)
}

fn table(measured: &Measured, rows: &[Row]) -> Report {
    let mut report = Report::default();
    report.times("server id, beside `Value`", measured, rows);
    report
}
