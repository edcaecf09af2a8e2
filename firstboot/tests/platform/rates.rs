//! What the controllers ask of the API when nothing changes.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use layers::platform::component::ComponentPhase;
use layers::platform::{Component, Phase, VirtualCluster};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::bench::Bench;

/// Until nothing is written any more about what was done last.
const CALM: Duration = Duration::from_secs(8);

pub fn is_ready(object: &Component) -> bool {
    object.status.as_ref().is_some_and(|status| status.phase == ComponentPhase::Ready && status.observed_generation == object.metadata.generation)
}

pub fn is_at(phase: ComponentPhase) -> impl Fn(&Component) -> bool {
    move |object| object.status.as_ref().is_some_and(|status| status.phase == phase)
}

/// Makes so many of both kinds and waits until all are as they were asked for.
pub async fn fill(bench: &Bench, clusters: usize, components: usize) {
    let begun = Instant::now();
    for n in 0..clusters {
        bench.create::<VirtualCluster>(&format!("v{n}"), json!({"template": "edge"})).await.unwrap();
    }
    for n in 0..components {
        // Every fifth one is in a virtual cluster, every seventh waits for the one before it.
        let mut spec = json!({"source": {"chart": {"name": "note", "version": "1.0.0"}}, "target": {"namespace": format!("notes-{}", n % 10)}});
        if n % 5 == 0 {
            spec["target"]["virtualCluster"] = format!("v{}", n % clusters).into();
        }
        if n % 7 == 6 {
            spec["dependsOn"] = json!([format!("c{}", n - 1)]);
        }
        bench.create::<Component>(&format!("c{n}"), spec).await.unwrap();
    }
    for n in 0..clusters {
        bench.rests(&format!("v{n}"), Phase::Running).await;
    }
    println!("{clusters} virtual clusters RUNNING after {:.0} s", begun.elapsed().as_secs_f64());
    for n in 0..components {
        bench.until::<Component>(&format!("c{n}"), "READY", is_ready).await;
    }
    println!("and {components} components READY after {:.0} s", begun.elapsed().as_secs_f64());
}

/// Lets all rest for so many seconds and counts the requests of the controllers and their programs, to the host and to virtual clusters.
pub async fn rest(bench: &mut Bench, objects: usize, seconds: u64) {
    sleep(CALM).await;
    let begin = fs::read(bench.path("audit.log")).unwrap().len();
    sleep(Duration::from_secs(seconds)).await;
    let log = fs::read(bench.path("audit.log")).unwrap();
    let mut counts = BTreeMap::<String, usize>::new();
    for line in log[begin..].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        // The line that is being written has no end yet.
        let Ok(event) = serde_json::from_slice::<Value>(line) else { continue };
        // A watch is a request when it begins.
        let counted = if event["verb"] == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        if event["stage"] == counted {
            *counts.entry(format!("{} {}", event["verb"].as_str().unwrap(), event["objectRef"]["resource"].as_str().unwrap_or("-"))).or_default() +=
                1;
        }
    }
    let (lease, all): (usize, usize) = (counts.iter().filter(|(what, _)| what.ends_with(" leases")).map(|(_, n)| n).sum(), counts.values().sum());
    let rate = |requests: usize| requests as f64 * 60.0 / seconds as f64 / objects as f64;
    println!("{objects} objects at rest for {seconds} s: {all} requests, {lease} of them for the lease: {counts:?}");
    println!("that is {:.2} per object and minute, {:.2} without the lease", rate(all), rate(all - lease));
    assert!(lease > 0, "the audit log does not have the controllers\n{}", bench.story());
    assert!(rate(all - lease) <= 1.0, "a hot loop: {counts:?}\n{}", bench.story());
    bench.kill();
}
