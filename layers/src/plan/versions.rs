//! Kubernetes versions of virtual clusters: what the profile names is among the images that the root will carry.

use super::*;
use crate::image::{ImageUse, PlannedImage, PlannedPull};
use crate::platform::values::BINARIES;
use crate::platform::version::{list, of_image};

/// Names every version that no image brings, with those that there are.
pub(super) fn check(loaded: &Loaded, layers: &[&LoadedLayer], (images, pulls): (&[PlannedImage], &[PlannedPull]), problems: &mut Vec<Diagnostic>) {
    let (profile, document) = (&loaded.profile, &loaded.document);
    let names = images.iter().map(|image| image.image.name.as_str()).chain(pulls.iter().map(|pull| pull.name.as_str()));
    let bundled: Vec<_> = names.filter_map(of_image).collect();
    let declared = layers.iter().flat_map(|layer| &layer.definition.images).map(ImageUse::full);
    let declared: Vec<_> = declared.filter_map(|image| of_image(&image.name).map(String::from)).collect();
    for (n, version) in profile.virtual_versions.iter().enumerate().filter(|(_, version)| !bundled.contains(&version.as_str())) {
        let all = list(declared.iter().map(String::as_str).chain(bundled.iter().copied()));
        let message = format!("no layer has a control plane of Kubernetes {version} for virtual clusters; there are {all}");
        let hint = format!("give one as image {}/{}:{version}, in a layer of your own or under `images`", BINARIES.0, BINARIES.1);
        problems.push(document.spot(&["virtualVersions", &n.to_string()]).problem(message, Some(hint)));
    }
    for (n, cluster) in profile.vclusters.iter().enumerate() {
        let Some(version) = cluster.spec.settings.version.as_deref().filter(|version| !bundled.contains(version)) else { continue };
        let message = format!("virtual cluster {} is of version {version}, but the image will have {}", cluster.name, list(bundled.iter().copied()));
        let hint = declared.iter().any(|known| known == version).then(|| format!("list {version} under `virtualVersions`"));
        problems.push(document.spot(&["vclusters", &n.to_string(), "version"]).problem(message, hint));
    }
}
