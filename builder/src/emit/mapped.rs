//! What readers of formats share that keep a disk as blocks of one size, found through tables.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    state: Mutex<State<T>>,
}

/// Values with the number of the call that asked for them last.
#[derive(Debug)]
struct State<T> {
    calls: u64,
    values: BTreeMap<u64, (u64, Arc<T>)>,
}

impl<T> Kept<T> {
    /// Keeps this many at most.
    pub fn new(most: usize) -> Self {
        Self { most, state: Mutex::new(State { calls: 0, values: BTreeMap::new() }) }
    }

    /// The value of a key, read if it is not kept. The one that nobody asked for the longest makes room: whoever goes through a disk comes
    /// back to tables at its start.
    pub fn get(&self, key: u64, read: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let Some(value) = self.lock().known(key) {
            return Ok(value);
        }
        let value = Arc::new(read()?);
        self.lock().put(key, value.clone(), self.most);
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn known(&mut self, key: u64) -> Option<Arc<T>> {
        self.calls += 1;
        let (call, value) = self.values.get_mut(&key)?;
        *call = self.calls;
        Some(value.clone())
    }

    fn put(&mut self, key: u64, value: Arc<T>, most: usize) {
        if self.values.len() >= most {
            let oldest = self.values.iter().min_by_key(|(_, (call, _))| *call).map(|(key, _)| *key);
            oldest.map(|key| self.values.remove(&key));
        }
        self.values.insert(key, (self.calls, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_again_and_again_is_kept() {
        let kept = Kept::new(3);
        let mut reads = Vec::new();
        for key in [0, 1, 0, 2, 0, 3, 0, 4, 3, 0] {
            let value = kept.get(key, || {
                reads.push(key);
                Ok(key * 10)
            });
            assert_eq!(*value.unwrap(), key * 10);
        }
        assert_eq!(reads, [0, 1, 2, 3, 4]);
    }
}
