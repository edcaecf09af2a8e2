//! The adaptation list of a chart: what becomes of it in a virtual cluster, point by point. Nothing here asks anybody: what is known of the cluster is
//! handed in.

mod advice;
mod apis;
mod demands;
mod network;
mod objects;
mod report;
mod scope;
mod secrets;
mod security;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use layers::platform::settings::{PodSecurity, Settings};
use layers::reference::Reference;
use layers::{Result, manifest};
use serde_json::Value;

pub use apis::{KUBERNETES, is_built_in};
use objects::{Workload, quantity};
use report::{Finding, Point};
pub use report::{Grade, Report};

/// What a chart came to.
pub struct Chart {
    /// Its own name and version.
    pub name: String,
    pub version: String,
    /// What helm made of it.
    pub objects: Vec<Value>,
    /// Documents of values by the names of their files.
    pub values: Vec<(String, Value)>,
}

impl Chart {
    pub fn new(name: &str, version: &str, rendered: &str, values: Vec<(String, Value)>) -> Result<Self> {
        Ok(Self { name: name.into(), version: version.into(), objects: objects::all(manifest::documents(rendered)?), values })
    }
}

/// A storage class of the host.
pub struct Class {
    pub name: String,
    pub provisioner: String,
    pub default: bool,
}

/// What is known of where the chart shall run; the default is a virtual cluster of the template `general`.
pub struct Ground {
    pub security: PodSecurity,
    pub quota: BTreeMap<String, f64>,
    /// Kinds that the syncer copies to the host.
    pub to_host: Vec<String>,
    pub classes: Option<Vec<Class>>,
    pub ingress_classes: Option<Vec<String>>,
    /// `apps/v1 Deployment`, of the API that it goes to.
    pub served: Option<BTreeSet<String>>,
}

impl Default for Ground {
    fn default() -> Self {
        let quota = [("services.nodeports".to_string(), 0.0)].into();
        Self { security: PodSecurity::Baseline, quota, to_host: Vec::new(), classes: None, ingress_classes: None, served: None }
    }
}

impl Ground {
    /// By the effective settings of a virtual cluster.
    pub fn of(settings: &Settings) -> Self {
        let quota = settings.quota.iter().flatten().filter_map(|(key, limit)| Some((key.clone(), quantity(&Value::from(limit.0.clone()))?)));
        let to_host = settings.sync.iter().flat_map(|sync| sync.to_host.iter().flatten()).filter(|(_, on)| **on).map(|(kind, _)| kind.clone());
        let security = settings.pod_security.unwrap_or(PodSecurity::Baseline);
        Self { security, quota: quota.collect(), to_host: to_host.collect(), ..Self::default() }
    }
}

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the image of the nodes.
    Seed,
    /// In the registry inside the cluster.
    Registry,
    /// Where it will be pushed from.
    Source(String),
    /// Nowhere here, but nodes may ask its own registry.
    Upstream,
    Nowhere,
    /// Nobody could be asked, and why.
    Unknown(String),
}

/// All points of a chart in an order that people read.
pub fn check(chart: &Chart, ground: &Ground, images: &BTreeMap<Reference, Found>) -> Report {
    let objects = &chart.objects;
    let workloads: Vec<_> = objects.iter().filter_map(Workload::of).collect();
    let security = workloads.iter().flat_map(|workload| security::findings(workload, ground.security)).collect();
    let points = vec![
        Point::new("images", images.iter().map(|(image, found)| of_image(image, found)).collect()),
        Point::new("security", security),
        Point::new("storage", storage::findings(objects, ground)),
        Point::new("network", network::findings(objects, ground)),
        Point::new("resources", demands::resources(&workloads, demands::claimed(objects), ground)),
        Point::new("probes", demands::probes(&workloads)),
        Point::new("secrets", secrets::findings(chart, &workloads)),
        Point::new("apis", apis::findings(objects, ground)),
        Point::new("scope", scope::findings(objects, ground)),
    ];
    Report::new(&chart.name, &chart.version, points, advice::template(objects, &workloads))
}

fn of_image(image: &Reference, found: &Found) -> Finding {
    let name = image.to_string();
    match found {
        Found::Seed => Finding::pass(name, "in the nodes' image"),
        Found::Registry => Finding::pass(name, "in the cluster's registry"),
        Found::Source(place) => Finding::pass(name, format!("is pushed from {place}")),
        Found::Upstream => Finding::warn(name, "not in the cluster; nodes may ask its own registry"),
        Found::Nowhere => {
            Finding::fail(name, "neither in the nodes' image nor in the cluster's registry: `app deploy` pushes it with --images or --from")
        }
        Found::Unknown(why) => Finding::warn(name, format!("not known whether the cluster has it: {why}")),
    }
}
