//! What is in an artifact, ours or foreign, and whether it still is what was built.

pub mod check;
pub mod files;
mod superblock;

use std::fmt;
use std::path::Path;

use layers::Result;
use layers::node::{Slot, partition};
use layers::units::Bytes;
use serde::Serialize;
use uuid::Uuid;

pub use check::{Check, FileCheck, Finding, verify};
pub use superblock::{Erofs, Ext4, Verity};

use crate::disk::file::Window;
use crate::disk::{ReadAt, gpt};
use crate::emit::OutputFormat;
use crate::fs::fat;

/// How many of the largest files a report names.
const LARGEST: usize = 10;

/// What is in a disk image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Format of the file.
    pub format: OutputFormat,
    /// Size of the disk in bytes.
    pub size: Bytes,
    /// GUID of the disk.
    pub uuid: Uuid,
    /// The copy of the partition table that is damaged, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged_table: Option<(gpt::TableCopy, String)>,
    /// Partitions in table order.
    pub partitions: Vec<Partition>,
    /// Slots whose boot configuration is on the EFI system partition.
    pub slots: Vec<SlotReport>,
    /// The largest files of the first root file system; empty when there is none that can be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub largest: Vec<files::Largest>,
}

/// A partition and what it holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Partition {
    /// Number in the table, from 1.
    pub number: u32,
    /// Name.
    pub name: String,
    /// Type GUID, in words where it is known.
    #[serde(rename = "type")]
    pub kind: String,
    /// The partition's own GUID.
    pub uuid: Uuid,
    /// First byte on the disk.
    pub offset: u64,
    /// Size in bytes.
    pub size: Bytes,
    /// What it holds.
    pub content: Content,
}

/// What a partition holds, as far as its first bytes tell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Content {
    /// Nothing but zeros at its start.
    Empty,
    /// A FAT file system.
    Fat {
        /// Volume label.
        label: Option<String>,
        /// Its files and folders.
        files: Vec<fat::Listed>,
    },
    /// A dm-verity hash tree.
    Verity(Verity),
    /// An EROFS file system.
    Erofs(Erofs),
    /// An ext4 file system.
    Ext4(Ext4),
    /// Something that looks like a known structure but cannot be read.
    Damaged {
        /// Why.
        reason: String,
    },
    /// Anything else.
    Unknown,
}

/// A slot's boot configuration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotReport {
    /// Which slot.
    pub slot: Slot,
    /// Text of its `boot.cfg`.
    pub boot_cfg: String,
}

/// Reports what is in a raw or QCOW2 file.
pub fn inspect(path: &Path) -> Result<Report> {
    let (format, disk, table) = files::disk_of(path)?;
    // A root that others made may be compressed, which our reader refuses: the report says the rest.
    let root = files::Root::of(&disk, &table, None, &path.display().to_string());
    let largest = root.map(|root| root.largest(LARGEST)).unwrap_or_default();
    let disk = disk.as_ref();
    let mut partitions = Vec::new();
    let mut slots = Vec::new();
    for entry in table.entries {
        let window = Window::new(disk, entry.offset, entry.size);
        if entry.kind.to_string().eq_ignore_ascii_case(partition::ESP_TYPE) {
            slots.extend([Slot::A, Slot::B].into_iter().filter_map(|slot| boot_cfg(&window, slot)));
        }
        let content = content(&window).unwrap_or_else(|e| Content::Damaged { reason: e.to_string() });
        let (number, name, uuid, offset) = (entry.number, entry.name, entry.uuid, entry.offset);
        partitions.push(Partition { number, name, kind: kind(entry.kind), uuid, offset, size: Bytes(entry.size), content });
    }
    Ok(Report { format, size: Bytes(disk.len()), uuid: table.uuid, damaged_table: table.damaged, partitions, slots, largest })
}

fn boot_cfg(esp: &dyn ReadAt, slot: Slot) -> Option<SlotReport> {
    let text = fat::read(esp, &format!("slot-{}/boot.cfg", slot.letter())).ok()?;
    Some(SlotReport { slot, boot_cfg: String::from_utf8_lossy(&text).into_owned() })
}

fn kind(guid: Uuid) -> String {
    let known = [
        (partition::ESP_TYPE, "EFI system"),
        (partition::BIOS_TYPE, "BIOS boot"),
        (partition::ROOT_TYPE, "root x86-64"),
        (partition::VERITY_TYPE, "root verity x86-64"),
        (partition::STATE_TYPE, "variable data"),
    ];
    let guid = guid.to_string();
    known.iter().find(|(known, _)| known.eq_ignore_ascii_case(&guid)).map_or(guid, |(_, name)| (*name).to_string())
}

fn content(partition: &dyn ReadAt) -> Result<Content> {
    let mut head = [0; 4096];
    let len = partition.len().min(4096) as usize;
    partition.read_at(&mut head[..len], 0)?;
    if crate::disk::is_zero(&head) {
        return Ok(Content::Empty);
    }
    if let Some(verity) = Verity::parse(&head)? {
        return Ok(Content::Verity(verity));
    }
    if let Some(erofs) = Erofs::parse(&head) {
        return Ok(Content::Erofs(erofs));
    }
    if let Some(ext4) = Ext4::parse(&head) {
        return Ok(Content::Ext4(ext4));
    }
    if head[510..512] == [0x55, 0xaa] && (head[82..87] == *b"FAT32" || head[54..57] == *b"FAT") {
        return Ok(Content::Fat { label: fat::label(partition)?, files: fat::list(partition)? });
    }
    Ok(Content::Unknown)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} disk of {}, GUID {}", self.format.extension(), self.size, self.uuid)?;
        if let Some((copy, reason)) = &self.damaged_table {
            writeln!(f, "the {copy:?} partition table is damaged: {reason}")?;
        }
        writeln!(f, "{:>2}  {:<9} {:<20} {:>14} {:>9}  holds", "#", "name", "type", "offset", "size")?;
        for p in &self.partitions {
            writeln!(f, "{:>2}  {:<9} {:<20} {:>14} {:>9}  {}", p.number, p.name, p.kind, p.offset, p.size.to_string(), p.content)?;
        }
        for listed in self.partitions.iter().filter_map(|p| if let Content::Fat { files, .. } = &p.content { Some(files) } else { None }).flatten() {
            if let Some(size) = listed.size {
                writeln!(f, "    {size:>12}  {}", listed.path)?;
            }
        }
        self.slots.iter().try_for_each(|slot| {
            writeln!(f, "slot {}:", slot.slot.letter())?;
            slot.boot_cfg.lines().try_for_each(|line| writeln!(f, "    {line}"))
        })?;
        if !self.largest.is_empty() {
            writeln!(f, "largest files of the root:")?;
        }
        self.largest.iter().try_for_each(|file| writeln!(f, "    {file}"))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing"),
            Self::Fat { label, files } => {
                write!(f, "FAT `{}`, {} files", label.as_deref().unwrap_or(""), files.iter().filter(|l| l.size.is_some()).count())
            }
            Self::Verity(v) => {
                write!(f, "verity {} of {} ({} blocks)", v.algorithm, Bytes(v.data_blocks.saturating_mul(v.data_block.into())), v.data_blocks)
            }
            Self::Erofs(e) => write!(f, "EROFS `{}`, {}, {} files, {}", e.label, e.size, e.inodes, e.uuid),
            Self::Ext4(e) => write!(f, "ext4 `{}`, {}, {}", e.label, e.size, e.uuid),
            Self::Damaged { reason } => write!(f, "damaged: {reason}"),
            Self::Unknown => f.write_str("unknown data"),
        }
    }
}
