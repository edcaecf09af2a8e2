//! Broken and hostile packages: each is refused by name, with bounded memory. FAULTS B4, B5, C3.

use std::io::{Cursor, Read};
use std::path::Path;

use builder::assemble::deb::Deb;
use builder::assemble::merge::merge;
use builder::assemble::unpack::{self, Control, ControlFile, Unpacked};
use builder::store::Store;
use builder::tree::{Kind, Tree};
use layers::lock::Package;
use layers::units::{Bytes, Digest};

fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    if bytes.len() % 2 == 1 {
        out.push(b'\n');
    }
    out
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    members.iter().for_each(|(name, bytes)| out.extend(member(name, bytes)));
    out
}

const VERSION: (&str, &[u8]) = ("debian-binary", b"2.0\n");
const CONTROL: (&str, &[u8]) = ("control.tar", &[0; 1024]);
const DATA: (&str, &[u8]) = ("data.tar", &[0; 1024]);

fn refusal(bytes: &[u8]) -> String {
    let mut deb = match Deb::open(Cursor::new(bytes)) {
        Ok(deb) => deb,
        Err(e) => return e.to_string(),
    };
    let read = deb.data().map(|mut r| std::io::copy(&mut r, &mut std::io::sink()));
    match read {
        Err(e) => e.to_string(),
        Ok(Err(e)) => e.to_string(),
        Ok(Ok(_)) => "accepted".into(),
    }
}

#[test]
fn b4_each_broken_ar_archive_is_refused_by_name() {
    let whole = ar(&[VERSION, CONTROL, DATA]);
    assert_eq!(refusal(&whole), "accepted");
    let patched = |at: usize, bytes: &[u8]| {
        let mut out = whole.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        out
    };
    let odd = {
        let mut out = ar(&[VERSION, ("control.tar", &[0; 1023]), DATA]);
        let pad = 8 + 60 + 4 + 60 + 1023;
        out[pad] = b'x';
        out
    };
    let cases: &[(Vec<u8>, &str)] = &[
        (Vec::new(), "ends inside its magic"),
        (patched(0, b"!<thin>\n"), "magic `!<arch>` is missing"),
        (whole[..40].to_vec(), "header at byte 8 is cut short"),
        (whole[..whole.len() - 1].to_vec(), "claims 1024 bytes, more than the file has"),
        (patched(8 + 48, b"4x        "), "size that is not a number"),
        (patched(8 + 48, b"-4        "), "size that is not a number"),
        (patched(8 + 48, b"          "), "size that is not a number"),
        (patched(8 + 48, b"4 4       "), "size that is not a number"),
        (patched(8 + 48, b"9999999999"), "claims 9999999999 bytes"),
        (patched(8 + 58, b"xx"), "no end mark"),
        (patched(8 + 60, b"3.0\n"), "not version 2"),
        (odd, "padding at byte"),
        (ar(&[VERSION, DATA]), "`data.tar` comes before `control.tar`"),
        (ar(&[VERSION, DATA, CONTROL]), "`data.tar` comes before `control.tar`"),
        (ar(&[VERSION, CONTROL]), "`data.tar` is missing"),
        (ar(&[VERSION]), "`control.tar` is missing"),
        (ar(&[CONTROL, DATA]), "`control.tar` comes before `debian-binary`"),
        (ar(&[VERSION, VERSION, CONTROL, DATA]), "`debian-binary` comes twice"),
        (ar(&[VERSION, CONTROL, CONTROL, DATA]), "`control.tar` comes twice"),
        (ar(&[VERSION, CONTROL, DATA, ("data.tar.xz", b"")]), "`data.tar.xz` comes twice"),
        (ar(&[VERSION, CONTROL, ("other", b"")]), "`other` is unknown"),
        (ar(&[VERSION, CONTROL, ("data.tar.lz4", b"")]), "unknown compression"),
        (ar(&[VERSION, CONTROL, ("data.tar.xz", b"this is no xz stream at all")]), "format"),
    ];
    for (bytes, reason) in cases {
        let said = refusal(bytes);
        assert!(said.contains(reason), "expected `{reason}`, got `{said}`");
    }
}

#[test]
fn b4_c3_bombs_stop_at_their_bound() {
    let zeros = zstd::encode_all(std::io::repeat(0).take(1200 << 20), 1).unwrap();
    assert!(refusal(&ar(&[VERSION, CONTROL, ("data.tar.zst", &zeros)])).contains("more bytes than a package of this size may"));
    // Magic, no flags, window exponent 21 (2^31 bytes), one empty last block.
    let window = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    assert_ne!(refusal(&ar(&[VERSION, CONTROL, ("data.tar.zst", &window)])), "accepted");
}

/// Adds one entry with any name and target, unchecked.
fn add(tar: &mut Vec<u8>, kind: u8, name: &str, link: &str, content: &[u8]) {
    add_sized(tar, kind, name, link, content, content.len() as u64);
}

fn add_sized(tar: &mut Vec<u8>, kind: u8, name: &str, link: &str, content: &[u8], size: u64) {
    let mut header = tar::Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    old.linkflag = [kind];
    header.set_mode(0o644);
    header.set_mtime(1);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn crafted(entries: &[(u8, &str, &str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|(kind, name, link, content)| add(&mut out, *kind, name, link, content));
    out.resize(out.len() + 1024, 0);
    out
}

fn read(bytes: &[u8]) -> layers::Result<(Tree, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut pack = store.new_pack(Digest::of(b"test")).unwrap();
    unpack::read_data(bytes, &mut pack)
}

#[test]
fn b5_each_hostile_data_archive_is_refused_by_name() {
    let many = vec![b'x'; 2 << 20];
    let mut two_sizes = Vec::new();
    add(&mut two_sizes, b'x', "pax", "", b"11 size=10\n");
    add(&mut two_sizes, b'0', "./a", "", b"1234");
    two_sizes.resize(two_sizes.len() + 2048, 0);
    let mut short = Vec::new();
    add_sized(&mut short, b'0', "./a", "", b"1234", 4096);
    let cases: &[(Vec<u8>, &str)] = &[
        (crafted(&[(b'2', "./a", "/tmp", b""), (b'0', "./a/b", "", b"x")]), "/a/b lies below /a, which is not a directory"),
        (crafted(&[(b'0', "./a", "", b""), (b'0', "./a/b", "", b"x")]), "/a/b lies below /a"),
        (crafted(&[(b'2', "./a", "/tmp", b""), (b'5', "./a/b/c", "", b"")]), "lies below /a"),
        (crafted(&[(b'0', "./a/b", "", b"x"), (b'2', "./a", "/tmp", b"")]), "/a comes twice"),
        (crafted(&[(b'1', "./a", "../../etc/passwd", b"")]), "leaves the root"),
        (crafted(&[(b'1', "./a", "/etc/passwd", b"")]), "points to /etc/passwd, which is no file before it"),
        (crafted(&[(b'2', "./l", "/etc/passwd", b""), (b'1', "./a", "./l", b"")]), "no file before it"),
        (crafted(&[(b'0', "./../a", "", b"x")]), "leaves the root"),
        (crafted(&[(b'3', "./a", "", b"")]), "/a is a device node"),
        (crafted(&[(b'4', "./a", "", b"")]), "/a is a device node"),
        (crafted(&[(b'0', "./a", "", b"x"), (b'0', "./a", "", b"y")]), "/a comes twice"),
        (crafted(&[(b'0', "./a", "", b"x"), (b'0', "a", "", b"y")]), "/a comes twice"),
        (crafted(&[(b'5', "./a", "", b"x")]), "has content but is no file"),
        (crafted(&[(b'2', "./a", "", b"")]), "no usable target"),
        (crafted(&[(b'g', "./a", "", b"")]), "of type `g`"),
        (crafted(&[(b'S', "./a", "", b"")]), "tar archive"),
        (crafted(&[(b'L', "././@LongLink", "", &many), (b'0', "./a", "", b"")]), "exceed 1 MiB"),
        (two_sizes, "/a has two sizes, 4 and 10"),
        (short, "cut short"),
    ];
    for (bytes, reason) in cases {
        let said = read(bytes).map_or_else(|e| e.to_string(), |(tree, _)| format!("accepted {:?}", tree.entries.keys()));
        assert!(said.contains(reason), "expected `{reason}`, got `{said}`");
    }
}

#[test]
fn b5_what_is_accepted_lists_as_gnu_tar_lists_it() {
    let bytes = crafted(&[
        (b'5', "./", "", b""),
        (b'5', "./d/", "", b""),
        (b'0', "./d/f", "", b"hello"),
        (b'1', "./d/h", "./d/f", b""),
        (b'2', "./l", "d/../../x", b""),
        (b'6', "./p", "", b""),
        (b'0', "./v7dir/", "", b""),
        (b'7', "./contiguous", "", b"x"),
    ]);
    let (tree, list) = read(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.tar");
    std::fs::write(&file, bytes).unwrap();
    let output = std::process::Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&file).output().unwrap();
    let theirs = String::from_utf8(output.stdout).unwrap();
    // `C`, contiguous, is a regular file to everyone but the listing.
    let kinds: String = theirs.lines().map(|l| l.chars().next().unwrap()).map(|c| if c == 'C' { '-' } else { c }).collect();
    assert_eq!(kinds, "dd-hlpd-");
    let letter = |path: &str| match tree.at(path).unwrap().kind {
        Kind::Directory => 'd',
        Kind::File(_) => '-',
        Kind::HardLink(_) => 'h',
        Kind::Symlink(_) => 'l',
        Kind::Fifo => 'p',
        _ => '?',
    };
    assert_eq!(String::from_utf8(list).unwrap().lines().map(letter).collect::<String>(), kinds);
}

#[test]
fn pax_xattrs_are_kept() {
    let mut bytes = Vec::new();
    add(&mut bytes, b'x', "pax", "", b"34 SCHILY.xattr.user.note=a\0value\n");
    add(&mut bytes, b'0', "./a", "", b"");
    bytes.resize(bytes.len() + 1024, 0);
    let (tree, _) = read(&bytes).unwrap();
    assert_eq!(tree.at("a").unwrap().xattrs[b"user.note".as_slice()], b"a\0value");
}

#[test]
fn the_fuzz_corpora_replay() {
    for (name, run) in [("ar", builder::assemble::deb::fuzz as fn(&[u8])), ("tar", unpack::fuzz)] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(files.len() >= 5, "the corpus of {name} is there");
        files.iter().for_each(|f| run(&std::fs::read(f).unwrap()));
    }
}

/// A package with these control fields, conffiles and files.
fn package(name: &str, fields: &str, conffiles: &str, entries: &[(u8, &str, &str, &[u8])]) -> (Package, Unpacked) {
    let file = |text: &str| ControlFile { bytes: text.into(), mtime: 1 };
    let (tree, list) = read(&crafted(entries)).unwrap();
    let files = [("control".into(), file(&format!("Package: {name}\n{fields}"))), ("conffiles".into(), file(conffiles))].into();
    let package = Package {
        name: name.into(),
        version: "1".into(),
        architecture: "all".into(),
        sha256: Digest::of(name.as_bytes()),
        size: Bytes(1),
        suite: "trixie".into(),
        path: String::new(),
        source: None,
        wanted_by: Vec::new(),
    };
    (package, Unpacked { tree, control: Control { files, list } })
}

#[test]
fn files_land_behind_the_links_of_the_merged_usr_and_conffiles_wait_for_dpkg() {
    let base = package("base-files", "", "", &[(b'5', "./usr/lib/", "", b""), (b'2', "./lib", "usr/lib", b"")]);
    let other = package(
        "a",
        "",
        "/etc/a\n",
        &[(b'5', "./lib/", "", b""), (b'0', "./lib/x", "", b"x"), (b'1', "./lib/y", "./lib/x", b""), (b'0', "./etc/a", "", b"1")],
    );
    let tree = merge(&[other, base]).unwrap().tree;
    assert_eq!(tree.at("lib").unwrap().kind, Kind::Symlink(b"usr/lib".to_vec()));
    assert!(matches!(tree.at("usr/lib/x").unwrap().kind, Kind::File(_)));
    assert_eq!(tree.at("usr/lib/y").unwrap().kind, Kind::HardLink("usr/lib/x".try_into().unwrap()));
    assert!(tree.at("etc/a").is_none() && tree.at("etc/a.dpkg-new").is_some());
}

#[test]
fn a_file_of_two_packages_needs_a_replaces() {
    let with = |name: &str, fields: &str, content: &'static [u8]| package(name, fields, "", &[(b'0', "./f", "", content)]);
    let error = merge(&[with("a", "", b"1"), with("b", "", b"2")]).unwrap_err().to_string();
    assert_eq!(error, "merging packages a and b: both hold /f");
    for (a, b, winner) in [("Replaces: b (<< 2)\n", "", b"1"), ("", "Depends: x\nReplaces: c,\n a\n", b"2")] {
        let merged = merge(&[with("a", a, b"1"), with("b", b, b"2")]).unwrap();
        let Kind::File(content) = &merged.tree.at("f").unwrap().kind else { panic!() };
        assert_eq!(content.sha256, Digest::of(winner));
    }
    let dir = package("a", "", "", &[(b'5', "./f/", "", b"")]);
    assert!(merge(&[dir, with("b", "Replaces: a\n", b"2")]).unwrap_err().to_string().contains("directory"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
    /// Whatever GNU-style archive a writer makes of plain files comes back with the same paths and contents.
    #[test]
    fn what_the_tar_crate_writes_is_read_back(files in proptest::collection::btree_map("[a-z]{1,120}(/[a-z]{1,120}){0,2}", proptest::collection::vec(0u8.., 0..2000), 0..8)) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut kept = std::collections::BTreeMap::new();
        for (path, bytes) in files {
            if kept.keys().any(|k: &String| path.starts_with(&format!("{k}/")) || k.starts_with(&format!("{path}/"))) {
                continue;
            }
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, &path, &bytes[..]).unwrap();
            kept.insert(path, bytes);
        }
        let (tree, list) = read(&builder.into_inner().unwrap()).unwrap();
        let expected: String = kept.keys().map(|p| format!("/{p}\n")).collect();
        proptest::prop_assert_eq!(String::from_utf8(list).unwrap(), expected);
        for (path, bytes) in kept {
            proptest::prop_assert!(matches!(&tree.at(&path).unwrap().kind, Kind::File(c) if c.sha256 == Digest::of(&bytes)));
        }
    }
}
