//! What is installed: the disk of the medium, which `init` has unpacked into memory. The root is read through dm-verity, so that a byte that
//! went wrong on the way is an error and never written.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use layers::node::partition;
use layers::profile::Disk;
use layers::units::Bytes;
use layers::{Context, Error, Result};

use super::{esp, say};
use crate::host::Host;
use crate::init::live;
use crate::init::state::Rules;
use crate::init::table::{self, Entry, LARGE_SECTOR, SECTOR};

/// Bytes that are read or written at once.
pub const CHUNK: usize = 1 << 20;
const READING: &str = "reading the image of the medium";

/// The image in memory.
#[derive(Debug)]
pub struct Source {
    /// Its disk.
    pub disk: File,
    /// Its partitions, without the state that this start made.
    pub entries: Vec<Entry>,
    /// What the image says of the state partition.
    pub rules: Rules,
    /// Its root, verified.
    pub root: File,
}

/// Where bytes come from.
#[derive(Debug)]
pub enum From<'a> {
    /// A file or device.
    File(&'a File),
    /// What is told anew for the target.
    Memory(Vec<u8>),
}

/// A run of bytes to be carried to a place of another disk.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Where it comes from.
    pub from: From<'a>,
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
        let entries = table::read(&path, SECTOR)?.into_iter().filter(|entry| !table::is_state(&entry.name)).collect();
        let mounts = host.read("proc/mounts")?.unwrap_or_default();
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            words.next().filter(|source| source.starts_with("/dev/dm-") && words.next() == Some("/"))
        });
        let root = root.ok_or_else(|| Error::internal("installing: the root is not a verified device"))?;
        let root = File::open(host.path(root)).context(|| format!("opening {root}"))?;
        let Disk { state_size, state_limit, .. } = host.image()?.disk;
        Ok(Self { disk, entries, rules: Rules { state_size, state_limit }, root })
    }

    /// Bytes that a disk must have: the partitions, the least state, and both tables.
    pub fn least(&self) -> Bytes {
        Bytes(self.end() + self.rules.state_size.0 + (2 << 20))
    }

    /// Where the last partition ends.
    fn end(&self) -> u64 {
        self.entries.iter().map(|entry| (entry.last + 1) * SECTOR).max().unwrap_or(0)
    }

    /// All that has to be carried to a disk with sectors of so many bytes: loaders and slot A. Slot B is empty.
    pub fn pieces(&self, sector: u64) -> Result<Vec<Piece<'_>>> {
        let root = (&self.root).seek(SeekFrom::End(0)).context(|| "reading the size of the root".into())?;
        let mut pieces = Vec::new();
        for entry in &self.entries {
            let (mut at, mut length) = (entry.first * SECTOR, entry.sectors() * SECTOR);
            match entry.name.as_str() {
                partition::ROOT_A => pieces.push(Piece { from: From::File(&self.root), at: 0, to: at, length: root.min(length) }),
                partition::ROOT_B | partition::VERITY_B => {}
                name => {
                    if name == partition::ESP && sector == LARGE_SECTOR {
                        let told = self.esp(at)?;
                        let size = told.len() as u64;
                        pieces.push(Piece { from: From::Memory(told), at: 0, to: at, length: size });
                        (at, length) = (at + size, length - size);
                    }
                    pieces.push(Piece { from: From::File(&self.disk), at, to: at, length });
                }
            }
        }
        Ok(pieces)
    }

    /// The start of the EFI system partition, for a disk with large sectors.
    fn esp(&self, at: u64) -> Result<Vec<u8>> {
        let [mut boot, mut info] = [[0; SECTOR as usize]; 2];
        let read = self.disk.read_exact_at(&mut boot, at).and_then(|()| self.disk.read_exact_at(&mut info, at + SECTOR));
        read.context(|| READING.into())?;
        esp::reserved(&boot, &info)
    }

    /// Reads all of it once, as a disk with sectors of so many bytes gets it.
    pub fn check(&self, sector: u64) -> Result<()> {
        say("checking the image");
        each(&self.pieces(sector)?, |_, _| Ok(()))
    }
}

/// Goes through pieces a chunk at a time: the place on the disk, and the bytes that belong there.
pub fn each(pieces: &[Piece<'_>], mut work: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    for piece in pieces {
        let mut done = 0;
        while done < piece.length {
            let part = &mut buffer[..CHUNK.min(usize::try_from(piece.length - done).unwrap_or(CHUNK))];
            let at = piece.at + done;
            match &piece.from {
                From::Memory(bytes) => part.copy_from_slice(&bytes[at as usize..][..part.len()]),
                From::File(file) if is_hole(file, at, part.len()) => part.fill(0),
                From::File(file) => file.read_exact_at(part, at).context(|| READING.into())?,
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
