//! The disk byte by byte, packed with zstd in frames of one size.

use std::fs::File;
use std::sync::Arc;

use layers::Result;
use layers::units::Bytes;
use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use super::frames::{self, TINY, Table, Writer, compress, packer};
use super::ordered::{self, Packed};
use super::{Format, Machine, copy};
use crate::disk::{ReadAt, blocks};

/// Bytes of the disk in a frame.
const FRAME: u64 = 4 << 20;

/// The format of raw disks that are packed.
#[derive(Debug)]
pub struct RawZst;

impl Format for RawZst {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        let data = blocks(disk, FRAME)?.len() as u64 * compress_bound(FRAME as usize) as u64;
        let count = disk.len().div_ceil(FRAME);
        Ok(Bytes(data + count * TINY + Table::size(count)))
    }

    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
        match &machine.start {
            Some(start) => copy(start.packed(disk)?.as_ref(), out, 0),
            None => write(disk, out),
        }
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(frames::Reader::open(file)?))
    }
}

/// Packs a disk into an empty file.
pub fn write(disk: &dyn ReadAt, out: &File) -> Result<()> {
    let one = |packer: &mut Compressor, number: u64, bytes: &[u8]| compress(packer, &bytes[..length(disk.len(), number) as usize]);
    ordered::pack(disk, FRAME, packer, one, |frames| place_all(disk.len(), out, frames))
}

/// Bytes of the disk that a frame has: the last one may be shorter.
fn length(size: u64, number: u64) -> u64 {
    (size - number * FRAME).min(FRAME)
}

/// Writes the frames, and those of zeros between them.
fn place_all(size: u64, out: &File, frames: Packed<Vec<u8>>) -> Result<()> {
    let zeros = compress(&mut packer()?, &vec![0; FRAME as usize])?;
    let (mut writer, mut next) = (Writer::new(out), 0);
    for (number, bytes) in frames.into_iter().flatten() {
        (next..number).try_for_each(|_| writer.append(&zeros, FRAME))?;
        writer.append(&bytes, length(size, number))?;
        next = number + 1;
    }
    (next..size / FRAME).try_for_each(|_| writer.append(&zeros, FRAME))?;
    if next * FRAME < size && !size.is_multiple_of(FRAME) {
        writer.append(&compress(&mut packer()?, &vec![0; (size % FRAME) as usize])?, size % FRAME)?;
    }
    writer.finish()
}
