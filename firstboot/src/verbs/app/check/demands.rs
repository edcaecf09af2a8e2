//! What the pods of a chart ask for, and how one is told whether they work.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Ground;
use super::objects::{Workload, bytes, claims, place, quantity, size};
use super::report::Finding;

/// Requests and limits, one by one and together.
pub fn resources(workloads: &[Workload<'_>], claimed: f64, ground: &Ground) -> Vec<Finding> {
    let mut out = Vec::new();
    for workload in workloads {
        for container in workload.running() {
            let needed = [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")];
            let lacks: Vec<_> = needed
                .into_iter()
                .filter(|(of, resource)| {
                    let own = &container["resources"];
                    // A limit alone is a request of as much.
                    quantity(&own[of][resource]).is_none() && (*of == "limits" || quantity(&own["limits"][resource]).is_none())
                })
                .map(|(of, resource)| format!("{of}.{resource}"))
                .collect();
            if !lacks.is_empty() {
                out.push(Finding::warn(place(workload, container), format!("no {}: it gets the virtual cluster's default", lacks.join(", "))));
            }
        }
    }
    out.extend(quota(workloads, claimed, &ground.quota));
    out
}

/// Sums that are more than there will be, those of the control plane not counted.
fn quota(workloads: &[Workload<'_>], claimed: f64, quota: &BTreeMap<String, f64>) -> Vec<Finding> {
    let sum = |of: &str, resource: &str| workloads.iter().map(|workload| workload.sum(of, resource)).sum::<f64>();
    let pods: f64 = workloads.iter().map(|workload| workload.count).sum();
    let sums = [
        (&["requests.cpu", "cpu"][..], sum("requests", "cpu")),
        (&["limits.cpu"], sum("limits", "cpu")),
        (&["requests.memory", "memory"], sum("requests", "memory")),
        (&["limits.memory"], sum("limits", "memory")),
        (&["requests.storage"], claimed),
        (&["count/pods", "pods"], pods),
    ];
    let mut out = Vec::new();
    for (keys, sum) in sums {
        for (key, have) in keys.iter().filter_map(|key| Some((*key, *quota.get(*key)?))).filter(|(_, have)| sum > *have) {
            let shown = |count: f64| if key.ends_with("memory") || key.ends_with("storage") { bytes(count) } else { count.to_string() };
            out.push(Finding::fail(format!("quota {key}"), format!("all together ask for {}, more than {}", shown(sum), shown(have))));
        }
    }
    out
}

/// Bytes of all volumes.
pub fn claimed(objects: &[Value]) -> f64 {
    objects.iter().flat_map(claims).map(|claim| size(&claim)).sum()
}

/// Containers that serve and say nothing of how they are.
pub fn probes(workloads: &[Workload<'_>]) -> Vec<Finding> {
    let mut out = Vec::new();
    for workload in workloads.iter().filter(|workload| workload.serves()) {
        for container in workload.pod["containers"].as_array().into_iter().flatten() {
            let lacks: Vec<_> = ["readinessProbe", "livenessProbe"].into_iter().filter(|probe| container[*probe].is_null()).collect();
            match lacks[..] {
                [] => {}
                // Restarting what is not ready may do harm: its author decides.
                ["livenessProbe"] => out.push(Finding::pass(place(workload, container), "no livenessProbe: it is restarted only when it ends")),
                _ => out.push(Finding::warn(place(workload, container), format!("no {}", lacks.join(", ")))),
            }
        }
    }
    out
}
