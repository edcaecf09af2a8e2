//! The images of the root, read once: the root cannot change below a running system.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use layers::seed::{Chain, DOCUMENTS, INDEX, Image, ImageIndex, LAYERS};
use layers::units::Digest;
use layers::{Context, Fault, Result};

use crate::host::Host;

/// Largest manifest, index or configuration that is served, as containerd and the distribution specification limit them.
pub const LARGEST_DOCUMENT: u64 = 4 << 20;

/// Index and folders of the images in the root.
#[derive(Debug)]
pub struct Tree {
    index: ImageIndex,
    layers: PathBuf,
    documents: PathBuf,
}

impl Tree {
    /// Reads the index of the root; a root without one carries no images.
    pub fn load(host: &Host) -> Result<Self> {
        let index = match host.read_bytes(INDEX)? {
            Some(bytes) => serde_json::from_slice(&bytes).fault(Fault::Internal, || format!("reading {INDEX}"))?,
            None => ImageIndex::default(),
        };
        Ok(Self { index, layers: host.path(LAYERS), documents: host.path(DOCUMENTS) })
    }

    /// All images.
    pub fn images(&self) -> &[Image] {
        &self.index.images
    }

    /// All chains.
    pub fn chains(&self) -> impl Iterator<Item = (&Digest, &Chain)> {
        self.index.chains.iter()
    }

    /// The chain with this chainID.
    pub fn chain(&self, id: &Digest) -> Option<&Chain> {
        self.index.chains.get(id)
    }

    /// Folder of the chain's uppermost layer.
    pub fn layer(&self, chain: &Chain) -> PathBuf {
        self.layers.join(&chain.layer)
    }

    /// Bytes of a manifest, index or configuration of the root; `None` when it is not there.
    pub fn document(&self, digest: &Digest) -> std::io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.documents.join(digest.hex())) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            return Err(std::io::Error::other("the document is larger than 4 MiB"));
        }
        Ok(Some(bytes))
    }
}
