//! How an image is made: resolve, fetch, unpack, configure, assemble, emit.

pub mod assemble;
pub mod defs;
pub mod disk;
pub mod exec;
pub mod store;
pub mod tree;
