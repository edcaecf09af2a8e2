//! Firmware that asks for signatures: what carries them starts, what was changed does not.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use qemu_tests::build::{build_all, chasi_bod, profiles};
use qemu_tests::exec;
use qemu_tests::node::Node;
use qemu_tests::vm::{Drive, Firmware};

/// Where the ESP begins, in mtools' notation.
const ESP: &str = "@@1M";
/// What the firmware says of a program that it does not start.
const DENIED: &str = "Access Denied";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The profile `minimal` with signatures, as disk and medium; the lock is that of `minimal` with the tools that signing needs.
fn images(folder: &Path, signatures: &str, more: &[&str]) -> [PathBuf; 2] {
    let profile = folder.join("secure.yaml");
    let minimal = profiles().join("minimal.yaml");
    fs::write(&profile, format!("extends: {}\nname: secure\nboot: {{secureBoot: {signatures}}}\n", minimal.display())).unwrap();
    fs::copy(minimal.with_extension("lock"), profile.with_extension("lock")).unwrap();
    build_all(folder, "secure", ["raw", "iso"], more)
}

/// A key with its certificate, in a file and apart.
fn identity(folder: &Path) -> [PathBuf; 2] {
    let [key, certificate, both] = ["db.key", "db.crt", "db.pem"].map(|name| folder.join(name));
    let request = "req -x509 -nodes -newkey rsa:2048 -days 30 -subj /CN=site".split(' ').collect::<Vec<_>>();
    exec::run("openssl", &[&request[..], &["-keyout", text(&key), "-out", text(&certificate)]].concat()).unwrap();
    fs::write(&both, [fs::read(&key).unwrap(), fs::read(&certificate).unwrap()].concat()).unwrap();
    [both, certificate]
}

/// Starts a disk or stick under firmware that asks for signatures and holds what the kernel says of that.
fn starts(folder: &Path, image: &Path, firmware: &Firmware) {
    let folder = tempfile::tempdir_in(folder).unwrap();
    let disk = folder.path().join("disk.raw");
    exec::run("cp", &["--sparse=always", text(image), text(&disk)]).unwrap();
    let mut node = Node::of_disk(folder.path(), Drive::raw(&disk)).unwrap();
    node.memory = 3072;
    let (vm, seconds) = node.boot(firmware.clone()).unwrap();
    println!("{}: ready after {seconds} s of the node's own time", image.display());
    let told = node
        .ssh("od -An -t u1 -j 4 /sys/firmware/efi/efivars/SecureBoot-*; cat /sys/kernel/security/lockdown; systemctl --failed --no-legend --plain");
    let told = told.unwrap();
    let lines: Vec<_> = told.lines().map(str::trim).collect();
    assert_eq!(lines, ["1", "none [integrity] confidentiality"]);
    node.shut_down(vm).unwrap();
}

/// Starts a disk that the firmware, GRUB or `init` must refuse.
fn is_refused(folder: &Path, disk: &Path, firmware: &Firmware, wanted: &str) {
    let folder = tempfile::tempdir_in(folder).unwrap();
    let node = Node::of_disk(folder.path(), Drive::raw(disk)).unwrap();
    let mut vm = node.start(firmware.clone()).unwrap();
    vm.wait(wanted, 180).unwrap();
    vm.kill();
}

/// Changes a byte in the middle of a section of a unified kernel image.
fn changed(uki: &Path, section: &str) -> Vec<u8> {
    let said = String::from_utf8(exec::run("objdump", &["-h", "-w", text(uki)]).unwrap().stdout).unwrap();
    let line = said.lines().find(|line| line.split_whitespace().nth(1) == Some(section)).unwrap();
    let field = |n| usize::from_str_radix(line.split_whitespace().nth(n).unwrap(), 16).unwrap();
    let mut bytes = fs::read(uki).unwrap();
    bytes[field(5) + field(2) / 2] ^= 1;
    bytes
}

#[test]
#[ignore = "soak: builds an image, ten boots"]
fn soak_secure_boot_with_own_keys_starts_what_was_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [pem, certificate] = identity(folder);
    let [disk, medium] = images(folder, "own-keys", &["--secure-boot-key", text(&pem)]);
    let told = String::from_utf8(exec::run(chasi_bod(), &["inspect", text(&disk)]).unwrap().stdout).unwrap();
    assert!(told.lines().any(|line| line.trim_start().starts_with("slot-b-trial: roothash=")), "{told}");
    let variables = folder.join("variables.fd");
    let owner = "11111111-2222-3333-4444-555555555555";
    let keys = [["--set-pk", owner, text(&certificate)], ["--add-kek", owner, text(&certificate)], ["--add-db", owner, text(&certificate)]].concat();
    let args = [&["-i", "/usr/share/OVMF/OVMF_VARS_4M.fd", "-o", text(&variables), "--secure-boot"], &keys[..]].concat();
    exec::run("virt-fw-vars", &args).unwrap();
    let firmware = Firmware::SecureBoot(variables);
    starts(folder, &disk, &firmware);
    starts(folder, &medium, &firmware);

    let (image, uki) = (format!("{}{ESP}", text(&disk)), folder.join("uki.efi"));
    let put = |bytes: &[u8], path: &str| {
        fs::write(folder.join("new"), bytes).unwrap();
        exec::run("mcopy", &["-o", "-i", &image, text(&folder.join("new")), &format!("::/{path}")]).unwrap();
    };
    let get = |path: &str, to: &Path| exec::run("mcopy", &["-n", "-i", &image, &format!("::/{path}"), text(to)]).map(|_| ()).unwrap();
    get("slot-a/uki.efi", &uki);
    let (whole, loader) = (fs::read(&uki).unwrap(), folder.join("loader.efi"));
    get("EFI/BOOT/BOOTX64.EFI", &loader);
    for section in [".linux", ".initrd", ".cmdline"] {
        let changed = changed(&uki, section);
        put(&changed, "slot-a/uki.efi");
        is_refused(folder, &disk, &firmware, "slot a cannot be started");
        put(&whole, "slot-a/uki.efi");
        put(&changed, "EFI/BOOT/BOOTX64.EFI");
        is_refused(folder, &disk, &firmware, DENIED);
        put(&fs::read(&loader).unwrap(), "EFI/BOOT/BOOTX64.EFI");
        println!("a changed {section} is refused by GRUB and by the firmware");
    }
    let mut other = fs::read(&loader).unwrap();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    put(&other, "EFI/BOOT/BOOTX64.EFI");
    is_refused(folder, &disk, &firmware, DENIED);
    put(&fs::read(&loader).unwrap(), "EFI/BOOT/BOOTX64.EFI");

    // The root: the first block of its file system.
    let said = String::from_utf8(exec::run("sgdisk", &["--info=3", text(&disk)]).unwrap().stdout).unwrap();
    let first = said.lines().find_map(|line| line.strip_prefix("First sector: ")?.split(' ').next()?.parse::<u64>().ok()).unwrap();
    let (file, mut byte) = (fs::OpenOptions::new().read(true).write(true).open(&disk).unwrap(), [0]);
    let at = first * 512 + 1500;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at).unwrap();
    is_refused(folder, &disk, &firmware, "is corrupted");
}

#[test]
#[ignore = "soak: builds an image, two boots"]
fn soak_secure_boot_with_debians_keys_starts_disk_and_medium() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), "debian-keys", &[]);
    let firmware = Firmware::SecureBoot(PathBuf::from("/usr/share/OVMF/OVMF_VARS_4M.ms.fd"));
    images.iter().for_each(|image| starts(folder.path(), image, &firmware));
}
