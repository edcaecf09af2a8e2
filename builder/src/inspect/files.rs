//! The files of an image's root file system, EROFS or ext4, read out of any of the formats: no loop device, no mount.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layers::seed::LAYERS;
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};
use serde::Serialize;

use super::{Erofs, Ext4};
use crate::assemble::glob;
use crate::disk::{ReadAt, gpt};
use crate::emit::OutputFormat;
use crate::fs::erofs::{self, Entry, What};
use crate::fs::{Files, ext4};
use crate::tree::TreePath;

/// Symbolic links that are followed before a loop is assumed; as many as Linux follows (path_resolution(7)).
const LINKS: usize = 40;
/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;
/// Largest file that is read as a list of something; dpkg's database of a desktop has some MiB.
const TEXT_MAX: u64 = 64 << 20;

/// One entry of a root file system.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Absolute path; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Permission bits in octal, four digits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// Names of its extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<String>,
}

/// A file by its size, under all of its names.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Largest {
    /// Absolute path; outside of container images where it has a name there.
    pub path: String,
    /// Bytes of the file.
    pub size: Bytes,
    /// Further names of the same bytes on the disk (hard links).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_names: Vec<String>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Directory.
    Directory,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
}

/// The root file system of a disk image.
#[derive(Debug)]
pub struct Root {
    reader: Box<dyn Files>,
    image: String,
    /// Number of its partition.
    pub(super) partition: u32,
}

/// What every root has one of.
const SYSTEM: [&str; 2] = ["usr", "etc"];

impl Root {
    /// Opens the root of a disk image: the first EROFS file system, else the first ext4 that looks like one; or what is on the partition of this name.
    pub fn open(image: &Path, partition: Option<&str>) -> Result<Self> {
        let (_, disk, table) = disk_of(image)?;
        Self::of(&disk, &table, partition, &image.display().to_string())
    }

    /// As `open`, of a disk that is open already; `shown` is its name for messages.
    pub(super) fn of(disk: &Arc<dyn ReadAt>, table: &gpt::Table, partition: Option<&str>, shown: &str) -> Result<Self> {
        let reading = || format!("reading the root file system of {shown}");
        let (mut head, mut others) = (vec![0; 4096], Vec::new());
        for entry in &table.entries {
            let part = Part { disk: disk.clone(), offset: entry.offset, len: entry.size };
            if partition.is_some_and(|name| name != entry.name) || part.len < 4096 {
                continue;
            }
            part.read_at(&mut head, 0).context(reading)?;
            if Erofs::parse(&head).is_some() {
                let reader = Box::new(erofs::Reader::open(Arc::new(part)).context(reading)?);
                return Ok(Self { reader, image: shown.into(), partition: entry.number });
            }
            if Ext4::parse(&head).is_some() {
                others.push((entry.number, part));
            }
        }
        for (number, part) in others {
            let reader = ext4::Reader::open(Arc::new(part)).context(reading)?;
            if partition.is_some() || SYSTEM.iter().any(|folder| TreePath::new(folder).is_ok_and(|path| reader.entries().contains_key(&path))) {
                return Ok(Self { reader: Box::new(reader), image: shown.into(), partition: number });
            }
        }
        let names: Vec<_> = table.entries.iter().map(|e| e.name.as_str()).collect();
        let what = partition.map_or("no partition holds".into(), |name| format!("partition `{name}` is missing or does not hold"));
        let kinds = if partition.is_some() { "an EROFS or ext4 file system" } else { "an EROFS file system or an ext4 with usr or etc" };
        Err(Error::input(format!("{}: {what} {kinds}", reading())).with_hint(format!("its partitions are {}", names.join(", "))))
    }

    /// The file system.
    pub(crate) fn reader(&self) -> &dyn Files {
        self.reader.as_ref()
    }

    /// Whether a path leads to something.
    pub fn has(&self, path: &str) -> bool {
        self.resolve(path).is_ok()
    }

    /// Whether a path is itself a symbolic link.
    pub(crate) fn is_link(&self, path: &str) -> bool {
        TreePath::new(path).is_ok_and(|path| self.reader.entries().get(&path).is_some_and(|entry| matches!(entry.what, What::Symlink(_))))
    }

    /// The text of a file of at most 64 MiB, bytes that are no UTF-8 replaced; none when there is no such file.
    pub fn text(&self, path: &str) -> Result<Option<String>> {
        let place = self.resolve(path).ok().map(|place| (self.reader.entries()[&place].what.clone(), place));
        let Some((What::File(size), place)) = place else { return Ok(None) };
        let reading = || format!("reading {path} of {}", self.image);
        if size > TEXT_MAX {
            return Err(Error::input(format!("{}: it has {}, {} are read", reading(), Bytes(size), Bytes(TEXT_MAX))));
        }
        let mut bytes = vec![0; size as usize];
        self.reader.read_at(&place, &mut bytes, 0).context(reading)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// A JSON file; none when there is no such file.
    pub fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let parse = |text: String| serde_json::from_str(&text).fault(Fault::Input, || format!("reading {path} of {}", self.image));
        self.text(path)?.map(parse).transpose()
    }

    /// Entries whose path fits a pattern of whole paths (`/etc/**`), whose name fits a pattern without `/` (`*.conf`), or that lie in a
    /// folder that does; all without a pattern.
    pub fn list(&self, pattern: Option<&str>) -> Result<Vec<Listed>> {
        let all = self.reader.entries().iter().filter(|(path, _)| pattern.is_none_or(|p| fits(p, path)));
        let found: Vec<_> = all.map(|(path, entry)| listed(path, entry)).collect();
        match (found.is_empty(), pattern) {
            (true, Some(pattern)) => Err(Error::input(format!("listing {}: no file fits `{pattern}`", self.image))
                .with_hint("patterns are of whole paths such as `/etc/**`, or of names such as `*.service`; quote them for the shell")),
            _ => Ok(found),
        }
    }

    /// The largest files, largest first. A file with several names is one; the layers of container images are counted by their files.
    pub fn largest(&self, count: usize) -> Vec<Largest> {
        let mut files = BTreeMap::<u64, (u64, Vec<&TreePath>)>::new();
        for (path, entry) in self.reader.entries() {
            if let What::File(size) = entry.what {
                files.entry(entry.nid).or_insert((size, Vec::new())).1.push(path);
            }
        }
        let mut files: Vec<_> = files.into_values().collect();
        for (_, names) in &mut files {
            names.sort_by_cached_key(|path| (path.to_string().starts_with(LAYERS), (*path).clone()));
        }
        files.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
        let one = |(size, names): (u64, Vec<&TreePath>)| {
            let mut names = names.into_iter().map(ToString::to_string);
            Largest { path: names.next().unwrap_or_default(), size: Bytes(size), other_names: names.collect() }
        };
        files.into_iter().take(count).map(one).collect()
    }

    /// Writes one file; symbolic links are followed inside the image.
    pub fn cat(&self, path: &str, out: &mut dyn Write) -> Result<()> {
        let reading = || format!("reading {path} of {}", self.image);
        let place = self.resolve(path).context(reading)?;
        let size = match self.reader.entries()[&place].what {
            What::File(size) => size,
            _ => return Err(Error::input(format!("{}: it is no regular file", reading())).with_hint("list a folder with --files")),
        };
        let mut buffer = vec![0; PIECE.min(size) as usize];
        let mut at = 0;
        while at < size {
            let piece = &mut buffer[..(size - at).min(PIECE) as usize];
            self.reader.read_at(&place, piece, at).context(reading)?;
            match out.write_all(piece) {
                // Whoever read it has seen enough.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.context(|| "writing to stdout".into())?,
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// The entry that a path leads to. Every component may be a symbolic link; `..` never leaves the root.
    fn resolve(&self, path: &str) -> Result<TreePath> {
        let mut todo: Vec<Vec<u8>> = components(path.as_bytes());
        let (mut here, mut links) = (TreePath::root(), 0);
        while let Some(name) = todo.pop() {
            if name == b".." {
                here = here.parent().unwrap_or_default();
                continue;
            }
            let next = here.join(&name);
            let entry = self.reader.entries().get(&next);
            let entry = entry.ok_or_else(|| Error::input(format!("the image has no {next}")).with_hint("list what there is with --files"))?;
            let What::Symlink(target) = &entry.what else {
                here = next;
                continue;
            };
            links += 1;
            if links > LINKS {
                return Err(Error::input(format!("{next} is one of more than {LINKS} symbolic links in a row")));
            }
            if target.starts_with(b"/") {
                here = TreePath::root();
            }
            todo.extend(components(target));
        }
        Ok(here)
    }
}

/// Names of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").rev().map(<[u8]>::to_vec).collect()
}

fn fits(pattern: &str, path: &TreePath) -> bool {
    let pattern = pattern.trim_end_matches('/');
    if pattern.is_empty() {
        return true;
    }
    if pattern.contains('/') {
        return glob::fits(pattern, path) || glob::fits(&format!("{pattern}/**"), path);
    }
    TreePath::new(path.name()).is_ok_and(|name| glob::fits(pattern, &name))
}

fn listed(path: &TreePath, entry: &Entry) -> Listed {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (kind, size, target, device) = match &entry.what {
        What::Directory => (Kind::Directory, None, None, None),
        What::File(size) => (Kind::File, Some(*size), None, None),
        What::Symlink(target) => (Kind::Symlink, None, Some(text(target)), None),
        What::CharDevice(major, minor) => (Kind::CharDevice, None, None, Some((*major, *minor))),
        What::BlockDevice(major, minor) => (Kind::BlockDevice, None, None, Some((*major, *minor))),
        What::Fifo => (Kind::Fifo, None, None, None),
    };
    let xattrs = entry.xattrs.keys().map(|name| text(name)).collect();
    Listed { path: path.to_string(), kind, mode: format!("{:04o}", entry.mode), uid: entry.uid, gid: entry.gid, size, target, device, xattrs }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            Kind::Directory => 'd',
            Kind::File => '-',
            Kind::Symlink => 'l',
            Kind::CharDevice => 'c',
            Kind::BlockDevice => 'b',
            Kind::Fifo => 'p',
        };
        let owner = format!("{}:{}", self.uid, self.gid);
        let size = match (self.size, self.device) {
            (Some(size), _) => size.to_string(),
            (None, Some((major, minor))) => format!("{major},{minor}"),
            (None, None) => "-".into(),
        };
        write!(f, "{letter} {} {owner:<9} {size:>10} {}", self.mode, visible(&self.path))?;
        self.target.iter().try_for_each(|target| write!(f, " -> {}", visible(target)))
    }
}

impl fmt::Display for Largest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9}  {}", self.size.to_string(), visible(&self.path))?;
        self.other_names.iter().try_for_each(|name| write!(f, " = {}", visible(name)))
    }
}

/// Control characters of a hostile image do not reach the terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A part of a disk that lives as long as whoever reads it.
#[derive(Debug)]
struct Part {
    disk: Arc<dyn ReadAt>,
    offset: u64,
    len: u64,
}

impl ReadAt for Part {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        crate::disk::file::Window::new(self.disk.as_ref(), self.offset, self.len).read_at(buffer, offset)
    }
}

/// An artifact in a result folder: the one whose disk is the least work to read.
pub fn artifact(folder: &Path) -> Result<PathBuf> {
    let files = std::fs::read_dir(folder).context(|| format!("listing {}", folder.display()))?;
    let files: Vec<_> = files.flatten().map(|e| e.path()).collect();
    let of = |format: OutputFormat| {
        let ending = format!(".{}", format.extension());
        files.iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(&ending))).max()
    };
    OutputFormat::ALL.into_iter().find_map(of).cloned().ok_or_else(|| {
        let names = OutputFormat::ALL.map(OutputFormat::extension).join(", ");
        Error::input(format!("listing {}: no artifact lies there, which are {names}", folder.display()))
            .with_hint("name a result folder, output/<profile>/<version>/, or an artifact in one")
    })
}

/// The disk inside a file with its partition table; says what a file is that has none.
pub(super) fn disk_of(path: &Path) -> Result<(OutputFormat, Arc<dyn ReadAt>, gpt::Table)> {
    if !path.exists() {
        return Err(Error::input(format!("reading {}: there is no such file", path.display())));
    }
    if path.is_dir() {
        let hint = "name an artifact in it; `chasi-bod verify` takes a folder";
        return Err(Error::input(format!("reading {}: it is a folder, not a disk image", path.display())).with_hint(hint));
    }
    let (format, disk) = crate::emit::open(path)?;
    match gpt::read(disk.as_ref()) {
        Ok(table) => Ok((format, disk, table)),
        Err(error) if has_table(disk.as_ref()) => Err(error).context(|| format!("reading {}", path.display())),
        Err(_) => {
            let found = known_magic(disk.as_ref()).map(|name| format!(" (it looks like {name})")).unwrap_or_default();
            let what = match format {
                OutputFormat::Raw => "it has neither the magic of QCOW2, VMDK, VHDX, OVA, VMA or zstd nor a GUID partition table",
                _ => "the disk in it has no GUID partition table",
            };
            Err(Error::input(format!("reading {}: this is not a disk image that chasi-bod can read: {what}{found}", path.display())).with_hint(
                "raw disks, also packed by us, QCOW2, VMDK, OVA and VMA are read; `qemu-img convert -O raw` makes one from most other formats",
            ))
        }
    }
}

/// Whether either place of a table's header has its signature (UEFI 2.10, 5.3.2).
fn has_table(disk: &dyn ReadAt) -> bool {
    let mut signature = [0; 8];
    let places = [Some(512), disk.len().checked_sub(512)];
    places.into_iter().flatten().any(|at| disk.len() >= at + 8 && disk.read_at(&mut signature, at).is_ok() && &signature == b"EFI PART")
}

/// What a file is by its first bytes, for those that people mistake for disks.
fn known_magic(file: &dyn ReadAt) -> Option<&'static str> {
    const KNOWN: [(usize, &[u8], &str); 8] = [
        (0, b"# Disk DescriptorFile", "the descriptor of a VMDK disk"),
        (0, b"conectix", "a VHD disk"),
        (0, b"<<< Oracle VM VirtualBox", "a VDI disk"),
        (0, &[0x1f, 0x8b], "a gzip file: unpack it first"),
        (0, &[0xfd, b'7', b'z', b'X', b'Z'], "an xz file: unpack it first"),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "a bare EROFS file system"),
        (257, b"ustar", "a tar archive"),
        (510, &[0x55, 0xaa], "a disk or file system with an MBR only"),
    ];
    let mut head = vec![0; file.len().min(2048) as usize];
    file.read_at(&mut head, 0).ok()?;
    KNOWN.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic))).map(|(_, _, name)| *name)
}
