//! The ISO as a disc and as a stick: it starts from memory, leaves the machine's own disk alone and needs the medium no more, or says why it does not;
//! and it installs.
#![allow(clippy::unwrap_used)]

mod install;
mod network;

use std::path::{Path, PathBuf};

use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::vm::{Drive, Firmware};
use qemu_tests::{exec, grub};

/// How the machine sees the medium.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plugged {
    /// In a SATA drive.
    Disc,
    /// As a disk, which is what firmware sees of a USB stick.
    Stick,
}

fn iso() -> PathBuf {
    artifact(&artifacts("minimal").unwrap(), "iso").unwrap()
}

/// A machine with an empty disk of its own, and a copy of the medium.
fn machine(folder: &Path, plugged: Plugged) -> Node {
    let (medium, own) = (folder.join("medium.iso"), folder.join("own.raw"));
    std::fs::copy(iso(), &medium).unwrap();
    std::fs::File::create(&own).unwrap().set_len(1 << 30).unwrap();
    let own = Drive::raw(&own);
    if plugged == Plugged::Stick {
        let mut node = Node::of_disk(folder, Drive::raw(&medium)).unwrap();
        node.further.push(own);
        return node;
    }
    let mut node = Node::of_disk(folder, own).unwrap();
    let drive = format!("id=medium,if=none,media=cdrom,format=raw,readonly=on,file={}", medium.display());
    node.arguments.extend(["-drive", &drive, "-device", "ide-cd,drive=medium,bootindex=9"].map(String::from));
    node
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read(folder.join("own.raw")).unwrap().iter().all(|byte| *byte == 0)
}

fn runs_from_memory(plugged: Plugged, firmware: Firmware) {
    let folder = tempfile::tempdir().unwrap();
    let mut node = machine(folder.path(), plugged);
    node.memory = 3072;
    let (vm, seconds) = node.boot(firmware.clone()).unwrap();
    println!("{plugged:?} under {firmware:?}: ready after {seconds} s of the node's own time, {:.1} s since power-on", vm.age().as_secs_f64());
    let told =
        node.ssh("findmnt -n -o SOURCE / ; findmnt -n -o SOURCE /var; grep -c iso9660 /proc/mounts; cat /sys/block/loop0/loop/backing_file").unwrap();
    let told: Vec<_> = told.lines().collect();
    assert!(told[0].starts_with("/dev/dm-") && told[1].starts_with("/dev/loop0p") && told[2] == "0", "{told:?}");
    assert!(told[3].ends_with("/chasi-bod/live/disk"), "{told:?}");
    let root = node.ssh(&format!("cat /sys/block/{}/dm/uuid; systemctl --failed --no-legend --plain", &told[0][5..])).unwrap();
    assert!(root.starts_with("CRYPT-VERITY-") && root.lines().count() == 1, "{root}");
    let status = node.status().unwrap();
    assert!(status["steps"].as_array().is_some_and(|steps| steps.len() == 5), "{status:#}");
    node.shut_down(vm).unwrap();
    assert!(is_empty(folder.path()), "the machine's own disk was written to");
}

#[test]
#[ignore = "soak: four boots"]
fn soak_iso_runs_from_disc_and_stick_under_bios_and_uefi() {
    for plugged in [Plugged::Disc, Plugged::Stick] {
        for firmware in [Firmware::Bios, Firmware::Uefi] {
            runs_from_memory(plugged, firmware);
        }
    }
}

/// A stick with another boot loader and the ISO as one of its files, as GRUB's handbook describes for `loopback.cfg`.
fn stick(folder: &Path) -> PathBuf {
    const START: &str =
        "set iso_path=/isos/minimal.iso\nexport iso_path\nloopback loop $iso_path\nset root=(loop)\nconfigfile /boot/grub/loopback.cfg\n";
    let (disk, config) = (folder.join("stick.raw"), folder.join("grub.cfg"));
    std::fs::write(&config, START).unwrap();
    std::fs::File::create(&disk).unwrap().set_len(256 << 20).unwrap();
    exec::run("sgdisk", &["-n", "1:2048:0", "-t", "1:ef00", disk.to_str().unwrap()]).unwrap();
    exec::run("mkfs.vfat", &["--offset", "2048", "-F", "32", disk.to_str().unwrap(), &(254 << 10).to_string()]).unwrap();
    let partition = format!("{}@@1M", disk.display());
    for dir in ["EFI", "EFI/BOOT", "other", "isos"] {
        exec::run("mmd", &["-i", &partition, &format!("::{dir}")]).unwrap();
    }
    let loader = grub::core_image(folder, "x86_64-efi", "/other", &["loopback", "iso9660"]).unwrap();
    for (from, to) in [(loader, "EFI/BOOT/BOOTX64.EFI"), (config, "other/grub.cfg"), (iso(), "isos/minimal.iso")] {
        exec::run("mcopy", &["-i", &partition, from.to_str().unwrap(), &format!("::{to}")]).unwrap();
    }
    disk
}

#[test]
#[ignore = "soak: a boot more"]
fn soak_iso_that_is_a_file_of_a_stick_runs_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::of_disk(folder.path(), Drive::raw(&stick(folder.path()))).unwrap();
    node.memory = 3072;
    let mut vm = node.start(Firmware::Uefi).unwrap();
    vm.wait("medium /isos/minimal.iso on /dev/", 120).unwrap();
    vm.wait(" ready", 120).unwrap();
    println!("an ISO as a file: ready {:.1} s after power-on", vm.age().as_secs_f64());
    // Nothing of the stick is in use any more.
    let told = node.ssh("findmnt -n -o SOURCE /var; grep -c -e iso9660 -e chasi-bod/around /proc/mounts; losetup -n -O NAME").unwrap();
    let told: Vec<_> = told.lines().map(str::trim).collect();
    assert!(told[0].starts_with("/dev/loop0p") && told[1..] == ["0", "/dev/loop0"], "{told:?}");
    node.shut_down(vm).unwrap();
}

/// Also that GRUB finds its way from a disc under BIOS, and `init` the medium.
#[test]
fn iso_on_a_machine_with_too_little_memory_says_both_figures() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = machine(folder.path(), Plugged::Disc);
    node.memory = 1024;
    let mut vm = node.start(Firmware::Bios).unwrap();
    let line = vm.wait("init failed", 120).unwrap();
    assert!(line.contains("starting from memory: the machine has 1") && line.contains(" are needed ("), "{line}");
    assert!(is_empty(folder.path()));
}
