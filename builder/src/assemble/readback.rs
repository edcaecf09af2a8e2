//! What stands in a scratch root, told across the namespace border: the sandbox lists every entry with owners as the image sees them and
//! sends the contents of files that changed; the outside turns that into a tree. Files untouched since they were written (same inode
//! and change time) keep their reference into the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use layers::units::Digest;
use layers::{Context, Error, Result};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use serde::{Deserialize, Serialize};

use crate::store::PackWriter;
use crate::tree::{Content, Kind, Node, Tree, TreePath, Xattrs};

/// Inode and change time (seconds, nanoseconds) of a file: equal means untouched.
pub(super) type Stamp = (u64, i64, i64);

/// Whether listing sends the contents of unknown files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Send,
    Leave,
}

/// What becomes of a path that is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// It is left out; its bytes reach neither tree nor store.
    Drop,
    /// It stays as an empty file.
    Empty,
}

/// One listed entry.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub path: TreePath,
    pub node: Node,
    pub nanoseconds: i64,
    pub stamp: Stamp,
    pub links: u64,
    /// Bytes that follow; none for anything but a file that is sent.
    pub sent: Option<u64>,
}

/// Where a tree path lies below the working directory.
fn place(path: &TreePath) -> PathBuf {
    if path.is_root() { PathBuf::from(".") } else { PathBuf::from(OsStr::from_bytes(path.as_bytes())) }
}

/// Sets owners, modes, xattrs and times; runs inside. Children come before their directory, so that its time stays.
pub(super) fn apply(entries: &[(TreePath, Node)]) -> Result<()> {
    for (path, node) in entries.iter().rev() {
        apply_one(&place(path), node).context(|| format!("setting owner and mode of {path}"))?;
    }
    Ok(())
}

fn apply_one(path: &Path, node: &Node) -> io::Result<()> {
    rustix::fs::chownat(CWD, path, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(node.kind, Kind::Symlink(_)) {
        rustix::fs::chmod(path, Mode::from_raw_mode(u32::from(node.mode)))?;
    }
    for (name, value) in &node.xattrs {
        rustix::fs::lsetxattr(path, CString::new(name.clone())?, value, XattrFlags::empty())?;
    }
    set_time(path, node.mtime)
}

/// Sets the modification time of a path itself.
pub(super) fn set_time(path: &Path, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(rustix::fs::utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Writes a record per entry, in order of names, and contents of files whose stamp is not known; runs inside.
pub(super) fn emit(known: &BTreeMap<TreePath, Stamp>, contents: Contents, out: &mut impl Write) -> Result<()> {
    emit_below(&TreePath::root(), known, contents, out)?;
    out.flush().context(|| "sending the listing".into())
}

fn emit_below(dir: &TreePath, known: &BTreeMap<TreePath, Stamp>, contents: Contents, out: &mut impl Write) -> Result<()> {
    let naming = || format!("listing {dir}");
    send(dir, known, contents, out).context(naming)?;
    let mut names = std::fs::read_dir(place(dir)).and_then(|all| all.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()).context(naming)?;
    names.sort();
    for name in names {
        let path = dir.join(name.as_bytes());
        let kind = place(&path).symlink_metadata().context(|| format!("listing {path}"))?.file_type();
        if kind.is_dir() {
            emit_below(&path, known, contents, out)?;
        } else if kind.is_file() || kind.is_symlink() || kind.is_fifo() {
            send(&path, known, contents, out).context(|| format!("listing {path}"))?;
        }
    }
    Ok(())
}

fn send(path: &TreePath, known: &BTreeMap<TreePath, Stamp>, contents: Contents, out: &mut impl Write) -> io::Result<()> {
    let here = place(path);
    let meta = here.symlink_metadata()?;
    let stamp = (meta.ino(), meta.ctime(), meta.ctime_nsec());
    let fresh = meta.is_file() && contents == Contents::Send && known.get(path) != Some(&stamp);
    let none = Content { sha256: Digest([0; 32]), size: meta.len(), pack: Digest([0; 32]), offset: 0 };
    let kind = match meta.file_type() {
        t if t.is_dir() => Kind::Directory,
        t if t.is_symlink() => Kind::Symlink(std::fs::read_link(&here)?.as_os_str().as_bytes().to_vec()),
        t if t.is_fifo() => Kind::Fifo,
        _ => Kind::File(none),
    };
    let node = Node { mode: (meta.mode() & 0o7777) as u16, uid: meta.uid(), gid: meta.gid(), mtime: meta.mtime(), xattrs: xattrs(&here)?, kind };
    let sent = fresh.then_some(meta.len());
    let record = Record { path: path.clone(), node, nanoseconds: meta.mtime_nsec(), stamp, links: meta.nlink(), sent };
    let bytes = postcard::to_stdvec(&record).map_err(io::Error::other)?;
    out.write_all(&u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes())?;
    out.write_all(&bytes)?;
    if let Some(size) = sent
        && io::copy(&mut File::open(&here)?.take(size), out)? != size
    {
        return Err(io::Error::other("the file shrank while it was read"));
    }
    Ok(())
}

/// Extended attributes as the namespace shows them: the kernel gives version-3 capabilities of its own root as version 2 here.
fn xattrs(path: &Path) -> io::Result<Xattrs> {
    let mut names = vec![0u8; 4096];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(n) => n,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut out = Xattrs::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 65536];
        let size = rustix::fs::lgetxattr(path, CString::new(name)?, &mut value[..])?;
        value.truncate(size);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

/// Reads one record; none at the stream's end.
pub(super) fn next(input: &mut impl Read) -> Result<Option<Record>> {
    let naming = || "reading the sandbox's listing".to_string();
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.context(naming)?,
    }
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    input.read_exact(&mut bytes).context(naming)?;
    postcard::from_bytes(&bytes).map(Some).map_err(|e| Error::internal(format!("decoding the sandbox's listing: {e}")))
}

/// How a listing becomes a tree.
pub(super) struct Rules<'a> {
    /// What was materialised.
    pub before: &'a Tree,
    /// Replaces each time that was not in the tree before: it is the clock's.
    pub epoch: i64,
    /// Asked for every path, with a file's size.
    pub fate: &'a dyn Fn(&TreePath, Option<u64>) -> Fate,
}

/// Turns a listing into a tree.
pub(super) fn collect(input: &mut impl Read, rules: &Rules<'_>, pack: &mut PackWriter<'_>) -> Result<Tree> {
    let Rules { before, epoch, fate } = *rules;
    let known: HashMap<Digest, Content> = before.entries.values().filter_map(content).map(|c| (c.sha256, c.clone())).collect();
    let times: BTreeSet<i64> = before.entries.values().map(|n| n.mtime).collect();
    let (mut tree, mut first) = (Tree::default(), HashMap::<u64, TreePath>::new());
    while let Some(record) = next(input)? {
        let Record { path, mut node, .. } = record;
        let bytes = record.sent.map(|size| take(input, size)).transpose()?;
        let bytes = match fate(&path, content(&node).map(|c| c.size)) {
            Fate::Keep => bytes,
            Fate::Drop => continue,
            Fate::Empty => Some(Vec::new()),
        };
        if let Kind::File(_) = node.kind {
            let again = (record.links > 1).then(|| first.get(&record.stamp.0).cloned()).flatten();
            node.kind = match (again, bytes) {
                (Some(other), _) => Kind::HardLink(other),
                (None, None) => Kind::File(reference(before, &path).ok_or_else(|| Error::internal(format!("file {path} has no content")))?),
                (None, Some(bytes)) => {
                    let sha256 = Digest::of(&bytes);
                    Kind::File(known.get(&sha256).cloned().map_or_else(|| pack.add_known(&bytes, sha256), Ok)?)
                }
            };
            first.entry(record.stamp.0).or_insert_with(|| path.clone());
        }
        if record.nanoseconds != 0 || !times.contains(&node.mtime) {
            node.mtime = epoch;
        }
        tree.insert(path, node);
    }
    Ok(tree)
}

fn take(input: &mut impl Read, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(size).read_to_end(&mut bytes).context(|| "reading a file from the sandbox".into())?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(Error::internal("reading a file from the sandbox: it ended early")) }
}

fn content(node: &Node) -> Option<&Content> {
    match &node.kind {
        Kind::File(content) => Some(content),
        _ => None,
    }
}

/// The content of a file or of the file that a hard link names.
pub(super) fn reference(tree: &Tree, path: &TreePath) -> Option<Content> {
    match &tree.get(path)?.kind {
        Kind::File(content) => Some(content.clone()),
        Kind::HardLink(other) => content(tree.get(other)?).cloned(),
        _ => None,
    }
}
