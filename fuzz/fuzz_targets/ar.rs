//! Any bytes as a package: an error or a package, never a panic, never more memory than the bounds of `deb.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| builder::assemble::deb::fuzz(bytes));
