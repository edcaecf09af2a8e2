//! Planned and locked container images → images with unpacked layers.

use std::collections::BTreeMap;

use layers::image::{LockedImage, PlannedImage, PlannedImageLayer};
use layers::lock::{Lock, Package};
use layers::plan::Body;
use layers::units::Digest;
use layers::{Context, Error, Result};

use super::Planned;
use crate::assemble::apply::Given;
use crate::assemble::editor::{Editor, known};
use crate::assemble::unpack;
use crate::images::pulled::{self, Limits, Pulled};
use crate::images::recipe::{self, LayerContent, Recipe, Settings};
use crate::images::{BuiltImage, content};
use crate::store::Store;
use crate::tree::{Kind, Tree};

/// Where a container looks for programs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the plan's images and unpacks those of the lock.
pub fn make(planned: &Planned, lock: &Lock, given: &Given<'_>, store: &Store) -> Result<Vec<BuiltImage>> {
    let (plan, architecture) = (&planned.plan, planned.profile.architecture.debian());
    let layers = plan.image_layers.iter().map(|planned| Ok((planned.name.as_str(), layer(planned, lock, given, store)?)));
    let layers: BTreeMap<&str, LayerContent> = layers.collect::<Result<_>>()?;
    let made = plan.images.iter().map(|planned| recipe::build(&recipe_of(planned, &layers, lock, architecture)?, store, lock.epoch));
    let pulled = lock.images.iter().map(|image| pulled::build(&pulled_of(image, architecture), store, Limits::default()));
    made.chain(pulled).collect()
}

fn pulled_of(image: &LockedImage, architecture: &str) -> Pulled {
    Pulled {
        name: image.name.clone(),
        digest: image.target.digest,
        media_type: image.target.media_type.clone(),
        manifest: image.manifest.digest,
        architecture: architecture.into(),
        wanted_by: image.wanted_by.clone(),
    }
}

fn recipe_of(planned: &PlannedImage, layers: &BTreeMap<&str, LayerContent>, lock: &Lock, architecture: &str) -> Result<Recipe> {
    let image = &planned.image;
    let found = image.layers.iter().map(|name| {
        layers.get(name.as_str()).cloned().ok_or_else(|| Error::internal(format!("making image {}: its layer `{name}` was not made", image.name)))
    });
    let layers = found.collect::<Result<_>>()?;
    let own = image.environment.iter().map(|(name, value)| format!("{name}={value}"));
    let path = (!image.environment.contains_key("PATH")).then(|| PATH.to_string());
    let config = Settings {
        entrypoint: image.entrypoint.clone(),
        cmd: image.command.clone(),
        env: path.into_iter().chain(own).collect(),
        user: image.user.clone().unwrap_or_default(),
        ..Settings::default()
    };
    let asked = lock.wanted.iter().filter(|wanted| wanted.image == image.name).flat_map(|wanted| wanted.wanted_by.clone());
    let wanted_by = std::iter::once(format!("layer {}", planned.layer)).chain(asked).collect();
    Ok(Recipe { name: image.name.clone(), layers, config, architecture: architecture.into(), wanted_by })
}

/// Packages first, the layer's own files on top.
fn layer(planned: &PlannedImageLayer, lock: &Lock, given: &Given<'_>, store: &Store) -> Result<LayerContent> {
    let context = || format!("making image layer `{}`", planned.name);
    let packages = packages(planned, lock).context(context)?;
    let unpacked = unpack::unpack_all(store, &packages, &|_| {})?;
    let sums: Vec<u8> = packages.iter().flat_map(|p| p.sha256.0).collect();
    let key = Digest::of_parts([b"image layer files v1".as_slice(), planned.name.as_bytes(), &sums, &digest(planned)?.0]);
    let mut pack = store.new_pack(key)?;
    let pairs: Vec<_> = packages.into_iter().zip(unpacked).collect();
    let mut made = match pairs.as_slice() {
        [] => LayerContent { comment: format!("files of image layer {}", planned.name), tree: Tree::default() },
        pairs => content::packages(pairs, store, &mut pack).context(context)?,
    };
    let mut editor = Editor::new(&mut made.tree, store, &mut pack, lock.epoch);
    for file in &planned.files {
        let (path, owner) = (known(&file.path)?, (number(&file.owner)?, number(&file.group)?));
        match &file.body {
            Body::Link(target) => editor.link(path, target),
            Body::Bytes(bytes) => editor.put(path, bytes, file.mode, owner),
            Body::Node => editor.put(path, given.node, file.mode, owner),
            Body::From { source, member } => editor.put_content(path, given.content(file, source, member.as_deref())?, file.mode, owner),
        }
        .context(context)?;
    }
    pack.finish()?;
    Ok(made)
}

fn digest(planned: &PlannedImageLayer) -> Result<Digest> {
    serde_json::to_vec(planned).map(|bytes| Digest::of(&bytes)).map_err(|e| Error::internal(format!("encoding an image layer: {e}")))
}

/// The host's packages of these names.
fn packages(planned: &PlannedImageLayer, lock: &Lock) -> Result<Vec<Package>> {
    let known = lock.by_name();
    let one = |name: &String| {
        let refused = || Error::input(format!("package {name} is not one of the host's")).with_hint("list it under `packages` of the layer");
        known.get(name.as_str()).map(|p| (*p).clone()).ok_or_else(refused)
    };
    planned.packages.iter().map(one).collect()
}

/// Owners in images are numbers: which names there are is each image's own matter.
fn number(owner: &str) -> Result<u32> {
    match owner {
        "root" => Ok(0),
        text => text.parse().map_err(|_| Error::input(format!("owner `{text}` of a file in an image layer must be a number or root"))),
    }
}

/// Files of the host that have the very bytes, mode and owner of a file in an image layer become further names of it: one copy on the disk and in
/// memory.
pub fn share(tree: &mut Tree) -> Result<()> {
    let layers = known(layers::seed::LAYERS)?;
    let key = |node: &crate::tree::Node| match &node.kind {
        Kind::File(content) if content.size >= 1 << 20 && node.xattrs.is_empty() => Some((content.sha256, node.mode, node.uid, node.gid, node.mtime)),
        _ => None,
    };
    let known: BTreeMap<_, _> = tree.below(&layers).filter_map(|(path, node)| Some((key(node)?, path.clone()))).collect();
    for (path, node) in &mut tree.entries {
        if let Some(first) = key(node).and_then(|key| known.get(&key)).filter(|_| !path.is_within(&layers)) {
            node.kind = Kind::HardLink(first.clone());
        }
    }
    Ok(())
}
