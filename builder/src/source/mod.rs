//! Sources: where an image's parts come from. Each locks to a digest and fills the store with verified blobs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use layers::Result;

pub mod chart;
pub mod deb;
pub mod go;
pub mod oci;
pub mod url;

pub use firstboot::remote::{auth, http};

/// Transfers at a time.
const CONNECTIONS: usize = 8;

/// Does a transfer for each item, several at a time; stops at the first error.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let serve = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| (0..CONNECTIONS.min(items.len())).for_each(|_| drop(scope.spawn(serve))));
    failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}
