//! FAT32 against fsck.fat and mtools, and against its own reader.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use builder::disk::ReadAt;
use builder::disk::file::FileAt;
use builder::fs::fat::{FatKind, Files, Options, build, label, list, read};
use layers::units::{Bytes, Digest};
use proptest::prelude::*;

fn options() -> Options {
    Options { kind: FatKind::Fat32, size: Bytes::mib(512), label: "CHASI".into(), serial: 0x1234_5678, epoch: 1_700_000_000, offset: 1 << 20 }
}

fn files(entries: &[(&str, Vec<u8>)]) -> Files {
    entries.iter().map(|(path, bytes)| ((*path).to_string(), Arc::new(bytes.clone()) as Arc<dyn ReadAt>)).collect()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 7 + n / 4096) as u8).collect()
}

fn usual() -> Files {
    let long = format!("slot-a/{}.cfg", "n".repeat(251));
    let mut out = files(&[
        ("EFI/BOOT/BOOTX64.EFI", pattern(2_500_001)),
        ("slot-a/vmlinuz", pattern(12_000_000)),
        ("slot-a/initrd", pattern(30_000_003)),
        ("slot-a/boot.cfg", b"root hash".to_vec()),
        ("chasi/grubenv-1", vec![b'#'; 1024]),
        ("chasi/grubenv-2", vec![b'#'; 1024]),
        ("a/b/c/d/e/f/g/h/deep.txt", b"deep".to_vec()),
        ("empty", Vec::new()),
        ("Größe und Ähnliches.txt", b"umlaut".to_vec()),
    ]);
    out.extend(files(&[(long.as_str(), b"long".to_vec())]));
    out.extend((0..300).map(|n| (format!("many/entry number {n:03}.conf"), Arc::new(vec![n as u8; 10]) as Arc<dyn ReadAt>)));
    out
}

fn write(image: &FileAt, dir: &Path) -> PathBuf {
    let path = dir.join("esp.img");
    builder::emit::raw::write(image, &path).unwrap();
    path
}

fn run(command: &mut Command) -> Vec<u8> {
    builder::exec::run(command.env("MTOOLS_SKIP_CHECK", "1").env("TZ", "UTC").env("LC_ALL", "C.UTF-8")).unwrap().stdout
}

#[test]
fn d9_fsck_and_mtools_agree() {
    let dir = tempfile::tempdir().unwrap();
    let files = usual();
    let image = build(&options(), &files, dir.path()).unwrap();
    let used: u64 = image.data().unwrap().iter().map(|r| r.end - r.start).sum();
    assert!(used < 52 << 20, "sparse: {used} bytes are used");
    let path = write(&image, dir.path());
    let said = String::from_utf8(run(Command::new("fsck.fat").args(["-n", "-v"]).arg(&path))).unwrap();
    assert!(said.contains("32 bit entries") && said.lines().last().is_some_and(|l| l.contains(" files, ")) && said.lines().count() == 20, "{said}");
    let info = String::from_utf8(run(Command::new("minfo").arg("-i").arg(&path).arg("::"))).unwrap();
    for fact in
        ["serial number: 12345678", "disk label=\"CHASI      \"", "disk type=\"FAT32   \"", "hidden sectors: 2048", "big size: 1048576 sectors"]
    {
        assert!(info.contains(fact), "{fact}: {info}");
    }
    for (name, file) in files.iter().filter(|(name, _)| !name.starts_with("many") || name.ends_with("7.conf")) {
        let theirs = run(Command::new("mtype").arg("-i").arg(&path).arg(format!("::{name}")));
        let mut ours = vec![0; file.len() as usize];
        file.read_at(&mut ours, 0).unwrap();
        assert!(theirs == ours, "{name}");
        let place = String::from_utf8(run(Command::new("mshowfat").arg("-i").arg(&path).arg(format!("::{name}")))).unwrap();
        assert!(file.is_empty() || place.matches('<').count() == 1, "not contiguous: {place}");
    }
    let listing = String::from_utf8(run(Command::new("mdir").arg("-i").arg(&path).arg("::slot-a"))).unwrap();
    assert_eq!(listing.matches("2023-11-14  22:13").count(), 4, "times of 4 files: {listing}");
}

#[test]
fn what_is_written_reads_back_and_is_the_same_twice() {
    let dir = tempfile::tempdir().unwrap();
    let files = usual();
    let image = build(&options(), &files, dir.path()).unwrap();
    let listed = list(&image).unwrap();
    let names: Vec<_> = listed.iter().filter(|l| l.size.is_some()).map(|l| (l.path.as_str(), l.size.unwrap())).collect();
    let mut expected: Vec<_> = files.iter().map(|(name, file)| (name.as_str(), file.len())).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert!(listed.iter().any(|l| l.path == "a/b/c" && l.size.is_none()));
    assert_eq!(read(&image, "slot-a/boot.cfg").unwrap(), b"root hash");
    assert_eq!(read(&image, "EFI/BOOT/BOOTX64.EFI").unwrap(), pattern(2_500_001));
    assert_eq!(label(&image).unwrap().as_deref(), Some("CHASI"));
    assert!(read(&image, "slot-a/none").unwrap_err().to_string().contains("slot-a/none"));
    let digest = |image: &FileAt| Digest::of(&std::fs::read(write(image, dir.path())).unwrap());
    assert_eq!(digest(&image), digest(&build(&options(), &files, dir.path()).unwrap()));
}

#[test]
fn a9_names_that_collide_are_both_shown() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("EFI/boot.cfg", "EFI/BOOT.CFG"),
        ("efi/a", "EFI/b"),
        ("slot-a/boot.cfg", "slot-a/boot.cfg."),
        ("slot-a/boot.cfg", "slot-a/boot.cfg "),
        ("x/LONGFI~1.TXT", "x/longfilename.txt"),
        ("x/mygrub~2.cfg", "x/mygrub environment.cfg"),
        ("straße/größe", "STRASSE/größe"),
        ("a", "a/b"),
    ];
    for (one, other) in cases {
        let error = build(&options(), &files(&[(one, vec![1]), (other, vec![2])]), dir.path()).unwrap_err().to_string();
        let shown = |name: &str| error.contains(&format!("`{name}`")) || error.contains(&format!("`{}`", name.split('/').next().unwrap()));
        assert!(shown(one) && shown(other), "{one} {other}: {error}");
    }
    for name in ["a:b", "a//b", "x.", "../x.", "a\u{7}", &"n".repeat(256), ".", "a/.."] {
        let error = build(&options(), &files(&[(name, vec![1])]), dir.path()).unwrap_err();
        assert!(error.fault() == layers::Fault::Input && error.to_string().contains("naming files"), "{name}: {error}");
    }
    for fine in [["initrd-a.img", "initrd-b.img"], ["a/x", "b/x"], ["vmlinuz-6.12.1", "vmlinuz-6.12.2"]] {
        build(&options(), &files(&[(fine[0], vec![1]), (fine[1], vec![2])]), dir.path()).unwrap();
    }
}

/// As a medium's EFI system partition is.
#[test]
fn d9_a_small_one_is_fat16_and_fsck_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { kind: FatKind::Fat16, size: Bytes::mib(4), ..options() };
    let image = build(&small, &files(&[("EFI/BOOT/BOOTX64.EFI", pattern(900_000)), ("boot/grub/grub.cfg", vec![2; 100])]), dir.path()).unwrap();
    let path = write(&image, dir.path());
    let said = String::from_utf8(run(Command::new("fsck.fat").args(["-n", "-v"]).arg(&path))).unwrap();
    assert!(said.contains("16 bit entries"), "{said}");
    assert!(run(Command::new("mtype").arg("-i").arg(&path).arg("::EFI/BOOT/BOOTX64.EFI")) == pattern(900_000));
}

/// The installer can give such an EFI system partition sectors of 4096 bytes (`firstboot/src/install/esp.rs`): all of its regions are made of them.
#[test]
fn one_that_is_more_than_256_mib_and_a_multiple_of_4_mib_has_all_regions_in_whole_4096_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for size in [layers::profile::Disk::default().esp_size, Bytes::mib(260), Bytes::mib(300), Bytes::mib(2000), Bytes::mib(8192)] {
        let image = build(&Options { size, ..options() }, &files(&[("slot-a/boot.cfg", vec![1])]), dir.path()).unwrap();
        let mut boot = [0; 512];
        image.read_at(&mut boot, 0).unwrap();
        let number = |at: usize, size: usize| boot[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
        let places = [("a cluster", 13, 1), ("reserved", 14, 2), ("in front of it", 28, 4), ("all", 32, 4), ("a table", 36, 4)];
        for (what, at, length) in places {
            let sectors = number(at, length);
            assert!(sectors > 0 && sectors.is_multiple_of(8), "{size}: {what}: {sectors} sectors");
        }
        assert!(number(14, 2) >= 32 && number(48, 2) == 1, "{size}: room for two copies of the first two sectors");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { size: Bytes::mib(64), ..options() };
    let error = build(&small, &files(&[("slot-a/vmlinuz", vec![1; 70 << 20])]), dir.path()).unwrap_err();
    assert!(error.to_string().contains("64MiB") && error.to_string().contains("70MiB") && error.fault() == layers::Fault::Input, "{error}");
    let tiny = Options { size: Bytes::mib(8), ..options() };
    assert_eq!(build(&tiny, &Files::new(), dir.path()).unwrap_err().fault(), layers::Fault::Input);
}

#[test]
fn d2_damaged_file_systems_give_errors_not_panics() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { size: Bytes::mib(40), ..options() };
    let image = build(&small, &files(&[("EFI/BOOT/x.efi", vec![1; 9000]), ("slot-a/boot.cfg", vec![2; 100])]), dir.path()).unwrap();
    let good = std::fs::read(write(&image, dir.path())).unwrap();
    let used: Vec<_> = good.chunks(512).enumerate().filter(|(_, s)| s.iter().any(|b| *b != 0)).map(|(n, _)| n * 512).collect();
    let mut bad = good.clone();
    for at in (0..512).chain(used.iter().flat_map(|start| (0..512).step_by(37).map(move |n| start + n))) {
        bad[at] ^= 0xff;
        let _ = (list(&bad), read(&bad, "slot-a/boot.cfg"));
        bad[at] = good[at];
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn d9_any_files_read_back_and_pass_fsck(names in proptest::collection::btree_set("[a-z]{1,3}/[a-zé0-9_ -]{0,20}[a-z0-9](\\.[a-z0-9]{1,5})?", 0..30), size in 0_usize..20_000) {
        let dir = tempfile::tempdir().unwrap();
        let files: Files = names.iter().enumerate().map(|(n, name)| (name.clone(), Arc::new(pattern(size * n % 50_000)) as Arc<dyn ReadAt>)).collect();
        let image = build(&Options { size: Bytes::mib(40), ..options() }, &files, dir.path()).unwrap();
        let listed: Vec<_> = list(&image).unwrap().into_iter().filter_map(|l| Some((l.path, l.size?))).collect();
        prop_assert_eq!(listed, files.iter().map(|(name, file)| (name.clone(), file.len())).collect::<Vec<_>>());
        for (n, name) in names.iter().enumerate() {
            prop_assert_eq!(read(&image, name).unwrap(), pattern(size * n % 50_000));
        }
        run(Command::new("fsck.fat").arg("-n").arg(write(&image, dir.path())));
    }
}
