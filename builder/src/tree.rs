//! The image tree: paths with owners, modes, xattrs and content references. Nothing of it has to exist on the build machine's disk,
//! which is why no root is needed.

use std::collections::BTreeMap;
use std::fmt;

use layers::units::Digest;
use serde::{Deserialize, Serialize};

/// A path inside the image: bytes, relative, no leading or trailing `/`, no `.` or `..` component. The root itself is empty.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TreePath(#[serde(with = "bytes")] Vec<u8>);

impl TreePath {
    /// The root directory.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// A path from bytes as archives write them: leading `/` or `./` and trailing `/` are dropped; NUL, `..` and a component over
    /// 255 bytes are refused with the reason.
    pub fn new(path: impl AsRef<[u8]>) -> Result<Self, String> {
        let path = path.as_ref();
        let shown = || String::from_utf8_lossy(path).into_owned();
        let mut out = Vec::with_capacity(path.len());
        for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
            if part == b".." {
                return Err(format!("path `{}` leaves the root with `..`", shown()));
            }
            if part.contains(&0) {
                return Err(format!("path `{}` holds a NUL byte", shown().escape_debug()));
            }
            if part.len() > 255 {
                return Err(format!("path `{}` has a name longer than 255 bytes", shown()));
            }
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(part);
        }
        Ok(Self(out))
    }

    /// The bytes, without leading `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the root directory.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this path; none for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// This path with one more component.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut out = self.0.clone();
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(name);
        Self(out)
    }

    /// True when this is `dir` or lies below it.
    pub fn is_within(&self, dir: &TreePath) -> bool {
        dir.is_root() || self.0 == dir.0 || (self.0.starts_with(&dir.0) && self.0.get(dir.0.len()) == Some(&b'/'))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<&str> for TreePath {
    type Error = String;

    fn try_from(path: &str) -> Result<Self, String> {
        Self::new(path)
    }
}

/// Where a file's bytes lie: a range of one pack of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Digest of the file's bytes.
    pub sha256: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Key of the pack (`store::Store::pack`).
    pub pack: Digest,
    /// First byte inside the pack.
    pub offset: u64,
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Directory.
    Directory,
    /// Regular file.
    File(Content),
    /// Symbolic link with its target as written.
    Symlink(#[serde(with = "bytes")] Vec<u8>),
    /// Another name of the regular file at this path.
    HardLink(TreePath),
    /// Character device, major and minor.
    CharDevice(u32, u32),
    /// Block device, major and minor.
    BlockDevice(u32, u32),
    /// Named pipe.
    Fifo,
}

/// Extended attributes by full name (`security.capability`).
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// One entry of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Permission bits including setuid, setgid and sticky (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// What it is.
    pub kind: Kind,
}

impl Node {
    /// An entry of root:root without xattrs.
    pub fn new(kind: Kind, mode: u16, mtime: i64) -> Self {
        Self { mode, uid: 0, gid: 0, mtime, xattrs: Xattrs::new(), kind }
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }
}

/// All entries by path. Parents sort before their children.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The entries; the root directory is the empty path.
    pub entries: BTreeMap<TreePath, Node>,
}

impl Tree {
    /// The entry at a path.
    pub fn get(&self, path: &TreePath) -> Option<&Node> {
        self.entries.get(path)
    }

    /// The entry at a path given as text; none for a malformed path too.
    pub fn at(&self, path: &str) -> Option<&Node> {
        self.get(&TreePath::new(path).ok()?)
    }

    /// Puts an entry, replacing what was there.
    pub fn insert(&mut self, path: TreePath, node: Node) {
        self.entries.insert(path, node);
    }

    /// Adds missing parent directories of `path` as root:root 0755 with this mtime.
    pub fn ensure_parents(&mut self, path: &TreePath, mtime: i64) {
        let mut next = path.parent();
        while let Some(dir) = next {
            if self.entries.contains_key(&dir) {
                return;
            }
            next = dir.parent();
            self.insert(dir, Node::new(Kind::Directory, 0o755, mtime));
        }
    }

    /// Entries at and below a directory.
    pub fn below<'a>(&'a self, dir: &'a TreePath) -> impl Iterator<Item = (&'a TreePath, &'a Node)> {
        self.entries.range(dir.clone()..).take_while(move |(p, _)| p.0.starts_with(&dir.0)).filter(move |(p, _)| p.is_within(dir))
    }

    /// Removes a path and all below it; returns what was removed.
    pub fn remove_below(&mut self, dir: &TreePath) -> Vec<(TreePath, Node)> {
        let paths: Vec<_> = self.below(dir).map(|(p, _)| p.clone()).collect();
        paths.into_iter().filter_map(|p| self.entries.remove_entry(&p)).collect()
    }
}

/// Serde for byte strings that may not be UTF-8.
mod bytes {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        <Vec<u8>>::deserialize(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    #[test]
    fn paths_are_normalised_and_confined() {
        assert_eq!(path("./usr//bin/"), path("/usr/bin"));
        assert_eq!(path("usr/bin").parent(), Some(path("usr")));
        assert_eq!(path("usr").parent(), Some(TreePath::root()));
        assert_eq!(path("usr/bin").name(), b"bin");
        assert!(TreePath::new("a/../b").unwrap_err().contains("`..`"));
        assert!(TreePath::new("a\0b").is_err());
        assert!(TreePath::new("x".repeat(256)).is_err());
        assert!(path("usr/bin").is_within(&path("usr")) && !path("usr2").is_within(&path("usr")));
    }

    #[test]
    fn a_subtree_is_found_and_removed_whole() {
        let mut tree = Tree::default();
        for p in ["var/lib/x", "var-2", "var/log"] {
            tree.ensure_parents(&path(p), 0);
            tree.insert(path(p), Node::new(Kind::Fifo, 0o644, 0));
        }
        assert_eq!(tree.remove_below(&path("var")).len(), 4);
        assert!(tree.at("var-2").is_some() && tree.at("var").is_none());
    }
}
