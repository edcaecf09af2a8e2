//! The rules of virtual clusters and components: what they name is there, and no component waits for itself.

use super::diagnostic::{Problem, quote};
use super::tree::Node;
use super::valid::{at, circles, given, known, named};

/// Checks the rules of `vclusters` and `components`, as far as they need no layer.
pub(super) fn check(root: &Node, problems: &mut Vec<Problem>) {
    at(root, "vclusters.[]").into_iter().for_each(|cluster| store(cluster, problems));
    at(root, "components.[].source").into_iter().for_each(|source| origin(source, problems));
    let (clusters, components) = (named(&at(root, "vclusters.[]")), named(&at(root, "components.[]")));
    known(at(root, "components.[].target.virtualCluster"), &clusters, "virtual cluster", problems);
    known(at(root, "components.[].dependsOn.[]"), &components, "component", problems);
    circles(&components, |component| at(component, "dependsOn.[]"), "components wait for each other in a circle", problems);
}

/// The API server says the same of the object; a template may bring either of the two.
fn store(cluster: &Node, problems: &mut Vec<Problem>) {
    let Some(store) = cluster.get("store").filter(|store| store.text() == Some("sqlite")) else { return };
    if at(cluster, "replicas").iter().any(|node| node.text() != Some("1")) {
        problems.push(Problem::new(store.place, "more than one replica needs `store: etcd`: sqlite has one writer"));
    }
}

/// What a seed cannot hold yet is refused, so that nobody waits for it in vain.
fn origin(source: &Node, problems: &mut Vec<Problem>) {
    let later = ["kustomize", "manifests"];
    for (key, _) in source.entries().iter().filter(|(key, value)| later.contains(&key.text.as_str()) && !value.is_null()) {
        let problem = Problem::new(key.place, format!("a component cannot be made of {}: only charts yet", quote(&key.text)));
        problems.push(problem.hint(Some("put them into the `templates` folder of a chart".into())));
    }
    if given(source, &["chart", "kustomize", "manifests"]).is_empty() {
        problems.push(Problem::new(source.place, "`source` lacks the key `chart`"));
    }
}
