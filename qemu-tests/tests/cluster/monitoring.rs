//! The layers `monitoring` and `logs` on a real node, offline: what Prometheus is told by node, agent, objects, kubelet and API server, what its rules
//! say, and what pods have written.

use qemu_tests::node::Node;
use qemu_tests::uml::Net;

use super::{ADMIN, account, build_more, formed, kube, seed};

const PROFILE: &str = "layers: [vcluster, monitoring, logs]
components:
- {name: node-exporter, source: {chart: {name: node-exporter}}, target: {namespace: monitoring}}
- {name: kube-state-metrics, source: {chart: {name: kube-state-metrics}}, target: {namespace: monitoring}}
- name: prometheus
  source: {chart: {name: prometheus}}
  target: {namespace: monitoring}
  values: {interval: 5s, storage: {size: 1Gi}}
- name: logs
  source: {chart: {name: logs}}
  target: {namespace: logs}
  values: {storage: {size: 1Gi}, fromNamespaces: [monitoring], exclude: 'kubernetes.pod_namespace:=kube-system'}
";

/// Answers that are as they should be, each as a query that is empty until then.
const ANSWERS: [&str; 9] = [
    "count(up == 1) == 8",
    "node_memory_MemTotal_bytes > 1e8",
    "node_filesystem_avail_bytes{mountpoint=\"/var\"} > 0",
    "node_network_receive_bytes_total > 0",
    "chasi_bod_node_ready == 1",
    "chasi_bod_step_state{step=\"cluster\",state=\"done\"} == 1",
    "sum(chasi_bod_component_phase{phase=\"READY\"}) == 4",
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
        panic!(
            "{error}\n{}\n{}",
            kube(
                node,
                "kubectl get comp -o yaml; kubectl get all,pvc,events -A -o wide; kubectl -n logs logs ds/vlagent; kubectl -n logs logs deploy/victoria-logs"
            ),
            account(node)
        );
    }
}

/// Logs of a pod that was there before, and of one that ends at once; whoever may not ask gets nothing.
fn what_pods_write_is_found(node: &Node) {
    let find = |query: &str, what: &str| {
        let path = format!("/api/v1/namespaces/logs/services/victoria-logs:web/proxy/select/logsql/query?query={}", escaped(query));
        let looks = format!("for i in $(seq 60); do kubectl get --raw '{path}' | grep -m1 '{what}' && exit 0; sleep 2; done");
        let found = kube(node, &format!("{looks}; kubectl -n logs logs ds/vlagent"));
        assert!(found.lines().count() == 1 && found.contains(what), "{query}: {found}");
    };
    find("kubernetes.pod_namespace:=monitoring kubernetes.container_name:=prometheus", "Server is ready");
    let run = "kubectl run says --image=chasi-bod.internal/busybox:1.37 --restart=Never --command -- sh -c";
    kube(node, &format!("{run} 'echo a-word-from-a-pod; wget -T 5 -qO- http://victoria-logs.logs.svc:9428/health || echo nobody-answers'"));
    find("\"a-word-from-a-pod\"", "\"kubernetes.pod_name\":\"says\"");
    find("kubernetes.pod_name:=says nobody", "nobody-answers");
    // What runs in kube-system was not wanted.
    let none = kube(
        node,
        "kubectl get --raw '/api/v1/namespaces/logs/services/victoria-logs:web/proxy/select/logsql/query?query=kubernetes.pod_namespace:=kube-system'",
    );
    assert_eq!(none, "");
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_uml_prometheus_knows_node_agent_objects_and_cluster_without_network() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), &build_more(folder.path(), "monitoring", PROFILE), &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    for component in ["node-exporter", "kube-state-metrics", "prometheus", "logs"] {
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
    let page = kube(&node, "kubectl get --raw /api/v1/namespaces/monitoring/services/prometheus:web/proxy/consoles/index.html");
    assert!(page.contains("<td>prometheus</td><td>READY</td>") && page.contains("<td>monitoring 0.1.0</td>"), "{page}");
    what_pods_write_is_found(&node);
    println!("memory of all: {}", kube(&node, "kubectl top pods -n monitoring --no-headers; kubectl top pods -n logs --no-headers || true"));
    node.shut_down(vm).unwrap();
}
