//! `init` of the initramfs in a real machine: Debian's cloud kernel by QEMU itself, our static binary, a small verified root.
//! Needs the node's binary: `make node`, or the path in CHASI_BOD_NODE.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use qemu_tests::vm::{Firmware, Machine, Vm};
use qemu_tests::{debs, exec};

const MIB: u64 = 1 << 20;

/// Modules of the test's initramfs: what the builder takes, cut to what QEMU has.
const WANTED: [&str; 12] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_rng",
    "dm-verity",
    "erofs",
    "ext4",
    "overlay",
    "crc32c_generic",
    "crc32c-intel",
    "sha256_generic",
    "sha256-ssse3",
    "loop",
];

/// What is made once: kernel, initramfs, root with its verity tree.
struct Image {
    folder: tempfile::TempDir,
    kernel: PathBuf,
    roothash: String,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn node_binary() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/node/x86_64-unknown-linux-gnu/node/chasi-bod-init");
    std::env::var_os("CHASI_BOD_NODE").map_or_else(|| default.into(), |node| PathBuf::from(node).with_file_name("chasi-bod-init"))
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let package = debs::kernel_package().unwrap();
        let debs_root = debs::unpacked(&[&package]).unwrap();
        let release = package.trim_start_matches("linux-image-");
        initramfs(folder.path(), &debs_root, release);
        let roothash = root(folder.path());
        Image { kernel: debs_root.join(format!("boot/vmlinuz-{release}")), folder, roothash }
    })
}

/// Our binary as /init, the modules with what they need, uncompressed, and their lists by depmod.
fn initramfs(folder: &Path, debs_root: &Path, release: &str) {
    let (tree, source) = (folder.join("initramfs"), debs_root.join("usr/lib/modules").join(release));
    let target = tree.join("usr/lib/modules").join(release);
    fs::create_dir_all(&target).unwrap();
    let base = text(debs_root);
    exec::run("depmod", &["-b", &text(&debs_root.join("usr")), release]).or_else(|_| exec::run("depmod", &["-b", &base, release])).unwrap();
    let dep = fs::read_to_string(source.join("modules.dep")).unwrap();
    let name = |path: &str| path.rsplit('/').next().unwrap().split(".ko").next().unwrap().replace('-', "_");
    for wanted in WANTED {
        let Some(line) = dep.lines().find(|l| name(l.split(':').next().unwrap()) == wanted.replace('-', "_")) else { continue };
        for path in line.replace(':', "").split_whitespace() {
            let to = target.join(path.trim_end_matches(".xz"));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let data = if path.ends_with(".xz") {
                exec::run("xz", &["-dc", &text(&source.join(path))]).unwrap().stdout
            } else {
                fs::read(source.join(path)).unwrap()
            };
            fs::write(to, data).unwrap();
        }
    }
    fs::write(target.join("modules.dep"), dep.replace(".ko.xz", ".ko")).unwrap();
    fs::copy(source.join("modules.alias"), target.join("modules.alias")).unwrap();
    prune(&target);
    fs::copy(node_binary(), tree.join("init")).unwrap();
    fs::write(folder.join("initrd"), cpio(&tree)).unwrap();
}

/// Keeps of the lists what the tree holds, as the builder does.
fn prune(target: &Path) {
    let dep = fs::read_to_string(target.join("modules.dep")).unwrap();
    let kept: Vec<_> = dep.lines().filter(|l| target.join(l.split(':').next().unwrap()).exists()).collect();
    let names: Vec<_> = kept.iter().map(|l| l.split(".ko").next().unwrap().rsplit('/').next().unwrap().replace('-', "_")).collect();
    let alias = fs::read_to_string(target.join("modules.alias")).unwrap();
    let aliases: Vec<_> = alias.lines().filter(|l| names.iter().any(|n| l.split_whitespace().last() == Some(n))).collect();
    fs::write(target.join("modules.dep"), kept.join("\n")).unwrap();
    fs::write(target.join("modules.alias"), aliases.join("\n")).unwrap();
}

/// A cpio archive (newc) of a tree of folders and files.
fn cpio(tree: &Path) -> Vec<u8> {
    fn entry(out: &mut Vec<u8>, inode: usize, name: &str, mode: u32, data: &[u8]) {
        let size = data.len();
        let fields = [inode, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() + 1, 0];
        out.extend_from_slice(b"070701");
        fields.iter().for_each(|f| out.extend_from_slice(format!("{f:08x}").as_bytes()));
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    fn walk(out: &mut Vec<u8>, inode: &mut usize, tree: &Path, folder: &Path) {
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            *inode += 1;
            let name = text(path.strip_prefix(tree).unwrap());
            if path.is_dir() {
                entry(out, *inode, &name, 0o40755, &[]);
                walk(out, inode, tree, &path);
            } else {
                entry(out, *inode, &name, 0o100_755, &fs::read(&path).unwrap());
            }
        }
    }
    let mut out = Vec::new();
    walk(&mut out, &mut 0, tree, tree);
    entry(&mut out, 0, "TRAILER!!!", 0, &[]);
    out
}

const INIT: &str = r#"#!/bin/sh
echo "root-says: id $(cat /etc/machine-id) boots $(cat /var/boots 2>/dev/null)"
echo x >> /var/boots
mkdir -p /etc/made && echo "root-says: etc $(cat /etc/os)"
read line < /proc/mounts; echo "root-says: first mount $line"
while read dev dir type rest; do case $dir in /|/var|/etc|/home|/root|/srv|/dev|/run|/run/chasi-bod/state) echo "root-says: mount $dir $type";; esac; done < /proc/mounts
echo "root-says: size $(df -m /var | tail -n 1 | awk '{print $2}')"
(echo try > /usr/x) 2>/dev/null || echo "root-says: read-only"
sync
echo "root-says: done"
echo o > /proc/sysrq-trigger
sleep 100
"#;

/// A root with Debian's e2fsprogs and busybox, a script as /sbin/init, as EROFS with a verity tree; returns the root hash.
fn root(folder: &Path) -> String {
    let packages = ["libc6", "e2fsprogs", "libext2fs2t64", "libcom-err2", "libblkid1", "libuuid1", "libss2", "busybox-static"];
    let source = debs::unpacked(&packages).unwrap();
    let tree = folder.join("root");
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "var",
        "home",
        "root",
        "srv",
        "tmp",
        "etc",
        "usr/sbin",
        "usr/bin",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib64",
        "usr/lib/chasi-bod",
    ] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(target, tree.join(link)).unwrap();
    }
    let copy = |path: &str| fs::copy(source.join(path), tree.join(path)).map(|_| ()).unwrap();
    copy("usr/lib64/ld-linux-x86-64.so.2");
    copy("usr/bin/busybox");
    for name in ["ext2fs", "com_err", "e2p", "blkid", "uuid", "c"] {
        let libraries = fs::read_dir(source.join("usr/lib/x86_64-linux-gnu")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        libraries.filter(|f| f.starts_with(&format!("lib{name}.so"))).for_each(|f| copy(&format!("usr/lib/x86_64-linux-gnu/{f}")));
    }
    ["mke2fs", "e2fsck"].iter().for_each(|t| copy(&format!("usr/sbin/{t}")));
    for name in ["sh", "cat", "mkdir", "df", "tail", "awk", "sync", "sleep", "echo"] {
        symlink("busybox", tree.join("usr/bin").join(name)).unwrap();
    }
    fs::write(tree.join("etc/machine-id"), "").unwrap();
    fs::write(tree.join("etc/os"), "ours\n").unwrap();
    fs::write(tree.join("usr/lib/chasi-bod/image.json"), r#"{"name":"t","disk":{"stateSize":"64MiB"}}"#).unwrap();
    fs::write(tree.join("usr/sbin/init"), INIT).unwrap();
    fs::set_permissions(tree.join("usr/sbin/init"), fs::Permissions::from_mode(0o755)).unwrap();
    let (image, hashes) = (folder.join("root.erofs"), folder.join("root.verity"));
    exec::run("mkfs.erofs", &["-T0", "--all-root", &text(&image), &text(&tree)]).unwrap();
    let said = exec::run("veritysetup", &["format", &text(&image), &text(&hashes)]).unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    said.lines().find_map(|l| l.strip_prefix("Root hash:")).unwrap().trim().to_string()
}

struct Disk {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    /// A disk with both slots' places and slot A filled, made for 128 MiB and then grown.
    fn new(grown: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(128 * MIB).unwrap();
        let places = [("esp", 1, 1), ("bios", 2, 1), ("root-a", 3, 48), ("verity-a", 51, 4), ("root-b", 55, 48), ("verity-b", 103, 4)];
        for (index, (name, start, length)) in places.iter().enumerate() {
            let n = index + 1;
            let place = format!("{n}:{}:+{}", start * 2048, length * 2048 - 1);
            exec::run("sgdisk", &["-n", &place, "-c", &format!("{n}:{name}"), &text(&path)]).unwrap();
        }
        let of = |name: &str| fs::read(image().folder.path().join(name)).unwrap();
        file.write_all_at(&of("root.erofs"), 3 * MIB).unwrap();
        file.write_all_at(&of("root.verity"), 51 * MIB).unwrap();
        file.set_len(grown).unwrap();
        Self { folder, path }
    }

    fn start(&self, words: &str) -> Vm {
        start(&[&self.path], self.folder.path(), words)
    }

    /// Boots to the end; returns what was said.
    fn boot(&self) -> String {
        let mut vm = self.start("");
        let (which, line) = vm.serial.wait_any(&["root-says: done", "init failed", "Kernel panic"], Duration::from_secs(60)).unwrap();
        assert_eq!(which, 0, "{line}\n{}", vm.serial.text());
        vm.wait_end(30).unwrap();
        vm.serial.text()
    }
}

fn start(disks: &[&Path], folder: &Path, words: &str) -> Vm {
    let image = image();
    let command_line = format!("console=ttyS0,115200 panic=-1 quiet roothash={} chasi.slot=a {words}", image.roothash);
    let firmware = Firmware::Direct { kernel: image.kernel.clone(), initrd: image.folder.path().join("initrd"), command_line };
    Machine { memory: 512, ..Machine::new(firmware, disks) }.start(folder).unwrap()
}

fn said<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find_map(|l| l.split_once(start)).unwrap_or_else(|| panic!("{start:?} was not said:\n{text}")).1.trim()
}

#[test]
fn a_root_is_verified_and_gets_a_state_that_stays_and_grows() {
    let disk = Disk::new(384 * MIB);
    let first = disk.boot();
    std::io::stderr().write_all(first.as_bytes()).unwrap();
    assert!(said(&first, "init state").starts_with("made /dev/vda7 276MiB"), "{first}");
    for mount in
        ["/ erofs", "/var ext4", "/home ext4", "/root ext4", "/srv ext4", "/etc overlay", "/dev devtmpfs", "/run tmpfs", "/run/chasi-bod/state ext4"]
    {
        assert!(first.contains(&format!("root-says: mount {mount}")), "{mount}: {first}");
    }
    assert!(first.contains("root-says: read-only") && first.contains("root-says: etc ours"), "{first}");
    let id = said(&first, "root-says: id").split(' ').next().unwrap().to_string();
    assert_eq!(id.len(), 32);
    exec::run("sgdisk", &["-v", &text(&disk.path)]).unwrap();
    File::options().write(true).open(&disk.path).unwrap().set_len(640 * MIB).unwrap();
    let second = disk.boot();
    assert!(said(&second, "init state").starts_with("grown /dev/vda7 532MiB"), "{second}");
    assert_eq!(said(&second, "root-says: id"), format!("{id} boots x"));
    assert!(said(&second, "root-says: size").parse::<u64>().unwrap() > 450, "{second}");
    let third = disk.boot();
    assert!(said(&third, "init state").starts_with("kept /dev/vda7 532MiB"), "{third}");
}

/// F1: the plug is pulled while the state is made; the next boot makes it.
#[test]
fn f1_a_power_cut_while_the_state_is_made_is_survived() {
    let disk = Disk::new(384 * MIB);
    for pause in [0, 150, 400] {
        let mut vm = disk.start("");
        vm.wait("init root", 60).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        vm.kill();
    }
    let text = disk.boot();
    assert!(text.contains("root-says: id") && text.contains("init state"), "{text}");
}

#[test]
fn a_disk_that_does_not_come_is_named_and_nothing_reboots() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    File::create(&other).unwrap().set_len(32 * MIB).unwrap();
    let mut vm = start(&[&other], folder.path(), "chasi.wait=2");
    let line = vm.wait("init failed", 60).unwrap();
    assert!(line.contains("waiting 2 s for the disk with slot a") && line.contains("vda (32MiB: no partition table)"), "{line}");
    assert!(vm.wait_end(3).is_err(), "the machine ended");
    assert!(vm.serial.text().contains("Hint:  check that the disk is attached"));
}

/// E13: a slot that was changed after it was written does not start; a trial reboots, so that GRUB falls back.
#[test]
fn e13_a_damaged_root_in_a_trial_reboots_with_the_reason_on_the_screen() {
    let disk = Disk::new(384 * MIB);
    File::options().write(true).open(&disk.path).unwrap().write_all_at(&[0xff; 4096], 3 * MIB).unwrap();
    let mut vm = disk.start("chasi.trial=1");
    let line = vm.wait("init failed", 60).unwrap();
    assert!(line.contains("mounting the root"), "{line}");
    vm.wait_end(40).unwrap();
}

/// Two disks with one image: the one with a state wins, the other one is named.
#[test]
fn of_two_disks_with_one_image_the_one_with_a_state_wins() {
    let (fresh, used) = (Disk::new(384 * MIB), Disk::new(384 * MIB));
    used.boot();
    let mut vm = start(&[&fresh.path, &used.path], fresh.folder.path(), "");
    assert!(vm.wait("init disk", 60).unwrap().contains("init disk vdb 384MiB"));
    assert!(vm.wait("init disk", 5).unwrap().contains("vda carries the same image"));
    assert!(vm.wait("init state", 60).unwrap().contains("kept /dev/vdb7"));
}
