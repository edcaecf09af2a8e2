//! EROFS without compression: the root file system, read-only, laid out once and read on demand.
//!
//! Format: Linux `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`. What is used of it: 4 KiB blocks, one device, compact and
//! extended inodes, flat data with or without an inline tail, xattrs inside the inode, the checksum of the superblock.
//!
//! ```text
//! block 0      superblock at 1024, then inodes: one record each (inode, xattrs, inline tail), in path order
//! …            directory and long symlink data, in path order     everything up to here: `Erofs::data_start`
//! …            file data in path order, each file on a block boundary; equal contents share their blocks
//! ```

mod format;
mod reader;
mod writer;

pub use reader::{Entry, Reader, What};
pub use writer::{Erofs, Options};

#[cfg(test)]
mod tests;
