//! Container images as trees of the root: recipes and pulled layers, judged by tar, sha256sum and skopeo.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use builder::assemble::editor::Editor;
use builder::images::install::{Installed, install};
use builder::images::pulled::{self, Limits, Pulled};
use builder::images::recipe::{self, LayerContent, Recipe, Settings};
use builder::images::{BuiltImage, Layer, OPAQUE_XATTR, Origin, read, write};
use builder::store::Store;
use builder::tree::{Kind, Node, Tree, TreePath};
use layers::seed::{LAYERS, chain_ids};
use layers::units::{Bytes, Digest};
use layers::{Fault, Result};
use proptest::prelude::*;

use crate::common;
use crate::common::oci as made;

const EPOCH: i64 = 1_700_000_000;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

/// One entry of a tar: path, kind, mode and what kind means it.
enum Entry<'a> {
    File(&'a str, u32, &'a [u8]),
    Dir(&'a str, u32),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str, u32, u32),
}

/// A tar whose names are written as they are, however hostile.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        let (path, kind, mode, body, link) = match entry {
            Entry::File(path, mode, body) => (path, tar::EntryType::Regular, *mode, *body, ""),
            Entry::Dir(path, mode) => (path, tar::EntryType::Directory, *mode, b"".as_slice(), ""),
            Entry::Link(path, target) => (path, tar::EntryType::Symlink, 0o777, b"".as_slice(), *target),
            Entry::Hard(path, target) => (path, tar::EntryType::Link, 0o644, b"".as_slice(), *target),
            Entry::Device(path, major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                (path, tar::EntryType::Char, 0o666, b"".as_slice(), "")
            }
        };
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(body.len() as u64);
        made::unowned(&mut header);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(body);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn read(&self, tar: &[u8]) -> Result<Tree> {
        let mut pack = self.store.new_pack(Digest::of(tar))?;
        let tree = read::layer(tar, &mut pack)?;
        pack.finish()?;
        Ok(tree)
    }

    fn tree(&self, entries: &[Entry<'_>]) -> Tree {
        self.read(&tar(entries)).unwrap()
    }

    fn refused(&self, entries: &[Entry<'_>]) -> String {
        let error = self.read(&tar(entries)).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        error.to_string()
    }

    fn pull(&self, image: &made::Image, limits: Limits) -> Result<BuiltImage> {
        image
            .blobs
            .values()
            .chain(image.manifests.iter().map(|(_, bytes)| bytes))
            .for_each(|bytes| assert_eq!(self.store.put_blob(bytes).unwrap(), Digest::of(bytes)));
        let digest = Digest::of(&image.target);
        let name = "r.test/app:1".to_string();
        let pulled = Pulled {
            name,
            digest,
            media_type: made::MANIFEST.into(),
            manifest: digest,
            architecture: "amd64".into(),
            wanted_by: vec!["profile".into()],
        };
        pulled::build(&pulled, &self.store, limits)
    }

    fn recipe(&self, name: &str, trees: &[Tree]) -> BuiltImage {
        let layers = trees.iter().map(|tree| LayerContent { comment: "test".into(), tree: tree.clone() }).collect();
        let config = Settings {
            entrypoint: vec!["/x".into()],
            labels: BTreeMap::from([("b".into(), "1".into()), ("a".into(), "2".into())]),
            ..Settings::default()
        };
        let recipe = Recipe { name: name.into(), layers, config, architecture: "amd64".into(), wanted_by: vec!["layer x".into()] };
        recipe::build(&recipe, &self.store, EPOCH).unwrap()
    }

    fn install(&self, images: &[BuiltImage]) -> Result<(Tree, Installed)> {
        let mut tree = Tree::default();
        let mut pack = self.store.new_pack(Digest::of(b"install"))?;
        let installed = install(&mut Editor::new(&mut tree, &self.store, &mut pack, EPOCH), images)?;
        pack.finish()?;
        Ok((tree, installed))
    }

    fn text(&self, tree: &Tree, at: &str) -> Vec<u8> {
        match &tree.at(at).unwrap_or_else(|| panic!("{at}")).kind {
            Kind::File(content) => self.store.read(content).unwrap(),
            other => panic!("{at} is {other:?}"),
        }
    }
}

fn is_whiteout(tree: &Tree, at: &str) -> bool {
    tree.at(at).is_some_and(|node| node.kind == Kind::CharDevice(0, 0))
}

fn is_opaque(tree: &Tree, at: &str) -> bool {
    tree.at(at).is_some_and(|node| node.is_dir() && node.xattrs.get(OPAQUE_XATTR).is_some_and(|value| value == b"y"))
}

#[test]
fn whiteouts_and_opaque_directories_become_overlays_form() {
    let bench = Bench::new();
    let tree = bench.tree(&[
        Entry::File("a/.wh.gone", 0o644, b""),
        Entry::Dir("b", 0o750),
        Entry::File("b/.wh..wh..opq", 0o644, b""),
        Entry::File("c/.wh..wh..opq", 0o644, b""),
        // A whiteout hides what lies below, never what its own layer has, whichever comes first.
        Entry::File(".wh.kept", 0o644, b""),
        Entry::File("kept", 0o644, b"x"),
        Entry::File("dir/file", 0o644, b"x"),
        Entry::File(".wh.dir", 0o644, b""),
        // AUFS's own records.
        Entry::File(".wh..wh.aufs", 0o644, b""),
    ]);
    assert!(is_whiteout(&tree, "a/gone") && is_opaque(&tree, "b") && is_opaque(&tree, "c") && is_opaque(&tree, "dir"));
    assert_eq!((tree.at("b").unwrap().mode, bench.text(&tree, "kept")), (0o750, b"x".to_vec()));
    assert!(tree.entries.keys().all(|path| !path.to_string().contains(".wh.")), "{:?}", tree.entries.keys());
}

#[test]
fn c4_no_entry_leaves_its_layer() {
    let bench = Bench::new();
    for (entries, says) in [
        (vec![Entry::File("../x", 0o644, b"x")], ".."),
        (vec![Entry::Link("up", "../.."), Entry::File("up/x", 0o644, b"x")], "leaves the layer through a symbolic link"),
        (vec![Entry::Hard("x", "../../etc/passwd")], ".."),
        (vec![Entry::Hard("x", "etc/passwd")], "which is no file before it"),
        (vec![Entry::Dir("d", 0o755), Entry::Hard("x", "d")], "which is no file before it"),
        (vec![Entry::Link("a", "b"), Entry::Link("b", "a"), Entry::File("a/x", 0o644, b"")], "behind too many links"),
        (vec![Entry::File("f", 0o644, b""), Entry::File("f/x", 0o644, b"")], "lies below /f, which is not a directory"),
        (vec![Entry::File("a/.wh.", 0o644, b"")], "names no file"),
        (vec![Entry::File("a/.wh...", 0o644, b"")], "names no file"),
        (vec![Entry::File(".wh.x/y", 0o644, b"")], "lies below a whiteout"),
        (vec![Entry::Device("n", 0, 0)], "which overlay takes for a whiteout"),
    ] {
        let text = bench.refused(&entries);
        assert!(text.contains(says), "`{says}` is not in: {text}");
    }
}

#[test]
fn c4_links_among_the_parents_are_followed_inside_the_layer_only() {
    let bench = Bench::new();
    let tree = bench.tree(&[
        Entry::Link("abs", "/etc"),
        Entry::File("abs/shadow", 0o600, b"theirs"),
        Entry::Link("usr/lib64", "lib"),
        Entry::Dir("usr/lib", 0o755),
        Entry::File("usr/lib64/x", 0o644, b"x"),
        Entry::File("y", 0o644, b"y"),
        Entry::Hard("z", "/y"),
    ]);
    assert_eq!((bench.text(&tree, "etc/shadow"), bench.text(&tree, "usr/lib/x")), (b"theirs".to_vec(), b"x".to_vec()));
    assert!(matches!(tree.at("z").unwrap().kind, Kind::HardLink(ref to) if *to == path("y")));
    // Overlay's own marks cannot be smuggled in.
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    made::unowned(&mut header);
    tar.append_data(&mut header, "d", std::io::empty()).unwrap();
    let error = bench.read(&tar.into_inner().unwrap()).unwrap_err().to_string();
    assert!(error.contains("belongs to overlay"), "{error}");
}

#[test]
fn c4_of_two_entries_the_last_counts_and_privileged_files_lie_behind_a_closed_folder() {
    let bench = Bench::new();
    let entries = [
        Entry::File("x", 0o644, b"first"),
        Entry::File("x", 0o4755, b"last"),
        Entry::Dir("d", 0o755),
        Entry::File("d/inner", 0o644, b"gone with its directory"),
        Entry::File("d", 0o644, b"now a file"),
    ];
    let tree = bench.tree(&entries);
    assert_eq!((bench.text(&tree, "x"), tree.at("x").unwrap().mode), (b"last".to_vec(), 0o4755));
    assert!(tree.at("d/inner").is_none() && bench.text(&tree, "d") == b"now a file");
    let image = bench.pull(&made::image("amd64", &[tar(&entries)]), Limits::default()).unwrap();
    let (root, installed) = bench.install(&[image]).unwrap();
    let folder = format!("{}/{}", LAYERS.trim_start_matches('/'), installed.index.chains.values().next().unwrap().layer);
    assert_eq!(root.at(LAYERS.trim_start_matches('/')).unwrap().mode, 0o700, "set-user-id programs of containers are not the host's");
    assert_eq!(root.at(&format!("{folder}/x")).unwrap().mode, 0o4755);
    assert_eq!(installed.foreign, [path(&folder)], "the image lint has nothing to say about layers of others");
}

#[test]
fn a_recipes_layers_are_what_tar_and_sha256sum_see() {
    let bench = Bench::new();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(120));
    let mut tree =
        bench.tree(&[Entry::File("bin/tool", 0o755, b"#!/bin/sh\n"), Entry::Link("bin/alias", "tool"), Entry::Hard("bin/same", "bin/tool")]);
    let file = tree.at("bin/same").unwrap().clone();
    tree.insert(path(&long), Node { uid: 3_000_000, xattrs: BTreeMap::from([(b"user.note".to_vec(), b"y".to_vec())]), ..file });
    tree.insert(path("gone"), Node::new(Kind::CharDevice(0, 0), 0, 0));
    let layer = recipe::layer(&tree, &bench.store, EPOCH).unwrap();
    let file = bench.dir.path().join("layer.tar");
    write::tar(&layer.tree, &bench.store, &mut fs::File::create(&file).unwrap()).unwrap();
    let sum = String::from_utf8(common::good(Command::new("sha256sum").arg(&file)).stdout).unwrap();
    assert!(sum.starts_with(&layer.diff_id.hex()), "{sum}");
    assert_eq!(layer.size, fs::metadata(&file).unwrap().len());
    let list = common::good(Command::new("tar").arg("--numeric-owner").arg("-tvf").arg(&file).env("TZ", "UTC")).stdout;
    let list = String::from_utf8(list).unwrap();
    for part in [&*long, "bin/alias -> tool", "bin/tool link to bin/same", "3000000/0", ".wh.gone"] {
        assert!(list.contains(part), "{part} is not in:\n{list}");
    }
    assert!(list.lines().all(|line| line.contains("2023-11-14 22:13")), "one time for all, in UTC:\n{list}");
    // What was written reads back as what it was made of.
    assert_eq!(bench.read(&fs::read(&file).unwrap()).unwrap().entries.keys().collect::<Vec<_>>(), layer.tree.entries.keys().collect::<Vec<_>>());
}

/// An image as an OCI layout of files (OCI image specification, image-layout.md), for outside tools.
fn layout(bench: &Bench, image: &BuiltImage, dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut entry = made::descriptor(&image.media_type, &image.documents[&image.digest]);
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "x"});
    fs::write(dir.join("index.json"), serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    image.documents.iter().for_each(|(digest, bytes)| fs::write(blobs.join(digest.hex()), bytes).unwrap());
    for layer in &image.layers {
        write::tar(&layer.tree, &bench.store, &mut fs::File::create(blobs.join(layer.diff_id.hex())).unwrap()).unwrap();
    }
}

#[test]
fn skopeo_reads_and_copies_a_recipes_image_under_the_same_digest() {
    let bench = Bench::new();
    let one = bench.tree(&[Entry::File("bin/tool", 0o755, b"tool"), Entry::Dir("etc", 0o755)]);
    let image = bench.recipe("r.test/tool:1", &[one, bench.tree(&[Entry::File("etc/.wh.x", 0o644, b"")])]);
    let dir = bench.dir.path().join("layout");
    layout(&bench, &image, &dir);
    let skopeo = |args: &[&str]| String::from_utf8(common::good(Command::new("skopeo").args(args).env("TZ", "Asia/Tokyo")).stdout).unwrap();
    let place = format!("oci:{}:x", dir.display());
    let seen: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", &place])).unwrap();
    assert_eq!(seen["Digest"], image.digest.to_string());
    assert!(seen["Architecture"] == "amd64" && seen["Os"] == "linux" && seen["Created"] == "2023-11-14T22:13:20Z", "{seen}");
    let layers: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    assert_eq!(seen["Layers"], serde_json::json!(layers));
    let copy = bench.dir.path().join("copy");
    skopeo(&["--insecure-policy", "copy", &place, &format!("dir:{}", copy.display())]);
    assert_eq!(Digest::of(&fs::read(copy.join("manifest.json")).unwrap()), image.digest);
}

#[test]
fn equal_inputs_give_equal_trees_and_documents_in_whatever_order_they_come() {
    let entries = || vec![Entry::File("a", 0o644, b"a"), Entry::Dir("d", 0o755), Entry::File("d/b", 0o600, b"b"), Entry::Hard("z", "a")];
    let made = |reversed: bool| {
        let bench = Bench::new();
        let tree = bench.tree(&entries());
        let mut images = vec![
            bench.recipe("r.test/a:1", std::slice::from_ref(&tree)),
            bench.recipe("r.test/b:1", &[tree, bench.tree(&[Entry::File("x", 0o644, b"")])]),
        ];
        images.push(bench.pull(&made::image("amd64", &[tar(&entries())]), Limits::default()).unwrap());
        if reversed {
            images.reverse();
        }
        let (tree, installed) = bench.install(&images).unwrap();
        // Places in packs may differ, bytes may not.
        let told = |node: &Node| match &node.kind {
            Kind::File(content) => format!("{} {:o} {}", content.sha256, node.mode, node.mtime),
            other => format!("{other:?} {:o} {}", node.mode, node.mtime),
        };
        let list: Vec<_> = tree.entries.iter().map(|(path, node)| format!("{path} {}", told(node))).collect();
        (list, installed.index)
    };
    let (one, two, other) = (made(false), made(false), made(true));
    assert_eq!(one, two);
    assert_eq!(one, other);
    assert_eq!(one.1.images.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["r.test/a:1", "r.test/app:1", "r.test/b:1"]);
}

#[test]
fn a_hundred_and_twenty_layers_have_an_index_and_fit_the_options_of_one_mount() {
    let bench = Bench::new();
    let tars: Vec<_> = (0..120).map(|n| tar(&[Entry::File(&format!("f{n}"), 0o644, format!("{n}").as_bytes())])).collect();
    let image = bench.pull(&made::image("amd64", &tars), Limits::default()).unwrap();
    let (root, installed) = bench.install(&[image]).unwrap();
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let mut above = chain_ids(&diff_ids).last().copied();
    let mut folders = Vec::new();
    while let Some(chain) = above.map(|id| &installed.index.chains[&id]) {
        folders.push(format!("{LAYERS}/{}", chain.layer));
        above = chain.parent;
    }
    assert_eq!((folders.len(), installed.index.chains.len()), (120, 120));
    assert!(folders.iter().enumerate().all(|(n, folder)| root.at(&format!("{}/f{}", folder.trim_start_matches('/'), 119 - n)).is_some()));
    let options = format!("lowerdir={}", folders.join(":"));
    assert!(options.len() < 4096, "{} bytes", options.len());
}

/// An image of layers whose diffIDs are as told.
fn image_of(name: &str, layers: &[(Digest, Tree)]) -> BuiltImage {
    let layers = layers.iter().map(|(diff_id, tree)| Arc::new(Layer { diff_id: *diff_id, size: 1, tree: tree.clone() })).collect();
    let digest = Digest::of(name.as_bytes());
    let documents = BTreeMap::from([(digest, name.as_bytes().to_vec())]);
    let (media_type, origin) = (made::MANIFEST.to_string(), Origin::Pulled);
    BuiltImage { name: name.into(), digest, media_type, manifest: digest, config: digest, documents, layers, wanted_by: Vec::new(), origin }
}

#[test]
fn folders_get_as_many_digits_as_tell_them_apart() {
    let bench = Bench::new();
    let tree = |text: &str| bench.tree(&[Entry::File("x", 0o644, text.as_bytes())]);
    let (mut near, far) = (Digest([7; 32]), Digest([9; 32]));
    near.0[5] = 8;
    let images = [
        image_of("r.test/a:1", &[(Digest([7; 32]), tree("a"))]),
        image_of("r.test/b:1", &[(near, tree("b"))]),
        image_of("r.test/c:1", &[(far, tree("c"))]),
    ];
    let (root, installed) = bench.install(&images).unwrap();
    let names: BTreeSet<_> = installed.index.chains.values().map(|chain| chain.layer.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["070707070707", "070707070708", "09090909"]));
    for (name, text) in [("070707070707", b"a"), ("070707070708", b"b"), ("09090909", b"c")] {
        assert_eq!(bench.text(&root, &format!("{}/{name}/x", LAYERS.trim_start_matches('/'))), text);
    }
}

#[test]
fn parents_that_a_tar_omits_come_from_the_layers_below() {
    let bench = Bench::new();
    let base = |mode: u32| tar(&[Entry::Dir("var", 0o755), Entry::Dir("var/spool", mode)]);
    let top = tar(&[Entry::File("var/spool/job", 0o600, b"x")]);
    let (open, closed) = (made::image("amd64", &[base(0o1777), top.clone()]), made::image("amd64", &[base(0o700), top]));
    let open = bench.pull(&open, Limits::default()).unwrap();
    let closed = BuiltImage { name: "r.test/closed:1".into(), ..bench.pull(&closed, Limits::default()).unwrap() };
    let (root, installed) = bench.install(&[open, closed]).unwrap();
    let modes: BTreeSet<_> = installed
        .index
        .chains
        .values()
        .filter(|chain| chain.parent.is_some())
        .map(|chain| root.at(&format!("{}/{}/var/spool", LAYERS.trim_start_matches('/'), chain.layer)).unwrap().mode)
        .collect();
    assert_eq!(modes, BTreeSet::from([0o700, 0o1777]), "one tar over two bases is two folders");
}

#[test]
fn one_name_for_two_digests_is_refused_and_wishes_for_one_image_are_joined() {
    let bench = Bench::new();
    let (a, b) =
        (bench.recipe("r.test/a:1", &[bench.tree(&[Entry::Dir("a", 0o755)])]), bench.recipe("r.test/a:1", &[bench.tree(&[Entry::Dir("b", 0o755)])]));
    let error = bench.install(&[a.clone(), b.clone()]).unwrap_err().to_string();
    assert!(error.contains("r.test/a:1") && error.contains(&a.digest.to_string()) && error.contains(&b.digest.to_string()), "{error}");
    let other = BuiltImage { wanted_by: vec!["chart y".into()], ..a.clone() };
    let (_, installed) = bench.install(&[a, other]).unwrap();
    assert_eq!(installed.index.images[0].wanted_by, ["chart y", "layer x"]);
}

#[test]
fn c1_damaged_blobs_and_wrong_diff_ids_are_named() {
    let bench = Bench::new();
    let good = tar(&[Entry::File("x", 0o644, b"x")]);
    let image = made::image("amd64", std::slice::from_ref(&good));
    let layer = Digest::of(&made::gzip(&good));
    bench.pull(&image, Limits::default()).unwrap();
    let other = Bench::new();
    image.blobs.values().for_each(|bytes| assert_eq!(other.store.put_blob(bytes).unwrap(), Digest::of(bytes)));
    common::flip(&other.store.blob(&layer), 15);
    let error = other.pull(&image, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("unpacking image r.test/app:1") && error.contains(&layer.to_string()), "{error}");
    let lie = made::image_of("amd64", &[(made::GZIP, made::gzip(&good), Digest::of(b"another"))]);
    let error = Bench::new().pull(&lie, Limits::default()).unwrap_err().to_string();
    assert!(error.contains(&format!("has diffID {}, expected {}", Digest::of(&good), Digest::of(b"another"))), "{error}");
}

#[test]
fn c8_an_image_for_another_machine_is_refused_when_it_is_unpacked_too() {
    let error = Bench::new().pull(&made::image("arm64", &[tar(&[])]), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("r.test/app:1") && error.contains("the image is for linux/arm64, needed is linux/amd64"), "{error}");
}

/// Zeros that compress to almost nothing: `(blob, diffID that is told)`.
fn bomb(compress: &str, megabytes: u32, dir: &Path) -> Vec<u8> {
    // One file that fills the archive; its header promises what comes.
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(u64::from(megabytes) << 20);
    header.set_mode(0o644);
    made::unowned(&mut header);
    header.set_cksum();
    let head = dir.join("head");
    fs::write(&head, header.as_bytes()).unwrap();
    let line = format!("{{ cat {}; head -c {megabytes}M /dev/zero; }} | {compress}", head.display());
    common::good(Command::new("sh").arg("-c").arg(line)).stdout
}

/// Runs in a process of its own with little memory: see `c3_bombs_stop_at_their_limit_in_bounded_memory`.
#[test]
#[ignore = "run by c3_bombs_stop_at_their_limit_in_bounded_memory with bounded memory"]
fn c3_child() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    for (compress, media_type) in [("gzip -1", made::GZIP), ("zstd -1", "application/vnd.oci.image.layer.v1.tar+zstd")] {
        for (megabytes, says) in [(420, "unpacks to more bytes than"), (10_240, "more than 2 GiB")] {
            let blob =
                if megabytes > 2048 { bomb(&format!("{{ head -c 8M; }} | {compress}"), megabytes, dir) } else { bomb(compress, megabytes, dir) };
            let image = made::image_of("amd64", &[(media_type, blob, Digest::of(b"x"))]);
            let error = bench.pull(&image, Limits { unpacked: Some(Bytes(380 << 20)) }).unwrap_err();
            assert!(error.fault() == Fault::Input && error.to_string().contains(says), "{compress} {megabytes}: {error}");
        }
    }
    // A window of 2 GiB (RFC 8878, 3.1.1.1.2: exponent 21), though only three bytes come.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x19, 0, 0, b'a', b'b', b'c'];
    let image = made::image_of("amd64", &[("application/vnd.oci.image.layer.v1.tar+zstd", frame.to_vec(), Digest::of(b"abc"))]);
    let error = bench.pull(&image, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("r.test/app:1") && error.contains("memory"), "{error}");
    // Left over scratch would be as bad as memory.
    let left: u64 = fs::read_dir(dir.join("store/tmp")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(left, 0);
}

#[test]
fn c3_bombs_stop_at_their_limit_in_bounded_memory() {
    let script = r#"ulimit -v 327680; exec "$0" --exact container_images::c3_child --ignored --test-threads 1"#;
    let mut command = Command::new("sh");
    let output = command.arg("-c").arg(script).arg(std::env::current_exe().unwrap()).env("RAYON_NUM_THREADS", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn c3_an_archive_within_a_layer_is_a_file_like_any_other() {
    let bench = Bench::new();
    let inner = made::gzip(&tar(&[Entry::File("../../etc/passwd", 0o644, b"x")]));
    let tree = bench.tree(&[Entry::File("inner.tar.gz", 0o644, &inner)]);
    assert_eq!(bench.text(&tree, "inner.tar.gz"), inner);
    // Entries beyond number and a header chain without end.
    let mut endless = tar::Builder::new(Vec::new());
    endless.append_pax_extensions([("comment", vec![b'x'; 2 << 20].as_slice())]).unwrap();
    let error = bench.read(&endless.into_inner().unwrap()).unwrap_err().to_string();
    assert!(error.contains("exceed 1 MiB"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any small tree that GNU tar packs reads as GNU tar lists it, and our own tar of it reads back as itself.
    #[test]
    fn trees_survive_their_tars(names in proptest::collection::btree_map("[a-z]{1,6}(/[a-zA-Z0-9._-]{1,20}){0,3}", (0u32..3, proptest::collection::vec(any::<u8>(), 0..40)), 1..8)) {
        let bench = Bench::new();
        let dir = bench.dir.path().join("files");
        fs::create_dir(&dir).unwrap();
        for (name, (mode, bytes)) in &names {
            let file = dir.join(name);
            let usable = name.split('/').all(|part| part != "." && part != ".." && !part.starts_with(".wh."));
            if usable && fs::create_dir_all(file.parent().unwrap()).is_ok() && !file.exists() && fs::write(&file, bytes).is_ok() {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o640 + mode)).unwrap();
            }
        }
        let packed = bench.dir.path().join("x.tar");
        common::good(Command::new("tar").args(["--format=pax", "-C"]).arg(&dir).arg("-cf").arg(&packed).arg("."));
        let tree = bench.read(&fs::read(&packed).unwrap()).unwrap();
        let listed = String::from_utf8(common::good(Command::new("tar").arg("-tf").arg(&packed)).stdout).unwrap();
        let listed: BTreeSet<_> = listed.lines().map(|line| line.trim_start_matches("./").trim_end_matches('/').to_string()).collect();
        let ours: BTreeSet<_> = tree.entries.keys().map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap()).collect();
        prop_assert_eq!(ours, listed);
        let layer = recipe::layer(&tree, &bench.store, EPOCH).unwrap();
        let mut bytes = Vec::new();
        write::tar(&layer.tree, &bench.store, &mut bytes).unwrap();
        prop_assert_eq!(Digest::of(&bytes), layer.diff_id);
        let again = recipe::layer(&bench.read(&bytes).unwrap(), &bench.store, EPOCH).unwrap();
        prop_assert_eq!(again.diff_id, layer.diff_id);
    }
}
