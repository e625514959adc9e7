//! What the fuzz targets found, and what they began with: `fuzz/corpus`, once more.
#![cfg(all(feature = "hmac", feature = "session"))]
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod fuzz;

use std::{fs, path::Path};

/// How long an input may be that Miri runs, in bytes.
const MIRI_MAX: usize = 128;

/// Replays the corpus of `target`; some of it has to come to what the target is about, and some must not.
fn replay(target: &str, check: fn(&[u8]) -> bool) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = fs::read_dir(corpus.join(target)).unwrap();
    let (mut came, mut all) = (0, 0);
    for file in files {
        let path = file.unwrap().path();
        let input = fs::read(&path).unwrap();
        // Miri would take hours: it gets what is short and written by hand.
        let is_found = path.file_name().is_some_and(|name| name.len() == 40);
        if cfg!(miri) && (is_found || input.len() > MIRI_MAX) {
            println!("not by Miri: {}", path.display());
            continue;
        }
        // A failure shows its input.
        println!("{}", path.display());
        came += usize::from(check(&input));
        all += 1;
    }
    assert!(came >= 1 && came < all, "{came} of {all}");
}

#[test]
#[cfg_attr(miri, ignore = "it takes minutes there, and is about texts only")]
fn rules() {
    replay("rules", fuzz::rules::check);
}

#[test]
fn merge() {
    replay("merge", fuzz::merge::check);
}

#[test]
fn connection() {
    replay("connection", fuzz::connection::check);
}

#[test]
fn hold() {
    replay("hold", fuzz::hold::check);
}

#[test]
fn challenge() {
    replay("challenge", fuzz::challenge::check);
}

#[test]
fn session() {
    replay("session", fuzz::session::check);
}

#[test]
fn splice() {
    replay("splice", fuzz::oracle::splice);
}

#[test]
fn internal_proof() {
    replay("internal_proof", fuzz::oracle::proof);
}
