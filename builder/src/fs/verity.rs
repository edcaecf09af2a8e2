//! The dm-verity hash tree of a partition: format 1, SHA-256, 4096-byte data and hash blocks, with the superblock of cryptsetup, byte for byte what
//! `veritysetup format` writes to its hash device.
//!
//! Format: Linux `Documentation/admin-guide/device-mapper/verity.rst`; superblock: cryptsetup `lib/verity/verity.c`.
//!
//! ```text
//! block 0    superblock
//! block 1…   top level (one block), …, lowest level: sha256(salt ‖ block) of each data block, 128 to a hash block
//! ```
//! Data of one block has no levels: its hash is the root hash.

use std::ops::Range;

use layers::units::Digest;
use layers::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::disk::ReadAt;

/// Size of data and hash blocks in bytes.
pub const BLOCK: u64 = 4096;
const HASH: usize = 32;
const FAN: u64 = BLOCK / HASH as u64;

/// A hash tree with its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verity {
    /// Hash of the top block: what the kernel's command line carries.
    pub root_hash: Digest,
    /// The bytes of the hash partition.
    pub tree: Vec<u8>,
}

/// What does not match, with its byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The superblock does not describe such data, or the tree has another length.
    Superblock,
    /// A hash block, counted from the start of the tree: nothing below it can be trusted.
    Tree(u64),
    /// A data block.
    Data(u64),
}

/// Makes the hash tree of data whose length is a multiple of 4096; memory beside the tree is half a MiB per thread.
pub fn format(data: &dyn ReadAt, salt: &[u8; 32], uuid: uuid::Uuid) -> Result<Verity> {
    let blocks = data.len() / BLOCK;
    if blocks == 0 || !data.len().is_multiple_of(BLOCK) {
        return Err(Error::internal(format!("making the verity tree of {} bytes: the length must be a multiple of {BLOCK}", data.len())));
    }
    let levels = levels(blocks);
    let hasher = Sha256::new_with_prefix(salt);
    let end = levels.first().map_or(1, |lowest| lowest.end);
    let mut tree = vec![0; (end * BLOCK) as usize];
    tree[..512].copy_from_slice(&superblock(blocks, salt, uuid));
    if let Some(lowest) = levels.first() {
        hash_data(data, &hasher, &mut tree[bytes(lowest)])?;
    }
    for pair in levels.windows(2) {
        // An upper level lies in front of the level that it hashes.
        let (front, lower) = tree.split_at_mut(bytes(&pair[0]).start);
        hash_level(&lower[..bytes(&pair[0]).len()], &hasher, &mut front[bytes(&pair[1])]);
    }
    let mut top = vec![0; BLOCK as usize];
    match levels.last() {
        Some(level) => top.copy_from_slice(&tree[bytes(level)]),
        None => data.read_at(&mut top, 0)?,
    }
    Ok(Verity { root_hash: Digest(hash(&hasher, &top)), tree })
}

/// Checks data against a tree and the tree against its root hash; the first thing that does not match, from the root down.
pub fn verify(data: &dyn ReadAt, tree: &[u8], root_hash: &Digest) -> Result<Option<Damage>> {
    let (hasher, levels) = match check_tree(data, tree, root_hash)? {
        Ok(parts) => parts,
        Err(damage) => return Ok(Some(damage)),
    };
    let found = pieces(data).into_par_iter().map(|piece| bad_in(data, &hasher, piece, leaf_hashes(tree, &levels, root_hash)));
    let first = found.find_first(|r| r.as_ref().is_err() || r.as_ref().is_ok_and(|bad| !bad.is_empty()));
    Ok(first.transpose()?.and_then(|bad| bad.first().copied()).map(Damage::Data))
}

/// Byte offsets of all data blocks that do not match; a damaged tree is an error, since it says nothing about the data.
pub fn bad_blocks(data: &dyn ReadAt, tree: &[u8], root_hash: &Digest) -> Result<Vec<u64>> {
    let (hasher, levels) = check_tree(data, tree, root_hash)?
        .map_err(|damage| Error::input(format!("checking data against its verity tree: the tree itself is damaged ({damage:?})")))?;
    let found = pieces(data).into_par_iter().map(|piece| bad_in(data, &hasher, piece, leaf_hashes(tree, &levels, root_hash)));
    Ok(found.collect::<Result<Vec<_>>>()?.concat())
}

/// The block ranges of the levels inside the tree, lowest first.
fn levels(blocks: u64) -> Vec<Range<u64>> {
    let mut counts = Vec::new();
    let mut count = blocks;
    while count > 1 {
        count = count.div_ceil(FAN);
        counts.push(count);
    }
    let mut next = 1;
    let place = |count| {
        next += count;
        next - count..next
    };
    let mut out: Vec<_> = counts.into_iter().rev().map(place).collect();
    out.reverse();
    out
}

fn bytes(blocks: &Range<u64>) -> Range<usize> {
    (blocks.start * BLOCK) as usize..(blocks.end * BLOCK) as usize
}

fn superblock(blocks: u64, salt: &[u8; 32], uuid: uuid::Uuid) -> [u8; 512] {
    let mut out = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"verity");
    put(8, &1u32.to_le_bytes());
    put(12, &1u32.to_le_bytes());
    put(16, uuid.as_bytes());
    put(32, b"sha256");
    put(64, &(BLOCK as u32).to_le_bytes());
    put(68, &(BLOCK as u32).to_le_bytes());
    put(72, &blocks.to_le_bytes());
    put(80, &(salt.len() as u16).to_le_bytes());
    put(88, salt);
    out
}

fn hash(salted: &Sha256, block: &[u8]) -> [u8; HASH] {
    salted.clone().chain_update(block).finalize().into()
}

/// Fills the lowest level from the data; each hash block's 128 data blocks are read at once.
fn hash_data(data: &dyn ReadAt, hasher: &Sha256, level: &mut [u8]) -> Result<()> {
    level.par_chunks_mut(BLOCK as usize).enumerate().try_for_each_init(Vec::new, |buffer, (index, out)| {
        let at = index as u64 * FAN * BLOCK;
        buffer.resize((data.len() - at).min(FAN * BLOCK) as usize, 0);
        data.read_at(buffer, at)?;
        fill(buffer, hasher, out);
        Ok(())
    })
}

fn hash_level(lower: &[u8], hasher: &Sha256, upper: &mut [u8]) {
    upper.par_chunks_mut(BLOCK as usize).zip(lower.par_chunks((FAN * BLOCK) as usize)).for_each(|(out, blocks)| fill(blocks, hasher, out));
}

/// Puts the hashes of up to 128 blocks into one hash block.
fn fill(blocks: &[u8], hasher: &Sha256, out: &mut [u8]) {
    for (block, slot) in blocks.chunks(BLOCK as usize).zip(out.chunks_mut(HASH)) {
        slot.copy_from_slice(&hash(hasher, block));
    }
}

/// The salted hasher and the levels of a tree that is whole.
type Sound = (Sha256, Vec<Range<u64>>);

/// Checks the tree from the root down to its lowest level.
fn check_tree(data: &dyn ReadAt, tree: &[u8], root_hash: &Digest) -> Result<Result<Sound, Damage>> {
    let blocks = data.len() / BLOCK;
    let levels = levels(blocks);
    let length = levels.first().map_or(BLOCK, |lowest| lowest.end * BLOCK);
    let Some((salt, uuid)) = tree.get(..512).and_then(|s| Some((s[88..120].try_into().ok()?, uuid::Uuid::from_slice(&s[16..32]).ok()?))) else {
        return Ok(Err(Damage::Superblock));
    };
    if blocks == 0 || !data.len().is_multiple_of(BLOCK) || tree.len() as u64 != length || tree[..512] != superblock(blocks, &salt, uuid) {
        return Ok(Err(Damage::Superblock));
    }
    let hasher = Sha256::new_with_prefix(salt);
    let mut expected: &[u8] = &root_hash.0;
    for level in levels.iter().rev() {
        let area = &tree[bytes(level)];
        let differs = |(block, want): (&[u8], &[u8])| hash(&hasher, block) != *want;
        if let Some(at) = area.par_chunks(BLOCK as usize).zip(expected.par_chunks(HASH)).position_first(differs) {
            return Ok(Err(Damage::Tree((level.start + at as u64) * BLOCK)));
        }
        expected = area;
    }
    Ok(Ok((hasher, levels)))
}

/// Byte ranges of the data that one hash block covers.
fn pieces(data: &dyn ReadAt) -> Vec<Range<u64>> {
    let step = FAN * BLOCK;
    (0..data.len().div_ceil(step)).map(|i| i * step..((i + 1) * step).min(data.len())).collect()
}

/// The hashes of all data blocks, one after the other.
fn leaf_hashes<'a>(tree: &'a [u8], levels: &[Range<u64>], root_hash: &'a Digest) -> &'a [u8] {
    levels.first().map_or(&root_hash.0, |lowest| &tree[bytes(lowest)])
}

/// Offsets of the bad blocks of one piece.
fn bad_in(data: &dyn ReadAt, hasher: &Sha256, piece: Range<u64>, hashes: &[u8]) -> Result<Vec<u64>> {
    let mut buffer = vec![0; (piece.end - piece.start) as usize];
    data.read_at(&mut buffer, piece.start)?;
    let wanted = hashes[(piece.start / FAN) as usize..].chunks(HASH);
    let offsets = piece.step_by(BLOCK as usize);
    let bad = buffer.chunks(BLOCK as usize).zip(wanted).zip(offsets).filter(|((block, want), _)| hash(hasher, block) != **want);
    Ok(bad.map(|(_, at)| at).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use layers::units::Seed;

    use super::*;
    use crate::exec;

    fn sample(blocks: u64) -> Vec<u8> {
        (0..blocks * BLOCK).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8 ^ (i >> 12) as u8).collect()
    }

    #[test]
    fn the_tree_equals_what_veritysetup_writes() {
        let seed = Seed::new("test");
        let (salt, uuid) = (seed.bytes("salt"), seed.uuid("verity"));
        let dir = tempfile::tempdir().unwrap();
        let (data_at, theirs_at, ours_at) = (dir.path().join("data"), dir.path().join("theirs"), dir.path().join("ours"));
        for blocks in [1, 2, 127, 128, 129, 1000, 128 * 128, 128 * 128 + 1] {
            let data = sample(blocks);
            fs::write(&data_at, &data).unwrap();
            let _ = fs::remove_file(&theirs_at);
            let mut command = Command::new("veritysetup");
            command.arg("format").arg(format!("--salt={}", hex::encode(salt))).arg(format!("--uuid={uuid}"));
            let told = exec::run(command.arg(&data_at).arg(&theirs_at)).unwrap();
            let ours = format(&data, &salt, uuid).unwrap();
            assert!(fs::read(&theirs_at).unwrap() == ours.tree, "{blocks} blocks");
            assert!(String::from_utf8_lossy(&told.stdout).contains(&ours.root_hash.hex()), "{blocks} blocks");
            fs::write(&ours_at, &ours.tree).unwrap();
            exec::run(Command::new("veritysetup").arg("verify").args([&data_at, &ours_at]).arg(ours.root_hash.hex())).unwrap();
            assert_eq!(verify(&data, &ours.tree, &ours.root_hash).unwrap(), None);
        }
    }

    #[test]
    fn damage_is_found_where_it_is() {
        let mut data = sample(300);
        let made = format(&data, &[7; 32], uuid::Uuid::nil()).unwrap();
        for block in [0, 129, 130, 299] {
            data[block * 4096 + block] ^= 1;
        }
        assert_eq!(verify(&data, &made.tree, &made.root_hash).unwrap(), Some(Damage::Data(0)));
        assert_eq!(bad_blocks(&data, &made.tree, &made.root_hash).unwrap(), [0, 129 * 4096, 130 * 4096, 299 * 4096]);
        data = sample(300);
        for (at, damage) in [(3, Damage::Superblock), (4096, Damage::Tree(4096)), (3 * 4096 + 1, Damage::Tree(3 * 4096))] {
            let mut tree = made.tree.clone();
            tree[at] ^= 1;
            assert_eq!(verify(&data, &tree, &made.root_hash).unwrap(), Some(damage));
            assert!(bad_blocks(&data, &tree, &made.root_hash).is_err());
        }
        assert_eq!(verify(&data, &made.tree, &Digest([0; 32])).unwrap(), Some(Damage::Tree(4096)));
        assert_eq!(verify(&data, &made.tree[..100], &made.root_hash).unwrap(), Some(Damage::Superblock));
    }

    #[test]
    fn odd_lengths_are_refused() {
        for len in [0, 1, 4095, 4097] {
            assert!(format(&vec![0u8; len], &[0; 32], uuid::Uuid::nil()).is_err());
        }
    }
}
