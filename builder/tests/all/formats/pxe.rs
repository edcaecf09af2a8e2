//! The files of a network boot against tar and zstd; QEMU starts from them in `qemu-tests`.

use std::process::Command;

use builder::disk::ReadAt as _;
use builder::emit::{OutputFormat, open};
use layers::units::Digest;

use super::{disk, run, same, write};
use crate::common::machine;

#[test]
fn d9_tar_and_zstd_take_the_archive_apart_and_the_script_names_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let archive = write(&disk, dir.path(), OutputFormat::Pxe);
    let (format, back) = open(&archive).unwrap();
    assert!(format == OutputFormat::Pxe && same(&disk, back.as_ref()));
    let listed = run(Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--utc", "-f"]).arg(&archive));
    let lines: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.iter().all(|words| words[..2] == ["-rw-r--r--", "0/0"] && words[3..5] == ["2023-11-14", "22:13"]), "{listed}");
    assert_eq!(lines.iter().map(|words| words[5]).collect::<Vec<_>>(), ["boot.ipxe", "vmlinuz", "initrd", "disk.zst"]);
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir.path()));
    let file = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let start = machine().start.unwrap();
    assert!(file("vmlinuz") == *start.files[0].content && file("initrd") == *start.files[1].content);
    let script = String::from_utf8(file("boot.ipxe")).unwrap();
    let wanted = [
        "#!ipxe",
        "kernel vmlinuz initrd=initrd.magic roothash=abab quiet chasi.live ${chasi}",
        "initrd initrd",
        "initrd disk.zst /disk.zst",
        "boot",
    ];
    assert!(wanted.iter().all(|line| script.lines().any(|found| found == *line)), "{script}");
    run(Command::new("zstd").args(["-q", "-d", "-o"]).arg(dir.path().join("raw")).arg(dir.path().join("disk.zst")));
    let mut whole = vec![0; disk.len() as usize];
    disk.read_at(&mut whole, 0).unwrap();
    assert_eq!(Digest::of(&file("raw")), Digest::of(&whole));
}
