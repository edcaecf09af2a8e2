//! The medium against xorriso and sgdisk; its own reader is in the tests of all formats, and QEMU starts from it in `qemu-tests`.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use builder::disk::Disk;
use builder::emit::iso::BootFile;
use builder::emit::{OutputFormat, emit, open};

use super::{disk, noise, run, same, write};
use crate::common::machine;

#[test]
fn d9_xorriso_and_sgdisk_find_boot_images_partitions_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let iso = write(&disk, dir.path(), OutputFormat::Iso);
    let (format, back) = open(&iso).unwrap();
    assert!(format == OutputFormat::Iso && same(&disk, back.as_ref()));
    let xorriso = |arguments: &[&str]| run(Command::new("xorriso").args(["-indev"]).arg(&iso).args(arguments));
    let listed = xorriso(&["-find", "/", "-type", "f", "-exec", "lsdl"]);
    let id = "ab".repeat(32);
    for name in [
        "/boot/vmlinuz",
        "/boot/initrd",
        "/boot/grub/grub.cfg",
        "/boot/grub/eltorito.img",
        "/chasi/disk.zst",
        "/chasi/SHA256SUMS",
        &format!("/chasi/{id}"),
    ] {
        assert!(listed.contains(&format!("'{name}'")), "{name}: {listed}");
    }
    let report = xorriso(&["-report_el_torito", "plain", "-report_system_area", "plain", "-pvd_info"]);
    for words in [
        "El Torito boot img :   1  BIOS  y   none",
        "El Torito boot img :   2  UEFI  y   none",
        "boot-info-table grub2-boot-info",
        "System area summary: MBR protective-msdos-label grub2-mbr cyl-align-off GPT",
        "Volume Id    : SITE_1_2_3",
    ] {
        assert!(report.lines().any(|line| line.contains(words)), "{words}: {report}");
    }
    let table = run(Command::new("sgdisk").arg("--verify").arg(&iso));
    assert!(table.contains("No problems found"), "{table}");
    // What the kernel will compare: files by their digests.
    run(Command::new("xorriso").args(["-osirrox", "on", "-indev"]).arg(&iso).args(["-extract", "/"]).arg(dir.path().join("files")));
    let said = run(Command::new("sha256sum").args(["--check", "--strict", "chasi/SHA256SUMS"]).current_dir(dir.path().join("files")));
    assert_eq!(said.lines().filter(|line| line.ends_with(": OK")).count(), 6);
}

#[test]
fn a_medium_has_kernel_and_initramfs_once() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, initrd) = (Arc::new(noise(5_000_000, 1)), Arc::new(noise(9_000_000, 2)));
    let mut disk = Disk::new(64 << 20);
    disk.put(0, Arc::new(noise(100, 3))).unwrap();
    // What is beside them in the same frames stays.
    let at = [(4 << 20) - 5, 10 << 20];
    disk.put(at[0], kernel.clone()).unwrap();
    disk.put(at[1] - 7, Arc::new(noise(7, 4))).unwrap();
    disk.put(at[1], initrd.clone()).unwrap();
    let file = |path, content: &Arc<Vec<u8>>, on_disk| BootFile { path, content: content.clone(), on_disk };
    let with = |on_disk: [Option<u64>; 2]| {
        let mut machine = machine();
        machine.start.as_mut().unwrap().files = vec![file("boot/vmlinuz", &kernel, on_disk[0]), file("boot/initrd", &initrd, on_disk[1])];
        machine
    };
    let write = |name: &str, on_disk| {
        let path = dir.path().join(name);
        emit(OutputFormat::Iso, &disk, &with(on_disk), &path).unwrap();
        assert!(same(&disk, open(&path).unwrap().1.as_ref()));
        std::fs::metadata(&path).unwrap().len()
    };
    let (twice, once) = (write("twice", [None; 2]), write("once", at.map(Some)));
    assert!(once + 14_000_000 < twice + 4096, "{once}, {twice}");
    // A list that cannot be right is refused.
    let refused = |path: &Path| open(path).unwrap_err().to_string();
    let odd = dir.path().join("odd");
    emit(OutputFormat::Iso, &disk, &with([None, Some((64 << 20) - 5)]), &odd).unwrap();
    assert!(refused(&odd).contains("/chasi/PLACES of the medium: boot/initrd at 67108859 lies over"), "{}", refused(&odd));
    let mut bytes = std::fs::read(dir.path().join("once")).unwrap();
    let list = b"10485760 boot/initrd\n";
    let found = bytes.windows(list.len()).position(|window| window == list).unwrap();
    bytes[found..found + list.len()].copy_from_slice(b"10485760 boot/nowher\n");
    std::fs::write(&odd, bytes).unwrap();
    assert!(refused(&odd).contains("boot/nowher"), "{}", refused(&odd));
}
