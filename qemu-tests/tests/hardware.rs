//! The generic kernel with the layer `hardware`: `init` finds the root behind each kind of controller that QEMU has, by modalias alone.
#![allow(clippy::unwrap_used)]

use qemu_tests::build::{build, profiles};
use qemu_tests::node::Node;
use qemu_tests::vm::{Drive, Firmware};

/// Kernel's name of the disk, and what QEMU makes of it; each second one starts by OVMF, of which that of Debian 12 was seen to start from none of `megasas`,
/// `pvscsi` and `mptsas1068`. A disk of a SAS controller needs a WWN: Linux passes over one whose SAS address is 0, and QEMU has no other for it.
const DISKS: [(&str, &str); 8] = [
    ("sda", "-device megasas -device scsi-hd,{}"),
    ("vda", "-device virtio-blk-pci,{}"),
    ("sda", "-device pvscsi -device scsi-hd,{}"),
    ("nvme0n1", "-device nvme,{}"),
    ("sda", "-device mptsas1068 -device scsi-hd,{},wwn=0x5000c50015ea71ac"),
    ("sda", "-device qemu-xhci -device usb-storage,{}"),
    ("sda", "-device virtio-scsi-pci -device scsi-hd,{}"),
    ("sda", "-device ide-hd,{}"),
];

#[test]
#[ignore = "soak: builds another image, eight boots"]
fn soak_hardware_image_starts_from_virtio_sata_nvme_usb_and_scsi_disks() {
    let folder = tempfile::tempdir().unwrap();
    let minimal = profiles().join("minimal.yaml");
    let profile = format!(
        "extends: {}\nname: hardware\ndebian: {{components: [main, contrib, non-free-firmware]}}\nlayers: [hardware]\nboot: {{kernel: generic, secureBoot: debian-keys}}\n",
        minimal.display()
    );
    std::fs::write(folder.path().join("hardware.yaml"), profile).unwrap();
    let image = build(folder.path(), "hardware", "raw");
    for (number, (name, device)) in DISKS.into_iter().enumerate() {
        let own = folder.path().join(number.to_string());
        std::fs::create_dir(&own).unwrap();
        let disk = own.join("disk.raw");
        qemu_tests::exec::run("cp", &["--sparse=always", image.to_str().unwrap(), disk.to_str().unwrap()]).unwrap();
        let node = Node::of_disk(&own, Drive { device, ..Drive::raw(&disk) }).unwrap();
        let (vm, seconds) = node.boot(if number % 2 == 0 { Firmware::Bios } else { Firmware::Uefi }).unwrap();
        let told = node.ssh("findmnt -n -o SOURCE /var; systemctl --failed --no-legend --plain; chasi-bod disks").unwrap();
        println!("{device}: ready after {seconds} s of the node's own time\n{told}");
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].starts_with(&format!("/dev/{name}")) && lines[1].starts_with(&format!("/dev/{name} (16GiB, ")), "{told}");
        node.shut_down(vm).unwrap();
        std::fs::remove_file(disk).unwrap();
    }
}
