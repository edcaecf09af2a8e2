//! Images made of trees: each layer as an uncompressed tar that is only hashed, configuration and manifest as canonical JSON (sorted keys,
//! no white space) of the OCI image specification. Equal layers are one, in whatever image they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::units::Digest;
use layers::{Context, Error, Result};
use oci_spec::image::{
    Arch, Config, Descriptor, HistoryBuilder, ImageConfigurationBuilder, ImageManifestBuilder, MediaType, Os, RootFsBuilder, SCHEMA_VERSION,
    Sha256Digest,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BuiltImage, Layer, Origin, write};
use crate::record::spdx::timestamp;
use crate::store::Store;
use crate::tree::{Kind, Node, Tree, TreePath};

/// How an image is to be made.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Full reference: `registry.k8s.io/kube-apiserver:v1.36.3`.
    pub name: String,
    /// Layers from the lowest.
    pub layers: Vec<LayerContent>,
    /// How its containers run.
    pub config: Settings,
    /// Architecture as Go names it: `amd64`.
    pub architecture: String,
    /// Why the image is there.
    pub wanted_by: Vec<String>,
}

/// What one layer holds.
#[derive(Clone, Debug, Default)]
pub struct LayerContent {
    /// What made it, for the image's history.
    pub comment: String,
    /// Its files with contents in packs of the store; directories that are missing come from the layers below.
    pub tree: Tree,
}

/// How an image's containers run; what is empty is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments where the container gives none.
    pub cmd: Vec<String>,
    /// Variables as `NAME=value`.
    pub env: Vec<String>,
    /// User, `name`, `uid` or `uid:gid`.
    pub user: String,
    /// Working directory.
    pub workdir: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports as `53/udp`.
    pub ports: Vec<String>,
}

/// Makes an image; layers that were made before come from the store. `epoch` is the time of all files and of the image.
pub fn build(recipe: &Recipe, store: &Store, epoch: i64) -> Result<BuiltImage> {
    make(recipe, store, epoch).context(|| format!("making image {}", recipe.name))
}

fn make(recipe: &Recipe, store: &Store, epoch: i64) -> Result<BuiltImage> {
    let layers: Vec<_> = recipe.layers.iter().map(|l| layer(&l.tree, store, epoch).map(Arc::new)).collect::<Result<_>>()?;
    let config = configuration(recipe, &layers, epoch)?;
    let manifest = manifest(&config, &layers)?;
    let (config_digest, digest) = (Digest::of(&config), Digest::of(&manifest));
    Ok(BuiltImage {
        name: recipe.name.clone(),
        digest,
        media_type: MediaType::ImageManifest.to_string(),
        manifest: digest,
        config: config_digest,
        documents: BTreeMap::from([(config_digest, config), (digest, manifest)]),
        layers,
        wanted_by: recipe.wanted_by.clone(),
        origin: Origin::Recipe,
    })
}

/// A layer of a tree: all times are `epoch`, hard links are told from their first name on. Kept in the store by what it holds.
pub fn layer(tree: &Tree, store: &Store, epoch: i64) -> Result<Layer> {
    let tree = canonical(tree, epoch)?;
    let key = Digest::of_parts([b"image layer v1".as_slice(), &described(&tree)?]);
    if let Some((diff_id, size)) = store.load("image-sums", &key)? {
        return Ok(Layer { diff_id, size, tree });
    }
    let (diff_id, size) = write::diff_id(&tree, store)?;
    store.save("image-sums", &key, &(diff_id, size))?;
    Ok(Layer { diff_id, size, tree })
}

/// A tree's entries without the places of their contents in the store: equal for equal trees.
pub(super) fn described(tree: &Tree) -> Result<Vec<u8>> {
    let mut tree = tree.clone();
    for node in tree.entries.values_mut() {
        if let Kind::File(content) = &mut node.kind {
            (content.pack, content.offset) = (Digest([0; 32]), 0);
        }
    }
    postcard::to_stdvec(&tree).map_err(|e| Error::internal(format!("encoding a layer: {e}")))
}

/// The tree as its tar tells it: one time, and a file at the first of its names, because a hard link must come after what it names.
fn canonical(tree: &Tree, epoch: i64) -> Result<Tree> {
    let mut first = BTreeMap::<TreePath, TreePath>::new();
    let mut out = Tree::default();
    for (path, node) in &tree.entries {
        let file = match &node.kind {
            Kind::HardLink(target) => target,
            _ => path,
        };
        let source = tree.get(file).filter(|n| !matches!(n.kind, Kind::HardLink(_)));
        let source = source.ok_or_else(|| Error::input(format!("hard link {path} points to {file}, which is no file")))?;
        let mut node = Node { mtime: epoch, ..source.clone() };
        if let Some(first) = first.get(file) {
            node.kind = Kind::HardLink(first.clone());
        }
        first.entry(file.clone()).or_insert_with(|| path.clone());
        out.insert(path.clone(), node);
    }
    Ok(out)
}

fn configuration(recipe: &Recipe, layers: &[Arc<Layer>], epoch: i64) -> Result<Vec<u8>> {
    let settings = &recipe.config;
    let list = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let mut config = Config::default();
    config.set_entrypoint(list(&settings.entrypoint)).set_cmd(list(&settings.cmd)).set_env(list(&settings.env));
    config.set_exposed_ports(list(&settings.ports)).set_user(text(&settings.user)).set_working_dir(text(&settings.workdir));
    if !settings.labels.is_empty() {
        config.set_labels(Some(settings.labels.clone().into_iter().collect()));
    }
    let created = timestamp(epoch);
    let history = recipe.layers.iter().map(|l| HistoryBuilder::default().created(created.clone()).created_by(l.comment.clone()).build());
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>()).build();
    let document = ImageConfigurationBuilder::default()
        .created(created.clone())
        .architecture(Arch::from(&*recipe.architecture))
        .os(Os::Linux)
        .config(config)
        .rootfs(rootfs.map_err(ours)?)
        .history(history.collect::<std::result::Result<Vec<_>, _>>().map_err(ours)?)
        .build();
    canonical_json(&document.map_err(ours)?)
}

fn manifest(config: &[u8], layers: &[Arc<Layer>]) -> Result<Vec<u8>> {
    let describe = |kind: MediaType, digest: Digest, size: u64| -> Result<Descriptor> {
        let digest: Sha256Digest = digest.hex().parse().map_err(ours)?;
        Ok(Descriptor::new(kind, size, digest))
    };
    let layers = layers.iter().map(|l| describe(MediaType::ImageLayer, l.diff_id, l.size)).collect::<Result<Vec<_>>>()?;
    let document = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(describe(MediaType::ImageConfig, Digest::of(config), config.len() as u64)?)
        .layers(layers)
        .build();
    canonical_json(&document.map_err(ours)?)
}

fn ours(e: impl std::fmt::Display) -> Error {
    Error::internal(format!("encoding an image document: {e}"))
}

fn canonical_json(document: &impl Serialize) -> Result<Vec<u8>> {
    let mut value: Value = serde_json::to_value(document).map_err(ours)?;
    // The crate keeps labels in hash maps.
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(ours)
}
