//! Any bytes as the mark of an internal forward, whole or in part.
#![no_main]

#[path = "../../tests/support/oracle.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|mark: &[u8]| {
    oracle::proof(mark);
});
