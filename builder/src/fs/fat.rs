//! FAT for EFI system partitions (Microsoft: FAT32 File System Specification 1.03), on crate `hadris-fat`. Equal input gives equal bytes:
//! serial number and times are given, files are written in the order of their names into an empty file system, so each one is contiguous.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use hadris_fat::FatKind;
use hadris_fat::sync::{FatFs, format};
use hadris_fat::{FatOptions, VolumeLabel};
use hadris_fs::sync::Volume;
use hadris_fs::{DateTime, Extent, FileType, FsResult, MountOptions, Name, OpenOptions, SetAttr};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};
use sha2::{Digest as _, Sha256};

use crate::disk::ReadAt;
use crate::disk::file::FileAt;
use crate::fs::device::Device;

const COPY: usize = 1 << 20;
/// FAT counts from 1980.
const FIRST_TIME: i64 = 315_532_800;

/// Files by their path, such as `EFI/BOOT/BOOTX64.EFI`; folders come from the paths.
pub type Files = BTreeMap<String, Arc<dyn ReadAt>>;

/// How a FAT file system is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// FAT32, or FAT16 for one that is too small for that.
    pub kind: FatKind,
    /// Size in bytes, a multiple of 512.
    pub size: Bytes,
    /// Up to 11 upper-case characters.
    pub label: String,
    /// Volume serial number.
    pub serial: u32,
    /// Time of all files, in seconds since 1970.
    pub epoch: i64,
    /// Where the partition starts on its disk, in bytes.
    pub offset: u64,
}

/// Makes a FAT file system in a sparse file without a name in `scratch`.
pub fn build(options: &Options, files: &Files, scratch: &Path) -> Result<FileAt> {
    check_names(files.keys())?;
    let file = tempfile::tempfile_in(scratch).fault(Fault::Environment, || format!("creating a scratch file in {}", scratch.display()))?;
    file.set_len(options.size.0).fault(Fault::Environment, || format!("making room for {}", options.size))?;
    let back = file.try_clone().fault(Fault::Environment, || "opening the scratch file again".into())?;
    let image = FileAt::new(back, "FAT image".into())?;
    let need: u64 = files.values().map(|f| f.len()).sum();
    let what = || format!("writing the {} FAT file system ({} files of {})", options.size, files.len(), Bytes(need));
    let mut device = Device { disk: &image, file: Some(&file) };
    written(format(&mut device, &fat_options(options)?), what)?;
    let fat = FatFs::mount(device, MountOptions::new()).map_err(|e| Error::internal(format!("mounting our own FAT file system: {e}")))?;
    fill(fat, files, times(options.epoch)?).context(what)?;
    Ok(image)
}

fn fat_options(options: &Options) -> Result<FatOptions> {
    let label = VolumeLabel::new(&options.label).map_err(|e| Error::input(format!("labelling the FAT file system `{}`: {e}", options.label)))?;
    let time = time(options.epoch)?;
    let made = FatOptions::new().with_kind(options.kind).with_label(label).with_serial(options.serial).with_time(time);
    Ok(made.with_partition_offset(options.offset).with_alignment(4096))
}

fn time(epoch: i64) -> Result<DateTime> {
    DateTime::from_unix_seconds(epoch.max(FIRST_TIME)).map_err(|e| Error::input(format!("setting file times to {epoch}: {e}")))
}

fn times(epoch: i64) -> Result<SetAttr> {
    let time = time(epoch)?;
    Ok(SetAttr::new().with_accessed(time).with_created(time).with_modified(time))
}

fn fill(fat: FatFs<Device<'_>>, files: &Files, times: SetAttr) -> Result<()> {
    let volume = Volume::new(fat);
    for (path, file) in files {
        if let Some((dir, _)) = path.rsplit_once('/') {
            written(volume.create_dir_all(dir), || format!("making folder {dir}"))?;
        }
        copy(&volume, path, file.as_ref())?;
    }
    // Last, as each entry made in a folder touches the folder.
    for path in files.keys().flat_map(|path| prefixes(path)) {
        written(volume.set_attr(path, &times), || format!("setting times of {path}"))?;
    }
    let fat = volume.into_inner().map_err(|_| Error::internal("closing the FAT file system: a file is still open"))?;
    fat.unmount().map_err(|e| Error::internal(format!("closing the FAT file system: {e}")))?;
    Ok(())
}

/// The path and all folders above it.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).chain([path])
}

fn copy(volume: &Volume<FatFs<Device<'_>>>, path: &str, file: &dyn ReadAt) -> Result<()> {
    let options = OpenOptions::new().write().create_new();
    let mut out = written(volume.open(path, options), || format!("making {path}"))?;
    let mut buffer = vec![0; COPY];
    for at in (0..file.len()).step_by(COPY) {
        let part = &mut buffer[..(file.len() - at).min(COPY as u64) as usize];
        file.read_at(part, at).context(|| format!("reading what becomes {path}"))?;
        let mut done = 0;
        while done < part.len() {
            done += written(out.write(&part[done..]), || format!("writing {path} of {}", Bytes(file.len())))?;
        }
    }
    written(out.close(), || format!("closing {path}"))
}

/// A file system that is too small is the user's doing, a disk that is full is not.
fn written<T>(result: FsResult<T, std::io::Error>, what: impl FnOnce() -> String) -> Result<T> {
    let device = result.as_ref().err().is_some_and(|e| e.device_error().is_some());
    result.fault(if device { Fault::Environment } else { Fault::Input }, what)
}

/// Refuses names that FAT cannot keep or keep apart (row A9 of the fault list).
fn check_names<'a>(paths: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut seen: BTreeMap<String, (&str, bool)> = BTreeMap::new();
    let paths: Vec<_> = paths.collect();
    for (path, is_file) in paths.iter().flat_map(|path| prefixes(path).map(|p| (p, p.len() == path.len()))) {
        if let Some((other, other_is_file)) = seen.insert(folded(path), (path, is_file))
            && (other != path || is_file || other_is_file)
        {
            return Err(clash(other, path));
        }
    }
    for (path, _) in seen.values() {
        check_name(path, path.rsplit('/').next().unwrap_or_default())?;
    }
    check_aliases(&seen)
}

fn clash(one: &str, other: &str) -> Error {
    Error::input(format!("naming files of the FAT file system: `{one}` and `{other}` are the same name there")).with_hint("rename one of them")
}

/// What FAT compares: case does not count, nor do dots and spaces at the end.
fn folded(path: &str) -> String {
    let parts: Vec<_> = path.split('/').map(|name| name.trim_end_matches(['.', ' ']).to_uppercase()).collect();
    parts.join("/")
}

fn check_name(path: &str, name: &str) -> Result<()> {
    let bad = name.chars().find(|c| c.is_control() || "\"*:<>?\\|".contains(*c));
    let fault = match bad {
        Some(c) => format!("has the character {c:?}"),
        None if name.is_empty() || name.ends_with(['.', ' ']) => "is empty or ends with a dot or space".into(),
        None if name.encode_utf16().count() > 255 => "is longer than 255 characters".into(),
        None => return Ok(()),
    };
    Err(Error::input(format!("naming files of the FAT file system: `{path}` {fault}")))
}

/// A name such as `LONGNA~1.TXT` may be the short name that a longer neighbour gets.
fn check_aliases(seen: &BTreeMap<String, (&str, bool)>) -> Result<()> {
    let split = |path: &str| path.rsplit_once('/').map_or((String::new(), path.to_string()), |(dir, name)| (dir.to_string(), name.to_string()));
    for (alias, (path, _)) in seen.iter().filter(|(folded, _)| folded.rsplit('/').next().is_some_and(|n| n.contains('~') && n.len() <= 12)) {
        let (dir, name) = split(alias);
        let other = seen.iter().find(|(folded, _)| *folded != alias && split(folded).0 == dir && may_be_alias(&name, &split(folded).1));
        if let Some((_, (other, _))) = other {
            return Err(clash(path, other));
        }
    }
    Ok(())
}

fn may_be_alias(alias: &str, long: &str) -> bool {
    let parts = |name: &str| {
        let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
        let keep = |text: &str| text.chars().filter(|c| !matches!(c, ' ' | '.')).collect::<String>();
        (keep(stem), keep(end).chars().take(3).collect::<String>())
    };
    let ((alias, alias_end), (stem, end)) = (parts(alias), parts(long));
    let is_long =
        stem.chars().count() > 8 || long.contains(' ') || long.matches('.').count() > 1 || long.rsplit_once('.').is_some_and(|(_, e)| e.len() > 3);
    let Some((start, number)) = alias.rsplit_once('~') else { return false };
    is_long && alias_end == end && number.parse::<u32>().is_ok() && stem.starts_with(start)
}

/// A file or folder of a FAT file system.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// Path without a slash at its start.
    pub path: String,
    /// Size in bytes; none for a folder.
    pub size: Option<u64>,
}

/// Lists the files and folders of a FAT file system, sorted by path.
pub fn list(image: &dyn ReadAt) -> Result<Vec<Listed>> {
    let volume = mount(image)?;
    let read = || "listing the FAT file system".to_string();
    let mut walk = volume.walk("/").fault(Fault::Input, read)?;
    let mut out = Vec::new();
    while let Some(entry) = walk.next_entry() {
        let entry = entry.fault(Fault::Input, read)?;
        let size = (entry.entry().file_type() == FileType::File).then(|| entry.entry().metadata().len());
        out.push(Listed { path: String::from_utf8_lossy(entry.path()).trim_start_matches('/').to_string(), size });
        if out.len() > 100_000 {
            return Err(Error::input("listing the FAT file system: more than 100000 files"));
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

/// Reads a small file, up to 16 MiB, out of a FAT file system.
pub fn read(image: &dyn ReadAt, path: &str) -> Result<Vec<u8>> {
    let volume = mount(image)?;
    let what = || format!("reading {path} from the FAT file system");
    let size = volume.metadata(path).fault(Fault::Input, what)?.len();
    if size > 16 << 20 {
        return Err(Error::input(format!("{}: it has {}", what(), Bytes(size))));
    }
    volume.read(path).fault(Fault::Input, what)
}

/// Where the bytes of a file are that is in one piece.
pub fn place(image: &dyn ReadAt, path: &str) -> Result<Range<u64>> {
    let what = || format!("finding {path} in the FAT file system");
    let volume = mount(image)?;
    let mut fat = volume.lock().fault(Fault::Input, what)?;
    let mut node = fat.root();
    for name in path.split('/') {
        node = fat.lookup(node, Name::new(name)).fault(Fault::Input, what)?;
    }
    let mut pieces = [Extent::new(0, 0); 2];
    match fat.extents(node, 0, &mut pieces).fault(Fault::Input, what)? {
        1 => Ok(pieces[0].offset()..pieces[0].offset() + pieces[0].len()),
        _ => Err(Error::input(format!("{}: it is not in one piece", what()))),
    }
}

/// Fills the buffer from a file, beginning at its byte `offset`, as far as the file goes; the number of bytes that there were.
pub fn read_at(image: &dyn ReadAt, path: &str, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let what = || format!("reading {path} from the FAT file system");
    let file = mount(image)?.open(path, OpenOptions::new().read()).fault(Fault::Input, what)?;
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(offset.saturating_add(done as u64), &mut buffer[done..]).fault(Fault::Input, what)? {
            0 => break,
            more => done += more,
        }
    }
    Ok(done)
}

/// Digest of a file, read in pieces.
pub fn digest(image: &dyn ReadAt, path: &str) -> Result<Digest> {
    let what = || format!("reading {path} from the FAT file system");
    let mut file = mount(image)?.open(path, OpenOptions::new().read()).fault(Fault::Input, what)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; COPY]);
    loop {
        match file.read(&mut buffer).fault(Fault::Input, what)? {
            0 => return Ok(Digest(hasher.finalize().into())),
            more => hasher.update(&buffer[..more]),
        }
    }
}

/// The label of a FAT file system.
pub fn label(image: &dyn ReadAt) -> Result<Option<String>> {
    let mut buffer = [0; 64];
    let volume = mount(image)?;
    let mut fat = volume.lock().fault(Fault::Input, || "reading the FAT label".into())?;
    Ok(fat.label(&mut buffer).fault(Fault::Input, || "reading the FAT label".into())?.map(str::to_string))
}

fn mount(image: &dyn ReadAt) -> Result<Volume<FatFs<Device<'_>>>> {
    let fat = FatFs::mount(Device { disk: image, file: None }, MountOptions::new().read_only());
    Ok(Volume::new(fat.map_err(|e| Error::input(format!("opening the FAT file system: {e}")))?))
}
