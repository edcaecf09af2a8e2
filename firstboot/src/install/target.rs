//! The disk that is installed to.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use layers::node::partition;
use layers::selector::Traits;
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};

use super::source::{CHUNK, Source, each};
use super::{Consent, firmware, say};
use crate::host::Host;
use crate::init::state;
use crate::init::table::{self, Entry, LARGE_SECTOR, SECTOR};
use crate::{disks, exec};

/// Where an installation leaves its mark until it is done: behind the table's first copy, before the first partition.
const MARK_AT: u64 = 64 * SECTOR;
const MARK: &[u8; 33] = b"chasi-bod: installation of image ";
/// Bytes at each end of a disk, and of each slot that stays empty, where signatures of what was there may lie.
const ENDS: u64 = 1 << 20;

/// A disk that may be installed to.
#[derive(Debug)]
pub struct Target {
    /// What it says of itself.
    pub disk: Traits,
    /// Bytes of its sectors.
    pub sector: u64,
    path: PathBuf,
    file: File,
    contents: Vec<String>,
}

impl Target {
    /// Opens a disk for itself alone; one that is too small, in use or not empty is refused by name.
    pub fn open(host: &Host, source: &Source, disk: &Traits, consent: Consent) -> Result<Self> {
        let name = disks::describe(disk);
        let refuse = |why: String| Error::environment(format!("installing on {name}: {why}"));
        let (size, least) = (Bytes(disk.size.unsigned_abs()), source.least());
        let sector = disk.sector.unsigned_abs();
        if ![SECTOR, LARGE_SECTOR].contains(&sector) {
            return Err(refuse(format!("its sectors have {sector} bytes, neither 512 nor 4096")));
        }
        if sector != SECTOR && !firmware::is_uefi(host) {
            return Err(refuse(format!("its sectors have {sector} bytes, and BIOS starts from sectors of 512 only")).with_hint(
                "start the medium by UEFI; many drives can be switched, too: `nvme format --lbaf` or `sg_format --size=512` on another system",
            ));
        }
        // An image may have an EFI system partition that such a disk cannot have.
        source.pieces(sector).context(|| format!("installing on {name}"))?;
        if size < least {
            return Err(
                refuse(format!("it has {size}, {least} are needed")).with_hint("choose a larger disk, or lower `disk.slotSize` in the profile")
            );
        }
        if host.line(&format!("sys/class/block/{}/ro", disk.name)) == "1" {
            return Err(refuse("it cannot be written".into()));
        }
        let path = host.path(&disk.path);
        // For a block device O_EXCL means: not while it is mounted, swapped to or part of another device (open(2)).
        let open = File::options().read(true).write(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(&path);
        let file = match open {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                return Err(refuse("it is in use: mounted, or a part of LVM, RAID or another device".into()));
            }
            other => other.context(|| format!("opening {}", path.display()))?,
        };
        let mut target = Self { disk: disk.clone(), sector, path, file, contents: disks::contents(host, &disk.name)? };
        if let Some(image) = target.marked()? {
            say(&format!("an installation of {image} on {} was not finished; it starts over", disk.path));
            return Ok(target);
        }
        if target.contents.is_empty() && !disks::is_blank(disk, &target.file).context(|| target.reading())? {
            target.contents.push("unknown data".into());
        }
        if !target.contents.is_empty() && consent == Consent::Empty {
            return Err(refuse(format!("it is not empty: it holds {}", target.holds()))
                .with_hint("to lose all of it: `--erase`, or the setting `disk.erase: true`"));
        }
        Ok(target)
    }

    /// What is on it, for people.
    pub fn holds(&self) -> String {
        if self.contents.is_empty() { "nothing".into() } else { self.contents.join(", ") }
    }

    fn reading(&self) -> String {
        format!("reading {}", self.path.display())
    }

    fn writing(&self) -> String {
        format!("writing {}", self.path.display())
    }

    /// The image of an installation that was not finished.
    fn marked(&self) -> Result<Option<String>> {
        let mut sector = [0; SECTOR as usize];
        self.file.read_exact_at(&mut sector, MARK_AT).context(|| self.reading())?;
        let image = sector.strip_prefix(MARK.as_slice()).map(|rest| String::from_utf8_lossy(rest).trim_end_matches('\0').to_string());
        Ok(image)
    }

    fn mark(&self, text: &[u8]) -> Result<()> {
        let mut sector = [0; SECTOR as usize];
        let length = text.len().min(sector.len());
        sector[..length].copy_from_slice(&text[..length]);
        self.file.write_all_at(&sector, MARK_AT).context(|| self.writing())?;
        self.file.sync_all().context(|| self.writing())
    }

    /// Takes away all that another system would recognise, and leaves the mark.
    pub fn clear(&self, host: &Host, what: &str) -> Result<()> {
        say(&format!("clearing {}, which holds {}", self.path.display(), self.holds()));
        // First the mark: from now on the disk is known to be ours.
        self.mark(&[MARK.as_slice(), what.as_bytes()].concat())?;
        for device in disks::partitions(host, &self.disk.name).iter().map(|name| host.path("dev").join(name)) {
            // The disk is ours alone, and with it its partitions: without `--force` wipefs wants them for itself.
            exec::run(host.program("wipefs").args(["--quiet", "--all", "--force"]).arg(&device))?;
        }
        let size = self.disk.size.unsigned_abs();
        for (start, end) in [(0, MARK_AT), (MARK_AT + SECTOR, ENDS), (size - ENDS, size)] {
            self.zero(start, end - start)?;
        }
        self.file.sync_all().context(|| self.writing())
    }

    /// Makes a run of zeros, by the drive itself where it can.
    fn zero(&self, at: u64, length: u64) -> Result<()> {
        if fallocate(&self.file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, length).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; CHUNK];
        let mut done = 0;
        while done < length {
            let part = &zeros[..CHUNK.min(usize::try_from(length - done).unwrap_or(CHUNK))];
            self.file.write_all_at(part, at + done).context(|| self.writing())?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// Writes loaders and slot A; slot B is cleared where a file system would begin.
    pub fn write(&self, source: &Source) -> Result<()> {
        let pieces = source.pieces(self.sector)?;
        let mut progress = Progress::new("writing", pieces.iter().map(|piece| piece.length).sum());
        let zeros = vec![0; CHUNK];
        each(&pieces, |at, bytes| {
            if bytes == &zeros[..bytes.len()] {
                self.zero(at, bytes.len() as u64)?;
            } else {
                self.file.write_all_at(bytes, at).context(|| self.writing())?;
            }
            progress.add(bytes.len());
            Ok(())
        })?;
        for entry in source.entries.iter().filter(|entry| [partition::ROOT_B, partition::VERITY_B].contains(&entry.name.as_str())) {
            self.zero(entry.first * SECTOR, ENDS.min(entry.sectors() * SECTOR))?;
        }
        self.file.sync_all().context(|| self.writing())
    }

    /// Reads from the disk what was written, and compares it with the image.
    pub fn compare(&self, source: &Source) -> Result<()> {
        // What memory keeps of the disk is dropped, so that the disk itself is asked.
        fadvise(&self.file, 0, None, Advice::DontNeed).fault(Fault::Environment, || self.reading())?;
        let pieces = source.pieces(self.sector)?;
        let mut progress = Progress::new("reading again", pieces.iter().map(|piece| piece.length).sum());
        let mut found = vec![0; CHUNK];
        each(&pieces, |at, bytes| {
            let found = &mut found[..bytes.len()];
            self.file.read_exact_at(found, at).context(|| self.reading())?;
            if found != bytes {
                let offset = found.iter().zip(bytes).position(|(found, wanted)| found != wanted).unwrap_or(0);
                return Err(Error::environment(format!("{}: byte {} is not as it was written", self.reading(), at + offset as u64))
                    .with_hint("the disk is not reliable; choose another one"));
            }
            progress.add(bytes.len());
            Ok(())
        })
    }

    /// Makes the state already, with files in it: what was said to this system would be lost else. Returns its entry for the table.
    pub fn carry(&mut self, host: &Host, source: &Source, files: &[(String, Vec<u8>)]) -> Result<Entry> {
        say("carrying the settings over");
        // mke2fs wants the disk for itself alone.
        self.file = File::options().read(true).write(true).open(&self.path).context(|| format!("opening {}", self.path.display()))?;
        let scratch = host.path("run/chasi-bod/install");
        std::fs::create_dir_all(&scratch).context(|| format!("creating {}", scratch.display()))?;
        let (sectors, tools) = (self.disk.size.unsigned_abs() / SECTOR, Path::new("/"));
        let site = state::Site { disk: &self.path, sectors, sector: self.sector, rules: &source.rules, tools, scratch: &scratch };
        let made = state::make_ahead(&site, &source.entries, files);
        std::fs::remove_dir_all(&scratch).context(|| format!("removing {}", scratch.display()))?;
        made
    }

    /// Takes the mark away and gives the disk its boot sector and table.
    pub fn finish(&self, host: &Host, source: &Source, state: Option<&Entry>) -> Result<()> {
        // In this order: a disk that starts is never taken for one that may be installed to without consent.
        self.mark(&[])?;
        table::copy(&source.disk, &self.file, self.sector)?;
        state.map_or(Ok(()), |state| table::write(&self.path, self.sector, state))?;
        // A kernel that keeps the old partitions in mind is no fault of the disk's: the next start reads them.
        let _ = exec::run(host.program("blockdev").arg("--rereadpt").arg(&self.path));
        Ok(())
    }
}

/// Says each tenth of a long work.
struct Progress {
    what: &'static str,
    whole: u64,
    done: u64,
    said: u64,
}

impl Progress {
    fn new(what: &'static str, whole: u64) -> Self {
        say(&format!("{what} {}", Bytes(whole)));
        Self { what, whole, done: 0, said: 0 }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let tenths = self.done * 10 / self.whole.max(1);
        if tenths > self.said && tenths < 10 {
            self.said = tenths;
            say(&format!("{} {tenths}0 %", self.what));
        }
    }
}
