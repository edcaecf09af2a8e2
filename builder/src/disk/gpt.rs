//! GUID partition table with protective MBR (UEFI specification 2.10, §5). Written by crate `gpt`; read by our own strict reader, because
//! that crate panics on odd entry sizes and does not fall back to the other copy when a table's checksum is wrong.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use gpt::mbr::ProtectiveMBR;
use layers::{Context, Error, Fault, Result};
use uuid::Uuid;

use super::layout::Layout;
use super::{Disk, ReadAt, le32, le64};

/// Size of a sector in bytes.
pub const SECTOR: u64 = 512;
const ENTRY: usize = 128;
const ENTRIES: u64 = 128;
const TABLE: u64 = ENTRIES * ENTRY as u64;
/// Bytes at the start of the disk: MBR, header, entries.
pub const HEAD: u64 = 2 * SECTOR + TABLE;
/// Bytes at the end of the disk: entries, header.
pub const TAIL: u64 = TABLE + SECTOR;

/// Boot code of the MBR's first 440 bytes.
pub type BootCode = [u8; 440];

/// Puts MBR, primary and backup table on a disk.
pub fn put(layout: &Layout, boot_code: Option<&BootCode>, disk: &mut Disk) -> Result<()> {
    let (head, tail) = build(layout, boot_code).fault(Fault::Internal, || "writing the partition table".into())?;
    disk.put(0, Arc::new(head))?;
    disk.put(layout.size - TAIL, Arc::new(tail))
}

fn build(layout: &Layout, boot_code: Option<&BootCode>) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let edges = Edges { size: layout.size, at: 0, head: vec![0; HEAD as usize], tail: vec![0; TAIL as usize] };
    let config = gpt::GptConfig::new().writable(true);
    let mut table = config.create_from_device(edges, Some(layout.uuid)).map_err(io::Error::other)?;
    table.update_partitions(entries(layout)).map_err(io::Error::other)?;
    let mut edges = table.write().map_err(io::Error::other)?;
    // The protective record counts the sectors behind the MBR, or as many as 32 bits can say.
    let mut mbr = ProtectiveMBR::with_lb_size(u32::try_from(layout.size / SECTOR - 1).unwrap_or(u32::MAX));
    mbr.set_bootcode(boot_code.copied().unwrap_or([0; 440]));
    mbr.overwrite_lba0(&mut edges).map_err(io::Error::other)?;
    Ok((edges.head, edges.tail))
}

fn entries(layout: &Layout) -> BTreeMap<u32, gpt::partition::Partition> {
    let one = |p: &super::layout::Partition| gpt::partition::Partition {
        part_type_guid: gpt::partition_types::Type {
            guid: Uuid::parse_str(p.kind).unwrap_or_default(),
            os: gpt::partition_types::OperatingSystem::None,
        },
        part_guid: p.uuid,
        first_lba: p.offset / SECTOR,
        last_lba: (p.offset + p.size) / SECTOR - 1,
        flags: 0,
        name: p.name.into(),
    };
    (1..).zip(&layout.partitions).map(|(number, p)| (number, one(p))).collect()
}

/// The disk as the writer sees it: only its first and last sectors exist.
#[derive(Debug)]
struct Edges {
    size: u64,
    at: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Edges {
    fn window(&mut self, len: usize) -> io::Result<&mut [u8]> {
        let tail = self.size - TAIL;
        let (part, from) = if self.at >= tail { (&mut self.tail, self.at - tail) } else { (&mut self.head, self.at) };
        let from = from as usize;
        let end = from.checked_add(len).filter(|end| *end <= part.len());
        let end = end.ok_or_else(|| io::Error::other(format!("{len} bytes at {} are outside the table", self.at)))?;
        self.at += len as u64;
        Ok(&mut part[from..end])
    }
}

impl Read for Edges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len();
        buffer.copy_from_slice(self.window(len)?);
        Ok(len)
    }
}

impl Write for Edges {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.window(buffer.len())?.copy_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Edges {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::other("seeking outside the disk"))?;
        Ok(self.at)
    }
}

/// One of the two copies of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableCopy {
    /// At the start of the disk.
    Primary,
    /// At the end of the disk.
    Backup,
}

/// A used entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Partition number, from 1.
    pub number: u32,
    /// Name.
    pub name: String,
    /// Type GUID.
    pub kind: Uuid,
    /// The partition's own GUID.
    pub uuid: Uuid,
    /// First byte.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A partition table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// GUID of the disk.
    pub uuid: Uuid,
    /// Used entries in table order.
    pub entries: Vec<Entry>,
    /// The copy that cannot be used, or that contradicts the primary, and why.
    pub damaged: Option<(TableCopy, String)>,
}

/// Reads the table from a disk with 512-byte sectors. One damaged copy is tolerated and named; two are an error.
pub fn read(disk: &dyn ReadAt) -> Result<Table> {
    let sectors = disk.len() / SECTOR;
    if sectors < 2 * (HEAD / SECTOR) {
        return Err(Error::input(format!("reading the partition table: {} bytes are too few for one", disk.len())));
    }
    match (read_copy(disk, 1), read_copy(disk, sectors - 1)) {
        (Ok(primary), Ok(backup)) if primary == backup => Ok(primary),
        (Ok(primary), Ok(_)) => Ok(Table { damaged: Some((TableCopy::Backup, "it contradicts the primary table".into())), ..primary }),
        (Ok(primary), Err(e)) => Ok(Table { damaged: Some((TableCopy::Backup, e.to_string())), ..primary }),
        (Err(e), Ok(backup)) => Ok(Table { damaged: Some((TableCopy::Primary, e.to_string())), ..backup }),
        (Err(primary), Err(backup)) => Err(Error::input(format!("reading the partition table: primary: {primary}; backup: {backup}"))),
    }
}

/// Where the disk should end by the primary table's word, in bytes, when it ends before: it was cut off.
pub fn lost_end(disk: &dyn ReadAt) -> Option<u64> {
    read_copy(disk, 1).ok()?;
    let mut backup = [0; 8];
    disk.read_at(&mut backup, SECTOR + 32).ok()?;
    let end = u64::from_le_bytes(backup).checked_add(1)?.checked_mul(SECTOR)?;
    (end > disk.len()).then_some(end)
}

fn read_copy(disk: &dyn ReadAt, lba: u64) -> Result<Table> {
    let mut header = [0; SECTOR as usize];
    disk.read_at(&mut header, lba * SECTOR)?;
    if &header[..8] != b"EFI PART" {
        return Err(Error::input(format!("sector {lba} has no signature")));
    }
    let size = le32(&header, 12) as usize;
    if !(92..=SECTOR as usize).contains(&size) {
        return Err(Error::input(format!("the header in sector {lba} claims {size} bytes")));
    }
    let stored = le32(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header[..size]) != stored || le64(&header, 24) != lba {
        return Err(Error::input(format!("the header in sector {lba} has a wrong checksum or place")));
    }
    let entries = read_entries(disk, &header)?;
    Ok(Table { uuid: guid(&header[56..72]), entries, damaged: None })
}

fn read_entries(disk: &dyn ReadAt, header: &[u8]) -> Result<Vec<Entry>> {
    let (start, count, size) = (le64(header, 72), le32(header, 80) as usize, le32(header, 84) as usize);
    if !(ENTRY..=4096).contains(&size) || count > 1024 {
        return Err(Error::input(format!("the header claims {count} entries of {size} bytes")));
    }
    let mut bytes = vec![0; count * size];
    let end = start.checked_mul(SECTOR).and_then(|s| s.checked_add(bytes.len() as u64)).filter(|end| *end <= disk.len());
    if end.is_none() {
        return Err(Error::input(format!("the entries at sector {start} are outside the disk")));
    }
    disk.read_at(&mut bytes, start * SECTOR)?;
    if crc32fast::hash(&bytes) != le32(header, 88) {
        return Err(Error::input(format!("the entries at sector {start} have a wrong checksum")));
    }
    let used = (1..).zip(bytes.chunks_exact(size)).filter(|(_, e)| e[..16] != [0; 16]);
    used.map(|(number, bytes)| entry(number, bytes, disk.len())).collect()
}

fn entry(number: u32, bytes: &[u8], disk: u64) -> Result<Entry> {
    let (first, last) = (le64(bytes, 32), le64(bytes, 40));
    if first > last || last >= disk / SECTOR {
        return Err(Error::input(format!("partition {number} claims sectors {first} to {last} of {}", disk / SECTOR)));
    }
    let name: Vec<_> = bytes[56..ENTRY].as_chunks().0.iter().map(|c| u16::from_le_bytes(*c)).take_while(|c| *c != 0).collect();
    Ok(Entry {
        number,
        name: String::from_utf16_lossy(&name),
        kind: guid(&bytes[..16]),
        uuid: guid(&bytes[16..32]),
        offset: first * SECTOR,
        size: (last - first + 1) * SECTOR,
    })
}

fn guid(bytes: &[u8]) -> Uuid {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[..16]);
    Uuid::from_bytes_le(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::profile;
    use layers::units::{Bytes, Seed};
    use std::process::Command;

    fn disk() -> (Layout, Disk) {
        let layout = Layout::new(&profile::Disk::default(), Bytes(0), Bytes(0), &Seed::new("test")).unwrap();
        let mut disk = Disk::new(layout.size);
        put(&layout, Some(&[7; 440]), &mut disk).unwrap();
        (layout, disk)
    }

    fn bytes_of(disk: &Disk) -> Vec<u8> {
        disk.data().unwrap().into_iter().fold(Vec::new(), |mut all, range| {
            let mut part = vec![0; (range.end - range.start) as usize];
            disk.read_at(&mut part, range.start).unwrap();
            all.extend(part);
            all
        })
    }

    #[test]
    fn d9_outside_tools_accept_the_table_and_say_the_same() {
        let (layout, disk) = disk();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        crate::emit::raw::write(&disk, &path).unwrap();
        let said = crate::exec::run(Command::new("sgdisk").arg("-v").arg(&path)).unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).contains("No problems found"), "{said:?}");
        let said = crate::exec::run(Command::new("partx").args(["--pairs", "--output", "START,SECTORS,NAME,UUID,TYPE"]).arg(&path)).unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let pair = |p: &crate::disk::layout::Partition| {
            let (start, sectors, kind) = (p.offset / 512, p.size / 512, p.kind.to_lowercase());
            format!("START=\"{start}\" SECTORS=\"{sectors}\" NAME=\"{}\" UUID=\"{}\" TYPE=\"{kind}\"\n", p.name, p.uuid)
        };
        assert_eq!(said, layout.partitions.iter().map(pair).collect::<String>());
        let said = crate::exec::run(Command::new("sgdisk").arg("-p").arg(&path)).unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).to_lowercase().contains(&format!("guid): {}", layout.uuid)), "{said:?}");
        let head = bytes_of(&disk);
        let sectors = (layout.size / 512 - 1) as u32;
        assert_eq!((head[450], le32(&head, 454), le32(&head, 458), &head[510..512]), (0xee, 1, sectors, [0x55, 0xaa].as_slice()));
        assert_eq!(bytes_of(&disk)[..440], [7; 440]);
    }

    #[test]
    fn what_is_written_reads_back_and_is_the_same_twice() {
        let (layout, disk) = self::disk();
        let table = read(&disk).unwrap();
        assert_eq!((table.uuid, &table.damaged, table.entries.len()), (layout.uuid, &None, 6));
        for (ours, theirs) in layout.partitions.iter().zip(&table.entries) {
            assert_eq!((ours.name, ours.offset, ours.size, ours.uuid), (theirs.name.as_str(), theirs.offset, theirs.size, theirs.uuid));
            assert_eq!(theirs.kind, Uuid::parse_str(ours.kind).unwrap());
        }
        assert_eq!(bytes_of(&disk), bytes_of(&self::disk().1));
    }

    #[test]
    fn d3_one_damaged_copy_is_named_and_two_are_refused() {
        let (_, disk) = disk();
        let size = disk.len();
        let all = bytes_of(&disk);
        let with = |flips: &[usize]| {
            let mut bytes = all.clone();
            flips.iter().for_each(|at| bytes[*at] ^= 1);
            let mut disk = Disk::new(size);
            disk.put(0, Arc::new(bytes[..HEAD as usize].to_vec())).unwrap();
            disk.put(size - TAIL, Arc::new(bytes[HEAD as usize..].to_vec())).unwrap();
            read(&disk)
        };
        let (primary_header, primary_entry, backup_entry, backup_header) = (520, 1100, HEAD as usize + 40, all.len() - 500);
        assert_eq!(with(&[primary_header]).unwrap().damaged.unwrap().0, TableCopy::Primary);
        assert_eq!(with(&[primary_entry]).unwrap().damaged.unwrap().0, TableCopy::Primary);
        assert_eq!(with(&[backup_entry]).unwrap().damaged.unwrap().0, TableCopy::Backup);
        assert_eq!(with(&[backup_header]).unwrap().damaged.unwrap().0, TableCopy::Backup);
        assert_eq!(with(&[primary_entry]).unwrap().entries, with(&[]).unwrap().entries);
        let error = with(&[primary_entry, backup_header]).unwrap_err().to_string();
        assert!(error.contains("primary: ") && error.contains("backup: "), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_layout_reads_back(esp in 33_u64..2000, slot in 1_u64..9000, free in 0_u64..100_000, name in ".{0,9}") {
            let rules = profile::Disk { esp_size: Bytes::mib(esp), slot_size: Some(Bytes::mib(slot)), ..profile::Disk::default() };
            let rules = profile::Disk { size: Bytes::mib(3000 + esp + 3 * slot + free), ..rules };
            let layout = Layout::new(&rules, Bytes(0), Bytes(0), &Seed::new(&name)).unwrap();
            let mut disk = Disk::new(layout.size);
            put(&layout, None, &mut disk).unwrap();
            let table = read(&disk).unwrap();
            proptest::prop_assert_eq!((table.uuid, table.damaged), (layout.uuid, None));
            let ours: Vec<_> = layout.partitions.iter().map(|p| (p.name.to_string(), p.uuid, p.offset, p.size)).collect();
            let theirs: Vec<_> = table.entries.into_iter().map(|e| (e.name, e.uuid, e.offset, e.size)).collect();
            proptest::prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn hostile_tables_do_not_panic(at in 512_usize..1024, bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..64)) {
            let (_, disk) = disk();
            let mut all = bytes_of(&disk);
            for (slot, byte) in all[at..].iter_mut().zip(&bytes) { *slot = *byte; }
            // A right checksum lets the wrong fields through to the code behind it.
            let size = (le32(&all, 524) as usize).clamp(92, 512);
            all[528..532].fill(0);
            let crc = crc32fast::hash(&all[512..512 + size]);
            all[528..532].copy_from_slice(&crc.to_le_bytes());
            let mut small = Disk::new(disk.len());
            small.put(0, Arc::new(all[..HEAD as usize].to_vec())).unwrap();
            let _ = read(&small);
        }
    }
}
