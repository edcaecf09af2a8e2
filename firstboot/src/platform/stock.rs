//! What the nodes of a cluster have without asking anybody: the images of their root, and the registries that they may ask.

use std::collections::{BTreeMap, BTreeSet};

use layers::Result;
use layers::platform::version;
use layers::reference::Reference;

use crate::host::Host;
use crate::images::config::registries;
use crate::images::tree::Tree;
use crate::registry::split;

/// Images and registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    /// Names of the images, and the digests that they stand for.
    images: BTreeSet<String>,
    /// URL of the writable registry inside the cluster; empty when there is none.
    pub registry: String,
    /// Whether the registry of an image's name may be asked.
    pub upstream: bool,
}

impl Stock {
    /// The ConfigMap that tells it to those who are no node.
    pub const NAME: &str = "chasi-bod-stock";

    /// Of a node's root.
    pub fn of_host(host: &Host) -> Result<Self> {
        let (tree, registries) = (Tree::load(host)?, registries(host)?);
        let images = tree.images().iter().map(|image| format!("{}@{}", image.name.split('@').next().unwrap_or_default(), image.digest));
        Ok(Self { images: images.collect(), registry: registries.cluster, upstream: registries.upstream })
    }

    /// As the entries of a ConfigMap.
    pub fn told(&self) -> BTreeMap<String, String> {
        let images: String = self.images.iter().map(|image| format!("{image}\n")).collect();
        [("images", images), ("registry", self.registry.clone()), ("upstream", self.upstream.to_string())]
            .map(|(key, text)| (key.into(), text))
            .into()
    }

    /// From the entries of a ConfigMap.
    pub fn heard(mut entries: BTreeMap<String, String>) -> Self {
        let mut take = |key: &str| entries.remove(key).unwrap_or_default();
        Self { images: take("images").lines().map(str::to_string).collect(), registry: take("registry"), upstream: take("upstream") == "true" }
    }

    /// Kubernetes versions that there are control planes of for virtual clusters.
    pub fn versions(&self) -> Vec<String> {
        let names = self.images.iter().filter_map(|known| known.split_once('@'));
        names.filter_map(|(name, _)| version::of_image(name).map(String::from)).collect()
    }

    /// Whether an image is among those of the root; by its digest where it is asked for by that.
    pub fn has(&self, image: &Reference) -> bool {
        let known = self.images.iter().filter_map(|known| known.split_once('@'));
        known.into_iter().any(|(name, digest)| match (&image.digest, &image.tag) {
            (Some(wanted), _) => split(name).0 == image.place() && digest == wanted.to_string(),
            (None, Some(tag)) => name == format!("{}:{tag}", image.place()),
            (None, None) => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tree::tests::root;

    #[test]
    fn what_is_told_is_what_is_heard_and_images_are_found_by_tag_or_digest() {
        let (_folder, host) = root(&[("a.io:5000/x:1", "p")]);
        host.write("usr/lib/chasi-bod/registries.yaml", b"cluster: https://10.96.0.5:5000\nupstream: true\n", 0o644).unwrap();
        let stock = Stock::of_host(&host).unwrap();
        assert_eq!(Stock::heard(stock.told()), stock);
        assert_eq!((stock.registry.as_str(), stock.upstream), ("https://10.96.0.5:5000", true));
        let digest = Tree::load(&host).unwrap().images()[0].digest;
        let has = |text: &str| stock.has(&Reference::with_tag(text).unwrap());
        assert!(has("a.io:5000/x:1") && has(&format!("a.io:5000/x@{digest}")) && has(&format!("a.io:5000/x:2@{digest}")));
        assert!(!has("a.io:5000/x:2") && !has("a.io/x:1") && !has(&format!("a.io:5000/y@{digest}")));
        let (_folder, host) = root(&[("chasi-bod.internal/vcluster-binaries:v1.35.4", "p"), ("a.io/x:v1.0.0", "q")]);
        assert_eq!(Stock::of_host(&host).unwrap().versions(), ["v1.35.4"]);
        assert!(!Stock::heard(BTreeMap::new()).has(&Reference::with_tag("a.io:5000/x:1").unwrap()));
    }
}
