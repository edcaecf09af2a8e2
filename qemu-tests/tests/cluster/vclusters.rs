//! Virtual clusters on a real node: what a VirtualCluster makes of itself, and that nothing of it is left.

use std::path::{Path, PathBuf};

use qemu_tests::node::Node;
use qemu_tests::uml::Net;
use qemu_tests::vm::Vm;

use super::{account, build, formed, kube, seed};

/// What the object says of its last failure.
const FAILURE: &str = "kubectl get vc biz -o jsonpath='{.status.failure.reason} {.status.failure.message}' | sed 's/ *$//'";

/// `standalone` with the layer of virtual clusters.
fn image(folder: &Path) -> PathBuf {
    let shipped = Path::new("../profiles").canonicalize().unwrap();
    let profile = folder.join("vclusters.yaml");
    let text = format!("extends: {}\nname: vclusters\nlayers: [vcluster]\n", shipped.join("standalone.yaml").display());
    std::fs::write(&profile, text).unwrap();
    std::fs::copy(shipped.join("standalone.lock"), profile.with_extension("lock")).unwrap();
    build(folder, "vclusters")
}

/// Waits for a phase; the seconds that it took.
fn phase(node: &Node, name: &str, phase: &str) -> u64 {
    let begun = std::time::Instant::now();
    let wait = format!("kubectl wait vc/{name} --for=jsonpath='{{.status.phase}}'={phase} --timeout=600s");
    if let Err(error) = node.ssh(&format!("{} {wait}", super::ADMIN)) {
        let said = kube(
            node,
            &format!(
                "kubectl get vc {name} -o yaml; kubectl -n vcluster-{name} get all,secret,pvc,events; kubectl -n vcluster-{name} logs {name}-0 --all-containers --tail=60 || true"
            ),
        );
        panic!("{error}\n{said}\n{}", account(node));
    }
    begun.elapsed().as_secs()
}

/// Runs kubectl in the virtual cluster.
fn inside(node: &Node, name: &str, command: &str) -> String {
    let credentials = format!(
        "kubectl -n vcluster-{name} get secret vc-{name} -o jsonpath='{{.data.config}}' | base64 -d > /run/{name}.conf; \
         server=https://$(kubectl -n vcluster-{name} get service {name} -o jsonpath='{{.spec.clusterIP}}')"
    );
    kube(node, &format!("{credentials}; KUBECONFIG=/run/{name}.conf kubectl --server=$server {command}"))
}

fn life(node: &Node, vm: &mut Vm) {
    seed::seeded(node, vm, "done");
    let available = || node.ssh("awk '/MemAvailable/ {print int($2/1024)}' /proc/meminfo").unwrap().parse::<i64>().unwrap();
    let before = available();
    kube(
        node,
        "printf 'apiVersion: chasi-bod.io/v1alpha1\\nkind: VirtualCluster\\nmetadata: {name: biz}\\nspec: {template: cpy}\\n' | kubectl apply -f -",
    );
    phase(node, "biz", "ERROR");
    assert!(kube(node, FAILURE).contains("Refused spec.template: there is no VirtualClusterTemplate `cpy`"));
    kube(node, "kubectl patch vc biz --type merge -p '{\"spec\":{\"template\":\"general\"}}'");
    println!("virtual cluster RUNNING after {} s, {} MiB less available", phase(node, "biz", "RUNNING"), before - available());
    assert_eq!(kube(node, FAILURE), "");
    inside(node, "biz", "create deployment web --image=registry.k8s.io/pause:3.10.2");
    inside(node, "biz", "rollout status deployment/web --timeout=300s");
    let on_host = kube(node, "kubectl -n vcluster-biz get pods --no-headers | grep -c 'web-.*-x-default-x-biz'");
    assert_eq!((on_host.as_str(), kube(node, "kubectl get deployments --no-headers | grep -c ' web ' || true").as_str()), ("1", "0"));
    assert!(kube(node, "helm list -n vcluster-biz --no-headers").contains("deployed"));
    kube(node, "kubectl patch vc biz --type merge -p '{\"spec\":{\"suspended\":true}}'");
    println!("SUSPENDED after {} s", phase(node, "biz", "SUSPENDED"));
    assert_eq!(kube(node, "kubectl -n vcluster-biz get pods --no-headers 2>/dev/null | wc -l"), "0");
    kube(node, "kubectl patch vc biz --type merge -p '{\"spec\":{\"suspended\":false}}'");
    println!("RUNNING again after {} s", phase(node, "biz", "RUNNING"));
    inside(node, "biz", "rollout status deployment/web --timeout=300s");
    kube(node, "kubectl delete vc biz --timeout=300s");
    let left = "kubectl get namespaces,clusterroles,clusterrolebindings,pv -o name | grep biz || true; helm list -A --no-headers | grep biz || true";
    assert_eq!(kube(node, left), "");
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_uml_a_virtual_cluster_is_created_used_suspended_resumed_and_deleted() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), &image(folder.path()), &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    life(&node, &mut vm);
    node.shut_down(vm).unwrap();
}
