//! The content-addressed store below `~/.cache/chasi-bod`: verified downloads (blobs), unpacked file contents (packs) and whatever else is
//! derived by key. Everything appears under its final name by rename, so a killed build leaves nothing that looks finished.
//!
//! ```text
//! blobs/<sha256>          a download, verified before it got this name
//! partial/<sha256>        a download under way; resumed by its length
//! packs/<key>             concatenated file contents; `Content` points into it
//! derived/<kind>/<key>    results by key: unpacked trees, configured trees, GRUB images
//! go/                     toolchains by digest, the Go command's caches and its job under way
//! quarantine/<sha256>     what once had a wrong digest, kept for inspection
//! tmp/                    scratch; what a killed build left goes with the next command that has the store to itself
//! ```
//!
//! Whoever uses the store holds a shared flock(2) on its folder, whoever removes from it an exclusive one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use layers::units::Digest;
use layers::{Context, Error, Fault, Result};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::tree::Content;
use crate::workspace::Scratch;

/// The store's folder.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    packs: Mutex<HashMap<Digest, Arc<File>>>,
    used: Mutex<Used>,
    /// Holds the lock; none when the folder is only looked at.
    guard: Option<File>,
}

/// Packs and derived results by folder below the store and key.
pub type Used = BTreeSet<(String, Digest)>;

/// What a build used, by the digest of its lock: kind of the derived result.
const USES: &str = "uses";

impl Store {
    /// Opens the store, making its folders; waits while another process removes from it.
    pub fn open(root: &Path) -> Result<Self> {
        let elsewhere = |e: Error| e.with_hint("name a folder that you may write with --cache or CHASI_BOD_CACHE");
        for dir in ["blobs", "partial", "packs", "derived", "quarantine", "tmp"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).context(|| format!("creating store folder {}", path.display())).map_err(elsewhere)?;
        }
        let access = rustix::fs::access(root.join("tmp"), rustix::fs::Access::WRITE_OK).map_err(io::Error::from);
        access.context(|| format!("writing to the store {}", root.display())).map_err(elsewhere)?;
        let guard = File::open(root).context(|| format!("opening the store {}", root.display()))?;
        if guard.try_lock().is_ok() {
            remove_loose(&root.join("tmp"));
        }
        guard.lock_shared().context(|| format!("locking the store {}", root.display()))?;
        Ok(Self { guard: Some(guard), ..Self::look(root) })
    }

    /// The store to be looked at: nothing is made, nothing may be written; one that does not exist is empty.
    pub fn look(root: &Path) -> Self {
        Self { root: root.to_path_buf(), packs: Mutex::default(), used: Mutex::default(), guard: None }
    }

    /// Makes sure that no other process uses the store for as long as this value lives, so that it is safe to remove from it.
    pub fn alone(&self) -> Result<()> {
        match self.guard.as_ref().map_or(Ok(()), File::try_lock) {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                Err(Error::environment(format!("removing from the store {}: another chasi-bod uses it", self.root.display()))
                    .with_hint("try again when it is done"))
            }
            Err(TryLockError::Error(e)) => Err(e).context(|| format!("locking the store {}", self.root.display())),
        }
    }

    fn note(&self, folder: String, key: &Digest) -> PathBuf {
        let path = self.root.join(&folder).join(key.hex());
        self.used.lock().unwrap_or_else(|e| e.into_inner()).insert((folder, *key));
        path
    }

    /// Keeps for `cache prune` which packs and results were asked for since the store was opened, under the digest of the lock.
    pub fn save_uses(&self, lock: &Digest) -> Result<()> {
        let used = self.used.lock().unwrap_or_else(|e| e.into_inner()).clone();
        self.save(USES, lock, &used)
    }

    /// What the newest build of a lock used, with this very record; none when no build is known.
    pub fn uses(&self, lock: &Digest) -> Result<Used> {
        let mut used = self.load::<Used>(USES, lock)?.unwrap_or_default();
        used.insert((format!("derived/{USES}"), *lock));
        Ok(used)
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a blob, whether it is there or not.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// Path of an unfinished download.
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.hex())
    }

    /// Path where a blob with wrong bytes is put aside.
    pub fn quarantine(&self, digest: &Digest) -> PathBuf {
        self.root.join("quarantine").join(digest.hex())
    }

    /// Path of a derived result; its kind's folder exists afterwards.
    pub fn derived(&self, kind: &str, key: &Digest) -> Result<PathBuf> {
        let dir = self.root.join("derived").join(kind);
        fs::create_dir_all(&dir).context(|| format!("creating store folder {}", dir.display()))?;
        Ok(self.note(format!("derived/{kind}"), key))
    }

    /// A derived value, read back if it is there and whole; a damaged one counts as absent.
    pub fn load<T: DeserializeOwned>(&self, kind: &str, key: &Digest) -> Result<Option<T>> {
        let path = self.note(format!("derived/{kind}"), key);
        match fs::read(&path) {
            Ok(bytes) => Ok(postcard::from_bytes(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context(|| format!("reading {}", path.display())),
        }
    }

    /// Keeps a derived value.
    pub fn save<T: Serialize>(&self, kind: &str, key: &Digest, value: &T) -> Result<()> {
        let path = self.derived(kind, key)?;
        let bytes = postcard::to_stdvec(value).map_err(|e| Error::internal(format!("encoding {kind}: {e}")))?;
        self.write_atomic(&path, &bytes)
    }

    /// A scratch folder that is removed when dropped.
    pub fn scratch(&self) -> Result<Scratch> {
        Scratch::new_in(&self.root.join("tmp"))
    }

    /// A scratch file that `persist` can rename to its final name inside the store.
    pub fn scratch_file(&self) -> Result<tempfile::NamedTempFile> {
        tempfile::NamedTempFile::new_in(self.root.join("tmp")).context(|| format!("creating scratch file in {}", self.root.join("tmp").display()))
    }

    /// Writes a file under its final name in one step.
    pub fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = self.scratch_file()?;
        file.write_all(bytes).context(|| format!("writing {}", path.display()))?;
        file.persist(path).context(|| format!("writing {}", path.display()))?;
        Ok(())
    }

    /// Keeps bytes as a blob.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.blob(&digest).exists() {
            self.write_atomic(&self.blob(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Path of a pack.
    pub fn pack(&self, key: &Digest) -> PathBuf {
        self.note("packs".into(), key)
    }

    /// Starts a new pack under a key; nothing is visible until it is finished.
    pub fn new_pack(&self, key: Digest) -> Result<PackWriter<'_>> {
        Ok(PackWriter { store: self, key, file: io::BufWriter::with_capacity(1 << 20, self.scratch_file()?), offset: 0, seen: BTreeMap::new() })
    }

    /// The open file of a pack; kept open for further reads.
    pub fn pack_file(&self, key: &Digest) -> Result<Arc<File>> {
        let mut packs = self.packs.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(file) = packs.get(key) {
            return Ok(file.clone());
        }
        let path = self.pack(key);
        let file = Arc::new(File::open(&path).context(|| format!("opening pack {}", path.display()))?);
        packs.insert(*key, file.clone());
        Ok(file)
    }

    /// Reads a part of a file's content; `offset` counts from the content's first byte.
    pub fn read_at(&self, content: &Content, buffer: &mut [u8], offset: u64) -> Result<()> {
        let file = self.pack_file(&content.pack)?;
        file.read_exact_at(buffer, content.offset + offset)
            .context(|| format!("reading content {} from pack {}", content.sha256, content.pack.short()))
    }

    /// Reads a whole content; for small files.
    pub fn read(&self, content: &Content) -> Result<Vec<u8>> {
        let mut out = vec![0; content.size as usize];
        self.read_at(content, &mut out, 0)?;
        Ok(out)
    }
}

/// Removes files of processes that are gone; folders there are scratch roots with locks of their own (`workspace`).
fn remove_loose(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| !t.is_dir()) {
            // What cannot be removed now is tried again by the next command.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A pack being written: equal contents are kept once.
#[derive(Debug)]
pub struct PackWriter<'a> {
    store: &'a Store,
    key: Digest,
    file: io::BufWriter<tempfile::NamedTempFile>,
    offset: u64,
    seen: BTreeMap<Digest, Content>,
}

impl PackWriter<'_> {
    /// Adds a content held in memory.
    pub fn add(&mut self, bytes: &[u8]) -> Result<Content> {
        self.add_known(bytes, Digest::of(bytes))
    }

    /// Adds a content whose digest is known already.
    pub fn add_known(&mut self, bytes: &[u8], sha256: Digest) -> Result<Content> {
        if let Some(known) = self.seen.get(&sha256) {
            return Ok(known.clone());
        }
        self.file.write_all(bytes).context(|| format!("writing pack {}", self.key.short()))?;
        let content = Content { sha256, size: bytes.len() as u64, pack: self.key, offset: self.offset };
        self.offset += content.size;
        self.seen.insert(sha256, content.clone());
        Ok(content)
    }

    /// Adds a content as it comes, without holding it in memory; one that the pack has already takes no room.
    pub fn add_from(&mut self, mut reader: impl Read) -> Result<Content> {
        let writing = |key: &Digest| format!("writing pack {}", key.short());
        let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
        loop {
            let n = reader.read(&mut buffer).fault(Fault::Input, || "reading the content".into())?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            self.file.write_all(&buffer[..n]).context(|| writing(&self.key))?;
            size += n as u64;
        }
        let sha256 = Digest(hasher.finalize().into());
        if let Some(known) = self.seen.get(&sha256).cloned() {
            let back = self.file.seek(SeekFrom::Start(self.offset)).and_then(|_| self.file.get_ref().as_file().set_len(self.offset));
            back.context(|| writing(&self.key))?;
            return Ok(known);
        }
        let content = Content { sha256, size, pack: self.key, offset: self.offset };
        self.offset += size;
        self.seen.insert(sha256, content.clone());
        Ok(content)
    }

    /// Gives the pack its final name.
    pub fn finish(self) -> Result<()> {
        let path = self.store.pack(&self.key);
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error).context(|| format!("writing {}", path.display()))?;
        file.persist(&path).context(|| format!("writing {}", path.display()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_keep_equal_contents_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"key");
        let mut pack = store.new_pack(key).unwrap();
        let (a, b, c) = (pack.add(b"hello").unwrap(), pack.add(b"").unwrap(), pack.add(b"hello").unwrap());
        assert!(!store.pack(&key).exists(), "visible only when finished");
        pack.finish().unwrap();
        assert_eq!((a.clone(), fs::metadata(store.pack(&key)).unwrap().len()), (c, 5));
        assert_eq!((store.read(&a).unwrap(), store.read(&b).unwrap()), (b"hello".to_vec(), Vec::new()));
    }

    #[test]
    fn streamed_contents_are_kept_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"key");
        let mut pack = store.new_pack(key).unwrap();
        let long = vec![7; 3 << 20];
        let (a, b) = (pack.add(b"hello").unwrap(), pack.add_from(long.as_slice()).unwrap());
        assert_eq!((pack.add_from(long.as_slice()).unwrap(), pack.add_from(b"hello".as_slice()).unwrap()), (b.clone(), a.clone()));
        let c = pack.add_from(b"last".as_slice()).unwrap();
        pack.finish().unwrap();
        assert_eq!(fs::metadata(store.pack(&key)).unwrap().len(), 5 + (3 << 20) + 4);
        assert_eq!((store.read(&a).unwrap(), store.read(&b).unwrap(), store.read(&c).unwrap()), (b"hello".to_vec(), long, b"last".to_vec()));
    }

    #[test]
    fn what_a_killed_process_left_goes_when_nobody_else_uses_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        fs::write(dir.path().join("tmp/left"), b"x").unwrap();
        let second = Store::open(dir.path()).unwrap();
        assert!(dir.path().join("tmp/left").exists(), "the first may still write it");
        assert_eq!(second.alone().unwrap_err().fault(), layers::Fault::Environment);
        drop((first, second));
        // A process that another test forks holds our locks until it has started its program: only what lasts counts.
        let left = || dir.path().join("tmp/left").exists();
        let gone = (0..500).any(|_| {
            let alone = Store::open(dir.path()).unwrap().alone().is_ok();
            std::thread::sleep(std::time::Duration::from_millis(10));
            alone && !left()
        });
        assert!(gone, "what the killed process left stays");
    }

    #[test]
    fn a_store_that_is_only_looked_at_is_not_made_and_uses_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert_eq!(Store::look(&absent).load::<Vec<u8>>("test", &Digest::of(b"key")).unwrap(), None);
        assert!(!absent.exists());
        let store = Store::open(dir.path()).unwrap();
        let (pack, lock) = (Digest::of(b"pack"), Digest::of(b"lock"));
        store.pack(&pack);
        store.save_uses(&lock).unwrap();
        let folders: Vec<_> = Store::look(dir.path()).uses(&lock).unwrap().into_iter().map(|(folder, _)| folder).collect();
        assert_eq!(folders, ["derived/uses", "packs"]);
    }

    #[test]
    fn derived_values_come_back_and_damage_counts_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"key");
        assert_eq!(store.load::<Vec<String>>("test", &key).unwrap(), None);
        store.save("test", &key, &vec!["a".to_string()]).unwrap();
        assert_eq!(store.load::<Vec<String>>("test", &key).unwrap(), Some(vec!["a".to_string()]));
        fs::write(store.derived("test", &key).unwrap(), [9, 9]).unwrap();
        assert_eq!(store.load::<Vec<String>>("test", &key).unwrap(), None);
    }
}
