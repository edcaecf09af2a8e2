//! The built image under User-Mode Linux: our init, verity, state, systemd and agent without emulation.

use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;

#[test]
fn uml_the_image_boots_and_a_reboot_keeps_the_state() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let raw = artifact(&artifacts("minimal").unwrap(), "raw").unwrap();
    let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    let (vm, seconds) = node.boot(firmware.clone()).unwrap();
    println!("UML first boot to ready: {seconds} s of the node's own time, {:.1} s since start", vm.age().as_secs_f64());
    let root = node.ssh("findmnt -n -o SOURCE,FSTYPE /").unwrap();
    assert!(root.contains("dm-") || root.contains("mapper"), "the root is not behind device mapper: {root}");
    let id = node.ssh("echo kept > /var/lib/kept; cat /etc/machine-id").unwrap();
    node.shut_down(vm).unwrap();
    let (vm, seconds) = node.boot(firmware).unwrap();
    println!("UML later boot to ready: {seconds} s of the node's own time");
    assert_eq!(node.ssh("cat /var/lib/kept /etc/machine-id").unwrap(), format!("kept\n{id}"));
    node.shut_down(vm).unwrap();
}

#[test]
fn uml_two_nodes_reach_each_other() {
    let (one, two, net) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Net::new(2).unwrap());
    let raw = artifact(&artifacts("minimal").unwrap(), "raw").unwrap();
    let (a, start_a) = Node::in_uml(one.path(), &raw, &net, 1).unwrap();
    let (b, start_b) = Node::in_uml(two.path(), &raw, &net, 2).unwrap();
    let (vm_a, vm_b) = (a.boot(start_a).unwrap().0, b.boot(start_b).unwrap().0);
    a.ssh("ping -c 3 -W 5 10.77.0.12").unwrap();
    b.ssh("ping -c 3 -W 5 10.77.0.11").unwrap();
    a.shut_down(vm_a).unwrap();
    b.shut_down(vm_b).unwrap();
}
