//! A layer's tree as the one tar that stands for it (POSIX.1-2017 pax interchange format on ustar headers): sorted, numeric owners, one
//! time, no names of users, PAX records only where ustar cannot say it. Equal trees give equal bytes whatever version of a library made them.

use std::io::Write;

use layers::units::Digest;
use layers::{Context, Error, Result};
use sha2::{Digest as _, Sha256};

use super::{OPAQUE, OPAQUE_XATTR, WHITEOUT};
use crate::store::Store;
use crate::tree::{Content, Kind, Node, Tree, TreePath};

const BLOCK: usize = 512;
/// Largest number in an 8-byte octal field.
const ID_MAX: u64 = 0o7_777_777;
/// Largest number in a 12-byte octal field.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// Digest and length of the tar of a tree, without keeping it.
pub fn diff_id(tree: &Tree, store: &Store) -> Result<(Digest, u64)> {
    let mut sum = Sum { hasher: Sha256::new(), size: 0 };
    tar(tree, store, &mut sum)?;
    Ok((Digest(sum.hasher.finalize().into()), sum.size))
}

/// Writes the tar of a tree; contents come from the store's packs.
pub fn tar(tree: &Tree, store: &Store, out: &mut impl Write) -> Result<()> {
    for (path, node) in &tree.entries {
        entry(path, node, store, out).context(|| format!("writing layer entry {path}"))?;
    }
    out.write_all(&[0; 2 * BLOCK]).context(|| "writing the layer's end".into())
}

fn entry(path: &TreePath, node: &Node, store: &Store, out: &mut impl Write) -> Result<()> {
    let mut item = Item::new(path.as_bytes().to_vec(), node);
    match &node.kind {
        Kind::Directory => {
            item.kind = b'5';
            item.name.extend_from_slice(if path.is_root() { b"./" } else { b"/" });
        }
        Kind::File(content) => item.size = content.size,
        Kind::Symlink(target) => (item.kind, item.link) = (b'2', target.clone()),
        Kind::HardLink(target) => (item.kind, item.link) = (b'1', target.as_bytes().to_vec()),
        Kind::CharDevice(0, 0) => item = whiteout(path, &[WHITEOUT, path.name()].concat(), node),
        Kind::CharDevice(major, minor) => (item.kind, item.device) = (b'3', (*major, *minor)),
        Kind::BlockDevice(major, minor) => (item.kind, item.device) = (b'4', (*major, *minor)),
        Kind::Fifo => item.kind = b'6',
    }
    item.put(out)?;
    if let Kind::File(content) = &node.kind {
        body(content, store, out)?;
    }
    if node.is_dir() && node.xattrs.contains_key(OPAQUE_XATTR) {
        whiteout(&path.join(OPAQUE), OPAQUE, node).put(out)?;
    }
    Ok(())
}

fn whiteout<'a>(path: &TreePath, name: &[u8], node: &'a Node) -> Item<'a> {
    let place = path.parent().unwrap_or_default().join(name);
    Item { mode: 0, owner: (0, 0), xattrs: Vec::new(), ..Item::new(place.as_bytes().to_vec(), node) }
}

fn body(content: &Content, store: &Store, out: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    while at < content.size {
        let part = &mut buffer[..(content.size - at).min(1 << 18) as usize];
        store.read_at(content, part, at)?;
        out.write_all(part).context(|| "writing its content".into())?;
        at += part.len() as u64;
    }
    let gap = content.size.next_multiple_of(BLOCK as u64) - content.size;
    out.write_all(&vec![0; gap as usize]).context(|| "writing its padding".into())
}

/// What one header says.
struct Item<'a> {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u16,
    owner: (u32, u32),
    mtime: i64,
    size: u64,
    device: (u32, u32),
    xattrs: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Item<'a> {
    fn new(name: Vec<u8>, node: &'a Node) -> Self {
        // All names of a file are one inode, whose attributes the first name tells.
        let linked = matches!(node.kind, Kind::HardLink(_));
        let xattrs = node.xattrs.iter().filter(|(name, _)| !linked && *name != OPAQUE_XATTR);
        let xattrs = xattrs.map(|(name, value)| (&**name, &**value)).collect();
        Self { name, link: Vec::new(), kind: b'0', mode: node.mode, owner: (node.uid, node.gid), mtime: node.mtime, size: 0, device: (0, 0), xattrs }
    }

    fn put(&self, out: &mut impl Write) -> Result<()> {
        if self.mtime < 0 || self.mtime as u64 > SIZE_MAX || u64::from(self.device.0.max(self.device.1)) > ID_MAX || self.size > SIZE_MAX {
            return Err(Error::input("time, device number or size does not fit a tar header"));
        }
        let records = self.records();
        if !records.is_empty() {
            let size = records.len() as u64;
            let head = Self {
                name: b"PaxHeaders/x".to_vec(),
                link: Vec::new(),
                kind: b'x',
                mode: 0o644,
                owner: (0, 0),
                size,
                device: (0, 0),
                xattrs: Vec::new(),
                ..*self
            };
            let gap = records.len().next_multiple_of(BLOCK) - records.len();
            for bytes in [head.header().as_slice(), &records, &vec![0; gap]] {
                out.write_all(bytes).context(|| "writing its records".into())?;
            }
        }
        out.write_all(&self.header()).context(|| "writing its header".into())
    }

    /// The PAX records, in order of their names, each `<length> <name>=<value>\n`.
    fn records(&self) -> Vec<u8> {
        let mut all = Vec::<(Vec<u8>, Vec<u8>)>::new();
        for (key, value) in [("path", &self.name), ("linkpath", &self.link)] {
            if value.len() > 100 {
                all.push((key.into(), value.clone()));
            }
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if u64::from(id) > ID_MAX {
                all.push((key.into(), id.to_string().into_bytes()));
            }
        }
        all.extend(self.xattrs.iter().map(|(name, value)| ([b"SCHILY.xattr.", *name].concat(), value.to_vec())));
        all.sort();
        all.iter().flat_map(|(key, value)| record(key, value)).collect()
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        let cut = |text: &[u8]| text[..text.len().min(100)].to_vec();
        let id = |id: u32| if u64::from(id) > ID_MAX { 0 } else { u64::from(id) };
        let fields: [(usize, Vec<u8>); 12] = [
            (0, cut(&self.name)),
            (100, octal(u64::from(self.mode), 7)),
            (108, octal(id(self.owner.0), 7)),
            (116, octal(id(self.owner.1), 7)),
            (124, octal(self.size, 11)),
            (136, octal(self.mtime as u64, 11)),
            (148, b"        ".to_vec()),
            (156, vec![self.kind]),
            (157, cut(&self.link)),
            (257, b"ustar\x0000".to_vec()),
            (329, octal(u64::from(self.device.0), 7)),
            (337, octal(u64::from(self.device.1), 7)),
        ];
        for (at, bytes) in fields {
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let sum: u64 = out.iter().map(|b| u64::from(*b)).sum();
        out[148..156].copy_from_slice(&[&*octal(sum, 6), b"\0 "].concat());
        out
    }
}

fn octal(number: u64, digits: usize) -> Vec<u8> {
    format!("{number:0digits$o}").into_bytes()
}

/// One PAX record; its length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    len = rest + len.to_string().len();
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

struct Sum {
    hasher: Sha256,
    size: u64,
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
