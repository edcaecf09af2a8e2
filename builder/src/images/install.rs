//! Images into the root's tree: layers below `LAYERS`, documents below `DOCUMENTS`, the index. The last change to a tree, after `finalize`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use layers::seed::{Chain, DOCUMENTS, INDEX, Image, ImageIndex, LAYERS, chain_ids};
use layers::units::{Bytes, Digest};
use layers::{Error, Result};

use super::{BuiltImage, Layer, OPAQUE_XATTR, Origin, recipe};
use crate::assemble::editor::{Editor, known};
use crate::assemble::merge::behind_links;
use crate::tree::{Kind, Node, Tree, TreePath};

/// Fewest digits of a layer folder's name.
const ID_DIGITS: usize = 8;

/// What was put into the root.
#[derive(Debug)]
pub struct Installed {
    /// The index as written.
    pub index: ImageIndex,
    /// Folders of layers that no recipe made: the image lint has nothing to say about them.
    pub foreign: Vec<TreePath>,
}

/// A folder to be: its tree with all parents, and whether a recipe of ours holds it.
struct Folder {
    diff_id: Digest,
    tree: Tree,
    ours: bool,
}

/// Puts images into a tree; the order of the images does not count. The folder of all layers is closed to others than root, because layers
/// hold set-user-id programs and devices that only containers may reach.
pub fn install(editor: &mut Editor<'_, '_>, images: &[BuiltImage]) -> Result<Installed> {
    let images = by_name(images)?;
    let mut folders = BTreeMap::<Digest, Folder>::new();
    let mut chains = BTreeMap::<Digest, (Digest, Option<Digest>, Digest)>::new();
    for image in &images {
        stack(image, &mut folders, &mut chains)?;
    }
    let ids = names(&folders);
    editor.directory(LAYERS, 0o700)?;
    let mut foreign = Vec::new();
    for (key, folder) in &folders {
        let place = known(&format!("{LAYERS}/{}", ids[key]))?;
        put(editor, &place, &folder.tree)?;
        if !folder.ours {
            foreign.push(place);
        }
    }
    let chain = |(diff_id, parent, folder): (Digest, Option<Digest>, Digest)| Chain { diff_id, parent, layer: ids[&folder].clone() };
    let index = ImageIndex { images: images.iter().map(record).collect(), chains: chains.into_iter().map(|(id, c)| (id, chain(c))).collect() };
    for (digest, bytes) in images.iter().flat_map(|i| &i.documents) {
        editor.put(known(&format!("{DOCUMENTS}/{}", digest.hex()))?, bytes, 0o644, (0, 0))?;
    }
    let text = serde_json::to_vec_pretty(&index).map_err(|e| Error::internal(format!("encoding the index of images: {e}")))?;
    editor.put(known(INDEX)?, &text, 0o644, (0, 0))?;
    Ok(Installed { index, foreign })
}

/// Images in order of their names; one name with two digests is refused.
fn by_name(images: &[BuiltImage]) -> Result<Vec<BuiltImage>> {
    let mut out = BTreeMap::<&str, BuiltImage>::new();
    for image in images {
        match out.get_mut(&*image.name) {
            None => drop(out.insert(&image.name, image.clone())),
            Some(known) if known.digest == image.digest => {
                let wanted: BTreeSet<_> = known.wanted_by.iter().chain(&image.wanted_by).cloned().collect();
                known.wanted_by = wanted.into_iter().collect();
            }
            Some(known) => {
                return Err(Error::input(format!("image {} is asked for as {} and as {}", image.name, known.digest, image.digest)));
            }
        }
    }
    Ok(out.into_values().collect())
}

fn record(image: &BuiltImage) -> Image {
    let size = image.documents.get(&image.digest).map_or(0, Vec::len);
    Image {
        name: image.name.clone(),
        digest: image.digest,
        media_type: image.media_type.clone(),
        size: Bytes(size as u64),
        manifest: image.manifest,
        config: image.config,
        wanted_by: image.wanted_by.clone(),
    }
}

/// Adds an image's folders and chains. What a folder holds depends on the layers below only where its tar omits parents.
fn stack(image: &BuiltImage, folders: &mut BTreeMap<Digest, Folder>, chains: &mut BTreeMap<Digest, (Digest, Option<Digest>, Digest)>) -> Result<()> {
    let diff_ids: Vec<_> = image.layers.iter().map(|l| l.diff_id).collect();
    let ids = chain_ids(&diff_ids);
    let mut below = Tree::default();
    for (at, layer) in image.layers.iter().enumerate() {
        let tree = with_parents(layer, &below);
        cover(&mut below, &tree);
        let key = Digest::of_parts([layer.diff_id.0.as_slice(), &recipe::described(&tree)?]);
        chains.insert(ids[at], (layer.diff_id, at.checked_sub(1).map(|n| ids[n]), key));
        let folder = folders.entry(key).or_insert_with(|| Folder { diff_id: layer.diff_id, tree, ours: false });
        folder.ours |= image.origin == Origin::Recipe;
    }
    Ok(())
}

/// The layer with the directories that its tar omits, as they are in the layers below, else root's with mode 0755.
fn with_parents(layer: &Arc<Layer>, below: &Tree) -> Tree {
    let mut tree = layer.tree.clone();
    for path in layer.tree.entries.keys().chain([&TreePath::default().join(b"x")]) {
        let mut next = path.parent();
        while let Some(dir) = next.filter(|d| tree.get(d).is_none()) {
            let there = behind_links(below, &dir.join(b"x")).ok().and_then(|p| p.parent());
            let lower = there.and_then(|p| below.get(&p)).filter(|n| n.is_dir());
            let mut node = lower.cloned().unwrap_or_else(|| Node::new(Kind::Directory, 0o755, 0));
            // As containerd does: overlay's marks and other privileged attributes stay below.
            node.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
            next = dir.parent();
            tree.insert(dir, node);
        }
    }
    tree
}

/// Lays a layer's directories and links over those below, as overlay shows them.
fn cover(below: &mut Tree, layer: &Tree) {
    for (path, node) in &layer.entries {
        if !node.is_dir() || node.xattrs.contains_key(OPAQUE_XATTR) || below.get(path).is_some_and(|n| !n.is_dir()) {
            below.remove_below(path);
        }
        if node.is_dir() || matches!(node.kind, Kind::Symlink(_)) {
            below.insert(path.clone(), node.clone());
        }
    }
}

/// Name of each folder: the first digits of its diffID, as many as tell it from all others; where layers below gave one diffID two forms,
/// digits of the form instead.
fn names(folders: &BTreeMap<Digest, Folder>) -> BTreeMap<Digest, String> {
    let mut forms = BTreeMap::<Digest, usize>::new();
    folders.values().for_each(|f| *forms.entry(f.diff_id).or_default() += 1);
    let full: BTreeMap<_, _> = folders.iter().map(|(key, f)| (*key, if forms[&f.diff_id] > 1 { key.hex() } else { f.diff_id.hex() })).collect();
    let sorted: BTreeSet<_> = full.values().cloned().collect();
    let shared = |a: &str, b: Option<&String>| b.map_or(0, |b| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count());
    let short = |name: &String| {
        let (before, after) = (
            sorted.range::<String, _>(..name).next_back(),
            sorted.range::<String, _>((std::ops::Bound::Excluded(name), std::ops::Bound::Unbounded)).next(),
        );
        name[..(shared(name, before).max(shared(name, after)) + 1).max(ID_DIGITS).min(name.len())].to_string()
    };
    full.iter().map(|(key, name)| (*key, short(name))).collect()
}

fn put(editor: &mut Editor<'_, '_>, place: &TreePath, tree: &Tree) -> Result<()> {
    let inside = |path: &TreePath| if path.is_root() { place.clone() } else { place.join(path.as_bytes()) };
    for (path, node) in &tree.entries {
        let mut node = node.clone();
        if let Kind::HardLink(target) = &node.kind {
            node.kind = Kind::HardLink(inside(target));
        }
        let path = inside(path);
        editor.tree.ensure_parents(&path, editor.epoch);
        editor.tree.insert(path, node);
    }
    Ok(())
}
