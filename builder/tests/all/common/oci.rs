//! Small container images, as a registry has them.

use std::collections::BTreeMap;
use std::io::Write;

use layers::units::Digest;
use serde_json::{Value, json};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image: its documents and blobs.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Manifests and index, each with its media type, the index last.
    pub manifests: Vec<(String, Vec<u8>)>,
    /// What the tag stands for.
    pub target: Vec<u8>,
    /// Configuration and layers.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Root's, at no time.
pub fn unowned(header: &mut tar::Header) {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
}

/// A tar of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        unowned(&mut header);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An image for one platform, of tars that are compressed here.
pub fn image(architecture: &str, tars: &[Vec<u8>]) -> Image {
    let blobs: Vec<_> = tars.iter().map(|tar| (GZIP, gzip(tar), Digest::of(tar))).collect();
    image_of(architecture, &blobs)
}

/// An image of blobs with their media types and diffIDs.
pub fn image_of(architecture: &str, layers: &[(&str, Vec<u8>, Digest)]) -> Image {
    let diff_ids: Vec<_> = layers.iter().map(|(.., diff_id)| diff_id.to_string()).collect();
    let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let descriptors: Vec<_> = layers.iter().map(|(media_type, bytes, _)| descriptor(media_type, bytes)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": descriptors});
    let manifest = manifest.to_string().into_bytes();
    let blobs = layers.iter().map(|(_, bytes, _)| bytes.clone()).chain([config]).map(|bytes| (Digest::of(&bytes), bytes)).collect();
    Image { manifests: vec![(MANIFEST.into(), manifest.clone())], target: manifest, blobs }
}

/// An index of images for several platforms.
pub fn index(images: &[(&str, &Image)]) -> Image {
    let entry = |(architecture, image): &(&str, &Image)| {
        let mut entry = descriptor(MANIFEST, &image.target);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let manifests: Vec<_> = images.iter().map(entry).collect();
    let target = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string().into_bytes();
    let mut out = Image { target: target.clone(), ..Image::default() };
    for (_, image) in images {
        out.manifests.extend(image.manifests.clone());
        out.blobs.extend(image.blobs.clone());
    }
    out.manifests.push((INDEX.into(), target));
    out
}

/// Bytes that no compression makes fewer, the same on every run.
pub fn noise(count: usize) -> Vec<u8> {
    let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1_u64), next).map(|state| (state >> 56) as u8).take(count).collect()
}
