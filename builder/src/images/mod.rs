//! Container images as part of the root tree: made of recipes or taken from pulled blobs, one unpacked tree per layer, laid below
//! `layers::seed::LAYERS` with their documents and an index. Nothing of them is unpacked or imported on the node.

pub mod content;
pub mod install;
pub mod pulled;
pub mod read;
pub mod recipe;
pub mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::units::Digest;
use serde::{Deserialize, Serialize};

use crate::tree::Tree;

/// Prefix of whiteout files (OCI image specification, layer.md).
pub const WHITEOUT: &[u8] = b".wh.";
/// Name of the file that makes its directory opaque (same document).
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Overlay's mark of an opaque directory; its value is `y`.
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// Who made an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// We did, by a recipe: its files are held to the rules of the image lint.
    Recipe,
    /// A publisher did: changing a file would change its digests.
    Pulled,
}

/// One unpacked layer. The tree holds what its tar names: parent directories that the tar omits come with `install`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// The files; whiteouts are 0:0 character devices, opaque directories carry `trusted.overlay.opaque`.
    pub tree: Tree,
}

/// An image whose layers are trees.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// Full reference: `registry.k8s.io/pause:3.10.1`.
    pub name: String,
    /// Digest of the document that the name stands for.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the configuration.
    pub config: Digest,
    /// Bytes of all documents by digest.
    pub documents: BTreeMap<Digest, Vec<u8>>,
    /// Layers from the lowest.
    pub layers: Vec<Arc<Layer>>,
    /// Why the image is there.
    pub wanted_by: Vec<String>,
    /// Who made it.
    pub origin: Origin,
}
