//! What is in an artifact, ours or foreign, and whether it still is what was built.

pub mod boot;
pub mod check;
pub mod contents;
pub mod files;
mod superblock;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use layers::Result;
use layers::node::{Slot, partition};
use layers::units::Bytes;
use serde::Serialize;
use uuid::Uuid;

pub use boot::{Starter, StarterKind};
pub use check::{Check, FileCheck, Finding, verify};
pub use superblock::{Erofs, Ext4, Verity};

use crate::disk::file::Window;
use crate::disk::{ReadAt, gpt};
use crate::efi::uki;
use crate::emit::OutputFormat;
use crate::fs::fat;
use contents::Packages;
use files::visible;

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
    /// Loaders and kernels on the disk.
    pub starters: Vec<Starter>,
    /// Debian packages of the first root file system.
    pub packages: Vec<contents::Package>,
    /// Names of its container images.
    pub images: Vec<String>,
    /// Releases of charts that a cluster gets from it, each `namespace/name chart version`.
    pub charts: Vec<String>,
    /// The largest files of the first root file system; empty when there is none that can be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub largest: Vec<files::Largest>,
    /// What is on the disk and cannot be read, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
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
    /// A file system or container whose contents are not read.
    Foreign {
        /// What it is.
        name: String,
    },
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
    /// Text of its `boot.cfg`, or the command lines of its unified kernel image, a line for each profile.
    pub boot_cfg: String,
}

/// A disk image that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// What is in it.
    pub report: Report,
    /// Its disk.
    pub disk: Arc<dyn ReadAt>,
    /// The first root file system, or why there is none that can be read.
    pub root: Result<files::Root>,
}

/// Reports what is in a disk image of any of the formats.
pub fn inspect(path: &Path) -> Result<Report> {
    let Opened { mut report, root, .. } = open(path)?;
    if let Ok(root) = root {
        report.largest = root.largest(LARGEST);
        // A list that is damaged is named, what else there is still told.
        let problem = fill(&mut report, &root).err();
        report.unread.extend(problem.map(|e| e.to_string()));
    }
    Ok(report)
}

fn fill(report: &mut Report, root: &files::Root) -> Result<()> {
    match contents::packages(root)? {
        Packages::Known(found) => report.packages = found,
        Packages::Unread(why) => report.unread.push(why),
    }
    report.images = contents::images(root)?.images.into_iter().map(|image| image.name).collect();
    let releases = contents::seed(root)?.releases.into_iter();
    report.charts = releases.map(|r| format!("{}/{} {} {}", r.namespace, r.name, r.chart, r.version)).collect();
    Ok(())
}

/// Opens a disk image of any of the formats and reads its tables, boot files and the root's listing; what lies in the root is not in the report.
pub fn open(path: &Path) -> Result<Opened> {
    let (format, disk, table) = files::disk_of(path)?;
    let root = files::Root::of(&disk, &table, None, &path.display().to_string());
    let boot_code = boot::boot_code(disk.as_ref())?.map(|(starter, _)| starter);
    let mut report = Report {
        format,
        size: Bytes(disk.len()),
        uuid: table.uuid,
        damaged_table: table.damaged,
        partitions: Vec::new(),
        slots: Vec::new(),
        starters: boot_code.into_iter().collect(),
        packages: Vec::new(),
        images: Vec::new(),
        charts: Vec::new(),
        largest: Vec::new(),
        unread: Vec::new(),
    };
    for entry in table.entries {
        let window = Window::new(disk.as_ref(), entry.offset, entry.size);
        if entry.kind.to_string().eq_ignore_ascii_case(partition::ESP_TYPE) {
            report.slots.extend([Slot::A, Slot::B].into_iter().filter_map(|slot| boot_cfg(&window, slot)));
        }
        let content = content(&window).unwrap_or_else(|e| Content::Damaged { reason: e.to_string() });
        if let Content::Fat { files, .. } = &content {
            let found = files.iter().filter_map(|file| boot::starter(&window, file).transpose()).collect::<Result<Vec<_>>>();
            // A boot partition that is damaged inside is named, the rest of the disk still told.
            found.map_or_else(|e| report.unread.push(e.to_string()), |found| report.starters.extend(found));
        }
        let (number, name, uuid, offset) = (entry.number, entry.name, entry.uuid, entry.offset);
        report.partitions.push(Partition { number, name, kind: kind(entry.kind), uuid, offset, size: Bytes(entry.size), content });
    }
    report.unread.extend(unread(&report.partitions, &root));
    Ok(Opened { report, disk, root })
}

/// Partitions whose files are not read, and the root when it cannot be.
fn unread(partitions: &[Partition], root: &Result<files::Root>) -> Vec<String> {
    let is_root = |p: &Partition| root.as_ref().is_ok_and(|root| root.partition == p.number);
    let is_closed = |p: &&Partition| matches!(p.content, Content::Ext4(_) | Content::Foreign { .. } | Content::Damaged { .. }) && !is_root(p);
    let lines = partitions.iter().filter(is_closed).map(|p| format!("the files of partition {}: it holds {}", p.shown(), p.content));
    let erofs = partitions.iter().any(|p| matches!(p.content, Content::Erofs(_)));
    lines.chain(root.as_ref().err().filter(|_| erofs).map(ToString::to_string)).collect()
}

impl Partition {
    /// Number, and name where it has one.
    pub fn shown(&self) -> String {
        if self.name.is_empty() { self.number.to_string() } else { format!("{} `{}`", self.number, self.name) }
    }
}

fn boot_cfg(esp: &dyn ReadAt, slot: Slot) -> Option<SlotReport> {
    let path = |name: &str| format!("slot-{}/{name}", slot.letter());
    let of_uki = || {
        let place = fat::place(esp, &path("uki.efi")).ok()?;
        let profiles = uki::profiles(&Window::new(esp, place.start, place.end - place.start)).ok()?;
        Some(profiles.iter().map(|(id, line)| format!("{id}: {line}\n")).collect())
    };
    let boot_cfg = match fat::read(esp, &path("boot.cfg")) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => of_uki()?,
    };
    Some(SlotReport { slot, boot_cfg })
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
    Ok(superblock::foreign(partition, &head)?.map_or(Content::Unknown, |name| Content::Foreign { name: name.into() }))
}

impl Report {
    fn contents(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for starter in &self.starters {
            let what = if starter.kind == StarterKind::Kernel { "kernel" } else { "loader" };
            writeln!(f, "{what}: {} in {}", visible(&starter.name), visible(&starter.place))?;
        }
        if !self.packages.is_empty() {
            writeln!(f, "packages: {}, which --packages lists", self.packages.len())?;
        }
        for (what, names) in [("container images", &self.images), ("charts", &self.charts), ("not read", &self.unread)] {
            if !names.is_empty() {
                writeln!(f, "{what}: {}", names.len())?;
            }
            names.iter().try_for_each(|name| writeln!(f, "    {}", visible(name)))?;
        }
        Ok(())
    }
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
        self.contents(f)?;
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
            Self::Foreign { name } => f.write_str(name),
            Self::Damaged { reason } => write!(f, "damaged: {reason}"),
            Self::Unknown => f.write_str("unknown data"),
        }
    }
}
