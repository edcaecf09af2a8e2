//! Reads QCOW2, ours and foreign: plain, zero, zlib and zstd clusters. Strict, because files come from anywhere: each offset is checked, a
//! compressed cluster cannot unpack to more than a cluster, and tables are read one at a time.

use std::sync::Arc;

use layers::{Context, Error, Fault, Result};

use super::format::{COMPRESSED, Compression, HEADER, Header, OFFSET, SECTOR, ZERO, be64};
use crate::disk::ReadAt;
use crate::emit::mapped::{Kept, Mapped};

/// QEMU's own limit of the L1 table, in bytes.
const L1_LIMIT: u64 = 32 << 20;
const TABLES_KEPT: usize = 32;

/// The disk inside a QCOW2 file.
#[derive(Debug)]
pub struct Reader {
    file: Arc<dyn ReadAt>,
    header: Header,
    l1: Vec<u64>,
    tables: Kept<Vec<u64>>,
    last: Kept<Vec<u8>>,
}

/// Where the bytes of a cluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Zero,
    Plain(u64),
    Packed { offset: u64, len: u64 },
}

impl Reader {
    /// Reads header and L1 table.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let mut bytes = [0; HEADER];
        let have = file.len().min(HEADER as u64) as usize;
        file.read_at(&mut bytes[..have], 0)?;
        let header = Header::from_bytes(&bytes)?;
        let covered = 1_u64 << (2 * header.cluster_bits - 3);
        let length = u64::from(header.l1_size) * 8;
        if header.size.div_ceil(covered) > u64::from(header.l1_size) || length > L1_LIMIT || header.size > i64::MAX as u64 {
            return Err(Error::input(format!("reading the QCOW2 header: {} L1 entries for {} bytes", header.l1_size, header.size)));
        }
        let l1 = read_table(file.as_ref(), header.l1_offset, length).context(|| "reading the L1 table".into())?;
        // Each table in use is its own cluster, so a small file cannot ask for endless work.
        let tables = l1.iter().filter(|entry| **entry & OFFSET != 0).count() as u64;
        if tables << header.cluster_bits > file.len() {
            return Err(Error::input(format!("reading the L1 table: {tables} L2 tables do not fit into {} bytes", file.len())));
        }
        Ok(Self { file, header, l1, tables: Kept::new(TABLES_KEPT), last: Kept::new(1) })
    }

    fn place(&self, number: u64) -> Result<Place> {
        let entries = self.block() / 8;
        let offset = self.l1[(number / entries) as usize] & OFFSET;
        if offset == 0 {
            return Ok(Place::Zero);
        }
        let entry = self.table(offset)?[(number % entries) as usize];
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.header.cluster_bits - 8);
            let offset = entry & ((1 << shift) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;
            let end = (offset / SECTOR + sectors) * SECTOR;
            return self.checked(Place::Packed { offset, len: end.min(self.file.len()).saturating_sub(offset) }, offset, 1);
        }
        match entry & OFFSET {
            _ if entry & ZERO != 0 => Ok(Place::Zero),
            0 => Ok(Place::Zero),
            at => self.checked(Place::Plain(at), at, self.block()),
        }
    }

    fn checked(&self, place: Place, offset: u64, len: u64) -> Result<Place> {
        let plain_is_odd = matches!(place, Place::Plain(at) if !at.is_multiple_of(self.block()));
        if plain_is_odd || offset.saturating_add(len) > self.file.len() {
            return Err(Error::input(format!("reading a QCOW2 cluster: its offset {offset} is odd or outside the file")));
        }
        Ok(place)
    }

    fn table(&self, offset: u64) -> Result<Arc<Vec<u64>>> {
        let read = || read_table(self.file.as_ref(), offset, self.block());
        self.tables.get(offset, || read().context(|| format!("reading the L2 table at {offset}")))
    }

    fn unpack(&self, offset: u64, len: u64, out: &mut [u8]) -> Result<()> {
        let mut packed = vec![0; len as usize];
        self.file.read_at(&mut packed, offset)?;
        let unpacked = match self.header.compression {
            Compression::Zstd => unzstd(&packed, out),
            Compression::Zlib => inflate(&packed, out),
        };
        unpacked.fault(Fault::Input, || format!("unpacking the QCOW2 cluster at {offset}"))
    }
}

impl Mapped for Reader {
    const NAME: &str = "QCOW2";

    fn block(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn size(&self) -> u64 {
        self.header.size
    }

    fn tabled(&self) -> impl Iterator<Item = u64> {
        let entries = self.block() / 8;
        let used = (0..).zip(&self.l1).filter(|(_, entry)| **entry & OFFSET != 0);
        used.flat_map(move |(table, _)| table * entries..(table + 1) * entries)
    }

    fn is_zero(&self, number: u64) -> Result<bool> {
        Ok(self.place(number)? == Place::Zero)
    }

    fn read_within(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.place(number)? {
            Place::Zero => buffer.fill(0),
            Place::Plain(at) => self.file.read_at(buffer, at + offset)?,
            Place::Packed { offset: at, len } if buffer.len() as u64 == self.block() => self.unpack(at, len, buffer)?,
            Place::Packed { offset: at, len } => {
                let unpacked = || {
                    let mut bytes = vec![0; self.block() as usize];
                    self.unpack(at, len, &mut bytes)?;
                    Ok(bytes)
                };
                buffer.copy_from_slice(&self.last.get(number, unpacked)?[offset as usize..][..buffer.len()]);
            }
        }
        Ok(())
    }
}

fn read_table(file: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u64>> {
    if offset.checked_add(len).is_none_or(|end| end > file.len()) {
        return Err(Error::input(format!("{len} bytes at {offset} are outside the file of {}", file.len())));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, offset)?;
    Ok(bytes.chunks_exact(8).map(|e| be64(e, 0)).collect())
}

/// What follows the frame belongs to the next cluster, as lengths are counted in sectors.
fn unzstd(packed: &[u8], out: &mut [u8]) -> std::io::Result<()> {
    let frame = zstd::zstd_safe::find_frame_compressed_size(packed).map_err(|e| std::io::Error::other(zstd::zstd_safe::get_error_name(e)))?;
    let whole = zstd::bulk::decompress_to_buffer(&packed[..frame], out)? == out.len();
    whole.then_some(()).ok_or_else(|| std::io::Error::other("it is too short"))
}

fn inflate(packed: &[u8], out: &mut [u8]) -> std::io::Result<()> {
    let mut inflate = flate2::Decompress::new(false);
    inflate.decompress(packed, out, flate2::FlushDecompress::Finish)?;
    (inflate.total_out() == out.len() as u64).then_some(()).ok_or_else(|| std::io::Error::other("it is too short"))
}
