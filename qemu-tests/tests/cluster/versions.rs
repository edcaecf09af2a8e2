//! A virtual cluster of an older Kubernetes is taken to the node's own, with what is in it.

use qemu_tests::node::Node;
use qemu_tests::uml::Net;

use super::vclusters::{change, inside, phase};
use super::{build_more, formed, kube, seed};

const PROFILE: &str = "layers: [vcluster]
virtualVersions: [v1.35.4]
vclusters:
- {name: old, template: edge, version: v1.35.4}
";
const FAILURE: &str = "kubectl get vc old -o jsonpath='{.status.failure.reason} {.status.failure.message}'";

fn is_of(node: &Node, version: &str) {
    kube(node, &format!("kubectl wait vc/old --for=jsonpath='{{.status.version}}'={version} --timeout=600s"));
    phase(node, "vc/old", "RUNNING");
    let said = inside(node, "old", "version -o json");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["serverVersion"]["gitVersion"], version);
}

fn is_refused(node: &Node, version: &str, said: &str) {
    change(node, "vc/old", &format!(r#"{{"version":"{version}"}}"#));
    phase(node, "vc/old", "ERROR");
    assert_eq!(kube(node, FAILURE), format!("Refused spec.version: {said}"));
}

#[test]
#[ignore = "soak: builds another image with a second Kubernetes"]
fn soak_uml_a_virtual_cluster_goes_to_the_next_minor_version_with_what_is_in_it() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), &build_more(folder.path(), "versions", PROFILE), &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    is_of(&node, "v1.35.4");
    inside(&node, "old", "create configmap kept --from-literal=word=kept");
    is_refused(&node, "v1.34.0", "the image has no control plane of v1.34.0; it has v1.35.4, v1.36.3");
    let begun = std::time::Instant::now();
    change(&node, "vc/old", r#"{"version":"v1.36.3"}"#);
    is_of(&node, "v1.36.3");
    println!("of v1.36.3 after {} s", begun.elapsed().as_secs());
    let events = kube(&node, "kubectl get events --field-selector involvedObject.kind=VirtualCluster -o jsonpath='{.items[*].reason}'");
    assert!(events.contains("Updating"), "{events}");
    assert_eq!(inside(&node, "old", "get configmap kept -o jsonpath='{.data.word}'"), "kept");
    is_refused(&node, "v1.35.4", "v1.35.4 is older than v1.36.3, which has written the data; Kubernetes does not go back");
    change(&node, "vc/old", r#"{"version":"v1.36.3"}"#);
    is_of(&node, "v1.36.3");
    node.shut_down(vm).unwrap();
}
