//! The on-disk records of EROFS, encoded and decoded; numbers are little-endian. Names follow `fs/erofs/erofs_fs.h`.

use crate::disk::{le16, le32, le64};
use crate::tree::Xattrs;

/// Block size in bytes.
pub const BLOCK: u64 = 4096;
/// First byte of the superblock.
pub const SUPER_OFFSET: usize = 1024;
/// Length of the superblock in bytes.
pub const SUPER_LEN: usize = 128;
/// Unit of inode numbers: a nid is a byte offset divided by this.
pub const SLOT: u64 = 32;
/// Longest symlink target and longest path in bytes (`PATH_MAX` without its NUL).
pub const PATH_MAX: usize = 4095;
/// Feature: the superblock carries a CRC-32C of block 0.
pub const COMPAT_SB_CHKSUM: u32 = 1;

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_MTIME: u32 = 2;
const DIRENT: usize = 12;
const XATTR_HEADER: usize = 12;

/// Mask and values of the file type inside a mode.
pub mod mode {
    /// Mask of the type bits.
    pub const TYPE: u16 = 0o170_000;
    /// Named pipe.
    pub const FIFO: u16 = 0o010_000;
    /// Character device.
    pub const CHAR: u16 = 0o020_000;
    /// Directory.
    pub const DIR: u16 = 0o040_000;
    /// Block device.
    pub const BLOCK: u16 = 0o060_000;
    /// Regular file.
    pub const FILE: u16 = 0o100_000;
    /// Symbolic link.
    pub const LINK: u16 = 0o120_000;
}

fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

/// CRC-32C (Castagnoli) with all bits set at the start and no inversion at the end, as the kernel's `crc32c(~0, …)`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0x82F6_3B78 & (c & 1).wrapping_neg())))
}

/// Checksum of block 0 with the checksum field read as zero; `block` is the whole block.
pub fn super_checksum(block: &[u8]) -> u32 {
    let mut copy = block[SUPER_OFFSET..].to_vec();
    put(&mut copy, 4, [0; 4]);
    crc32c(&copy)
}

/// The superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub checksum: u32,
    pub compat: u32,
    pub root_nid: u16,
    pub inodes: u64,
    pub epoch: i64,
    pub blocks: u32,
    pub meta_block: u32,
    pub xattr_block: u32,
    pub uuid: [u8; 16],
    pub label: [u8; 16],
}

impl Superblock {
    /// The features that our writer sets.
    pub const COMPAT: u32 = COMPAT_SB_CHKSUM | COMPAT_MTIME;

    pub fn encode(&self) -> [u8; SUPER_LEN] {
        let mut out = [0; SUPER_LEN];
        put(&mut out, 0, MAGIC.to_le_bytes());
        put(&mut out, 4, self.checksum.to_le_bytes());
        put(&mut out, 8, self.compat.to_le_bytes());
        out[12] = BLOCK.ilog2() as u8;
        put(&mut out, 14, self.root_nid.to_le_bytes());
        put(&mut out, 16, self.inodes.to_le_bytes());
        put(&mut out, 24, self.epoch.to_le_bytes());
        put(&mut out, 36, self.blocks.to_le_bytes());
        put(&mut out, 40, self.meta_block.to_le_bytes());
        put(&mut out, 44, self.xattr_block.to_le_bytes());
        put(&mut out, 48, self.uuid);
        put(&mut out, 64, self.label);
        out
    }

    /// Reads a superblock of at least 128 bytes; features that we do not know are refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let incompat = le32(bytes, 80);
        if le32(bytes, 0) != MAGIC {
            return Err("no EROFS superblock".into());
        }
        if u64::from(bytes[12]) != u64::from(BLOCK.ilog2()) || bytes[90] != 0 {
            return Err(format!("blocks of 2^{} bytes are not supported", bytes[12]));
        }
        if incompat != 0 || le16(bytes, 86) != 0 {
            return Err(format!("features {incompat:#x} or extra devices are not supported"));
        }
        let part = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        Ok(Self {
            checksum: le32(bytes, 4),
            compat: le32(bytes, 8),
            root_nid: le16(bytes, 14),
            inodes: le64(bytes, 16),
            epoch: le64(bytes, 24) as i64,
            blocks: le32(bytes, 36),
            meta_block: le32(bytes, 40),
            xattr_block: le32(bytes, 44),
            uuid: part(48),
            label: part(64),
        })
    }
}

/// Length of an inode on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// 32 bytes: 16-bit owners, 32-bit size, the time of the superblock.
    Compact,
    /// 64 bytes.
    Extended,
}

impl Form {
    /// Length in bytes.
    pub fn len(self) -> u64 {
        match self {
            Self::Compact => 32,
            Self::Extended => 64,
        }
    }
}

/// Where a file's last, partly filled block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In a block of its own (`EROFS_INODE_FLAT_PLAIN`).
    Plain = 0,
    /// Behind the inode and its xattrs (`EROFS_INODE_FLAT_INLINE`).
    Inline = 2,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub form: Form,
    pub layout: Layout,
    /// Bytes of the xattr area that follows; zero, or 12 plus a multiple of 4.
    pub xattr_len: u64,
    /// Type and permission bits.
    pub mode: u16,
    pub size: u64,
    /// First data block, or the device number.
    pub start: u32,
    /// Serial number, for 32-bit `stat` only.
    pub ino: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub links: u32,
}

impl Inode {
    /// Encodes the inode; the fields must fit its form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; self.form.len() as usize];
        let icount = if self.xattr_len == 0 { 0 } else { (self.xattr_len as usize - XATTR_HEADER) / 4 + 1 };
        put(&mut out, 0, ((self.layout as u16) << 1 | u16::from(self.form == Form::Extended)).to_le_bytes());
        put(&mut out, 2, (icount as u16).to_le_bytes());
        put(&mut out, 4, self.mode.to_le_bytes());
        put(&mut out, 16, self.start.to_le_bytes());
        put(&mut out, 20, self.ino.to_le_bytes());
        match self.form {
            Form::Compact => {
                put(&mut out, 6, (self.links as u16).to_le_bytes());
                put(&mut out, 8, (self.size as u32).to_le_bytes());
                put(&mut out, 24, (self.uid as u16).to_le_bytes());
                put(&mut out, 26, (self.gid as u16).to_le_bytes());
            }
            Form::Extended => {
                put(&mut out, 8, self.size.to_le_bytes());
                put(&mut out, 24, self.uid.to_le_bytes());
                put(&mut out, 28, self.gid.to_le_bytes());
                put(&mut out, 32, self.mtime.to_le_bytes());
                put(&mut out, 44, self.links.to_le_bytes());
            }
        }
        out
    }

    /// Form of the inode that begins with these bytes (at least two).
    pub fn form(bytes: &[u8]) -> Form {
        if bytes[0] & 1 == 0 { Form::Compact } else { Form::Extended }
    }

    /// Reads an inode from exactly the bytes of its form; `epoch` is the time of compact ones.
    pub fn decode(bytes: &[u8], epoch: i64) -> Result<Self, String> {
        let (format, icount, form) = (le16(bytes, 0), u64::from(le16(bytes, 2)), Self::form(bytes));
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            other => return Err(format!("inode layout {other} is not supported")),
        };
        let xattr_len = if icount == 0 { 0 } else { XATTR_HEADER as u64 + 4 * (icount - 1) };
        let common = Self {
            form,
            layout,
            xattr_len,
            mode: le16(bytes, 4),
            size: u64::from(le32(bytes, 8)),
            start: le32(bytes, 16),
            ino: le32(bytes, 20),
            uid: u32::from(le16(bytes, 24)),
            gid: u32::from(le16(bytes, 26)),
            mtime: epoch,
            links: u32::from(le16(bytes, 6)),
        };
        Ok(match form {
            Form::Compact => common,
            Form::Extended => Self {
                size: le64(bytes, 8),
                uid: le32(bytes, 24),
                gid: le32(bytes, 28),
                mtime: le64(bytes, 32) as i64,
                links: le32(bytes, 44),
                ..common
            },
        })
    }

    /// True when the last block of the data lies behind the inode.
    pub fn has_tail(&self) -> bool {
        self.layout == Layout::Inline && !self.size.is_multiple_of(BLOCK)
    }
}

/// A device number as the kernel's `new_encode_dev`; none when a part is too large.
pub fn encode_dev(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// Major and minor of a device number, as the kernel's `new_decode_dev`.
pub fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | (dev >> 12) & 0xfff00)
}

/// The type in a directory entry (`FT_*` of the kernel) of a mode; zero for none that we know.
pub fn file_type(mode: u16) -> u8 {
    match mode & mode::TYPE {
        mode::FILE => 1,
        mode::DIR => 2,
        mode::CHAR => 3,
        mode::BLOCK => 4,
        mode::FIFO => 5,
        mode::LINK => 7,
        _ => 0,
    }
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: u8,
}

/// The data of a directory: blocks of entries, each followed by the block's names. Entries must be sorted by name; the last block ends with
/// its last name.
pub fn encode_dir(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let mut used = 0;
        let fits = |e: &&Dirent<'_>| {
            used += DIRENT + e.name.len();
            used <= BLOCK as usize
        };
        let count = rest.iter().take_while(fits).count();
        let (now, later) = rest.split_at(count);
        let mut name_at = count * DIRENT;
        for entry in now {
            out.extend_from_slice(&entry.nid.to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.extend_from_slice(&[entry.file_type, 0]);
            name_at += entry.name.len();
        }
        now.iter().for_each(|e| out.extend_from_slice(e.name));
        rest = later;
    }
    out
}

/// The entries of one directory block (the last one may be shorter than a block).
pub fn decode_dir_block(block: &[u8]) -> Result<Vec<Dirent<'_>>, String> {
    let first = if block.len() < DIRENT { 0 } else { usize::from(le16(block, 8)) };
    if first < DIRENT || !first.is_multiple_of(DIRENT) || first >= block.len() {
        return Err(format!("the names begin at {first}"));
    }
    let count = first / DIRENT;
    let name_at = |i: usize| usize::from(le16(block, i * DIRENT + 8));
    let decode = |i: usize| {
        let end = if i + 1 < count { name_at(i + 1) } else { block.len() };
        let name = block.get(name_at(i)..end).ok_or_else(|| format!("the name of entry {i} is out of bounds"))?;
        let name = if i + 1 < count { name } else { name.split(|b| *b == 0).next().unwrap_or_default() };
        if name.is_empty() || name.len() > 255 || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(format!("the name of entry {i} is malformed"));
        }
        Ok(Dirent { name, nid: le64(block, i * DIRENT), file_type: block[i * DIRENT + 10] })
    };
    (0..count).map(decode).collect()
}

/// Prefixes of xattr names and their numbers. The ACL names are whole, the others continue.
const PREFIXES: [(&[u8], u8); 5] =
    [(b"user.", 1), (b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3), (b"trusted.", 4), (b"security.", 6)];

fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (rest, index) = PREFIXES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)))?;
    let whole = matches!(index, 2 | 3);
    (rest.is_empty() == whole && rest.len() <= 255).then_some((index, rest))
}

/// The xattr area of an inode, empty for no xattrs; the error names the attribute that cannot be kept.
pub fn encode_xattrs(xattrs: &Xattrs) -> Result<Vec<u8>, String> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; XATTR_HEADER];
    for (name, value) in xattrs {
        let shown = String::from_utf8_lossy(name);
        let (index, rest) = split_name(name).ok_or_else(|| format!("xattr `{shown}` has no name that EROFS can keep"))?;
        let len = u16::try_from(value.len()).map_err(|_| format!("xattr `{shown}` has {} bytes, 65535 is the limit", value.len()))?;
        out.extend_from_slice(&[rest.len() as u8, index]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    if out.len() - XATTR_HEADER > 4 * usize::from(u16::MAX - 1) {
        return Err(format!("the xattrs need {} bytes, 262128 is the limit", out.len()));
    }
    Ok(out)
}

/// One xattr at the start of `bytes`: full name, value and the length that it takes.
pub fn decode_xattr(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>, usize), String> {
    let head = bytes.get(..4).ok_or("an xattr is cut off")?;
    let (name_len, value_len) = (usize::from(head[0]), usize::from(le16(head, 2)));
    let prefix = PREFIXES.iter().find(|(_, index)| *index == head[1]).ok_or_else(|| format!("xattr prefix {} is not known", head[1]))?;
    let end = 4 + name_len + value_len;
    let body = bytes.get(4..end).ok_or("an xattr is cut off")?;
    let name = [prefix.0, &body[..name_len]].concat();
    Ok((name, body[name_len..].to_vec(), end.next_multiple_of(4)))
}

/// Numbers of the shared xattrs of an area and the length of its header with them.
pub fn decode_xattr_header(area: &[u8]) -> Result<(Vec<u32>, usize), String> {
    let head = area.get(..XATTR_HEADER).ok_or("an xattr area is cut off")?;
    let end = XATTR_HEADER + 4 * usize::from(head[4]);
    let shared = area.get(XATTR_HEADER..end).ok_or("an xattr area is cut off")?;
    Ok((shared.chunks_exact(4).map(|c| le32(c, 0)).collect(), end))
}
