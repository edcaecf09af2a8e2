//! Numbers and structures of sparse extents (VMware: Virtual Disk Format 5.0, "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse
//! Extents"); all fields are little-endian, offsets and sizes count sectors.

use layers::{Error, Result};

use crate::disk::{le16, le32, le64};

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// Bytes of a sector, which is also the size of header and markers.
pub const SECTOR: u64 = 512;
/// Bytes of the disk that are packed as one, the format's default.
pub const GRAIN: u64 = 64 << 10;
/// Entries of a grain table.
pub const TABLE_ENTRIES: u64 = 512;
/// Bytes of a grain table.
pub const TABLE: u64 = TABLE_ENTRIES * 4;
/// Sectors before the first grain.
pub const OVERHEAD: u64 = 128;
/// Sectors of the descriptor, behind the header.
pub const DESCRIPTOR: u64 = 20;
/// Bytes of a grain's marker that stand before its packed bytes: its first sector and their length.
pub const GRAIN_MARKER: u64 = 12;
/// Grain directory offset of a header whose footer has it.
pub const AT_END: u64 = u64::MAX;

/// Flag: the bytes that show a broken transfer as text are valid.
pub const NEWLINES: u32 = 1;
/// Flag: a grain table entry of 1 stands for zeros.
pub const ZERO_GRAINS: u32 = 1 << 2;
/// Flag: grains are packed.
pub const COMPRESSED: u32 = 1 << 16;
/// Flag: markers tell what follows.
pub const MARKERS: u32 = 1 << 17;

/// Bytes that a transfer as text would change.
const TEXT: [u8; 4] = *b"\n \r\n";

/// What stands behind a marker without a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// Nothing: the file ends.
    End = 0,
    /// A grain table.
    Table = 1,
    /// The grain directory.
    Directory = 2,
    /// The footer, a header that knows the directory's place.
    Footer = 3,
}

impl Marker {
    /// The marker's sector; `sectors` are behind it.
    pub fn to_bytes(self, sectors: u64) -> [u8; SECTOR as usize] {
        let mut out = [0; SECTOR as usize];
        out[..8].copy_from_slice(&sectors.to_le_bytes());
        out[12..16].copy_from_slice(&(self as u32).to_le_bytes());
        out
    }
}

/// What we use of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Format version, 1 to 3.
    pub version: u32,
    /// `NEWLINES`, `COMPRESSED` and others.
    pub flags: u32,
    /// Size of the disk.
    pub capacity: u64,
    /// Sectors of a grain, a power of two above 8.
    pub grain: u64,
    /// Place and size of the descriptor inside the file; no size, no descriptor.
    pub descriptor: (u64, u64),
    /// Entries of a grain table.
    pub table_entries: u32,
    /// Place of the grain directory, or `AT_END`.
    pub directory: u64,
    /// Sectors before the first grain.
    pub overhead: u64,
}

impl Header {
    /// The header's sector.
    pub fn to_bytes(&self) -> [u8; SECTOR as usize] {
        let mut out = [0; SECTOR as usize];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &self.version.to_le_bytes());
        put(8, &self.flags.to_le_bytes());
        put(12, &self.capacity.to_le_bytes());
        put(20, &self.grain.to_le_bytes());
        put(28, &self.descriptor.0.to_le_bytes());
        put(36, &self.descriptor.1.to_le_bytes());
        put(44, &self.table_entries.to_le_bytes());
        put(56, &self.directory.to_le_bytes());
        put(64, &self.overhead.to_le_bytes());
        put(73, &TEXT);
        put(77, &u16::from(self.flags & COMPRESSED != 0).to_le_bytes());
        out
    }

    /// Reads versions 1 to 3; whatever the reader could not follow is refused.
    pub fn from_bytes(bytes: &[u8; SECTOR as usize]) -> Result<Self> {
        let refused = |why: String| Err(Error::input(format!("reading the VMDK header: {why}")));
        let version = le32(bytes, 4);
        if bytes[..4] != MAGIC || !(1..=3).contains(&version) {
            return refused(format!("version {version} is not known"));
        }
        let (flags, packing) = (le32(bytes, 8), le16(bytes, 77));
        if flags & NEWLINES != 0 && bytes[73..77] != TEXT {
            return refused("it was transferred as text, which has changed its bytes".into());
        }
        if (flags & COMPRESSED != 0) != (packing == 1) {
            return refused(format!("compression {packing} is not known"));
        }
        let header = Self {
            version,
            flags,
            capacity: le64(bytes, 12),
            grain: le64(bytes, 20),
            descriptor: (le64(bytes, 28), le64(bytes, 36)),
            table_entries: le32(bytes, 44),
            directory: le64(bytes, 56),
            overhead: le64(bytes, 64),
        };
        let sound = header.grain.is_power_of_two() && (8..=2048).contains(&header.grain) && (1..=4096).contains(&header.table_entries);
        if !sound || header.capacity > i64::MAX as u64 / SECTOR {
            return refused(format!(
                "{} sectors in grains of {}, {} to a table, are not allowed",
                header.capacity, header.grain, header.table_entries
            ));
        }
        Ok(header)
    }

    /// Grain tables of the disk.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * u64::from(self.table_entries))
    }
}
