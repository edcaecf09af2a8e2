//! Scratch folders: where they lie, that they go with their user, and how those of killed processes are told from those in use. A scratch
//! folder is locked (flock(2)) for as long as its process lives, so nothing depends on process numbers or clocks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use layers::{Context, Error, Result};
use rustix::fs::StatVfsMountFlags;

/// The file system in memory that every Linux has for shared memory (shm_overview(7)).
const MEMORY: &str = "/dev/shm";
/// What statfs(2) calls tmpfs.
const TMPFS: i64 = 0x0102_1994;

/// A locked folder, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes a folder of its own below `parent`.
    pub fn new_in(parent: &Path) -> Result<Self> {
        let naming = || format!("creating scratch folder in {}", parent.display());
        // Whoever cleans up may take a folder between its making and its locking; then the next one is tried.
        for _ in 0..16 {
            let path = tempfile::Builder::new().prefix(&prefix()).tempdir_in(parent).context(naming)?.keep();
            if let Some(scratch) = Self::lock(path).context(naming)? {
                return Ok(scratch);
            }
        }
        Err(Error::environment(format!("{}: each one was taken away", naming())))
    }

    /// The folder, if it is still there and nobody holds it.
    fn lock(path: PathBuf) -> io::Result<Option<Self>> {
        let lock = File::open(&path)?;
        let (ours, there) = match (lock.try_lock(), fs::symlink_metadata(&path)) {
            (Ok(()), Ok(there)) => (lock.metadata()?, there),
            (Err(fs::TryLockError::Error(e)), _) => return Err(e),
            _ => return Ok(None),
        };
        Ok(((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(Self { path, _lock: lock }))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folders below `parent` whose process is dead, now ours.
    pub fn abandoned(parent: &Path) -> Vec<Self> {
        let uid = rustix::process::getuid().as_raw();
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let named = entries.filter(|e| e.file_name().as_encoded_bytes().starts_with(prefix().as_bytes()));
        let own = named.filter(|e| e.metadata().is_ok_and(|m| m.is_dir() && m.uid() == uid));
        own.filter_map(|e| Self::lock(e.path()).ok().flatten()).collect()
    }

    /// Gives the folder up without removing it: the next look for abandoned ones finds it.
    pub fn leave(mut self) -> PathBuf {
        // Dropping then removes nothing: no folder has the empty path.
        std::mem::take(&mut self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed from here is found by the next build or `cache prune`.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Folders of different users never meet in a shared parent.
fn prefix() -> String {
    format!("chasi-bod-{}-", rustix::process::getuid().as_raw())
}

/// Where scratch in memory lies, whether it is used or not.
pub fn memory() -> &'static Path {
    Path::new(MEMORY)
}

/// The folder in memory, when `need` bytes there are little beside what is free. Files come and go there at no cost; on disk each is written
/// out, and ext4 without journal searches past every file removed in the last minutes.
pub fn roomy_memory(need: u64) -> Option<&'static Path> {
    let space = rustix::fs::statvfs(MEMORY).ok()?;
    let tmpfs = rustix::fs::statfs(MEMORY).is_ok_and(|s| i128::from(s.f_type) == i128::from(TMPFS));
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let room = (free / 2).min(available()? / 4).min(group_limit() / 8);
    (tmpfs && !space.f_flag.contains(StatVfsMountFlags::NOEXEC) && need <= room && !cleared_by_logind()).then(memory)
}

/// logind removes what a person's account has there when its last session ends (logind.conf(5), RemoveIPC), under a running build too.
fn cleared_by_logind() -> bool {
    rustix::process::getuid().as_raw() >= 1000 && Path::new("/run/systemd/system").exists()
}

/// `MemAvailable` of proc_meminfo(5) in bytes.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The lowest memory limit of the control groups that this process is in (cgroups(7)), in bytes.
fn group_limit() -> u64 {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?) {
            ("", path) => Some(("/sys/fs/cgroup", path, "memory.max")),
            ("memory", path) => Some(("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")),
            _ => None,
        }
    });
    let limits = groups.flat_map(|(base, path, file)| Path::new(path).ancestors().map(move |a| format!("{base}{}/{file}", a.display())));
    limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_not_abandoned_and_goes_with_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let used = Scratch::new_in(dir.path()).unwrap();
        assert!(Scratch::abandoned(dir.path()).is_empty());
        drop(used);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_process_left_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let left = Scratch::new_in(dir.path()).unwrap().leave();
        fs::create_dir(dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", dir.path().join(prefix() + "link")).unwrap();
        let found = Scratch::abandoned(dir.path());
        assert_eq!(found.iter().map(Scratch::path).collect::<Vec<_>>(), [left.as_path()]);
        assert!(Scratch::abandoned(dir.path()).is_empty(), "whoever cleans up holds it");
        drop(found);
        assert!(!left.exists() && dir.path().join("other").exists());
    }

    #[test]
    fn memory_is_not_asked_for_more_than_there_is() {
        assert_eq!(roomy_memory(u64::MAX), None);
        assert!(available().unwrap() > 0 && group_limit() > 0);
    }
}
