//! The rules of virtual clusters and components: what they name is there, and no component waits for itself.

use super::diagnostic::{Problem, quote};
use super::tree::Node;
use super::valid::{at, circles, exactly_one, given, known, named};

/// Checks the rules of `vclusters` and `components`, as far as they need no layer.
pub(super) fn check(root: &Node, problems: &mut Vec<Problem>) {
    at(root, "vclusters.[]").into_iter().for_each(|cluster| store(cluster, problems));
    at(root, "components.[]").into_iter().for_each(|component| origin(component, problems));
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

/// A component has one source, and only a chart takes values.
fn origin(component: &Node, problems: &mut Vec<Problem>) {
    let Some(source) = component.get("source").filter(|source| !source.is_null()) else { return };
    exactly_one(source, &["chart", "manifests", "kustomize"], "`source`", problems);
    let Some(key) = given(source, &["manifests", "kustomize"]).first().copied().filter(|_| source.get("chart").is_none()) else { return };
    for (field, _) in component.entries().iter().filter(|(field, value)| ["values", "valuesFrom"].contains(&field.text.as_str()) && !value.is_null())
    {
        let problem = Problem::new(field.place, format!("only a chart takes {}: {} is installed as it is", quote(&field.text), quote(key)));
        problems.push(problem.hint(Some("make it a chart, or a kustomization of its own".into())));
    }
}
