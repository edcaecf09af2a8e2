//! Pulled images as trees: manifest, configuration and layer blobs of the store, each verified while it is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};
use oci_spec::image::{Descriptor, ImageManifest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{BuiltImage, Layer, Origin, read};
use crate::assemble::deb::{Compression, Limited, decoder};
use crate::store::Store;

/// Largest manifest, index or configuration.
const DOCUMENT_LIMIT: u64 = 4 << 20;

/// An image as its registry had it; all blobs are in the store.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Full reference.
    pub name: String,
    /// Digest of the document that the name stands for: a manifest or an index.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Digest of the manifest for the image's architecture.
    pub manifest: Digest,
    /// The architecture that is needed, as Go names it.
    pub architecture: String,
    /// Why the image is there.
    pub wanted_by: Vec<String>,
}

/// How much a layer may unpack to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Most bytes of one layer's tar; by default 1 GiB and 64 times the blob.
    pub unpacked: Option<Bytes>,
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
    diff_ids: Vec<Digest>,
}

/// Unpacks an image; layers that were unpacked before come from the store.
pub fn build(image: &Pulled, store: &Store, limits: Limits) -> Result<BuiltImage> {
    unpack(image, store, limits).context(|| format!("unpacking image {}@{}", image.name, image.digest))
}

fn unpack(image: &Pulled, store: &Store, limits: Limits) -> Result<BuiltImage> {
    let mut documents = BTreeMap::new();
    for digest in [image.digest, image.manifest] {
        documents.insert(digest, document(store, &digest)?);
    }
    let text = &documents[&image.manifest];
    let manifest = parse_manifest(text, &image.manifest)?;
    let config_digest = digest_of(manifest.config())?;
    let config = document(store, &config_digest)?;
    let parsed: Config = serde_json::from_slice(&config).context(|| format!("reading configuration {config_digest}"))?;
    let declared = manifest.config().size();
    if config.len() as u64 != declared {
        return Err(Error::input(format!("configuration {config_digest} has {} bytes, the manifest says {declared}", config.len())));
    }
    if parsed.os != "linux" || parsed.architecture != image.architecture {
        return Err(Error::input(format!("the image is for {}/{}, needed is linux/{}", parsed.os, parsed.architecture, image.architecture)));
    }
    let (have, want) = (manifest.layers().len(), parsed.rootfs.diff_ids.len());
    if have != want {
        return Err(Error::input(format!("the manifest has {have} layers, the configuration {want}")));
    }
    documents.insert(config_digest, config);
    let pairs = manifest.layers().iter().zip(&parsed.rootfs.diff_ids);
    let layers = pairs.map(|(blob, diff_id)| layer(blob, *diff_id, store, limits).map(Arc::new)).collect::<Result<_>>()?;
    Ok(BuiltImage {
        name: image.name.clone(),
        digest: image.digest,
        media_type: image.media_type.clone(),
        manifest: image.manifest,
        config: config_digest,
        documents,
        layers,
        wanted_by: image.wanted_by.clone(),
        origin: Origin::Pulled,
    })
}

/// Reads a document of the store and checks its digest.
fn document(store: &Store, digest: &Digest) -> Result<Vec<u8>> {
    let path = store.blob(digest);
    let size = fs::metadata(&path).context(|| format!("reading document {digest}"))?.len();
    if size > DOCUMENT_LIMIT {
        return Err(Error::input(format!("document {digest} has {size} bytes, more than 4 MiB")));
    }
    let bytes = fs::read(&path).context(|| format!("reading document {digest}"))?;
    let found = Digest::of(&bytes);
    if found == *digest { Ok(bytes) } else { Err(Error::input(format!("document {digest} has digest {found}"))) }
}

fn parse_manifest(text: &[u8], digest: &Digest) -> Result<ImageManifest> {
    let value: serde_json::Value = serde_json::from_slice(text).context(|| format!("reading manifest {digest}"))?;
    if value.get("manifests").is_some() {
        return Err(Error::input(format!("document {digest} holds `manifests`, which a manifest may not")));
    }
    serde_json::from_value(value).context(|| format!("reading manifest {digest}"))
}

fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().to_string().parse().map_err(|e: String| Error::input(e))
}

/// Unpacks one layer blob, or reads it back when the store has it.
fn layer(blob: &Descriptor, diff_id: Digest, store: &Store, limits: Limits) -> Result<Layer> {
    let digest = digest_of(blob)?;
    let key = Digest::of_parts([b"pulled layer v1".as_slice(), &digest.0, &diff_id.0]);
    if let Some(known) = store.load::<Layer>("image-layers", &key)?
        && store.pack(&key).exists()
        && limits.unpacked.is_none_or(|limit| known.size <= limit.0)
    {
        return Ok(known);
    }
    let naming = || format!("unpacking layer {digest}");
    let path = store.blob(&digest);
    let file = File::open(&path).context(|| format!("opening {}", path.display())).context(naming)?;
    let size = file.metadata().context(naming)?.len();
    if size != blob.size() {
        return Err(Error::input(format!("layer {digest} has {size} bytes, the manifest says {}", blob.size())));
    }
    let limit = limits.unpacked.map_or((1 << 30) + 64 * size, |b| b.0);
    let mut pack = store.new_pack(key)?;
    let mut raw = Hashed::new(file);
    let mut plain = Hashed::new(Limited { inner: unpacked(&mut raw, blob.media_type().as_ref())?, left: limit });
    let tree = read::layer(&mut plain, &mut pack).context(naming)?;
    let (found, length) = plain.finish(naming)?;
    let (packed, _) = raw.finish(naming)?;
    // The outer digest first: a damaged download explains a wrong inner one.
    for (what, want, found) in [("digest", digest, packed), ("diffID", diff_id, found)] {
        if want != found {
            return Err(Error::input(format!("layer {digest} has {what} {found}, expected {want}")));
        }
    }
    pack.finish()?;
    let layer = Layer { diff_id, size: length, tree };
    store.save("image-layers", &key, &layer)?;
    Ok(layer)
}

/// The tar inside a blob. What compresses it is told by its first bytes, as engines do; the media type only says that it is a layer.
fn unpacked<'a>(raw: impl Read + 'a, media_type: &str) -> Result<Box<dyn Read + 'a>> {
    if !media_type.contains(".image.layer.") && !media_type.contains(".image.rootfs.") {
        return Err(Error::input(format!("`{media_type}` is no layer of a container image")));
    }
    let mut raw = BufReader::with_capacity(1 << 17, raw);
    let compression = match raw.fill_buf().context(|| "reading the layer".into())? {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    decoder(raw, compression)
}

/// Hashes and counts what passes.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    size: u64,
}

impl<R: Read> Hashed<R> {
    fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), size: 0 }
    }

    /// Reads the rest; digest and length of all.
    fn finish(mut self, naming: impl FnOnce() -> String) -> Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink()).fault(Fault::Input, naming)?;
        Ok((Digest(self.hasher.finalize().into()), self.size))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.size += n as u64;
        Ok(n)
    }
}
