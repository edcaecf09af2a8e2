//! The images of the root on the running node: they are pinned, survive kills and are back after a reboot.

use qemu_tests::node::Node;

use super::kube;

fn count(node: &Node) -> usize {
    node.ssh("crictl images --quiet | sort -u | wc -l").unwrap().parse().unwrap()
}

/// Pods of the system as the API tells them, without those that tests start.
fn restarts(node: &Node) -> String {
    kube(
        node,
        "kubectl -n kube-system get pods -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}'",
    )
}

/// Garbage collection, forced, leaves every image; what is deleted comes back without a network.
pub fn g8_collected_images_stay_and_pods_come_back(node: &Node) {
    let before = count(node);
    node.ssh("crictl rmi --prune").unwrap();
    assert_eq!(count(node), before, "an image of the root was collected");
    assert_eq!(node.ssh("crictl images --output json | grep -c '\"pinned\": *false' || true").unwrap(), "0");
    kube(node, "kubectl -n kube-system delete pod -l k8s-app=kube-dns --wait=true");
    // The one in its place may not be there yet, and then there is nothing to wait for.
    let wait = "kubectl -n kube-system wait pod -l k8s-app=kube-dns --for=condition=Ready --timeout=10s";
    kube(node, &format!("for i in $(seq 60); do {wait} 2>/dev/null && exit 0; sleep 1; done; exit 1"));
}

/// The images service and containerd die at once: no container notices, and new ones start.
pub fn f1_running_pods_outlive_the_image_service_and_containerd(node: &Node) {
    let (before, containers) = (restarts(node), node.ssh("crictl ps --quiet | sort").unwrap());
    node.ssh("systemctl kill --kill-whom=main --signal=KILL chasi-bod-images.service containerd.service").unwrap();
    node.ssh("for i in $(seq 60); do crictl version >/dev/null 2>&1 && exit 0; sleep 1; done; exit 1").unwrap();
    assert_eq!(node.ssh("crictl ps --quiet | sort").unwrap(), containers);
    assert_eq!(restarts(node), before);
}

/// What was mounted from the root stays small in the state, and the reconciling unit had nothing to do.
pub fn nothing_was_reconciled(node: &Node) {
    assert_eq!(node.ssh("systemctl show -P ConditionResult chasi-bod-reconcile.service").unwrap(), "no");
    assert_eq!(node.ssh("systemctl show -P Result chasi-bod-images.service").unwrap(), "success");
}
