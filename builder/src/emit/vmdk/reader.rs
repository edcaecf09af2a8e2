//! Reads VMDK files of one sparse extent, ours and foreign: stream-optimized, with the directory at the front or in the footer, and monolithic
//! sparse ones. Strict, because files come from anywhere: each offset is checked, a grain cannot unpack to more than a grain, and tables are read
//! one at a time.

use std::sync::Arc;

use layers::{Context, Error, Fault, Result};

use super::format::{AT_END, COMPRESSED, GRAIN_MARKER, Header, MARKERS, SECTOR, ZERO_GRAINS};
use crate::disk::{ReadAt, le32, le64};
use crate::emit::mapped::{Kept, Mapped};

const TABLES_KEPT: usize = 32;

/// The disk inside a VMDK file.
#[derive(Debug)]
pub struct Reader {
    file: Arc<dyn ReadAt>,
    header: Header,
    directory: Vec<u32>,
    tables: Kept<Vec<u32>>,
    last: Kept<Vec<u8>>,
}

impl Reader {
    /// Reads header and grain directory.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let mut header = header_at(file.as_ref(), 0)?;
        if header.directory == AT_END {
            // The footer is the last sector but one.
            header = header_at(file.as_ref(), (file.len() / SECTOR).saturating_sub(2)).context(|| "reading the footer".into())?;
        }
        if header.flags & COMPRESSED != 0 && header.flags & MARKERS == 0 {
            return Err(Error::input("reading the VMDK header: packed grains without markers are not known"));
        }
        let directory = read_table(file.as_ref(), header.directory, header.tables()).context(|| "reading the grain directory".into())?;
        // Each table in use has its own place, so a small file cannot ask for endless work.
        let tables = directory.iter().filter(|place| **place != 0).count() as u64;
        if tables * u64::from(header.table_entries) * 4 > file.len() {
            return Err(Error::input(format!("reading the grain directory: {tables} tables do not fit into {} bytes", file.len())));
        }
        Ok(Self { file, header, directory, tables: Kept::new(TABLES_KEPT), last: Kept::new(1) })
    }

    /// Offset of a grain in the file; none for one of zeros.
    fn place(&self, number: u64) -> Result<Option<u64>> {
        let entries = u64::from(self.header.table_entries);
        let table = self.directory[(number / entries) as usize];
        if table == 0 {
            return Ok(None);
        }
        let place = self.table(table)?[(number % entries) as usize];
        let is_zero = place == 0 || place == 1 && self.header.flags & ZERO_GRAINS != 0;
        Ok((!is_zero).then_some(u64::from(place) * SECTOR))
    }

    fn table(&self, place: u32) -> Result<Arc<Vec<u32>>> {
        let read = || read_table(self.file.as_ref(), place.into(), self.header.table_entries.into());
        self.tables.get(place.into(), || read().context(|| format!("reading the grain table at sector {place}")))
    }

    fn unpack(&self, number: u64, at: u64) -> Result<Vec<u8>> {
        let odd = |why: &str| Error::input(format!("reading the VMDK grain at {at}: {why}"));
        let mut marker = [0; GRAIN_MARKER as usize];
        self.file.read_at(&mut marker, at)?;
        let length = u64::from(le32(&marker, 8));
        if le64(&marker, 0) != number * self.header.grain {
            return Err(odd("its marker is another grain's"));
        }
        if length > 2 * self.block() || at + GRAIN_MARKER + length > self.file.len() {
            return Err(odd("its length leads outside of it"));
        }
        let mut packed = vec![0; length as usize];
        self.file.read_at(&mut packed, at + GRAIN_MARKER)?;
        let mut out = vec![0; self.block() as usize];
        let mut inflate = flate2::Decompress::new(true);
        inflate.decompress(&packed, &mut out, flate2::FlushDecompress::Finish).fault(Fault::Input, || format!("unpacking the VMDK grain at {at}"))?;
        // The last grain of a foreign file may end with the disk.
        let least = (self.size() - number * self.block()).min(self.block());
        if inflate.total_out() < least {
            return Err(odd("it is too short"));
        }
        Ok(out)
    }
}

impl Mapped for Reader {
    const NAME: &str = "VMDK";

    fn block(&self) -> u64 {
        self.header.grain * SECTOR
    }

    fn size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn tabled(&self) -> impl Iterator<Item = u64> {
        let entries = u64::from(self.header.table_entries);
        let used = (0..).zip(&self.directory).filter(|(_, place)| **place != 0);
        used.flat_map(move |(table, _)| table * entries..(table + 1) * entries)
    }

    fn is_zero(&self, number: u64) -> Result<bool> {
        Ok(self.place(number)?.is_none())
    }

    fn read_within(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.place(number)? {
            None => buffer.fill(0),
            Some(at) if self.header.flags & COMPRESSED != 0 => {
                let grain = self.last.get(number, || self.unpack(number, at))?;
                buffer.copy_from_slice(&grain[offset as usize..][..buffer.len()]);
            }
            Some(at) => self.file.read_at(buffer, at + offset)?,
        }
        Ok(())
    }
}

fn header_at(file: &dyn ReadAt, sector: u64) -> Result<Header> {
    let mut bytes = [0; SECTOR as usize];
    if file.len() < (sector + 1) * SECTOR {
        return Err(Error::input(format!("reading the VMDK header: {} bytes are less than one", file.len())));
    }
    file.read_at(&mut bytes, sector * SECTOR)?;
    Header::from_bytes(&bytes)
}

fn read_table(file: &dyn ReadAt, sector: u64, entries: u64) -> Result<Vec<u32>> {
    let place = sector.checked_mul(SECTOR).and_then(|at| Some((at, at.checked_add(entries * 4).filter(|end| *end <= file.len())?)));
    let Some((at, end)) = place else {
        return Err(Error::input(format!("{entries} entries at sector {sector} are outside the file of {} bytes", file.len())));
    };
    let mut bytes = vec![0; (end - at) as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect())
}
