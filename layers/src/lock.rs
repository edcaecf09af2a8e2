//! The lock: every package of an image with version, digest, size and origin. Printed as YAML next to the profile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Digest};

/// What one profile resolved to. Two builds with equal locks give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lock {
    /// Version of this file's shape.
    pub lock_version: u32,
    /// Seconds since 1970 of the newest signed index; the image's timestamps.
    pub epoch: i64,
    /// Digest of what was asked for (package lists, suites); differs from the plan's when the profile changed since.
    pub request: Option<Digest>,
    /// The signed indices that the packages were found in.
    pub indices: Vec<Index>,
    /// Packages of the image, by name.
    pub packages: Vec<Package>,
    /// Packages of the tool root (GRUB's image maker), by name; not in the image.
    pub tools: Vec<Package>,
}

/// One signed index (InRelease) at the time of locking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Index {
    /// Suite, such as `trixie-security`.
    pub suite: String,
    /// Digest of the signed text.
    pub sha256: Digest,
    /// The `Date` field in seconds since 1970; an older one is a replay.
    pub date: i64,
    /// Fingerprints of the certificates whose signatures were good.
    pub signed_by: Vec<String>,
}

/// One locked package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Digest of the .deb.
    pub sha256: Digest,
    /// Size of the .deb.
    pub size: Bytes,
    /// Suite it came from.
    pub suite: String,
    /// Path below the archive's base URL (`pool/…`).
    pub path: String,
    /// Source package and its version, `name (version)` where they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Layers that asked for it by name; empty for dependencies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted_by: Vec<String>,
}

impl Lock {
    /// Current shape of the file.
    pub const VERSION: u32 = 1;

    /// Image packages by name.
    pub fn by_name(&self) -> BTreeMap<&str, &Package> {
        self.packages.iter().map(|p| (p.name.as_str(), p)).collect()
    }
}
