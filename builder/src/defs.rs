//! Layer definitions: the built-in ones, embedded at compile time, and a user's own folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use layers::layer::{LAYER_FILE, LoadedLayer, NODE_BINARY, parse_definition};
use layers::profile::Profile;
use layers::{Context, Error, Result};

/// Built-in layers: path below `layers/defs` and bytes, sorted by path.
const BUILT_IN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/defs.rs"));

/// Most bytes that one file of a layer may have.
const FILE_LIMIT: u64 = 256 << 20;

/// A file of the built-in layers by its path below `layers/defs`, such as `boot/grub.cfg`.
pub fn built_in_file(path: &str) -> Option<&'static [u8]> {
    BUILT_IN.binary_search_by_key(&path, |(p, _)| p).ok().map(|at| BUILT_IN[at].1)
}

/// The built-in layers.
pub fn built_in() -> Result<Vec<LoadedLayer>> {
    let mut folders = BTreeMap::<&str, BTreeMap<String, Vec<u8>>>::new();
    for (path, bytes) in BUILT_IN {
        if let Some((layer, file)) = path.split_once('/') {
            folders.entry(layer).or_default().insert(file.into(), bytes.to_vec());
        }
    }
    folders.into_iter().map(|(name, files)| loaded(&format!("{name} (built in)"), files)).collect()
}

/// All layers that a profile may use: its own folders, relative to `base`, and every built-in layer of another name.
pub fn for_profile(profile: &Profile, base: &Path) -> Result<Vec<LoadedLayer>> {
    let mut out = Vec::new();
    for layer in profile.layers.iter().map(layers::profile::LayerUse::full) {
        let Some(folder) = &layer.path else { continue };
        let found = from_folder(&base.join(folder))?;
        if found.definition.name != layer.name {
            let message = format!("layer `{}` of the profile names folder {folder}, whose layer is called `{}`", layer.name, found.definition.name);
            return Err(Error::input(message));
        }
        out.push(found);
    }
    let own: Vec<_> = out.iter().map(|l: &LoadedLayer| l.definition.name.clone()).collect();
    out.extend(built_in()?.into_iter().filter(|l| !own.contains(&l.definition.name)));
    Ok(out)
}

/// The files that a profile's `files` refer to, read relative to `base`, by the name used there.
pub fn profile_sources(profile: &Profile, base: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let names = profile.files.iter().filter_map(|f| f.source.as_ref()).filter(|name| *name != NODE_BINARY);
    names.map(|name| Ok((name.clone(), read(&base.join(name))?))).collect()
}

/// A layer from a folder.
pub fn from_folder(folder: &Path) -> Result<LoadedLayer> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files)?;
    loaded(&folder.display().to_string(), files)
}

fn loaded(folder: &str, mut files: BTreeMap<String, Vec<u8>>) -> Result<LoadedLayer> {
    let text = files.remove(LAYER_FILE).ok_or_else(|| Error::input(format!("layer folder {folder} has no {LAYER_FILE}")))?;
    let file = format!("{folder}/{LAYER_FILE}");
    let text = String::from_utf8(text).context(|| format!("reading {file} as UTF-8"))?;
    Ok(LoadedLayer { definition: parse_definition(&file, &text)?, folder: folder.into(), files })
}

/// Regular files below a folder; a link counts as what it points to, but a linked folder is not entered (it may lead back here).
fn collect(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let entries = fs::read_dir(dir).fault(layers::Fault::Input, || format!("reading layer folder {}", dir.display()))?;
    for entry in entries {
        let entry = entry.context(|| format!("reading layer folder {}", dir.display()))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::input(format!("file name {} in {} is not UTF-8", name.display(), dir.display())))?;
        let (path, below) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&path, &format!("{below}/"), files)?;
        } else if path.is_file() {
            files.insert(below, read(&path)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("reading {}", path.display());
    let size = fs::metadata(path).fault(layers::Fault::Input, context)?.len();
    if size > FILE_LIMIT {
        return Err(Error::input(format!("reading {}: {size} bytes are more than a layer's file may have ({FILE_LIMIT})", path.display())));
    }
    fs::read(path).fault(layers::Fault::Input, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(layers: &serde_json::Value) -> Profile {
        serde_json::from_value(serde_json::json!({"name": "t", "version": "1.0.0", "layers": layers})).unwrap()
    }

    fn own_layer(name: &str, yaml: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("mine/files")).unwrap();
        fs::write(dir.path().join("mine/files/motd"), "hello\n").unwrap();
        fs::write(dir.path().join("mine/layer.yaml"), format!("name: {name}\nsummary: mine\n{yaml}")).unwrap();
        dir
    }

    #[test]
    fn built_in_layers_plan_and_every_file_they_bring_is_there() {
        let names: Vec<_> = built_in().unwrap().into_iter().map(|l| l.definition.name).collect();
        assert_eq!(names, ["boot", "os", "toolchain"]);
        let profile = profile(&serde_json::json!(["boot", "os", "toolchain"]));
        let plan = layers::plan::plan(&profile, &BTreeMap::new(), &built_in().unwrap()).unwrap();
        assert!(plan.packages().contains_key("linux-image-cloud-amd64") && !plan.packages().contains_key("linux-image-amd64"));
        assert_eq!(built_in_file("boot/depmod.sh").map(|b| &b[..9]), Some(b"#!/bin/sh".as_slice()));
    }

    #[test]
    fn a_folder_of_the_user_is_a_layer() {
        let dir = own_layer("mine", "files:\n- {path: /etc/motd, source: files/motd}\n");
        let profile = profile(&serde_json::json!(["os", {"name": "mine", "path": "mine"}]));
        let plan = layers::plan::plan(&profile, &BTreeMap::new(), &for_profile(&profile, dir.path()).unwrap()).unwrap();
        let names: Vec<_> = plan.layers.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["os", "mine", "profile"]);
        assert_eq!(plan.layers[1].files[0].body, layers::plan::Body::Bytes(b"hello\n".to_vec()));
    }

    #[test]
    fn a_users_layer_replaces_the_built_in_one_of_its_name() {
        let dir = own_layer("os", "packages: [busybox]\n");
        let profile = profile(&serde_json::json!(["toolchain", {"name": "os", "path": "mine"}]));
        let plan = layers::plan::plan(&profile, &BTreeMap::new(), &for_profile(&profile, dir.path()).unwrap()).unwrap();
        assert_eq!((plan.layers[0].name.as_str(), plan.layers[0].packages.as_slice()), ("os", ["busybox".to_string()].as_slice()));
        let wrong = self::profile(&serde_json::json!([{"name": "other", "path": "mine"}]));
        let error = for_profile(&wrong, dir.path()).unwrap_err().to_string();
        assert!(error.contains("`other`") && error.contains("`os`"), "{error}");
    }
}
