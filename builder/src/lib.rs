//! How an image is made: resolve, fetch, unpack, configure, assemble, emit.

pub mod disk;
pub mod exec;
pub mod progress;
pub mod source;
pub mod store;
pub mod tree;
