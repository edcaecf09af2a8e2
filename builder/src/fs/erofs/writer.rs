//! Lays out an EROFS image: first all inodes are collected and placed, then the metadata is encoded; file contents stay in their packs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use layers::units::Digest;
use layers::{Error, Result};
use rustix::fs::{SeekFrom, seek};

use super::format::{self, BLOCK, Dirent, Form, Inode, Layout, PATH_MAX, SLOT, SUPER_LEN, SUPER_OFFSET, Superblock, mode};
use crate::disk::ReadAt;
use crate::store::Store;
use crate::tree::{Content, Kind, Node, Tree, TreePath};

/// A file's last bytes go behind its inode when they are not more than this: beyond half a block, what is saved is lost again in the gaps.
const INLINE_MAX: u64 = BLOCK / 2;
/// Contents from this size on are searched for holes.
const SPARSE_MIN: u64 = 1 << 20;

/// What an image is called.
#[derive(Clone, Debug)]
pub struct Options {
    /// UUID of the volume.
    pub uuid: uuid::Uuid,
    /// Label of the volume, at most 16 bytes.
    pub volume_label: String,
    /// Time of the image in seconds since 1970; inodes with this time are stored shorter.
    pub epoch: i64,
}

/// An EROFS image that exists as a plan: metadata in memory, contents read from the store when asked for.
pub struct Erofs {
    meta: Vec<u8>,
    len: u64,
    segments: Vec<Segment>,
    extents: Vec<(TreePath, Range<u64>)>,
    store: Arc<Store>,
}

/// A part of a content at its place in the image.
struct Segment {
    start: u64,
    len: u64,
    content: Content,
    skip: u64,
}

impl Erofs {
    /// Lays out a tree. Every entry's directory must be in the tree, and what EROFS cannot hold is refused with its path (input error).
    pub fn layout(tree: &Tree, store: Arc<Store>, options: Options) -> Result<Self> {
        if options.volume_label.len() > 16 {
            return Err(Error::input(format!("laying out EROFS: label `{}` is longer than 16 bytes", options.volume_label)));
        }
        let mut inodes = collect(tree)?;
        let blocks = place(&mut inodes, options.epoch)?;
        let mut out =
            Self { meta: vec![0; (blocks.start * BLOCK) as usize], len: blocks.end * BLOCK, segments: Vec::new(), extents: Vec::new(), store };
        for (index, inode) in inodes.iter().enumerate() {
            out.emit(index, inode, &inodes);
        }
        out.segments.sort_by_key(|s| s.start);
        out.segments.dedup_by_key(|s| s.start);
        out.emit_superblock(&options, &inodes)?;
        Ok(out)
    }

    /// Byte ranges of the image that hold file contents, in path order: a file's whole blocks, then its tail if that lies behind the inode.
    /// Hard links come under their first name; files of equal content share a range; empty files have none.
    pub fn extents(&self) -> impl Iterator<Item = (&TreePath, Range<u64>)> {
        self.extents.iter().map(|(path, range)| (path, range.clone()))
    }

    /// Length in bytes of the metadata at the start of the image (superblock, inodes, tails, directories); file blocks follow.
    pub fn data_start(&self) -> u64 {
        self.meta.len() as u64
    }

    fn emit(&mut self, index: usize, inode: &Plan<'_>, all: &[Plan<'_>]) {
        let disk = &inode.disk;
        let record = [disk.encode(), inode.xattrs.clone()].concat();
        let tail = if disk.has_tail() { disk.size % BLOCK } else { 0 };
        let (body, tail_at) = (disk.size - tail, inode.at + record.len() as u64);
        let body_at = u64::from(disk.start) * BLOCK;
        self.put(inode.at, &record);
        match &inode.node.kind {
            Kind::File(content) => {
                self.refer(inode.path, content, body_at..body_at + body, 0);
                self.refer(inode.path, content, tail_at..tail_at + tail, body);
            }
            Kind::Symlink(_) | Kind::Directory => {
                let bytes = match &inode.node.kind {
                    Kind::Symlink(target) => target.clone(),
                    _ => format::encode_dir(&dirents(index, all)),
                };
                let (body, tail) = bytes.split_at(body as usize);
                self.put(body_at, body);
                self.put(tail_at, tail);
            }
            _ => {}
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.meta[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn refer(&mut self, path: &TreePath, content: &Content, range: Range<u64>, skip: u64) {
        if !range.is_empty() {
            self.extents.push((path.clone(), range.clone()));
            self.segments.push(Segment { start: range.start, len: range.end - range.start, content: content.clone(), skip });
        }
    }

    fn emit_superblock(&mut self, options: &Options, inodes: &[Plan<'_>]) -> Result<()> {
        let too_large = || Error::input("laying out EROFS: the image would exceed 16 TiB");
        let mut label = [0; 16];
        label[..options.volume_label.len()].copy_from_slice(options.volume_label.as_bytes());
        let mut superblock = Superblock {
            checksum: 0,
            compat: Superblock::COMPAT,
            root_nid: (inodes[0].at / SLOT) as u16,
            inodes: inodes.len() as u64,
            epoch: options.epoch,
            blocks: u32::try_from(self.len / BLOCK).map_err(|_| too_large())?,
            meta_block: 0,
            xattr_block: 0,
            uuid: options.uuid.into_bytes(),
            label,
        };
        self.put(SUPER_OFFSET as u64, &superblock.encode());
        // The checksum covers the whole block, file tails included.
        let mut block = [0; BLOCK as usize];
        self.read_at(&mut block, 0)?;
        superblock.checksum = format::super_checksum(&block);
        self.put(SUPER_OFFSET as u64, &superblock.encode());
        Ok(())
    }
}

impl fmt::Debug for Erofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Erofs({} bytes, {} of metadata, {} segments)", self.len, self.meta.len(), self.segments.len())
    }
}

impl ReadAt for Erofs {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        let Some(end) = end else { return Err(Error::internal(format!("reading {} bytes at {offset} of {self:?}", buffer.len()))) };
        let known = self.meta.get(offset as usize..end.min(self.data_start()) as usize).unwrap_or_default();
        buffer[..known.len()].copy_from_slice(known);
        buffer[known.len()..].fill(0);
        let first = self.segments.partition_point(|s| s.start + s.len <= offset);
        for segment in self.segments[first..].iter().take_while(|s| s.start < end) {
            let (from, to) = (offset.max(segment.start), end.min(segment.start + segment.len));
            let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            self.store.read_at(&segment.content, part, segment.skip + from - segment.start)?;
        }
        Ok(())
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut out: Vec<_> = std::iter::once(0..self.data_start()).collect();
        for segment in self.segments.iter().filter(|s| s.start >= self.data_start()) {
            for range in self.solid(segment)? {
                match out.last_mut() {
                    // What lies between two ranges of neighbouring blocks is padding.
                    Some(last) if range.start < last.end.next_multiple_of(BLOCK) + BLOCK => last.end = range.end,
                    _ => out.push(range),
                }
            }
        }
        Ok(out)
    }
}

impl Erofs {
    /// The ranges of a segment that are no holes of the pack.
    fn solid(&self, segment: &Segment) -> Result<Vec<Range<u64>>> {
        let end = segment.start + segment.len;
        if segment.len < SPARSE_MIN {
            return Ok(std::iter::once(segment.start..end).collect());
        }
        let file = self.store.pack_file(&segment.content.pack)?;
        let first = segment.content.offset + segment.skip;
        let last = first + segment.len;
        let (mut out, mut at) = (Vec::new(), first);
        while at < last {
            let from = match seek(&file, SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => break,
                // A file system that cannot tell has no holes.
                other => other.unwrap_or(at),
            };
            at = seek(&file, SeekFrom::Hole(from)).unwrap_or(last).min(last);
            if from < at {
                out.push(segment.start + from - first..segment.start + at - first);
            }
        }
        Ok(out)
    }
}

/// An inode being laid out.
struct Plan<'a> {
    path: &'a TreePath,
    node: &'a Node,
    xattrs: Vec<u8>,
    /// Names and inode indexes, sorted by name; for directories.
    children: Vec<(&'a [u8], usize)>,
    parent: usize,
    disk: Inode,
    /// Byte offset of the inode, a multiple of `SLOT`.
    at: u64,
}

/// All inodes in path order (the root is the first), with links counted and directories filled.
fn collect(tree: &Tree) -> Result<Vec<Plan<'_>>> {
    let linked = |node: &Node| matches!(node.kind, Kind::HardLink(_));
    let mut inodes = tree.entries.iter().filter(|(_, n)| !linked(n)).map(|(path, node)| plan(path, node)).collect::<Result<Vec<_>>>()?;
    let index: BTreeMap<_, _> = inodes.iter().enumerate().map(|(i, inode)| (inode.path, i)).collect();
    if inodes.first().is_none_or(|i| !i.path.is_root() || !i.node.is_dir()) {
        return Err(Error::input("laying out EROFS: the tree has no root directory"));
    }
    for (path, node) in &tree.entries {
        let Some(parent) = path.parent() else { continue };
        let bad = |what: String| Error::input(format!("laying out {path}: {what}"));
        let target = match &node.kind {
            Kind::HardLink(target) => {
                index.get(target).filter(|i| !inodes[**i].node.is_dir()).ok_or_else(|| bad(format!("its link {target} is no file")))?
            }
            _ => &index[path],
        };
        let parent = *index.get(&parent).filter(|i| inodes[**i].node.is_dir()).ok_or_else(|| bad(format!("{parent} is no directory")))?;
        if path.as_bytes().len() > PATH_MAX {
            return Err(bad(format!("the path is longer than {PATH_MAX} bytes")));
        }
        inodes[parent].children.push((path.name(), *target));
        if node.is_dir() {
            inodes[*target].parent = parent;
            inodes[parent].disk.links += 1;
        } else {
            inodes[*target].disk.links += 1;
        }
    }
    for inode in &mut inodes {
        inode.children.sort_unstable();
    }
    Ok(inodes)
}

/// An inode with all that is known without its place.
fn plan<'a>(path: &'a TreePath, node: &'a Node) -> Result<Plan<'a>> {
    let bad = |what: String| Error::input(format!("laying out {path}: {what}"));
    let xattrs = format::encode_xattrs(&node.xattrs).map_err(bad)?;
    let device = |major, minor| format::encode_dev(major, minor).ok_or_else(|| bad(format!("device {major}:{minor} is out of range")));
    let (file_type, size, start) = match &node.kind {
        Kind::Directory => (mode::DIR, 0, 0),
        Kind::File(content) => (mode::FILE, content.size, 0),
        Kind::Symlink(target) if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) => {
            return Err(bad(format!("a symlink target must have 1 to {PATH_MAX} bytes without NUL")));
        }
        Kind::Symlink(target) => (mode::LINK, target.len() as u64, 0),
        Kind::CharDevice(major, minor) => (mode::CHAR, 0, device(*major, *minor)?),
        Kind::BlockDevice(major, minor) => (mode::BLOCK, 0, device(*major, *minor)?),
        Kind::Fifo => (mode::FIFO, 0, 0),
        Kind::HardLink(_) => return Err(Error::internal(format!("laying out {path}: a hard link has no inode"))),
    };
    let disk = Inode {
        form: Form::Extended,
        layout: Layout::Plain,
        xattr_len: xattrs.len() as u64,
        mode: file_type | node.mode & 0o7777,
        size,
        start,
        ino: 0,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        links: if node.is_dir() { 2 } else { 0 },
    };
    Ok(Plan { path, node, xattrs, children: Vec::new(), parent: 0, disk, at: 0 })
}

/// Gives every inode its form, its place and its data blocks; the result is the range of file blocks, which ends with the image.
fn place(inodes: &mut [Plan<'_>], epoch: i64) -> Result<Range<u64>> {
    let mut next = (SUPER_OFFSET + SUPER_LEN) as u64;
    for index in 0..inodes.len() {
        if inodes[index].node.is_dir() {
            inodes[index].disk.size = format::encode_dir(&dirents(index, inodes)).len() as u64;
        }
        let inode = &mut inodes[index];
        inode.disk.ino = index as u32 + 1;
        inode.shape(epoch);
        let record = inode.record_len();
        // A record crosses no block boundary, except xattrs larger than a block, which begin one.
        if next % BLOCK + record > BLOCK {
            next = next.next_multiple_of(BLOCK);
        }
        inode.at = next;
        next = (next + record).next_multiple_of(SLOT);
    }
    // fsck.erofs looks for an xattr header (12 bytes) even behind an inode that has none: the last one must not end the image.
    let mut block = (next + 12).div_ceil(BLOCK);
    for inode in inodes.iter_mut().filter(|i| matches!(i.node.kind, Kind::Directory | Kind::Symlink(_))) {
        block = inode.assign(block)?;
    }
    let start = block;
    let mut known = BTreeMap::<(Digest, u64), u32>::new();
    for inode in inodes.iter_mut() {
        let Kind::File(content) = &inode.node.kind else { continue };
        match known.get(&(content.sha256, inode.body_blocks())) {
            Some(start) => inode.disk.start = *start,
            None => {
                block = inode.assign(block)?;
                known.insert((content.sha256, inode.body_blocks()), inode.disk.start);
            }
        }
    }
    Ok(start..block)
}

impl Plan<'_> {
    /// Chooses form and layout.
    fn shape(&mut self, epoch: i64) {
        let disk = &mut self.disk;
        let small = disk.mtime == epoch && disk.uid.max(disk.gid).max(disk.links) <= u32::from(u16::MAX) && disk.size <= u64::from(u32::MAX);
        disk.form = if small { Form::Compact } else { Form::Extended };
        let (tail, limit) = (disk.size % BLOCK, if matches!(self.node.kind, Kind::File(_)) { INLINE_MAX } else { BLOCK });
        if tail > 0 && tail <= limit && disk.form.len() + disk.xattr_len + tail <= BLOCK {
            disk.layout = Layout::Inline;
        }
    }

    /// Length of the inode, its xattrs and its tail.
    fn record_len(&self) -> u64 {
        self.disk.form.len() + self.disk.xattr_len + if self.disk.has_tail() { self.disk.size % BLOCK } else { 0 }
    }

    fn body_blocks(&self) -> u64 {
        if self.disk.has_tail() { self.disk.size / BLOCK } else { self.disk.size.div_ceil(BLOCK) }
    }

    /// Puts the data blocks, if there are any, at `block` and returns the block behind them.
    fn assign(&mut self, block: u64) -> Result<u64> {
        if self.body_blocks() == 0 {
            return Ok(block);
        }
        self.disk.start = u32::try_from(block).map_err(|_| Error::input(format!("laying out {}: the image would exceed 16 TiB", self.path)))?;
        Ok(block + self.body_blocks())
    }
}

/// The entries of a directory, `.` and `..` included, sorted by name.
fn dirents<'a>(index: usize, all: &[Plan<'a>]) -> Vec<Dirent<'a>> {
    let dir = &all[index];
    let dots = [(b".".as_slice(), index), (b"..", dir.parent)];
    let entry = |(name, target): (&'a [u8], usize)| {
        let inode = &all[target];
        Dirent { name, nid: inode.at / SLOT, file_type: format::file_type(inode.disk.mode) }
    };
    let mut out: Vec<_> = dots.into_iter().chain(dir.children.iter().copied()).map(entry).collect();
    out.sort_unstable_by_key(|e| e.name);
    out
}
