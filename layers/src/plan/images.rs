//! Container images: each declared once, of image layers that some layer of the image declares.

use super::content::Site;
use super::*;
use crate::image::Image;

/// What the layers declare, as they are planned.
#[derive(Default)]
pub(super) struct Images {
    layers: BTreeMap<String, PlannedImageLayer>,
    images: Vec<PlannedImage>,
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
        for (n, image) in definition.images.iter().enumerate() {
            let n = n.to_string();
            if site.holds(image.when.as_deref(), &["images", &n, "when"]) {
                self.image(site, &definition.name, image, &n);
            }
        }
    }

    fn image(&mut self, site: &mut Site<'_, '_>, layer: &str, image: &Image, n: &str) {
        let at = site.document.spot(&["images", n, "name"]);
        if let Some(other) = self.images.iter().find(|other| other.image.name == image.name) {
            site.problems.push(at.problem(format!("layers `{}` and `{layer}` both declare image {}", other.layer, image.name), None));
        }
        self.images.push(PlannedImage { layer: layer.into(), image: image.clone(), at });
    }

    /// The images by name, and the layers that they are made of.
    pub fn used(mut self, problems: &mut Vec<Diagnostic>) -> (Vec<PlannedImageLayer>, Vec<PlannedImage>) {
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
        self.layers.retain(|name, _| used.contains(name));
        (self.layers.into_values().collect(), self.images)
    }
}
