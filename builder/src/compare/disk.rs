//! The level of the disk: its tables, boot code, the files of boot partitions, and the bytes of all partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use layers::units::Bytes;
use layers::{Context, Result};
use rayon::prelude::*;

use super::Side;
use super::change::{Change, Facts, How, Item, between};
use crate::disk::ReadAt;
use crate::disk::file::Window;
use crate::fs::fat;
use crate::inspect::{Content, Partition, boot};
use crate::progress::Progress;

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
/// Bytes by which differences are counted.
const UNIT: usize = 4096;

/// What comparing two disks came to.
pub struct Found {
    /// The differences.
    pub changes: Vec<Change>,
    /// How many things are the same.
    pub same: usize,
    /// True when both disks have the same partitions with the same bytes, so that nothing inside can differ.
    pub equal_bytes: bool,
}

/// Compares two disks; formats, and times of boot files, are no difference of their own.
pub fn compare(a: &Side, b: &Side, progress: &Progress) -> Result<Found> {
    let comparing = || format!("comparing {} and {}", a.shown, b.shown);
    let (mut changes, mut same) = between(items(a)?, items(b)?);
    let (left, right) = (by_name(a), by_name(b));
    let pairs = left.iter().filter_map(|(name, p)| Some((name, *p, *right.get(name)?)));
    // Once for each disk: packed ones unpack all of it to tell.
    let (here, there) = (a.image.disk.data().context(comparing)?, b.image.disk.data().context(comparing)?);
    let filled = |p: &Partition, q: &Partition| chunks(&here, p).chain(chunks(&there, q)).collect::<BTreeSet<u64>>();
    let pairs: Vec<_> = pairs.map(|(name, p, q)| (name, p, q, filled(p, q))).collect();
    let mut equal_bytes = pairs.len() == left.len() && pairs.len() == right.len();
    progress.start("comparing partitions", pairs.len() as u64, pairs.iter().map(|(.., chunks)| 2 * CHUNK * chunks.len() as u64).sum());
    let found = pairs.into_iter().map(|(name, p, q, chunks)| {
        let bytes = differing(&window(a, p), &window(b, q), chunks, progress);
        progress.finish_file();
        Ok((name, p.size.max(q.size), bytes.context(|| format!("comparing partition {name} of {} and {}", a.shown, b.shown))?))
    });
    let found = found.collect::<Result<Vec<_>>>();
    progress.finish();
    for (name, size, bytes) in found?.into_iter().filter(|(.., bytes)| *bytes > 0) {
        equal_bytes = false;
        same -= note(&mut changes, name, format!("{} of {size} differ", Bytes(bytes)));
    }
    changes.sort_by(|x, y| (x.what, &x.name).cmp(&(y.what, &y.name)));
    Ok(Found { changes, same, equal_bytes })
}

/// Adds to what is known of a partition that its bytes differ; returns how many partitions are no longer the same by that.
fn note(changes: &mut Vec<Change>, name: &str, text: String) -> usize {
    if let Some(known) = changes.iter_mut().find(|c| c.what == "partition" && c.name == name) {
        known.note = Some(text);
        return 0;
    }
    changes.push(Change { change: How::Changed, what: "partition", name: name.into(), facts: Vec::new(), note: Some(text), of: None });
    1
}

/// Partitions by name; by number where there is no name or another one has it too.
fn by_name(side: &Side) -> BTreeMap<String, &Partition> {
    let all = &side.image.report.partitions;
    let is_alone = |p: &Partition| !p.name.is_empty() && all.iter().filter(|q| q.name == p.name).count() == 1;
    all.iter().map(|p| (if is_alone(p) { p.name.clone() } else { p.number.to_string() }, p)).collect()
}

fn window<'a>(side: &'a Side, partition: &Partition) -> Window<&'a dyn ReadAt> {
    Window::new(side.image.disk.as_ref(), partition.offset, partition.size.0)
}

fn items(side: &Side) -> Result<Vec<Item>> {
    let report = &side.image.report;
    let fact = |name: &str, value: String| (name.to_string(), value);
    let mut table = vec![fact("size", report.size.to_string()), fact("guid", report.uuid.to_string())];
    table.extend(report.damaged_table.iter().map(|(copy, why)| fact("damaged", format!("{copy:?}: {why}"))));
    let mut out = vec![Item { what: "disk", name: "table".into(), facts: table }];
    if let Some((starter, digest)) = boot::boot_code(side.image.disk.as_ref())? {
        out.push(Item { what: "loader", name: starter.place, facts: vec![fact("version", starter.name), fact("sha256", digest.to_string())] });
    }
    let slots = report.slots.iter();
    out.extend(slots.map(|s| Item { what: "slot", name: s.slot.letter().to_string(), facts: vec![fact("boot.cfg", s.boot_cfg.clone())] }));
    for (name, partition) in by_name(side) {
        if let Content::Fat { files, .. } = &partition.content {
            out.extend(boot_files(side, &name, partition, files)?);
        }
        out.push(Item { what: "partition", name, facts: facts(partition) });
    }
    Ok(out)
}

fn facts(p: &Partition) -> Facts {
    let all = [
        ("holds", p.content.to_string()),
        ("size", p.size.to_string()),
        ("type", p.kind.clone()),
        ("number", p.number.to_string()),
        ("offset", p.offset.to_string()),
        ("name", p.name.clone()),
        ("guid", p.uuid.to_string()),
    ];
    all.map(|(name, value)| (name.to_string(), value)).into()
}

fn boot_files(side: &Side, name: &str, partition: &Partition, files: &[fat::Listed]) -> Result<Vec<Item>> {
    let part = window(side, partition);
    let one = |file: &fat::Listed| -> Result<Item> {
        let mut facts = Facts::new();
        if let Some(size) = file.size {
            let starter = side.image.report.starters.iter().find(|s| s.place == file.path);
            facts.extend(starter.map(|s| ("version".to_string(), s.name.clone())));
            facts.push(("size".into(), size.to_string()));
            facts.push(("sha256".into(), fat::digest(&part, &file.path)?.to_string()));
        }
        Ok(Item { what: "boot file", name: format!("{name}:/{}", file.path), facts })
    };
    files.iter().map(|file| one(file).context(|| format!("reading {name} of {}", side.shown))).collect()
}

/// Numbers of a partition's chunks in which its disk may hold something.
fn chunks(data: &[Range<u64>], partition: &Partition) -> impl Iterator<Item = u64> {
    let (from, to) = (partition.offset, partition.offset + partition.size.0);
    let parts = data.iter().map(move |r| r.start.max(from)..r.end.min(to)).filter(|r| r.start < r.end);
    parts.flat_map(move |r| (r.start - from) / CHUNK..(r.end - from).div_ceil(CHUNK))
}

/// Bytes of the blocks that differ in these chunks; behind the end of the shorter side there are zeros.
fn differing(a: &dyn ReadAt, b: &dyn ReadAt, chunks: BTreeSet<u64>, progress: &Progress) -> Result<u64> {
    let buffers = || (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let one = |(x, y): &mut (Vec<u8>, Vec<u8>), chunk: u64| {
        fill(a, chunk, x)?;
        fill(b, chunk, y)?;
        progress.advance(2 * CHUNK);
        let wrong = x.chunks(UNIT).zip(y.chunks(UNIT)).filter(|(p, q)| p != q).count();
        Ok((wrong * UNIT) as u64)
    };
    let counts: Vec<u64> = Vec::from_iter(chunks).into_par_iter().map_init(buffers, |buffers, chunk| one(buffers, chunk)).collect::<Result<_>>()?;
    Ok(counts.into_iter().sum())
}

/// Reads a chunk and puts zeros where there is none.
fn fill(disk: &dyn ReadAt, chunk: u64, buffer: &mut [u8]) -> Result<()> {
    let start = chunk * CHUNK;
    let length = disk.len().saturating_sub(start).min(CHUNK) as usize;
    buffer[length..].fill(0);
    if length > 0 { disk.read_at(&mut buffer[..length], start) } else { Ok(()) }
}
