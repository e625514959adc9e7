//! What the fuzz targets found, and what they began with: `fuzz/corpus`, once more.
#![cfg(all(feature = "hmac", feature = "session"))]
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod fuzz;

use std::{collections::BTreeSet, fs, path::Path};

/// How long an input may be that Miri runs, in bytes.
const MIRI_MAX: usize = 128;

/// Replays the corpus of `target`: of its seeds, exactly `come` come to what the target is about.
///
/// A seed that begins to be refused, or no longer is, has become another test.
fn replay(target: &str, check: fn(&[u8]) -> bool, come: &str) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let (mut came, mut seeds, mut left_out) = (BTreeSet::new(), 0, BTreeSet::new());
    for file in fs::read_dir(corpus.join(target)).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let input = fs::read(&path).unwrap();
        let is_found = name.len() == 40;
        // Miri would take hours: it gets what is short and written by hand.
        if cfg!(miri) && (is_found || input.len() > MIRI_MAX) {
            println!("not by Miri: {}", path.display());
            left_out.insert(name);
            continue;
        }
        // A failure shows its input.
        println!("{}", path.display());
        let has_come = check(&input);
        if !is_found {
            seeds += 1;
            came.extend(has_come.then_some(name));
        }
    }
    let come: BTreeSet<_> = come.split(' ').map(str::to_owned).collect();
    assert_eq!(came, &come - &left_out);
    assert!(came.len() < seeds, "none is refused");
}

#[test]
#[cfg_attr(miri, ignore = "it takes minutes there, and is about texts only")]
fn rules() {
    replay(
        "rules",
        fuzz::rules::check,
        "allow caller credential relayed rename static",
    );
}

#[test]
fn merge() {
    replay(
        "merge",
        fuzz::merge::check,
        "admitted allow attested bearer cookie has_bearer multi obs_text spelling",
    );
}

#[test]
fn connection() {
    replay(
        "connection",
        fuzz::connection::check,
        "empty itself nine none quoted spelling usual",
    );
}

#[test]
fn hold() {
    replay(
        "hold",
        fuzz::hold::check,
        "after_data bom comment encoded failed_late field full get json no_events priming result \
         too_late trailers",
    );
}

#[test]
fn challenge() {
    replay("challenge", fuzz::challenge::check, "long scope several");
}

#[test]
fn session() {
    replay(
        "session",
        fuzz::session::check,
        "anonymous expired full list long modern more pass pin pin_nothing renewed require server \
         stray use",
    );
}

#[test]
fn splice() {
    replay(
        "splice",
        fuzz::oracle::splice,
        "batch big call empty_params escaped last list nested notification null only own",
    );
}

#[test]
fn internal_proof() {
    replay("internal_proof", fuzz::oracle::proof, "good");
}
