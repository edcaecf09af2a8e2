//! Reads the disk that a medium of ours carries.

use std::sync::Arc;

use hadris_fs::sync::FileSystem as _;
use hadris_fs::{Extent, MountOptions, Name};
use hadris_iso::sync::IsoFs;
use layers::{Context, Error, Fault, Result};

use super::DISK;
use crate::disk::file::Window;
use crate::disk::{Disk, ReadAt};
use crate::emit::frames;
use crate::fs::device::Device;

/// Size of a block in bytes.
const BLOCK: u64 = 2048;
/// Most pieces that a file is in.
const PIECES: usize = 64;

/// The disk inside a medium.
pub fn open(file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
    let reading = || format!("reading /{DISK} of the medium");
    check_end(file.as_ref())?;
    let mut iso = IsoFs::mount(Device { disk: file.as_ref(), file: None }, MountOptions::new().read_only())
        .map_err(|e| Error::input(format!("reading the ISO 9660 file system: {e}")))?;
    let mut node = iso.root();
    for name in DISK.split('/') {
        node =
            iso.lookup(node, Name::new(name)).fault(Fault::Input, reading).map_err(|e| e.with_hint("only media that chasi-bod made carry a disk"))?;
    }
    let mut pieces = vec![Extent::new(0, 0); PIECES];
    let found = iso.extents(node, 0, &mut pieces).fault(Fault::Input, reading)?;
    drop(iso);
    let mut packed = Disk::new(pieces[..found].iter().map(Extent::len).sum());
    let mut at = 0;
    for piece in &pieces[..found] {
        packed.put(at, Arc::new(Window::new(file.clone(), piece.offset(), piece.len())))?;
        at += piece.len();
    }
    Ok(Arc::new(frames::Reader::open(Arc::new(packed))?))
}

/// Refuses a medium that ends before the size in its volume descriptor (ECMA-119, 8.4.8), as what is missing need not be what is read.
fn check_end(file: &dyn ReadAt) -> Result<()> {
    let mut blocks = [0; 4];
    file.read_at(&mut blocks, 16 * BLOCK + 80)?;
    let size = u64::from(u32::from_le_bytes(blocks)) * BLOCK;
    if size > file.len() {
        return Err(Error::input(format!("the medium is cut off: it has {} bytes and should have {size}", file.len())));
    }
    Ok(())
}
