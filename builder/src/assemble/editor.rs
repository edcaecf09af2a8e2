//! Changes to an image tree: files read and written by path, hard links kept right.

use std::collections::{BTreeMap, BTreeSet};

use layers::units::Digest;
use layers::{Error, Result};

use crate::store::{PackWriter, Store};
use crate::tree::{Content, Kind, Node, Tree, TreePath};

/// Contents up to this size stay in memory, because the pack they go to cannot be read before it is finished.
const REMEMBER: usize = 1 << 20;

/// A tree under change. New contents go to one pack; the caller finishes it.
#[derive(Debug)]
pub struct Editor<'a, 'p> {
    /// The tree.
    pub tree: &'a mut Tree,
    /// Where old contents lie.
    pub store: &'a Store,
    /// Modification time of what is written, in seconds since 1970.
    pub epoch: i64,
    pack: &'a mut PackWriter<'p>,
    fresh: BTreeMap<Digest, Vec<u8>>,
}

impl<'a, 'p> Editor<'a, 'p> {
    /// Starts changing a tree.
    pub fn new(tree: &'a mut Tree, store: &'a Store, pack: &'a mut PackWriter<'p>, epoch: i64) -> Self {
        Self { tree, store, epoch, pack, fresh: BTreeMap::new() }
    }

    /// Bytes of a regular file or hard link; none when there is no file.
    pub fn read(&self, path: &TreePath) -> Result<Option<Vec<u8>>> {
        match self.tree.get(path).map(|n| &n.kind) {
            Some(Kind::HardLink(target)) if target != path => self.read(target),
            Some(Kind::File(content)) => match self.fresh.get(&content.sha256) {
                Some(bytes) => Ok(Some(bytes.clone())),
                None => self.store.read(content).map(Some),
            },
            _ => Ok(None),
        }
    }

    /// Text of a file by its path; empty when there is none, lossy where it is not UTF-8.
    pub fn text(&self, path: &str) -> Result<String> {
        let bytes = self.read(&known(path)?)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a regular file, replacing what was there except a directory.
    pub fn put(&mut self, path: TreePath, bytes: &[u8], mode: u16, owner: (u32, u32)) -> Result<()> {
        let content = self.pack.add(bytes)?;
        if bytes.len() <= REMEMBER {
            self.fresh.insert(content.sha256, bytes.to_vec());
        }
        self.put_content(path, content, mode, owner)
    }

    /// Writes a regular file whose content the store has already.
    pub fn put_content(&mut self, path: TreePath, content: Content, mode: u16, owner: (u32, u32)) -> Result<()> {
        let (uid, gid) = owner;
        self.place(path, Node { uid, gid, ..Node::new(Kind::File(content), mode, self.epoch) })
    }

    /// Writes a text file of root, 0644, by its path.
    pub fn put_text(&mut self, path: &str, text: &str) -> Result<()> {
        self.put(known(path)?, text.as_bytes(), 0o644, (0, 0))
    }

    /// Replaces the text of a file, keeping its mode and owner.
    pub fn rewrite(&mut self, path: &str, text: &str) -> Result<()> {
        let path = known(path)?;
        let (mode, owner) = self.tree.get(&path).map_or((0o644, (0, 0)), |n| (n.mode, (n.uid, n.gid)));
        self.put(path, text.as_bytes(), mode, owner)
    }

    /// Makes a symbolic link, replacing what was there except a directory.
    pub fn link(&mut self, path: TreePath, target: &str) -> Result<()> {
        let node = Node::new(Kind::Symlink(target.as_bytes().to_vec()), 0o777, self.epoch);
        self.place(path, node)
    }

    /// Makes sure of a directory; one that exists gets this mode.
    pub fn directory(&mut self, path: &str, mode: u16) -> Result<()> {
        let path = known(path)?;
        self.tree.ensure_parents(&path, self.epoch);
        match self.tree.entries.get_mut(&path) {
            Some(node) if node.is_dir() => node.mode = mode,
            _ => self.tree.insert(path, Node::new(Kind::Directory, mode, self.epoch)),
        }
        Ok(())
    }

    fn place(&mut self, path: TreePath, node: Node) -> Result<()> {
        if let Some(parent) = self.not_a_folder(&path) {
            return Err(Error::input(parent));
        }
        match self.tree.get(&path).map(|n| &n.kind) {
            Some(Kind::Directory) => return Err(Error::input(format!("{path} is a folder"))),
            Some(Kind::File(_)) => remove(self.tree, &BTreeSet::from([path.clone()])),
            _ => {}
        }
        self.tree.ensure_parents(&path, self.epoch);
        self.tree.insert(path, node);
        Ok(())
    }

    /// Why a path cannot be written because of one of its parents; none when all are folders or missing.
    fn not_a_folder(&self, path: &TreePath) -> Option<String> {
        let mut next = path.parent();
        while let Some(dir) = next {
            match self.tree.get(&dir).map(|n| &n.kind) {
                Some(Kind::Directory) | None => {}
                Some(Kind::Symlink(target)) => {
                    return Some(format!("{path} lies below {dir}, which is a symbolic link to {}", String::from_utf8_lossy(target)));
                }
                Some(_) => return Some(format!("{path} lies below {dir}, which is a file")),
            }
            next = dir.parent();
        }
        None
    }
}

/// A path that this program itself wrote down or that was checked before.
pub fn known(path: &str) -> Result<TreePath> {
    TreePath::new(path).map_err(Error::input)
}

/// Removes paths. Where a removed file has further names, the first of them becomes the file.
pub fn remove(tree: &mut Tree, paths: &BTreeSet<TreePath>) {
    let removed: BTreeMap<_, _> = paths.iter().filter_map(|p| tree.entries.remove_entry(p)).collect();
    let mut heirs = BTreeMap::<TreePath, TreePath>::new();
    for (path, node) in &mut tree.entries {
        let Kind::HardLink(target) = &node.kind else { continue };
        let Some(old) = removed.get(target) else { continue };
        match heirs.get(target) {
            Some(heir) => node.kind = Kind::HardLink(heir.clone()),
            None => {
                heirs.insert(target.clone(), path.clone());
                node.kind = old.kind.clone();
            }
        }
    }
}

#[cfg(test)]
pub mod testing {
    //! A store with a small tree for the tests of this folder.

    use super::*;

    /// A store in a temporary folder and a tree in it.
    pub struct Bench {
        /// Keeps the folder.
        pub dir: tempfile::TempDir,
        /// The store.
        pub store: Store,
        /// The tree.
        pub tree: Tree,
        packs: u8,
    }

    impl Bench {
        /// A tree with the accounts of a Debian base and these files.
        pub fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let mut bench = Self { dir, store, tree: Tree::default(), packs: 0 };
            bench.tree.insert(TreePath::root(), Node::new(Kind::Directory, 0o755, 1));
            bench
                .edit(|e| {
                    e.put_text("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n")?;
                    e.put_text("etc/group", "root:x:0:\nsudo:x:27:\nssl-cert:x:105:\n")?;
                    e.put(known("etc/shadow")?, b"root:*:20000:0:99999:7:::\n", 0o640, (0, 42))?;
                    e.put_text("usr/bin/bash", "bash")?;
                    e.link(known("bin")?, "usr/bin")?;
                    files.iter().try_for_each(|(path, text)| e.put_text(path, text))
                })
                .unwrap();
            bench
        }

        /// Changes the tree and finishes the pack.
        pub fn edit<T>(&mut self, change: impl FnOnce(&mut Editor<'_, '_>) -> Result<T>) -> Result<T> {
            self.packs += 1;
            let mut pack = self.store.new_pack(Digest::of(&[self.packs])).unwrap();
            let out = change(&mut Editor::new(&mut self.tree, &self.store, &mut pack, 1000))?;
            pack.finish().unwrap();
            Ok(out)
        }

        /// Text of a file.
        pub fn text(&self, path: &str) -> String {
            match &self.tree.at(path).unwrap_or_else(|| panic!("{path} is missing")).kind {
                Kind::File(content) => String::from_utf8(self.store.read(content).unwrap()).unwrap(),
                other => panic!("{path} is {other:?}"),
            }
        }

        /// Target of a symbolic link.
        pub fn target(&self, path: &str) -> Option<String> {
            match &self.tree.at(path)?.kind {
                Kind::Symlink(target) => Some(String::from_utf8(target.clone()).unwrap()),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Bench;
    use super::*;

    #[test]
    fn a_removed_files_other_names_inherit_it() {
        let mut bench = Bench::new(&[("a", "x")]);
        for name in ["b", "c"] {
            bench.tree.insert(known(name).unwrap(), Node::new(Kind::HardLink(known("a").unwrap()), 0o644, 1));
        }
        bench.edit(|e| e.put_text("a", "new")).unwrap();
        assert_eq!((bench.text("a"), bench.text("b")), ("new".into(), "x".into()));
        assert_eq!(bench.tree.at("c").unwrap().kind, Kind::HardLink(known("b").unwrap()));
    }

    #[test]
    fn a4_a_file_below_a_link_or_a_file_is_refused_with_both_paths() {
        let mut bench = Bench::new(&[]);
        let error = bench.edit(|e| e.put_text("bin/tool", "x")).unwrap_err().to_string();
        assert!(error.contains("/bin/tool") && error.contains("/bin,") && error.contains("usr/bin"), "{error}");
        assert!(bench.edit(|e| e.put_text("etc/passwd/x", "x")).unwrap_err().to_string().contains("/etc/passwd"));
        assert!(bench.edit(|e| e.put_text("usr/bin", "x")).unwrap_err().to_string().contains("folder"));
    }
}
