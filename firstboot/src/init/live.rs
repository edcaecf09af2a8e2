//! A start from a medium: the disk that it carries is unpacked into memory and started from there like an installed one, so that the medium is not
//! needed any more. The medium is known by its content id, not by label or device. It may be a file on a stick, whose boot loader then says where.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use layers::frames::{TINY, Table};
use layers::medium::{self, PLACES, SUMS};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::cmdline::CommandLine;
use super::modules::{Loader, list};
use super::report::say;
use super::{DEV, SYS, note};
use crate::sys;

/// Where the medium is mounted.
const MEDIUM: &str = "/run/chasi-bod/medium";
/// Where a file system is mounted that has the medium as a file.
const AROUND: &str = "/run/chasi-bod/around";
/// What such a file system is.
const TYPES: [&str; 3] = ["vfat", "exfat", "ext4"];
/// What names of files on FAT are read by.
const NAMES: [&str; 3] = ["nls_cp437", "nls_ascii", "nls_utf8"];
/// Kernel name of the medium then.
const FROM_FILE: &str = "loop1";
/// Where the disk in memory lies; only root may look into it.
const MEMORY: &str = "/run/chasi-bod/live";
/// The disk in memory as a file, which unlike the kernel's disk tells where it has only zeros.
pub const FILE: &str = "/run/chasi-bod/live/disk";
/// Kernel name of that disk.
pub const DISK: &str = "loop0";
/// File systems and drivers that no device names.
const MODULES: [&str; 2] = ["isofs", "loop"];
/// Memory that the machine needs beside the unpacked disk.
const ROOM: Bytes = Bytes(2 << 30);

/// Where a boot loader puts the packed disk that it has fetched from the network: beside this program, in memory.
const LOADED: &str = "/disk.zst";

/// A medium, mounted; or what came by the network in its place.
#[derive(Debug)]
pub struct Medium {
    name: String,
    disk: PathBuf,
    /// Files of the medium and where they belong on the disk.
    places: Vec<(u64, String)>,
}

/// Loads drivers until the medium of the command line's image is there.
pub fn find(line: &CommandLine, loader: &mut Loader) -> Result<Medium> {
    note(line, loader.load(MODULES));
    if Path::new(LOADED).exists() {
        say("medium", "the network");
        return Ok(Medium { name: "from the network".into(), disk: LOADED.into(), places: Vec::new() });
    }
    if line.iso.is_some() {
        note(line, loader.load(TYPES.into_iter().chain(NAMES)));
    }
    let (start, mut looked) = (Instant::now(), BTreeSet::new());
    loop {
        note(line, loader.plug(Path::new(SYS)));
        let devices = list(&Path::new(SYS).join("class/block"));
        let mut others = Vec::new();
        for device in devices.iter().filter_map(|folder| Some(Path::new(DEV).join(folder.file_name()?))) {
            let (name, found) = match &line.iso {
                None => (device.display().to_string(), attach(&device, &line.roothash)),
                // A file system that has no such file will have none later.
                Some(_) if looked.contains(&device) => continue,
                Some(path) => (format!("{path} on {}", device.display()), attach_file(&device, path, &line.roothash)),
            };
            match found {
                Attached::Ours => {
                    say("medium", &name);
                    let mut medium = Medium { name, disk: Path::new(MEDIUM).join(medium::DISK), places: Vec::new() };
                    medium.places = medium::places(&medium.text(PLACES)?)?;
                    return Ok(medium);
                }
                Attached::Other => others.push(name),
                Attached::None => {}
                Attached::Never => _ = looked.insert(device),
            }
        }
        if start.elapsed() >= line.wait {
            let seen = match (&line.iso, others.is_empty()) {
                (_, false) => format!("other media in {}", others.join(", ")),
                (Some(path), true) => format!("no file {path} on any file system ({})", TYPES.join(", ")),
                (None, true) => "no medium at all".into(),
            };
            let (seconds, id) = (line.wait.as_secs(), line.roothash.short());
            return Err(Error::environment(format!("waiting {seconds} s for the medium of image {id}: seen {seen}"))
                .with_hint("leave the medium in until the machine has started from it"));
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// What a look at a device brought.
enum Attached {
    Ours,
    Other,
    None,
    /// Another look will bring the same.
    Never,
}

/// Whether a device is a medium, ours or not (ISO 9660, ECMA-119 chapter 8: the identifier of the first descriptor).
pub fn is_medium(device: &Path) -> bool {
    let mut magic = [0; 5];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut magic, 32769));
    read.is_ok() && &magic == b"CD001"
}

fn attach(device: &Path, roothash: &Digest) -> Attached {
    if !is_medium(device) {
        return Attached::None;
    }
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    if fs::create_dir_all(MEDIUM).is_err() || mount(device, MEDIUM, "iso9660", flags, None).is_err() {
        return Attached::Other;
    }
    if Path::new(MEDIUM).join("chasi").join(roothash.hex()).exists() {
        return Attached::Ours;
    }
    let _ = unmount(MEDIUM, UnmountFlags::DETACH);
    Attached::Other
}

/// Looks for the medium as a file of a device's file system.
fn attach_file(device: &Path, path: &str, roothash: &Digest) -> Attached {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::SILENT;
    if fs::create_dir_all(AROUND).is_err() {
        return Attached::None;
    }
    // The kernel complains at length of the loop devices that have nothing in them.
    if device.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"loop")) {
        return Attached::Never;
    }
    let mut tries = TYPES.iter().map(|kind| mount(device, AROUND, *kind, flags, None));
    match tries.find(|tried| !matches!(tried, Err(Errno::INVAL | Errno::NODEV))) {
        None => return Attached::Never,
        Some(Err(_)) => return Attached::None,
        Some(Ok(())) => {}
    }
    let (file, from) = (File::open(format!("{AROUND}/{path}")), Path::new(DEV).join(FROM_FILE));
    let attached = file.and_then(|file| {
        // Open until it is mounted: the last one who closes it takes it down.
        let held = File::open(&from)?;
        sys::attach_loop(&held, &file, sys::Loop::Once)?;
        Ok(attach(&from, roothash))
    });
    // What is in use stays until it is let go.
    let _ = unmount(AROUND, UnmountFlags::DETACH);
    attached.unwrap_or(Attached::Never)
}

impl Medium {
    /// Compares the medium's files with its SHA256SUMS; how many there are.
    pub fn check(&self) -> Result<usize> {
        let text = self.text(SUMS)?;
        for line in text.lines() {
            let (expected, name) = line.split_once("  ").ok_or_else(|| Error::input(format!("{}: not a line of sha256sum", self.reading(SUMS))))?;
            say("check", name);
            let file = File::open(Path::new(MEDIUM).join(name)).context(|| self.reading(name))?;
            let found = Digest::of_reader(file).context(|| self.reading(name))?.hex();
            if found != expected {
                return Err(Error::environment(format!("{}: it has SHA-256 {found}, SHA256SUMS says {expected}", self.reading(name)))
                    .with_hint("make the medium anew, or use another one"));
            }
        }
        Ok(text.lines().count())
    }

    fn text(&self, name: &str) -> Result<String> {
        fs::read_to_string(Path::new(MEDIUM).join(name)).context(|| self.reading(name))
    }

    fn reading(&self, name: &str) -> String {
        format!("reading {name} of the medium {}", self.name)
    }

    /// Unpacks the disk into memory and makes it a disk of the kernel, [`DISK`]; how much of memory its state may take. The medium is let go.
    pub fn unpack(self) -> Result<Bytes> {
        let reading = || self.reading(medium::DISK);
        let file = File::open(&self.disk).context(reading)?;
        let length = file.metadata().context(reading)?.len();
        let table = Table::read(length, |at, buffer| file.read_exact_at(buffer, at).context(reading))?;
        let frames = Frames { file: &file, table: &table };
        let data = frames.data().context(reading)?;
        let files = self.places.iter().map(|(_, path)| Ok(fs::metadata(Path::new(MEDIUM).join(path)).context(|| self.reading(path))?.len()));
        let files: u64 = files.sum::<Result<_>>()?;
        let need = Bytes(files + data.iter().map(|frame| table.unpacked(*frame)).map(|part| part.end - part.start).sum::<u64>());
        let state = spare(need, memory()?)?;
        let disk = memory_disk(Bytes(need.0 + state.0), table.unpacked_len())?;
        say("unpack", &format!("{need} into memory"));
        frames.unpack(&data, &disk).context(reading)?;
        self.places.iter().try_for_each(|(offset, path)| self.place(*offset, path, &disk))?;
        sys::attach_loop(&open_loop()?, &disk, sys::Loop::Disk).fault(Fault::Environment, || format!("making the disk in memory /dev/{DISK}"))?;
        drop(file);
        // What is mounted is let go; what lies in memory makes room.
        let _ = unmount(MEDIUM, UnmountFlags::DETACH);
        let _ = fs::remove_file(LOADED);
        Ok(state)
    }

    /// Puts a file of the medium to its place on the disk, in pieces.
    fn place(&self, offset: u64, path: &str, mut disk: &File) -> Result<()> {
        let mut file = File::open(Path::new(MEDIUM).join(path)).context(|| self.reading(path))?;
        disk.seek(SeekFrom::Start(offset)).and_then(|_| std::io::copy(&mut file, &mut disk)).context(|| self.reading(path))?;
        Ok(())
    }
}

fn open_loop() -> Result<File> {
    let path = Path::new(DEV).join(DISK);
    File::options().read(true).write(true).open(&path).context(|| format!("opening {}", path.display()))
}

/// A sparse file of the disk's size in memory of its own.
fn memory_disk(most: Bytes, size: u64) -> Result<File> {
    fs::create_dir_all(MEMORY).context(|| format!("creating {MEMORY}"))?;
    // Tables and file systems take a little more than what is in them.
    let options = format!("size={},mode=0700", most.0 + most.0 / 64 + (16 << 20));
    let options = std::ffi::CString::new(options).map_err(|_| Error::internal("mounting memory: NUL in an option"))?;
    mount("tmpfs", MEMORY, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC, options.as_c_str())
        .fault(Fault::Environment, || format!("mounting memory at {MEMORY}"))?;
    let path = Path::new(FILE);
    let making = || format!("making {}", path.display());
    let file = File::options().read(true).write(true).create_new(true).open(path).context(making)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).context(making)?;
    file.set_len(size).context(making)?;
    Ok(file)
}

/// Memory that the state may take: half of what is left. A machine with too little is refused with both figures.
fn spare(need: Bytes, have: Bytes) -> Result<Bytes> {
    let least = Bytes(need.0 + ROOM.0);
    if have < least {
        return Err(Error::environment(format!(
            "starting from memory: the machine has {have}, {least} are needed ({need} for the system and {ROOM} to work)"
        ))
        .with_hint("give the machine more memory, or install the image on a disk"));
    }
    // Partitions are whole MiB.
    Ok(Bytes::mib((have.0 - need.0) / (2 << 20)))
}

/// Memory of the machine. The kernel keeps some back: firmware and the kernel itself are taken as 5 %.
fn memory() -> Result<Bytes> {
    let text = fs::read_to_string("/proc/meminfo").context(|| "reading /proc/meminfo".into())?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| Bytes((kib << 10) / 95 * 100)).ok_or_else(|| Error::environment("reading /proc/meminfo: it has no MemTotal"))
}

/// A packed disk.
struct Frames<'a> {
    file: &'a File,
    table: &'a Table,
}

impl Frames<'_> {
    fn packed(&self, frame: usize) -> std::io::Result<Vec<u8>> {
        let place = self.table.packed(frame);
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.file.read_exact_at(&mut bytes, place.start)?;
        Ok(bytes)
    }

    fn unpacked(&self, frame: usize, packed: &[u8]) -> std::io::Result<Vec<u8>> {
        let part = self.table.unpacked(frame);
        zstd::bulk::decompress(packed, (part.end - part.start) as usize)
    }

    /// The frames that are not all zeros. Equal bytes unpack to equal ones, and most of a disk's frames are zeros of one length: few are looked into.
    fn data(&self) -> std::io::Result<Vec<usize>> {
        let (mut out, mut zeros) = (Vec::new(), Vec::new());
        for frame in 0..self.table.frames() {
            let place = self.table.packed(frame);
            if place.end - place.start >= TINY {
                out.push(frame);
                continue;
            }
            let packed = self.packed(frame)?;
            if packed == zeros {
                continue;
            }
            if self.unpacked(frame, &packed)?.iter().all(|byte| *byte == 0) {
                zeros = packed;
            } else {
                out.push(frame);
            }
        }
        Ok(out)
    }

    /// Unpacks frames to their places, by all processors.
    fn unpack(&self, frames: &[usize], disk: &File) -> std::io::Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> std::io::Result<()> {
            while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                let bytes = self.unpacked(*frame, &self.packed(*frame)?)?;
                disk.write_all_at(&bytes, self.table.unpacked(*frame).start)?;
            }
            Ok(())
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(std::io::Error::other("a worker panicked"))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_too_little_memory_is_told_both_figures() {
        assert_eq!(spare(Bytes(1001 << 19), Bytes::mib(4048)).unwrap(), Bytes::mib(1773));
        let error = spare(Bytes::mib(1024), Bytes::mib(3000)).unwrap_err().to_string();
        assert!(error.contains("has 2.9GiB, 3GiB are needed (1GiB for the system and 2GiB to work)"), "{error}");
    }

    #[test]
    fn frames_of_data_are_unpacked_to_their_places_and_zeros_stay_holes() {
        let (mut file, mut table) = (Vec::new(), Table::default());
        let zeros = vec![0; 1 << 16];
        let mut edge = zeros.clone();
        edge[7] = 1;
        let noise: Vec<u8> = (0..1_u32 << 16).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let last = &zeros[..1000];
        for part in [&zeros, &edge, &zeros, &noise, &zeros, last] {
            let packed = zstd::bulk::compress(part, 3).unwrap();
            table.push(packed.len() as u64, part.len() as u64);
            file.extend(packed);
        }
        let (packed, disk) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        packed.write_all_at(&file, 0).unwrap();
        disk.set_len(table.unpacked_len()).unwrap();
        let frames = Frames { file: &packed, table: &table };
        let data = frames.data().unwrap();
        assert_eq!(data, [1, 3]);
        frames.unpack(&data, &disk).unwrap();
        let mut found = vec![9; table.unpacked_len() as usize];
        disk.read_exact_at(&mut found, 0).unwrap();
        assert!(found == [&zeros[..], &edge, &zeros, &noise, &zeros, last].concat());
        packed.write_all_at(&[0; 8], table.packed(3).start).unwrap();
        assert!(frames.unpack(&data, &disk).is_err(), "a broken frame is an error");
    }
}
