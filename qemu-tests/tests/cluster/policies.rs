//! NetworkPolicies are enforced by the built-in pod network: between pods on one bridge, between nodes, and towards the node itself.

use qemu_tests::node::Node;

use super::join::{address, eventually, start_pod};
use super::kube;

const POLICIES: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "to-one"}, "spec": {
        "podSelector": {"matchLabels": {"run": "one"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"run": "two"}}}]}]}},
    {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "from-two"}, "spec": {
        "podSelector": {"matchLabels": {"run": "two"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"run": "one"}}}], "ports": [{"port": 8001}]}]}}]}"#;

/// With pod `one` on the founder and pod `two` on the member, both answering on port 8001, and a third beside `one`.
pub fn policies_hold_on_one_bridge_and_between_nodes(founder: &Node) {
    start_pod(founder, "near", "founder");
    kube(founder, "kubectl wait pod/near --for=condition=Ready --timeout=180s");
    let [one, two, near] = ["one", "two", "near"].map(|pod| address(founder, pod));
    let api = kube(founder, "kubectl get service kubernetes -o jsonpath='{.spec.clusterIP}'");
    let ask = |pod: &str, what: &str| format!("kubectl exec {pod} -- /usr/local/bin/kubectl --request-timeout=5s get --raw {what}");
    // What a pod answers by itself: what the API says, one that may not reach it passes on only while an old connection lives.
    let web = |address: &str| format!("/static/ --server=http://{address}:8001");
    let open = |pod: &str, what: &str| _ = eventually(founder, &ask(pod, what));
    let shut = |pod: &str, what: &str| _ = eventually(founder, &format!("! {}", ask(pod, what)));
    open("near", &web(&one));
    kube(founder, &format!("kubectl apply -f - <<'END'\n{POLICIES}\nEND"));
    shut("near", &web(&one));
    shut("two", &web(&near));
    shut("two", &format!("/version --server=https://{api} --insecure-skip-tls-verify"));
    open("two", &web(&one));
    open("near", &web(&two));
    founder.ssh(&format!("curl -s --max-time 20 http://{one}:8001/static/")).unwrap();
    no_pod_goes_around_by_ipv6(founder);
    kube(founder, "kubectl delete networkpolicy to-one from-two");
    open("near", &web(&one));
    kube(founder, "kubectl delete pod near");
}

/// Every link gives addresses that no policy speaks of.
fn no_pod_goes_around_by_ipv6(node: &Node) {
    let address = node.ssh("ip -6 -o addr show dev cni0 scope link | awk '{sub(\"/.*\", \"\", $4); print $4}'").unwrap();
    assert!(address.starts_with("fe80"), "{address}");
    let asked = node.ssh(&format!("ip netns exec $(ls /run/netns | head -n 1) ping -6 -c 1 -W 2 {address}%eth0"));
    assert!(asked.is_err(), "the node answers a pod by IPv6");
}
