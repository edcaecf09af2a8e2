//! File systems and their relatives, each written and read by us.

pub mod fat;
//! File system formats: each a writer with its reader, judged in the tests by the outside tool of that format.

pub mod cpio;
pub mod erofs;
pub mod initramfs;
pub mod verity;
