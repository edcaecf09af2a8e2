//! Any bytes as a data and a control archive: an error or a tree whose paths are confined.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| builder::assemble::unpack::fuzz(bytes));
