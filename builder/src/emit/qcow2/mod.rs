//! QCOW2 version 3 (QEMU: docs/interop/qcow2.txt), compressed with zstd.

pub mod format;
pub mod reader;
pub mod writer;

use std::fs::File;
use std::sync::Arc;

use layers::Result;
use layers::units::Bytes;

use super::{Format, Machine};
use crate::disk::{ReadAt, blocks};

/// The QCOW2 format.
#[derive(Debug)]
pub struct Qcow2;

impl Format for Qcow2 {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        let data = blocks(disk, format::CLUSTER)?.len() as u64;
        let tables = disk.len() / format::CLUSTER / format::L2_ENTRIES + data / format::REFS_PER_BLOCK + 8;
        Ok(Bytes((data + tables) * format::CLUSTER))
    }

    fn emit(&self, disk: &dyn ReadAt, _: &Machine, out: &File) -> Result<()> {
        writer::write(disk, out)
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(reader::Reader::open(file)?))
    }
}
