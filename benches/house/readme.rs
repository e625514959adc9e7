//! `benches/README.md`: what a run wrote stands between its marks, and the reasons around them.

use std::{fs, process::Command};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/README.md");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/growth.svg");
const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock");

/// The parts of the page, by the names of their marks.
pub(crate) fn write(parts: &[(&str, String)], chart: &str) {
    let mut page = fs::read_to_string(README).unwrap();
    for (name, text) in parts {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->"));
        let (before, rest) = page.split_once(&start).unwrap_or_else(|| missing(name));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| missing(name));
        page = format!("{before}{start}{}\n{end}{after}", text.trim_end());
    }
    fs::write(README, page).unwrap();
    fs::write(CHART, chart).unwrap();
}

fn missing(name: &str) -> ! {
    panic!("benches/README.md has no marks of {name}")
}

/// When and where; `loads` are those that [`load`] gave during the run.
pub(crate) fn machine(loads: &[f64]) -> String {
    let says = |program: &str, arguments: &[&str]| {
        let said = Command::new(program).args(arguments).output();
        let said = said.map_or(Vec::new(), |said| said.stdout);
        String::from_utf8_lossy(&said).trim().to_owned()
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |line| line.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let crates = ["tokio", "http", "hyper", "tower-http", "opentelemetry"];
    let crates = crates.map(|name| format!("{name} {}", version(name)));
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = loads.iter().copied().fold(0.0, f64::max);
    format!(
        "{} on {model}, {cores} cores, {}; {}, {}. Load of the last minute, with this run in it: {least} \
         to {greatest}.",
        says("date", &["-u", "+%F"]),
        says("uname", &["-sr"]),
        says("rustc", &["--version"]),
        crates.join(", "),
    )
}

/// How many tasks wanted a core in the last minute.
pub(crate) fn load() -> Option<f64> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').next()?.parse().ok()
}

/// The newest version of `name` in the lock file.
fn version(name: &str) -> String {
    let lock = fs::read_to_string(LOCK).unwrap_or_default();
    let start = format!("name = \"{name}\"\nversion = \"");
    let version = lock.rsplit_once(&start);
    let version = version.and_then(|(_, rest)| rest.split('"').next());
    version.unwrap_or_default().to_owned()
}
