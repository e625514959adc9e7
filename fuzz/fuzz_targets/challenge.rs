#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    mcp_forward_fuzz::fuzz::challenge::check(input);
});
