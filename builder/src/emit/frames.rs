//! zstd frames (RFC 8878) with a seek table behind them: any program unpacks the whole, ours reads any part.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

pub use layers::frames::{MAGIC, TINY, Table};
use layers::{Context, Error, Fault, Result};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use super::mapped::Kept;
use super::put;
use crate::disk::{ReadAt, is_zero};

/// zstd's level: frames are far larger than QCOW2's clusters, and what travels is worth the time.
const LEVEL: i32 = 9;
/// Unpacked frames that a reader keeps: one for each thread that reads in parts.
const RECENT: usize = 16;

/// What one core packs frames with.
pub fn packer<'a>() -> Result<Compressor<'a>> {
    let packer = Compressor::new(LEVEL).and_then(|mut packer| packer.set_parameter(CParameter::ChecksumFlag(true)).map(|()| packer));
    packer.fault(Fault::Internal, || "starting zstd".into())
}

/// A frame of these bytes.
pub fn compress(packer: &mut Compressor, bytes: &[u8]) -> Result<Vec<u8>> {
    packer.compress(bytes).fault(Fault::Internal, || "compressing a frame".into())
}

/// Frames that are appended to an empty file.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a File,
    table: Table,
}

impl<'a> Writer<'a> {
    /// Begins the file.
    pub fn new(out: &'a File) -> Self {
        Self { out, table: Table::default() }
    }

    /// Appends a frame that unpacks to `size` bytes.
    pub fn append(&mut self, frame: &[u8], size: u64) -> Result<()> {
        put(self.out, frame, self.table.packed_len())?;
        self.table.push(frame.len() as u64, size);
        Ok(())
    }

    /// Writes the table.
    pub fn finish(self) -> Result<()> {
        put(self.out, &self.table.to_bytes(), self.table.packed_len())
    }
}

/// The bytes that such a file unpacks to.
#[derive(Debug)]
pub struct Reader {
    file: Arc<dyn ReadAt>,
    table: Table,
    recent: Kept<Vec<u8>>,
}

impl Reader {
    /// Reads the seek table; whatever is odd in it is refused.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let table = Table::read(file.len(), |at, buffer| file.read_at(buffer, at))?;
        Ok(Self { file, table, recent: Kept::new(RECENT) })
    }

    fn unpack(&self, frame: usize) -> Result<Vec<u8>> {
        let (place, part) = (self.table.packed(frame), self.table.unpacked(frame));
        let mut packed = vec![0; (place.end - place.start) as usize];
        self.file.read_at(&mut packed, place.start)?;
        let length = (part.end - part.start) as usize;
        let unpacked = Decompressor::new().and_then(|mut zstd| zstd.decompress(&packed, length));
        let unpacked = unpacked.fault(Fault::Input, || format!("unpacking the zstd frame at {}", place.start))?;
        if unpacked.len() != length {
            return Err(Error::input(format!("unpacking the zstd frame at {}: it has {} bytes instead of {length}", place.start, unpacked.len())));
        }
        Ok(unpacked)
    }

    fn is_zero(&self, frame: usize) -> Result<bool> {
        let place = self.table.packed(frame);
        Ok(place.end - place.start < TINY && is_zero(&self.unpack(frame)?))
    }
}

impl ReadAt for Reader {
    fn len(&self) -> u64 {
        self.table.unpacked_len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(Error::input(format!("reading {} bytes at {offset} of the {} that are packed", buffer.len(), self.len())));
        }
        let mut number = self.table.frame_of(offset);
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let part = self.table.unpacked(number);
            let (here, behind) = rest.split_at_mut((part.end - at).min(rest.len() as u64) as usize);
            let frame = self.recent.get(number as u64, || self.unpack(number))?;
            here.copy_from_slice(&frame[(at - part.start) as usize..][..here.len()]);
            (at, number, rest) = (part.end, number + 1, behind);
        }
        Ok(())
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        for number in 0..self.table.frames() {
            let part = self.table.unpacked(number);
            if self.is_zero(number)? {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => out.push(part),
            }
        }
        Ok(out)
    }
}
