//! Measures as the tables of `README.md`, each row beside its goal.
//!
//! It may not know what was measured.

use crate::{
    chart::Panel,
    measure::{Measured, median, ratios},
};

/// What a part has to say.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) goals: Vec<String>,
    pub(crate) panel: Option<Panel>,
}

/// What a ratio has to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// One row: a case of ours beside a peer.
pub(crate) struct Row {
    label: &'static str,
    ours: [&'static str; 2],
    peer: [&'static str; 2],
    goal: Option<Goal>,
}

impl Row {
    /// Both beside the same `bare`.
    pub(crate) fn new(
        label: &'static str,
        ours: &'static str,
        peer: &'static str,
        bare: &'static str,
    ) -> Self {
        Self {
            label,
            ours: [ours, bare],
            peer: [peer, bare],
            goal: None,
        }
    }

    /// Ours is beside another one.
    pub(crate) fn over(mut self, bare: &'static str) -> Self {
        self.ours[1] = bare;
        self
    }

    pub(crate) fn goal(self, goal: Goal) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }
}

impl Report {
    /// What `ours` adds to its bare case, as a ratio to what its peer adds to its own.
    pub(crate) fn added(&mut self, title: &str, measured: &Measured, rows: &[Row]) {
        self.head(&[title, "ours, added ns", "peer, added ns", "ratio"]);
        for row in rows {
            let [ours, peer] = [row.ours, row.peer].map(|[case, bare]| measured.added(case, bare));
            let figures = [&ours, &peer].map(|added| number(median(added)));
            self.row(title, row, &figures, &ratios(&ours, &peer));
        }
        self.end();
    }

    /// The time of `ours` as a ratio to that of its peer.
    pub(crate) fn times(&mut self, title: &str, measured: &Measured, rows: &[Row]) {
        self.head(&[title, "ours, µs", "peer, µs", "ratio"]);
        for row in rows {
            let [ours, peer] = [row.ours, row.peer].map(|[case, _]| measured.time(case));
            let figures = [&ours, &peer].map(|time| number(median(time) / 1e3));
            self.row(title, row, &figures, &ratios(&ours, &peer));
        }
        self.end();
    }

    /// How many of `ours` there are in a second, as a ratio to those of its peer.
    pub(crate) fn rates(&mut self, title: &str, measured: &Measured, rows: &[Row]) {
        self.head(&[title, "ours, per second", "peer, per second", "ratio"]);
        for row in rows {
            let [ours, peer] = [row.ours, row.peer].map(|[case, _]| measured.time(case));
            let figures = [&ours, &peer].map(|time| number(1e9 / median(time)));
            self.row(title, row, &figures, &ratios(&peer, &ours));
        }
        self.end();
    }

    fn head(&mut self, titles: &[&str]) {
        let titles = titles.join(" | ");
        let head = format!(
            "| {titles} | least to greatest | goal | verdict |\n|---|---|---|---|---|---|---|\n"
        );
        self.text.push_str(&head);
    }

    fn row(&mut self, title: &str, row: &Row, [ours, peer]: &[String; 2], ratios: &[f64]) {
        let label = row.label;
        let ratio = median(ratios);
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (goal, verdict) = match row.goal {
            Some(Goal::AtMost(goal)) => (format!("<= {goal}"), verdict(ratio <= goal)),
            Some(Goal::AtLeast(goal)) => (format!(">= {goal}"), verdict(ratio >= goal)),
            None => (String::new(), ""),
        };
        let range = format!("{least:.2} to {greatest:.2}");
        self.text.push_str(&format!(
            "| {label} | {ours} | {peer} | {ratio:.2} | {range} | {goal} | {verdict} |\n"
        ));
        if row.goal.is_some() {
            let line =
                format!("| {title}: {label} | {ratio:.2} | {range} | {goal} | {verdict} |\n");
            self.goals.push(line);
        }
    }

    /// What each of `cases` adds to its bare case.
    pub(crate) fn costs(&mut self, title: &str, measured: &Measured, cases: &[[&str; 3]]) {
        self.text
            .push_str(&format!("| {title} | added ns |\n|---|---|\n"));
        for [label, case, bare] in cases {
            let added = number(median(&measured.added(case, bare)));
            self.text.push_str(&format!("| {label} | {added} |\n"));
        }
        self.end();
    }

    fn end(&mut self) {
        self.text.push('\n');
    }
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

/// Three digits that say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
