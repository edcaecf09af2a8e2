//! Many packages' trees as one, the way dpkg lays them over each other: a directory stays whose it was first, a linked directory
//! (`/lib` → `usr/lib`) stays a link and what belongs below it lands behind it, a file of two packages needs a `Replaces`.

use std::collections::{BTreeMap, BTreeSet};

use layers::lock::Package;
use layers::{Error, Result};

use super::unpack::Unpacked;
use crate::tree::{Kind, Node, Tree, TreePath};

/// What dpkg calls a configuration file that was unpacked and not yet configured.
const NEW: &[u8] = b".dpkg-new";

/// The merged tree and whose each path is (index into the packages).
#[derive(Debug, Default)]
pub struct Merged {
    /// All files, configuration files under `<path>.dpkg-new`.
    pub tree: Tree,
    /// Owner of each path; for a directory the first.
    pub owners: BTreeMap<TreePath, usize>,
}

/// Lays the packages over each other: `base-files` first, because it brings the links of the merged /usr, then by name.
pub fn merge(packages: &[(Package, Unpacked)]) -> Result<Merged> {
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|i| (packages[*i].0.name != "base-files", packages[*i].0.name.clone()));
    let mut merged = Merged::default();
    for index in order {
        add(&mut merged, packages, index)?;
    }
    Ok(merged)
}

fn add(merged: &mut Merged, packages: &[(Package, Unpacked)], index: usize) -> Result<()> {
    let unpacked = &packages[index].1;
    let conffiles: BTreeSet<TreePath> = unpacked.control.conffiles().iter().filter_map(|p| TreePath::new(p).ok()).collect();
    let naming = |text: String| Error::input(format!("merging package {}: {text}", packages[index].0.name));
    for (path, node) in &unpacked.tree.entries {
        let mut place = behind_links(&merged.tree, path).map_err(naming)?;
        if conffiles.contains(path) && !node.is_dir() {
            place = TreePath::new([place.as_bytes(), NEW].concat()).map_err(naming)?;
        }
        let mut node = node.clone();
        if let Kind::HardLink(target) = &mut node.kind {
            *target = behind_links(&merged.tree, target).map_err(naming)?;
        }
        let before = merged.tree.get(&place);
        let keep = before.map_or(Ok(false), |before| keeps(merged, before, &place, &node, packages, index))?;
        if !keep {
            merged.tree.ensure_parents(&place, node.mtime);
            merged.owners.insert(place.clone(), index);
            merged.tree.insert(place, node);
        }
    }
    Ok(())
}

/// Whether what stands at a path stays, as dpkg decides it.
fn keeps(merged: &Merged, before: &Node, place: &TreePath, node: &Node, packages: &[(Package, Unpacked)], index: usize) -> Result<bool> {
    let leads_to_dir =
        || behind_links(&merged.tree, &place.join(b"x")).ok().and_then(|p| p.parent()).and_then(|p| merged.tree.get(&p)).is_some_and(Node::is_dir);
    if before.is_dir() && node.is_dir() {
        return Ok(true);
    }
    if node.is_dir() && matches!(before.kind, Kind::Symlink(_)) && leads_to_dir() {
        return Ok(true);
    }
    let (ours, theirs) = (&packages[index], merged.owners.get(place).map(|i| &packages[*i]));
    let Some(theirs) = theirs.filter(|_| !before.is_dir() && !node.is_dir()) else {
        return Err(Error::input(format!("merging package {}: {place} is a directory of one package and no directory of another", ours.0.name)));
    };
    if replaces(ours, theirs) {
        return Ok(false);
    }
    if replaces(theirs, ours) || before == node {
        return Ok(true);
    }
    Err(Error::input(format!("merging packages {} and {}: both hold {place}", theirs.0.name, ours.0.name)))
}

fn replaces(new: &(Package, Unpacked), old: &(Package, Unpacked)) -> bool {
    let field = new.1.control.field("Replaces").unwrap_or_default();
    field.split(',').any(|one| one.trim().split([' ', '(', ':']).next() == Some(&old.0.name))
}

/// The path with every linked parent followed; its last component is left as it is.
pub fn behind_links(tree: &Tree, path: &TreePath) -> Result<TreePath, String> {
    let (mut done, mut links) = (TreePath::root(), 0);
    let mut parts: Vec<Vec<u8>> = path.as_bytes().split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
    while let Some(part) = parts.pop() {
        match &*part {
            b"" | b"." => continue,
            b".." => {
                done = done.parent().unwrap_or_default();
                continue;
            }
            name => done = done.join(name),
        }
        if let (false, Some(Kind::Symlink(target))) = (parts.is_empty(), tree.get(&done).map(|n| &n.kind)) {
            links += 1;
            if links > 40 {
                return Err(format!("{path} lies behind too many links"));
            }
            done = if target.starts_with(b"/") { TreePath::root() } else { done.parent().unwrap_or_default() };
            parts.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
        }
    }
    Ok(done)
}
