//! What readers of formats share that keep a disk as blocks of one size, found through tables.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use layers::{Context, Error, Result};

/// A disk in blocks of one size.
pub trait Mapped {
    /// What its errors call it.
    const NAME: &str;
    /// Bytes of a block.
    fn block(&self) -> u64;
    /// Bytes of the disk.
    fn size(&self) -> u64;
    /// Numbers of blocks that there are tables of, in order; the last ones may lie behind the disk's end.
    fn tabled(&self) -> impl Iterator<Item = u64>;
    /// Whether a block of this number reads as zeros.
    fn is_zero(&self, number: u64) -> Result<bool>;
    /// Reads a part of a block from `offset` within it.
    fn read_within(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// `ReadAt::read_at` of such a disk.
pub fn read_at<T: Mapped>(disk: &T, buffer: &mut [u8], offset: u64) -> Result<()> {
    if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > disk.size()) {
        return Err(Error::input(format!("reading {} bytes at {offset} of a {} disk of {}", buffer.len(), T::NAME, disk.size())));
    }
    let (mut rest, mut at) = (buffer, offset);
    while !rest.is_empty() {
        let (number, from) = (at / disk.block(), at % disk.block());
        let (part, behind) = rest.split_at_mut((disk.block() - from).min(rest.len() as u64) as usize);
        at += part.len() as u64;
        disk.read_within(number, from, part).context(|| format!("reading the disk at {}", number * disk.block() + from))?;
        rest = behind;
    }
    Ok(())
}

/// `ReadAt::data` of such a disk.
pub fn data<T: Mapped>(disk: &T) -> Result<Vec<Range<u64>>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for number in disk.tabled().take_while(|number| number * disk.block() < disk.size()) {
        if disk.is_zero(number)? {
            continue;
        }
        let (start, end) = (number * disk.block(), ((number + 1) * disk.block()).min(disk.size()));
        match out.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => out.push(start..end),
        }
    }
    Ok(out)
}

/// Some of what was read, as reading it again is dear.
#[derive(Debug)]
pub struct Kept<T> {
    most: usize,
    values: Mutex<BTreeMap<u64, Arc<T>>>,
}

impl<T> Kept<T> {
    /// Keeps this many at most.
    pub fn new(most: usize) -> Self {
        Self { most, values: Mutex::default() }
    }

    /// The value of a key, read if it is not kept.
    pub fn get(&self, key: u64, read: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let values = || self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values().get(&key) {
            return Ok(value.clone());
        }
        let value = Arc::new(read()?);
        let mut values = values();
        if values.len() >= self.most {
            values.pop_first();
        }
        values.insert(key, value.clone());
        Ok(value)
    }
}

/// A little-endian number of 32 bits.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

/// A little-endian number of 64 bits.
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
