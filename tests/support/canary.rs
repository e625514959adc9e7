//! The canary: one secret for every place that can hold one, and what knows it again in any dress.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};

use tracing_subscriber::fmt::format::FmtSpan;

/// A token of this alphabet is one for `.bearer()` as well.
pub const CANARY: &str = "kQ7vZ2xW9bL4mT6pR8sJ";

/// A canary that is a host, a path, a query, and no URL.
pub const PLACES: [&str; 4] = [
    "http://user:kQ7vZ2xW9bL4mT6pR8sJ@elsewhere.example/",
    "http://elsewhere.example/kQ7vZ2xW9bL4mT6pR8sJ",
    "http://elsewhere.example/?t=kQ7vZ2xW9bL4mT6pR8sJ#kQ7vZ2xW9bL4mT6pR8sJ",
    "//[kQ7vZ2xW9bL4mT6pR8sJ",
];

/// RFC 4648 section 4, without padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).flat_map(|chunk| {
        let bits = chunk
            .iter()
            .chain(&[0; 2])
            .take(3)
            .fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let digits = [18, 12, 6, 0].map(|shift| char::from(ALPHABET[bits >> shift & 63]));
        digits.into_iter().take(chunk.len() + 1)
    });
    groups.collect()
}

/// Every text by which the canary would be known again: any eight characters of it, of its base64 at
/// each of the three offsets, and of its bytes as a list of numbers.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let mut windows = |text: &str| {
        let text = text.as_bytes();
        traces.extend(
            text.windows(8)
                .map(|w| String::from_utf8_lossy(w).into_owned()),
        );
    };
    windows(CANARY);
    for offset in 0..3 {
        let encoded = base64(&[&b"  "[..offset], CANARY.as_bytes()].concat());
        // Not the digits that hold a part of what stands before or after.
        windows(&encoded[2..encoded.len() - 1]);
    }
    let numbers: Vec<_> = CANARY.bytes().map(|byte| byte.to_string()).collect();
    traces.extend(numbers.windows(8).map(|bytes| bytes.join(",")));
    traces
}

/// Fails where `text` shows a part of the canary, whatever white space is in it.
pub fn check(what: &str, text: &str) {
    let dense: String = text.split_whitespace().collect();
    for trace in traces() {
        if let Some(at) = dense.find(&trace) {
            let before = &dense.as_bytes()[at.saturating_sub(300)..at];
            let before = String::from_utf8_lossy(before);
            panic!("{what} shows the canary: {before}{trace}");
        }
    }
}

/// What is written here goes nowhere else.
#[derive(Clone, Default)]
pub struct Log(pub Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of this process from now on, of what `filter` says.
///
/// Global: while there is one subscriber, of one thread only, an event that another thread tells first
/// would be taken for one that nobody listens to.
pub fn log(filter: &str) -> Log {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    log
}
