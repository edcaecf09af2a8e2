//! Proxmox' backup archive (pve-qemu: vma_spec.txt), packed with zstd: `qmrestore` makes a virtual machine of it.

pub mod format;
pub mod reader;
pub mod writer;

use std::fs::File;
use std::sync::Arc;

use layers::Result;
use layers::units::Bytes;
use zstd::zstd_safe::compress_bound;

use super::frames::{self, Table};
use super::{Format, Machine};
use crate::disk::{ReadAt, blocks};

/// The VMA format.
#[derive(Debug)]
pub struct Vma;

impl Format for Vma {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        let bound = |size: u64| compress_bound(size as usize) as u64;
        let data = blocks(disk, format::PIECE)?.len() as u64 * bound(format::HEADER_SIZE + format::PIECE);
        let count = disk.len().div_ceil(format::PIECE);
        Ok(Bytes(bound(writer::LARGEST_HEADER) + data + count * bound(format::HEADER_SIZE) + Table::size(count + 1)))
    }

    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
        writer::write(disk, machine, out)
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        let file = if is_archive(file.as_ref())? { file } else { Arc::new(frames::Reader::open(file)?) };
        Ok(Arc::new(reader::Reader::open(file)?))
    }
}

/// Whether a file, not packed, is such an archive.
pub fn is_archive(file: &dyn ReadAt) -> Result<bool> {
    let mut magic = [0; 4];
    if file.len() < 4 {
        return Ok(false);
    }
    file.read_at(&mut magic, 0)?;
    Ok(magic == format::MAGIC)
}
