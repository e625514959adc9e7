//! Any bytes as the body of a message.
#![no_main]

#[path = "../../tests/support/oracle.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    oracle::splice(body);
});
