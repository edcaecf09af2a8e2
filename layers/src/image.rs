//! Container images under the names that kubeadm and charts expect: made of files and Debian packages, or pulled from a registry.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{PROFILE_LAYER, PlannedFile};
use crate::profile::{FileSpec, Spot};
use crate::reference::Reference;
use crate::units::{Bytes, Digest};

/// One layer of container images. Layers of equal content are one, however many images have them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImageLayer {
    /// Debian packages, unpacked and not configured; those that the host has, at its versions, without what they depend on.
    pub packages: Vec<String>,
    /// Files.
    pub files: Vec<FileSpec>,
}

/// A container image of a layer: a reference alone is pulled; with `layers` it is made here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ImageUse {
    /// Pulled from where the reference says.
    Name(String),
    /// Made of image layers, or pulled, with more to say.
    Full(Box<Image>),
}

/// A container image: made of image layers where it has `layers`, else pulled from a registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Full reference with registry, repository and tag: `registry.k8s.io/pause:3.10.2`.
    pub name: String,
    /// Image layers by name, from the lowest.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Reference to pull instead of `name`, which the image keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<String>,
    /// Program and first arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Arguments where a container gives none.
    #[serde(default)]
    pub command: Vec<String>,
    /// Variables of the environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// User that its processes run as: `uid` or `uid:gid`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Only when this Handlebars expression holds.
    #[serde(default)]
    pub when: Option<String>,
}

impl ImageUse {
    /// The image, whichever way it was written.
    pub fn full(&self) -> Image {
        match self {
            Self::Name(name) => Image { name: name.clone(), ..Image::default() },
            Self::Full(full) => (**full).clone(),
        }
    }
}

/// A container image of a profile, pulled from a registry: its reference alone, or a name and what to pull for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PulledUse {
    /// Pulled from where the reference says.
    Name(String),
    /// Pulled under a name.
    Full(PulledImage),
}

/// A container image that is pulled from a registry; it takes the place of an image of this name that a layer declares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PulledImage {
    /// Full reference with registry, repository and tag, by which the image is known on the node.
    pub name: String,
    /// Reference to pull instead of `name`: `registry.example/etcd@sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<String>,
}

impl PulledUse {
    /// Name and what to pull, whichever way the image was written.
    pub fn full(&self) -> PulledImage {
        match self {
            Self::Name(name) => PulledImage { name: name.clone(), pull: None },
            Self::Full(full) => full.clone(),
        }
    }
}

/// An image layer with its final files.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedImageLayer {
    /// Its name.
    pub name: String,
    /// Debian packages, sorted.
    pub packages: Vec<String>,
    /// Files, by path.
    pub files: Vec<PlannedFile>,
}

/// An image that the root will carry.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedImage {
    /// Layer that declares it.
    pub layer: String,
    /// The declaration.
    #[serde(flatten)]
    pub image: Image,
    /// Where its name is written.
    #[serde(skip)]
    pub at: Spot,
}

/// An image that will be pulled.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedPull {
    /// The name that it has on the node.
    pub name: String,
    /// The reference to pull.
    pub pull: String,
    /// Who wants it: `profile` or `layer <name>`.
    pub wanted_by: String,
    /// Where its name is written.
    #[serde(skip)]
    pub at: Spot,
}

/// Largest manifest, index or configuration that is read, in bytes.
pub const DOCUMENT_LIMIT: u64 = 4 << 20;

/// Bytes of a registry (OCI image specification, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Descriptor {
    /// What they are.
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// How many they are.
    pub size: Bytes,
}

/// An image as its registry had it when it was locked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedImage {
    /// The name that it has on the node: a whole reference with a tag or a digest.
    pub name: String,
    /// The reference that was pulled.
    pub pull: String,
    /// What the reference stood for: an index of several platforms or a manifest.
    pub target: Descriptor,
    /// The manifest for the image's platform; the target itself unless that is an index.
    pub manifest: Descriptor,
    /// The configuration.
    pub config: Descriptor,
    /// The layers from the lowest.
    pub layers: Vec<Descriptor>,
    /// Why the image is there: `profile`, `layer <name>`, or a chart with its file.
    pub wanted_by: Vec<String>,
}

impl LockedImage {
    /// Everything that it is made of; the manifest comes once where it is the target.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let manifest = Some(&self.manifest).filter(|manifest| manifest.digest != self.target.digest);
        [&self.target].into_iter().chain(manifest).chain([&self.config]).chain(&self.layers)
    }

    /// Who of plan and profile wants it; charts are others.
    pub fn declared_by(&self) -> impl Iterator<Item = &str> {
        self.wanted_by.iter().map(String::as_str).filter(|who| *who == PROFILE_LAYER || who.starts_with("layer "))
    }

    /// What is wrong with an entry of a lock: the field and the words.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let name = &self.name;
        let reference = |text: &str| text.parse::<Reference>();
        match reference(name) {
            Ok(Reference { tag: Some(_), digest: Some(_), .. }) => return Err(("name:", format!("image {name}: a name has a tag or a digest"))),
            Ok(_) => {}
            Err(what) => return Err(("name:", what)),
        }
        let pull = reference(&self.pull).map_err(|what| ("pull:", format!("image {name}: {what}")))?;
        if pull.digest.is_some_and(|digest| digest != self.target.digest) {
            return Err(("target:", format!("image {name}: it has digest {}, the reference {pull} says another", self.target.digest)));
        }
        let documents = [("target:", &self.target), ("manifest:", &self.manifest), ("config:", &self.config)];
        match documents.into_iter().find(|(_, document)| document.size.0 > DOCUMENT_LIMIT) {
            Some((field, document)) => Err((field, format!("image {name}: {} is larger than 4MiB", document.digest))),
            None => Ok(()),
        }
    }
}
