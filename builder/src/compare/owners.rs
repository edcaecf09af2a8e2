//! Whose files are whose: entries that come with a changed package or a container image are told by their number.

use std::collections::{BTreeMap, BTreeSet};

use layers::Result;
use layers::seed::{DOCUMENTS, LAYERS};

use crate::inspect::contents::{self, DPKG, Package, Packages};
use crate::inspect::files::Root;
use crate::tree::TreePath;

/// Owners of entries, as far as they differ between two roots.
#[derive(Debug, Default)]
pub struct Owners {
    paths: BTreeMap<TreePath, String>,
    packages: BTreeSet<String>,
    layers: BTreeMap<String, String>,
}

impl Owners {
    /// Reads the lists of packages that are not the same on both sides, and which layers only one side has.
    pub fn find(a: &Root, b: &Root) -> Result<Self> {
        let mut out = Self::default();
        // Who cannot say what is installed has no lists either.
        if let (Packages::Known(left), Packages::Known(right)) = (contents::packages(a)?, contents::packages(b)?) {
            let (left, right): (BTreeSet<_>, BTreeSet<_>) = (left.into_iter().collect(), right.into_iter().collect());
            left.difference(&right).try_for_each(|package| out.package(a, package))?;
            right.difference(&left).try_for_each(|package| out.package(b, package))?;
        }
        let (left, right) = (layers(a)?, layers(b)?);
        let one_sided =
            |here: BTreeMap<String, String>, there: &BTreeMap<String, String>| here.into_iter().filter(|(l, _)| !there.contains_key(l)).collect();
        let (mut left, right): (BTreeMap<_, _>, BTreeMap<_, _>) = (one_sided(left.clone(), &right), one_sided(right, &left));
        left.extend(right);
        out.layers = left;
        Ok(out)
    }

    fn package(&mut self, root: &Root, package: &Package) -> Result<()> {
        let names = [package.name.clone(), format!("{}:{}", package.name, package.architecture)];
        for (folder, stem) in DPKG.iter().flat_map(|folder| names.iter().map(move |stem| (folder, stem))) {
            let Some(list) = root.text(&format!("{folder}/info/{stem}.list"))? else { continue };
            let owner = format!("package {}", package.name);
            for path in list.lines().filter_map(|line| place(root, line)) {
                self.paths.insert(path, owner.clone());
            }
        }
        self.packages.extend(names);
        Ok(())
    }

    /// Whose the entry at this path is; none when it is nobody's that changed.
    pub fn of(&self, path: &TreePath) -> Option<String> {
        if let Some(owner) = self.paths.get(path) {
            return Some(owner.clone());
        }
        let shown = path.to_string();
        if let Some(rest) = shown.strip_prefix(LAYERS).and_then(|rest| rest.strip_prefix('/')) {
            return self.layers.get(rest.split('/').next()?).cloned();
        }
        if shown.strip_prefix(DOCUMENTS).is_some_and(|rest| rest.starts_with('/')) && !self.layers.is_empty() {
            return Some("changed container images".into());
        }
        let file = DPKG.iter().find_map(|folder| shown.strip_prefix(folder)?.strip_prefix("/info/"))?;
        let stem = file.rsplit_once('.')?.0;
        self.packages.contains(stem).then(|| format!("package {}", stem.split(':').next().unwrap_or(stem)))
    }
}

/// A line of a package's list as the path that it has in the root: behind the links of the merged /usr, modules unpacked as our images have them.
fn place(root: &Root, line: &str) -> Option<TreePath> {
    let first = line.trim_start_matches('/').split('/').next()?;
    let is_merged = matches!(first, "bin" | "sbin" | "lib" | "lib32" | "lib64" | "libx32") && root.is_link(first);
    let line = if is_merged { format!("/usr{line}") } else { line.to_string() };
    let plain = ["xz", "zst", "gz"].iter().find_map(|packer| Some(format!("{}.ko", line.strip_suffix(packer)?.strip_suffix(".ko.")?)));
    TreePath::new(plain.unwrap_or(line)).ok().filter(|path| !path.is_root())
}

/// Folders of layers of container images with the name of an image that has it.
fn layers(root: &Root) -> Result<BTreeMap<String, String>> {
    let index = contents::images(root)?;
    let mut out = BTreeMap::new();
    for image in &index.images {
        for layer in contents::layers_of(root, &index, image)? {
            out.entry(layer).or_insert_with(|| format!("image {}", image.name));
        }
    }
    Ok(out)
}
