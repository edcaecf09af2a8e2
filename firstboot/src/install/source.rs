//! What is installed: the disk of the medium, which `init` has unpacked into memory. The root is read through dm-verity, so that a byte that
//! went wrong on the way is an error and never written.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use layers::node::partition;
use layers::units::Bytes;
use layers::{Context, Error, Result};

use super::say;
use crate::host::Host;
use crate::init::live;
use crate::init::table::{self, Entry, SECTOR};

/// Bytes that are read or written at once.
pub const CHUNK: usize = 1 << 20;

/// The image in memory.
#[derive(Debug)]
pub struct Source {
    /// Its disk.
    pub disk: File,
    /// Its partitions, without the state that this start made.
    pub entries: Vec<Entry>,
    /// Least size of a state partition.
    pub state: Bytes,
    /// Its root, verified.
    pub root: File,
}

/// A run of bytes to be carried to the same place of another disk.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Where it comes from.
    pub from: &'a File,
    /// Where it begins there.
    pub at: u64,
    /// Where it belongs on the disk.
    pub to: u64,
    /// How long it is.
    pub length: u64,
}

impl Source {
    /// Opens the image that this system runs from.
    pub fn open(host: &Host) -> Result<Self> {
        // The kernel tells the path without /run, which was moved since.
        if !host.line(&format!("sys/class/block/{}/loop/backing_file", live::DISK)).ends_with(live::FILE.trim_start_matches("/run")) {
            return Err(Error::input("installing: this system does not run from a medium")
                .with_hint("start the ISO and choose `Install`, or `Run from memory` and then `chasi-bod install`"));
        }
        let path = host.path(live::FILE);
        let disk = File::open(&path).context(|| format!("opening {}", path.display()))?;
        let entries = table::read(&path)?.into_iter().filter(|entry| !table::is_state(&entry.name)).collect();
        let mounts = host.read("proc/mounts")?.unwrap_or_default();
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            words.next().filter(|source| source.starts_with("/dev/dm-") && words.next() == Some("/"))
        });
        let root = root.ok_or_else(|| Error::internal("installing: the root is not a verified device"))?;
        let root = File::open(host.path(root)).context(|| format!("opening {root}"))?;
        Ok(Self { disk, entries, state: host.image()?.disk.state_size, root })
    }

    /// Bytes that a disk must have: the partitions, the least state, and both tables.
    pub fn least(&self) -> Bytes {
        Bytes(self.end() + self.state.0 + (2 << 20))
    }

    /// Where the last partition ends.
    fn end(&self) -> u64 {
        self.entries.iter().map(|entry| (entry.last + 1) * SECTOR).max().unwrap_or(0)
    }

    /// All that has to be carried: loaders and slot A. Slot B is empty.
    pub fn pieces(&self) -> Result<Vec<Piece<'_>>> {
        let root = (&self.root).seek(SeekFrom::End(0)).context(|| "reading the size of the root".into())?;
        let piece = |entry: &Entry| {
            let (at, length) = (entry.first * SECTOR, entry.sectors() * SECTOR);
            match entry.name.as_str() {
                partition::ROOT_A => Some(Piece { from: &self.root, at: 0, to: at, length: root.min(length) }),
                partition::ROOT_B | partition::VERITY_B => None,
                _ => Some(Piece { from: &self.disk, at, to: at, length }),
            }
        };
        Ok(self.entries.iter().filter_map(piece).collect())
    }

    /// Reads all of it once.
    pub fn check(&self) -> Result<()> {
        say("checking the image");
        each(&self.pieces()?, |_, _| Ok(()))
    }
}

/// Goes through pieces a chunk at a time: the place on the disk, and the bytes that belong there.
pub fn each(pieces: &[Piece<'_>], mut work: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    for piece in pieces {
        let mut done = 0;
        while done < piece.length {
            let part = &mut buffer[..CHUNK.min(usize::try_from(piece.length - done).unwrap_or(CHUNK))];
            if is_hole(piece.from, piece.at + done, part.len()) {
                part.fill(0);
            } else {
                piece.from.read_exact_at(part, piece.at + done).context(|| "reading the image of the medium".into())?;
            }
            work(piece.to + done, part)?;
            done += part.len() as u64;
        }
    }
    Ok(())
}

/// Whether a file says that it has no data there; a device says nothing.
fn is_hole(file: &File, at: u64, length: usize) -> bool {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => data >= at + length as u64,
        Err(error) => error == rustix::io::Errno::NXIO,
    }
}
