//! Puts a result folder into a registry.

use std::fs::{self, File};
use std::path::Path;

use layers::image::Descriptor;
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};
use serde_json::{Value, json};

use super::{ARTIFACT, CONTENT_ID, INDEX, MANIFEST, Published, TITLE, repository};
use crate::pipeline::{SUMS, read_record, sha256, sum_of};
use crate::progress::Progress;
use crate::record::BuildRecord;
use crate::source::http::Body;
use crate::source::oci::{Document, Registries};

/// The configuration that an artifact does not have (OCI image specification 1.1, "Guidance for an empty descriptor").
const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");

/// A file of the folder.
struct Part {
    name: String,
    of: Descriptor,
}

/// Pushes all files of `folder` that SHA256SUMS names, and it; those that the registry has are not sent again. The same folder gives the same digest.
pub fn push(folder: &Path, reference: &str, registries: &Registries, dry_run: bool, progress: &Progress) -> Result<Published> {
    let build = read_record(folder)?;
    let parts = parts(folder)?;
    let (manifest, index) = documents(&build, &parts)?;
    let (repository, wanted) = repository(reference, registries)?;
    if wanted.starts_with("sha256:") {
        return Err(Error::input(format!("pushing to `{reference}`: name a tag, not a digest")));
    }
    let mut transferred = 0;
    let mut send = |of: &Descriptor, open: &dyn Fn() -> Result<Box<dyn std::io::Read>>| -> Result<()> {
        if !repository.has_blob(of)? {
            repository.put_blob(of, &Body { media_type: "application/octet-stream", size: of.size.0, open })?;
            transferred += of.size.0;
            progress.advance(of.size.0);
        }
        progress.finish_file();
        Ok(())
    };
    if !dry_run {
        // The empty configuration is one more.
        progress.start("pushing files", parts.len() as u64 + 1, parts.iter().map(|part| part.of.size.0).sum());
        for part in &parts {
            let path = folder.join(&part.name);
            send(&part.of, &|| Ok(Box::new(File::open(&path).context(|| format!("opening {}", path.display()))?)))?;
        }
        send(&empty(), &|| Ok(Box::new(EMPTY.1)))?;
        progress.finish();
        repository.put_manifest(&manifest.descriptor.digest.to_string(), &manifest)?;
        repository.put_manifest(&wanted, &index)?;
    }
    Ok(Published {
        repository: repository.name().into(),
        digest: index.descriptor.digest.to_string(),
        files: parts.into_iter().map(|part| part.name).collect(),
        transferred,
    })
}

/// What SHA256SUMS names, checked, and itself. A raw disk that it does not name stays: its gigabytes of zeros would all be sent.
fn parts(folder: &Path) -> Result<Vec<Part>> {
    let path = folder.join(SUMS);
    let text = fs::read_to_string(&path).fault(Fault::Input, || format!("reading {}", path.display()))?;
    let mut parts = Vec::new();
    for line in text.lines() {
        let (expected, name) = sum_of(line).ok_or_else(|| Error::input(format!("reading {}: `{line}` is no line of sha256sum", path.display())))?;
        let part = part(folder, name)?;
        if part.of.digest != expected {
            return Err(Error::input(format!("{}: {SUMS} says {expected}, the file has {}", folder.join(name).display(), part.of.digest))
                .with_hint("`chasi-bod verify` tells what differs; build it again"));
        }
        parts.push(part);
    }
    parts.push(part(folder, SUMS)?);
    Ok(parts)
}

fn part(folder: &Path, name: &str) -> Result<Part> {
    let path = folder.join(name);
    let size = Bytes(fs::metadata(&path).fault(Fault::Input, || format!("reading {}", path.display()))?.len());
    let of = Descriptor { media_type: media_type(name).into(), digest: sha256(&path)?, size };
    Ok(Part { name: name.into(), of })
}

/// Registered media types where there is one (IANA).
fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "json" => "application/json",
        "yaml" => "application/yaml",
        "zst" => "application/zstd",
        "iso" => "application/vnd.efi.iso",
        "tar" | "ova" => "application/x-tar",
        _ if name == SUMS => "text/plain",
        _ => "application/octet-stream",
    }
}

fn empty() -> Descriptor {
    Descriptor { media_type: EMPTY.0.into(), digest: Digest::of(EMPTY.1), size: Bytes(EMPTY.1.len() as u64) }
}

fn described(of: &Descriptor) -> Value {
    json!({"mediaType": of.media_type, "digest": of.digest.to_string(), "size": of.size.0})
}

fn documents(build: &BuildRecord, parts: &[Part]) -> Result<(Document, Document)> {
    let annotations = json!({
        TITLE: build.name,
        "org.opencontainers.image.version": build.version,
        CONTENT_ID: build.root.root_hash.hex(),
    });
    let layer = |part: &Part| {
        let mut layer = described(&part.of);
        layer["annotations"] = json!({TITLE: part.name});
        layer
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT, "config": described(&empty()),
        "layers": parts.iter().map(layer).collect::<Vec<_>>(), "annotations": annotations,
    });
    let manifest = document(&manifest, MANIFEST)?;
    let mut named = described(&manifest.descriptor);
    named["artifactType"] = json!(ARTIFACT);
    named["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "artifactType": ARTIFACT, "manifests": [named], "annotations": annotations});
    Ok((manifest, document(&index, INDEX)?))
}

fn document(value: &Value, media_type: &str) -> Result<Document> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::internal(format!("encoding a manifest: {e}")))?;
    Document::read(bytes, media_type)
}
