//! Starting from the network: QEMU's own boot firmware (iPXE) fetches script, kernel, initramfs and disk by HTTP from this machine's loopback.

use std::path::Path;

use qemu_tests::build::{build, profiles};
use qemu_tests::exec;
use qemu_tests::node::{Node, free_port};
use qemu_tests::vm::{Drive, Firmware, Vm};

/// Where the machine sees the web server.
const SERVER: &str = "10.0.2.100";

/// iPXE as it is put on a stick for machines whose firmware cannot do more: it looks beside itself for what to do.
const AUTOEXEC: &str = "#!ipxe\ndhcp\nchain http://10.0.2.100/boot.ipxe\n";

#[test]
#[ignore = "soak: builds another image, two boots that load all by an emulated network card"]
fn soak_pxe_starts_from_the_network_under_bios_and_uefi_and_the_root_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    // The iPXE of Debian 12's QEMU cannot hand files into the initramfs under UEFI; the image's own Debian has one that can.
    let profile = format!("extends: {}\nname: net\npackages: [ipxe]\n", profiles().join("minimal.yaml").display());
    std::fs::write(folder.path().join("net.yaml"), profile).unwrap();
    let archive = build(folder.path(), "net", "pxe.tar");
    exec::run("tar", &["-xf", text(&archive), "-C", text(&files)]).unwrap();
    let port = free_port().unwrap();
    let server = ["-m", "http.server", "--bind", "127.0.0.1", "--directory", text(&files), &port.to_string()].map(String::from);
    let mut server = exec::start("python3", &server).unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(server.try_wait().unwrap().is_none(), "the web server ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let guest = format!(",guestfwd=tcp:{SERVER}:80-cmd:socat STDIO TCP:127.0.0.1:{port}");

    let mut node = machine(folder.path(), "bios");
    node.forwards = format!(",bootfile=http://{SERVER}/boot.ipxe{guest}");
    let vm = ready(&node, Firmware::Bios);
    let ipxe = folder.path().join("ipxe");
    std::fs::write(&ipxe, node.bytes("cat /usr/lib/ipxe/ipxe-amd64.efi").unwrap()).unwrap();
    node.shut_down(vm).unwrap();

    let (stick, autoexec) = (folder.path().join("stick.img"), folder.path().join("autoexec.ipxe"));
    std::fs::write(&autoexec, AUTOEXEC).unwrap();
    std::fs::File::create(&stick).unwrap().set_len(16 << 20).unwrap();
    exec::run("mkfs.vfat", &[text(&stick)]).unwrap();
    exec::run("mmd", &["-i", text(&stick), "::/EFI", "::/EFI/BOOT"]).unwrap();
    exec::run("mcopy", &["-i", text(&stick), text(&ipxe), "::/EFI/BOOT/BOOTX64.EFI"]).unwrap();
    exec::run("mcopy", &["-i", text(&stick), text(&autoexec), "::/EFI/BOOT/autoexec.ipxe"]).unwrap();
    let mut node = machine(folder.path(), "uefi");
    node.further = vec![Drive { device: "-device qemu-xhci -device usb-storage,{}", ..Drive::raw(&stick) }];
    node.forwards = guest;
    node.shut_down(ready(&node, Firmware::Uefi)).unwrap();

    let _ = server.kill();
    let _ = server.wait();
    for own in ["bios", "uefi"] {
        assert!(
            std::fs::read(folder.path().join(own).join("own.raw")).unwrap().iter().all(|byte| *byte == 0),
            "the machine's own disk was written to"
        );
    }
}

/// A machine with an empty disk.
fn machine(folder: &Path, name: &str) -> Node {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).unwrap();
    let own = folder.join("own.raw");
    std::fs::File::create(&own).unwrap().set_len(1 << 30).unwrap();
    let mut node = Node::of_disk(&folder, Drive::raw(&own)).unwrap();
    node.memory = 4096;
    node
}

/// Starts it and sees that its root is what the command line names.
fn ready(node: &Node, firmware: Firmware) -> Vm {
    let mut vm = node.start(firmware.clone()).unwrap();
    vm.wait("medium the network", 300).unwrap();
    vm.wait(" ready", 300).unwrap();
    println!("{firmware:?}: ready {:.1} s after power-on", vm.age().as_secs_f64());
    let told = node.ssh("findmnt -n -o SOURCE /; cat /sys/block/dm-0/dm/uuid").unwrap();
    assert!(told.starts_with("/dev/dm-0\nCRYPT-VERITY-"), "{told}");
    vm
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
