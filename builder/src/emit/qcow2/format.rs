//! Numbers and structures of QCOW2 (QEMU: docs/interop/qcow2.txt); all fields are big-endian.

use layers::{Error, Result};

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// log2 of the cluster size that we write: 128 KiB, which is what Linux reads ahead, packs 3 % better than half of it.
pub const CLUSTER_BITS: u32 = 17;
/// Cluster size that we write, in bytes.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table that we write.
pub const L2_ENTRIES: u64 = CLUSTER / 8;
/// 16-bit reference counts in one block.
pub const REFS_PER_BLOCK: u64 = CLUSTER / 2;
/// Incompatible feature: the reference counts may be wrong.
pub const DIRTY: u64 = 1;
/// Incompatible feature: the compression type field is valid.
pub const COMPRESSION: u64 = 1 << 3;
/// L1 and L2 entries: the reference count is exactly one.
pub const COPIED: u64 = 1 << 63;
/// L2 entry: the cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// L2 entry: the cluster reads as zeros.
pub const ZERO: u64 = 1;
/// L1 and L2 entries: offset of a table or plain cluster.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes of the header that we write.
pub const HEADER: usize = 112;
/// Unit in which compressed data is counted.
pub const SECTOR: u64 = 512;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// One zstd frame.
    Zstd,
}

/// What we use of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Entries of the L1 table.
    pub l1_size: u32,
    /// Offset of the L1 table.
    pub l1_offset: u64,
    /// Offset of the reference count table.
    pub refcount_offset: u64,
    /// Clusters of the reference count table.
    pub refcount_clusters: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
}

impl Header {
    /// The header's bytes, always version 3; zero bytes behind it end the list of extensions.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_offset.to_be_bytes());
        put(56, &self.refcount_clusters.to_be_bytes());
        if self.compression == Compression::Zstd {
            put(72, &COMPRESSION.to_be_bytes());
            put(104, &[1]);
        }
        put(96, &4_u32.to_be_bytes());
        put(100, &(HEADER as u32).to_be_bytes());
        out
    }

    /// Reads version 2 or 3; backing files, encryption, external data and unknown incompatible features are refused.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Result<Self> {
        let version = be32(bytes, 4);
        if bytes[..4] != MAGIC || !(2..=3).contains(&version) {
            return Err(Error::input(format!("reading the QCOW2 header: version {version} is not known")));
        }
        let features = if version == 3 { be64(bytes, 72) } else { 0 };
        if features & !(DIRTY | COMPRESSION) != 0 {
            return Err(Error::input(format!("reading the QCOW2 header: incompatible features {features:#x} are not known")));
        }
        if be64(bytes, 8) != 0 || be32(bytes, 32) != 0 {
            return Err(Error::input("reading the QCOW2 header: it has a backing file or is encrypted"));
        }
        let compression = match (features & COMPRESSION != 0 && be32(bytes, 100) > 104, bytes[104]) {
            (false, _) | (true, 0) => Compression::Zlib,
            (true, 1) => Compression::Zstd,
            (true, other) => return Err(Error::input(format!("reading the QCOW2 header: compression type {other} is not known"))),
        };
        let cluster_bits = be32(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(Error::input(format!("reading the QCOW2 header: clusters of 2^{cluster_bits} bytes are not allowed")));
        }
        Ok(Self {
            cluster_bits,
            size: be64(bytes, 24),
            l1_size: be32(bytes, 36),
            l1_offset: be64(bytes, 40),
            refcount_offset: be64(bytes, 48),
            refcount_clusters: be32(bytes, 56),
            compression,
        })
    }
}

/// The L2 entry of compressed data at `offset`, `len` bytes long, in a file with our cluster size.
pub fn compressed_entry(offset: u64, len: u64) -> u64 {
    let sectors = (offset + len - 1) / SECTOR - offset / SECTOR;
    COMPRESSED | sectors << (62 - (CLUSTER_BITS - 8)) | offset
}

/// A big-endian number of 32 bits.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |n, b| n << 8 | u32::from(*b))
}

/// A big-endian number of 64 bits.
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b))
}
