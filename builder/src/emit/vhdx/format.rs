//! Structures of VHDX files (Microsoft: [MS-VHDX], version 6.0). Numbers are little-endian.
//!
//! ```text
//! identifier | 64K header | 128K header | 192K region table | 256K region table | 1M log | 2M metadata | 3M block allocation table | blocks
//! ```

use layers::{Error, Result};
use uuid::{Uuid, uuid};

use crate::disk::{le32, le64};

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"vhdx";
/// The rest of the signature.
pub const MAGIC_END: [u8; 4] = *b"file";
/// Places of regions are multiples of this, in bytes.
pub const MIB: u64 = 1 << 20;
/// Places and sizes of the structures at a file's start are multiples of this, in bytes.
pub const PART: u64 = 64 << 10;
/// Size of a header, in bytes.
pub const HEADER: usize = 4096;
/// Bytes of a block in files of ours: the least, as Microsoft advises for Linux' file systems.
pub const BLOCK: u64 = MIB;
/// Bytes of a block, at most.
pub const LARGEST_BLOCK: u64 = 256 << 20;
/// Bytes of a disk, at most.
pub const LARGEST: u64 = 64 << 40;
/// A block that is in the file.
pub const PRESENT: u64 = 6;
/// Region of the block allocation table.
pub const TABLE: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
/// Region of the metadata.
pub const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");
/// Item: size of blocks, and flags.
pub const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
/// Item: size of the disk.
pub const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
/// Item: identifier of the disk.
pub const PAGE_83: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
/// Item: size of a logical sector.
pub const LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
/// Item: size of a physical sector.
pub const PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");

/// What a file says of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a sector.
    pub sector: u64,
}

impl Parameters {
    /// Payload blocks behind which the table has an entry for their sectors' states.
    pub fn chunk(&self) -> u64 {
        (self.sector << 23) / self.block
    }

    /// Payload blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// Entry of a block in the table.
    pub fn entry(&self, number: u64) -> u64 {
        number + number / self.chunk()
    }

    /// Entries of the table.
    pub fn entries(&self) -> u64 {
        self.blocks().checked_sub(1).map_or(0, |last| self.entry(last) + 1)
    }
}

/// A part with its own checksum, at byte 4, put in.
pub fn sealed(mut part: Vec<u8>) -> Vec<u8> {
    part[4..8].fill(0);
    let sum = crc32c::crc32c(&part);
    part[4..8].copy_from_slice(&sum.to_le_bytes());
    part
}

/// Whether a part begins with its signature and is as its checksum says.
pub fn is_whole(part: &[u8], signature: &[u8; 4]) -> bool {
    part.starts_with(signature) && {
        let zeros = crc32c::crc32c_append(crc32c::crc32c(&part[..4]), &[0; 4]);
        crc32c::crc32c_append(zeros, &part[8..]) == le32(part, 4)
    }
}

/// Entries of a table of regions or of metadata: identifier, and what follows it.
pub fn entries(part: &[u8], first: usize, count: u64, what: &str) -> Result<Vec<(Uuid, [u8; 16])>> {
    if count > 2047 {
        return Err(Error::input(format!("reading the {what}: {count} entries are more than it may have")));
    }
    let one = |at: usize| {
        let found = part.get(at..at + 32).and_then(|entry| Some((*entry.first_chunk()?, *entry.last_chunk()?)));
        let (id, rest) = found.ok_or_else(|| Error::input(format!("reading the {what}: it ends within its entries")))?;
        Ok((Uuid::from_bytes_le(id), rest))
    };
    (0..count as usize).map(|index| one(first + 32 * index)).collect()
}

/// Place of a block in the file, from its entry in the table; none for one that reads as zeros.
pub fn place(entry: u64) -> Result<Option<u64>> {
    match entry & 7 {
        0..=3 => Ok(None),
        PRESENT => Ok(Some(entry & !(MIB - 1))),
        state => Err(Error::input(format!("a block in state {state} of its table is of a disk with a parent, or of none"))),
    }
}

/// A place and a length in an entry of the table of regions.
pub fn region(rest: &[u8; 16]) -> (u64, u64) {
    (le64(rest, 0), le32(rest, 8).into())
}
