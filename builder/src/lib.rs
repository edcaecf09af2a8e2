//! How an image is made: resolve, fetch, unpack, configure, assemble, emit.

pub mod disk;
pub mod exec;
pub mod fs;
pub mod store;
pub mod tree;
