//! A virtual cluster with three replicas of its control plane and its store goes on without one of each.

use std::time::Instant;

use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;

use super::vclusters::{inside, nothing_is_left, phase, within};
use super::{formed, kube, seed};

/// What asks for them; the quota of the template would do for one.
const WANTED: &str = "apiVersion: chasi-bod.io/v1alpha1
kind: VirtualCluster
metadata: {name: three}
spec: {store: etcd, replicas: 3}
";

#[test]
#[ignore = "soak: three control planes on one node"]
fn soak_uml_f1_three_replicas_go_on_without_one() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (mut node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    node.memory = 6144;
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    phase(&node, "comp/registry", "READY");
    kube(&node, "chasi-bod vcluster suspend apps --wait");
    kube(&node, &format!("kubectl apply -f - <<'END'\n{WANTED}END"));
    println!("three replicas RUNNING after {} s", phase(&node, "vc/three", "RUNNING"));
    let all = "for set in three three-etcd; do kubectl -n vcluster-three rollout status statefulset/$set --timeout=600s; done";
    kube(&node, all);
    assert_eq!(kube(&node, "kubectl get vc three -o jsonpath='{.status.replicas}'"), "3");
    inside(&node, "three", "create configmap before --from-literal=word=before");
    // On a node that takes no pods they stay away.
    kube(&node, "kubectl cordon $(hostname)");
    kube(&node, "kubectl -n vcluster-three delete pod three-0 three-etcd-0 --force --grace-period=0 2>/dev/null");
    let begun = Instant::now();
    let write = "create configmap meanwhile --from-literal=word=meanwhile";
    while let Err(error) = node.ssh(&within("three", write)) {
        assert!(begun.elapsed().as_secs() < 120, "nothing can be written without one of three: {error}\n{}", super::account(&node));
    }
    println!("written {} s after one of each was gone", begun.elapsed().as_secs());
    assert_eq!(kube(&node, "kubectl -n vcluster-three get pods three-0 three-etcd-0 -o jsonpath='{.items[*].status.phase}'"), "Pending Pending");
    assert_eq!(inside(&node, "three", "get configmap before -o jsonpath='{.data.word}'"), "before");
    kube(&node, "kubectl uncordon $(hostname)");
    kube(&node, all);
    phase(&node, "vc/three", "RUNNING");
    assert_eq!(inside(&node, "three", "get configmap meanwhile -o jsonpath='{.data.word}'"), "meanwhile");
    // Control planes go and come; the store keeps its members, as an etcd with a longer list would begin anew.
    for replicas in ["1", "3"] {
        kube(&node, &format!("chasi-bod vcluster scale three --replicas {replicas} --wait"));
        let ready = |set: &str, n: &str| {
            kube(&node, &format!("kubectl -n vcluster-three wait statefulset/{set} --for=jsonpath='{{.status.readyReplicas}}'={n} --timeout=300s"));
        };
        ready("three", replicas);
        ready("three-etcd", "3");
        assert_eq!(inside(&node, "three", "get configmap meanwhile -o jsonpath='{.data.word}'"), "meanwhile");
    }
    kube(&node, "chasi-bod vcluster delete three --yes --wait");
    nothing_is_left(&node, "three");
    node.shut_down(vm).unwrap();
}
