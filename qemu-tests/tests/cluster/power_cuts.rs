//! F1 for clusters: the plug is pulled while the cluster is being founded; the next boot makes it all the same.

use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;

use super::{FORMED, formed, kube, pods_have_names_and_services};

/// What the agent says when kubeadm begins with each phase.
const PHASES: [&str; 9] =
    ["certs", "kubeconfig", "etcd", "control-plane", "kubelet-start", "wait-control-plane", "upload-config", "bootstrap-token", "addons"];

fn cut(phase: &str) {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    let mut vm = node.start(firmware.clone()).unwrap();
    let line = vm.wait(&format!("cluster running {phase}: "), FORMED).unwrap();
    vm.kill();
    println!("cut at: {line}");
    let mut vm = node.start(firmware).unwrap();
    vm.wait("undoing a founding that was cut off", FORMED).unwrap();
    formed(&node, &mut vm);
    assert_eq!(kube(&node, "kubectl get nodes --no-headers | wc -l"), "1");
    pods_have_names_and_services(&node, "after");
    node.shut_down(vm).unwrap();
}

/// The control plane runs and half of what kubeadm writes about it is in etcd.
#[test]
fn uml_f1_a_power_cut_while_the_control_plane_runs_already() {
    cut("upload-config");
}

#[test]
#[ignore = "soak: a cluster for each phase"]
fn soak_uml_f1_a_power_cut_in_each_phase_of_kubeadm() {
    PHASES.iter().for_each(|phase| cut(phase));
}
