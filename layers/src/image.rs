//! Container images that layers declare: made of files and Debian packages, under the names that kubeadm and charts expect.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::PlannedFile;
use crate::profile::{FileSpec, Spot};

/// One layer of container images. Layers of equal content are one, however many images have them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImageLayer {
    /// Debian packages, unpacked and not configured; those that the host has, at its versions, without what they depend on.
    pub packages: Vec<String>,
    /// Files.
    pub files: Vec<FileSpec>,
}

/// A container image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Full reference with registry, repository and tag: `registry.k8s.io/pause:3.10.2`.
    pub name: String,
    /// Image layers by name, from the lowest.
    pub layers: Vec<String>,
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

/// Whether a text is a full reference: registry with a dot, a port or `localhost`, a lower-case repository, a tag.
pub fn is_reference(text: &str) -> bool {
    let Some((registry, rest)) = text.split_once('/') else { return false };
    let Some((repository, tag)) = rest.rsplit_once(':') else { return false };
    let host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:".contains(c);
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        part.chars().all(plain) && part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let tagged =
        (1..=128).contains(&tag.len()) && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !tag.starts_with(['.', '-']);
    (registry.contains(['.', ':']) || registry == "localhost") && registry.chars().all(host) && repository.split('/').all(part) && tagged
}

/// The full reference that a container runtime makes of a short one: `nginx` is `docker.io/library/nginx:latest`. A digest stays
/// as it is, with or without a tag. None where a text is no reference.
pub fn normalised(text: &str) -> Option<String> {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (registry, rest) = match name.split_once('/') {
        Some((host, rest)) if is_host(host) => (host, rest),
        _ => ("docker.io", name),
    };
    let (repository, given) = rest.rsplit_once(':').map_or((rest, None), |(repository, tag)| (repository, Some(tag)));
    let tag = given.unwrap_or("latest");
    let official = registry == "docker.io" && !repository.contains('/');
    let repository = if official { format!("library/{repository}") } else { repository.to_string() };
    let full = format!("{registry}/{repository}:{tag}");
    let hex = |digest: &str| digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    match digest {
        _ if !is_reference(&full) => None,
        None => Some(full),
        Some(digest) => hex(digest).then(|| given.map_or_else(|| format!("{registry}/{repository}@{digest}"), |_| format!("{full}@{digest}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_references_become_whole_as_a_runtime_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let whole = format!("quay.io/a/b@{digest}");
        for (text, expected) in [
            ("nginx", Some("docker.io/library/nginx:latest")),
            ("rancher/x:v1", Some("docker.io/rancher/x:v1")),
            ("localhost:5000/x", Some("localhost:5000/x:latest")),
            ("quay.io/a/b:1.2_3", Some("quay.io/a/b:1.2_3")),
            (&format!("quay.io/a/b@{digest}"), Some(whole.as_str())),
            (&format!("nginx:1@{digest}"), Some(&format!("docker.io/library/nginx:1@{digest}"))),
            ("quay.io/a/b@sha256:12", None),
            ("UPPER", None),
            ("{{ x }}", None),
            ("", None),
        ] {
            assert_eq!(normalised(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn references_are_whole() {
        for good in ["registry.k8s.io/pause:3.10.2", "localhost:5000/a/b-c:v1_2", "docker.io/rancher/local-path-provisioner:v0.0.30"] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["pause:3.10", "registry.k8s.io/pause", "registry.k8s.io/Pause:1", "registry.k8s.io//x:1", "a.b/c:", "a.b/../c:1", "a.b/c:.x"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
