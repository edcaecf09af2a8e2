//! File system formats: each a writer with its reader, judged in the tests by the outside tool of that format.

use std::collections::BTreeMap;
use std::fmt::Debug;

use layers::units::Digest;
use layers::{Error, Result};
use sha2::Digest as _;

use crate::tree::TreePath;
use erofs::{Entry, What};

pub mod cpio;
pub(crate) mod device;
pub mod erofs;
pub(crate) mod ext4;
pub mod fat;
pub mod initramfs;
pub mod verity;

/// Memory in bytes that a listing may take; real roots need some tens of MiB.
pub(crate) const LISTING_MAX: u64 = 1 << 30;
/// What one path costs beside its name.
pub(crate) const ENTRY_COST: u64 = 256;

/// The files of an opened file system, of any kind that is read.
pub trait Files: Debug + Send + Sync {
    /// All paths; the root is the empty path.
    fn entries(&self) -> &BTreeMap<TreePath, Entry>;

    /// Fills the buffer from a file, beginning at its byte `offset`; reading past its end is an error.
    fn read_at(&self, path: &TreePath, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Digest of a file's content, read in pieces.
    fn digest(&self, path: &TreePath) -> Result<Digest> {
        let Some(Entry { what: What::File(size), .. }) = self.entries().get(path) else {
            return Err(Error::input(format!("reading {path}: no such file")));
        };
        let (mut hasher, mut at, mut buffer) = (sha2::Sha256::new(), 0, vec![0; (1 << 20).min(*size) as usize]);
        while at < *size {
            let part = (size - at).min(buffer.len() as u64);
            self.read_at(path, &mut buffer[..part as usize], at)?;
            hasher.update(&buffer[..part as usize]);
            at += part;
        }
        Ok(Digest(hasher.finalize().into()))
    }
}
