//! What a node tells its operators of itself: metrics, and a bundle for those who look for what is wrong.

use qemu_tests::node::Node;

use super::kube;

/// With `biz` RUNNING and its page READY.
pub fn metrics_tell_of_steps_and_objects(node: &Node) {
    let said = kube(node, "chasi-bod metrics");
    for line in [
        "chasi_bod_platform_leader 1",
        "chasi_bod_virtual_cluster_phase{name=\"biz\",phase=\"RUNNING\"} 1",
        "chasi_bod_component_phase{name=\"page\",phase=\"READY\"} 1",
    ] {
        assert!(said.lines().any(|known| known == line), "{line}\n{said}");
    }
    for start in [
        "chasi_bod_boot_ready_seconds ",
        "chasi_bod_step_seconds{step=\"cluster\"} ",
        "chasi_bod_virtual_cluster_last_phase_seconds{name=\"biz\",phase=\"CREATING\"} ",
    ] {
        let value = said.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_else(|| panic!("{start}\n{said}"));
        assert!(value.parse::<f64>().unwrap() > 0.0, "{start}{value}");
    }
    let ask = "curl -sf http://127.0.0.1:9955/metrics | grep -q chasi_bod_node_ready";
    assert!(node.ssh(ask).is_err(), "an endpoint that nobody asked for");
    kube(node, &format!("chasi-bod config set metrics.listen=127.0.0.1:9955; for i in $(seq 30); do {ask} && exit 0; sleep 1; done; exit 1"));
    kube(node, &format!("chasi-bod config set metrics.listen=; for i in $(seq 30); do {ask} || exit 0; sleep 1; done; exit 1"));
}

/// A virtual cluster that is gone is in no metric any more.
pub fn metrics_of_what_is_gone_go(node: &Node, name: &str) {
    kube(node, &format!("for i in $(seq 20); do chasi-bod metrics | grep -q 'name=\"{name}\"' || exit 0; sleep 1; done; exit 1"));
}

/// The bundle has what is looked for, and neither the cluster's keys nor what a Secret holds.
pub fn f6_a_bundle_has_no_secrets(node: &Node) {
    kube(node, "kubectl -n chasi-bod-system create secret generic canary --from-literal=word=canary-in-the-bundle");
    let bundle = kube(node, "cd /run && chasi-bod diag 2>/dev/null | tail -n 1");
    let listed = node.ssh(&format!("tar -tzf /run/{bundle}")).unwrap();
    for part in ["logs/kubelet", "network/nft", "platform/virtualclusters.chasi-bod.io.yaml", "cluster/releases"] {
        assert!(listed.contains(part), "{part}\n{listed}");
    }
    let keys = "grep -hv -e - /etc/kubernetes/pki/*.key | head -n 200 > /run/canaries; echo canary-in-the-bundle >> /run/canaries";
    let found = node.ssh(&format!("{keys}; tar -xzOf /run/{bundle} | grep -caFf /run/canaries; rm /run/canaries /run/{bundle}")).unwrap();
    assert_eq!(found, "0");
    kube(node, "kubectl -n chasi-bod-system delete secret canary");
}
