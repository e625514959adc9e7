#![no_main]

libfuzzer_sys::fuzz_target!(|mark: &[u8]| {
    mcp_forward_fuzz::fuzz::oracle::proof(mark);
});
