//! Reads the disk that a medium of ours carries.

use std::sync::Arc;

use hadris_fs::sync::FileSystem as _;
use hadris_fs::{Extent, MountOptions, Name};
use hadris_iso::sync::IsoFs;
use layers::medium::{DISK, PLACES, places};
use layers::{Context, Error, Fault, Result};

use crate::disk::file::Window;
use crate::disk::{Disk, ReadAt};
use crate::emit::frames;
use crate::fs::device::Device;

/// Size of a block in bytes.
const BLOCK: u64 = 2048;
/// Most pieces that a file is in.
const PIECES: usize = 64;
/// Most that the list of places has, in bytes.
const MOST: u64 = 4096;

/// The disk inside a medium: what is packed, with the medium's files in their places.
pub fn open(file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
    check_end(file.as_ref())?;
    let device = Device { disk: file.as_ref(), file: None };
    let mut iso =
        IsoFs::mount(device, MountOptions::new().read_only()).map_err(|e| Error::input(format!("reading the ISO 9660 file system: {e}")))?;
    let mut find = |path: &str| find(&mut iso, &file, path);
    let packed = find(DISK)?;
    let text = find(PLACES)?;
    if text.len() > MOST {
        return Err(Error::input(format!("reading /{PLACES} of the medium: it has {} bytes", text.len())));
    }
    let mut bytes = vec![0; text.len() as usize];
    text.read_at(&mut bytes, 0)?;
    let rest: Arc<dyn ReadAt> = Arc::new(frames::Reader::open(packed)?);
    let mut disk = Disk::new(rest.len());
    let mut at = 0;
    for (offset, path) in places(&String::from_utf8_lossy(&bytes))? {
        let content = find(&path)?;
        let end = offset.checked_add(content.len()).filter(|end| at <= offset && *end <= rest.len());
        let end = end.ok_or_else(|| Error::input(format!("reading /{PLACES} of the medium: {path} at {offset} lies over another one or the end")))?;
        disk.put(at, Arc::new(Window::new(rest.clone(), at, offset - at)))?;
        disk.put(offset, content)?;
        at = end;
    }
    disk.put(at, Arc::new(Window::new(rest.clone(), at, rest.len() - at)))?;
    Ok(Arc::new(disk))
}

/// A file of the medium.
fn find(iso: &mut IsoFs<Device<'_>>, medium: &Arc<dyn ReadAt>, path: &str) -> Result<Arc<dyn ReadAt>> {
    let reading = || format!("reading /{path} of the medium");
    let mut node = iso.root();
    for name in path.split('/') {
        node =
            iso.lookup(node, Name::new(name)).fault(Fault::Input, reading).map_err(|e| e.with_hint("only media that chasi-bod made carry a disk"))?;
    }
    let mut pieces = vec![Extent::new(0, 0); PIECES];
    let found = iso.extents(node, 0, &mut pieces).fault(Fault::Input, reading)?;
    let mut file = Disk::new(pieces[..found].iter().map(Extent::len).sum());
    let mut at = 0;
    for piece in &pieces[..found] {
        file.put(at, Arc::new(Window::new(medium.clone(), piece.offset(), piece.len())))?;
        at += piece.len();
    }
    Ok(Arc::new(file))
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
