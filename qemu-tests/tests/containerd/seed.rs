//! Images for the node's root and for registries, made of the same layers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use layers::seed::{Chain, DOCUMENTS, INDEX, Image, ImageIndex, LAYERS, chain_ids};
use layers::units::{Bytes, Digest};
use qemu_tests::exec;
use serde_json::json;

use crate::bench::programs;

/// The image of the processes that hold pods.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// Media type of the manifests here.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer: files by path; no bytes stand for "removed".
#[derive(Clone, Default)]
pub struct Layer {
    files: BTreeMap<String, Option<Vec<u8>>>,
}

impl Layer {
    /// A layer of one file.
    pub fn file(path: &str, text: &str) -> Self {
        Self::default().with(path, text.as_bytes())
    }

    /// A layer with the program that every image here starts.
    pub fn program() -> Self {
        Self::default().with("pause", &fs::read(programs().join("pause")).unwrap())
    }

    /// One more file.
    pub fn with(mut self, path: &str, bytes: &[u8]) -> Self {
        self.files.insert(path.into(), Some(bytes.to_vec()));
        self
    }

    /// One file less than below.
    pub fn without(mut self, path: &str) -> Self {
        self.files.insert(path.into(), None);
        self
    }

    /// The layer's tar as registries have it.
    pub fn tar(&self) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        self.lay(folder.path(), |path| fs::write(path.with_file_name(format!(".wh.{}", path.file_name().unwrap().display())), "").unwrap());
        let args = ["--sort=name", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C"];
        exec::run("tar", &[&args[..], &[folder.path().to_str().unwrap(), "-cf", "-", "."]].concat()).unwrap().stdout
    }

    fn lay(&self, folder: &Path, remove: impl Fn(&Path)) {
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match bytes {
                Some(bytes) => {
                    fs::write(&path, bytes).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                }
                None => remove(&path),
            }
        }
    }
}

/// An image: its name, and all documents and layers by digest.
#[derive(Clone)]
pub struct Made {
    /// Full reference.
    pub name: String,
    /// Digest of what the name stands for: the manifest or an index of it.
    pub digest: Digest,
    /// Media type of that.
    pub media_type: &'static str,
    manifest: Digest,
    /// Digest of the configuration.
    pub config: Digest,
    /// Documents by digest.
    pub documents: BTreeMap<Digest, Vec<u8>>,
    /// Layers' tars, from the lowest.
    pub tars: Vec<Vec<u8>>,
    layers: Vec<Layer>,
}

impl Made {
    /// Makes an image of layers, from the lowest.
    pub fn new(name: &str, layers: &[Layer]) -> Self {
        let tars: Vec<_> = layers.iter().map(Layer::tar).collect();
        let digests: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": digests}});
        let config = config.to_string().into_bytes();
        let described: Vec<_> =
            tars.iter().zip(&digests).map(|(tar, digest)| json!({"mediaType": TAR, "digest": digest, "size": tar.len()})).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": described, "config":
            {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()}});
        let manifest = manifest.to_string().into_bytes();
        let (digest, config_digest) = (Digest::of(&manifest), Digest::of(&config));
        let documents = BTreeMap::from([(digest, manifest), (config_digest, config)]);
        let (name, layers) = (name.into(), layers.to_vec());
        Self { name, digest, media_type: MANIFEST, manifest: digest, config: config_digest, documents, tars, layers }
    }

    /// The same image as one of several platforms, spaced as no printer of JSON would.
    pub fn indexed(mut self) -> Self {
        let size = self.documents[&self.digest].len();
        let entry = |digest: Digest, arch: &str| {
            format!(r#"{{ "mediaType":"{MANIFEST}" ,"digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{arch}"}}}}"#)
        };
        let list = [entry(Digest::of(b"not here"), "arm64"), entry(self.digest, "amd64")].join(" , ");
        let index = format!(r#"{{"schemaVersion":2,  "mediaType":"{INDEX_TYPE}","manifests":[{list}]}}"#).into_bytes();
        (self.digest, self.media_type) = (Digest::of(&index), INDEX_TYPE);
        self.documents.insert(self.digest, index);
        self
    }
}

/// What a root carries.
#[derive(Default)]
pub struct Seed {
    images: Vec<Made>,
}

impl Seed {
    /// A root with pause alone.
    pub fn new() -> Self {
        Self::default().with(PAUSE, &[Layer::program()])
    }

    /// One more image.
    pub fn with(self, name: &str, layers: &[Layer]) -> Self {
        self.with_made(Made::new(name, layers))
    }

    /// One more image, as it is.
    pub fn with_made(mut self, image: Made) -> Self {
        self.images.push(image);
        self
    }

    /// The image with this name.
    pub fn image(&self, name: &str) -> &Made {
        self.images.iter().find(|image| image.name == name).unwrap()
    }

    /// Writes all of it below a root.
    pub fn write(&self, root: &Path) {
        let at = |path: &str| root.join(path.trim_start_matches('/'));
        fs::create_dir_all(at(DOCUMENTS)).unwrap();
        let mut index = ImageIndex::default();
        for image in &self.images {
            let diff_ids: Vec<_> = image.tars.iter().map(|tar| Digest::of(tar)).collect();
            let mut parent = None;
            for ((id, diff_id), layer) in chain_ids(&diff_ids).into_iter().zip(diff_ids).zip(&image.layers) {
                let name = diff_id.short();
                layer.lay(&at(LAYERS).join(&name), |path| {
                    let _ = exec::run("mknod", &[path.to_str().unwrap(), "c", "0", "0"]);
                });
                index.chains.insert(id, Chain { diff_id, parent, layer: name });
                parent = Some(id);
            }
            for (digest, bytes) in &image.documents {
                fs::write(at(DOCUMENTS).join(digest.hex()), bytes).unwrap();
            }
            let (name, size) = (image.name.clone(), Bytes(image.documents[&image.digest].len() as u64));
            let (digest, manifest, config, media_type) = (image.digest, image.manifest, image.config, image.media_type.into());
            index.images.push(Image { name, digest, media_type, size, manifest, config, wanted_by: Vec::new() });
        }
        fs::write(at(INDEX), serde_json::to_vec(&index).unwrap()).unwrap();
    }
}
