//! A cluster that is lost with its machine comes back on a fresh one, from a file that was copied away: the same objects under the same uids, the
//! virtual cluster with what was in it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;
use qemu_tests::vm::{Firmware, Vm};

use super::join::eventually;
use super::vclusters::{inside, phase, within};
use super::{account, formed, kube, seed};

const SECRET: &str = "canary-in-the-coal-mine-0123456789";

/// A machine with the site's secret under the node's name; one that is to get a cluster back does not found one.
fn machine(folder: &Path, net: &Net, number: u8, role: &str) -> (Node, Firmware) {
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (mut node, firmware) = Node::in_uml(folder, &raw, net, number).unwrap();
    node.configure(&format!("hostname: n1\ncluster: {{secret: {SECRET}, role: {role}}}\n")).unwrap();
    (node, firmware)
}

/// Takes the backup away as an operator would; the file.
fn taken_away(node: &Node, to: &Path) -> String {
    let path = kube(node, "chasi-bod backup run 2>/run/said; cat /run/said >&2");
    assert!(path.starts_with("/var/lib/chasi-bod/backups/") && path.ends_with(".age"), "{path}");
    assert_eq!(node.ssh(&format!("stat -c %a {path} /var/lib/chasi-bod/backups")).unwrap().lines().collect::<Vec<_>>(), ["600", "700"]);
    kube(node, "chasi-bod backup verify");
    // The registry inside the cluster goes with it; any other one is as good.
    kube(node, "chasi-bod config set backup.to=10.96.0.5:5000/site/backups");
    eventually(node, "chasi-bod config show | grep backup.to.*site/backups");
    let pushed = kube(node, "chasi-bod backup run --json 2>&1 | tee /run/pushed | grep '^pushed to ' | cut -d' ' -f3 || cat /run/pushed");
    assert!(pushed.starts_with("10.96.0.5:5000/site/backups:"), "{pushed}");
    kube(node, &format!("chasi-bod backup verify oci:{pushed}; chasi-bod restore oci:{pushed} --replace --dry-run; chasi-bod config set backup.to="));
    let text = node.ssh(&format!("base64 -w0 {path}")).unwrap();
    std::fs::write(to, &text).unwrap();
    println!("the backup has {} KiB: {}", text.len() * 3 / 4 / 1024, kube(node, "chasi-bod backup list").lines().last().unwrap_or_default());
    path
}

fn put(node: &Node, from: &Path) {
    // As an argument it would be too long.
    let script = format!("base64 -d >/run/backup.age <<'END'\n{}\nEND", std::fs::read_to_string(from).unwrap());
    for (n, part) in script.as_bytes().chunks(60_000).enumerate() {
        let text = String::from_utf8_lossy(part).replace('\'', "'\\''");
        node.ssh(&format!("printf %s '{text}' {} /run/script", if n == 0 { ">" } else { ">>" })).unwrap();
    }
    node.ssh("sh /run/script").unwrap();
}

const UIDS: &str = "kubectl get ns kube-system node/n1 -o jsonpath='{.items[*].metadata.uid}'; kubectl -n vcluster-apps get pvc data-apps-0 -o jsonpath=' {.metadata.uid}'";

/// What is written before, in the host's cluster and in the virtual one; what tells that it is the same cluster.
fn write(node: &Node) -> (String, String) {
    kube(node, "kubectl create configmap before --from-literal=word=host; kubectl create secret generic before --from-literal=word=secret");
    inside(node, "apps", "create configmap before --from-literal=word=inside");
    (kube(node, UIDS), inside(node, "apps", "get ns kube-system -o jsonpath='{.metadata.uid}'"))
}

fn is_the_same(node: &Node, (host, virtual_cluster): &(String, String)) {
    assert_eq!(&kube(node, UIDS), host);
    assert_eq!(kube(node, "kubectl get configmap before -o jsonpath='{.data.word}'"), "host");
    assert_eq!(kube(node, "kubectl get secret before -o jsonpath='{.data.word}' | base64 -d"), "secret");
    assert_eq!(&inside(node, "apps", "get ns kube-system -o jsonpath='{.metadata.uid}'"), virtual_cluster);
    assert_eq!(inside(node, "apps", "get configmap before -o jsonpath='{.data.word}'"), "inside");
    let revision = kube(node, "kubectl get --raw '/api/v1/namespaces?limit=1' | grep -o '\"resourceVersion\":\"[0-9]*' | head -n 1 | tr -dc 0-9");
    let revision: u64 = revision.parse().unwrap();
    assert!(revision > 1_000_000_000, "{revision}");
}

fn wait(node: &Node, vm: &mut Vm, line: &str, seconds: u64) -> String {
    vm.wait(line, seconds).unwrap_or_else(|error| panic!("{error}\n{}", account(node)))
}

/// A cluster with its virtual cluster, and a backup that was taken away before its machine is lost; what was in it.
fn lose(net: &Net, folder: &Path) -> ((String, String), PathBuf) {
    let (node, firmware) = machine(folder, net, 1, "founder");
    let mut vm = node.start(firmware).unwrap();
    println!("first: Ready and whole {:?} s", formed(&node, &mut vm));
    seed::seeded(&node, &mut vm, "done");
    phase(&node, "vc/apps", "RUNNING");
    let before = write(&node);
    let file = folder.join("backup");
    taken_away(&node, &file);
    kube(&node, "kubectl create configmap after --from-literal=word=lost");
    vm.kill();
    (before, file)
}

/// A machine with another disk and another address that has the file and waits.
fn fresh(net: &Net, folder: &Path, file: &Path) -> (Node, Firmware, Vm) {
    let (node, firmware) = machine(folder, net, 2, "member");
    let mut vm = node.start(firmware.clone()).unwrap();
    wait(&node, &mut vm, "cluster waiting", 300);
    put(&node, file);
    (node, firmware, vm)
}

/// The cluster is there, and its virtual cluster works.
fn is_back(node: &Node, vm: &mut Vm, begun: Instant, before: &(String, String)) {
    wait(node, vm, "cluster done", 600);
    println!("restored: node Ready and whole after {} s", begun.elapsed().as_secs());
    // What the objects say is from before, until somebody looks.
    let answers = within("apps", "get ns kube-system");
    kube(node, &format!("for i in $(seq 100); do ({answers}) && exit 0; sleep 2; done; exit 1"));
    phase(node, "vc/apps", "RUNNING");
    println!("restored: virtual cluster RUNNING after {} s", begun.elapsed().as_secs());
    is_the_same(node, before);
    assert!(node.ssh("test -e /var/lib/chasi-bod/restoring").is_err(), "what was staged is gone");
}

#[test]
fn uml_g2_a_lost_cluster_comes_back_on_a_fresh_machine_with_its_virtual_cluster() {
    let (one, two, net) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Net::new(2).unwrap());
    let (before, file) = lose(&net, one.path());
    let (node, _, mut vm) = fresh(&net, two.path(), &file);
    println!("{}", node.ssh("chasi-bod restore /run/backup.age --dry-run 2>&1").unwrap());
    let begun = Instant::now();
    println!("{}", node.ssh("chasi-bod restore /run/backup.age 2>&1").unwrap());
    is_back(&node, &mut vm, begun, &before);
    assert!(kube(&node, "kubectl get configmap after --ignore-not-found").is_empty());
    assert_eq!(kube(&node, "kubectl get nodes --no-headers | grep -c ' Ready '"), "1");
    node.shut_down(vm).unwrap();
}

/// Where the plug is pulled: when the agent begins and takes away what there was, and in phases of kubeadm.
const CUTS: [&str; 5] = ["restoring the backup", "certs: ", "etcd: ", "wait-control-plane: ", "addons: "];

#[test]
#[ignore = "soak: six boots, about six minutes"]
fn soak_uml_f1_g2_a_restore_that_is_cut_off_in_any_phase_begins_again() {
    let (one, two, net) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Net::new(2).unwrap());
    let (before, file) = lose(&net, one.path());
    let (node, firmware, mut vm) = fresh(&net, two.path(), &file);
    node.ssh("chasi-bod restore /run/backup.age 2>&1").unwrap();
    for cut in CUTS {
        let line = wait(&node, &mut vm, &format!("cluster running {cut}"), 600);
        vm.kill();
        println!("cut at: {line}");
        vm = node.start(firmware.clone()).unwrap();
    }
    is_back(&node, &mut vm, Instant::now(), &before);
    // And that it stays so.
    node.shut_down(vm).unwrap();
    let mut vm = node.start(firmware).unwrap();
    is_back(&node, &mut vm, Instant::now(), &before);
    node.shut_down(vm).unwrap();
}

#[test]
#[ignore = "soak: two control planes, about five minutes"]
fn soak_uml_g2_the_control_plane_that_is_left_goes_on_alone_by_one_command() {
    let (one, two, net) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Net::new(2).unwrap());
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (mut node, firmware) = Node::in_uml(one.path(), &raw, &net, 1).unwrap();
    let (mut other, its_firmware) = Node::in_uml(two.path(), &raw, &net, 2).unwrap();
    let shared = format!("controlPlane: {{replicas: 3}}\ncluster: {{secret: {SECRET}");
    node.configure(&format!("hostname: n1\n{shared}, role: founder}}\n")).unwrap();
    other.configure(&format!("hostname: n2\n{shared}, endpoint: 10.77.0.11}}\n")).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    phase(&node, "vc/apps", "RUNNING");
    let mut its_vm = other.start(its_firmware).unwrap();
    wait(&other, &mut its_vm, "cluster done", 600);
    eventually(&node, "chasi-bod nodes list | grep -q '2 of 2 voters answer'");
    eventually(&node, "kubectl wait nodes --all --for=condition=Ready --timeout=5s");
    let before = write(&node);
    its_vm.kill();
    let said = node.ssh("for i in $(seq 30); do chasi-bod nodes list 2>&1 | grep 'its majority is lost' && exit 0; sleep 2; done; exit 1");
    println!("{}", said.unwrap());
    let told = "for i in $(seq 90); do chasi-bod status | grep 'restore --this-node --replace' && exit 0; sleep 2; done; chasi-bod status; exit 1";
    println!("{}", node.ssh(told).unwrap());
    let begun = Instant::now();
    println!("{}", node.ssh("chasi-bod restore --this-node --replace 2>&1").unwrap());
    wait(&node, &mut vm, "cluster running addons: ", 600);
    is_back(&node, &mut vm, begun, &before);
    eventually(&node, "chasi-bod nodes list | grep -q '1 of 1 voters answers'");
    kube(&node, "chasi-bod nodes remove n2");
    node.shut_down(vm).unwrap();
}
