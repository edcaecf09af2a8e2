//! Manifests and indices as registries serve them, read so that nobody else could read them differently (CVE-2021-41190).

use layers::image::{DOCUMENT_LIMIT, Descriptor};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};
use oci_spec::image::{self as oci, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde_json::Value;

/// What manifests are asked for as.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

const INDICES: [&str; 2] = ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] = ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A manifest or an index.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its media type, digest and size.
    pub descriptor: Descriptor,
    /// Its bytes, as the registry has them.
    pub bytes: Vec<u8>,
    /// What it says.
    pub kind: Kind,
}

/// What a document is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Manifests of several platforms.
    Index(Box<ImageIndex>),
    /// One image, or one artifact such as a chart.
    Manifest(Box<ImageManifest>),
}

impl Document {
    /// Reads a document that was served as `content_type`.
    pub fn read(bytes: Vec<u8>, content_type: &str) -> Result<Self> {
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| Error::input(format!("it is no JSON: {e}")))?;
        let served = content_type.split(';').next().unwrap_or_default().trim();
        if let Some(told) = value.get("mediaType").and_then(Value::as_str).filter(|told| *told != served) {
            return Err(ambiguous(&format!("is served as `{}` and says that it is `{}`", clean(served), clean(told))));
        }
        let kind = match served {
            _ if INDICES.contains(&served) => {
                refuse(&value, "an index", &["layers", "config", "fsLayers"])?;
                Kind::Index(Box::new(serde_json::from_value(value).map_err(|e| Error::input(format!("it is no index: {e}")))?))
            }
            _ if MANIFESTS.contains(&served) => {
                refuse(&value, "a manifest", &["manifests", "fsLayers"])?;
                Kind::Manifest(Box::new(serde_json::from_value(value).map_err(|e| Error::input(format!("it is no manifest: {e}")))?))
            }
            _ => return Err(Error::input(format!("it is served as `{}`, which is neither a manifest nor an index of schema 2", clean(served)))),
        };
        let descriptor = Descriptor { media_type: served.into(), digest: Digest::of(&bytes), size: Bytes(bytes.len() as u64) };
        Ok(Self { descriptor, bytes, kind })
    }
}

/// Keys of the other kind, in whatever case: some readers do not tell cases apart.
fn refuse(value: &Value, what: &str, keys: &[&str]) -> Result<()> {
    let found = value.as_object().into_iter().flat_map(|map| map.keys()).find(|key| keys.iter().any(|k| k.eq_ignore_ascii_case(key)));
    found.map_or(Ok(()), |key| Err(ambiguous(&format!("is served as {what} and holds `{key}`"))))
}

fn ambiguous(what: &str) -> Error {
    Error::input(format!("it {what}: ambiguous, refused"))
}

/// A text of a registry for messages: short, and nothing that steers a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A descriptor of a document in our terms; only sha256 is known.
pub fn descriptor(of: &oci::Descriptor) -> Result<Descriptor> {
    let text = of.digest().to_string();
    let known = || text.strip_prefix("sha256:").and_then(|_| text.parse().ok());
    let digest = known().ok_or_else(|| Error::input(format!("`{}` is no sha256 digest", clean(&text))))?;
    Ok(Descriptor { media_type: of.media_type().to_string(), digest, size: Bytes(of.size()) })
}

/// The manifest of an index for Linux on an architecture; among several the one for every processor of it.
pub fn choose(index: &ImageIndex, architecture: &str) -> Result<Descriptor> {
    let platform = |of: &oci::Descriptor| of.platform().as_ref().map(|p| (p.os().to_string(), p.architecture().to_string(), p.variant().clone()));
    let ours = |of: &&oci::Descriptor| platform(of).is_some_and(|(os, arch, _)| os == "linux" && arch == architecture);
    let variant = |of: &&oci::Descriptor| platform(of).and_then(|(.., variant)| variant).filter(|v| v != "v1").unwrap_or_default();
    let found = index.manifests().iter().filter(ours).min_by_key(variant).filter(|of| variant(of).is_empty() || architecture != "amd64");
    let only = match index.manifests().as_slice() {
        [one] if one.platform().is_none() => Some(one),
        _ => None,
    };
    let chosen = descriptor(found.or(only).ok_or_else(|| {
        let named = |(os, arch, variant): (String, String, Option<String>)| [os, arch].into_iter().chain(variant).collect::<Vec<_>>().join("/");
        let all: std::collections::BTreeSet<_> =
            index.manifests().iter().filter_map(platform).map(named).filter(|p| p != "unknown/unknown").collect();
        let all: Vec<_> = all.iter().map(|platform| clean(platform)).collect();
        Error::input(format!(
            "the image is not for linux/{architecture}; it is for {}",
            if all.is_empty() { "nothing".into() } else { all.join(", ") }
        ))
    })?)?;
    sized(chosen, "manifest")
}

/// The configuration of an image's manifest; other artifacts have another.
pub fn config(manifest: &ImageManifest) -> Result<Descriptor> {
    let config = descriptor(manifest.config())?;
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(Error::input(format!("it is no container image: its configuration is `{}`", clean(&config.media_type))));
    }
    sized(config, "configuration")
}

fn sized(document: Descriptor, what: &str) -> Result<Descriptor> {
    if document.size.0 <= DOCUMENT_LIMIT {
        return Ok(document);
    }
    Err(Error::input(format!("{what} {} has {} bytes, more than 4 MiB", document.digest, document.size.0)))
}

/// The layers of an image's manifest.
pub fn layers(manifest: &ImageManifest) -> Result<Vec<Descriptor>> {
    let one = |of: &oci::Descriptor| {
        let layer = descriptor(of)?;
        let kind = &layer.media_type;
        match kind {
            _ if kind.contains("nondistributable") || kind.contains("foreign") => {
                Err(Error::input(format!("layer {} is not to be had from the registry: `{}`", layer.digest, clean(kind))))
            }
            _ if kind.contains(".image.layer.") || kind.contains(".image.rootfs.") => Ok(layer),
            _ => Err(Error::input(format!("layer {} is `{}`, which is no layer of a container image", layer.digest, clean(kind)))),
        }
    };
    manifest.layers().iter().map(one).collect::<Result<_>>().context(|| "reading the manifest's layers".into())
}

/// What is needed of an image configuration.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The index may lie about the platform, and a single manifest says nothing of it: the configuration does.
pub fn check_config(text: &[u8], manifest: &ImageManifest, architecture: &str) -> Result<()> {
    let config: Config = serde_json::from_slice(text).map_err(|e| Error::input(e.to_string()))?;
    if (config.os.as_str(), config.architecture.as_str()) != ("linux", architecture) {
        return Err(Error::input(format!("the image is for {}/{}, needed is linux/{architecture}", config.os, config.architecture)));
    }
    match (manifest.layers().len(), config.rootfs.diff_ids.len()) {
        (have, want) if have == want => Ok(()),
        (have, want) => Err(Error::input(format!("the manifest has {have} layers, the configuration {want}"))),
    }
}
