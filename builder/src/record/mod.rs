//! The build record `build.json`: every input of an image by digest, so that a build can be replayed and an artifact checked.

pub mod spdx;

use layers::image::LockedImage;
use layers::lock::{Index, Package};
use layers::source::LockedSource;
use layers::units::{Bytes, Digest};
use serde::{Deserialize, Serialize};

use crate::inspect::{Check, FileCheck};

/// File name of the record beside the artifacts.
pub const FILE: &str = "build.json";

/// Everything that went into one image and what came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRecord {
    /// Profile name.
    pub name: String,
    /// Image version.
    pub version: String,
    /// Digest over all inputs; equal keys give equal artifacts.
    pub key: Digest,
    /// Seconds since 1970 that all timestamps of the image are held to.
    pub epoch: i64,
    /// What the image was made from.
    pub inputs: Inputs,
    /// The root file system.
    pub root: Root,
    /// Digests of the disk's partitions, for `verify`.
    pub check: Check,
    /// The artifacts of this folder.
    pub artifacts: Vec<Artifact>,
}

/// Inputs by digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    /// The command that built, with its version.
    pub builder: String,
    /// The binary that is agent and CLI on the node.
    pub node: Named,
    /// The binary that is `init` of the initramfs.
    pub init: Named,
    /// The profile after `extends` and defaults.
    pub profile: Named,
    /// The plan: every layer's packages, files, units and scripts.
    pub plan: Named,
    /// The lock.
    pub lock: Named,
    /// Signed package indices.
    pub indices: Vec<Index>,
    /// Packages in the image.
    pub packages: Vec<Package>,
    /// Packages that only ran during the build.
    pub tools: Vec<Package>,
    /// Go toolchains, Go modules and downloads, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Named>,
    /// Container images from registries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<LockedImage>,
}

/// What a source was made from.
pub fn parts(source: &LockedSource) -> Vec<Named> {
    let modules = source.go.iter().flat_map(|go| [&go.toolchain].into_iter().chain(&go.modules));
    let modules = modules.map(|module| Named { name: format!("{} {}", module.path, module.version), sha256: module.sha256 });
    modules.chain(source.url.iter().map(|file| Named { name: source.name.clone(), sha256: file.sha256 })).collect()
}

/// Something with a name and a digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// Name, with version where it has one.
    pub name: String,
    /// Digest of its bytes.
    pub sha256: Digest,
}

impl Named {
    /// The digest of `bytes` under a name.
    pub fn of(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self { name: name.into(), sha256: Digest::of(bytes) }
    }
}

/// The root file system of the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// dm-verity root hash; the content id that the node shows.
    pub root_hash: Digest,
    /// Bytes of the file system.
    pub size: Bytes,
    /// Bytes of one slot.
    pub slot: Bytes,
    /// Entries of the tree.
    pub entries: u64,
    /// Kernel release.
    pub kernel: String,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// File name inside the folder.
    pub file: String,
    /// Length of the file.
    pub size: Bytes,
    /// Digest of the file; raw images have one only with `--raw-sum`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Digests of its pieces, where the file is more than the disk it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<FileCheck>,
    /// The block map beside a raw image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_map: Option<Named>,
    /// SHA-256 of the certificate of who signed the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<Digest>,
}

impl Artifact {
    /// Names of its files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [self.file.as_str()].into_iter().chain(self.block_map.as_ref().map(|map| map.name.as_str()))
    }
}
