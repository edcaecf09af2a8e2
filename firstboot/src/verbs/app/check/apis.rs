//! Whether the API server serves the versions that a chart's objects are of
//! (<https://kubernetes.io/docs/reference/using-api/deprecation-guide/>).

use std::collections::BTreeSet;

use serde_json::Value;

use super::Ground;
use super::objects::{kind, name};
use super::report::Finding;

/// The Kubernetes version that the tables here are of.
pub const KUBERNETES: &str = "v1.36.0";

/// Versions that Kubernetes 1.36 serves by itself, of its own groups.
const SERVED: [&str; 23] = [
    "v1",
    "admissionregistration.k8s.io/v1",
    "apiextensions.k8s.io/v1",
    "apiregistration.k8s.io/v1",
    "apps/v1",
    "authentication.k8s.io/v1",
    "authorization.k8s.io/v1",
    "autoscaling/v1",
    "autoscaling/v2",
    "batch/v1",
    "certificates.k8s.io/v1",
    "coordination.k8s.io/v1",
    "discovery.k8s.io/v1",
    "events.k8s.io/v1",
    "flowcontrol.apiserver.k8s.io/v1",
    "networking.k8s.io/v1",
    "node.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
    "resource.k8s.io/v1",
    "scheduling.k8s.io/v1",
    "storage.k8s.io/v1",
    "storagemigration.k8s.io/v1",
];

/// Versions that are gone, since when, and what took their place.
const REMOVED: [(&str, &str, &str); 24] = [
    ("admissionregistration.k8s.io/v1beta1", "1.22", "admissionregistration.k8s.io/v1"),
    ("apiextensions.k8s.io/v1beta1", "1.22", "apiextensions.k8s.io/v1"),
    ("apiregistration.k8s.io/v1beta1", "1.22", "apiregistration.k8s.io/v1"),
    ("apps/v1beta1", "1.16", "apps/v1"),
    ("apps/v1beta2", "1.16", "apps/v1"),
    ("authentication.k8s.io/v1beta1", "1.22", "authentication.k8s.io/v1"),
    ("authorization.k8s.io/v1beta1", "1.22", "authorization.k8s.io/v1"),
    ("autoscaling/v2beta1", "1.25", "autoscaling/v2"),
    ("autoscaling/v2beta2", "1.26", "autoscaling/v2"),
    ("batch/v1beta1", "1.25", "batch/v1"),
    ("batch/v2alpha1", "1.21", "batch/v1"),
    ("certificates.k8s.io/v1beta1", "1.22", "certificates.k8s.io/v1"),
    ("coordination.k8s.io/v1beta1", "1.22", "coordination.k8s.io/v1"),
    ("discovery.k8s.io/v1beta1", "1.25", "discovery.k8s.io/v1"),
    ("events.k8s.io/v1beta1", "1.25", "events.k8s.io/v1"),
    ("extensions/v1beta1", "1.22", "apps/v1, networking.k8s.io/v1"),
    ("flowcontrol.apiserver.k8s.io/v1beta1", "1.26", "flowcontrol.apiserver.k8s.io/v1"),
    ("flowcontrol.apiserver.k8s.io/v1beta2", "1.29", "flowcontrol.apiserver.k8s.io/v1"),
    ("flowcontrol.apiserver.k8s.io/v1beta3", "1.32", "flowcontrol.apiserver.k8s.io/v1"),
    ("networking.k8s.io/v1beta1", "1.22", "networking.k8s.io/v1"),
    ("node.k8s.io/v1beta1", "1.25", "node.k8s.io/v1"),
    ("policy/v1beta1", "1.25", "policy/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "1.22", "rbac.authorization.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "1.27", "storage.k8s.io/v1"),
];

pub fn findings(objects: &[Value], ground: &Ground) -> Vec<Finding> {
    let own = defined(objects);
    objects.iter().filter_map(|object| of(object, &own, ground)).collect()
}

fn of(object: &Value, own: &BTreeSet<String>, ground: &Ground) -> Option<Finding> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let fail = |what: String| Some(Finding::fail(name(object), what));
    if let Some(served) = &ground.served {
        let key = format!("{version} {}", kind(object));
        return match (served.contains(&key), own.contains(&key), REMOVED.iter().find(|(gone, ..)| *gone == version)) {
            (true, ..) | (_, true, _) => None,
            (.., Some((_, _, instead))) => fail(format!("the cluster serves no {version}: use {instead}")),
            (.., None) => fail(format!("the cluster serves no {kind} of {version}", kind = kind(object))),
        };
    }
    if !is_built_in(version) {
        let key = format!("{version} {}", kind(object));
        let known = own.contains(&key);
        return (!known).then(|| Finding::warn(name(object), format!("{version} is no group of Kubernetes': its definition must be there before")));
    }
    match REMOVED.iter().find(|(gone, ..)| *gone == version) {
        _ if SERVED.contains(&version) => None,
        Some((_, since, instead)) => fail(format!("{version} is gone since Kubernetes {since}: use {instead}")),
        None => fail(format!("Kubernetes 1.36 does not serve {version} by itself")),
    }
}

/// Kinds that the chart's own definitions make.
fn defined(objects: &[Value]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for definition in objects.iter().filter(|object| kind(object) == "CustomResourceDefinition") {
        let spec = &definition["spec"];
        let (group, kind) = (spec["group"].as_str().unwrap_or_default(), spec["names"]["kind"].as_str().unwrap_or_default());
        let versions = spec["versions"].as_array().into_iter().flatten().filter_map(|version| version["name"].as_str());
        out.extend(versions.map(|version| format!("{group}/{version} {kind}")));
    }
    out
}

/// Groups of Kubernetes itself have no dot, or end with its domain; those of its working groups do, too, but nobody serves them.
pub fn is_built_in(version: &str) -> bool {
    const APART: [&str; 4] = ["gateway.networking.k8s.io", "snapshot.storage.k8s.io", "metrics.k8s.io", "x-k8s.io"];
    let group = version.split_once('/').map_or("", |(group, _)| group);
    (!group.contains('.') || group.ends_with(".k8s.io")) && !APART.iter().any(|apart| group.ends_with(apart))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_removed_version_has_one_that_is_served_in_its_place() {
        for (gone, _, instead) in REMOVED {
            assert!(!SERVED.contains(&gone) && instead.split(", ").all(|one| SERVED.contains(&one)), "{gone}");
        }
        assert!(SERVED.iter().all(|version| is_built_in(version)));
        assert!(!is_built_in("gateway.networking.k8s.io/v1") && !is_built_in("monitoring.coreos.com/v1"));
    }
}
