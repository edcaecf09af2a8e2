//! Installing from the medium: by a person at the serial console, without a question, and never where something would be lost.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qemu_tests::exec;
use qemu_tests::node::Node;
use qemu_tests::vm::{Drive, Firmware, Vm};

use super::{Plugged, machine};

/// Room for an image of `minimal` and its state.
const OWN: u64 = 16 << 30;
/// Longest time for a step of an installation, in seconds; emulation on a busy machine is slow.
const STEP: u64 = 240;
const DONE: &str = "install: done in";

/// A machine with a medium and a disk that is large enough.
fn roomy(folder: &Path, plugged: Plugged) -> (Node, PathBuf) {
    let mut node = machine(folder, plugged);
    node.memory = 3072;
    let own = folder.join("own.raw");
    File::options().write(true).open(&own).unwrap().set_len(OWN).unwrap();
    (node, own)
}

fn setting(node: &mut Node, setting: &str) {
    node.arguments.extend(["-smbios".into(), format!("type=11,value=chasi-bod:{setting}")]);
}

/// Powers on and takes `Install` from GRUB's menu.
fn install(node: &Node, firmware: Firmware) -> Vm {
    choose(node, firmware, "i")
}

/// Powers on and takes the entry of a key from GRUB's menu.
fn choose(node: &Node, firmware: Firmware, key: &str) -> Vm {
    let mut vm = node.start(firmware).unwrap();
    // The menu itself has no ends of lines.
    vm.wait("GNU GRUB", 60).unwrap();
    vm.serial.send(key).unwrap();
    vm
}

/// The installed disk by the outside tools, and as a machine of its own.
fn is_installed(folder: &Path, own: &Path, firmware: Firmware) {
    let text = own.display().to_string();
    let verified = String::from_utf8(exec::run("sgdisk", &["--verify", &text]).unwrap().stdout).unwrap();
    assert!(verified.contains("No problems found"), "{verified}");
    let table = String::from_utf8(exec::run("sgdisk", &["--print", &text]).unwrap().stdout).unwrap();
    let names: Vec<_> = table.lines().filter(|line| line.starts_with("   ")).filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(names, ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b", "state"], "{table}");
    let folder = folder.join("installed");
    std::fs::create_dir(&folder).unwrap();
    let node = Node::of_disk(&folder, Drive::raw(own)).unwrap();
    let (vm, _) = node.boot(firmware).unwrap();
    let told = node.ssh("findmnt -n -o SOURCE /var; hostname; systemctl --failed --no-legend --plain; chasi-bod disks 'size > 1 * GiB'").unwrap();
    assert!(told.starts_with("/dev/vda7[/var]\ncarried\n/dev/vda (16GiB, virtio, serial `disk0`)"), "{told}");
    assert!(told.contains("vda: gpt") && told.contains("picked by size > 1 * GiB"), "{told}");
    node.shut_down(vm).unwrap();
}

#[test]
fn iso_installs_when_a_person_confirms_the_disk_by_its_serial_number() {
    let folder = tempfile::tempdir().unwrap();
    let (mut node, own) = roomy(folder.path(), Plugged::Disc);
    // The installed system gets to know of it, and never sees this disk.
    node.configure("hostname: carried\n").unwrap();
    let mut vm = install(&node, Firmware::Bios);
    vm.wait("Number of the disk", STEP).unwrap();
    vm.serial.send("1\n").unwrap();
    let line = vm.wait("ALL that is on", STEP).unwrap();
    assert!(line.contains("/dev/vda (16GiB, virtio, serial `disk0`)"), "{line}");
    vm.serial.send("yes\n").unwrap();
    vm.wait("nothing was written", STEP).unwrap();
    vm.wait("Number of the disk", STEP).unwrap();
    vm.serial.send("1\n").unwrap();
    vm.wait("Type the last 4 characters", STEP).unwrap();
    vm.serial.send("isk0\n").unwrap();
    let line = vm.wait(DONE, STEP).unwrap();
    println!("{line}, {:.1} s since power-on", vm.age().as_secs_f64());
    vm.wait_end(STEP).unwrap();
    is_installed(folder.path(), &own, Firmware::Bios);
}

/// How QEMU is told of a disk with sectors of 4096 bytes.
const LARGE_SECTORS: &str = "-device virtio-blk-pci,logical_block_size=4096,physical_block_size=4096,{}";

#[test]
#[ignore = "soak: two boots"]
fn soak_iso_installs_on_a_disk_with_sectors_of_4096_bytes_by_uefi() {
    let folder = tempfile::tempdir().unwrap();
    let (mut node, own) = roomy(folder.path(), Plugged::Disc);
    node.disk.device = LARGE_SECTORS;
    setting(&mut node, "disk.target=sector == 4096");
    let mut vm = install(&node, Firmware::Uefi);
    for step in ["switch starting the system", "checking the image", "install: writing", "reading again", "the firmware starts it as Boot"] {
        vm.wait(step, STEP).unwrap();
    }
    let line = vm.wait(DONE, STEP).unwrap();
    println!("{line}, {:.1} s since power-on", vm.age().as_secs_f64());
    vm.wait_end(STEP).unwrap();

    let text = own.display().to_string();
    let table = String::from_utf8(exec::run("fdisk", &["-b", "4096", "-l", &text]).unwrap().stdout).unwrap();
    assert!(table.contains("Disklabel type: gpt"), "{table}");
    let folder = folder.path().join("installed");
    std::fs::create_dir(&folder).unwrap();
    let node = Node::of_disk(&folder, Drive { device: LARGE_SECTORS, ..Drive::raw(&own) }).unwrap();
    let (vm, seconds) = node.boot(Firmware::Uefi).unwrap();
    println!("ready after {seconds} s of the node's own time");
    let told = node.ssh("findmnt -n -o SOURCE /var; cat /sys/block/vda/queue/logical_block_size").unwrap();
    assert_eq!(told, "/dev/vda7[/var]\n4096");
    // The kernel takes no FAT with smaller sectors on such a disk.
    let told = node
        .ssh("mkdir /run/esp && mount -o ro /dev/vda1 /run/esp && cd /run/esp && find . -type f | sort && blkid -p -o value -s BLOCK_SIZE /dev/vda1")
        .unwrap();
    println!("{told}");
    assert!(told.contains("./EFI/BOOT/BOOTX64.EFI") && told.contains("./slot-a/vmlinuz") && told.ends_with("4096"), "{told}");
    let told = node.ssh("systemctl --failed --no-legend --plain; chasi-bod disks 'sector == 4096'").unwrap();
    assert!(told.starts_with("/dev/vda (16GiB, virtio, serial `disk0`)") && told.contains("picked by sector == 4096"), "{told}");
    node.shut_down(vm).unwrap();
}

/// A disk with another system's partitions.
fn another_system(own: &Path) {
    let text = own.display().to_string();
    exec::run("sgdisk", &["--new=1:2048:+64M", "--typecode=1:8e00", "--change-name=1:data", "--new=2:0:0", &text]).unwrap();
    let file = File::options().write(true).open(own).unwrap();
    // The label of a physical volume of LVM2, which starts in its second sector.
    let mut label = [0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8..16].copy_from_slice(&1_u64.to_le_bytes());
    label[20..24].copy_from_slice(&32_u32.to_le_bytes());
    label[24..32].copy_from_slice(b"LVM2 001");
    file.write_all_at(&label, (1 << 20) + 512).unwrap();
}

#[test]
#[ignore = "soak: five boots"]
fn soak_d5_iso_installs_without_a_question_only_where_nothing_is_lost_and_a_power_cut_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let (mut node, own) = roomy(folder.path(), Plugged::Stick);
    another_system(&own);
    let before = head(&own);
    setting(&mut node, "disk.target=size > 8 * GiB");
    let mut vm = install(&node, Firmware::Uefi);
    let line = vm.wait("it is not empty", STEP).unwrap();
    assert!(line.contains("/dev/vdb (16GiB, virtio, serial `disk1`)") && line.contains("vdb: gpt"), "{line}");
    vm.wait("Number of the disk", STEP).unwrap();
    vm.kill();
    assert!(head(&own) == before, "the disk was written to");

    setting(&mut node, "disk.erase=true");
    let mut vm = install(&node, Firmware::Uefi);
    vm.wait("writing 40 %", STEP).unwrap();
    vm.kill();
    assert!(
        exec::run("sgdisk", &["--print", &own.display().to_string()]).is_ok_and(|said| !String::from_utf8_lossy(&said.stdout).contains("root-a"))
    );

    let mut vm = install(&node, Firmware::Uefi);
    let line = vm.wait("was not finished; it starts over", STEP).unwrap();
    assert!(line.contains("an installation of minimal"), "{line}");
    vm.wait("the firmware starts it as Boot", STEP).unwrap();
    println!("{}", vm.wait(DONE, STEP).unwrap());
    vm.wait_end(STEP).unwrap();
    // The medium is still in, and first in the order: GRUB goes on to what is installed.
    let (vm, _) = node.boot(Firmware::Uefi).unwrap();
    let told = node.ssh("findmnt -n -o SOURCE /var").unwrap();
    assert_eq!(told, "/dev/vdb7[/var]");
    node.shut_down(vm).unwrap();
}

fn head(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 20];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
#[ignore = "soak: four boots"]
fn soak_d4_a_medium_that_cannot_be_read_is_named_and_the_disk_stays_as_it_is() {
    const UNREAD: &str = "reading chasi/disk.zst of the medium /dev/vda";
    let folder = tempfile::tempdir().unwrap();
    let (mut node, own) = roomy(folder.path(), Plugged::Stick);
    another_system(&own);
    let before = head(&own);
    let says = |node: &Node, key: &str, needle: &str| {
        let mut vm = choose(node, Firmware::Bios, key);
        let line = vm.wait(needle, STEP).unwrap();
        vm.kill();
        line
    };
    let line = says(&node, "k", "init checked");
    assert!(line.ends_with("6 files are good"), "{line}");

    let medium = folder.path().join("medium.iso");
    let length = std::fs::metadata(&medium).unwrap().len();
    // One sector in the middle, which is in the packed disk, cannot be read.
    let faults = folder.path().join("faults");
    std::fs::write(&faults, format!("[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"{}\"\n", length / 1024)).unwrap();
    node.disk.path = format!("blkdebug:{}:{}", faults.display(), medium.display()).into();
    let line = says(&node, "i", "init failed");
    assert!(line.contains(UNREAD), "{line}");
    node.disk.path.clone_from(&medium);

    let file = File::options().read(true).write(true).open(&medium).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, length / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], length / 2).unwrap();
    let line = says(&node, "k", "init failed");
    assert!(line.contains(UNREAD) && line.contains("SHA256SUMS says"), "{line}");

    file.set_len(length / 2).unwrap();
    let line = says(&node, "i", "init failed");
    assert!(line.contains(UNREAD), "{line}");
    assert!(head(&own) == before, "the disk was written to");
}
