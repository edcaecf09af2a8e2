//! `data.tar` and `control.tar` of a package, streamed into the content store: one pack per .deb, one tree of metadata. An entry that
//! dpkg-deb or GNU tar could read differently, or that would write outside its own tree, is refused.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use layers::lock::Package;
use layers::units::Digest;
use layers::{Context, Error, Result};
use serde::{Deserialize, Serialize};

use super::deb::Deb;
use crate::store::{PackWriter, Store};
use crate::tree::{Kind, Node, Tree, TreePath, Xattrs};

/// Most bytes of headers (long names, PAX records) before one entry.
const HEADER_LIMIT: u64 = 1 << 20;
/// Largest single file: it is held in memory once.
const FILE_LIMIT: u64 = 1 << 30;

/// A package taken apart: its files and its control data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The files with their contents in the package's pack.
    pub tree: Tree,
    /// The control archive.
    pub control: Control,
}

/// The control archive of a package, and what dpkg's database keeps of the data archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Files of the archive by name (`control`, `conffiles`, `postinst`, …).
    pub files: BTreeMap<String, ControlFile>,
    /// The data archive's paths in its own order, as dpkg's `info/*.list` has them.
    pub list: Vec<u8>,
}

/// A file of the control archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlFile {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its modification time in seconds since 1970; dpkg keeps it.
    pub mtime: i64,
}

impl Control {
    /// The control fields as written.
    pub fn text(&self) -> String {
        self.file("control")
    }

    /// A control file as text; empty when the package has none.
    pub fn file(&self, name: &str) -> String {
        self.files.get(name).map(|f| String::from_utf8_lossy(&f.bytes).into_owned()).unwrap_or_default()
    }

    /// The value of a control field on one line; none when it is absent.
    pub fn field(&self, name: &str) -> Option<String> {
        let text = self.text();
        let mut lines = text.lines().skip_while(|l| !l.split_once(':').is_some_and(|(k, _)| k.eq_ignore_ascii_case(name)));
        let first = lines.next()?.split_once(':')?.1.trim().to_string();
        Some(lines.take_while(|l| l.starts_with([' ', '\t'])).fold(first, |all, l| all + " " + l.trim()))
    }

    /// Paths of the configuration files that the package brings.
    pub fn conffiles(&self) -> Vec<String> {
        self.file("conffiles").lines().map(str::trim).filter(|l| l.starts_with('/')).map(Into::into).collect()
    }
}

/// Unpacks all packages, biggest first, on all cores; `progress` hears each package as it is done. What was unpacked before is read
/// from the store.
pub fn unpack_all(store: &Store, packages: &[Package], progress: &(dyn Fn(&Package) + Sync)) -> Result<Vec<Unpacked>> {
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(packages[*i].size), *i));
    let done = in_parallel(order.len(), |turn| {
        let package = &packages[order[turn]];
        let unpacked = unpack(store, package)?;
        progress(package);
        Ok((order[turn], unpacked))
    })?;
    Ok(done.into_iter().collect::<BTreeMap<_, _>>().into_values().collect())
}

/// Runs `work` for 0..count in that order of starting, on all cores; the error of the lowest failed turn wins, so that a failure reads
/// the same on every machine.
pub(super) fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    rayon::scope(|scope| {
        for _ in 0..rayon::current_num_threads() {
            scope.spawn(|_| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= count {
                        return;
                    }
                    let result = work(turn);
                    results.lock().unwrap_or_else(|e| e.into_inner()).insert(turn, result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(|e| e.into_inner()).into_values().collect()
}

/// Unpacks one package, or reads it back when the store has it.
pub fn unpack(store: &Store, package: &Package) -> Result<Unpacked> {
    let key = Digest::of_parts([b"unpack v2".as_slice(), &package.sha256.0]);
    if let Some(known) = store.load("unpacked", &key)?
        && store.pack(&key).exists()
    {
        return Ok(known);
    }
    let path = store.blob(&package.sha256);
    let naming = || format!("unpacking package {} {}", package.name, package.version);
    let file = File::open(&path).context(|| format!("opening {}", path.display())).context(naming)?;
    let mut pack = store.new_pack(key)?;
    let unpacked = read(file, &mut pack).context(naming)?;
    pack.finish()?;
    store.save("unpacked", &key, &unpacked)?;
    Ok(unpacked)
}

/// Reads a whole package, adding its file contents to `pack`.
pub fn read(file: impl Read + io::Seek, pack: &mut PackWriter<'_>) -> Result<Unpacked> {
    let mut deb = Deb::open(file)?;
    let files = read_control(deb.control()?).context(|| "reading control.tar".into())?;
    let (tree, list) = read_data(deb.data()?, pack).context(|| "reading data.tar".into())?;
    Ok(Unpacked { tree, control: Control { files, list } })
}

/// The files of a control archive; anything but plain files in its root is refused.
pub fn read_control(reader: impl Read) -> Result<BTreeMap<String, ControlFile>> {
    let mut files = BTreeMap::new();
    for_each_entry(reader, |path, raw| {
        let name = String::from_utf8_lossy(path.as_bytes()).into_owned();
        match raw.what {
            What::File if !name.contains('/') && !files.contains_key(&name) => {
                files.insert(name, ControlFile { bytes: std::mem::take(raw.bytes), mtime: raw.node.mtime });
            }
            What::Other if path.is_root() && raw.node.is_dir() => {}
            _ => return Err(Error::input(format!("entry {path} is not a plain file seen once in the archive's root"))),
        }
        Ok(())
    })?;
    if files.contains_key("control") { Ok(files) } else { Err(Error::input("file `control` is missing")) }
}

/// The tree of a data archive, and its paths in archive order as dpkg lists them.
pub fn read_data(reader: impl Read, pack: &mut PackWriter<'_>) -> Result<(Tree, Vec<u8>)> {
    let (mut tree, mut list, mut named) = (Tree::default(), Vec::new(), BTreeSet::new());
    for_each_entry(reader, |path, raw| {
        confine(&tree, &path)?;
        if !named.insert(path.clone()) || (tree.get(&path).is_some() && !raw.node.is_dir()) {
            return Err(Error::input(format!("entry {path} comes twice")));
        }
        if let What::File = raw.what {
            raw.node.kind = Kind::File(pack.add(raw.bytes)?);
        }
        if let Kind::HardLink(target) = &raw.node.kind {
            let first = tree.get(target).filter(|n| matches!(n.kind, Kind::File(_)));
            let first = first.ok_or_else(|| Error::input(format!("hard link {path} points to {target}, which is no file before it")))?;
            // All names are one inode: what the archive says of a later name does not count.
            *raw.node = Node { kind: raw.node.kind.clone(), ..first.clone() };
        }
        list.extend_from_slice(if path.is_root() { b"/." } else { b"/" });
        list.extend_from_slice(path.as_bytes());
        list.push(b'\n');
        tree.ensure_parents(&path, raw.node.mtime);
        tree.insert(path, raw.node.clone());
        Ok(())
    })?;
    Ok((tree, list))
}

/// Every parent that is known already must be a directory: nothing is written through a link.
fn confine(tree: &Tree, path: &TreePath) -> Result<()> {
    let mut next = path.parent();
    while let Some(dir) = next {
        match tree.get(&dir) {
            Some(node) if node.is_dir() => return Ok(()),
            Some(_) => return Err(Error::input(format!("entry {path} lies below {dir}, which is not a directory"))),
            None => next = dir.parent(),
        }
    }
    Ok(())
}

/// What an entry is, before its content is in a pack.
enum What {
    File,
    Other,
}

/// One entry as read; a file's `node.kind` is filled by the caller, `bytes` are its content.
struct Raw<'a> {
    node: &'a mut Node,
    what: What,
    bytes: &'a mut Vec<u8>,
}

/// Reads the archive's entries in order with bounded memory, and the stream to its end so that its checksum is verified.
fn for_each_entry(reader: impl Read, mut each: impl FnMut(TreePath, Raw<'_>) -> Result<()>) -> Result<()> {
    let mut bytes = Vec::new();
    entries(reader, |entry| one_entry(entry, &mut bytes, &mut each))
}

/// Hands out the entries of a tar archive in order, with at most 1 MiB of headers before each, and reads the stream to its end.
pub(crate) fn entries<R: Read>(reader: R, mut each: impl FnMut(tar::Entry<'_, Metered<R>>) -> Result<()>) -> Result<()> {
    let allowance = Rc::new(Cell::new(HEADER_LIMIT));
    let mut archive = tar::Archive::new(Metered { inner: reader, allowance: allowance.clone() });
    let mut entries = archive.entries().context(|| "reading tar archive".into())?;
    while let Some(entry) = entries.next().transpose().fault(layers::Fault::Input, || "reading tar archive".into())? {
        allowance.set(u64::MAX);
        each(entry)?;
        allowance.set(HEADER_LIMIT);
    }
    allowance.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink()).fault(layers::Fault::Input, || "reading tar archive".into())?;
    Ok(())
}

fn one_entry<R: Read>(mut entry: tar::Entry<'_, R>, bytes: &mut Vec<u8>, each: &mut impl FnMut(TreePath, Raw<'_>) -> Result<()>) -> Result<()> {
    let raw_path = entry.path_bytes().into_owned();
    let path = TreePath::new(&raw_path).map_err(Error::input)?;
    let broken = |e: io::Error| Error::input(format!("entry {path}: {e}"));
    let xattrs = xattrs(&mut entry, &path)?;
    let mut node = bare_node(&entry, &path, xattrs)?;
    let what = kind(&entry, &path, raw_path.ends_with(b"/"), &mut node)?;
    bytes.clear();
    match what {
        What::File if entry.size() > FILE_LIMIT => return Err(Error::input(format!("file {path} has {} bytes, more than 1 GiB", entry.size()))),
        What::File => entry.read_to_end(bytes).map(drop).map_err(broken)?,
        What::Other if entry.size() > 0 => return Err(Error::input(format!("entry {path} has content but is no file"))),
        What::Other => {}
    }
    if bytes.len() as u64 != if matches!(what, What::File) { entry.size() } else { 0 } {
        return Err(Error::input(format!("file {path} is cut short")));
    }
    each(path, Raw { node: &mut node, what, bytes })
}

/// Owner, mode and time of an entry, as a directory; an entry that two readers could take for two sizes is refused.
pub(crate) fn bare_node<R: Read>(entry: &tar::Entry<'_, R>, path: &TreePath, xattrs: Xattrs) -> Result<Node> {
    let broken = |e: io::Error| Error::input(format!("entry {path}: {e}"));
    let header = entry.header();
    if header.entry_size().map_err(broken)? != entry.size() {
        return Err(Error::input(format!("entry {path} has two sizes, {} and {}", header.entry_size().unwrap_or(0), entry.size())));
    }
    let id = |n: u64| u32::try_from(n).map_err(|_| Error::input(format!("entry {path} has owner {n}, more than 32 bits")));
    Ok(Node {
        mode: (header.mode().map_err(broken)? & 0o7777) as u16,
        uid: id(header.uid().map_err(broken)?)?,
        gid: id(header.gid().map_err(broken)?)?,
        mtime: i64::try_from(header.mtime().map_err(broken)?).unwrap_or(i64::MAX),
        xattrs,
        kind: Kind::Directory,
    })
}

/// Target of a link entry, as written.
pub(crate) fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &TreePath) -> Result<Vec<u8>> {
    match entry.link_name_bytes() {
        Some(target) if !target.is_empty() && !target.contains(&0) && target.len() < 4096 => Ok(target.into_owned()),
        _ => Err(Error::input(format!("link {path} has no usable target"))),
    }
}

/// Sets the node's kind for all but regular files; devices and kinds that dpkg does not unpack are refused.
fn kind<R: Read>(entry: &tar::Entry<'_, R>, path: &TreePath, slash: bool, node: &mut Node) -> Result<What> {
    let link = || link_target(entry, path);
    node.kind = match entry.header().entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous if !slash => return Ok(What::File),
        tar::EntryType::Regular | tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Symlink => Kind::Symlink(link()?),
        tar::EntryType::Link => Kind::HardLink(TreePath::new(link()?).map_err(Error::input)?),
        tar::EntryType::Fifo => Kind::Fifo,
        tar::EntryType::Char | tar::EntryType::Block => return Err(Error::input(format!("entry {path} is a device node"))),
        other => {
            return Err(Error::input(format!(
                "entry {path} is of type `{}`, which packages do not hold",
                char::from(other.as_byte()).escape_debug()
            )));
        }
    };
    Ok(What::Other)
}

/// Extended attributes from PAX records (`SCHILY.xattr.*`); a record that would change path, size or owner is refused.
fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>, path: &TreePath) -> Result<Xattrs> {
    let mut out = Xattrs::new();
    let broken = |e: io::Error| Error::input(format!("entry {path}: {e}"));
    let Some(records) = entry.pax_extensions().map_err(broken)? else { return Ok(out) };
    for record in records {
        let record = record.map_err(broken)?;
        match record.key_bytes() {
            key if key.starts_with(b"SCHILY.xattr.") => drop(out.insert(key[13..].to_vec(), record.value_bytes().to_vec())),
            b"path" | b"linkpath" | b"mtime" | b"atime" | b"ctime" | b"size" | b"uname" | b"gname" | b"comment" => {}
            key => return Err(Error::input(format!("entry {path} has PAX record `{}`", String::from_utf8_lossy(key).escape_debug()))),
        }
    }
    Ok(out)
}

/// Fails when the headers before one entry take more than they are allowed.
pub(crate) struct Metered<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.allowance.get().checked_sub(n as u64).ok_or_else(|| io::Error::other("the headers before one entry exceed 1 MiB"))?;
        self.allowance.set(left);
        Ok(n)
    }
}

/// What the fuzz target `tar` runs, and the tests over its corpus.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let _ = read_control(bytes);
    let Ok(dir) = tempfile::tempdir() else { return };
    let Ok(store) = Store::open(dir.path()) else { return };
    let Ok(mut pack) = store.new_pack(Digest::of(bytes)) else { return };
    let Ok((tree, _)) = read_data(bytes, &mut pack) else { return };
    for (path, node) in &tree.entries {
        assert!(path.parent().is_none_or(|p| tree.get(&p).is_some_and(Node::is_dir)), "{path} has no directory above it");
        if let Kind::HardLink(target) = &node.kind {
            assert!(matches!(tree.get(target).map(|n| &n.kind), Some(Kind::File(_))), "{path} links to no file");
        }
    }
}
