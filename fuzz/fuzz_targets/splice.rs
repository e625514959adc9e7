#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    mcp_forward_fuzz::fuzz::oracle::splice(body);
});
