//! What the image brings as charts is there: listed by helm, measured by metrics-server, stored by the default class, answered by a Service.

use qemu_tests::node::Node;
use qemu_tests::vm::Vm;

use super::{account, kube};

/// Seconds that the releases may take after the cluster is up, on a machine that does other work, too.
const SEEDED: u64 = 900;
/// A small shell, from the node's own busybox.
const SHELL: &str = "chasi-bod.internal/busybox:1.37";

/// Waits until the agent says of all releases that they are `done`, or `unchanged`.
pub fn seeded(node: &Node, vm: &mut Vm, how: &str) {
    if let Err(error) = vm.wait(&format!("seed {how}"), SEEDED) {
        panic!("{error}\n{}", account(node));
    }
}

/// Releases as `helm list` tells them, each of revision 1: nothing was installed twice.
pub fn helm_lists_the_releases(node: &Node) {
    let listed = kube(node, "helm list -A --no-headers --kubeconfig /etc/kubernetes/admin.conf");
    for (name, namespace) in
        [("metrics-server", "metrics-server"), ("local-path", "local-path-storage"), ("registry", "registry"), ("welcome", "default")]
    {
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap_or_else(|| panic!("{name} is not in\n{listed}"));
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(words[1..3] == [namespace, "1"] && line.contains("deployed"), "{line}");
    }
}

/// metrics-server asks the kubelet, whose serving certificate it checks.
pub fn kubectl_top_works(node: &Node) {
    let top = "for i in $(seq 60); do kubectl top nodes --no-headers 2>&1 | grep -q % && break; sleep 2; done; kubectl top nodes --no-headers";
    let shown = kube(node, top);
    assert!(shown.contains('%'), "{shown}");
}

/// A claim of the default class binds when a pod wants it; what the pod writes lies on the node's state. Another boot reads it.
pub fn a_volume_is_made_and_written(node: &Node, boot: &str) {
    let manifest = format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: notes}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: writer-{boot}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: sh\n    image: {SHELL}\n    \
         command: [sh, -c, 'echo {boot} >> /notes/all; cat /notes/all']\n    volumeMounts: [{{name: notes, mountPath: /notes}}]\n  \
         volumes: [{{name: notes, persistentVolumeClaim: {{claimName: notes}}}}]\n"
    );
    kube(node, &format!("kubectl apply -f - <<'END'\n{manifest}END"));
    kube(node, &format!("kubectl wait pod/writer-{boot} --for=jsonpath='{{.status.phase}}'=Succeeded --timeout=240s"));
    let read = kube(node, &format!("kubectl logs writer-{boot}"));
    let on_node = node.ssh("cat /var/lib/chasi-bod/volumes/*/all").unwrap();
    assert!(read == on_node && read.lines().last() == Some(boot), "{read} {on_node}");
    if boot != "first" {
        assert!(read.starts_with("first\n"), "the volume is another one: {read}");
    }
}

/// The profile's own chart answers a pod by the name of its Service; soon after a reboot the Service may not know yet that its pod is back.
pub fn the_service_answers_by_its_name(node: &Node, boot: &str) {
    let ask = "n=60; until wget -qO- http://welcome.default.svc.cluster.local/; do n=$((n-1)); [ $n -gt 0 ] || exit 1; sleep 2; done";
    kube(node, &format!("kubectl run asks-{boot} --image={SHELL} --restart=Never --command -- sh -c '{ask}'"));
    kube(node, &format!("kubectl wait pod/asks-{boot} --for=jsonpath='{{.status.phase}}'=Succeeded --timeout=240s"));
    let page = kube(node, &format!("kubectl logs asks-{boot}"));
    assert!(page.contains("This cluster is ready") && page.contains("v1.36.3"), "{page}");
}
