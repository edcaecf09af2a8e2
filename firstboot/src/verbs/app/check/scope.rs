//! What is the whole cluster's: in a virtual cluster it is that one's alone.

use serde_json::Value;

use super::Ground;
use super::objects::{kind, name};
use super::report::{Finding, Grade};

/// Kinds with what becomes of them.
const KINDS: [(&str, Grade, &str); 14] = [
    ("CustomResourceDefinition", Grade::Pass, "it stays inside of the virtual cluster"),
    ("ClusterRole", Grade::Pass, "it gives rights inside of the virtual cluster only"),
    ("ClusterRoleBinding", Grade::Pass, "it gives rights inside of the virtual cluster only"),
    ("Namespace", Grade::Pass, "it is made inside of the virtual cluster; on the host all pods are in one namespace"),
    ("ValidatingWebhookConfiguration", Grade::Warn, "the virtual cluster's API server asks it; the host's does not"),
    ("MutatingWebhookConfiguration", Grade::Warn, "the virtual cluster's API server asks it; the host's does not"),
    ("ValidatingAdmissionPolicy", Grade::Pass, "it holds inside of the virtual cluster"),
    ("MutatingAdmissionPolicy", Grade::Pass, "it holds inside of the virtual cluster"),
    ("APIService", Grade::Warn, "the virtual cluster's API server asks it; the host's does not"),
    ("DaemonSet", Grade::Warn, "it runs where other pods of the virtual cluster run, not on every node of the host"),
    ("PersistentVolume", Grade::Warn, "the host does not see it: sync.toHost.persistentVolumes is off"),
    ("StorageClass", Grade::Warn, "the host does not see it: sync.toHost.storageClasses is off"),
    ("PriorityClass", Grade::Warn, "pods have no priority on the host: sync.toHost.priorityClasses is off"),
    ("RuntimeClass", Grade::Fail, "only the host's own can be used (sync.fromHost.runtimeClasses)"),
];

/// What a rule names that is something else inside.
const OF_NODES: [&str; 4] = ["nodes", "nodes/proxy", "nodes/stats", "nodes/metrics"];

pub fn findings(objects: &[Value], ground: &Ground) -> Vec<Finding> {
    objects.iter().flat_map(|object| of(object, ground)).collect()
}

fn of(object: &Value, ground: &Ground) -> Vec<Finding> {
    let Some((kind, result, message)) = KINDS.iter().find(|(known, ..)| *known == kind(object)) else { return Vec::new() };
    // `PersistentVolume` is `persistentVolumes` there, `PriorityClass` `priorityClasses`.
    let synced = message.contains("sync.toHost") && ground.to_host.iter().any(|plural| plural.to_lowercase().starts_with(&kind.to_lowercase()));
    let (result, message) = if synced { (Grade::Pass, "the host gets a copy") } else { (*result, *message) };
    let mut out = vec![Finding { result, object: name(object), message: message.into() }];
    let rules = object["rules"].as_array().into_iter().flatten();
    let asked = rules.flat_map(|rule| rule["resources"].as_array().into_iter().flatten()).filter_map(Value::as_str);
    if asked.clone().any(|resource| OF_NODES.contains(&resource)) {
        out.push(Finding::warn(
            name(object),
            "it reads nodes: inside they are stand-ins of those that its pods run on, without the kubelets' metrics",
        ));
    }
    out
}
