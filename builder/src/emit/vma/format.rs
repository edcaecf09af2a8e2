//! Numbers and structures of VMA (pve-qemu: vma_spec.txt and vma.h). All are big-endian but the lengths in the blob buffer.

use layers::{Error, Result};
use md5::{Digest as _, Md5};

/// First bytes of an archive.
pub const MAGIC: [u8; 4] = *b"VMA\0";
/// First bytes of an extent.
const EXTENT: [u8; 4] = *b"VMAE";
/// Bytes of the disk that have one entry in an extent's header.
pub const CLUSTER: u64 = 64 << 10;
/// Bytes of which zeros are left out.
pub const BLOCK: u64 = 4096;
/// Entries of an extent.
pub const ENTRIES: u64 = 59;
/// Bytes of the disk that one of our extents has.
pub const PIECE: u64 = ENTRIES * CLUSTER;
/// Bytes of an extent's header.
pub const HEADER_SIZE: u64 = 512;
/// Where the header's blob buffer begins.
pub const BLOBS: usize = 12288;
/// Where the places of configuration files' names in the blob buffer are listed.
pub const CONFIG_NAMES: usize = 2044;
/// Where those of their contents are.
pub const CONFIG_DATA: usize = 3068;
/// Where devices are listed, 32 bytes each; the first one stands for none.
pub const DEVICES: usize = 4096;
/// Configuration files and devices that a header has room for.
pub const SLOTS: usize = 256;

/// A 32-bit number.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A 64-bit number.
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// Puts a header's checksum where it belongs: MD5 with zeros in its place.
pub fn seal(header: &mut [u8], at: usize) {
    header[at..at + 16].fill(0);
    let sum = Md5::digest(&*header);
    header[at..at + 16].copy_from_slice(&sum);
}

/// Whether a header has its checksum.
pub fn is_sealed(header: &[u8], at: usize) -> bool {
    let mut sealed = header.to_vec();
    seal(&mut sealed, at);
    sealed == header
}

/// A cluster's entry in an extent's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bit n is set when the n-th block of the cluster follows, others are zeros.
    pub mask: u16,
    /// Number of the device; 0 for none.
    pub device: u8,
    /// Number of the cluster on the device.
    pub cluster: u32,
}

/// An extent's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Identifier of the archive.
    pub uuid: [u8; 16],
    /// Its clusters, 59 at most.
    pub entries: Vec<Entry>,
}

impl Extent {
    /// Blocks that follow the header.
    pub fn blocks(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.mask.count_ones())).sum()
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE as usize] {
        let mut out = [0; HEADER_SIZE as usize];
        out[..4].copy_from_slice(&EXTENT);
        out[6..8].copy_from_slice(&(self.blocks() as u16).to_be_bytes());
        out[8..24].copy_from_slice(&self.uuid);
        for (place, entry) in out[40..].chunks_exact_mut(8).zip(&self.entries) {
            place[..2].copy_from_slice(&entry.mask.to_be_bytes());
            place[3] = entry.device;
            place[4..].copy_from_slice(&entry.cluster.to_be_bytes());
        }
        seal(&mut out, 24);
        out
    }

    /// Reads a header of the archive with this identifier; unused entries are left out.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE as usize], uuid: &[u8]) -> Result<Self> {
        let refused = |why: &str| Error::input(format!("reading an extent: {why}"));
        if bytes[..4] != EXTENT {
            return Err(refused("it does not begin like one"));
        }
        if !is_sealed(bytes, 24) {
            return Err(refused("its checksum is wrong"));
        }
        if &bytes[8..24] != uuid {
            return Err(refused("it is of another archive"));
        }
        let entry = |bytes: &[u8]| Entry { mask: u16::from_be_bytes([bytes[0], bytes[1]]), device: bytes[3], cluster: be32(bytes, 4) };
        let entries = bytes[40..].chunks_exact(8).map(entry).filter(|entry| entry.device != 0).collect();
        let mut own = [0; 16];
        own.copy_from_slice(uuid);
        let extent = Self { uuid: own, entries };
        if extent.blocks() != u64::from(u16::from_be_bytes([bytes[6], bytes[7]])) {
            return Err(refused("its number of blocks is not that of its clusters"));
        }
        Ok(extent)
    }
}
