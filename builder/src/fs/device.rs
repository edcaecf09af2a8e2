//! A disk for the crates of file systems (`hadris-fat`, `hadris-iso`).

use std::fs::File;
use std::os::unix::fs::FileExt;

use hadris_fs::FsResult;
use hadris_io::{ErrorType, Location};
use hadris_storage::sync::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};
use layers::Error;

use crate::disk::ReadAt;

const SECTOR: u32 = 512;

/// What the crates see as their disk: read through [`ReadAt`], written only when there is a file.
#[derive(Debug)]
pub struct Device<'a> {
    /// Where it is read.
    pub disk: &'a dyn ReadAt,
    /// Where it is written.
    pub file: Option<&'a File>,
}

impl ErrorType for Device<'_> {
    type Error = std::io::Error;
}

impl BlockDevice for Device<'_> {
    fn block_size(&self) -> BlockSize {
        // Evaluated when compiled.
        const SIZE: BlockSize = BlockSize::new(SECTOR).unwrap();
        SIZE
    }

    fn block_count(&self) -> u64 {
        self.disk.len() / u64::from(SECTOR)
    }

    fn writable(&self) -> bool {
        self.file.is_some()
    }

    fn read_blocks(&mut self, first: BlockIndex, buffer: &mut [u8]) -> FsResult<(), std::io::Error> {
        let failed = |e: Error| hadris_fs::Error::device(std::io::Error::other(e), "reading failed").with_location(Location::Block(first.get()));
        self.disk.read_at(buffer, first.get().saturating_mul(u64::from(SECTOR))).map_err(failed)
    }

    fn write_blocks(&mut self, first: BlockIndex, buffer: &[u8]) -> FsResult<(), std::io::Error> {
        let Some(file) = self.file else { return Err(hadris_fs::Error::new(hadris_fs::ErrorKind::ReadOnly, "opened for reading")) };
        let written = file.write_all_at(buffer, first.get() * u64::from(SECTOR));
        written.map_err(|e| hadris_fs::Error::device(e, "writing failed"))
    }

    fn flush(&mut self) -> FsResult<(), std::io::Error> {
        Ok(())
    }
}
