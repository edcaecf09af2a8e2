//! The GPT of the disk we run from (UEFI specification, chapter 5): reading it, planning the state partition, writing it so that a
//! power cut at any instant leaves one whole copy.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gpt::disk::LogicalBlockSize;
use gpt::partition::Partition;
use gpt::{GptConfig, GptDisk, GptError};
use layers::node::partition;
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};
use uuid::Uuid;

/// Bytes of a sector as this program and the kernel's files in /sys count them, whatever the disk's own are.
pub const SECTOR: u64 = 512;

/// Bytes of the sectors of other disks ("4Kn"), whose tables count in those.
pub const LARGE_SECTOR: u64 = 4096;

/// Name of the state partition while it is being made. The completion mark is the name [`partition::STATE`]: it lies outside the
/// file system, so that a state that was ever complete is never taken for an unfinished one, however damaged.
pub const UNFINISHED: &str = "state-new";

/// Partitions start and end at multiples of this many sectors.
const ALIGN: u64 = 2048;

/// A partition of a table, in sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number from 1.
    pub number: u32,
    /// Name.
    pub name: String,
    /// First sector.
    pub first: u64,
    /// Last sector, inclusive.
    pub last: u64,
}

impl Entry {
    /// Length in sectors.
    pub fn sectors(&self) -> u64 {
        self.last + 1 - self.first
    }
}

/// Reads the used entries of a disk's table, from whichever copy is whole. `sector` is the size of the disk's own, [`SECTOR`] or
/// [`LARGE_SECTOR`], here and below.
pub fn read(disk: &Path, sector: u64) -> Result<Vec<Entry>> {
    let doing = || format!("reading the partition table of {}", disk.display());
    let file = File::open(disk).context(doing)?;
    let gpt = open(&file, sector).fault(Fault::Environment, doing)?;
    Ok(gpt.partitions().iter().filter(|(_, p)| p.is_used()).map(|(n, p)| entry(*n, p, sector / SECTOR)).collect())
}

fn entry(number: u32, part: &Partition, each: u64) -> Entry {
    let name = part.name.trim_end_matches('\0').to_string();
    // A hostile table may end a partition before its start, or outside what can be counted.
    let end = part.last_lba.max(part.first_lba).saturating_add(1).saturating_mul(each);
    Entry { number, name, first: part.first_lba.saturating_mul(each).min(end - 1), last: end - 1 }
}

/// What has to become of the state partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlan {
    /// It is complete and as large as it may be.
    Keep(Entry),
    /// It is complete and can grow to this entry.
    Grow(Entry),
    /// It has to be made: this entry, to be formatted.
    Make(Entry),
}

/// Plans the state partition of a disk of `sectors`: at least `least` bytes, at most `most`, at the disk's end.
pub fn plan(entries: &[Entry], sectors: u64, least: Bytes, most: Option<Bytes>) -> Result<StatePlan> {
    // The backup table takes the last 33 sectors of 512 bytes or the last 5 of 4096.
    let end = sectors.saturating_sub(40) / ALIGN * ALIGN;
    let limit = most.map_or(u64::MAX, |m| m.0.max(least.0) / SECTOR / ALIGN * ALIGN);
    let last_for = |first: u64| end.min(first.saturating_add(limit)).saturating_sub(1);
    let found = entries.iter().find(|e| e.name == partition::STATE);
    if let Some(state) = found {
        let last = entries.iter().all(|e| e.last <= state.last);
        let grown = Entry { last: last_for(state.first), ..state.clone() };
        return Ok(if last && grown.last > state.last { StatePlan::Grow(grown) } else { StatePlan::Keep(state.clone()) });
    }
    let others = || entries.iter().filter(|e| e.name != UNFINISHED);
    let first = others().map(|e| e.last + 1).max().unwrap_or(ALIGN).next_multiple_of(ALIGN);
    let number = others().map(|e| e.number).max().unwrap_or(0) + 1;
    let entry = Entry { number, name: UNFINISHED.into(), first, last: last_for(first) };
    let have = Bytes((entry.last + 1).saturating_sub(first) * SECTOR);
    if have < least || have.0 == 0 {
        let message = format!("planning the state partition: it needs {least}, the disk has {have} left");
        return Err(Error::environment(message).with_hint("enlarge the disk, then start again"));
    }
    Ok(StatePlan::Make(entry))
}

/// Writes `entry` into the table of a disk (new, or in place of the one with its number or the unfinished one), moves the backup
/// table to the disk's real end, and flushes after each copy.
pub fn write(disk: &Path, sector: u64, entry: &Entry) -> Result<()> {
    let doing = || format!("writing the partition table of {}", disk.display());
    let file = File::options().read(true).write(true).open(disk).context(doing)?;
    let mut gpt = open(&file, sector).fault(Fault::Environment, doing)?;
    let mut parts = gpt.take_partitions();
    parts.retain(|number, part| part.is_used() && (*number == entry.number || entry_name(part) != UNFINISHED));
    let old = parts.remove(&entry.number);
    parts.insert(entry.number, with(old, entry, sector / SECTOR)?);
    gpt.update_partitions(parts).fault(Fault::Environment, doing)?;
    let overlay = gpt.write().fault(Fault::Environment, doing)?;
    overlay.commit().context(doing)
}

/// The copy of a disk's table, by its place, that is not whole while the other one is.
pub fn damaged(disk: &Path, sector: u64) -> Result<Option<&'static str>> {
    let doing = || format!("reading the partition table of {}", disk.display());
    let file = File::open(disk).context(doing)?;
    let last = Overlay::new(&file).context(doing)?.length / sector - 1;
    // A copy is whole when it does without the other one.
    let alone = |other: u64| Ok::<_, io::Error>(config(sector).open_from_device(Overlay::new(&file)?.without(other * sector)).is_ok());
    Ok(match (alone(last).context(doing)?, alone(1).context(doing)?) {
        (false, true) => Some("first"),
        (true, false) => Some("last"),
        _ => None,
    })
}

/// Whether a partition of this name is the node's, finished or not, and no part of the image.
pub fn is_state(name: &str) -> bool {
    [partition::STATE, UNFINISHED].contains(&name)
}

/// Gives a disk the boot sector and the table of an image (sectors of 512 bytes), without its state: both copies, where they belong on a
/// disk of this size and these sectors.
pub fn copy(from: &File, to: &File, sector: u64) -> Result<()> {
    let doing = || "writing the partition table".to_string();
    let source = open(from, SECTOR).fault(Fault::Environment, doing)?;
    let ours = |part: &Partition| part.is_used() && !is_state(entry_name(part));
    let each = sector / SECTOR;
    // All parts of an image begin and end at a MiB.
    let placed = |part: &Partition| Partition { first_lba: part.first_lba / each, last_lba: (part.last_lba + 1) / each - 1, ..part.clone() };
    let parts: BTreeMap<_, _> = source.partitions().iter().filter(|(_, part)| ours(part)).map(|(n, part)| (*n, placed(part))).collect();
    let mut overlay = Overlay::new(to).context(doing)?;
    let mut boot = [0; SECTOR as usize];
    from.read_exact_at(&mut boot, 0).context(doing)?;
    // The one entry of the protective MBR spans the disk (UEFI specification 2.10, table 5.4).
    let sectors = u32::try_from(overlay.length / sector - 1).unwrap_or(u32::MAX);
    boot[458..462].copy_from_slice(&sectors.to_le_bytes());
    overlay.sectors.insert(0, boot);
    let mut gpt = config(sector).create_from_device(overlay, Some(*source.guid())).fault(Fault::Environment, doing)?;
    gpt.update_partitions(parts).fault(Fault::Environment, doing)?;
    gpt.write().fault(Fault::Environment, doing)?.commit().context(doing)
}

/// The identity of a partition.
pub fn guid(disk: &Path, sector: u64, number: u32) -> Result<Uuid> {
    let doing = || format!("reading the partition table of {}", disk.display());
    let file = File::open(disk).context(doing)?;
    let gpt = open(&file, sector).fault(Fault::Environment, doing)?;
    gpt.partitions().get(&number).map(|part| part.part_guid).ok_or_else(|| Error::environment(format!("{}: it has no partition {number}", doing())))
}

/// Opens the table by the copy that is whole. The crate gives up when the first header is good and its entries are not: then the
/// first copy is looked away from.
fn open(file: &File, sector: u64) -> std::result::Result<GptDisk<Overlay<'_>>, GptError> {
    config(sector).open_from_device(Overlay::new(file)?).or_else(|_| config(sector).open_from_device(Overlay::new(file)?.without(sector)))
}

fn config(sector: u64) -> GptConfig {
    let size = if sector == LARGE_SECTOR { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    GptConfig::new().writable(true).logical_block_size(size)
}

fn entry_name(part: &Partition) -> &str {
    part.name.trim_end_matches('\0')
}

/// The entry as the crate has it; a new one gets a random identity.
fn with(old: Option<Partition>, entry: &Entry, each: u64) -> Result<Partition> {
    let kind = partition::STATE_TYPE.parse().map_err(|e| Error::internal(format!("reading the state partition's type: {e}")))?;
    let guid = old.as_ref().map_or_else(Uuid::new_v4, |p| p.part_guid);
    let (first_lba, last_lba) = (entry.first / each, (entry.last + 1) / each - 1);
    Ok(Partition { part_type_guid: kind, part_guid: guid, first_lba, last_lba, flags: 0, name: entry.name.clone() })
}

/// A disk whose writes are held back, so that the copies of the table can be written in an order of our own: the crate writes both
/// entry arrays before either header, and a power cut in between would leave no whole copy.
#[derive(Debug)]
struct Overlay<'a> {
    file: &'a File,
    length: u64,
    position: u64,
    sectors: BTreeMap<u64, [u8; SECTOR as usize]>,
}

impl<'a> Overlay<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        let length = { file }.seek(SeekFrom::End(0))?;
        Ok(Self { file, length, position: 0, sectors: BTreeMap::new() })
    }

    /// As if a header at this byte were not there.
    fn without(mut self, at: u64) -> Self {
        self.sectors.insert(at / SECTOR, [0; SECTOR as usize]);
        self
    }

    fn sector(&self, number: u64) -> io::Result<[u8; SECTOR as usize]> {
        let mut out = [0; SECTOR as usize];
        match self.sectors.get(&number) {
            Some(held) => out = *held,
            None => self.file.read_exact_at(&mut out, number * SECTOR)?,
        }
        Ok(out)
    }

    /// Sector, offset in it and length of the next piece of `wanted` bytes.
    fn piece(&self, wanted: usize) -> (u64, usize, usize) {
        let at = (self.position % SECTOR) as usize;
        let left = usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX);
        (self.position / SECTOR, at, wanted.min(SECTOR as usize - at).min(left))
    }

    /// Writes the copy at the end first, flushes, then the copy at the start. Only one of the two is ever incomplete.
    fn commit(self) -> io::Result<()> {
        let middle = self.length / SECTOR / 2;
        for half in [middle..u64::MAX, 0..middle] {
            for (number, bytes) in self.sectors.range(half) {
                self.file.write_all_at(bytes, number * SECTOR)?;
            }
            self.file.sync_all()?;
        }
        Ok(())
    }
}

impl Read for Overlay<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (sector, at, length) = self.piece(buffer.len());
        if length > 0 {
            buffer[..length].copy_from_slice(&self.sector(sector)?[at..at + length]);
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Write for Overlay<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let (number, at, length) = self.piece(buffer.len());
        if length > 0 {
            let mut sector = self.sector(number)?;
            sector[at..at + length].copy_from_slice(&buffer[..length]);
            self.sectors.insert(number, sector);
        }
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Overlay<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(n) => i64::try_from(n).ok(),
            SeekFrom::End(n) => i64::try_from(self.length).ok().and_then(|l| l.checked_add(n)),
            SeekFrom::Current(n) => i64::try_from(self.position).ok().and_then(|p| p.checked_add(n)),
        };
        self.position = target.and_then(|t| u64::try_from(t).ok()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
