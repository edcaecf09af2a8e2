//! The result folder `output/<profile>/<version>/`: filled under another name and given its own by one rename, so that a failed or killed build
//! leaves nothing that looks finished.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use layers::units::Digest;
use layers::{Context, Error, Result};
use rayon::prelude::*;
use rustix::fs::{CWD, RenameFlags};
use sha2::{Digest as _, Sha256};

use crate::disk::file::FileAt;
use crate::disk::{self, ReadAt};
use crate::inspect::FileCheck;
use crate::inspect::check::CHUNK;
use crate::record::{self, Artifact, BuildRecord};

/// File with the digests of all other files of the folder, in the notation of sha256sum(1).
pub const SUMS: &str = "SHA256SUMS";

/// A result folder being filled.
#[derive(Debug)]
pub struct Staging {
    /// Where files are written until the folder is finished.
    pub dir: PathBuf,
    target: PathBuf,
    /// A lock on the folder tells builds under way from killed ones.
    _lock: File,
}

impl Staging {
    /// Starts a folder that will become `target`; what killed builds left beside it is removed.
    pub fn begin(target: &Path) -> Result<Self> {
        let (parent, name) = (target.parent(), target.file_name());
        let (Some(parent), Some(name)) = (parent, name) else {
            return Err(Error::internal(format!("placing results in {}: not a folder below another", target.display())));
        };
        let dir = parent.join(format!(".{}.partial", name.to_string_lossy()));
        for left in abandoned(parent) {
            fs::remove_dir_all(&left).context(|| format!("removing {}", left.display()))?;
        }
        let other = || Error::environment(format!("writing {}: another build is writing it", target.display())).with_hint("wait for it to end");
        if dir.exists() {
            return Err(other());
        }
        fs::create_dir_all(&dir)
            .context(|| format!("creating {}", dir.display()))
            .map_err(|e| e.with_hint("name a folder that you may write with --output"))?;
        let lock = File::open(&dir).context(|| format!("opening {}", dir.display()))?;
        lock.try_lock().map_err(|_| other())?;
        Ok(Self { dir, target: target.to_path_buf(), _lock: lock })
    }

    /// Finds out before a build whether its results can be written, without writing.
    pub fn check(target: &Path) -> Result<()> {
        let target = std::path::absolute(target).context(|| format!("naming {}", target.display()))?;
        let Some(there) = target.ancestors().skip(1).find(|a| a.exists()) else { return Ok(()) };
        let refused = || format!("writing results below {}", there.display());
        let access = match there.is_dir() {
            true => rustix::fs::access(there, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK),
            false => Err(rustix::io::Errno::NOTDIR),
        };
        access.map_err(std::io::Error::from).context(refused).map_err(|e| e.with_hint("name a folder that you may write with --output"))
    }

    /// Writes a small file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).context(|| format!("writing {}", path.display()))
    }

    /// Takes an artifact of the finished folder over, when a build of the same key did not ask for it again.
    pub fn adopt(&self, name: &str) -> Result<()> {
        let (from, to) = (self.target.join(name), self.dir.join(name));
        fs::hard_link(&from, &to).context(|| format!("keeping {}", from.display()))
    }

    /// Gives the folder its name, replacing an older one.
    pub fn finish(self) -> Result<()> {
        let shown = || format!("naming {}", self.target.display());
        if !self.target.exists() {
            return fs::rename(&self.dir, &self.target).context(shown);
        }
        // Under its new name the old folder must not look abandoned to a build that begins now.
        let old = File::open(&self.target).context(shown)?;
        let _ = old.try_lock();
        rustix::fs::renameat_with(CWD, &self.dir, CWD, &self.target, RenameFlags::EXCHANGE).map_err(std::io::Error::from).context(shown)?;
        fs::remove_dir_all(&self.dir).context(|| format!("removing the replaced folder {}", self.dir.display()))
    }
}

/// Unfinished folders below `parent` whose build is dead.
fn abandoned(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let named = |name: &str| name.starts_with('.') && name.ends_with(".partial");
    let paths = entries.filter(|e| named(&e.file_name().to_string_lossy()) && e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
    paths.filter(|path| File::open(path).is_ok_and(|folder| folder.try_lock().is_ok())).collect()
}

/// The record of a finished folder; none when there is no folder or its record cannot be read.
pub fn existing(target: &Path) -> Option<BuildRecord> {
    let text = fs::read(target.join(record::FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// True when every artifact of the record is there with its recorded length.
pub fn is_whole(target: &Path, record: &BuildRecord) -> bool {
    let there = |a: &Artifact| a.names().all(|name| target.join(name).is_file());
    record.artifacts.iter().all(|a| there(a) && fs::metadata(target.join(&a.file)).is_ok_and(|m| m.len() == a.size.0))
}

/// Names, lengths and modification times of a folder's files; differs when a file was changed, added or removed.
pub fn fingerprint(target: &Path) -> String {
    let entries = fs::read_dir(target).into_iter().flatten().flatten();
    let mut lines: Vec<_> = entries
        .filter_map(|e| {
            let meta = e.metadata().ok()?;
            Some(format!("{}\0{}\0{}.{}\n", e.file_name().to_string_lossy(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// Digest and name in a line of sha256sum(1).
pub fn sum_of(line: &str) -> Option<(Digest, &str)> {
    let (digest, name) = line.split_once("  ")?;
    Some((digest.parse().ok()?, name))
}

/// Digest of a file.
pub fn sha256(path: &Path) -> Result<Digest> {
    disk::sha256(&FileAt::open(path)?).context(|| format!("hashing {}", path.display()))
}

/// Digest of a file and those of its chunks, from one reading.
pub fn sums(path: &Path) -> Result<(Digest, FileCheck)> {
    let file = FileAt::open(path)?;
    let mut whole = Sha256::new();
    let mut check = FileCheck { size: file.len(), chunks: Vec::new() };
    // A whole number of chunks, enough of them for all cores.
    let mut buffer = vec![0; 64 * CHUNK as usize];
    let mut done = 0;
    while done < file.len() {
        let piece = &mut buffer[..(file.len() - done).min(64 * CHUNK) as usize];
        file.read_at(piece, done).context(|| format!("hashing {}", path.display()))?;
        let chunks = || piece.par_chunks(CHUNK as usize).map(Digest::of).collect::<Vec<_>>();
        let ((), chunks) = rayon::join(|| whole.update(&*piece), chunks);
        check.chunks.extend(chunks);
        done += piece.len() as u64;
    }
    Ok((Digest(whole.finalize().into()), check))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_folder_appears_whole_and_replaces_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("1.0.0");
        for text in ["first", "second"] {
            let staging = Staging::begin(&target).unwrap();
            staging.write("a", text.as_bytes()).unwrap();
            assert!(text == "second" || !target.exists());
            staging.finish().unwrap();
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_build_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("1.0.0");
        let others = [dir.path().join(".0.9.0.partial"), dir.path().join("0.9.0")];
        others.iter().for_each(|path| fs::create_dir(path).unwrap());
        Staging::begin(&target).unwrap().write("left", b"x").unwrap();
        assert_eq!(others.each_ref().map(|path| path.exists()), [false, true]);
        let staging = Staging::begin(&target).unwrap();
        assert!(!staging.dir.join("left").exists() && !target.exists());
        assert_eq!(Staging::begin(&target).unwrap_err().fault(), layers::Fault::Environment, "it is being written");
    }

    #[test]
    fn one_reading_gives_the_digests_that_two_give() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for length in [0, 1, CHUNK as usize, 64 * CHUNK as usize + 7] {
            let bytes: Vec<u8> = (0..length).map(|n| ((n * 31) >> 3) as u8).collect();
            fs::write(file.path(), &bytes).unwrap();
            assert_eq!(sums(file.path()).unwrap(), (Digest::of(&bytes), FileCheck::of(file.path()).unwrap()));
        }
    }

    #[test]
    fn a_file_is_hashed_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = vec![7; (1 << 20) + 3];
        fs::write(file.path(), &bytes).unwrap();
        assert_eq!(sha256(file.path()).unwrap(), Digest::of(&bytes));
        // With holes before, between and behind.
        file.as_file().set_len(0).unwrap();
        file.as_file().write_all_at(b"x", (3 << 20) + 5).unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        assert_eq!(sha256(file.path()).unwrap(), Digest::of(&fs::read(file.path()).unwrap()));
    }
}
