//! Tar archives of a few files beside each other (POSIX ustar), as OVA and PXE have them.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use layers::{Context, Error, Fault, Result};

use crate::disk::ReadAt;

/// Bytes of a header and of what all else is filled up to.
pub const BLOCK: u64 = 512;
/// Most files that are read.
const MOST_FILES: usize = 256;

/// The header of a plain file of root's.
pub fn header(name: &str, size: u64, epoch: i64) -> Result<[u8; BLOCK as usize]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|e| Error::internal(format!("naming {name} in the archive: {e}")))?;
    header.set_mode(0o644);
    // Beyond 8 GiB this is a binary number, which GNU tar and importers read.
    header.set_size(size);
    header.set_mtime(epoch.max(0) as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Where each file is. Names are those of files beside each other, nothing that could lead elsewhere.
pub fn files(file: &Arc<dyn ReadAt>) -> Result<BTreeMap<String, Range<u64>>> {
    let reading = || "reading the archive".to_string();
    let mut archive = tar::Archive::new(Cursor { inner: file.clone(), at: 0 });
    let mut out = BTreeMap::new();
    for entry in archive.entries_with_seek().fault(Fault::Input, reading)? {
        let entry = entry.fault(Fault::Input, reading)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refused = |why: &str| Err(Error::input(format!("`{}` {why}", name.escape_debug())));
        if name.is_empty() || name == ".." || name.contains(['/', '\\', '\0']) {
            return refused("is not the name of a file beside the others");
        }
        if !entry.header().entry_type().is_file() {
            return refused("is not a plain file");
        }
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > file.len()) {
            return refused("is cut");
        }
        if out.insert(name.clone(), start..start + size).is_some() {
            return refused("is there twice");
        }
        if out.len() > MOST_FILES {
            return refused("is one file too many");
        }
    }
    Ok(out)
}

/// What the tar crate reads from.
struct Cursor {
    inner: Arc<dyn ReadAt>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.len().saturating_sub(self.at).min(buffer.len() as u64) as usize;
        self.inner.read_at(&mut buffer[..len], self.at).map_err(|e| io::Error::other(e.to_string()))?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.inner.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
