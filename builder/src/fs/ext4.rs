//! Reads ext4 file systems by crate `ext4-view`, journal included: roots that others made, and the state of a node. Extended attributes, device nodes
//! and sockets are not told, as the crate does not read them; nor are hard links, whose names count as files of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, Metadata, PathBuf};
use layers::{Context, Error, Fault, Result};

use super::erofs::{Entry, What};
use super::{ENTRY_COST, Files, LISTING_MAX};
use crate::disk::ReadAt;
use crate::tree::TreePath;

/// Longest path, as Linux has it.
const PATH_MAX: usize = 4096;

/// An opened file system with its whole listing.
#[derive(Debug)]
pub struct Reader {
    source: Arc<dyn ReadAt>,
    entries: BTreeMap<TreePath, Entry>,
}

/// What the crate reads from.
struct Source(Arc<dyn ReadAt>);

impl Ext4Read for Source {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.0.len());
        end.ok_or_else(|| format!("{} bytes at {offset} are beyond its end", buffer.len()))?;
        Ok(self.0.read_at(buffer, offset).map_err(|e| e.to_string())?)
    }
}

impl Reader {
    /// Opens a file system and reads all of its names; anything malformed is an input error.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self> {
        let fs = load(&source)?;
        let (mut entries, mut budget) = (BTreeMap::new(), LISTING_MAX);
        let mut todo = vec![(TreePath::root(), fs.symlink_metadata("/").map_err(at(&TreePath::root()))?)];
        while let Some((path, metadata)) = todo.pop() {
            if metadata.is_dir() {
                for entry in fs.read_dir(absolute(&path)?.as_path()).map_err(at(&path))? {
                    let entry = entry.map_err(at(&path))?;
                    let name = entry.file_name();
                    if [b".".as_slice(), b".."].contains(&name.as_ref()) {
                        continue;
                    }
                    let below = path.join(name.as_ref());
                    // A folder that leads back to itself ends here.
                    let left = budget.checked_sub(ENTRY_COST + below.as_bytes().len() as u64);
                    budget = left.ok_or_else(|| Error::input("reading an ext4 file system: its listing takes more than 1 GiB"))?;
                    todo.push((below, entry.metadata().map_err(at(&path))?));
                }
            }
            if let Some(what) = what(&fs, &path, &metadata)? {
                let nid = entries.len() as u64;
                entries.insert(path, entry(&metadata, nid, what));
            }
        }
        Ok(Self { source, entries })
    }
}

impl Files for Reader {
    fn entries(&self) -> &BTreeMap<TreePath, Entry> {
        &self.entries
    }

    fn read_at(&self, path: &TreePath, buffer: &mut [u8], offset: u64) -> Result<()> {
        // The crate's types belong to one thread, and opening it again reads a few blocks.
        let fs = load(&self.source)?;
        let mut file = fs.open(absolute(path)?.as_path()).map_err(at(path))?;
        file.seek_to(offset).map_err(at(path))?;
        let mut rest = buffer;
        while !rest.is_empty() {
            match file.read_bytes(rest).map_err(at(path))? {
                0 => return Err(Error::input(format!("reading {path} of an ext4 file system: it ends too early"))),
                read => rest = &mut rest[read..],
            }
        }
        Ok(())
    }
}

fn load(source: &Arc<dyn ReadAt>) -> Result<Ext4> {
    Ext4::load(Box::new(Source(source.clone()))).fault(Fault::Input, || "reading an ext4 file system".into())
}

fn at(path: &TreePath) -> impl Fn(Ext4Error) -> Error {
    move |why| Error::input(format!("reading {path} of an ext4 file system: {why}"))
}

fn absolute(path: &TreePath) -> Result<PathBuf> {
    let text = [b"/".as_slice(), path.as_bytes()].concat();
    if text.len() > PATH_MAX {
        return Err(Error::input(format!("reading an ext4 file system: a path is longer than {PATH_MAX} bytes")));
    }
    PathBuf::try_from(text).fault(Fault::Input, || format!("reading {path} of an ext4 file system"))
}

/// What a path is; none for what is not told.
fn what(fs: &Ext4, path: &TreePath, metadata: &Metadata) -> Result<Option<What>> {
    let kind = metadata.file_type();
    Ok(if kind.is_dir() {
        Some(What::Directory)
    } else if kind.is_regular_file() {
        Some(What::File(metadata.len()))
    } else if kind.is_symlink() {
        let target = fs.read_link(absolute(path)?.as_path()).map_err(at(path))?;
        Some(What::Symlink(target.as_ref().to_vec()))
    } else {
        kind.is_fifo().then_some(What::Fifo)
    })
}

fn entry(metadata: &Metadata, nid: u64, what: What) -> Entry {
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    Entry { mode, uid, gid, mtime: metadata.modified().seconds(), xattrs: BTreeMap::new(), links: 1, nid, what }
}
