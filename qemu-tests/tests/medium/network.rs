//! Starting from the network: QEMU's own boot firmware (iPXE) fetches script, kernel, initramfs and disk by HTTP from this machine's loopback.

use qemu_tests::exec;
use qemu_tests::node::{Node, artifact, artifacts, free_port};
use qemu_tests::vm::{Drive, Firmware};

/// Where the machine sees the web server.
const SERVER: &str = "10.0.2.100";

#[test]
#[ignore = "soak: a boot that loads all by an emulated network card"]
fn soak_pxe_starts_from_the_network_and_the_root_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let (files, own) = (folder.path().join("files"), folder.path().join("own.raw"));
    std::fs::create_dir(&files).unwrap();
    let archive = artifact(&artifacts("minimal").unwrap(), "tar").unwrap();
    exec::run("tar", &["-xf", &archive.display().to_string(), "-C", &files.display().to_string()]).unwrap();
    std::fs::File::create(&own).unwrap().set_len(1 << 30).unwrap();
    let port = free_port().unwrap();
    let server = ["-m", "http.server", "--bind", "127.0.0.1", "--directory", &files.display().to_string(), &port.to_string()].map(String::from);
    let mut server = exec::start("python3", &server).unwrap();
    let mut node = Node::of_disk(folder.path(), Drive::raw(&own)).unwrap();
    node.memory = 4096;
    node.forwards = format!(",bootfile=http://{SERVER}/boot.ipxe,guestfwd=tcp:{SERVER}:80-cmd:socat STDIO TCP:127.0.0.1:{port}");
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(server.try_wait().unwrap().is_none(), "the web server ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut vm = node.start(Firmware::Bios).unwrap();
    vm.wait("medium the network", 300).unwrap();
    vm.wait(" ready", 300).unwrap();
    println!("PXE: ready {:.1} s after power-on", vm.age().as_secs_f64());
    let told = node.ssh("findmnt -n -o SOURCE /; cat /sys/block/dm-0/dm/uuid").unwrap();
    assert!(told.starts_with("/dev/dm-0\nCRYPT-VERITY-"), "{told}");
    node.shut_down(vm).unwrap();
    let _ = server.kill();
    let _ = server.wait();
    assert!(std::fs::read(own).unwrap().iter().all(|byte| *byte == 0), "the machine's own disk was written to");
}
