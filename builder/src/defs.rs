//! Layer definitions: the built-in ones, embedded at compile time, and a user's own folders.

use std::collections::BTreeMap;
use std::path::Path;

pub use firstboot::folder::read;
use firstboot::folder::{Links, collect};
use layers::chart::bundle::Form;
use layers::chart::{ChartFiles, Place};
use layers::layer::{LAYER_FILE, LoadedLayer};
use layers::profile::{Diagnostic, Diagnostics, LayerUse, Loaded};
use layers::{Context, Error, Result};

/// Built-in layers: path below `layers/defs` and bytes, sorted by path.
const BUILT_IN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/defs.rs"));

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
    let layer = |(name, mut files): (&str, BTreeMap<String, Vec<u8>>)| {
        let text = String::from_utf8(files.remove(LAYER_FILE).unwrap_or_default()).context(|| format!("reading built-in layer {name}"))?;
        Ok(LoadedLayer::new(&format!("{name} (built in)"), &text, files)?)
    };
    folders.into_iter().map(layer).collect()
}

/// All layers that a profile may use: its own folders, relative to `base`, and every built-in layer of another name; and what is wrong with its
/// own, so that the plan can tell it with all other problems.
pub fn for_profile(loaded: &Loaded, base: &Path) -> Result<(Vec<LoadedLayer>, Vec<Diagnostic>)> {
    let (mut out, mut problems) = (Vec::new(), Vec::new());
    for (n, layer) in loaded.profile.layers.iter().map(LayerUse::full).enumerate() {
        let Some(folder) = &layer.path else { continue };
        let spot = |key: &str| loaded.document.spot(&["layers", &n.to_string(), key]);
        match from_folder(&base.join(folder)) {
            Ok(Ok(found)) if found.definition.name != layer.name => {
                let message = format!("folder {folder} holds layer `{}`, not `{}`", found.definition.name, layer.name);
                problems.push(spot("name").problem(message, Some(format!("did you mean `{}`?", found.definition.name))));
            }
            Ok(Ok(found)) => out.push(found),
            Ok(Err(wrong)) => problems.extend(wrong.list),
            Err(e) => problems.push(spot("path").problem(e.to_string(), e.hint().map(str::to_string))),
        }
    }
    let own: Vec<_> = out.iter().map(|l: &LoadedLayer| l.definition.name.clone()).collect();
    out.extend(built_in()?.into_iter().filter(|l| !own.contains(&l.definition.name)));
    Ok((out, problems))
}

/// A layer from a folder, or what is wrong with its `layer.yaml`; an error when the folder cannot be read.
fn from_folder(folder: &Path) -> Result<Result<LoadedLayer, Diagnostics>> {
    let mut files = BTreeMap::new();
    collect(folder, "", Links::Followed, &mut files)?;
    let shown = folder.display().to_string();
    let text = files.remove(LAYER_FILE).ok_or_else(|| Error::input(format!("folder {shown} is no layer: it has no {LAYER_FILE}")))?;
    let text = String::from_utf8(text).context(|| format!("reading {shown}/{LAYER_FILE} as UTF-8"))?;
    Ok(LoadedLayer::new(&shown, &text, files))
}

/// The charts, manifests and kustomizations that a profile names as folders or files, relative to `base`, with all their files.
pub fn chart_folders(loaded: &Loaded, base: &Path, problems: &mut Vec<Diagnostic>) -> BTreeMap<String, ChartFiles> {
    let mut out = BTreeMap::new();
    for (n, chart) in loaded.profile.charts.iter().enumerate() {
        let Place::Folder(folder) = chart.place() else { continue };
        let (mut files, path) = (ChartFiles::new(), base.join(folder));
        // Manifests may be one file.
        let found = match path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_file() && chart.form() == Form::Manifests) {
            Some(name) => read(&path).map(|bytes| drop(files.insert(name.into(), bytes))),
            None => collect(&path, "", Links::Refused, &mut files),
        };
        if let Err(e) = found {
            let spot = loaded.document.spot(&["charts", &n.to_string(), chart.form().key()]);
            problems.push(spot.problem(e.to_string(), e.hint().map(str::to_string)));
        }
        out.insert(folder.to_string(), files);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn profile(layers: &serde_json::Value) -> Loaded {
        let text = serde_json::json!({"name": "t", "version": "1.0.0", "layers": layers}).to_string();
        layers::profile::load("t.yaml", &mut |_| Ok(text.clone())).unwrap()
    }

    fn plan(loaded: &Loaded, base: &Path) -> Result<layers::plan::Plan> {
        let (layers, mut problems) = for_profile(loaded, base)?;
        let folders = chart_folders(loaded, base, &mut problems);
        layers::plan::plan(loaded, &layers, &folders, &|name| read(&base.join(name)), problems)
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
        assert_eq!(
            names,
            ["boot", "ha", "hardware", "ingress", "logs", "monitoring", "orchestration", "os", "runtime", "seed", "toolchain", "vcluster"]
        );
        let plan = plan(&profile(&serde_json::json!(["boot", "orchestration"])), Path::new("")).unwrap();
        assert_eq!(
            plan.layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
            ["boot", "os", "runtime", "toolchain", "orchestration", "profile"]
        );
        assert!(plan.packages().contains_key("linux-image-cloud-amd64") && !plan.packages().contains_key("linux-image-amd64"));
        assert_eq!(built_in_file("boot/depmod.sh").map(|b| &b[..9]), Some(b"#!/bin/sh".as_slice()));
    }

    #[test]
    fn a_static_cpu_manager_is_the_kubelets_setting_and_the_nodes_label() {
        let files = |on: bool| {
            let layers = serde_json::json!(["boot", {"name": "orchestration", "parameters": {"staticCpuManager": on}}]);
            let plan = plan(&profile(&layers), Path::new("")).unwrap();
            let files = plan.layers.into_iter().flat_map(|layer| layer.files);
            let text = |body| if let layers::plan::Body::Bytes(bytes) = body { String::from_utf8(bytes).unwrap_or_default() } else { String::new() };
            files.map(|file| (file.path, text(file.body))).collect::<BTreeMap<_, _>>()
        };
        let (on, off) = (files(true), files(false));
        let (setting, kubeadm) = ("/etc/kubernetes/kubelet.conf.d/05-image.conf", "/usr/lib/chasi-bod/kubernetes/kubeadm.yaml");
        assert!(on[setting].contains("cpuManagerPolicy: static") && !off.contains_key(setting));
        assert_eq!(on[kubeadm].matches("chasi-bod.io/cpu-manager=static").count(), 2, "{}", on[kubeadm]);
        assert_eq!(off[kubeadm].matches("chasi-bod.io/cpu-manager=none").count(), 2, "{}", off[kubeadm]);
    }

    #[test]
    fn a_folder_of_the_user_is_a_layer() {
        let dir = own_layer("mine", "files:\n- {path: /etc/motd, source: files/motd}\n");
        let plan = plan(&profile(&serde_json::json!(["os", {"name": "mine", "path": "mine"}])), dir.path()).unwrap();
        let names: Vec<_> = plan.layers.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["os", "mine", "profile"]);
        assert_eq!(plan.layers[1].files[0].body, layers::plan::Body::Bytes(b"hello\n".to_vec()));
    }

    #[test]
    fn a_users_layer_replaces_the_built_in_one_of_its_name() {
        let dir = own_layer("os", "packages: [busybox]\n");
        let plan = self::plan(&profile(&serde_json::json!(["toolchain", {"name": "os", "path": "mine"}])), dir.path()).unwrap();
        assert_eq!((plan.layers[0].name.as_str(), plan.layers[0].packages.as_slice()), ("os", ["busybox".to_string()].as_slice()));
    }

    #[test]
    fn a1_what_is_wrong_with_the_folders_of_layers_is_told_at_once() {
        let dir = own_layer("os", "packagse: [busybox]\n");
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("other/layer.yaml"), "name: thing\nsummary: s\n").unwrap();
        let layers = serde_json::json!([
            {"name": "os", "path": "mine"}, {"name": "a", "path": "empty"}, {"name": "b", "path": "mien"}, {"name": "c", "path": "other"}, "toolchian"
        ]);
        let error = plan(&profile(&layers), dir.path()).unwrap_err();
        let shown = error.to_string();
        for says in [
            "5 problems",
            "mine/layer.yaml:3:1: unknown key `packagse`",
            "has no layer.yaml",
            "t.yaml:1:",
            "mien: No such file",
            "holds layer `thing`, not `c`",
            "there is no layer `toolchian`",
        ] {
            assert!(shown.contains(says), "`{says}` is not in {shown}");
        }
        assert_eq!(error.fault(), layers::Fault::Input);
    }
}
