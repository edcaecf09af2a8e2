//! The disk byte by byte, packed with zstd (RFC 8878) in frames of one size, with a seek table behind them (zstd: contrib/seekable_format), which
//! `zstd -d` skips: any program unpacks the whole, ours reads any part.
//!
//! ```text
//! frame | … | frame | skippable frame: (packed size, size)… | number of frames | flags | magic
//! ```

use std::fs::File;
use std::sync::Arc;

use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, compress_bound};

use super::mapped::{Kept, Mapped};
use super::ordered::{self, Packed};
use super::{Format, put};
use crate::disk::{ReadAt, blocks, is_zero, le32};

/// First bytes of a frame.
pub const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// First bytes of the skippable frame that has the seek table.
const SKIPPABLE: u32 = 0x184d_2a5e;
/// Last bytes of a seek table.
const SEEKABLE: u32 = 0x8f92_eab1;
/// Bytes of the skippable frame's header.
const HEADER: u64 = 8;
/// Bytes that end the table.
const FOOTER: u64 = 9;
/// Bytes of the disk in a frame.
const FRAME: u64 = 4 << 20;
/// zstd's level, QCOW2's.
const LEVEL: i32 = 9;
/// A frame of zeros is shorter than this.
const TINY: u64 = 1024;
/// Unpacked frames that a reader keeps: one for each thread that reads in parts.
const RECENT: usize = 16;

/// The format of raw disks that are packed.
#[derive(Debug)]
pub struct RawZst;

impl Format for RawZst {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        let data = blocks(disk, FRAME)?.len() as u64 * compress_bound(FRAME as usize) as u64;
        Ok(Bytes(data + disk.len().div_ceil(FRAME) * (TINY + 8) + HEADER + FOOTER))
    }

    fn emit(&self, disk: &dyn ReadAt, out: &File) -> Result<()> {
        let one = |packer: &mut Compressor, number: u64, bytes: &[u8]| compress(packer, &bytes[..length(disk.len(), FRAME, number) as usize]);
        ordered::pack(disk, FRAME, packer, one, |frames| place_all(disk.len(), out, frames))
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(Reader::open(file)?))
    }
}

/// Bytes of the disk that a frame has: the last one may be shorter.
fn length(size: u64, frame: u64, number: u64) -> u64 {
    (size - number * frame).min(frame)
}

fn packer<'a>() -> Result<Compressor<'a>> {
    let packer = Compressor::new(LEVEL).and_then(|mut packer| packer.set_parameter(CParameter::ChecksumFlag(true)).map(|()| packer));
    packer.fault(Fault::Internal, || "starting zstd".into())
}

fn compress(packer: &mut Compressor, bytes: &[u8]) -> Result<Vec<u8>> {
    packer.compress(bytes).fault(Fault::Internal, || "compressing a frame".into())
}

/// Writes the frames, those of zeros between them, and the table.
fn place_all(size: u64, out: &File, frames: Packed<Vec<u8>>) -> Result<()> {
    let zeros = compress(&mut packer()?, &vec![0; FRAME as usize])?;
    let (mut at, mut table) = (0, Vec::new());
    let mut append = |bytes: &[u8], table: &mut Vec<u8>, size: u64| {
        table.extend((bytes.len() as u32).to_le_bytes());
        table.extend((size as u32).to_le_bytes());
        at += bytes.len() as u64;
        put(out, bytes, at - bytes.len() as u64)
    };
    let mut next = 0;
    for (number, bytes) in frames.into_iter().flatten() {
        (next..number).try_for_each(|_| append(&zeros, &mut table, FRAME))?;
        append(&bytes, &mut table, length(size, FRAME, number))?;
        next = number + 1;
    }
    (next..size / FRAME).try_for_each(|_| append(&zeros, &mut table, FRAME))?;
    if next * FRAME < size && !size.is_multiple_of(FRAME) {
        append(&compress(&mut packer()?, &vec![0; (size % FRAME) as usize])?, &mut table, size % FRAME)?;
    }
    let count = (table.len() / 8) as u32;
    let behind = table.len() as u32 + FOOTER as u32;
    let end = [&SKIPPABLE.to_le_bytes()[..], &behind.to_le_bytes(), &table, &count.to_le_bytes(), &[0], &SEEKABLE.to_le_bytes()].concat();
    put(out, &end, at)
}

/// The disk inside such a file.
#[derive(Debug)]
struct Reader {
    file: Arc<dyn ReadAt>,
    size: u64,
    /// Bytes of every frame but the last, unpacked.
    frame: u64,
    /// Where each frame begins, and where the last one ends.
    places: Vec<u64>,
    recent: Kept<Vec<u8>>,
}

impl Reader {
    /// Reads the seek table; whatever is odd in it is refused.
    fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let refused = |why: String| Error::input(format!("reading the seek table: {why}"));
        let none = || refused("there is none".into()).with_hint("unpack the file with `zstd -d` and read that");
        let start = file.len().checked_sub(FOOTER).ok_or_else(none)?;
        let footer = read(file.as_ref(), start, FOOTER)?;
        if le32(&footer, 5) != SEEKABLE {
            return Err(none());
        }
        // Bit 7 says that each entry has a checksum, too.
        let entry = match footer[4] {
            0 => 8,
            0x80 => 12,
            other => return Err(refused(format!("flags {other:#x} are not known"))),
        };
        let length = u64::from(le32(&footer, 0)) * entry;
        let outside = || refused(format!("{length} bytes do not fit into the file of {}", file.len()));
        let begin = start.checked_sub(length + HEADER).ok_or_else(outside)?;
        let header = read(file.as_ref(), begin, HEADER)?;
        if le32(&header, 0) != SKIPPABLE || u64::from(le32(&header, 4)) != length + FOOTER {
            return Err(refused("its frame is not one of a table".into()));
        }
        let table = read(file.as_ref(), begin + HEADER, length)?;
        let (mut places, mut size, mut frame) = (vec![0], 0, None);
        for (number, entry) in table.chunks_exact(entry as usize).enumerate() {
            let (packed, unpacked) = (u64::from(le32(entry, 0)), u64::from(le32(entry, 4)));
            let frame = *frame.get_or_insert(unpacked);
            if unpacked == 0 || frame > 64 << 20 || size != number as u64 * frame || unpacked > frame {
                return Err(refused(format!("frame {number} of {unpacked} bytes is not like the first one of {frame}")));
            }
            size += unpacked;
            places.extend(places.last().map(|place| place + packed));
        }
        if places.last() != Some(&begin) {
            return Err(refused(format!("its frames do not end where it begins, at {begin}")));
        }
        Ok(Self { file, size, frame: frame.unwrap_or(1), places, recent: Kept::new(RECENT) })
    }

    fn unpack(&self, number: u64) -> Result<Vec<u8>> {
        let (at, end) = (self.places[number as usize], self.places[number as usize + 1]);
        let packed = read(self.file.as_ref(), at, end - at)?;
        let length = length(self.size, self.frame, number) as usize;
        let unpacked = Decompressor::new().and_then(|mut zstd| zstd.decompress(&packed, length));
        let unpacked = unpacked.fault(Fault::Input, || format!("unpacking the zstd frame at {at}"))?;
        if unpacked.len() != length {
            return Err(Error::input(format!("unpacking the zstd frame at {at}: it has {} bytes instead of {length}", unpacked.len())));
        }
        Ok(unpacked)
    }
}

impl Mapped for Reader {
    const NAME: &str = "raw.zst";

    fn block(&self) -> u64 {
        self.frame
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn tabled(&self) -> impl Iterator<Item = u64> {
        0..self.places.len() as u64 - 1
    }

    fn is_zero(&self, number: u64) -> Result<bool> {
        let packed = self.places[number as usize + 1] - self.places[number as usize];
        Ok(packed < TINY && is_zero(&self.unpack(number)?))
    }

    fn read_within(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let frame = self.recent.get(number, || self.unpack(number))?;
        buffer.copy_from_slice(&frame[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

fn read(file: &dyn ReadAt, at: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}
