//! The layer `monitoring` on a real node, offline: what Prometheus is told by node, agent, objects, kubelet and API server, and what its rules say.

use qemu_tests::node::Node;
use qemu_tests::uml::Net;

use super::{ADMIN, account, build_more, formed, kube, seed};

const PROFILE: &str = "layers: [vcluster, monitoring]
components:
- {name: node-exporter, source: {chart: {name: node-exporter}}, target: {namespace: monitoring}}
- {name: kube-state-metrics, source: {chart: {name: kube-state-metrics}}, target: {namespace: monitoring}}
- name: prometheus
  source: {chart: {name: prometheus}}
  target: {namespace: monitoring}
  values: {interval: 5s, storage: {size: 1Gi}}
";

/// Answers that are as they should be, each as a query that is empty until then.
const ANSWERS: [&str; 9] = [
    "count(up == 1) == 6",
    "node_memory_MemTotal_bytes > 1e8",
    "node_filesystem_avail_bytes{mountpoint=\"/var\"} > 0",
    "node_network_receive_bytes_total > 0",
    "chasi_bod_node_ready == 1",
    "chasi_bod_step_state{step=\"cluster\",state=\"done\"} == 1",
    "sum(chasi_bod_component_phase{phase=\"READY\"}) == 3",
    "kube_node_status_condition{condition=\"Ready\",status=\"true\",node=~\"node-.+\"} == 1",
    "sum(container_memory_working_set_bytes{namespace=\"monitoring\",container=\"prometheus\"}) > 0",
];

/// Asks Prometheus through the API server.
fn ask(node: &Node, path: &str) -> String {
    kube(node, &format!("kubectl get --raw '/api/v1/namespaces/monitoring/services/prometheus:web/proxy/api/v1/{path}'"))
}

fn escaped(query: &str) -> String {
    query.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn ready(node: &Node, component: &str) {
    let wait = format!("kubectl wait component/{component} --for=jsonpath='{{.status.phase}}'=READY --timeout=900s");
    if let Err(error) = node.ssh(&format!("{ADMIN} {wait}")) {
        panic!("{error}\n{}\n{}", kube(node, "kubectl get comp -o yaml; kubectl -n monitoring get all,pvc,events"), account(node));
    }
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_uml_prometheus_knows_node_agent_objects_and_cluster_without_network() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), &build_more(folder.path(), "monitoring", PROFILE), &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    for component in ["node-exporter", "kube-state-metrics", "prometheus"] {
        ready(&node, component);
    }
    for query in ANSWERS {
        let answered = |()| {
            std::thread::sleep(std::time::Duration::from_secs(2));
            ask(&node, &format!("query?query={}", escaped(query))).contains("\"value\"")
        };
        assert!(std::iter::repeat_n((), 60).any(answered), "{query}: {}", ask(&node, "targets?state=active"));
    }
    let rules = ask(&node, "rules");
    assert!(rules.contains("VirtualClusterFailed") && !rules.contains("\"health\":\"err\""), "{rules}");
    let firing = ask(&node, &format!("query?query={}", escaped("ALERTS{alertstate=\"firing\"}")));
    assert!(firing.contains("\"result\":[]"), "{firing}");
    println!("memory of the three: {}", kube(&node, "kubectl top pods -n monitoring --no-headers || true"));
    node.shut_down(vm).unwrap();
}
