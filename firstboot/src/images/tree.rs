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

    /// Bytes of a manifest, index or configuration of the root; `None` when it is not there, an error when it is not what its name says.
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
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(std::io::Error::other(format!("the image of this node is damaged: the document's bytes are those of {found}")));
        }
        Ok(Some(bytes))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use layers::units::Bytes;

    use super::*;

    /// Makes a root with one image for each name and stack of layers, lowest first: a layer is the file `who` that holds its letter.
    pub fn root(images: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        let mut index = ImageIndex::default();
        for (name, stack) in images {
            let diff_ids: Vec<_> = stack.chars().map(|letter| Digest::of(letter.to_string().as_bytes())).collect();
            let mut parent = None;
            for ((id, diff_id), letter) in layers::seed::chain_ids(&diff_ids).into_iter().zip(&diff_ids).zip(stack.chars()) {
                index.chains.insert(id, Chain { diff_id: *diff_id, parent, layer: letter.into() });
                host.write(&format!("{LAYERS}/{letter}/who"), &[letter as u8], 0o644).unwrap();
                parent = Some(id);
            }
            let put = |bytes: &[u8]| {
                host.write(&format!("{DOCUMENTS}/{}", Digest::of(bytes).hex()), bytes, 0o644).unwrap();
                Digest::of(bytes)
            };
            let config = put(format!(r#"{{"rootfs":{{"type":"layers","diff_ids":{}}}}}"#, serde_json::to_string(&diff_ids).unwrap()).as_bytes());
            let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{config}"}}}}"#);
            let digest = put(manifest.as_bytes());
            let media_type = "application/vnd.oci.image.manifest.v1+json".into();
            let size = Bytes(manifest.len() as u64);
            index.images.push(Image { name: (*name).into(), digest, media_type, size, manifest: digest, config, wanted_by: Vec::new() });
        }
        host.write(INDEX, &serde_json::to_vec(&index).unwrap(), 0o644).unwrap();
        (folder, host)
    }

    #[test]
    fn a_root_without_images_is_none_and_a_broken_index_is_an_error() {
        let (_folder, host) = root(&[]);
        std::fs::remove_file(host.path(INDEX)).unwrap();
        assert!(Tree::load(&host).unwrap().images().is_empty());
        host.write(INDEX, b"{", 0o644).unwrap();
        assert!(Tree::load(&host).unwrap_err().to_string().contains(INDEX));
    }

    #[test]
    fn images_share_chains_and_name_their_layers() {
        let (_folder, host) = root(&[("a.io/x:1", "pq"), ("a.io/y:1", "pr")]);
        let tree = Tree::load(&host).unwrap();
        assert_eq!((tree.images().len(), tree.chains().count()), (2, 3));
        let (id, top) = tree.chains().find(|(_, chain)| chain.layer == "q").unwrap();
        assert_eq!(std::fs::read(tree.layer(tree.chain(id).unwrap()).join("who")).unwrap(), b"q");
        assert_eq!(tree.chain(&top.parent.unwrap()).unwrap().layer, "p");
    }

    #[test]
    fn f7_a_document_with_other_bytes_is_named_and_others_are_served() {
        let (_folder, host) = root(&[("a.io/x:1", "p"), ("a.io/y:1", "q")]);
        let tree = Tree::load(&host).unwrap();
        let (bad, good) = (tree.images()[0].config, tree.images()[1].config);
        host.write(&format!("{DOCUMENTS}/{}", bad.hex()), b"other", 0o644).unwrap();
        assert!(tree.document(&bad).unwrap_err().to_string().contains("damaged"));
        assert_eq!(Digest::of(&tree.document(&good).unwrap().unwrap()), good);
        assert!(tree.document(&Digest::of(b"none")).unwrap().is_none());
        host.write(&format!("{DOCUMENTS}/{}", bad.hex()), &vec![b' '; LARGEST_DOCUMENT as usize + 1], 0o644).unwrap();
        assert!(tree.document(&bad).unwrap_err().to_string().contains("4 MiB"));
    }
}
