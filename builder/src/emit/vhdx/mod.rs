//! VHDX ([MS-VHDX]): Hyper-V's disks, dynamic: what is zero takes no room. Not packed, which the format does not know.

pub mod format;
pub mod reader;
mod writer;

use std::fs::File;
use std::sync::Arc;

use layers::Result;
use layers::units::Bytes;

use super::{Format, Machine};
use crate::disk::{ReadAt, blocks};

/// The VHDX format.
#[derive(Debug)]
pub struct Vhdx;

impl Format for Vhdx {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        Ok(Bytes(writer::before_blocks(&writer::parameters(disk)) + blocks(disk, format::BLOCK)?.len() as u64 * format::BLOCK))
    }

    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
        writer::write(disk, machine, out)
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(reader::Reader::open(file)?))
    }
}
