//! How an image is made: resolve, fetch, unpack, configure, assemble, emit.

pub mod assemble;
pub mod cli;
pub mod compare;
pub mod defs;
pub mod disk;
pub mod efi;
pub mod emit;
pub mod exec;
pub mod fs;
pub mod images;
pub mod inspect;
pub mod pipeline;
pub mod progress;
pub mod publish;
pub mod record;
pub mod signing;
pub mod source;
pub mod store;
pub mod sys;
pub mod tree;
pub mod workspace;
