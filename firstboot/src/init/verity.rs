//! dm-verity: the superblock of a hash partition (cryptsetup's on-disk format, version 1), the root hash it stands for, and the
//! device-mapper device (kernel: admin-guide/device-mapper/verity.rst, linux/dm-ioctl.h).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use layers::units::Digest;
use layers::{Context, Error, Fault, Result};

use crate::sys;

/// Commands and the one flag of linux/dm-ioctl.h that are used here.
const CREATE: u32 = 3;
const RESUME: u32 = 6;
const LOAD: u32 = 9;
const READ_ONLY: u32 = 1;

/// What a verity superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// UUID of the tree.
    pub uuid: uuid::Uuid,
    /// Bytes of a data block.
    pub data_block: u32,
    /// Bytes of a hash block.
    pub hash_block: u32,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Salt of every hash.
    pub salt: Vec<u8>,
}

impl Superblock {
    /// Size on disk.
    pub const SIZE: usize = 512;

    /// Reads a superblock; `None` for anything that is not one of version 1 with SHA-256.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut count = [0; 8];
        count.copy_from_slice(&bytes[72..80]);
        let salt = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        let (data_block, hash_block) = (u32_at(64), u32_at(68));
        let sizes = [data_block, hash_block].iter().all(|n| (512..=65536).contains(n) && n.is_power_of_two());
        let ours = bytes.starts_with(b"verity\0\0\x01\0\0\0\x01\0\0\0") && bytes[32..64].starts_with(b"sha256\0");
        let uuid = uuid::Uuid::from_slice(&bytes[16..32]).ok()?;
        let salt = bytes[88..344].get(..salt)?.to_vec();
        (ours && sizes).then(|| Self { uuid, data_block, hash_block, data_blocks: u64::from_le_bytes(count), salt })
    }

    /// The superblock of a hash partition, when the tree below it has this root hash: the tree's top block is hashed, nothing more.
    pub fn find(hashes: &File, roothash: &Digest) -> Option<Self> {
        let mut bytes = [0; Self::SIZE];
        hashes.read_exact_at(&mut bytes, 0).ok()?;
        let found = Self::parse(&bytes)?;
        let mut top = found.salt.clone();
        top.resize(found.salt.len() + found.hash_block as usize, 0);
        hashes.read_exact_at(&mut top[found.salt.len()..], u64::from(found.hash_block)).ok()?;
        (Digest::of(&top) == *roothash).then_some(found)
    }

    /// The target's parameters for the device-mapper table.
    pub fn target(&self, data: &Path, hashes: &Path, roothash: &Digest) -> String {
        let salt = if self.salt.is_empty() { "-".into() } else { hex::encode(&self.salt) };
        let Self { data_block, hash_block, data_blocks, .. } = self;
        let (data, hashes, root) = (data.display(), hashes.display(), roothash.hex());
        format!("1 {data} {hashes} {data_block} {hash_block} {data_blocks} 1 sha256 {root} {salt}")
    }
}

/// Where the UUID lies in a `struct dm_ioctl`; only the command that makes a device may carry both it and a name.
const UUID: usize = 176;

/// Makes the verified device and returns its path, `/dev/dm-<minor>`.
pub fn open(found: &Superblock, data: &Path, hashes: &Path, roothash: &Digest) -> Result<PathBuf> {
    let control = File::options().read(true).write(true).open("/dev/mapper/control").context(|| "opening /dev/mapper/control".into())?;
    let command = |number, flags, payload: &[u8]| {
        let mut buffer = request(flags, payload);
        if number == CREATE {
            let uuid = format!("CRYPT-VERITY-{}-root", found.uuid.simple());
            buffer[UUID..UUID + uuid.len()].copy_from_slice(uuid.as_bytes());
        }
        sys::device_mapper(&control, number, &mut buffer).map(|()| buffer)
    };
    let made = command(CREATE, 0, &[]).fault(Fault::Environment, || "making the verity device".into())?;
    let table = table(found, &found.target(data, hashes, roothash));
    command(LOAD, READ_ONLY, &table).fault(Fault::Environment, || format!("loading the verity table for {}", data.display()))?;
    command(RESUME, 0, &[]).fault(Fault::Environment, || "starting the verity device".into())?;
    let minor = minor(&made).ok_or_else(|| Error::internal("making the verity device: the kernel's answer is too short"))?;
    Ok(format!("/dev/dm-{minor}").into())
}

/// A `struct dm_ioctl` named `root`, with what follows it.
fn request(flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; sys::DM_HEADER];
    let size = (sys::DM_HEADER + payload.len()) as u32;
    for (at, number) in [(0, 4), (12, size), (16, sys::DM_HEADER as u32), (20, u32::from(!payload.is_empty())), (28, flags)] {
        out[at..at + 4].copy_from_slice(&u32::to_ne_bytes(number));
    }
    out[48..52].copy_from_slice(b"root");
    out.extend_from_slice(payload);
    out
}

/// A `struct dm_target_spec` with its parameters.
fn table(found: &Superblock, target: &str) -> Vec<u8> {
    let mut out = vec![0; 40];
    let sectors = found.data_blocks.saturating_mul(u64::from(found.data_block) / 512);
    out[8..16].copy_from_slice(&sectors.to_ne_bytes());
    out[24..30].copy_from_slice(b"verity");
    out.extend_from_slice(target.as_bytes());
    out.resize((out.len() + 1).next_multiple_of(8), 0);
    out
}

/// The minor number in the kernel's answer (its 64-bit encoding of device numbers).
fn minor(answer: &[u8]) -> Option<u64> {
    let mut dev = [0; 8];
    dev.copy_from_slice(answer.get(40..48)?);
    let dev = u64::from_ne_bytes(dev);
    Some((dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The outside judge: what veritysetup writes is what we read, and its root hash is the one we find.
    #[test]
    fn a_tree_of_veritysetup_is_found_by_its_root_hash() {
        let folder = tempfile::tempdir().unwrap();
        let (data, hashes) = (folder.path().join("data"), folder.path().join("hashes"));
        std::fs::write(&data, vec![7; 3 << 20]).unwrap();
        let (data, tree) = (data.display().to_string(), hashes.display().to_string());
        let ended = crate::exec::in_root(Path::new("/"), "veritysetup", &["format", "--salt=0123abcd", &data, &tree]).unwrap();
        let root = ended.text.lines().find_map(|l| l.strip_prefix("Root hash:")).unwrap().trim().parse().unwrap();
        let found = Superblock::find(&File::open(&hashes).unwrap(), &root).unwrap();
        assert_eq!(
            (found.data_block, found.hash_block, found.data_blocks, found.salt.as_slice()),
            (4096, 4096, 768, [1, 0x23, 0xab, 0xcd].as_slice())
        );
        assert!(ended.text.contains(&found.uuid.to_string()));
        assert_eq!(found.target(Path::new("/d"), Path::new("/h"), &root), format!("1 /d /h 4096 4096 768 1 sha256 {} 0123abcd", root.hex()));
        assert_eq!(Superblock::find(&File::open(&hashes).unwrap(), &Digest([0; 32])), None);
    }

    proptest! {
        #[test]
        fn no_superblock_panics(mut bytes in proptest::collection::vec(any::<u8>(), Superblock::SIZE), magic: bool) {
            if magic {
                bytes[..16].copy_from_slice(b"verity\0\0\x01\0\0\0\x01\0\0\0");
                bytes[32..39].copy_from_slice(b"sha256\0");
            }
            let _ = Superblock::parse(bytes.as_slice().try_into().unwrap());
        }
    }
}
