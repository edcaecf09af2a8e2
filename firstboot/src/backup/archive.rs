//! The file of a backup: a tar archive, compressed by zstd (RFC 8878), enciphered as age does. Its first entry, `manifest.json`, names every other one
//! with size and digest, so that a list of backups need not read them whole, and nothing can be missing unnoticed.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header};

use super::age::{self, Identity, Recipient};
use crate::host::Host;

/// Version of manifest and entries; one that changes their meaning changes it.
pub const VERSION: u32 = 1;
/// Entry with the [`Manifest`].
pub const MANIFEST: &str = "manifest.json";
/// Most bytes of a manifest.
const MANIFEST_LIMIT: u64 = 16 << 20;
/// Most memory of the decompressor, as a power of two: what level 3 writes needs 2 MiB.
const WINDOW: u32 = 25;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Digest of the public key of the cluster's authority.
    pub cluster: String,
    /// The uid of the namespace kube-system, where the API answered.
    pub uid: Option<String>,
    /// When it was made, UTC (RFC 3339).
    pub time: String,
    /// Name of the Node object.
    pub node: String,
    /// The image that ran: name, version, root hash.
    pub image: String,
    /// Kubernetes' version of that image.
    pub kubernetes: String,
    /// Revision of etcd's snapshot.
    pub revision: u64,
    /// Virtual clusters whose store is in it.
    pub virtual_clusters: Vec<String>,
    /// What should be in it and is not, and why.
    pub left: Vec<String>,
    /// Every other entry, in the archive's order.
    pub parts: Vec<Part>,
}

/// An entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Path below the node's root, but for [`super::SNAPSHOT`]; a folder's ends with `/`.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, in hex.
    pub sha256: String,
}

/// What becomes an entry.
#[derive(Debug)]
pub struct Entry {
    /// As in [`Part`].
    pub name: String,
    /// Permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Where its bytes are.
    pub bytes: Bytes,
}

/// The bytes of an entry.
#[derive(Debug)]
pub enum Bytes {
    /// A folder has none.
    Folder,
    /// Few, at hand.
    Here(Vec<u8>),
    /// A file that nobody changes meanwhile.
    File(PathBuf),
}

impl Entry {
    fn part(&self) -> Result<Part> {
        let reading = || format!("reading {}", self.name);
        let (size, digest) = match &self.bytes {
            Bytes::Folder => (0, Digest::of(b"")),
            Bytes::Here(bytes) => (bytes.len() as u64, Digest::of(bytes)),
            Bytes::File(path) => {
                let file = File::open(path).context(reading)?;
                (file.metadata().context(reading)?.len(), Digest::of_reader(file).context(reading)?)
            }
        };
        Ok(Part { name: self.name.clone(), size, sha256: digest.hex() })
    }
}

/// Writes a backup of these entries and puts it on the disk; the parts of the manifest are filled in.
pub fn write(host: &Host, recipients: &[Recipient], mut manifest: Manifest, entries: &[Entry], to: File) -> Result<Manifest> {
    manifest.parts = entries.iter().map(Entry::part).collect::<Result<_>>()?;
    let text = serde_json::to_vec_pretty(&manifest).fault(Fault::Internal, || "encoding the manifest".into())?;
    let sealed = age::seal(host, recipients, BufWriter::new(to))?;
    let writing = || "compressing".to_string();
    let mut archive = Builder::new(zstd::Encoder::new(sealed, 3).fault(Fault::Environment, writing)?);
    let mut put = |name: &str, kind: EntryType, mode: u32, owner: (u32, u32), size: u64, bytes: &mut dyn Read| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0.into());
        header.set_gid(owner.1.into());
        header.set_size(size);
        header.set_mtime(0);
        archive.append_data(&mut header, name, bytes)
    };
    put(MANIFEST, EntryType::Regular, 0o600, (0, 0), text.len() as u64, &mut text.as_slice()).context(|| format!("writing {MANIFEST}"))?;
    for (entry, part) in entries.iter().zip(&manifest.parts) {
        let writing = || format!("writing {}", entry.name);
        let mut bytes: Box<dyn Read> = match &entry.bytes {
            Bytes::Folder => Box::new(std::io::empty()),
            Bytes::Here(bytes) => Box::new(bytes.as_slice()),
            Bytes::File(path) => Box::new(File::open(path).context(writing)?.take(part.size)),
        };
        let kind = if matches!(entry.bytes, Bytes::Folder) { EntryType::Directory } else { EntryType::Regular };
        put(&part.name, kind, entry.mode, entry.owner, part.size, &mut bytes).context(writing)?;
    }
    let ended = archive.into_inner().and_then(zstd::Encoder::finish).and_then(age::Sealed::finish);
    let file = ended.and_then(|buffered| buffered.into_inner().map_err(std::io::IntoInnerError::into_error)).and_then(|file| file.sync_all());
    file.context(|| "writing the end of the backup".into())?;
    Ok(manifest)
}

/// An entry that is read.
pub struct Found<'a> {
    /// What the manifest says of it.
    pub part: &'a Part,
    /// Permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Its bytes. They are checked when all were read.
    pub bytes: &'a mut dyn Read,
}

/// Reads only the manifest.
pub fn manifest(identities: &[Identity], path: &Path) -> Result<Manifest> {
    let mut archive = tar::Archive::new(plain(identities, path)?);
    let mut entries = archive.entries().map_err(damaged)?;
    first(entries.next())
}

/// Reads a backup to its end: each part goes to `visit`, and whatever is not as it was written is an error. What `visit` was given counts only when this
/// returns without one.
pub fn read(identities: &[Identity], path: &Path, mut visit: impl FnMut(&mut Found) -> Result<()>) -> Result<Manifest> {
    let mut archive = tar::Archive::new(plain(identities, path)?);
    let mut entries = archive.entries().map_err(damaged)?;
    let manifest = first(entries.next())?;
    for part in &manifest.parts {
        let entry = entries.next().ok_or_else(|| Error::input(format!("{} is missing", part.name)))?.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name.trim_end_matches('/') != part.name.trim_end_matches('/') || !is_safe(&part.name) {
            return Err(Error::input(format!("its entry `{name}` is not the one that its manifest names: `{}`", part.name)));
        }
        let header = entry.header();
        let number = |value: std::io::Result<u64>| value.map(|value| u32::try_from(value).unwrap_or(0)).map_err(damaged);
        let (mode, owner) = (header.mode().map_err(damaged)? & 0o7777, (number(header.uid())?, number(header.gid())?));
        let mut bytes = Summed { from: entry, sum: Default::default(), size: 0 };
        visit(&mut Found { part, mode, owner, bytes: &mut bytes })?;
        std::io::copy(&mut bytes, &mut std::io::sink()).map_err(damaged)?;
        let found = Digest(sha2::Digest::finalize(bytes.sum).into()).hex();
        if (bytes.size, &found) != (part.size, &part.sha256) {
            return Err(Error::input(format!("{} is not as it was written: its digest is {found}, not {}", part.name, part.sha256)));
        }
    }
    if entries.next().is_some() {
        return Err(Error::input("it has more entries than its manifest names"));
    }
    // Whether the last chunk is there shows only at the end of the file.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(damaged)?;
    Ok(manifest)
}

fn plain(identities: &[Identity], path: &Path) -> Result<impl Read + use<>> {
    let file = File::open(path).fault(Fault::Input, || "opening it".into())?;
    let opened = age::open(identities, BufReader::new(file))?;
    let mut decoder = zstd::Decoder::new(opened).map_err(damaged)?;
    decoder.window_log_max(WINDOW).map_err(damaged)?;
    Ok(decoder)
}

fn first<R: Read>(entry: Option<std::io::Result<tar::Entry<'_, R>>>) -> Result<Manifest> {
    let entry = entry.ok_or_else(|| Error::input("it is empty"))?.map_err(damaged)?;
    if entry.path_bytes().as_ref() != MANIFEST.as_bytes() {
        return Err(Error::input(format!("it does not begin with {MANIFEST}")));
    }
    let mut text = Vec::new();
    entry.take(MANIFEST_LIMIT).read_to_end(&mut text).map_err(damaged)?;
    let version: serde_json::Value = serde_json::from_slice(&text).fault(Fault::Input, || format!("reading {MANIFEST}"))?;
    match version["version"].as_u64() {
        Some(found) if found == u64::from(VERSION) => serde_json::from_value(version).fault(Fault::Input, || format!("reading {MANIFEST}")),
        found => Err(Error::input(format!("it has version {}, this image reads {VERSION}", found.map_or("none".into(), |found| found.to_string())))
            .with_hint("use an image of its time or a later one")),
    }
}

/// Whether a path stays below where it is laid.
fn is_safe(name: &str) -> bool {
    name.trim_end_matches('/').split('/').all(|part| !["", ".", ".."].contains(&part))
}

fn damaged(error: std::io::Error) -> Error {
    match error.kind() {
        // Ours, of the layer below.
        std::io::ErrorKind::InvalidData => Error::input(error.to_string()),
        _ => Error::input(format!("it is damaged: {error}")),
    }
}

/// Counts and sums what is read.
struct Summed<R> {
    from: R,
    sum: sha2::Sha256,
    size: u64,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(into)?;
        sha2::Digest::update(&mut self.sum, &into[..read]);
        self.size += read as u64;
        Ok(read)
    }
}

/// Writes an entry below a folder, with permissions and owner.
pub fn lay(found: &mut Found, below: &Path) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let laying = || format!("writing {}", found.part.name);
    let path = below.join(&found.part.name);
    if found.part.name.ends_with('/') {
        fs::create_dir_all(&path).context(laying)?;
    } else {
        fs::create_dir_all(path.parent().unwrap_or(below)).context(laying)?;
        let mut file = File::create(&path).context(laying)?;
        std::io::copy(found.bytes, &mut file).and_then(|_| file.flush()).and_then(|()| file.sync_all()).context(laying)?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(found.mode)).context(laying)?;
    // Only root may give away what is its own.
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(found.owner.0), Some(found.owner.1)).context(laying)?;
    }
    Ok(())
}
