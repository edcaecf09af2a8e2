//! The shipped `standalone` profile as clusters: most of it under User-Mode Linux, one proof in emulation.

mod agreement;
mod applications;
mod cis;
mod hardening;
mod images;
mod ingress;
mod join;
mod monitoring;
mod operations;
mod policies;
mod power_cuts;
mod proof;
mod registry;
mod replicas;
mod restore;
mod seed;
mod vclusters;
mod versions;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use qemu_tests::build::{build, chasi_bod, profiles};
use qemu_tests::exec;
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;
use qemu_tests::vm::Vm;

/// Seconds until a cluster has formed on a machine that does other work, too.
const FORMED: u64 = 900;
const ADMIN: &str = "export KUBECONFIG=/etc/kubernetes/admin.conf;";
/// An image of the seed whose program is kubectl, too: it asks for a name by the cluster's DNS and for a Service by its address.
const CLIENT: &str = "registry.k8s.io/kube-scheduler:v1.36.3";

/// What the cluster says of itself, for a person who reads a failure.
fn account(node: &Node) -> String {
    let commands = [
        "chasi-bod status",
        "export KUBECONFIG=/etc/kubernetes/admin.conf; kubectl get nodes -o wide; kubectl get pods -A -o wide; kubectl get events -A | tail -n 40",
        "crictl ps -a; free -m; systemctl --failed --no-pager",
        "journalctl -u chasi-bod-agent -u kubelet -u containerd -u chasi-bod-images --no-pager | tail -n 100",
    ];
    commands
        .map(|command| format!("$ {command}\n{}\n", node.ssh(&format!("{{ {command}; }} 2>&1 || true")).unwrap_or_else(|e| e.to_string())))
        .concat()
}

/// Waits until the agent calls the node ready; the seconds that the node counted until its Node object was Ready and until all was.
fn formed(node: &Node, vm: &mut Vm) -> (f64, f64) {
    if let Err(error) = vm.wait("cluster done", FORMED) {
        panic!("{error}\n{}", account(node));
    }
    let said = node.ssh("journalctl -b -u chasi-bod-agent -o cat --no-pager").unwrap();
    let at = |what: &str| said.lines().find(|line| line.contains(what)).and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let done = at("cluster done").unwrap();
    (at("node is up").unwrap_or(done), done)
}

fn kube(node: &Node, command: &str) -> String {
    node.ssh(&format!("{ADMIN} {command}")).unwrap_or_else(|error| panic!("{error}\n{}", account(node)))
}

/// A pod finds the API by its DNS name and reaches it by its Service address.
fn pods_have_names_and_services(node: &Node, pod: &str) {
    let authority = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    let client = format!("/usr/local/bin/kubectl --server=https://kubernetes.default.svc.cluster.local --certificate-authority={authority}");
    kube(
        node,
        &format!(
            "kubectl run {pod} --image={CLIENT} --restart=Never --command -- {client} --token=$(kubectl create token default) get --raw /readyz"
        ),
    );
    kube(node, &format!("kubectl wait pod/{pod} --for=jsonpath='{{.status.phase}}'=Succeeded --timeout=120s"));
    assert_eq!(kube(node, &format!("kubectl logs {pod}")), "ok");
}

/// The raw image of the profile `cluster` with more to it, locked as `standalone` is.
fn build_more(folder: &Path, name: &str, more: &str) -> PathBuf {
    let profile = folder.join(format!("{name}.yaml"));
    std::fs::write(&profile, format!("extends: {}\nname: {name}\n{more}", profiles().join("cluster.yaml").display())).unwrap();
    std::fs::copy(profiles().join("standalone.lock"), profile.with_extension("lock")).unwrap();
    build(folder, name, "raw")
}

/// A program of the shipped image in a folder of this machine, under the name that it goes by.
fn program(folder: &Path, name: &str, path: &str) -> PathBuf {
    let program = folder.join(name);
    let qcow2 = artifact(&artifacts("standalone").unwrap(), "qcow2").unwrap();
    let bytes = exec::run(chasi_bod(), &["inspect", qcow2.to_str().unwrap(), "--cat", path]).unwrap().stdout;
    std::fs::write(&program, bytes).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// `kubectl get nodes` from outside, as an operator's workstation asks: with the image's program and the kubeconfig that the node gives out.
fn an_operator_sees_the_node(node: &Node, server: &str) {
    let (program, config) = (program(&node.folder, "kubectl", "/usr/lib/chasi-bod/bin/kube"), node.folder.join("kubeconfig"));
    std::fs::write(&config, node.ssh(&format!("chasi-bod kubeconfig --server {server}")).unwrap()).unwrap();
    let listed = node.beside(program.to_str().unwrap(), &["--kubeconfig", config.to_str().unwrap(), "get", "nodes", "--no-headers"]).unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains(" Ready ") && listed.contains("v1.36.3"), "{listed}");
}

/// Without credentials only health and the object that joining nodes read.
fn strangers_see_nothing_else(node: &Node) {
    let ask = |path: &str| node.ssh(&format!("curl -sk -o /dev/null -w '%{{http_code}}' https://127.0.0.1:6443{path}")).unwrap();
    for path in ["/livez", "/readyz", "/healthz", "/api/v1/namespaces/kube-public/configmaps/cluster-info"] {
        assert_eq!(ask(path), "200", "{path}");
    }
    for path in ["/api", "/version", "/api/v1/nodes", "/api/v1/namespaces/kube-public/configmaps", "/metrics"] {
        assert_eq!(ask(path), "401", "{path}");
    }
    assert_eq!(node.ssh("curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:10250/pods").unwrap(), "401");
}

fn f6_secrets_lie_enciphered(node: &Node) {
    kube(node, "kubectl create secret generic canary --from-literal=word=canary-in-the-coal-mine");
    kube(node, "kubectl create configmap canary --from-literal=word=sparrow-on-the-roof");
    node.ssh("sync").unwrap();
    let found = |word: &str| node.ssh(&format!("grep -rlaF {word} /var/lib/etcd /var/log /run/log | head -n 1")).unwrap();
    assert!(found("sparrow-on-the-roof").contains("/var/lib/etcd"), "a plain object is not where this test looks for it");
    assert_eq!(found("canary-in-the-coal-mine"), "");
    let modes = node
        .ssh("stat -c '%a %n' /etc/kubernetes/*.conf /etc/kubernetes/chasi-bod/* /etc/kubernetes/pki/*.key /etc/kubernetes/pki/etcd/*.key")
        .unwrap();
    assert!(modes.lines().all(|line| line.starts_with("600 ")), "{modes}");
}

/// Nothing was imported or unpacked: the images of the root are mounted from it.
fn images_are_mounted_from_the_root(node: &Node) {
    let kib: u64 = node.ssh("du -sk /var/lib/containerd /var/lib/chasi-bod/s | awk '{sum += $1} END {print sum}'").unwrap().parse().unwrap();
    assert!(kib < 8 << 10, "{kib} KiB of container images lie in the state");
    let mounts = node.ssh("grep -c 'lowerdir=.*/usr/lib/chasi-bod/l/' /proc/mounts").unwrap();
    assert!(mounts.parse::<u32>().unwrap() >= 10, "{mounts} containers run from the root");
}

#[test]
fn uml_a_machine_that_boots_is_a_ready_cluster_and_a_reboot_heals_it() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    let mut vm = node.start(firmware.clone()).unwrap();
    let (ready, all) = formed(&node, &mut vm);
    println!("UML first boot: node Ready {ready} s, CoreDNS and kube-proxy {all} s");
    println!("memory in use: {}", node.ssh("awk '/MemTotal/ {t=$2} /MemAvailable/ {print int((t-$2)/1024) \" MiB\"}' /proc/meminfo").unwrap());
    pods_have_names_and_services(&node, "first");
    images_are_mounted_from_the_root(&node);
    images::g8_collected_images_stay_and_pods_come_back(&node);
    images::f1_running_pods_outlive_the_image_service_and_containerd(&node);
    strangers_see_nothing_else(&node);
    f6_secrets_lie_enciphered(&node);
    cis::g9_every_check_of_the_table_passes_or_says_why_not(&node);
    hardening::first_boot(&node);
    seed::seeded(&node, &mut vm, "done");
    seed::helm_lists_the_releases(&node);
    seed::a_volume_is_made_and_written(&node, "first");
    seed::the_service_answers_by_its_name(&node, "first");
    seed::kubectl_top_works(&node);
    let begun = Instant::now();
    vclusters::the_shipped_one_runs(&node);
    vclusters::its_registry_serves(&node);
    println!("the virtual cluster and its chart were waited for {} s", begun.elapsed().as_secs());
    registry::an_image_that_was_pushed_runs_under_any_name(&node);
    an_operator_sees_the_node(&node, "10.77.0.11");
    node.shut_down(vm).unwrap();

    let mut vm = node.start(firmware).unwrap();
    let (ready, all) = formed(&node, &mut vm);
    println!("UML later boot: node Ready {ready} s, CoreDNS and kube-proxy {all} s");
    pods_have_names_and_services(&node, "second");
    seed::seeded(&node, &mut vm, "unchanged");
    seed::helm_lists_the_releases(&node);
    seed::a_volume_is_made_and_written(&node, "second");
    seed::the_service_answers_by_its_name(&node, "second");
    seed::kubectl_top_works(&node);
    images_are_mounted_from_the_root(&node);
    registry::what_was_pushed_outlives_a_reboot(&node);
    vclusters::the_shipped_one_runs(&node);
    vclusters::its_registry_serves(&node);
    hardening::last_boot(&node, &mut vm);
    images::nothing_was_reconciled(&node);
    node.shut_down(vm).unwrap();
}
