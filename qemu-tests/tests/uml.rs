//! The built image under User-Mode Linux: our init, verity, state, systemd and agent without emulation.

use qemu_tests::exec;
use qemu_tests::node::{Node, READY, artifact, artifacts, uptime};
use qemu_tests::uml::Net;
use qemu_tests::vm::Firmware;

#[test]
fn uml_the_image_boots_and_a_reboot_keeps_the_state() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let raw = artifact(&artifacts("minimal").unwrap(), "raw").unwrap();
    let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    let (vm, seconds) = node.boot(firmware.clone()).unwrap();
    println!("UML first boot to ready: {seconds} s of the node's own time, {:.1} s since start", vm.age().as_secs_f64());
    let root = node.ssh("findmnt -n -o SOURCE,FSTYPE /").unwrap();
    assert!(root.contains("dm-") || root.contains("mapper"), "the root is not behind device mapper: {root}");
    kernel_has_what_clusters_need(&node);
    let id = node.ssh("echo kept > /var/lib/kept; cat /etc/machine-id").unwrap();
    node.shut_down(vm).unwrap();
    let (vm, seconds) = node.boot(firmware).unwrap();
    println!("UML later boot to ready: {seconds} s of the node's own time");
    assert_eq!(node.ssh("cat /var/lib/kept /etc/machine-id").unwrap(), format!("kept\n{id}"));
    node.shut_down(vm).unwrap();
}

/// Cgroup controllers, pod networking and layered file systems of the lane's kernel; the nodes of clusters depend on them.
fn kernel_has_what_clusters_need(node: &Node) {
    let controllers = node.ssh("cat /sys/fs/cgroup/cgroup.controllers").unwrap();
    for name in ["cpu", "io", "memory", "pids"] {
        assert!(controllers.split(' ').any(|c| c == name), "no cgroup controller {name}: {controllers}");
    }
    let layered = "mkdir -p /run/t/u /run/t/w /run/t/m && mount -t overlay -o lowerdir=/usr,upperdir=/run/t/u,workdir=/run/t/w t /run/t/m";
    node.ssh(&format!("{layered} && touch /run/t/m/new && test -e /run/t/u/new && umount /run/t/m")).unwrap();
    let bridged = "ip netns add pod && ip link add b0 type bridge && ip link add v0 type veth peer name v1 netns pod && ip link set v0 master b0 up";
    let addressed = "ip addr add 10.9.0.1/24 dev b0 && ip link set b0 up && ip -n pod addr add 10.9.0.2/24 dev v1 && ip -n pod link set v1 up";
    node.ssh(&format!("{bridged} && {addressed} && ping -c 1 -W 10 10.9.0.2")).unwrap();
    node.ssh("ip netns del pod && ip link del b0 && ip link add vx0 type vxlan id 7 dstport 4789 dev vec0 && ip link del vx0").unwrap();
    assert_eq!(node.ssh("grep -c '^cpu MHz.*[0-9]' /proc/cpuinfo").unwrap(), "1");
}

/// Its card has a name of its own, which the harness otherwise gives an address.
const BY_DHCP: &str = "chasi.set=network={interfaces:%20[{name:%20lan,%20match:%20{name:%20vec0},%20dhcp:%20true}]}";

#[test]
#[ignore = "soak: waits for five minutes"]
fn soak_uml_f2_a_network_that_comes_late_or_has_only_ipv6_is_waited_for() {
    let raw = artifact(&artifacts("minimal").unwrap(), "raw").unwrap();
    let late = "--dhcp-range=10.77.0.11,10.77.0.11,1h";
    for (options, delay, wanted) in [(late, 300, "vec0 10.77.0.11/24"), ("--dhcp-range=fd77::,ra-only --enable-ra", 10, "vec0 fd77::")] {
        let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
        let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
        let Firmware::Uml { kernel, initrd, command_line, link } = firmware else { unreachable!("a node of the UML lane") };
        let mut vm = node.start(Firmware::Uml { kernel, initrd, command_line: format!("{command_line} {BY_DHCP}"), link: link.clone() }).unwrap();
        vm.wait("network waiting no address yet", READY).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(delay));
        // It stays the user that it is: the namespace has no other.
        let server = format!("dnsmasq --no-daemon --port=0 --interface=br0 --leasefile-ro {options}");
        node.beside("ip", &["addr", "add", "fd77::1/64", "dev", "br0", "nodad"]).unwrap();
        let mut server = exec::start("nsenter", &link.inside(&server.split(' ').collect::<Vec<_>>())).unwrap();
        let line = vm.wait("network done", 120).unwrap();
        println!("{options}: {:.0} s after power-on: {line}", vm.age().as_secs_f64());
        assert!(line.contains(wanted) && uptime(&line).unwrap() > delay as f64, "{line}");
        server.kill().unwrap();
        server.wait().unwrap();
        vm.kill();
    }
}

#[test]
#[ignore = "soak: asks again after 30 s"]
fn soak_uml_f2_no_cluster_is_formed_with_somebody_elses_address() {
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    let other = |what| node.beside("ip", &["addr", what, "10.77.0.11/32", "dev", "br0"]).unwrap();
    other("add");
    let mut vm = node.start(firmware).unwrap();
    let line = vm.wait("network waiting 10.77.0.11 of vec0 is also in use by ", READY).unwrap();
    let card = String::from_utf8(node.beside("ip", &["-brief", "link", "show", "br0"]).unwrap().stdout).unwrap();
    assert!(card.contains(line.rsplit_once(' ').unwrap().1), "{line}\n{card}");
    // Long enough for a cluster to begin.
    std::thread::sleep(std::time::Duration::from_secs(20));
    other("del");
    let free = uptime(&vm.wait("network done vec0 10.77.0.11/24", 60).unwrap()).unwrap();
    let begun = uptime(&vm.wait("cluster running", 60).unwrap()).unwrap();
    println!("the address was free after {free} s, and the cluster begun after {begun} s");
    assert!(begun >= free);
    vm.wait("cluster done", 300).unwrap();
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
    f2_an_address_that_both_have_is_named(&a, &b);
    a.shut_down(vm_a).unwrap();
    b.shut_down(vm_b).unwrap();
}

fn f2_an_address_that_both_have_is_named(a: &Node, b: &Node) {
    let card = a.ssh("cat /sys/class/net/vec0/address").unwrap();
    let network =
        |wanted: &str| format!("for n in $(seq 60); do chasi-bod status | grep -q '{wanted}' && exit 0; sleep 0.5; done; chasi-bod status; exit 1");
    b.ssh(&format!("ip addr add 10.77.0.11/24 dev vec0; {}", network(&format!("10.77.0.11 of vec0 is also in use by {card}")))).unwrap();
    b.ssh(&format!("ip addr del 10.77.0.11/24 dev vec0; {}", network("network .*done .*10.77.0.12/24$"))).unwrap();
}
