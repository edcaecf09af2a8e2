//! Writes stream-optimized VMDK.
//!
//! ```text
//! header | descriptor | (grains of a table | grain table)… | grain directory | footer | end
//! ```

use std::fs::File;
use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use layers::{Context, Error, Fault, Result};

use super::format::{AT_END, COMPRESSED, DESCRIPTOR, GRAIN, GRAIN_MARKER, Header, MARKERS, Marker, NEWLINES, OVERHEAD, SECTOR, TABLE, TABLE_ENTRIES};
use crate::disk::{ReadAt, is_zero};
use crate::emit::ordered::{self, Packed};
use crate::emit::put;

/// Writes a disk to a file from `begin` on, behind which it is empty; the place where it ends. A disk that does not end with a sector is filled up with
/// zeros.
pub fn write_at(disk: &dyn ReadAt, out: &File, begin: u64) -> Result<u64> {
    let capacity = disk.len().div_ceil(SECTOR);
    // Offsets in tables have 32 bits.
    if capacity > u64::from(u32::MAX) {
        return Err(Error::input(format!("writing VMDK: a disk of {} bytes is too large for it, 2 TiB is the most", disk.len())));
    }
    ordered::pack(disk, GRAIN, || Ok(()), |(), _, bytes| compress(bytes), |grains| Image::new(capacity, out, begin).place_all(grains))
}

/// Nothing for zeros.
fn compress(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    if is_zero(bytes) {
        return Ok(None);
    }
    let mut packer = ZlibEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::default());
    packer.write_all(bytes).and_then(|()| packer.finish()).fault(Fault::Internal, || "compressing a grain".into()).map(Some)
}

/// The file under way.
struct Image<'a> {
    out: &'a File,
    /// First byte of it in the file.
    begin: u64,
    header: Header,
    /// Where the next sector goes.
    end: u64,
    /// Places of the grain tables; none for one without grains.
    directory: Vec<u32>,
    /// The table whose grains are being placed.
    table: Option<(u64, [u32; TABLE_ENTRIES as usize])>,
    /// Of all packed bytes: names this content.
    sum: crc32fast::Hasher,
}

impl<'a> Image<'a> {
    fn new(capacity: u64, out: &'a File, begin: u64) -> Self {
        let header = Header {
            version: 3,
            flags: NEWLINES | COMPRESSED | MARKERS,
            capacity,
            grain: GRAIN / SECTOR,
            descriptor: (1, DESCRIPTOR),
            table_entries: TABLE_ENTRIES as u32,
            directory: AT_END,
            overhead: OVERHEAD,
        };
        let directory = vec![0; header.tables() as usize];
        Self { out, begin, header, end: OVERHEAD, directory, table: None, sum: crc32fast::Hasher::new() }
    }

    fn place_all(mut self, grains: Packed<Option<Vec<u8>>>) -> Result<u64> {
        for (number, packed) in grains.into_iter().flatten() {
            if let Some(packed) = packed {
                self.place(number, &packed)?;
            }
        }
        self.finish()
    }

    fn place(&mut self, number: u64, packed: &[u8]) -> Result<()> {
        let (table, entry) = (number / TABLE_ENTRIES, (number % TABLE_ENTRIES) as usize);
        if self.table.as_ref().is_some_and(|(under_way, _)| *under_way != table) {
            self.end_table()?;
        }
        let mut bytes = Vec::with_capacity(GRAIN_MARKER as usize + packed.len());
        bytes.extend((number * self.header.grain).to_le_bytes());
        bytes.extend((packed.len() as u32).to_le_bytes());
        bytes.extend(packed);
        self.sum.update(&bytes);
        let at = self.append(&bytes)?;
        self.table.get_or_insert((table, [0; TABLE_ENTRIES as usize])).1[entry] = at;
        Ok(())
    }

    /// Writes the table under way.
    fn end_table(&mut self) -> Result<()> {
        let Some((number, entries)) = self.table.take() else { return Ok(()) };
        self.append(&Marker::Table.to_bytes(TABLE / SECTOR))?;
        self.directory[number as usize] = self.append(&entries.map(u32::to_le_bytes).concat())?;
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.end_table()?;
        let directory: Vec<u8> = self.directory.iter().flat_map(|place| place.to_le_bytes()).collect();
        self.append(&Marker::Directory.to_bytes((directory.len() as u64).div_ceil(SECTOR)))?;
        let at = self.append(&directory)?;
        self.append(&Marker::Footer.to_bytes(1))?;
        self.append(&Header { directory: at.into(), ..self.header.clone() }.to_bytes())?;
        self.append(&Marker::End.to_bytes(0))?;
        let descriptor = descriptor(self.header.capacity, self.sum.clone().finalize());
        self.write(descriptor.as_bytes(), SECTOR)?;
        let end = self.begin + self.end * SECTOR;
        self.out.set_len(end).fault(Fault::Environment, || format!("making room for {} sectors", self.end))?;
        self.write(&self.header.to_bytes(), 0)?;
        Ok(end)
    }

    /// Writes whole sectors behind all others; their place.
    fn append(&mut self, bytes: &[u8]) -> Result<u32> {
        let at = u32::try_from(self.end).map_err(|_| Error::input("writing VMDK: the file grows beyond 2 TiB"))?;
        self.write(bytes, self.end * SECTOR)?;
        self.end += (bytes.len() as u64).div_ceil(SECTOR);
        Ok(at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        put(self.out, bytes, self.begin + at)
    }
}

/// What programs of VMware read first. The two greatest content ids have a meaning of their own.
fn descriptor(sectors: u64, content: u32) -> String {
    let content = content.min(0xffff_fffd);
    // The geometry that LSI's controllers have; nothing boots by it today.
    let cylinders = (sectors / (255 * 63)).min(65_535);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={content:08x}\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
         # Extent description\nRW {sectors} SPARSE \"disk.vmdk\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\nddb.virtualHWVersion = \"13\"\n"
    )
}
