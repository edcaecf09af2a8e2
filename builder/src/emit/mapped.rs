//! What readers of formats share that keep a disk as blocks of one size, found through tables.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use layers::{Context, Error, Result};

use crate::disk::ReadAt;

/// A disk in blocks of one size; being one is enough to be read at any place.
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

impl<T: Mapped + Send + Sync + Debug> ReadAt for T {
    fn len(&self) -> u64 {
        self.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(Error::input(format!("reading {} bytes at {offset} of a {} disk of {}", buffer.len(), T::NAME, self.size())));
        }
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (number, from) = (at / self.block(), at % self.block());
            let (part, behind) = rest.split_at_mut((self.block() - from).min(rest.len() as u64) as usize);
            let next = at + part.len() as u64;
            self.read_within(number, from, part).context(|| format!("reading the disk at {at}"))?;
            (rest, at) = (behind, next);
        }
        Ok(())
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        for number in self.tabled().take_while(|number| number * self.block() < self.size()) {
            if self.is_zero(number)? {
                continue;
            }
            let (start, end) = (number * self.block(), ((number + 1) * self.block()).min(self.size()));
            match out.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => out.push(start..end),
            }
        }
        Ok(out)
    }
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
