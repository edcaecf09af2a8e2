//! The configured tree against mmdebstrap's, made from the very same packages; and against itself under another user, umask, zone and core
//! count. Takes the mirror from the machine's apt sources.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use builder::assemble::configure::{Assumed, Script, configure};
use builder::assemble::scratch::{self, Options, Root};
use builder::assemble::unpack::{self, Unpacked};
use builder::store::Store;
use builder::tree::{Kind, Node, Tree, TreePath};
use layers::lock::Package;
use layers::units::{Bytes, Digest};

const INCLUDE: &str = "systemd-sysv,dbus,openssh-server,ca-certificates,nftables,iproute2";
const EPOCH: i64 = 1_780_000_000;

/// Paths whose difference from mmdebstrap's tree is meant, and why. A trailing `/` means all below.
const DIFFERENT: &[(&str, &str)] = &[];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// mmdebstrap's tar and the packages it used, made once per target directory.
fn reference() -> PathBuf {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mmdebstrap");
    if dir.join("root.tar").exists() {
        return dir;
    }
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::create_dir(path("debs")).unwrap();
    let source = format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} trixie main", mirror());
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", &format!("--include={INCLUDE}"), "--skip=essential/unlink,cleanup/apt/cache"]);
    command.arg("--aptopt=APT::Keep-Downloaded-Packages \"true\"");
    command.arg(format!("--customize-hook=copy-out /var/cache/apt/archives {}", path("debs")));
    command.arg("--customize-hook=rm -f \"$1\"/var/cache/apt/archives/*.deb");
    command.args(["trixie", &path("root.tar"), &source]).env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(scratch.keep(), &dir).unwrap();
    dir
}

/// The first archive that the machine's apt knows.
fn mirror() -> String {
    let output = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().next().expect("apt has sources").trim_end_matches('/').to_string()
}

/// Puts all packages of a folder into the store, as a lock would list them.
fn lock(store: &Store, debs: &Path) -> Vec<Package> {
    let files = fs::read_dir(debs).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "deb"));
    let mut packages: Vec<_> = files.map(|file| {
        let bytes = fs::read(&file).unwrap();
        let sha256 = store.put_blob(&bytes).unwrap();
        let mut deb = builder::assemble::deb::Deb::open(std::io::Cursor::new(&bytes)).unwrap();
        let files = unpack::read_control(deb.control().unwrap()).unwrap();
        let control = unpack::Control { files, list: Vec::new() };
        let field = |name: &str| control.field(name).unwrap();
        Package {
            name: field("Package"),
            version: field("Version"),
            architecture: field("Architecture"),
            sha256,
            size: Bytes(bytes.len() as u64),
            suite: "trixie".into(),
            path: String::new(),
            source: None,
            wanted_by: Vec::new(),
        }
    }).collect();
    packages.sort();
    packages
}

fn ours(store: &Store, debs: &Path, scripts: &[Script]) -> Tree {
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let packages = lock(store, debs);
    let start = Instant::now();
    let unpacked = unpack::unpack_all(store, &packages, &|_| ()).unwrap();
    eprintln!("unpacked {} packages, {} MB, in {:?}", packages.len(), packages.iter().map(|p| p.size.0).sum::<u64>() >> 20, start.elapsed());
    let start = Instant::now();
    let both: Vec<(Package, Unpacked)> = packages.into_iter().zip(unpacked).collect();
    let tree = configure(store, &both, &[], scripts, EPOCH).unwrap_or_else(|e| panic!("{e} {:?}", e.hint()));
    eprintln!("configured in {:?}, {} entries", start.elapsed(), tree.entries.len());
    tree
}

/// One entry in words, for comparing and showing.
fn words(node: &Node, content: Option<Digest>) -> String {
    let mut out = match &node.kind {
        Kind::Directory => "directory".to_string(),
        Kind::File(_) | Kind::HardLink(_) => format!("file {} {}", content.map(|d| d.short()).unwrap_or_default(), node.mtime),
        Kind::Symlink(target) => format!("link to {}", String::from_utf8_lossy(target)),
        other => format!("{other:?}"),
    };
    let _ = write!(out, " {:o} {}:{}", node.mode, node.uid, node.gid);
    for (name, value) in &node.xattrs {
        let _ = write!(out, " {}={}", String::from_utf8_lossy(name), Digest::of(value).short());
    }
    out
}

fn described(tree: &Tree) -> BTreeMap<TreePath, String> {
    let digest = |node: &Node| match &node.kind {
        Kind::File(c) => Some(c.sha256),
        Kind::HardLink(other) => match &tree.get(other).unwrap().kind {
            Kind::File(c) => Some(c.sha256),
            _ => None,
        },
        _ => None,
    };
    tree.entries.iter().map(|(p, n)| (p.clone(), words(n, digest(n)))).collect()
}

/// The reference tar in the same words. GNU tar's listing order and our reader are tested elsewhere; this reads it with the crate alone.
fn described_tar(file: &Path) -> BTreeMap<TreePath, String> {
    let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
    let (mut out, mut digests) = (BTreeMap::new(), BTreeMap::new());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = TreePath::new(entry.path_bytes()).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let link = entry.link_name_bytes().map(|b| b.into_owned()).unwrap_or_default();
        let none = builder::tree::Content { sha256: Digest::of(&bytes), size: 0, pack: Digest::of(b""), offset: 0 };
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => Kind::Symlink(link),
            tar::EntryType::Link => Kind::HardLink(TreePath::new(link).unwrap()),
            tar::EntryType::Char => Kind::CharDevice(0, 0),
            tar::EntryType::Regular => Kind::File(none.clone()),
            other => panic!("{path}: {other:?}"),
        };
        let digest = match &kind {
            Kind::HardLink(other) => digests[other],
            _ => none.sha256,
        };
        digests.insert(path.clone(), digest);
        let header = entry.header();
        let mut node = Node::new(kind, header.mode().unwrap() as u16 & 0o7777, header.mtime().unwrap() as i64);
        (node.uid, node.gid) = (header.uid().unwrap() as u32, header.gid().unwrap() as u32);
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                node.xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
            }
        }
        out.insert(path, words(&node, Some(digest)));
    }
    out
}

fn reason(path: &TreePath) -> Option<&'static str> {
    let text = path.to_string();
    DIFFERENT.iter().find(|(p, _)| *p == text || (p.ends_with('/') && text.starts_with(p))).map(|(_, r)| *r)
}

#[test]
fn the_configured_tree_equals_mmdebstraps_but_for_listed_differences() {
    let reference = reference();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let tree = ours(&store, &reference.join("debs/archives"), &[]);
    let (ours, theirs) = (described(&tree), described_tar(&reference.join("root.tar")));
    let mut unlisted = String::new();
    let paths: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    for path in paths {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b && reason(path).is_none() {
            let shown = |s: Option<&String>| s.cloned().unwrap_or("nothing".into());
            let _ = writeln!(unlisted, "{path}\n  ours   {}\n  theirs {}", shown(a), shown(b));
        }
    }
    if let Ok(keep) = std::env::var("CHASI_BOD_KEEP") {
        for (path, node) in &tree.entries {
            if let Kind::File(c) = &node.kind {
                let to = Path::new(&keep).join(&path.to_string()[1..]);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(to, store.read(c).unwrap()).unwrap();
            }
        }
    }
    assert!(unlisted.is_empty(), "{} unlisted differences:\n{unlisted}", unlisted.lines().count() / 3);
}
