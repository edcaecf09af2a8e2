//! Stream-optimized VMDK (VMware: Virtual Disk Format 5.0): what an OVA carries, packed with deflate and readable from front to back.

pub mod format;
pub mod reader;
pub mod writer;

use std::fs::File;
use std::sync::Arc;

use layers::Result;
use layers::units::Bytes;

use super::{Format, Machine};
use crate::disk::{ReadAt, blocks};

/// The VMDK format.
#[derive(Debug)]
pub struct Vmdk;

impl Format for Vmdk {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        // A grain that does not pack grows by deflate's block headers and its own marker, less than two sectors.
        let grains = blocks(disk, format::GRAIN)?.len() as u64 * (format::GRAIN + 2 * format::SECTOR);
        let tables = disk.len().div_ceil(format::GRAIN * format::TABLE_ENTRIES);
        Ok(Bytes((format::OVERHEAD + 8) * format::SECTOR + grains + tables * (format::TABLE + format::SECTOR + 4)))
    }

    fn emit(&self, disk: &dyn ReadAt, _: &Machine, out: &File) -> Result<()> {
        writer::write_at(disk, out, 0).map(|_| ())
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(reader::Reader::open(file)?))
    }
}
