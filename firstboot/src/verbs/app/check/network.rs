//! Services, ingresses and policies: what of them reaches the host.

use serde_json::Value;

use super::Ground;
use super::objects::{kind, name};
use super::report::Finding;

pub fn findings(objects: &[Value], ground: &Ground) -> Vec<Finding> {
    objects.iter().filter_map(|object| of(object, ground)).collect()
}

fn of(object: &Value, ground: &Ground) -> Option<Finding> {
    let copied = |kind: &str| ground.to_host.iter().any(|known| known == kind);
    let warn = |what: String| Some(Finding::warn(name(object), what));
    match kind(object) {
        "Service" => service(object, ground),
        "Ingress" if !copied("ingresses") => {
            warn("no ingress controller sees it: sync.toHost.ingresses is off (template `network` has it on)".into())
        }
        "Ingress" => {
            let class = object["spec"]["ingressClassName"].as_str().or(object["metadata"]["annotations"]["kubernetes.io/ingress.class"].as_str());
            match (class, &ground.ingress_classes) {
                (Some(class), Some(known)) if !known.iter().any(|one| one == class) => {
                    Some(Finding::fail(name(object), format!("ingress class {class} is not there; there is {}", list(known))))
                }
                (None, _) => warn("no ingressClassName: only a default class takes it".into()),
                (Some(class), Some(_)) => Some(Finding::pass(name(object), format!("ingress class {class}"))),
                (Some(class), None) => warn(format!("whether the cluster has ingress class {class} is not known")),
            }
        }
        "NetworkPolicy" if !copied("networkPolicies") => {
            warn("nothing enforces it: sync.toHost.networkPolicies is off (template `network` has it on)".into())
        }
        _ => None,
    }
}

fn service(object: &Value, ground: &Ground) -> Option<Finding> {
    let spec = &object["spec"];
    if spec["externalIPs"].as_array().is_some_and(|list| !list.is_empty()) {
        return Some(Finding::fail(name(object), "externalIPs: the host refuses them (DenyServiceExternalIPs)"));
    }
    let kind = spec["type"].as_str().unwrap_or("ClusterIP");
    let ports = spec["ports"].as_array().map_or(0, Vec::len) as f64;
    let takes = match kind {
        "NodePort" => ports,
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] != false => ports,
        "LoadBalancer" => 0.0,
        _ => return None,
    };
    match ground.quota.get("services.nodeports") {
        Some(have) if takes > *have => {
            Some(Finding::fail(name(object), format!("{kind} takes {takes} node ports, the virtual cluster's quota services.nodeports has {have}")))
        }
        _ if kind == "LoadBalancer" => Some(Finding::warn(name(object), "LoadBalancer: it gets an address only where the cluster gives any")),
        _ => Some(Finding::warn(name(object), "NodePort: it is open on every node of the host")),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
