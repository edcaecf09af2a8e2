//! What a seed holds and why, from a profile and its lock or from a built image.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use firstboot::verbs::table;
use layers::Result;
use layers::lock::Lock;
use layers::plan::Plan;
use layers::platform::{Component, VirtualCluster};
use layers::seed::{Image, LAYERS, Release, Seed};
use layers::units::Bytes;
use serde::Serialize;

use crate::inspect;
use crate::inspect::contents;
use crate::inspect::files::Root;
use crate::pipeline;

/// Releases in the order in which they are installed, what the platform makes of charts, and images by name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// Releases.
    pub releases: Vec<Release>,
    /// Virtual clusters.
    pub virtual_clusters: Vec<VirtualCluster>,
    /// Components.
    pub components: Vec<Component>,
    /// Images.
    pub images: Vec<ListedImage>,
}

/// An image and why it is there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedImage {
    /// Full reference.
    pub name: String,
    /// Bytes of its files, those that it shares with others among them; not known before the image was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Layers, releases and components that ask for it.
    pub wanted_by: Vec<String>,
}

impl Listing {
    pub(super) fn new(Seed { releases, virtual_clusters, components }: Seed, images: Vec<ListedImage>) -> Self {
        Self { releases, virtual_clusters, components, images }
    }
}

/// The seed of a profile by its lock, of a disk image, or of a folder of artifacts.
pub fn listing(path: &Path) -> Result<Listing> {
    if path.is_dir() {
        return of_image(&inspect::files::artifact(path)?);
    }
    if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
        let planned = pipeline::plan(path)?;
        return Ok(of_lock(&planned.plan, &pipeline::read_lock(path)?));
    }
    of_image(path)
}

fn of_lock(plan: &Plan, lock: &Lock) -> Listing {
    let mut images = BTreeMap::<String, Vec<String>>::new();
    for image in &plan.images {
        images.entry(image.image.name.clone()).or_default().push(format!("layer {}", image.layer));
    }
    for image in &lock.images {
        images.entry(image.name.clone()).or_default().extend(image.wanted_by.clone());
    }
    for wanted in &lock.wanted {
        // What is pulled says so itself.
        if let Some(made) = images.get_mut(&wanted.image).filter(|_| lock.images.iter().all(|image| image.name != wanted.image)) {
            made.extend(wanted.wanted_by.clone());
        }
    }
    let images = images.into_iter().map(|(name, wanted_by)| ListedImage { name, size: None, wanted_by });
    Listing::new(super::seed(plan, lock), images.collect())
}

fn of_image(path: &Path) -> Result<Listing> {
    let root = Root::open(path, None)?;
    let seed = contents::seed(&root)?;
    let index = contents::images(&root)?;
    let mut sizes = BTreeMap::<String, u64>::new();
    if !index.images.is_empty() {
        for file in root.list(Some(&format!("{LAYERS}/**")))? {
            let layer = file.path.trim_start_matches(LAYERS).trim_start_matches('/').split('/').next().unwrap_or_default().to_string();
            *sizes.entry(layer).or_default() += file.size.unwrap_or(0);
        }
    }
    let image = |image: &Image| {
        let size: u64 = contents::layers_of(&root, &index, image)?.iter().map(|layer| sizes.get(layer).copied().unwrap_or(0)).sum();
        Ok(ListedImage { name: image.name.clone(), size: Some(Bytes(size)), wanted_by: image.wanted_by.clone() })
    };
    let images = index.images.iter().map(image).collect::<Result<_>>()?;
    Ok(Listing::new(seed, images))
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |size: Option<Bytes>| size.map_or("-".into(), |size| size.to_string());
        let releases = self
            .releases
            .iter()
            .map(|r| [r.name.clone(), r.namespace.clone(), format!("{} {}", r.chart, r.version), size(Some(r.size)), r.wanted_by.clone()]);
        f.write_str(&table(["RELEASE", "NAMESPACE", "CHART", "SIZE", "WANTED BY"], releases))?;
        if !self.virtual_clusters.is_empty() {
            writeln!(f)?;
            f.write_str(&table(["VIRTUAL CLUSTER", "TEMPLATE", "VERSION"], self.virtual_clusters.iter().map(cluster)))?;
        }
        if !self.components.is_empty() {
            writeln!(f)?;
            f.write_str(&table(["COMPONENT", "MADE OF", "VIRTUAL CLUSTER", "NAMESPACE", "AFTER"], self.components.iter().map(component)))?;
        }
        writeln!(f)?;
        let images = self.images.iter().map(|i| [i.name.clone(), size(i.size), i.wanted_by.join(", ")]);
        f.write_str(&table(["IMAGE", "SIZE", "WANTED BY"], images))
    }
}

fn name(name: &Option<String>) -> String {
    name.clone().unwrap_or_default()
}

fn cluster(object: &VirtualCluster) -> [String; 3] {
    let spec = &object.spec;
    [name(&object.metadata.name), spec.template.clone(), spec.settings.version.clone().unwrap_or("-".into())]
}

fn component(object: &Component) -> [String; 5] {
    let spec = &object.spec;
    let (key, entry) = spec.source.entry();
    let made_of = spec.source.chart.as_ref().map_or_else(|| format!("{key} {entry}"), |chart| format!("{} {}", chart.name, chart.version));
    let (cluster, namespace) = (spec.target.virtual_cluster.clone().unwrap_or("-".into()), spec.target.namespace.clone());
    [name(&object.metadata.name), made_of, cluster, namespace, spec.depends_on.join(", ")]
}
