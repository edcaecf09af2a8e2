//! Finding the disk: the one whose table has the slot's root and verity partitions, and whose verity tree has the root hash of the
//! command line. Names and positions of disks mean nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use layers::node::{Slot, partition};
use layers::units::{Bytes, Digest};
use layers::{Error, Result};

use super::modules::list;
use super::table::{self, Entry, LARGE_SECTOR, SECTOR};
use super::verity::Superblock;

/// A disk that is there.
#[derive(Debug)]
pub struct Disk {
    /// Kernel name, such as `vda`.
    pub name: String,
    /// Device.
    pub path: PathBuf,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes of the sectors that its table counts in.
    pub sector: u64,
    /// Its partitions, or why they cannot be read.
    pub entries: Result<Vec<Entry>>,
}

/// The disk that we start from.
#[derive(Debug)]
pub struct Found {
    /// The disk.
    pub disk: Disk,
    /// Root partition of the slot.
    pub root: PathBuf,
    /// Verity partition of the slot.
    pub hashes: PathBuf,
    /// The verity tree.
    pub superblock: Superblock,
}

/// Which disks may be the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among<'a> {
    /// Those of the machine: memory disks, mapped devices and empty drives are left out.
    Machine,
    /// This one alone, by its kernel name.
    Only(&'a str),
}

/// Devices that are no disks of the machine, by the start of their names.
pub const NOT_DISKS: [&str; 8] = ["loop", "ram", "zram", "dm-", "md", "fd", "sr", "nbd"];

/// File of sysfs that says 1 of what is a way to a disk, as `nvme0c0n1` is to `nvme0n1`, and has no device of its own.
pub const HIDDEN: &str = "hidden";

/// The disks below `sys` (`/sys`) with devices in `dev` (`/dev`), by name.
pub fn disks(sys: &Path, dev: &Path, among: Among<'_>) -> Vec<Disk> {
    let ours = |name: &str| match among {
        Among::Machine => !NOT_DISKS.iter().any(|p| name.starts_with(p)),
        Among::Only(wanted) => name == wanted,
    };
    let found = list(&sys.join("block")).into_iter().filter_map(|folder| {
        let name = folder.file_name()?.to_str().filter(|n| ours(n))?.to_string();
        let sectors = number(&folder.join("size")).filter(|n| *n > 0 && number(&folder.join(HIDDEN)) != Some(1))?;
        let path = dev.join(&name);
        // Others than these two are no disks that can be installed to.
        let sector = number(&folder.join("queue/logical_block_size")).filter(|size| *size == LARGE_SECTOR).unwrap_or(SECTOR);
        Some(Disk { entries: table::read(&path, sector), name, path, sectors, sector })
    });
    found.collect()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

impl Disk {
    /// Device of a partition by its number, as the kernel names it.
    pub fn node(&self, sys: &Path, dev: &Path, number_wanted: u32) -> Option<PathBuf> {
        let parts = list(&sys.join("block").join(&self.name));
        let part = parts.iter().find(|p| number(&p.join("partition")) == Some(u64::from(number_wanted)))?;
        Some(dev.join(part.file_name()?))
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.as_ref().ok()?.iter().find(|e| e.name == name)
    }

    fn has_state(&self) -> bool {
        self.entry(partition::STATE).is_some()
    }

    /// One line about this disk for the person who looks for the right one.
    fn describe(&self) -> String {
        let size = Bytes(self.sectors.saturating_mul(SECTOR));
        match &self.entries {
            Ok(entries) => format!("{} ({size}: {})", self.name, entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(" ")),
            Err(_) => format!("{} ({size}: no partition table)", self.name),
        }
    }
}

/// What a look at the disks brought.
#[derive(Debug)]
pub enum Look {
    /// The disk, and the names of further ones that carry the same image.
    Found(Box<Found>, Vec<String>),
    /// None; what there is.
    None(Vec<String>),
}

/// Looks for the disk of a slot. Of several with the same image the first with a finished state wins, else the first by name.
pub fn look(sys: &Path, dev: &Path, among: Among<'_>, slot: Slot, roothash: &Digest) -> Look {
    let (mut good, mut seen) = (Vec::new(), Vec::new());
    for disk in disks(sys, dev, among) {
        let what = disk.describe();
        match open(disk, sys, dev, slot, roothash) {
            Some(found) => good.push(found),
            None => seen.push(what),
        }
    }
    good.sort_by_key(|found| !found.disk.has_state());
    if good.is_empty() {
        return Look::None(seen);
    }
    let first = good.remove(0);
    Look::Found(Box::new(first), good.into_iter().map(|f| f.disk.name).collect())
}

fn open(disk: Disk, sys: &Path, dev: &Path, slot: Slot, roothash: &Digest) -> Option<Found> {
    let (root, verity) = match slot {
        Slot::A => (partition::ROOT_A, partition::VERITY_A),
        Slot::B => (partition::ROOT_B, partition::VERITY_B),
    };
    let root = disk.node(sys, dev, disk.entry(root)?.number)?;
    let hashes = disk.node(sys, dev, disk.entry(verity)?.number)?;
    let superblock = Superblock::find(&File::open(&hashes).ok()?, roothash)?;
    Some(Found { disk, root, hashes, superblock })
}

/// The error of a disk that did not come.
pub fn missing(slot: Slot, roothash: &Digest, seconds: u64, seen: &[String]) -> Error {
    let seen = if seen.is_empty() { "no disk at all".into() } else { seen.join(", ") };
    let (letter, short) = (slot.letter(), roothash.short());
    Error::environment(format!("waiting {seconds} s for the disk with slot {letter} of image {short}: seen {seen}"))
        .with_hint("check that the disk is attached, or choose the other slot in the boot menu")
}
