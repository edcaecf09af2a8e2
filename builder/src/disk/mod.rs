//! The disk that every disk format is written from: segments at offsets, read on demand, so that no second copy of the image is held.

pub mod bios;
pub mod file;
pub mod gpt;
pub mod layout;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use layers::units::Digest;
use layers::{Error, Result};
use sha2::{Digest as _, Sha256};

/// Bytes that can be read at any offset, from several threads at once.
pub trait ReadAt: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// True when there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the buffer from `offset`; reading past the end is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// The ranges that may hold other bytes than zero, in order, not overlapping; everything else reads as zero.
    fn data(&self) -> Result<Vec<Range<u64>>> {
        Ok(std::iter::once(0..self.len()).collect())
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= ReadAt::len(self));
        let Some(end) = end else { return Err(Error::internal(format!("reading {} bytes at {offset} of {}", buffer.len(), self.as_slice().len()))) };
        buffer.copy_from_slice(&self[offset as usize..end as usize]);
        Ok(())
    }
}

/// Numbers of the blocks of `unit` bytes that may hold other bytes than zero, in order; the last block may be shorter than `unit`.
pub fn blocks(disk: &dyn ReadAt, unit: u64) -> Result<Vec<u64>> {
    let mut out: Vec<u64> = Vec::new();
    for range in disk.data()?.into_iter().filter(|r| !r.is_empty()) {
        let first = (range.start / unit).max(out.last().map_or(0, |last| last + 1));
        out.extend(first..range.end.div_ceil(unit));
    }
    Ok(out)
}

/// Reads the block of a number into a buffer of `unit` bytes and returns the part that the disk has of it.
pub fn read_block<'a>(disk: &dyn ReadAt, number: u64, buffer: &'a mut [u8]) -> Result<&'a mut [u8]> {
    let start = number * buffer.len() as u64;
    let len = disk.len().saturating_sub(start).min(buffer.len() as u64) as usize;
    disk.read_at(&mut buffer[..len], start)?;
    Ok(&mut buffer[..len])
}

/// SHA-256 of all bytes, read in pieces. Holes are hashed as zeros without being read.
pub fn sha256(source: &dyn ReadAt) -> Result<Digest> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    let zeros = vec![0; 1 << 20];
    let mut done = 0;
    let end = source.len()..source.len();
    for range in source.data()?.into_iter().chain([end]) {
        for length in pieces(range.start - done) {
            hasher.update(&zeros[..length]);
        }
        done = range.start;
        for length in pieces(range.end - range.start) {
            source.read_at(&mut buffer[..length], done)?;
            hasher.update(&buffer[..length]);
            done += length as u64;
        }
    }
    Ok(Digest(hasher.finalize().into()))
}

/// A length in pieces of at most 1 MiB.
fn pieces(length: u64) -> impl Iterator<Item = usize> {
    const PIECE: u64 = 1 << 20;
    (0..length.div_ceil(PIECE)).map(move |n| (length - n * PIECE).min(PIECE) as usize)
}

/// True when all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (wide, rest) = bytes.as_chunks::<64>();
    wide.iter().all(|c| c.iter().fold(0, |all, b| all | b) == 0) && rest.iter().all(|b| *b == 0)
}

/// A little-endian number of 16 bits.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A little-endian number of 32 bits.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

/// A little-endian number of 64 bits.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// A disk of a fixed size made of segments; what no segment covers reads as zero.
#[derive(Clone, Debug)]
pub struct Disk {
    size: u64,
    segments: BTreeMap<u64, Arc<dyn ReadAt>>,
}

impl Disk {
    /// An empty disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size, segments: BTreeMap::new() }
    }

    /// Puts a segment; one that overlaps another or the disk's end is refused.
    pub fn put(&mut self, offset: u64, segment: Arc<dyn ReadAt>) -> Result<()> {
        let end = offset + segment.len();
        let before = self.segments.range(..=offset).next_back().map_or(0, |(o, s)| o + s.len());
        let after = self.segments.range(offset..).next().map_or(self.size, |(o, _)| *o);
        if end > self.size || before > offset || after < end {
            return Err(Error::internal(format!(
                "placing {} bytes at {offset}: they overlap a neighbour or the end at {}",
                segment.len(),
                self.size
            )));
        }
        self.segments.insert(offset, segment);
        Ok(())
    }
}

impl ReadAt for Disk {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buffer.len() as u64;
        if end > self.size {
            return Err(Error::internal(format!("reading {} bytes at {offset} of a disk of {}", buffer.len(), self.size)));
        }
        buffer.fill(0);
        let first = self.segments.range(..=offset).next_back().map_or(offset, |(o, _)| *o);
        for (start, segment) in self.segments.range(first..end) {
            let (from, to) = (offset.max(*start), end.min(start + segment.len()));
            if from < to {
                segment.read_at(&mut buffer[(from - offset) as usize..(to - offset) as usize], from - start)?;
            }
        }
        Ok(())
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut out = Vec::new();
        for (start, segment) in &self.segments {
            out.extend(segment.data()?.into_iter().map(|r| r.start + start..r.end + start));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_reads_across_segments_and_holes() {
        let mut disk = Disk::new(16);
        disk.put(2, Arc::new(b"abc".to_vec())).unwrap();
        disk.put(8, Arc::new(b"xy".to_vec())).unwrap();
        let mut all = [1; 16];
        disk.read_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"\0\0abc\0\0\0xy\0\0\0\0\0\0");
        let mut part = [1; 6];
        disk.read_at(&mut part, 3).unwrap();
        assert_eq!(&part, b"bc\0\0\0x");
        assert_eq!(disk.data().unwrap(), [2..5, 8..10]);
        assert_eq!((blocks(&disk, 4).unwrap(), blocks(&disk, 16).unwrap()), (vec![0, 1, 2], vec![0]));
        assert!(is_zero(&[0; 200]) && !is_zero(&[[0; 190].as_slice(), &[1]].concat()) && !is_zero(&[[1].as_slice(), &[0; 99]].concat()));
        assert!(disk.put(4, Arc::new(b"z".to_vec())).is_err() && disk.put(15, Arc::new(b"zz".to_vec())).is_err());
        assert!(disk.read_at(&mut [0; 4], 14).is_err());
    }
}
