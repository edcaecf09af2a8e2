//! Reads EROFS images of the kind that our writer makes, and flat ones of `mkfs.erofs`: strictly, and within bounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::{Error, Result};

use super::format::{self, BLOCK, COMPAT_SB_CHKSUM, Form, Inode, PATH_MAX, SLOT, SUPER_LEN, SUPER_OFFSET, Superblock, mode};
use crate::disk::{ReadAt, le16};
use crate::fs::{ENTRY_COST, Files, LISTING_MAX};
use crate::tree::{TreePath, Xattrs};

/// An opened image with its whole listing.
#[derive(Debug)]
pub struct Reader {
    image: Image,
    entries: BTreeMap<TreePath, Entry>,
}

/// One path of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by full name.
    pub xattrs: Xattrs,
    /// Number of links as stored.
    pub links: u32,
    /// Inode number; hard links of one file share it.
    pub nid: u64,
    /// What it is.
    pub what: What,
}

/// What a path of an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Directory.
    Directory,
    /// Regular file of this many bytes.
    File(u64),
    /// Symbolic link with its target.
    Symlink(Vec<u8>),
    /// Character device, major and minor.
    CharDevice(u32, u32),
    /// Block device, major and minor.
    BlockDevice(u32, u32),
    /// Named pipe.
    Fifo,
}

impl Reader {
    /// Opens an image and reads all of its metadata; anything malformed is an input error.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self> {
        let mut image = Image::open(source)?;
        let entries = image.walk()?;
        Ok(Self { image, entries })
    }

    /// UUID of the volume.
    pub fn uuid(&self) -> uuid::Uuid {
        uuid::Uuid::from_bytes(self.image.superblock.uuid)
    }
}

impl Files for Reader {
    fn entries(&self) -> &BTreeMap<TreePath, Entry> {
        &self.entries
    }

    fn read_at(&self, path: &TreePath, buffer: &mut [u8], offset: u64) -> Result<()> {
        let entry = self.entries.get(path).filter(|e| matches!(e.what, What::File(_)));
        let entry = entry.ok_or_else(|| Error::input(format!("reading {path} of an EROFS image: no such file")))?;
        self.image.read_data(entry.nid, &self.image.inode(entry.nid)?, buffer, offset)
    }
}

/// The raw image.
#[derive(Debug)]
struct Image {
    source: Arc<dyn ReadAt>,
    superblock: Superblock,
    /// Bytes that the listing may still take.
    budget: u64,
}

fn bad(nid: u64, what: impl std::fmt::Display) -> Error {
    Error::input(format!("reading EROFS inode {nid}: {what}"))
}

impl Image {
    fn open(source: Arc<dyn ReadAt>) -> Result<Self> {
        let bad = |what: String| Error::input(format!("reading EROFS superblock: {what}"));
        if source.len() < BLOCK {
            return Err(bad(format!("an image of {} bytes is too short", source.len())));
        }
        let mut block = [0; BLOCK as usize];
        source.read_at(&mut block, 0)?;
        let superblock = Superblock::decode(&block[SUPER_OFFSET..SUPER_OFFSET + SUPER_LEN]).map_err(bad)?;
        if u64::from(superblock.blocks) * BLOCK > source.len() {
            return Err(bad(format!("it says {} blocks, the image has {}", superblock.blocks, source.len() / BLOCK)));
        }
        if superblock.compat & COMPAT_SB_CHKSUM != 0 && superblock.checksum != format::super_checksum(&block) {
            return Err(bad("wrong checksum".into()));
        }
        Ok(Self { source, superblock, budget: LISTING_MAX })
    }

    /// Takes bytes from the budget.
    fn spend(&mut self, nid: u64, bytes: u64) -> Result<()> {
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| bad(nid, format!("the listing needs more than {LISTING_MAX} bytes")))?;
        Ok(())
    }

    /// Byte offset of an inode whose first slot lies within the image.
    fn place(&self, nid: u64) -> Result<u64> {
        let at = nid.checked_mul(SLOT).and_then(|at| at.checked_add(u64::from(self.superblock.meta_block) * BLOCK));
        at.filter(|at| at.checked_add(SLOT).is_some_and(|end| end <= self.source.len())).ok_or_else(|| bad(nid, "it lies outside of the image"))
    }

    /// Bytes of the image; out of bounds is an error of the inode.
    fn bytes(&self, nid: u64, at: u64, buffer: &mut [u8]) -> Result<()> {
        if at.checked_add(buffer.len() as u64).is_none_or(|end| end > self.source.len()) {
            return Err(bad(nid, format!("{} bytes at {at} lie outside of the image", buffer.len())));
        }
        self.source.read_at(buffer, at)
    }

    fn inode(&self, nid: u64) -> Result<Inode> {
        let at = self.place(nid)?;
        let mut bytes = [0; 64];
        self.bytes(nid, at, &mut bytes[..32])?;
        if Inode::form(&bytes) == Form::Extended {
            self.bytes(nid, at + 32, &mut bytes[32..])?;
        }
        Inode::decode(&bytes, self.superblock.epoch).map_err(|e| bad(nid, e))
    }

    /// Reads from the data of an inode; its two parts are the blocks and the tail behind the inode.
    fn read_data(&self, nid: u64, inode: &Inode, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= inode.size);
        let end = end.ok_or_else(|| bad(nid, format!("{} bytes at {offset} lie behind the end at {}", buffer.len(), inode.size)))?;
        let body = if inode.has_tail() { inode.size - inode.size % BLOCK } else { inode.size };
        let (head, tail) = buffer.split_at_mut(body.clamp(offset, end).abs_diff(offset) as usize);
        if !head.is_empty() {
            self.bytes(nid, u64::from(inode.start) * BLOCK + offset, head)?;
        }
        if !tail.is_empty() {
            let behind = self.place(nid)? + inode.form.len() + inode.xattr_len;
            self.bytes(nid, behind + offset.saturating_sub(body), tail)?;
        }
        Ok(())
    }

    /// All data of a directory or symlink.
    fn small_data(&mut self, nid: u64, inode: &Inode) -> Result<Vec<u8>> {
        self.check_bounds(nid, inode)?;
        self.spend(nid, inode.size)?;
        let mut out = vec![0; inode.size as usize];
        self.read_data(nid, inode, &mut out, 0)?;
        Ok(out)
    }

    fn xattrs(&mut self, nid: u64, inode: &Inode) -> Result<Xattrs> {
        let mut out = Xattrs::new();
        if inode.xattr_len == 0 {
            return Ok(out);
        }
        self.spend(nid, inode.xattr_len)?;
        let mut area = vec![0; inode.xattr_len as usize];
        self.bytes(nid, self.place(nid)? + inode.form.len(), &mut area)?;
        let (shared, mut at) = format::decode_xattr_header(&area).map_err(|e| bad(nid, e))?;
        for id in shared {
            let (name, value) = self.shared_xattr(nid, id)?;
            out.insert(name, value);
        }
        while at < area.len() {
            let (name, value, len) = format::decode_xattr(&area[at..]).map_err(|e| bad(nid, e))?;
            at += len;
            if out.insert(name, value).is_some() {
                return Err(bad(nid, "an xattr appears twice"));
            }
        }
        Ok(out)
    }

    fn shared_xattr(&mut self, nid: u64, id: u32) -> Result<(Vec<u8>, Vec<u8>)> {
        let at = u64::from(self.superblock.xattr_block) * BLOCK + 4 * u64::from(id);
        let mut head = [0; 4];
        self.bytes(nid, at, &mut head)?;
        let mut entry = vec![0; 4 + usize::from(head[0]) + usize::from(le16(&head, 2))];
        self.spend(nid, entry.len() as u64)?;
        self.bytes(nid, at, &mut entry)?;
        let (name, value, _) = format::decode_xattr(&entry).map_err(|e| bad(nid, e))?;
        Ok((name, value))
    }

    /// Reads the whole tree from the root, each directory once.
    fn walk(&mut self) -> Result<BTreeMap<TreePath, Entry>> {
        let root = u64::from(self.superblock.root_nid);
        let mut out = BTreeMap::from([(TreePath::root(), self.entry(root)?)]);
        let mut first_names = BTreeMap::from([(root, TreePath::root())]);
        if out[&TreePath::root()].what != What::Directory {
            return Err(bad(root, "the root is no directory"));
        }
        let mut open = vec![(TreePath::root(), root, root)];
        while let Some((dir, nid, parent)) = open.pop() {
            for (name, child, file_type) in self.directory(nid, parent)? {
                let path = dir.join(&name);
                self.spend(child, ENTRY_COST + path.as_bytes().len() as u64)?;
                let entry = match first_names.get(&child) {
                    Some(first) => out[first].clone(),
                    None => self.entry(child)?,
                };
                let known = first_names.insert(child, path.clone()).is_some();
                if path.as_bytes().len() > PATH_MAX || file_type != entry.file_type() || known && entry.what == What::Directory {
                    return Err(bad(child, format!("{path} is too long, has another type than its entry, or is a directory reached twice")));
                }
                if entry.what == What::Directory {
                    open.push((path.clone(), child, nid));
                }
                out.insert(path, entry);
            }
        }
        Ok(out)
    }

    /// The entries of a directory without `.` and `..`, which must be right.
    fn directory(&mut self, nid: u64, parent: u64) -> Result<Vec<(Vec<u8>, u64, u8)>> {
        let inode = self.inode(nid)?;
        let data = self.small_data(nid, &inode)?;
        let mut all = Vec::new();
        for block in data.chunks(BLOCK as usize) {
            let entries = format::decode_dir_block(block).map_err(|e| bad(nid, format!("reading directory: {e}")))?;
            all.extend(entries.into_iter().map(|e| (e.name.to_vec(), e.nid, e.file_type)));
        }
        if !all.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(bad(nid, "the names are not sorted"));
        }
        for (dot, target) in [(b".".as_slice(), nid), (b"..", parent)] {
            let at = all.iter().position(|e| e.0 == dot).filter(|at| all[*at].1 == target);
            all.remove(at.ok_or_else(|| bad(nid, "`.` or `..` is missing or wrong"))?);
        }
        Ok(all)
    }

    fn entry(&mut self, nid: u64) -> Result<Entry> {
        let inode = self.inode(nid)?;
        self.spend(nid, inode.form.len())?;
        let xattrs = self.xattrs(nid, &inode)?;
        let (major, minor) = format::decode_dev(inode.start);
        let what = match inode.mode & mode::TYPE {
            mode::DIR => What::Directory,
            mode::FILE => {
                self.check_bounds(nid, &inode)?;
                What::File(inode.size)
            }
            mode::LINK if inode.size == 0 || inode.size > PATH_MAX as u64 => return Err(bad(nid, format!("a symlink of {} bytes", inode.size))),
            mode::LINK => What::Symlink(self.small_data(nid, &inode)?),
            mode::CHAR => What::CharDevice(major, minor),
            mode::BLOCK => What::BlockDevice(major, minor),
            mode::FIFO => What::Fifo,
            _ => return Err(bad(nid, format!("type {:#o} is not supported", inode.mode))),
        };
        Ok(Entry { mode: inode.mode & 0o7777, uid: inode.uid, gid: inode.gid, mtime: inode.mtime, xattrs, links: inode.links, nid, what })
    }

    /// Refuses data that lies outside of the image.
    fn check_bounds(&self, nid: u64, inode: &Inode) -> Result<()> {
        let body = if inode.has_tail() { inode.size - inode.size % BLOCK } else { inode.size };
        let end = (u64::from(inode.start) * BLOCK).checked_add(body);
        if body > 0 && end.is_none_or(|end| end > self.source.len()) {
            return Err(bad(nid, "its data lies outside of the image"));
        }
        if !inode.has_tail() {
            return Ok(());
        }
        let behind = self.place(nid)? + inode.form.len() + inode.xattr_len;
        if behind % BLOCK + inode.size % BLOCK > BLOCK {
            return Err(bad(nid, "its tail crosses a block boundary"));
        }
        self.read_data(nid, inode, &mut [0], inode.size - 1)
    }
}

impl Entry {
    fn file_type(&self) -> u8 {
        format::file_type(match self.what {
            What::Directory => mode::DIR,
            What::File(_) => mode::FILE,
            What::Symlink(_) => mode::LINK,
            What::CharDevice(..) => mode::CHAR,
            What::BlockDevice(..) => mode::BLOCK,
            What::Fifo => mode::FIFO,
        })
    }
}
