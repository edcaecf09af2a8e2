//! The Debian package source: from a signed archive to a lock, and from the lock to verified .debs in the store.
//!
//! The chain of trust is keyring → InRelease signature → digest of Packages → digest of each .deb; nothing is parsed before its link holds.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use layers::units::Digest;
use layers::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use crate::source::http::Client;
use crate::store::Store;

pub mod fetch;
pub mod index;
pub mod lock;
pub mod mirror;
mod relation;
pub mod release;
pub mod solve;
pub mod suite;

pub use fetch::{Fetched, fetch};
pub use lock::{Request, Update, Updates, Wanted, lock};
pub use mirror::Mirrors;

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offline {
    /// Missing blobs are fetched.
    #[default]
    Allowed,
    /// The network stays untouched: a missing blob is an error.
    Required,
}

/// A package that the image provides by other means: it satisfies dependencies and is never fetched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assumed {
    /// Its name.
    pub name: String,
    /// Its Debian version, for versioned dependencies.
    pub version: String,
    /// What else it provides: `name` or `name (= version)`.
    pub provides: Vec<String>,
}

/// Everything that locking and fetching need to know about their surroundings.
#[derive(Debug)]
pub struct Archive<'a> {
    /// Where blobs and parsed indices are kept.
    pub store: &'a Store,
    /// Base URLs.
    pub mirrors: Mirrors,
    /// File with the OpenPGP certificates that may sign.
    pub keyring: PathBuf,
    /// HTTP client with its limits.
    pub http: Client,
    /// Whether the network may be used.
    pub offline: Offline,
    /// Where long work shows itself.
    pub progress: &'a Progress,
    /// The moment at which validity is judged.
    pub now: SystemTime,
}

impl<'a> Archive<'a> {
    /// The same surroundings with another client, for what is no package.
    pub fn through(&self, http: Client) -> Archive<'a> {
        let Self { store, offline, progress, now, .. } = *self;
        Archive { store, mirrors: Mirrors::default(), keyring: PathBuf::new(), http, offline, progress, now }
    }
}

/// Where the Debian keyring lies on machines that have it.
pub const KEYRING: &str = "usr/share/keyrings/debian-archive-keyring.gpg";

/// The keyring file: the profile's, else the machine's below `root` (`/` outside tests).
pub fn keyring(root: &Path, explicit: Option<&Path>) -> Result<PathBuf> {
    let path = explicit.map_or_else(|| root.join(KEYRING), Path::to_path_buf);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::environment(format!("finding the archive keyring: {} is not there", path.display()))
        .with_hint("install the package debian-archive-keyring, or name a keyring file with `debian.keyring` in the profile"))
}

/// Where a package is fetched below a base URL, and how it is known when it is whole.
#[derive(Clone, Debug)]
pub struct Want {
    /// What people call it.
    pub label: String,
    /// Digest of the whole.
    pub sha256: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Full addresses, tried in order.
    pub urls: Vec<String>,
}
