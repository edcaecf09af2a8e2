//! How an image is made: resolve, fetch, unpack, configure, assemble, emit.

pub mod assemble;
pub mod disk;
pub mod emit;
pub mod exec;
pub mod progress;
pub mod source;
pub mod fs;
pub mod inspect;
pub mod fs;
pub mod store;
pub mod sys;
pub mod tree;
