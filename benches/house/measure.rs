//! Times cases in turns, so that whatever else the machine does falls on all of them alike.
//!
//! It may not know what is timed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tower::Service;

use crate::request::{Head, exchange};

/// How many requests are made before they are sent: few, so that they stay in the cache.
const BATCH: u64 = 64;

/// One thing that is timed: `run` does it so many times, and says how long that took.
pub(crate) struct Case {
    name: String,
    pub(crate) run: Box<dyn FnMut(u64) -> Duration>,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut(u64) -> Duration + 'static) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }

    /// Sends what `make` makes, which is not timed, through `service`.
    pub(crate) fn service<S>(
        name: impl Into<String>,
        mut service: S,
        mut make: impl FnMut() -> Head + 'static,
    ) -> Self
    where
        S: Service<Head> + 'static,
    {
        let mut requests = Vec::new();
        Self::new(name, move |count| {
            let mut left = count;
            let mut spent = Duration::ZERO;
            while left > 0 {
                let batch = left.min(BATCH);
                left -= batch;
                requests.extend((0..batch).map(|_| make()));
                let start = Instant::now();
                for request in requests.drain(..) {
                    exchange(&mut service, request);
                }
                spent += start.elapsed();
            }
            spent
        })
    }
}

/// Nanoseconds of one of each case, by round.
pub(crate) type Pass = BTreeMap<String, Vec<f64>>;

/// Gives each case one sample a round, each of so many; every round begins with another case.
pub(crate) fn pass(mut cases: Vec<Case>, rounds: usize, count: u64) -> Pass {
    let mut samples = vec![Vec::new(); cases.len()];
    for round in 0..rounds {
        for turn in 0..cases.len() {
            let at = (round + turn) % cases.len();
            let spent = (cases[at].run)(count);
            samples[at].push(spent.as_secs_f64() * 1e9 / count as f64);
        }
    }
    let names = cases.into_iter().map(|case| case.name);
    names.zip(samples).collect()
}

/// What the passes of one part gave.
pub(crate) struct Measured(pub(crate) Vec<Pass>);

impl Measured {
    pub(crate) fn has(&self, case: &str) -> bool {
        self.0.iter().all(|pass| pass.contains_key(case))
    }

    /// Nanoseconds of one, by pass.
    pub(crate) fn time(&self, case: &str) -> Vec<f64> {
        let time = |pass: &Pass| median(&pass[case]);
        self.0.iter().map(time).collect()
    }

    /// How many nanoseconds `case` takes longer than `bare` in the same round, by pass.
    pub(crate) fn added(&self, case: &str, bare: &str) -> Vec<f64> {
        let added = |pass: &Pass| {
            let rounds = pass[case].iter().zip(&pass[bare]);
            median(&rounds.map(|(case, bare)| case - bare).collect::<Vec<_>>())
        };
        self.0.iter().map(added).collect()
    }
}

/// The ratios of two measures of the same passes.
///
/// Infinite where the other one is too little to be seen, so that no goal is met by accident.
pub(crate) fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    let pairs = over.iter().zip(under);
    let ratio = |(over, under): (&f64, &f64)| match *under > 0.0 {
        true => over / under,
        false => f64::INFINITY,
    };
    pairs.map(ratio).collect()
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
