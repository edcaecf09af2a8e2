//! Blocks of a disk that are packed by all cores in batches and placed by one thread in the order of the disk, so that the bytes do not depend on
//! the number of cores and memory stays bounded.

use std::sync::mpsc::{Receiver, sync_channel};

use layers::{Error, Result};
use rayon::prelude::*;

use crate::disk::{ReadAt, blocks, read_block};

/// Bytes of the disk in one batch.
const BATCH: u64 = 16 << 20;
/// Bytes that one core takes at a time.
const PIECE: u64 = 1 << 20;

/// Batches of block numbers and what became of the blocks.
pub type Packed<T> = Receiver<Vec<(u64, T)>>;

/// Packs each block of `unit` bytes that may hold other bytes than zero and hands all to `place`, which says what comes of it. A block at the disk's end
/// is filled up with zeros. `start` makes what one core needs for its work; `one` gets number and bytes.
pub fn pack<S, T: Send, R: Send>(
    disk: &dyn ReadAt,
    unit: u64,
    start: impl Fn() -> Result<S> + Sync,
    one: impl Fn(&mut S, u64, &[u8]) -> Result<T> + Sync,
    place: impl FnOnce(Packed<T>) -> Result<R> + Send,
) -> Result<R> {
    let numbers = blocks(disk, unit)?;
    let init = || (start(), vec![0; unit as usize]);
    let each = |(state, buffer): &mut (Result<S>, Vec<u8>), number: &u64| {
        let state = state.as_mut().map_err(|error| Error::internal(error.to_string()))?;
        buffer.fill(0);
        read_block(disk, *number, buffer)?;
        Ok((*number, one(state, *number, buffer)?))
    };
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let placed = scope.spawn(move || place(receiver));
        let packed = numbers.chunks((BATCH / unit) as usize).try_for_each(|batch| {
            let batch: Result<Vec<_>> = batch.par_iter().with_min_len((PIECE / unit) as usize).map_init(init, each).collect();
            // A closed channel means that placing has failed; its own error says why.
            sender.send(batch?).map_err(|_| Error::internal("handing blocks to the writer"))
        });
        drop(sender);
        let placed = placed.join().map_err(|_| Error::internal("writing blocks: the writer panicked"))?;
        placed.and_then(|placed| packed.map(|()| placed))
    })
}
