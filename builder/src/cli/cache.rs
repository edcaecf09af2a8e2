//! `chasi-bod cache`: what the store holds, removing what nothing needs, exporting a profile's packages for a machine without network.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use layers::lock::Lock;
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};
use serde::Serialize;

use crate::store::Store;

/// Kinds of the store in the order shown.
const KINDS: [&str; 6] = ["blobs", "packs", "derived", "partial", "quarantine", "tmp"];

/// Scratch younger than this may belong to a build that runs now.
const SCRATCH_AGE: Duration = Duration::from_secs(24 * 3600);

/// Number and size of one kind.
#[derive(Debug, Serialize)]
pub struct Usage {
    /// Folder below the store.
    pub kind: &'static str,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub size: Bytes,
}

/// What the store holds, by kind.
pub fn usage(store: &Store) -> Result<Vec<Usage>> {
    let sum = |kind: &'static str| -> Result<Usage> {
        let files = files(&store.root().join(kind))?;
        Ok(Usage { kind, files: files.len() as u64, size: Bytes(files.iter().map(|(_, m)| m.len()).sum()) })
    };
    KINDS.into_iter().map(sum).collect()
}

/// Files that may go: blobs that no lock names, and old scratch. What was derived from blobs stays: it is found by its inputs, not by a lock.
pub fn prunable(store: &Store, locks: &[Lock]) -> Result<Vec<(PathBuf, Bytes)>> {
    let keep: BTreeSet<String> = locks.iter().flat_map(needed).map(|d| d.hex()).collect();
    let mut out = Vec::new();
    for (path, meta) in files(&store.root().join("blobs"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !keep.contains(&name) {
            out.push((path, Bytes(meta.len())));
        }
    }
    for kind in ["partial", "quarantine", "tmp"] {
        let dir = store.root().join(kind);
        let old = |meta: &fs::Metadata| meta.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|age| age > SCRATCH_AGE);
        // Folders in tmp/ are scratch roots: those in use hold files as old as their packages, the others go whole (`scratch::stale`).
        let loose = files(&dir)?.into_iter().filter(|(p, m)| p.parent() == Some(&dir) && old(m));
        out.extend(loose.map(|(p, m)| (p, Bytes(m.len()))));
    }
    Ok(out)
}

/// Copies the blobs of a lock into another store.
pub fn export(store: &Store, lock: &Lock, dir: &Path) -> Result<Bytes> {
    let target = Store::open(dir)?;
    let mut total = 0;
    for digest in needed(lock) {
        let (from, to) = (store.blob(&digest), target.blob(&digest));
        if to.exists() {
            continue;
        }
        if !from.exists() {
            return Err(Error::input(format!("exporting {digest}: the store does not hold it")).with_hint("build the profile once with network"));
        }
        let part = target.scratch_file()?;
        total += fs::copy(&from, part.path()).context(|| format!("copying {}", from.display()))?;
        part.persist(&to).context(|| format!("writing {}", to.display()))?;
    }
    Ok(Bytes(total))
}

fn needed(lock: &Lock) -> impl Iterator<Item = Digest> {
    let indices = lock.indices.iter().map(|i| i.sha256);
    indices.chain(lock.packages.iter().chain(&lock.tools).map(|p| p.sha256))
}

fn files(dir: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let entry = entry.context(|| format!("reading {}", dir.display()))?;
            let meta = entry.metadata().context(|| format!("reading {}", entry.path().display()))?;
            if meta.is_dir() { todo.push(entry.path()) } else { out.push((entry.path(), meta)) }
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::lock::Index;

    fn lock_of(digest: Digest) -> Lock {
        let index = Index { suite: "trixie".into(), sha256: digest, date: 0, signed_by: Vec::new() };
        Lock { indices: vec![index], ..Lock::default() }
    }

    #[test]
    fn prune_keeps_what_a_lock_names_and_export_copies_it() {
        let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).unwrap();
        let (kept, gone) = (store.put_blob(b"kept").unwrap(), store.put_blob(b"gone").unwrap());
        let names: Vec<_> = prunable(&store, &[lock_of(kept)]).unwrap().into_iter().map(|(p, _)| p).collect();
        assert_eq!(names, [store.blob(&gone)]);
        assert_eq!(export(&store, &lock_of(kept), target.path()).unwrap(), Bytes(4));
        assert_eq!(fs::read(Store::open(target.path()).unwrap().blob(&kept)).unwrap(), b"kept");
        assert!(export(&store, &lock_of(Digest::of(b"absent")), target.path()).unwrap_err().hint().is_some());
    }
}
