#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quic_dist_engine::fuzzing::control(data));
