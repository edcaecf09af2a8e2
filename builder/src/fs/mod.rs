//! File system formats: each a writer with its reader, judged in the tests by the outside tool of that format.

pub mod cpio;
pub(crate) mod device;
pub mod erofs;
pub mod fat;
pub mod initramfs;
pub mod verity;
