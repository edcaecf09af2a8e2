//! The medium against xorriso and sgdisk; its own reader is in the tests of all formats, and QEMU starts from it in `qemu-tests`.

use std::process::Command;

use builder::emit::{OutputFormat, open};

use super::{disk, run, same, write};

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
    assert_eq!(said.lines().filter(|line| line.ends_with(": OK")).count(), 4);
}
