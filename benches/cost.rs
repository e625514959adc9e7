//! What the layers, polls, spawns and the merge cost, by criterion.
//!
//! Criterion runs one case after the other; on a machine that does other things too, believe the
//! ratios of `ratios.rs`, which takes turns.

mod support;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for mut case in support::cases::all() {
        let mut group = criterion.benchmark_group(case.group);
        group.bench_function(case.name, |bencher| {
            bencher.iter_custom(|count| (case.run)(count));
        });
        group.finish();
    }
    criterion.final_summary();
}
