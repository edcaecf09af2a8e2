//! Images in a folder or tar file (OCI image layout: image-layout.md of the OCI image specification), as skopeo, buildah, `docker save` and others write
//! them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use layers::image::{DOCUMENT_LIMIT, Descriptor};
use layers::reference::Reference;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use oci_spec::image::ImageIndex;

use super::document::{self, Document};

/// Annotations in which tools write the name of an image.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// A layout, opened.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    /// Where the files of a tar are: first byte and length.
    members: Option<BTreeMap<String, (u64, u64)>>,
    entries: Vec<Entry>,
}

/// An image of a layout.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its whole name, where one is written.
    pub name: Option<Reference>,
    /// Its manifest or index.
    pub target: Descriptor,
}

impl Layout {
    /// Reads what a folder or tar file has.
    pub fn open(path: &Path) -> Result<Self> {
        let reading = || format!("reading the images of {}", path.display());
        let members = if path.is_dir() { None } else { Some(members(path).context(reading)?) };
        let mut layout = Self { path: path.into(), members, entries: Vec::new() };
        let text = layout.bytes("index.json").map_err(|error| {
            let hint = "such a layout is made by `skopeo copy SOURCE oci:FOLDER:NAME`, `buildah push`, or `docker save` since version 25";
            if error.fault() == Fault::Input { error.with_hint(hint) } else { error }
        });
        let index: ImageIndex =
            serde_json::from_slice(&text.context(reading)?).fault(Fault::Input, || format!("{}: reading index.json", reading()))?;
        for found in index.manifests() {
            let annotations = found.annotations().clone().unwrap_or_default();
            // A mere tag does not say of what.
            let name = NAMES.iter().find_map(|key| annotations.get(*key)?.parse().ok());
            layout.entries.push(Entry { name, target: document::descriptor(found).context(reading)? });
        }
        Ok(layout)
    }

    /// All its images.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A manifest or index by its descriptor.
    pub fn document(&self, of: &Descriptor) -> Result<Document> {
        let read = || {
            let bytes = self.bytes(&member(&of.digest))?;
            match Digest::of(&bytes) {
                found if found == of.digest => Document::read(bytes, &of.media_type),
                found => Err(Error::input(format!("its digest is {found}"))),
            }
        };
        read().context(|| format!("reading {} of {}", of.digest, self.path.display()))
    }

    /// A blob at its beginning, as long as it is told to be; its digest is for the reader to check.
    pub fn blob(&self, of: &Descriptor) -> Result<Box<dyn Read>> {
        let read = || match self.read(&member(&of.digest))? {
            (bytes, length) if length == of.size.0 => Ok(bytes),
            (_, length) => Err(Error::input(format!("it has {length} bytes, the manifest says {}", of.size.0))),
        };
        read().context(|| format!("reading blob {} of {}", of.digest, self.path.display()))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(name)?.0.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes).context(|| format!("reading {name}"))?;
        if bytes.len() as u64 > DOCUMENT_LIMIT { Err(Error::input(format!("{name} has more than {DOCUMENT_LIMIT} bytes"))) } else { Ok(bytes) }
    }

    /// A file at its beginning, and its length.
    fn read(&self, name: &str) -> Result<(Box<dyn Read>, u64)> {
        let opening = || format!("opening {name}");
        let Some(members) = &self.members else {
            let file = File::open(self.path.join(name)).fault(Fault::Input, opening)?;
            let length = file.metadata().context(opening)?.len();
            return Ok((Box::new(file), length));
        };
        let (first, length) = members.get(name).ok_or_else(|| Error::input(format!("it has no {name}")))?;
        let mut file = File::open(&self.path).fault(Fault::Input, opening)?;
        file.seek(SeekFrom::Start(*first)).context(opening)?;
        Ok((Box::new(file.take(*length)), *length))
    }
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn members(path: &Path) -> Result<BTreeMap<String, (u64, u64)>> {
    let broken = || "reading it as a tar file".to_string();
    let mut archive = tar::Archive::new(File::open(path).fault(Fault::Input, || "opening it".into())?);
    let mut out = BTreeMap::new();
    for entry in archive.entries_with_seek().fault(Fault::Input, broken)? {
        let entry = entry.map_err(|error| Error::input(format!("{}: {error}", broken())).with_hint("a compressed one has to be unpacked before"))?;
        if entry.header().entry_type().is_file() {
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
            out.insert(name, (entry.raw_file_position(), entry.size()));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    /// A layout of one manifest that names nothing.
    fn made(folder: &Path, name: &str) -> Digest {
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).to_string();
        let digest = Digest::of(manifest.as_bytes());
        std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        std::fs::write(folder.join("blobs/sha256").join(digest.hex()), &manifest).unwrap();
        let entry = json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len(), "annotations": {NAMES[1]: name}});
        std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
        digest
    }

    #[test]
    fn folder_and_tar_are_read_alike() {
        let folder = tempfile::tempdir().unwrap();
        let digest = made(folder.path(), "example.org/team/tool:1");
        let tar = folder.path().join("layout.tar");
        let mut archive = tar::Builder::new(File::create(&tar).unwrap());
        ["index.json", "blobs"].iter().for_each(|name| match folder.path().join(name) {
            path if path.is_dir() => archive.append_dir_all(format!("./{name}"), path).unwrap(),
            path => archive.append_path_with_name(path, name).unwrap(),
        });
        archive.finish().unwrap();
        for path in [folder.path(), &tar] {
            let layout = Layout::open(path).unwrap();
            let [entry] = layout.entries() else { panic!("{layout:?}") };
            assert_eq!((entry.name.as_ref().unwrap().to_string().as_str(), entry.target.digest), ("example.org/team/tool:1", digest));
            assert_eq!(layout.document(&entry.target).unwrap().descriptor.digest, digest);
            let mut bytes = Vec::new();
            layout.blob(&entry.target).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(Digest::of(&bytes), digest);
        }
    }

    #[test]
    fn what_is_no_layout_and_bytes_that_are_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Layout::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("index.json") && error.hint().unwrap().contains("skopeo"), "{error}");
        std::fs::write(folder.path().join("x.tar.gz"), [0x1f, 0x8b, 8, 0, 0, 0]).unwrap();
        assert!(Layout::open(&folder.path().join("x.tar.gz")).unwrap_err().to_string().contains("x.tar.gz"));
        let digest = made(folder.path(), "latest");
        let layout = Layout::open(folder.path()).unwrap();
        assert!(layout.entries()[0].name.is_none(), "a tag alone is no name");
        std::fs::write(folder.path().join("blobs/sha256").join(digest.hex()), "{}").unwrap();
        let error = layout.document(&layout.entries()[0].target).unwrap_err().to_string();
        assert!(error.contains(&digest.to_string()) && error.contains("its digest is"), "{error}");
        let error = layout.blob(&layout.entries()[0].target).err().unwrap().to_string();
        assert!(error.contains(&digest.to_string()) && error.contains("it has 2 bytes, the manifest says"), "{error}");
    }
}
