//! Superblocks of dm-verity (cryptsetup: docs/on-disk-format of verity, version 1) EROFS (Linux: fs/erofs/erofs_fs.h)
//! and ext4 (Linux: Documentation/filesystems/ext4/super.rst).

use layers::units::Bytes;
use layers::{Error, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::{ReadAt, le16, le32, le64};

/// Where btrfs has its magic.
const BTRFS: u64 = 0x10040;

/// Facts of a dm-verity superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verity {
    /// UUID of the tree.
    pub uuid: Uuid,
    /// Hash algorithm.
    pub algorithm: String,
    /// Size of a data block in bytes.
    pub data_block: u32,
    /// Size of a hash block in bytes.
    pub hash_block: u32,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Salt in hexadecimal digits.
    pub salt: String,
}

impl Verity {
    /// Reads the superblock from the first 512 bytes of a hash device; none when there is none.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.len() < 512 || &bytes[..8] != b"verity\0\0" {
            return Ok(None);
        }
        let salt = usize::from(le16(bytes, 80));
        let (version, form) = (le32(bytes, 8), le32(bytes, 12));
        if version != 1 || form != 1 || salt > 256 {
            return Err(Error::input(format!("reading the verity superblock: version {version}, hash type {form}, salt of {salt} bytes")));
        }
        Ok(Some(Self {
            uuid: uuid(bytes, 16),
            algorithm: text(&bytes[32..64]),
            data_block: le32(bytes, 64),
            hash_block: le32(bytes, 68),
            data_blocks: le64(bytes, 72),
            salt: hex::encode(&bytes[88..88 + salt]),
        }))
    }
}

/// Facts of an EROFS superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Erofs {
    /// Volume label.
    pub label: String,
    /// UUID of the file system.
    pub uuid: Uuid,
    /// Size in bytes.
    pub size: Bytes,
    /// Number of inodes.
    pub inodes: u64,
    /// Build time in seconds since 1970.
    pub epoch: u64,
}

impl Erofs {
    /// Reads the superblock from the first 4096 bytes of a file system; none when there is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let block = bytes.get(1024..1152).filter(|s| le32(s, 0) == 0xe0f5_e1e2)?;
        let size = u64::from(le32(block, 36)).checked_shl(block[12].into()).unwrap_or(0);
        Some(Self { label: text(&block[64..80]), uuid: uuid(block, 48), size: Bytes(size), inodes: le64(block, 16), epoch: le64(block, 24) })
    }
}

/// Facts of an ext4 superblock, such as that of the state partition of a disk that has been booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ext4 {
    /// Volume label.
    pub label: String,
    /// UUID of the file system.
    pub uuid: Uuid,
    /// Size in bytes.
    pub size: Bytes,
}

impl Ext4 {
    /// Reads the superblock from the first 4096 bytes of a file system; none when there is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let block = bytes.get(1024..2048).filter(|s| s[56..58] == [0x53, 0xef])?;
        let blocks = u64::from(le32(block, 4)) | u64::from(le32(block, 336)) << 32;
        let size = blocks.saturating_mul(1024_u64.checked_shl(le32(block, 24)).unwrap_or(0));
        Some(Self { label: text(&block[120..136]), uuid: uuid(block, 104), size: Bytes(size) })
    }
}

/// The name of another file system or container by its magic; `head` is its first 4096 bytes.
pub fn foreign(partition: &dyn ReadAt, head: &[u8]) -> Result<Option<&'static str>> {
    const KNOWN: [(usize, &[u8], &str); 6] = [
        (0, b"hsqs", "squashfs"),
        (0, b"XFSB", "XFS"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "an LVM volume"),
        (4086, b"SWAPSPACE2", "swap space"),
        (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    ];
    let known = KNOWN.iter().find(|(at, magic, _)| head[*at..].starts_with(magic)).map(|(_, _, name)| *name);
    let mut magic = [0; 8];
    if known.is_none() && partition.len() >= BTRFS + 8 {
        partition.read_at(&mut magic, BTRFS)?;
    }
    Ok(known.or((&magic == b"_BHRfS_M").then_some("btrfs")))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn uuid(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_slice(&bytes[at..at + 16]).unwrap_or_default()
}
