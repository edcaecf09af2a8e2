//! Container images: each declared once, of image layers that some layer of the image declares, or pulled. What the profile pulls takes the
//! place of what layers declare under that name.

use super::content::Site;
use super::*;
use crate::image::{Image, ImageUse, PulledImage, PulledUse};

/// What the layers declare, as they are planned.
#[derive(Default)]
pub(super) struct Images {
    layers: BTreeMap<String, PlannedImageLayer>,
    images: Vec<PlannedImage>,
    pulls: Vec<PlannedPull>,
}

/// What of it the root will carry, by name.
pub(super) struct Used {
    pub image_layers: Vec<PlannedImageLayer>,
    pub images: Vec<PlannedImage>,
    pub pulls: Vec<PlannedPull>,
}

impl Images {
    /// Takes in what one layer declares.
    pub fn add(&mut self, site: &mut Site<'_, '_>, definition: &Definition) {
        for (name, layer) in &definition.image_layers {
            let files = site.files(&["imageLayers", name, "files"], &layer.files);
            let mut packages = layer.packages.clone();
            packages.sort();
            let planned = PlannedImageLayer { name: name.clone(), packages, files };
            if self.layers.insert(name.clone(), planned).is_some() {
                let spot = site.document.key_spot(&["imageLayers", name]);
                site.problems.push(spot.problem(format!("image layer {} is declared by a lower layer, too", quote(name)), None));
            }
        }
        for (n, image) in definition.images.iter().map(ImageUse::full).enumerate() {
            let n = n.to_string();
            if site.holds(image.when.as_deref(), &["images", &n, "when"]) {
                self.image(site, &definition.name, image, &n);
            }
        }
    }

    fn image(&mut self, site: &mut Site<'_, '_>, layer: &str, image: Image, n: &str) {
        let at = site.document.spot(&["images", n, "name"]);
        let made = self.images.iter().filter(|other| other.image.name == image.name).map(|other| format!("layer {}", other.layer));
        let pulled = self.pulls.iter().filter(|other| other.name == image.name).map(|other| other.wanted_by.clone());
        if let Some(other) = made.chain(pulled).next() {
            site.problems.push(at.problem(format!("{other} and layer {layer} both declare image {}", image.name), None));
        }
        if image.layers.is_empty() {
            self.pull(PulledImage { name: image.name, pull: image.pull }, format!("layer {layer}"), at);
        } else {
            self.images.push(PlannedImage { layer: layer.into(), image, at });
        }
    }

    fn pull(&mut self, image: PulledImage, wanted_by: String, at: Spot) {
        let pull = image.pull.unwrap_or_else(|| image.name.clone());
        self.pulls.push(PlannedPull { name: image.name, pull, wanted_by, at });
    }

    /// Puts the profile's images in the place of those of the same name.
    pub fn replace(&mut self, loaded: &Loaded) {
        for (n, image) in loaded.profile.images.iter().map(PulledUse::full).enumerate() {
            self.images.retain(|other| other.image.name != image.name);
            self.pulls.retain(|other| other.name != image.name);
            self.pull(image, PROFILE_LAYER.into(), loaded.document.spot(&["images", &n.to_string(), "name"]));
        }
    }

    /// The images by name, and the layers that they are made of.
    pub fn used(mut self, problems: &mut Vec<Diagnostic>) -> Used {
        let mut used = BTreeSet::new();
        for PlannedImage { image, at, .. } in &self.images {
            for name in &image.layers {
                if self.layers.contains_key(name) {
                    used.insert(name.clone());
                } else {
                    let hint = suggest(name, self.layers.keys().map(String::as_str));
                    problems.push(at.problem(format!("image {} has the layer {}, which is not declared", image.name, quote(name)), hint));
                }
            }
        }
        self.images.sort_by(|a, b| a.image.name.cmp(&b.image.name));
        self.pulls.sort_by(|a, b| a.name.cmp(&b.name));
        self.layers.retain(|name, _| used.contains(name));
        Used { image_layers: self.layers.into_values().collect(), images: self.images, pulls: self.pulls }
    }
}
