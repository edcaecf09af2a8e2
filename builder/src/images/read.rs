//! A layer's tar as a tree, the way container engines apply it (OCI image specification, layer.md), without writing outside it.
//!
//! Where layers are odd: of entries with one path the last wins; links among the parents are followed inside the layer only; whiteouts hide
//! lower layers, never entries of their own layer; devices are kept, as containerd does (the folder of all layers is closed to
//! others than root), but 0:0, overlay's own mark, is refused, as are overlay's own xattrs, and GNU sparse files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use layers::{Context, Error, Result};

use super::{OPAQUE, OPAQUE_XATTR, WHITEOUT};
use crate::assemble::unpack::{bare_node, entries, link_target};
use crate::store::PackWriter;
use crate::tree::{Kind, Node, Tree, TreePath, Xattrs};

/// Most entries of one layer.
const ENTRIES: u64 = 1 << 20;
/// Most bytes of paths, links and xattrs of one layer, which stay in memory.
const METADATA: u64 = 256 << 20;
/// Largest single file.
const FILE_LIMIT: u64 = 2 << 30;
/// Largest file that is held in memory.
const SMALL: u64 = 1 << 20;

/// Reads a whole tar, adding its contents to `pack`; directories that the tar does not name are not in the tree.
pub fn layer(reader: impl Read, pack: &mut PackWriter<'_>) -> Result<Tree> {
    let mut reading = Reading::default();
    entries(reader, |entry| reading.entry(entry, pack))?;
    reading.finish()
}

#[derive(Default)]
struct Reading {
    /// Inode of each path; hard links share one.
    names: BTreeMap<TreePath, usize>,
    nodes: Vec<Node>,
    whiteouts: BTreeSet<TreePath>,
    opaque: BTreeSet<TreePath>,
    count: u64,
    metadata: u64,
}

impl Reading {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>, pack: &mut PackWriter<'_>) -> Result<()> {
        if entry.header().entry_type() == tar::EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let path = TreePath::new(&raw).map_err(Error::input)?;
        // AUFS keeps its own records in the root; no engine reads them.
        if path.as_bytes().starts_with(b".wh..wh.") && path.name() != OPAQUE {
            return Ok(());
        }
        let path = self.place(&path)?;
        if self.mark(&path)? {
            return Ok(());
        }
        let xattrs = xattrs(&mut entry, &path)?;
        self.count += 1;
        self.metadata += (raw.len() + xattrs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()) as u64;
        if self.count > ENTRIES || self.metadata > METADATA {
            return Err(Error::input(format!("entry {path} is beyond 1048576 entries or 256 MiB of names and attributes")));
        }
        let mut node = bare_node(&entry, &path, xattrs)?;
        match entry.header().entry_type() {
            tar::EntryType::Link => {
                let target = self.place(&TreePath::new(link_target(&entry, &path)?).map_err(Error::input)?)?;
                return self.hard_link(path, &target);
            }
            tar::EntryType::Regular | tar::EntryType::Continuous if !raw.ends_with(b"/") => {
                node.kind = Kind::File(content(&mut entry, &path, pack)?);
            }
            _ => node.kind = kind(&entry, &path)?,
        }
        self.put(path, node)
    }

    /// The path with links among its parents followed inside the layer; a parent that is a file is refused.
    fn place(&self, path: &TreePath) -> Result<TreePath> {
        let (mut done, mut links) = (TreePath::root(), 0);
        let mut parts: Vec<Vec<u8>> = path.as_bytes().split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
        while let Some(part) = parts.pop() {
            match &*part {
                b"" | b"." => continue,
                b".." if done.is_root() => return Err(Error::input(format!("entry {path} leaves the layer through a symbolic link"))),
                b".." => {
                    done = done.parent().unwrap_or_default();
                    continue;
                }
                name => done = done.join(name),
            }
            let Some(node) = self.get(&done).filter(|_| !parts.is_empty()) else { continue };
            match &node.kind {
                Kind::Directory => {}
                Kind::Symlink(target) if links < 40 => {
                    links += 1;
                    done = if target.starts_with(b"/") { TreePath::root() } else { done.parent().unwrap_or_default() };
                    parts.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                Kind::Symlink(_) => return Err(Error::input(format!("entry {path} lies behind too many links"))),
                _ => return Err(Error::input(format!("entry {path} lies below {done}, which is not a directory"))),
            }
        }
        Ok(done)
    }

    /// Notes a whiteout; true when the path is one.
    fn mark(&mut self, path: &TreePath) -> Result<bool> {
        let parent = path.parent().unwrap_or_default();
        if path.name() == OPAQUE {
            self.opaque.insert(parent);
            return Ok(true);
        }
        if let Some(part) = parent.as_bytes().split(|b| *b == b'/').find(|p| p.starts_with(WHITEOUT)) {
            return Err(Error::input(format!("entry {path} lies below a whiteout, {}", String::from_utf8_lossy(part))));
        }
        let Some(name) = path.name().strip_prefix(WHITEOUT) else { return Ok(false) };
        if matches!(name, b"" | b"." | b"..") || name.starts_with(WHITEOUT) {
            return Err(Error::input(format!("whiteout {path} names no file")));
        }
        self.whiteouts.insert(parent.join(name));
        self.count += 1;
        Ok(true)
    }

    fn get(&self, path: &TreePath) -> Option<&Node> {
        self.names.get(path).and_then(|i| self.nodes.get(*i))
    }

    fn hard_link(&mut self, path: TreePath, target: &TreePath) -> Result<()> {
        let Some(index) = self.names.get(target).copied().filter(|i| !self.nodes[*i].is_dir()) else {
            return Err(Error::input(format!("hard link {path} points to {target}, which is no file before it")));
        };
        if path != *target {
            self.clear(&path, false)?;
            self.names.insert(path, index);
        }
        Ok(())
    }

    fn put(&mut self, path: TreePath, node: Node) -> Result<()> {
        self.clear(&path, node.is_dir())?;
        self.nodes.push(node);
        self.names.insert(path, self.nodes.len() - 1);
        Ok(())
    }

    /// Removes what a new entry replaces: all below a directory that becomes something else.
    fn clear(&mut self, path: &TreePath, dir: bool) -> Result<()> {
        if path.is_root() && !dir {
            return Err(Error::input("the layer's root is no directory"));
        }
        if !dir {
            let below: Vec<_> = self.names.range(path.join(b"")..).map(|(p, _)| p).take_while(|p| p.is_within(path)).cloned().collect();
            for path in &below {
                self.names.remove(path);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut first = BTreeMap::<usize, TreePath>::new();
        for (path, index) in self.names {
            let mut node = self.nodes[index].clone();
            if let (Kind::File(_), Some(file)) = (&node.kind, first.get(&index)) {
                node.kind = Kind::HardLink(file.clone());
            }
            first.entry(index).or_insert_with(|| path.clone());
            tree.insert(path, node);
        }
        let epoch = 0;
        for path in self.whiteouts {
            match tree.entries.get(&path) {
                // The layer's own directory takes the place of the lower one.
                Some(node) if node.is_dir() => opaque(&mut tree, &path, epoch)?,
                Some(_) => {}
                None if tree.below(&path).next().is_some() => opaque(&mut tree, &path, epoch)?,
                None => tree.insert(path, Node::new(Kind::CharDevice(0, 0), 0, epoch)),
            }
        }
        for path in self.opaque {
            opaque(&mut tree, &path, epoch)?;
        }
        Ok(tree)
    }
}

fn opaque(tree: &mut Tree, path: &TreePath, epoch: i64) -> Result<()> {
    let node = tree.entries.entry(path.clone()).or_insert_with(|| Node::new(Kind::Directory, 0o755, epoch));
    if !node.is_dir() {
        return Err(Error::input(format!("{path} is opaque and no directory")));
    }
    node.xattrs.insert(OPAQUE_XATTR.to_vec(), b"y".to_vec());
    Ok(())
}

fn content<R: Read>(entry: &mut tar::Entry<'_, R>, path: &TreePath, pack: &mut PackWriter<'_>) -> Result<crate::tree::Content> {
    if entry.size() > FILE_LIMIT {
        return Err(Error::input(format!("file {path} has {} bytes, more than 2 GiB", entry.size())));
    }
    let naming = || format!("entry {path}");
    let size = entry.size();
    let content = if size > SMALL {
        pack.add_from(entry).context(naming)?
    } else {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).fault(layers::Fault::Input, naming)?;
        pack.add(&bytes)?
    };
    if content.size == size { Ok(content) } else { Err(Error::input(format!("file {path} is cut short"))) }
}

fn kind<R: Read>(entry: &tar::Entry<'_, R>, path: &TreePath) -> Result<Kind> {
    let number = |n: std::io::Result<Option<u32>>| n.ok().flatten().ok_or_else(|| Error::input(format!("device {path} has no number")));
    let device = || Ok::<_, Error>((number(entry.header().device_major())?, number(entry.header().device_minor())?));
    Ok(match entry.header().entry_type() {
        tar::EntryType::Regular | tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Symlink => Kind::Symlink(link_target(entry, path)?),
        tar::EntryType::Fifo => Kind::Fifo,
        tar::EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        tar::EntryType::Char => match device()? {
            (0, 0) => return Err(Error::input(format!("entry {path} is device 0:0, which overlay takes for a whiteout"))),
            (major, minor) => Kind::CharDevice(major, minor),
        },
        other => {
            return Err(Error::input(format!("entry {path} is of type `{}`, which layers do not hold", char::from(other.as_byte()).escape_debug())));
        }
    })
}

/// Extended attributes of the kinds that Linux file systems keep; an engine warns of others and goes on.
fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>, path: &TreePath) -> Result<Xattrs> {
    let mut out = Xattrs::new();
    let Some(records) = entry.pax_extensions().fault(layers::Fault::Input, || format!("entry {path}"))? else { return Ok(out) };
    for record in records {
        let record = record.fault(layers::Fault::Input, || format!("entry {path}"))?;
        let key = record.key_bytes();
        if key.starts_with(b"GNU.sparse.") {
            return Err(Error::input(format!("entry {path} is a GNU sparse file")));
        }
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Err(Error::input(format!("entry {path} has xattr `{}`, which belongs to overlay", String::from_utf8_lossy(name).escape_debug())));
        }
        let kept = [b"user.".as_slice(), b"security.", b"trusted.", b"system.posix_acl_access", b"system.posix_acl_default"];
        if kept.iter().any(|prefix| name.starts_with(prefix)) {
            out.insert(name.to_vec(), record.value_bytes().to_vec());
        }
    }
    Ok(out)
}
