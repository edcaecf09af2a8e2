//! The judges: fsck.erofs, dump.erofs, mkfs.erofs, the kernel, and our reader against our writer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use layers::units::{Digest, Seed};
use proptest::prelude::*;

use super::*;
use crate::disk::ReadAt;
use crate::exec;
use crate::fs::Files as _;
use crate::store::Store;
use crate::tree::{Content, Kind, Node, Tree, TreePath};

const EPOCH: i64 = 1_700_000_000;

fn options() -> Options {
    Options { uuid: Seed::new("test").uuid("root"), volume_label: "root".into(), epoch: EPOCH }
}

fn path(text: impl AsRef<[u8]>) -> TreePath {
    TreePath::new(text).unwrap()
}

/// A tree with its store in a temporary folder.
struct Sample {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    tree: Tree,
}

impl Sample {
    /// The nodes' files get the given contents; parents are added.
    fn new(nodes: Vec<(TreePath, Node, Vec<u8>)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let mut tree = Tree::default();
        let mut pack = store.new_pack(Digest::of(b"pack")).unwrap();
        tree.insert(TreePath::root(), Node::new(Kind::Directory, 0o755, EPOCH));
        for (path, mut node, bytes) in nodes {
            if let Kind::File(content) = &mut node.kind {
                *content = pack.add(&bytes).unwrap();
            }
            tree.ensure_parents(&path, EPOCH);
            tree.insert(path, node);
        }
        pack.finish().unwrap();
        Self { dir, store, tree }
    }

    fn layout(&self) -> Erofs {
        Erofs::layout(&self.tree, self.store.clone(), options()).unwrap()
    }

    /// Writes the image sparsely and returns its path.
    fn write(&self) -> std::path::PathBuf {
        let out = self.dir.path().join("image");
        write(&self.layout(), &out);
        out
    }
}

fn write(image: &dyn ReadAt, to: &Path) {
    let file = File::create(to).unwrap();
    file.set_len(image.len()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    for range in image.data().unwrap() {
        for at in range.clone().step_by(buffer.len()) {
            let part = &mut buffer[..(range.end - at).min(1 << 20) as usize];
            image.read_at(part, at).unwrap();
            file.write_all_at(part, at).unwrap();
        }
    }
}

fn bytes_of(image: &dyn ReadAt) -> Vec<u8> {
    let mut out = vec![0; image.len() as usize];
    image.read_at(&mut out, 0).unwrap();
    out
}

fn no_content() -> Kind {
    Kind::File(Content { sha256: Digest::of(b""), size: 0, pack: Digest::of(b""), offset: 0 })
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(step).collect()
}

/// An ACL that the kernel accepts: owner rwx, group and others r-x.
fn acl() -> Vec<u8> {
    [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255].to_vec()
}

/// Everything that is hard: names, sizes around each limit, xattrs, links, devices.
fn hard_nodes() -> Vec<(TreePath, Node, Vec<u8>)> {
    let mut out = Vec::new();
    let mut add = |p: TreePath, kind: Kind, mode: u16, bytes: Vec<u8>| out.push((p, Node::new(kind, mode, EPOCH), bytes));
    for i in 0..5000 {
        add(path(format!("big/{i}-{}", "n".repeat(i % 200))), no_content(), 0o644, noise(i % 7, i as u64));
    }
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 8192, 10_000, 1 << 20, (1 << 20) + 3] {
        add(path(format!("sizes/{size}")), no_content(), 0o600, noise(size, 7));
        add(path(format!("sizes/again/{size}")), no_content(), 0o600, noise(size, 7));
    }
    for name in [b"!x".as_slice(), b"-x", b".a", b"..b", b"\xff\xfe", b"a\nb", b"a b", "ü".as_bytes(), &[b'x'; 255]] {
        add(path([b"names/", name].concat()), no_content(), 0o644, name.to_vec());
    }
    add(path(vec![b"d".repeat(250); 15].join(&b'/')), Kind::Directory, 0o700, vec![]);
    for len in [1, 279, 2048, 4000, 4040, 4095] {
        add(path(format!("links/{len}")), Kind::Symlink(vec![b'/'; len]), 0o777, vec![]);
    }
    add(path("hard/a"), no_content(), 0o4755, noise(5000, 3));
    add(path("hard/b"), Kind::HardLink(path("hard/a")), 0o4755, vec![]);
    add(path("c"), Kind::HardLink(path("hard/a")), 0o4755, vec![]);
    add(path("dev/c"), Kind::CharDevice(4095, 300_000), 0o600, vec![]);
    add(path("dev/b"), Kind::BlockDevice(8, 1), 0o660, vec![]);
    add(path("dev/p"), Kind::Fifo, 0o1622, vec![]);
    for (name, size) in [("small", 100), ("tail", 4100), ("large", 60_000)] {
        let mut node = Node { uid: 100_000, gid: 7, mtime: -5, ..Node::new(no_content(), 0o755, 0) };
        node.xattrs.insert(b"security.capability".to_vec(), [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec());
        node.xattrs.insert(b"system.posix_acl_access".to_vec(), acl());
        node.xattrs.insert(b"user.empty".to_vec(), vec![]);
        node.xattrs.insert(b"trusted.value".to_vec(), noise(size, 5));
        out.push((path(format!("xattrs/{name}")), node, noise(4100, 9)));
    }
    let mut node = Node::new(Kind::Directory, 0o2775, 1);
    node.xattrs.insert(b"system.posix_acl_default".to_vec(), acl());
    out.push((path("xattrs/dir"), node, vec![]));
    out
}

/// What a path should be, hard links resolved to the file.
fn resolved<'a>(tree: &'a Tree, node: &'a Node) -> &'a Node {
    match &node.kind {
        Kind::HardLink(target) => tree.get(target).unwrap(),
        _ => node,
    }
}

fn links(tree: &Tree, path: &TreePath, node: &Node) -> u32 {
    let count = |f: &dyn Fn(&TreePath, &Node) -> bool| tree.entries.iter().filter(|(p, n)| f(p, n)).count() as u32;
    if node.is_dir() {
        return 2 + count(&|p, n| n.is_dir() && p.parent().as_ref() == Some(path));
    }
    let target = if let Kind::HardLink(target) = &node.kind { target } else { path };
    1 + count(&|_, n| n.kind == Kind::HardLink(target.clone()))
}

/// The reader must show exactly the tree.
fn assert_same(sample: &Sample, reader: &Reader) {
    assert!(reader.entries().keys().eq(sample.tree.entries.keys()), "same paths");
    for (path, entry) in reader.entries() {
        let node = resolved(&sample.tree, &sample.tree.entries[path]);
        assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (node.mode, node.uid, node.gid, node.mtime), "{path}");
        assert_eq!(entry.xattrs, node.xattrs, "{path}");
        match &node.kind {
            Kind::File(content) => {
                assert_eq!(entry.what, What::File(content.size), "{path}");
                assert_eq!(reader.digest(path).unwrap(), content.sha256, "{path}");
            }
            Kind::Symlink(target) => assert_eq!(entry.what, What::Symlink(target.clone()), "{path}"),
            Kind::Directory => assert_eq!(entry.what, What::Directory, "{path}"),
            Kind::CharDevice(a, b) => assert_eq!(entry.what, What::CharDevice(*a, *b), "{path}"),
            Kind::BlockDevice(a, b) => assert_eq!(entry.what, What::BlockDevice(*a, *b), "{path}"),
            Kind::Fifo => assert_eq!(entry.what, What::Fifo, "{path}"),
            Kind::HardLink(_) => unreachable!("resolved"),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Depth {
    /// Names, kinds, contents and symlink targets.
    Contents,
    /// Modes, owners, times, links, devices and xattrs too.
    All,
}

/// A folder of this machine must show exactly the tree.
fn assert_folder(sample: &Sample, root: &Path, depth: Depth) {
    let mut count = 0;
    for (path, named) in &sample.tree.entries {
        let node = resolved(&sample.tree, named);
        let full = root.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let stat = fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{path}: {e}"));
        match &node.kind {
            Kind::File(content) => assert_eq!(fs::read(&full).unwrap(), sample.store.read(content).unwrap(), "{path}"),
            Kind::Symlink(target) => assert_eq!(fs::read_link(&full).unwrap().as_os_str().as_bytes(), target, "{path}"),
            Kind::Directory => count += fs::read_dir(&full).unwrap().count(),
            Kind::CharDevice(..) => assert!(stat.file_type().is_char_device()),
            Kind::BlockDevice(..) => assert!(stat.file_type().is_block_device()),
            _ => assert!(stat.file_type().is_fifo(), "{path}"),
        }
        if depth == Depth::All {
            assert_metadata(sample, path, named, &full, &stat);
        }
    }
    assert_eq!(count + 1, sample.tree.entries.len(), "no further entries");
}

fn assert_metadata(sample: &Sample, path: &TreePath, named: &Node, full: &Path, stat: &fs::Metadata) {
    let node = resolved(&sample.tree, named);
    assert_eq!(((stat.mode() & 0o7777) as u16, stat.uid(), stat.gid(), stat.mtime()), (node.mode, node.uid, node.gid, node.mtime), "{path}");
    assert_eq!(stat.nlink(), u64::from(links(&sample.tree, path, named)), "{path}");
    if let Kind::CharDevice(a, b) | Kind::BlockDevice(a, b) = node.kind {
        assert_eq!(stat.rdev(), rustix::fs::makedev(a, b), "{path}");
    }
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(full, &mut names[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(full, name, &mut value[..]).unwrap();
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    assert_eq!(found, node.xattrs, "{path}");
}

#[test]
fn d9_a_hard_tree_passes_fsck_and_extracts_equal() {
    let sample = Sample::new(hard_nodes());
    let image = sample.write();
    let out = sample.dir.path().join("out");
    exec::run(Command::new("fsck.erofs").arg(format!("--extract={}", out.display())).arg(&image)).unwrap();
    if rustix::process::getuid().is_root() {
        assert_folder(&sample, &out, Depth::Contents);
    } else {
        println!("skipped the comparison of extracted files: device nodes need root");
    }
    let told = exec::run(Command::new("dump.erofs").arg("-s").arg(&image)).unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains(&options().uuid.to_string()) && told.contains("sb_csum"), "{told}");
    assert_same(&sample, &Reader::open(Arc::new(sample.layout())).unwrap());
}

/// Mounts an image for the life of the value; none, with a printed reason, where that is not possible.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(image: &Path) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            println!("skipped: a loop mount needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        match exec::run(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(dir.path())) {
            Ok(_) => Some(Self(dir)),
            Err(e) if !Path::new("/dev/loop-control").exists() || !fs::read_to_string("/proc/filesystems").unwrap().contains("\terofs") => {
                println!("skipped: this kernel has no loop devices or no EROFS: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = exec::run(Command::new("umount").arg(self.0.path()));
    }
}

#[test]
fn d9_the_kernel_shows_a_hard_tree_unchanged() {
    let sample = Sample::new(hard_nodes());
    let Some(mounted) = Mounted::new(&sample.write()) else { return };
    assert_folder(&sample, mounted.0.path(), Depth::All);
    assert!(fs::symlink_metadata(mounted.0.path().join("names/-y")).is_err(), "a missing name is not found");
}

#[test]
fn d9_a_sparse_file_beyond_4_gib_is_kept_and_stays_sparse() {
    let mut sample = Sample::new(vec![(path("before"), Node::new(no_content(), 0o644, EPOCH), noise(5000, 1))]);
    let (key, size) = (Digest::of(b"large"), (5 << 30) + 4000);
    let pack = File::create(sample.store.pack(&key)).unwrap();
    pack.set_len(size + 99).unwrap();
    pack.write_all_at(b"middle", (4 << 30) + 99).unwrap();
    pack.write_all_at(b"end", size - 3 + 99).unwrap();
    let content = Content { sha256: key, size, pack: key, offset: 99 };
    sample.tree.insert(path("large"), Node::new(Kind::File(content), 0o644, EPOCH));
    sample.tree.insert(path("near"), Node::new(Kind::HardLink(path("before")), 0o644, EPOCH));
    let image = sample.write();
    assert!(fs::metadata(&image).unwrap().blocks() < 2048, "the hole is not written");
    exec::run(Command::new("fsck.erofs").arg(&image)).unwrap();
    let reader = Reader::open(Arc::new(sample.layout())).unwrap();
    let expect = |read: &dyn Fn(&mut [u8], u64)| {
        for (at, text) in [(4 << 30, b"middle".as_slice()), (size - 3, b"end"), (1 << 30, b"\0\0")] {
            let mut buffer = vec![1; text.len()];
            read(&mut buffer, at);
            assert_eq!(buffer, text);
        }
    };
    expect(&|buffer, at| reader.read_at(&path("large"), buffer, at).unwrap());
    let Some(mounted) = Mounted::new(&image) else { return };
    let file = File::open(mounted.0.path().join("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    expect(&|buffer, at| file.read_exact_at(buffer, at).unwrap());
}

#[test]
fn equal_trees_give_equal_bytes_and_equal_contents_share_blocks() {
    let sample = Sample::new(hard_nodes());
    let (a, b) = (sample.layout(), sample.layout());
    assert_eq!(Digest::of(&bytes_of(&a)), Digest::of(&bytes_of(&b)));
    let ranges = |p: &str| a.extents().filter(|(at, _)| **at == path(p)).map(|(_, r)| r).collect::<Vec<_>>();
    assert_eq!(ranges("sizes/1048576"), ranges("sizes/again/1048576"));
    assert_eq!((ranges("sizes/1048579").len(), ranges("sizes/0").len()), (2, 0), "body and tail");
    for (path, range) in a.extents() {
        assert!(range.start >= a.data_start() && range.start % 4096 == 0 || range.end <= a.data_start(), "{path} {range:?}");
    }
    let all: Vec<u8> = bytes_of(&a);
    for (offset, len) in [(0, 4096), (1, 70_000), (a.data_start() - 5, 10), (a.len() - 1, 1), (a.len(), 0)] {
        let mut part = vec![9; len];
        a.read_at(&mut part, offset).unwrap();
        assert_eq!(part, all[offset as usize..offset as usize + len]);
    }
    assert!(a.read_at(&mut [0; 2], a.len() - 1).is_err());
}

#[test]
fn an_unchanged_file_keeps_its_block_aligned_bytes() {
    let node = || Node::new(no_content(), 0o644, EPOCH);
    let files = |extra: usize| vec![(path("a"), node(), noise(100_000 + extra, 1)), (path("b"), node(), noise(50_000, 2))];
    let (old, new) = (Sample::new(files(0)), Sample::new(files(9000)));
    let blocks = |sample: &Sample| {
        let image = sample.layout();
        let (_, range) = image.extents().find(|(p, _)| **p == path("b")).unwrap();
        bytes_of(&image)[range.start as usize..range.end.next_multiple_of(4096) as usize].to_vec()
    };
    assert_eq!(blocks(&old), blocks(&new));
}

#[test]
fn d9_an_inode_at_the_very_end_of_its_block_passes_fsck() {
    for len in (1..1600).step_by(32) {
        let mut nodes: Vec<_> = (0..30).map(|i| (path(format!("p{i}")), Node::new(Kind::Fifo, 0o600, EPOCH), vec![])).collect();
        nodes.push((path("link"), Node::new(Kind::Symlink(vec![b'x'; len]), 0o777, EPOCH), vec![]));
        exec::run(Command::new("fsck.erofs").arg(Sample::new(nodes).write())).unwrap();
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let node = |kind| Node::new(kind, 0o644, EPOCH);
    let mut with_xattr = node(no_content());
    with_xattr.xattrs.insert(b"system.other".to_vec(), vec![]);
    let table = [
        (path("x/orphan"), node(Kind::Fifo), "/x is no directory"),
        (path("d"), node(Kind::CharDevice(4096, 0)), "device 4096:0"),
        (path("l"), node(Kind::Symlink(vec![])), "symlink target"),
        (path("h"), node(Kind::HardLink(path("none"))), "its link /none is no file"),
        (path("x"), with_xattr, "`system.other`"),
    ];
    for (path, node, expected) in table {
        let mut sample = Sample::new(vec![]);
        sample.tree.insert(path.clone(), node);
        let error = Erofs::layout(&sample.tree, sample.store.clone(), options()).unwrap_err().to_string();
        assert!(error.contains(&path.to_string()) && error.contains(expected), "{error}");
    }
    let sample = Sample::new(vec![]);
    let error = Erofs::layout(&Tree::default(), sample.store.clone(), options()).unwrap_err().to_string();
    assert!(error.contains("no root"), "{error}");
}

#[test]
fn images_of_mkfs_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir_all(root.join("sub/dir")).unwrap();
    let contents = BTreeMap::from([("a", noise(10, 1)), ("sub/b", noise(4096, 2)), ("sub/dir/c", noise(70_001, 3))]);
    for (name, bytes) in &contents {
        fs::write(root.join(name), bytes).unwrap();
    }
    exec::run(Command::new("mkfs.erofs").arg("-T1").arg(&image).arg(&root)).unwrap();
    let reader = Reader::open(Arc::new(fs::read(&image).unwrap())).unwrap();
    assert_eq!(reader.entries().len(), 6);
    for (name, bytes) in &contents {
        assert_eq!(reader.digest(&path(name)).unwrap(), Digest::of(bytes));
    }
}

/// Figures for MEASURED.md from this machine's own /usr: `cargo test --release -p builder erofs -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures, judges nothing"]
fn figures_of_a_real_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let mut pack = store.new_pack(Digest::of(b"pack")).unwrap();
    let mut tree = Tree::default();
    tree.insert(TreePath::root(), Node::new(Kind::Directory, 0o755, EPOCH));
    let (mut open, mut total) = (vec![std::path::PathBuf::from("/usr")], 0);
    while let Some(at) = open.pop() {
        let stat = fs::symlink_metadata(&at).unwrap();
        let kind = if stat.is_dir() {
            open.extend(fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()));
            Kind::Directory
        } else if stat.is_symlink() {
            Kind::Symlink(fs::read_link(&at).unwrap().as_os_str().as_bytes().to_vec())
        } else if stat.is_file() && total + stat.len() < 500 << 20 {
            total += stat.len();
            Kind::File(pack.add(&fs::read(&at).unwrap()).unwrap())
        } else {
            continue;
        };
        tree.insert(path(at.as_os_str().as_bytes()), Node::new(kind, stat.mode() as u16 & 0o7777, stat.mtime()));
    }
    pack.finish().unwrap();
    let start = std::time::Instant::now();
    let image = Erofs::layout(&tree, store.clone(), options()).unwrap();
    let laid_out = start.elapsed();
    let out = dir.path().join("image");
    let start = std::time::Instant::now();
    write(&image, &out);
    let written = start.elapsed();
    let start = std::time::Instant::now();
    fs::copy(store.pack(&Digest::of(b"pack")), dir.path().join("copy")).unwrap();
    let copied = start.elapsed();
    let start = std::time::Instant::now();
    let mut buffer = vec![0; 1 << 20];
    (0..image.len() >> 20).for_each(|i| image.read_at(&mut buffer, i << 20).unwrap());
    let only_read = start.elapsed();
    let start = std::time::Instant::now();
    let verity = crate::fs::verity::format(&image, &[1; 32], uuid::Uuid::nil()).unwrap();
    let hashed = start.elapsed();
    let image_again = Arc::new(Erofs::layout(&tree, store.clone(), options()).unwrap());
    let start = std::time::Instant::now();
    let reader = Reader::open(image_again).unwrap();
    let read = start.elapsed();
    println!("{} entries, {} MiB of contents, {image:?}", tree.entries.len(), total >> 20);
    println!(
        "layout {laid_out:?}, written {written:?} (a plain copy of the pack {copied:?}, reading alone {only_read:?}), verity {hashed:?} ({} bytes), listing {read:?} ({})",
        verity.tree.len(),
        reader.entries().len()
    );
    let (root, theirs) = (dir.path().join("root"), dir.path().join("theirs"));
    exec::run(Command::new("fsck.erofs").arg(format!("--extract={}", root.display())).arg(&out)).unwrap();
    exec::run(Command::new("mkfs.erofs").arg(&theirs).arg(&root)).unwrap();
    println!("image {} bytes, that of mkfs.erofs {} bytes", image.len(), fs::metadata(&theirs).unwrap().len());
}

fn any_kind() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    let bytes = prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), (0usize..20_000, any::<u64>()).prop_map(|(n, s)| noise(n, s))];
    prop_oneof![
        6 => bytes.prop_map(|b| (no_content(), b)),
        2 => Just((Kind::Directory, vec![])),
        2 => proptest::collection::vec(1u8.., 1..4096).prop_map(|t| (Kind::Symlink(t), vec![])),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| (Kind::CharDevice(a, b), vec![])),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| (Kind::BlockDevice(a, b), vec![])),
        1 => Just((Kind::Fifo, vec![])),
    ]
}

fn any_xattrs() -> impl Strategy<Value = crate::tree::Xattrs> {
    let name = prop_oneof![
        "(user|trusted|security)\\.[a-z.]{1,40}".prop_map(String::into_bytes),
        Just(b"system.posix_acl_access".to_vec()),
        Just(b"system.posix_acl_default".to_vec()),
    ];
    let value = prop_oneof![9 => proptest::collection::vec(any::<u8>(), 0..200), 1 => (0usize..65_536).prop_map(|n| noise(n, 1))];
    prop_oneof![3 => Just(crate::tree::Xattrs::new()), 1 => proptest::collection::btree_map(name, value, 1..5)]
}

/// What Linux lets a node of this kind have: user attributes and ACLs only on files and directories, and ACLs only well-formed.
fn allowed(mut xattrs: crate::tree::Xattrs, kind: &Kind) -> crate::tree::Xattrs {
    let plain = matches!(kind, Kind::File(_) | Kind::Directory);
    xattrs.retain(|name, _| !name.ends_with(b"_default") || *kind == Kind::Directory);
    xattrs.retain(|name, _| plain || name.starts_with(b"trusted.") || name.starts_with(b"security."));
    xattrs.iter_mut().filter(|(name, _)| name.starts_with(b"system.")).for_each(|(_, value)| *value = acl());
    xattrs
}

/// Random trees: each node's parent is an earlier directory, some files get further names.
fn any_sample() -> impl Strategy<Value = Vec<(TreePath, Node, Vec<u8>)>> {
    let name = prop_oneof![3 => proptest::collection::vec(1u8.., 1..12), 1 => proptest::collection::vec(1u8.., 1..=255)];
    let name = name.prop_map(|n| n.into_iter().map(|b| if b == b'/' { b'_' } else { b }).collect::<Vec<_>>());
    let node = (any_kind(), 0u16..0o10000, any::<u32>(), 0u32..70_000, prop_oneof![Just(EPOCH), any::<i64>()], any_xattrs());
    proptest::collection::vec((any::<prop::sample::Index>(), name, node, 0u8..10), 0..60).prop_map(|rows| {
        let mut out: Vec<(TreePath, Node, Vec<u8>)> = Vec::new();
        let (mut dirs, mut used) = (vec![TreePath::root()], std::collections::BTreeSet::from([TreePath::root()]));
        for (at, name, ((kind, bytes), mode, uid, gid, mtime, xattrs), extra) in rows {
            let path = at.get(&dirs).join(&name);
            if name == b"." || name == b".." || path.as_bytes().len() > 4000 || !used.insert(path.clone()) {
                continue;
            }
            if kind == Kind::Directory {
                dirs.push(path.clone());
            }
            let node = Node { mode, uid, gid, mtime, xattrs: allowed(xattrs, &kind), kind };
            let again = TreePath::root().join(format!("link{}", out.len()).as_bytes());
            if extra == 0 && !node.is_dir() && used.insert(again.clone()) {
                out.push((again, Node { kind: Kind::HardLink(path.clone()), ..node.clone() }, vec![]));
            }
            out.push((path, node, bytes));
        }
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn d9_random_trees_come_back_unchanged(nodes in any_sample()) {
        let sample = Sample::new(nodes);
        assert_same(&sample, &Reader::open(Arc::new(sample.layout())).unwrap());
        let image = sample.write();
        exec::run(Command::new("fsck.erofs").arg(&image)).unwrap();
        if let Some(mounted) = Mounted::new(&image) {
            assert_folder(&sample, mounted.0.path(), Depth::All);
        }
    }

    #[test]
    fn damaged_images_are_refused_or_read_but_never_panic(
        nodes in any_sample(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let sample = Sample::new(nodes);
        let image = sample.layout();
        let mut bytes = bytes_of(&image);
        // Without its checksum feature the superblock lets the damage through to the parsers.
        bytes[1024 + 8] &= !1;
        for (at, value) in damage {
            let at = at.index(image.data_start() as usize);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(reader) = Reader::open(Arc::new(bytes)) {
            for path in reader.entries().keys() {
                let _ = reader.digest(path);
            }
        }
    }
}
