//! A file as [`ReadAt`]: holes of a sparse file are known and never read.

use std::fmt::Debug;
use std::fs::File;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;

use layers::{Context, Result};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::ReadAt;

/// An open file of a fixed length.
#[derive(Debug)]
pub struct FileAt {
    file: File,
    len: u64,
    name: String,
}

impl FileAt {
    /// Opens a file for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context(|| format!("opening {}", path.display()))?;
        Self::new(file, path.display().to_string())
    }

    /// Takes an open file; `name` is what errors call it.
    pub fn new(file: File, name: String) -> Result<Self> {
        let len = rustix::fs::seek(&file, SeekFrom::End(0)).context(|| format!("measuring {name}"))?;
        Ok(Self { file, len, name })
    }
}

impl ReadAt for FileAt {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).context(|| format!("reading {} bytes at {offset} of {}", buffer.len(), self.name))
    }

    /// What the file system says; one that knows no holes answers with the whole file.
    fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < self.len {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                // Block devices know no holes.
                Err(Errno::INVAL) => return Ok(std::iter::once(0..self.len).collect()),
                Err(e) => return Err(e).context(|| format!("looking for data in {}", self.name)),
            };
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).context(|| format!("looking for holes in {}", self.name))?;
            out.push(start..end.min(self.len));
            at = end;
        }
        Ok(out)
    }
}

/// A part of something readable, borrowed or shared, from `start` on.
#[derive(Clone, Debug)]
pub struct Window<R> {
    inner: R,
    start: u64,
    len: u64,
}

impl<R: Deref<Target: ReadAt>> Window<R> {
    /// The part; it is cut at the end of what it is a part of.
    pub fn new(inner: R, start: u64, len: u64) -> Self {
        let start = start.min(inner.len());
        let len = len.min(inner.len() - start);
        Self { inner, start, len }
    }
}

impl<R: Deref<Target: ReadAt> + Send + Sync + Debug> ReadAt for Window<R> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(layers::Error::input(format!("reading {} bytes at {offset}: only {} are there", buffer.len(), self.len)));
        }
        self.inner.read_at(buffer, self.start + offset)
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        let (from, to) = (self.start, self.start + self.len);
        let parts = self.inner.data()?.into_iter().map(|r| r.start.max(from)..r.end.min(to)).filter(|r| r.start < r.end);
        Ok(parts.map(|r| r.start - from..r.end - from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_knows_its_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"x", 512 << 10).unwrap();
        let at = FileAt::new(file, "test".into()).unwrap();
        let data = at.data().unwrap();
        assert!(data.iter().any(|r| r.contains(&(512 << 10))) && data.iter().map(|r| r.end - r.start).sum::<u64>() < 1 << 20, "{data:?}");
        let window = Window::new(&at, 512 << 10, 2);
        let mut two = [9; 2];
        window.read_at(&mut two, 0).unwrap();
        assert_eq!((two, window.read_at(&mut two, 1).is_err()), ([b'x', 0], true));
    }
}
