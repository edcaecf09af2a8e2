//! Sources beside Debian packages: what a layer or profile may name, what a plan holds of it, and what a lock keeps.
//!
//! A source gives one file (a Go program, a download) or an archive; files and images of layers name it by `from`. A source that nothing
//! names is neither locked nor fetched.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::units::{Bytes, Digest};

/// Where something comes from. Exactly one key is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// A static program, built from Go modules by a locked Go toolchain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go: Option<GoSource>,
    /// A download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<UrlSource>,
}

/// A program built from Go modules, without cgo. Its `go.mod` is generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoSource {
    /// Package to build, such as `go.etcd.io/etcd/server/v3`; one of `package` and `main` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Folder of the layer with an own small main package (`.go` files).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<String>,
    /// Modules with their versions (`v1.2.3`).
    pub require: BTreeMap<String, String>,
    /// Modules to take otherwise than their users ask for: `version`, `module version` for a fork, or `./folder` of the layer for an own module
    /// (`.go` files and a `go.mod`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replace: BTreeMap<String, String>,
    /// Texts to set at link time (`-X`), by `package.variable`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// Build tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Version of the Go toolchain, such as `1.26.8`.
    pub toolchain: String,
}

impl GoSource {
    /// Folders of the layer that stand in for modules, by module.
    pub fn own_modules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.replace.iter().filter_map(|(module, to)| Some((module.as_str(), to.strip_prefix("./")?)))
    }
}

/// A download that is known by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlSource {
    /// Addresses, tried in order.
    pub from: Vec<String>,
    /// Digest of the whole file, which may be an archive: tar, alone or compressed with gzip, xz or zstd.
    pub sha256: Digest,
    /// The file of the archive that `from: NAME` means, so that an archive can take the place of a program; the whole download when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// A source that something of the plan names.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedSource {
    /// Name by which files and images refer to it.
    pub name: String,
    /// Layer that declares it.
    pub layer: String,
    /// The declaration.
    #[serde(flatten)]
    pub source: Source,
    /// Go files of an own main package, by name, and those of own modules, by their path in the layer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "digests")]
    pub files: BTreeMap<String, Vec<u8>>,
}

fn digests<S: Serializer>(files: &BTreeMap<String, Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(files.iter().map(|(name, bytes)| (name, Digest::of(bytes))))
}

impl std::fmt::Display for PlannedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            Source { go: Some(go), .. } => {
                let what = go.package.as_deref().or(go.main.as_deref()).unwrap_or_default();
                write!(f, "go {} {what}", go.toolchain)?;
                go.require.iter().try_for_each(|(module, version)| write!(f, " {module}@{version}"))
            }
            Source { url: Some(url), .. } => write!(f, "url {} {}", url.from.join(" "), url.sha256.short()),
            _ => Ok(()),
        }
    }
}

impl PlannedSource {
    /// Digest of the declaration with its files; a lock made for another one is outdated.
    pub fn request(&self) -> Digest {
        // No map of it has keys other than text.
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }
}

/// What a source resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedSource {
    /// Its name.
    pub name: String,
    /// Digest of the declaration it was locked for.
    pub request: Digest,
    /// What it is, by its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go: Option<LockedGo>,
    /// A download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<LockedFile>,
}

impl LockedSource {
    /// The bytes that it is made from, with their sizes.
    pub fn blobs(&self) -> Vec<(Digest, Bytes)> {
        let modules = self.go.iter().flat_map(|go| [&go.toolchain].into_iter().chain(&go.modules));
        let go = modules.flat_map(|m| [(m.sha256, m.size)].into_iter().chain(m.go_mod.as_ref().map(|f| (f.sha256, f.size))));
        go.chain(self.url.iter().map(|file| (file.sha256, file.size))).collect()
    }
}

/// A Go program: everything that its build reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedGo {
    /// The toolchain module.
    pub toolchain: LockedModule,
    /// Text of `go.mod`.
    pub go_mod: String,
    /// Text of `go.sum`.
    pub go_sum: String,
    /// Modules that the program is built from, by path and version.
    pub modules: Vec<LockedModule>,
}

/// One module of a Go module proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedModule {
    /// Module path.
    pub path: String,
    /// Version, with its `v`.
    pub version: String,
    /// Digest of its zip.
    pub sha256: Digest,
    /// Size of its zip.
    pub size: Bytes,
    /// Its `go.mod`; the toolchain has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go_mod: Option<LockedBlob>,
    /// Licences by their SPDX names; `NOASSERTION` where the text is not one that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

/// Bytes of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedBlob {
    /// Their digest.
    pub sha256: Digest,
    /// How many they are.
    pub size: Bytes,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedFile {
    /// Addresses, tried in order.
    pub from: Vec<String>,
    /// Digest of the whole file.
    pub sha256: Digest,
    /// Its size.
    pub size: Bytes,
}
