//! The record by which a changed byte is found and placed: digests of 64 KiB chunks of every part of the disk that holds anything. A root
//! under dm-verity needs none: its tree, whose own chunks are recorded, has a hash for each 4 KiB. What the record does not list must be zero.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use layers::node::partition;
use layers::units::Digest;
use layers::{Context, Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Verity;
use crate::disk::file::{FileAt, Window};
use crate::disk::layout::Layout;
use crate::disk::{ReadAt, blocks, gpt, is_zero, read_block};
use crate::emit;

/// Size of a chunk in bytes.
pub const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;
const HASH: u64 = 32;
/// Data blocks hashed in one go; their hashes fill whole hash blocks.
const BLOCKS_AT_ONCE: u64 = 256;

/// Digests of a disk, kept in the build record; the same for every output format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Partitions, and under names of their own the tables and the space between.
    pub partitions: Vec<PartitionCheck>,
}

/// Digests of one part of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionCheck {
    /// Name of the partition, or `mbr`, `gpt`, `gpt-backup`, `unused`.
    pub name: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
    /// Digests of the chunks that are not all zero, by number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chunks: BTreeMap<u64, Digest>,
    /// The tree that covers it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<VerityCheck>,
}

/// A hash tree that covers a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerityCheck {
    /// Number of data blocks of 4096 bytes.
    pub data_blocks: u64,
    /// Salt in hexadecimal digits.
    pub salt: String,
    /// Where the hashes of the data blocks lie on the disk.
    pub hashes: u64,
}

/// A place where an artifact differs from its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the partition, or `file` for the file itself.
    pub partition: String,
    /// First byte of the chunk or block that differs, within the partition or file.
    pub offset: u64,
    /// Length of the chunk or block in bytes.
    pub length: u64,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {} ({} bytes): {}", self.partition, self.offset, self.length, self.reason)
    }
}

impl Check {
    /// Records a disk as it is about to be written.
    pub fn of(disk: &dyn ReadAt, layout: &Layout) -> Result<Self> {
        let mut partitions = parts(layout);
        cover(disk, layout, &mut partitions)?;
        let tasks = partitions.iter().enumerate().map(|(index, p)| Ok((index, listed(disk, p)?))).collect::<Result<Vec<_>>>()?;
        let tasks: Vec<_> = tasks.into_iter().flat_map(|(index, chunks)| chunks.into_iter().map(move |chunk| (index, chunk))).collect();
        let digests: Vec<_> = tasks
            .into_par_iter()
            .map_init(buffer, |buffer, (index, chunk)| Ok((index, chunk, digest(disk, &partitions[index], chunk, buffer)?)))
            .collect::<Result<_>>()?;
        for (index, chunk, digest) in digests {
            partitions[index].chunks.extend(digest.map(|digest| (chunk, digest)));
        }
        Ok(Self { size: disk.len(), partitions })
    }

    /// Compares a disk with the record; findings are in disk order.
    pub fn compare(&self, disk: &dyn ReadAt) -> Result<Vec<Finding>> {
        if disk.len() != self.size {
            let reason = format!("the disk has {} bytes, its record says {}", disk.len(), self.size);
            return Ok(vec![Finding { partition: "disk".into(), offset: disk.len().min(self.size), length: 0, reason }]);
        }
        for part in &self.partitions {
            part.validate(self.size)?;
        }
        let mut out = Vec::new();
        for part in &self.partitions {
            out.extend(part.compare(disk)?.into_iter().map(|f| (part.offset + f.offset, f)));
        }
        let damaged: BTreeSet<u64> = out.iter().map(|(at, _)| *at).collect();
        for part in &self.partitions {
            out.extend(part.compare_verity(disk, &damaged)?.into_iter().map(|f| (part.offset + f.offset, f)));
        }
        out.sort_by_key(|(at, _)| *at);
        Ok(joined(out.into_iter().map(|(_, finding)| finding)))
    }
}

/// Neighbours with one reason become one finding, so that a file of another build does not give thousands.
fn joined(findings: impl Iterator<Item = Finding>) -> Vec<Finding> {
    findings.fold(Vec::new(), |mut out: Vec<Finding>, next| {
        match out.last_mut() {
            Some(last) if last.partition == next.partition && last.reason == next.reason && last.offset + last.length == next.offset => {
                last.length += next.length
            }
            _ => out.push(next),
        }
        out
    })
}

/// Why a place cannot be read, without the place: the finding has it, and neighbours with one reason are joined.
fn cause(error: &Error) -> String {
    let mut causes = error.causes();
    if causes.len() > 1 {
        causes.remove(0);
    }
    causes.join(": ")
}

/// The disk's parts without gaps.
fn parts(layout: &Layout) -> Vec<PartitionCheck> {
    let part = |name: &str, offset, end: u64| PartitionCheck { name: name.into(), offset, size: end - offset, chunks: BTreeMap::new(), verity: None };
    let mut out = vec![part("mbr", 0, gpt::SECTOR), part("gpt", gpt::SECTOR, gpt::HEAD)];
    let mut end = gpt::HEAD;
    for p in &layout.partitions {
        if end < p.offset {
            out.push(part("unused", end, p.offset));
        }
        end = p.offset + p.size;
        out.push(part(p.name, p.offset, end));
    }
    let tail = layout.size - gpt::TAIL;
    out.extend([part("unused", end, tail), part("gpt-backup", tail, layout.size)]);
    out
}

/// Replaces chunks by the tree where a slot has one.
fn cover(disk: &dyn ReadAt, layout: &Layout, parts: &mut [PartitionCheck]) -> Result<()> {
    for (root, tree) in [(partition::ROOT_A, partition::VERITY_A), (partition::ROOT_B, partition::VERITY_B)] {
        let tree = layout.partition(tree)?;
        let mut head = [0; 512];
        disk.read_at(&mut head, tree.offset)?;
        let verity =
            Verity::parse(&head)?.filter(|v| v.algorithm == "sha256" && u64::from(v.data_block) == BLOCK && u64::from(v.hash_block) == BLOCK);
        if let (Some(verity), Some(part)) = (verity, parts.iter_mut().find(|p| p.name == root)) {
            let hashes = tree.offset + BLOCK * leaf_block(verity.data_blocks);
            part.verity = Some(VerityCheck { data_blocks: verity.data_blocks, salt: verity.salt, hashes });
        }
    }
    Ok(())
}

/// Number of the first hash block of the lowest level: behind the superblock and all higher levels.
fn leaf_block(data_blocks: u64) -> u64 {
    let per_block = BLOCK / HASH;
    let mut above = 0;
    let mut level = data_blocks.div_ceil(per_block);
    while level > 1 {
        level = level.div_ceil(per_block);
        above += level;
    }
    1 + above
}

fn buffer() -> Vec<u8> {
    vec![0; CHUNK as usize]
}

/// Numbers of the chunks of a part that may hold anything and that no tree covers.
fn listed(disk: &dyn ReadAt, part: &PartitionCheck) -> Result<Vec<u64>> {
    let covered = part.verity.as_ref().map_or(0, |v| (v.data_blocks * BLOCK).div_ceil(CHUNK));
    Ok(blocks(&Window::new(disk, part.offset, part.size), CHUNK)?.into_iter().filter(|chunk| *chunk >= covered).collect())
}

/// The digest of a chunk, none when it is all zero.
fn digest(disk: &dyn ReadAt, part: &PartitionCheck, chunk: u64, buffer: &mut [u8]) -> Result<Option<Digest>> {
    let bytes = read_block(&Window::new(disk, part.offset, part.size), chunk, buffer)?;
    Ok((!is_zero(bytes)).then(|| Digest::of(bytes)))
}

impl PartitionCheck {
    fn finding(&self, offset: u64, length: u64, reason: impl Into<String>) -> Finding {
        Finding { partition: self.name.clone(), offset, length: length.min(self.size - offset), reason: reason.into() }
    }

    /// A record comes from a file, so its numbers are checked before they are added up.
    fn validate(&self, size: u64) -> Result<()> {
        let within = |offset: u64, count: u64, unit: u64, limit: u64| {
            count.checked_mul(unit).and_then(|len| len.checked_add(offset)).is_some_and(|end| end <= limit)
        };
        let tree = |v: &VerityCheck| within(0, v.data_blocks, BLOCK, self.size) && within(v.hashes, v.data_blocks, HASH, size);
        if !within(self.offset, self.size, 1, size) || !self.verity.as_ref().is_none_or(tree) {
            return Err(Error::input(format!("reading the record of {}: it is outside the disk of {size} bytes", self.name)));
        }
        Ok(())
    }

    fn compare(&self, disk: &dyn ReadAt) -> Result<Vec<Finding>> {
        let chunks: BTreeSet<u64> = listed(disk, self)?.into_iter().chain(self.chunks.keys().copied()).collect();
        let chunks: Vec<_> = chunks.into_iter().filter(|chunk| chunk.saturating_mul(CHUNK) < self.size).collect();
        let one = |buffer: &mut Vec<u8>, chunk: u64| {
            let reason = match (digest(disk, self, chunk, buffer), self.chunks.get(&chunk)) {
                (Ok(found), recorded) if found.as_ref() == recorded => return None,
                (Ok(None), _) => "it is empty".to_string(),
                (Ok(_), None) => "it should be empty".to_string(),
                (Ok(_), Some(_)) => "its digest differs from the record".to_string(),
                (Err(e), _) => cause(&e),
            };
            Some(self.finding(chunk * CHUNK, CHUNK, reason))
        };
        Ok(chunks.into_par_iter().map_init(buffer, one).flatten().collect())
    }

    /// Hashes the data blocks; those whose hashes lie in a damaged chunk cannot be judged and are passed over.
    fn compare_verity(&self, disk: &dyn ReadAt, damaged: &BTreeSet<u64>) -> Result<Vec<Finding>> {
        let Some(verity) = &self.verity else { return Ok(Vec::new()) };
        let salt =
            hex::decode(&verity.salt).map_err(|_| Error::input(format!("reading the record of {}: `{}` is no salt", self.name, verity.salt)))?;
        let groups = verity.data_blocks.div_ceil(BLOCKS_AT_ONCE);
        let seeded = Sha256::new_with_prefix(&salt);
        let one = |buffer: &mut Vec<u8>, group: u64| self.compare_group(disk, verity, &seeded, group, buffer, damaged);
        Ok((0..groups).into_par_iter().map_init(|| vec![0; (BLOCKS_AT_ONCE * (BLOCK + HASH)) as usize], one).flatten().collect())
    }

    fn compare_group(
        &self,
        disk: &dyn ReadAt,
        verity: &VerityCheck,
        seeded: &Sha256,
        group: u64,
        buffer: &mut [u8],
        damaged: &BTreeSet<u64>,
    ) -> Vec<Finding> {
        let first = group * BLOCKS_AT_ONCE;
        let count = (verity.data_blocks - first).min(BLOCKS_AT_ONCE);
        let (data, hashes) = buffer.split_at_mut((BLOCKS_AT_ONCE * BLOCK) as usize);
        let (data, hashes) = (&mut data[..(count * BLOCK) as usize], &mut hashes[..(count * HASH) as usize]);
        let hashes_at = verity.hashes + first * HASH;
        if damaged.range(hashes_at.saturating_sub(CHUNK - 1)..hashes_at + count * HASH).next().is_some() {
            return Vec::new();
        }
        if disk.read_at(hashes, hashes_at).is_err() {
            return vec![self.finding(first * BLOCK, count * BLOCK, "its hashes cannot be read")];
        }
        if disk.read_at(data, self.offset + first * BLOCK).is_err() {
            return self.unreadable(disk, first, count);
        }
        let pairs = (first..).zip(data.chunks_exact(BLOCK as usize).zip(hashes.chunks_exact(HASH as usize)));
        let wrong = pairs.filter(|(_, (data, hash))| seeded.clone().chain_update(data).finalize()[..] != **hash);
        wrong.map(|(block, _)| self.finding(block * BLOCK, BLOCK, "its hash differs from the tree")).collect()
    }

    fn unreadable(&self, disk: &dyn ReadAt, first: u64, count: u64) -> Vec<Finding> {
        let mut block = [0; BLOCK as usize];
        let errors = (first..first + count).filter_map(|n| disk.read_at(&mut block, self.offset + n * BLOCK).err().map(|e| (n, e)));
        errors.map(|(n, e)| self.finding(n * BLOCK, BLOCK, cause(&e))).collect()
    }
}

/// Digests of an artifact's own bytes, for formats in which a changed byte need not show on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCheck {
    /// Size of the file in bytes.
    pub size: u64,
    /// Digests of its chunks of 64 KiB.
    pub chunks: Vec<Digest>,
}

impl FileCheck {
    /// Records a file.
    pub fn of(path: &Path) -> Result<Self> {
        let file = FileAt::open(path)?;
        let numbers = 0..file.len().div_ceil(CHUNK);
        let one = |buffer: &mut Vec<u8>, number| Ok(Digest::of(read_block(&file, number, buffer)?));
        Ok(Self { size: file.len(), chunks: numbers.into_par_iter().map_init(buffer, one).collect::<Result<_>>()? })
    }

    fn compare(&self, path: &Path) -> Result<Vec<Finding>> {
        let found = Self::of(path)?;
        let finding = |offset, length, reason: String| Finding { partition: "file".into(), offset, length, reason };
        let size = (found.size != self.size)
            .then(|| finding(found.size.min(self.size), 0, format!("it has {} bytes, its record says {}", found.size, self.size)));
        let wrong = (0..).zip(found.chunks.iter().zip(&self.chunks)).filter(|(_, (a, b))| a != b);
        let wrong = wrong.map(|(n, _)| finding(n * CHUNK, CHUNK.min(found.size - n * CHUNK), "its digest differs from the record".into()));
        Ok(size.into_iter().chain(joined(wrong)).collect())
    }
}

/// Compares an artifact with the record of its disk and, for compressed formats, of the file; nothing found means nothing changed.
pub fn verify(path: &Path, disk: &Check, file: Option<&FileCheck>) -> Result<Vec<Finding>> {
    let mut out = file.map(|file| file.compare(path)).transpose()?.unwrap_or_default();
    match emit::open(path).and_then(|(_, found)| disk.compare(found.as_ref())) {
        Ok(found) => out.extend(found),
        // What cannot be opened has been found to differ already.
        Err(_) if !out.is_empty() => {}
        Err(e) => return Err(e).context(|| format!("verifying {}", path.display())),
    }
    Ok(out)
}
