//! `chasi-bod cache`: what the store holds, removing what nothing needs, exporting a profile's packages for a machine without network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use layers::lock::Lock;
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};
use serde::Serialize;

use crate::source::deb::suite::{KNOWN, Known, PARSED};
use crate::source::go;
use crate::store::{Store, Used};

/// Kinds of the store in the order shown, with what they are; `derived` is shown by what was derived.
const KINDS: [(&str, &str); 7] = [
    ("blobs", "verified downloads: packages, indices, modules, images"),
    ("packs", "unpacked file contents"),
    ("derived", ""),
    ("go", "Go toolchains, and what they keep of modules and builds"),
    ("partial", "unfinished downloads, resumed by the next build"),
    ("quarantine", "downloads with wrong bytes"),
    ("tmp", "scratch of running or killed commands"),
];

/// The kind that is pruned by folders.
const GO: &str = "go";

/// What is below `derived`.
const DERIVED: [(&str, &str); 14] = [
    ("built", "which result folders are up to date"),
    ("configured", "trees after the packages' scripts"),
    ("deb-index", "parsed package indices"),
    ("go", "programs from Go modules"),
    ("grub", "GRUB images"),
    ("image-layers", "trees of pulled image layers"),
    ("image-sums", "digests of image layers that were made here"),
    ("log", "logs of configured packages"),
    ("modules", "kernel packages with plain modules"),
    ("notices", "licence texts of programs"),
    ("suite", "suites for `lock --offline`"),
    ("unpacked", "trees of packages"),
    ("url", "files of downloads"),
    ("uses", "what the newest build of each lock used"),
];

/// Number and size of one kind.
#[derive(Debug, Serialize)]
pub struct Usage {
    /// Folder below the store.
    pub kind: String,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub size: Bytes,
    /// What they are.
    pub holds: &'static str,
}

/// A file that nothing needs, or a folder whose files are one thing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Unneeded {
    /// Folder below the store.
    pub kind: String,
    /// The file or folder.
    pub path: PathBuf,
    /// Number of its files.
    pub files: u64,
    /// Their bytes.
    pub size: Bytes,
}

impl Unneeded {
    /// Takes it out of the store.
    pub fn remove(&self) -> Result<()> {
        let removed = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
        removed.context(|| format!("removing {}", self.path.display()))
    }
}

/// What the store holds, by kind.
pub fn usage(store: &Store) -> Result<Vec<Usage>> {
    let mut out = Vec::new();
    for (kind, holds) in kinds(store)? {
        let files = files(&store.root().join(&kind))?;
        out.push(Usage { kind, files: files.len() as u64, size: Bytes(files.iter().map(|(_, m)| m.len()).sum()), holds });
    }
    Ok(out)
}

/// The kinds there are: the fixed ones, with `derived` in its parts.
fn kinds(store: &Store) -> Result<Vec<(String, &'static str)>> {
    let mut out = Vec::new();
    for (kind, holds) in KINDS {
        if kind != "derived" {
            out.push((kind.to_string(), holds));
            continue;
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        for entry in fs::read_dir(store.root().join(kind)).into_iter().flatten() {
            let entry = entry.context(|| format!("reading {}", store.root().join(kind).display()))?;
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
        let known = |name: &str| DERIVED.iter().find(|(known, _)| *known == name).map_or("", |(_, holds)| holds);
        out.extend(names.into_iter().map(|name| (format!("{kind}/{name}"), known(&name))));
    }
    Ok(out)
}

/// The usage as a table with its sum.
pub fn table(usage: &[Usage]) -> String {
    let line = |kind: &str, files: u64, size: Bytes, holds: &str| format!("{kind:<20} {files:>7} files {:>10}  {holds}\n", size.to_string());
    let lines: String = usage.iter().map(|u| line(&u.kind, u.files, u.size, u.holds)).collect();
    let sum = Bytes(usage.iter().map(|u| u.size.0).sum());
    lines + line("total", usage.iter().map(|u| u.files).sum(), sum, "").trim_end() + "\n"
}

/// A line for each kind that loses files.
pub fn by_kind(files: &[Unneeded]) -> Vec<String> {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for file in files {
        let sum = sums.entry(&file.kind).or_default();
        *sum = (sum.0 + file.files, sum.1 + file.size.0);
    }
    sums.into_iter().map(|(kind, (count, size))| format!("{kind:<20} {count:>7} files {:>10}\n", Bytes(size).to_string())).collect()
}

/// Files that may go: downloads that no lock names, and what was made from downloads but not used by the newest build of any of the locks.
/// An unfinished download that a lock names stays: it is resumed.
pub fn prunable(store: &Store, locks: &[Lock]) -> Result<Vec<Unneeded>> {
    let (blobs, used) = kept(store, locks)?;
    let mut out = go_folders(store, locks)?;
    for (kind, _) in kinds(store)?.into_iter().filter(|(kind, _)| kind != GO) {
        for (path, meta) in files(&store.root().join(&kind))? {
            let key = key_of(&path);
            let needed = key.is_some_and(|key| match kind.as_str() {
                "blobs" | "partial" => blobs.contains(&key),
                _ => used.contains(&(kind.clone(), key)),
            });
            // Scratch goes with its process, or when the store is next opened.
            if !needed && kind != "tmp" {
                out.push(Unneeded { kind: kind.clone(), path, files: 1, size: Bytes(meta.len()) });
            }
        }
    }
    Ok(out)
}

/// Go's folders but for the toolchains of the locks: its caches only save time where a program has to be built anew, and grow without limit.
fn go_folders(store: &Store, locks: &[Lock]) -> Result<Vec<Unneeded>> {
    let toolchains = locks.iter().flat_map(|lock| &lock.sources).flat_map(|source| &source.go).map(|go| go::toolchain_folder(&go.toolchain));
    let toolchains: BTreeSet<_> = toolchains.collect();
    let mut out = Vec::new();
    for entry in fs::read_dir(store.root().join(GO)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !toolchains.contains(&*entry.file_name().to_string_lossy()) {
            let files = files(&path)?;
            let size = Bytes(files.iter().map(|(_, meta)| meta.len()).sum());
            out.push(Unneeded { kind: GO.into(), path, files: files.len() as u64, size });
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

/// Blobs, packs and results that locks need.
fn kept(store: &Store, locks: &[Lock]) -> Result<(BTreeSet<Digest>, Used)> {
    let mut blobs: BTreeSet<Digest> = locks.iter().flat_map(needed).collect();
    let mut used = Used::new();
    for lock in locks {
        used.extend(store.uses(&Digest::of(lock.to_yaml()?.as_bytes()))?);
    }
    for (key, known) in suites(store, locks)? {
        used.insert((format!("derived/{KNOWN}"), key));
        for list in known.lists {
            blobs.insert(list.blob);
            used.insert((format!("derived/{PARSED}"), list.key));
        }
    }
    Ok((blobs, used))
}

/// Suites as they were when one of the locks was made.
fn suites(store: &Store, locks: &[Lock]) -> Result<BTreeMap<Digest, Known>> {
    let indices: BTreeSet<Digest> = locks.iter().flat_map(|l| &l.indices).map(|i| i.sha256).collect();
    let mut out = BTreeMap::new();
    for (path, _) in files(&store.root().join("derived").join(KNOWN))? {
        let key = key_of(&path);
        if let Some(key) = key
            && let Some(known) = store.load::<Known>(KNOWN, &key)?
            && indices.contains(&known.signed)
        {
            out.insert(key, known);
        }
    }
    Ok(out)
}

/// Copies what a lock needs from the network into another store: packages, and the indices that `lock --offline` reads.
pub fn export(store: &Store, lock: &Lock, dir: &Path) -> Result<Bytes> {
    let target = Store::open(dir)?;
    let mut total = 0;
    for digest in needed(lock) {
        if !store.blob(&digest).exists() && !target.blob(&digest).exists() {
            return Err(Error::environment(format!("exporting {digest}: the store {} does not hold it", store.root().display()))
                .with_hint("build the profile once with network"));
        }
        total += copy(&store.blob(&digest), &target, &target.blob(&digest))?;
    }
    for (key, known) in suites(store, std::slice::from_ref(lock))? {
        for list in &known.lists {
            total += copy(&store.blob(&list.blob), &target, &target.blob(&list.blob))?;
            total += copy(&store.derived(PARSED, &list.key)?, &target, &target.derived(PARSED, &list.key)?)?;
        }
        target.save(KNOWN, &key, &known)?;
    }
    Ok(Bytes(total))
}

/// Copies a file of one store to its place in another; what is there already, or nowhere, is not copied.
fn copy(from: &Path, target: &Store, to: &Path) -> Result<u64> {
    if to.exists() || !from.exists() {
        return Ok(0);
    }
    let part = target.scratch_file()?;
    let size = fs::copy(from, part.path()).context(|| format!("copying {}", from.display()))?;
    part.persist(to).context(|| format!("writing {}", to.display()))?;
    Ok(size)
}

/// The digest that a file of the store is named by.
fn key_of(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

fn needed(lock: &Lock) -> impl Iterator<Item = Digest> {
    let indices = lock.indices.iter().map(|i| i.sha256);
    indices.chain(lock.blobs().into_keys())
}

fn files(dir: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            // What is gone by now was another process's scratch.
            let Ok(meta) = entry.metadata() else { continue };
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

    fn digest_of(lock: &Lock) -> Digest {
        Digest::of(lock.to_yaml().unwrap().as_bytes())
    }

    #[test]
    fn prune_keeps_what_a_lock_names_and_export_copies_it() {
        let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).unwrap();
        let (kept, gone) = (store.put_blob(b"kept").unwrap(), store.put_blob(b"gone").unwrap());
        let names: Vec<_> = prunable(&store, &[lock_of(kept)]).unwrap().into_iter().map(|u| u.path).collect();
        assert_eq!(names, [store.blob(&gone)]);
        assert_eq!(export(&store, &lock_of(kept), target.path()).unwrap(), Bytes(4));
        assert_eq!(fs::read(Store::open(target.path()).unwrap().blob(&kept)).unwrap(), b"kept");
        assert!(export(&store, &lock_of(Digest::of(b"absent")), target.path()).unwrap_err().hint().is_some());
    }

    #[test]
    fn prune_takes_gos_caches_and_the_toolchains_of_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let toolchain = |text: &[u8]| layers::source::LockedModule {
            path: "golang.org/toolchain".into(),
            version: "v0.0.1-go1.26.8.linux-amd64".into(),
            sha256: Digest::of(text),
            size: Bytes(1),
            go_mod: None,
            licence: None,
        };
        let (ours, theirs) = (go::toolchain_folder(&toolchain(b"ours")), go::toolchain_folder(&toolchain(b"theirs")));
        for path in
            [format!("{ours}/bin/go"), format!("{theirs}/bin/go"), "cache/00/a".into(), "cache/01/b".into(), "mod/x@v1/x.go".into(), "lock".into()]
        {
            let path = dir.path().join("go").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"1234").unwrap();
        }
        let go = layers::source::LockedGo { toolchain: toolchain(b"ours"), go_mod: String::new(), go_sum: String::new(), modules: Vec::new() };
        let source = layers::source::LockedSource { name: "tool".into(), request: Digest::of(b"r"), go: Some(go), url: None };
        let lock = Lock { sources: vec![source], ..Lock::default() };
        let gone = prunable(&store, &[lock]).unwrap();
        let named: Vec<_> = gone.iter().map(|u| (u.path.file_name().unwrap().to_str().unwrap(), u.files, u.size)).collect();
        assert_eq!(named, [("cache", 2, Bytes(8)), ("mod", 1, Bytes(4)), (theirs.as_str(), 1, Bytes(4))]);
        gone.iter().try_for_each(Unneeded::remove).unwrap();
        let left: BTreeSet<_> = fs::read_dir(dir.path().join("go")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left, BTreeSet::from(["lock".into(), ours]));
    }

    #[test]
    fn prune_keeps_what_the_newest_build_of_a_lock_used() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (lock_of(Digest::of(b"ours")), lock_of(Digest::of(b"theirs")));
        for (lock, name) in [(&ours, b"ours".as_slice()), (&theirs, b"theirs")] {
            let store = Store::open(dir.path()).unwrap();
            let key = Digest::of(name);
            let mut pack = store.new_pack(key).unwrap();
            pack.add(name).unwrap();
            pack.finish().unwrap();
            store.save("unpacked", &key, &name).unwrap();
            store.save_uses(&digest_of(lock)).unwrap();
        }
        let store = Store::open(dir.path()).unwrap();
        let gone: Vec<_> = prunable(&store, std::slice::from_ref(&ours)).unwrap();
        let kinds: Vec<_> = gone.iter().map(|u| u.kind.as_str()).collect();
        assert_eq!(kinds, ["packs", "derived/unpacked", "derived/uses"]);
        assert!(gone[..2].iter().all(|u| u.path.ends_with(Digest::of(b"theirs").hex())));
        assert!(prunable(&store, &[ours, theirs]).unwrap().is_empty());
    }

    #[test]
    fn the_indices_of_a_kept_lock_stay_and_are_exported() {
        let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).unwrap();
        let (signed, blob) = (store.put_blob(b"InRelease").unwrap(), store.put_blob(b"Packages.xz").unwrap());
        let list = crate::source::deb::suite::List { blob, key: Digest::of(b"key") };
        store.save(PARSED, &list.key, &1).unwrap();
        let known = Known { signed, seen: 1, lists: vec![list.clone()] };
        store.save(KNOWN, &Digest::of(b"trixie"), &known).unwrap();
        assert!(prunable(&store, &[lock_of(signed)]).unwrap().is_empty());
        assert_eq!(prunable(&store, &[lock_of(Digest::of(b"other"))]).unwrap().len(), 4);
        export(&store, &lock_of(signed), target.path()).unwrap();
        let target = Store::look(target.path());
        assert_eq!(target.load::<Known>(KNOWN, &Digest::of(b"trixie")).unwrap(), Some(known));
        assert!(target.blob(&blob).exists() && target.load::<i32>(PARSED, &list.key).unwrap() == Some(1));
    }
}
