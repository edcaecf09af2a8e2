//! Reads the first disk of an archive, ours or foreign.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::{Context, Error, Result};

use super::format::{BLOBS, BLOCK, CLUSTER, DEVICES, Extent, HEADER_SIZE, MAGIC, SLOTS, be32, be64, is_sealed};
use crate::disk::ReadAt;
use crate::emit::mapped::Mapped;

/// Most bytes of a header: a full blob buffer of all configuration files, each of 64 KiB at most.
const LARGEST: u64 = 64 << 20;

/// The disk inside an archive.
#[derive(Debug)]
pub struct Reader {
    file: Arc<dyn ReadAt>,
    size: u64,
    /// Where the blocks of each cluster begin, and which of them there are.
    clusters: Vec<(u64, u16)>,
}

impl Reader {
    /// Reads header and extents.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let header = header(file.as_ref()).context(|| "reading the VMA header".into())?;
        let (device, size) = first_disk(&header)?;
        let count = size.div_ceil(CLUSTER);
        // Only what is read takes memory: a small file may tell of a large disk.
        let mut clusters = BTreeMap::new();
        let mut at = header.len() as u64;
        while at < file.len() {
            let extent = extent_at(file.as_ref(), at, &header[8..24]).context(|| format!("reading the VMA extent at {at}"))?;
            let mut place = at + HEADER_SIZE;
            for entry in &extent.entries {
                let number = u64::from(entry.cluster);
                if entry.device == device && number >= count {
                    return Err(Error::input(format!("reading the VMA extent at {at}: cluster {number} is behind the disk's end")));
                }
                if entry.device == device {
                    clusters.insert(number, (place, entry.mask));
                }
                place += u64::from(entry.mask.count_ones()) * BLOCK;
            }
            at = place;
        }
        if (clusters.len() as u64) < count {
            let missing = (0..count).find(|number| !clusters.contains_key(number)).unwrap_or_default();
            return Err(Error::input(format!("reading the VMA: cluster {missing} is missing, the archive is cut")));
        }
        Ok(Self { file, size, clusters: clusters.into_values().collect() })
    }
}

fn header(file: &dyn ReadAt) -> Result<Vec<u8>> {
    let short = || Error::input(format!("{} bytes are less than one", file.len()));
    let mut header = vec![0; BLOBS];
    if file.len() < header.len() as u64 {
        return Err(short());
    }
    file.read_at(&mut header, 0)?;
    let (version, size) = (be32(&header, 4), u64::from(be32(&header, 56)));
    if header[..4] != MAGIC || version != 1 {
        return Err(Error::input(format!("version {version} is not known")));
    }
    if size < BLOBS as u64 || size > LARGEST.min(file.len()) {
        return Err(Error::input(format!("it cannot have {size} bytes")));
    }
    header.resize(size as usize, 0);
    file.read_at(&mut header, 0)?;
    if !is_sealed(&header, 32) {
        return Err(Error::input("its checksum is wrong"));
    }
    Ok(header)
}

/// Number and size of the first device that is no memory of a running machine.
fn first_disk(header: &[u8]) -> Result<(u8, u64)> {
    let blobs = header.get(be32(header, 48) as usize..).unwrap_or_default();
    let is_memory = |name: usize| blobs.get(name + 2..).is_some_and(|name| name.starts_with(b"vmstate\0"));
    let device = |number: usize| {
        let at = DEVICES + number * 32;
        (number as u8, be32(header, at) as usize, be64(header, at + 8))
    };
    let found = (1..SLOTS).map(device).find(|(_, name, size)| *size > 0 && !is_memory(*name));
    found.map(|(number, _, size)| (number, size)).ok_or_else(|| Error::input("reading the VMA header: it has no disk"))
}

fn extent_at(file: &dyn ReadAt, at: u64, uuid: &[u8]) -> Result<Extent> {
    let mut bytes = [0; HEADER_SIZE as usize];
    let cut = || Error::input("it is cut");
    if at + HEADER_SIZE > file.len() {
        return Err(cut());
    }
    file.read_at(&mut bytes, at)?;
    let extent = Extent::from_bytes(&bytes, uuid)?;
    if at + HEADER_SIZE + extent.blocks() * BLOCK > file.len() {
        return Err(cut());
    }
    Ok(extent)
}

impl Mapped for Reader {
    const NAME: &str = "VMA";

    fn block(&self) -> u64 {
        CLUSTER
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn tabled(&self) -> impl Iterator<Item = u64> {
        0..self.clusters.len() as u64
    }

    fn is_zero(&self, number: u64) -> Result<bool> {
        Ok(self.clusters[number as usize].1 == 0)
    }

    fn read_within(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (place, mask) = self.clusters[number as usize];
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (bit, from) = (at / BLOCK, at % BLOCK);
            let (part, behind) = rest.split_at_mut((BLOCK - from).min(rest.len() as u64) as usize);
            if mask >> bit & 1 == 1 {
                let before = u64::from((mask & ((1 << bit) - 1)).count_ones());
                self.file.read_at(part, place + before * BLOCK + from)?;
            } else {
                part.fill(0);
            }
            (at, rest) = (at + part.len() as u64, behind);
        }
        Ok(())
    }
}
