//! Which of the shipped templates (`layers/defs/vcluster/files/templates.yaml`) fits what a chart declares.

use serde_json::Value;

use super::demands::claimed;
use super::objects::{Workload, bytes, claims, kind};
use super::report::Advice;

const GI: f64 = 1_073_741_824.0;

/// The first one whose reason holds; the strongest come first.
pub fn template(objects: &[Value], workloads: &[Workload<'_>]) -> Advice {
    let sum = |of: &str, resource: &str| workloads.iter().map(|workload| workload.sum(of, resource)).sum::<f64>();
    let (cpu, memory, limit, volumes) = (sum("requests", "cpu"), sum("requests", "memory"), sum("limits", "memory"), claimed(objects));
    let declared = format!("it declares {} cpu, {} memory, {} volumes", round(cpu), bytes(memory), bytes(volumes));
    let of_kind = |kinds: &[&str]| objects.iter().map(kind).filter(|kind| kinds.contains(kind)).max().map(str::to_string);
    let stateful = objects.iter().any(|object| kind(object) == "StatefulSet" && !claims(object).is_empty());
    let advise = |name, why: &str| Advice { name, reason: format!("{why}; {declared}") };
    let complete = workloads.iter().flat_map(Workload::running).all(|container| !container["resources"]["requests"]["memory"].is_null());
    match of_kind(&["Ingress", "NetworkPolicy"]) {
        Some(kind) => advise("network", &format!("{kind} objects have to reach the host")),
        None if stateful || volumes > 100.0 * GI => advise("io", if stateful { "a StatefulSet keeps data" } else { "large volumes" }),
        None if memory > 16.0 * GI || limit > 32.0 * GI || memory >= GI && memory > 8.0 * GI * cpu => advise("memory", "more memory than processor"),
        None if cpu >= 4.0 || workloads.iter().any(whole_processors) => advise("cpu", "it computes"),
        None if complete && !workloads.is_empty() && memory <= GI / 4.0 && cpu <= 0.25 && volumes <= GI / 2.0 => advise("edge", "it is small"),
        None => advise("general", "nothing of it stands out"),
    }
}

/// Whether a container asks for whole processors, and as many as it may have: the CPU manager gives it its own.
fn whole_processors(workload: &Workload<'_>) -> bool {
    workload.running().any(|container| {
        let of = |part: &str| super::objects::quantity(&container["resources"][part]["cpu"]);
        of("requests").or(of("limits")).is_some_and(|cpu| cpu >= 1.0 && cpu.fract() == 0.0 && of("limits") == Some(cpu))
    })
}

fn round(cpu: f64) -> f64 {
    (cpu * 1000.0).round() / 1000.0 + 0.0
}
