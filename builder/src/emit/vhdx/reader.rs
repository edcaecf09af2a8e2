//! Reads VHDX files without a parent, ours and foreign, dynamic and fixed. Strict, because files come from anywhere: checksums and places are checked,
//! and the table is read a part at a time.

use std::sync::Arc;

use layers::{Context, Error, Result};

use super::format::{
    DISK_SIZE, FILE_PARAMETERS, HEADER, LARGEST, LARGEST_BLOCK, LOGICAL_SECTOR, METADATA, MIB, PART, Parameters, TABLE, entries, is_whole, place,
    region,
};
use crate::disk::{ReadAt, le32, le64};
use crate::emit::mapped::{Kept, Mapped};

/// Entries of the table that are read at once.
const ENTRIES: u64 = 8192;
const PARTS_KEPT: usize = 32;

/// The disk inside a VHDX file.
#[derive(Debug)]
pub struct Reader {
    file: Arc<dyn ReadAt>,
    parameters: Parameters,
    table: u64,
    parts: Kept<Vec<u64>>,
}

impl Reader {
    /// Reads headers, regions and metadata.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let odd = |why: String| Error::input(format!("reading the VHDX file: {why}"));
        let part = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            file.read_at(&mut bytes, at).map(|()| bytes)
        };
        if file.len() < MIB {
            return Err(odd(format!("{} bytes are less than its headers", file.len())));
        }
        let headers = [part(PART, HEADER)?, part(2 * PART, HEADER)?];
        let newest = headers.iter().filter(|header| is_whole(header, b"head")).max_by_key(|header| le64(header, 8));
        let newest = newest.ok_or_else(|| odd("neither of its headers is whole".into()))?;
        if newest[48..64] != [0; 16] {
            return Err(odd("it was not closed; its log says what is missing".into())
                .with_hint("open and close it with `qemu-img check -r all` or in Hyper-V"));
        }
        let tables = [part(3 * PART, PART as usize)?, part(4 * PART, PART as usize)?];
        let table = tables.iter().find(|table| is_whole(table, b"regi")).ok_or_else(|| odd("neither of its region tables is whole".into()))?;
        let regions = entries(table, 16, le32(table, 8).into(), "region table")?;
        let find = |id, what: &str| {
            let (_, rest) = regions.iter().find(|(found, _)| *found == id).ok_or_else(|| odd(format!("it has no {what}")))?;
            let (at, length) = region(rest);
            match at.checked_add(length) {
                Some(end) if at >= MIB && end <= file.len() => Ok((at, length)),
                _ => Err(odd(format!("its {what} at {at} is outside of it"))),
            }
        };
        let (at, length) = find(METADATA, "metadata")?;
        let parameters = metadata(&part(at, length.min(MIB) as usize)?)?;
        let (table, length) = find(TABLE, "block allocation table")?;
        if parameters.entries() * 8 > length {
            return Err(odd(format!("its table of {length} bytes is too small for a disk of {}", parameters.size)));
        }
        Ok(Self { file: file.clone(), parameters, table, parts: Kept::new(PARTS_KEPT) })
    }

    fn place(&self, number: u64) -> Result<Option<u64>> {
        let entry = self.parameters.entry(number);
        let read = || {
            let first = entry / ENTRIES * ENTRIES;
            let mut bytes = vec![0; (ENTRIES.min(self.parameters.entries() - first) * 8) as usize];
            self.file.read_at(&mut bytes, self.table + first * 8)?;
            Ok(bytes.chunks_exact(8).map(|entry| le64(entry, 0)).collect())
        };
        let found = place(self.parts.get(entry / ENTRIES, read)?[(entry % ENTRIES) as usize])?;
        if let Some(at) = found.filter(|at| *at < MIB || *at + self.parameters.block > self.file.len()) {
            return Err(Error::input(format!("block {number} at {at} is outside the file of {} bytes", self.file.len())));
        }
        Ok(found)
    }
}

fn metadata(bytes: &[u8]) -> Result<Parameters> {
    let odd = |why: &str| Error::input(format!("reading the metadata of the VHDX file: {why}"));
    if bytes.len() < 32 || !bytes.starts_with(b"metadata") {
        return Err(odd("it has not its signature"));
    }
    let items = entries(bytes, 32, (le32(bytes, 8) >> 16).into(), "metadata")?;
    let value = |id, what: &str| {
        let (_, rest) = items.iter().find(|(found, _)| *found == id).ok_or_else(|| odd(&format!("there is no {what}")))?;
        let found = bytes.get(le32(rest, 0) as usize..).and_then(|rest| rest.get(..8));
        found.ok_or_else(|| odd(&format!("the {what} is outside of it")))
    };
    let file = value(FILE_PARAMETERS, "size of blocks")?;
    let sector = u64::from(le32(value(LOGICAL_SECTOR, "size of sectors")?, 0));
    let parameters = Parameters { block: le32(file, 0).into(), size: le64(value(DISK_SIZE, "size of the disk")?, 0), sector };
    if le32(file, 4) & 2 != 0 {
        return Err(odd("it has only what differs from another file, its parent"));
    }
    let Parameters { block, size, .. } = parameters;
    if !block.is_power_of_two() || !(MIB..=LARGEST_BLOCK).contains(&block) || ![512, 4096].contains(&sector) || size > LARGEST {
        return Err(odd(&format!("blocks of {block} bytes, sectors of {sector} or a disk of {size} are not allowed")));
    }
    Ok(parameters)
}

impl Mapped for Reader {
    const NAME: &str = "VHDX";

    fn block(&self) -> u64 {
        self.parameters.block
    }

    fn size(&self) -> u64 {
        self.parameters.size
    }

    fn tabled(&self) -> impl Iterator<Item = u64> {
        0..self.parameters.blocks()
    }

    fn is_zero(&self, number: u64) -> Result<bool> {
        Ok(self.place(number)?.is_none())
    }

    fn read_within(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.place(number).context(|| format!("reading the VHDX block {number}"))? {
            None => buffer.fill(0),
            Some(at) => self.file.read_at(buffer, at + offset)?,
        }
        Ok(())
    }
}
