//! Charts that are made of something else, so that one way installs, upgrades and lists everything: of manifests as they are, and of kustomizations,
//! which become manifests where they are installed.

use serde::{Deserialize, Serialize};

use super::{CHART_FILE, ChartFiles, archive, metadata};
use crate::units::Digest;
use crate::{Context as _, Error, Result};

/// Folder of a chart that has a kustomization's files.
const KUSTOMIZATION: &str = "kustomization/";
/// Names that a kustomization's own file may have.
const KUSTOMIZATION_FILES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// What files of manifests end with.
const MANIFESTS: [&str; 3] = [".yaml", ".yml", ".json"];

/// What a release is declared as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// A chart.
    #[default]
    Chart,
    /// Manifests, which became a chart already.
    Manifests,
    /// A kustomization, with its folder below the files; empty for the files' own.
    Kustomize(String),
}

impl Form {
    /// Whether there is nothing to be made of it.
    pub fn is_chart(&self) -> bool {
        *self == Self::Chart
    }

    /// The key that names it, in `charts` and in a component's source.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Chart => "chart",
            Self::Manifests => "manifests",
            Self::Kustomize(_) => "kustomize",
        }
    }
}

/// The chart of files that are declared in a form. Its version is their digest: equal files are the same release in every image.
pub fn of_files(form: &Form, files: ChartFiles) -> Result<ChartFiles> {
    let kustomization = match form {
        Form::Chart => return metadata(&files).map(|_| files),
        Form::Manifests => None,
        Form::Kustomize(folder) => Some(folder.trim_matches('/')),
    };
    let parts = files.iter().flat_map(|(path, bytes)| [path.as_bytes(), bytes]).chain(kustomization.map(str::as_bytes));
    let version = format!("0.0.0-sha256-{}", Digest::of_parts(parts).short());
    let Some(folder) = kustomization else { return manifests(&version, files) };
    let of = |name: &&str| if folder.is_empty() { (*name).to_string() } else { format!("{folder}/{name}") };
    if !KUSTOMIZATION_FILES.iter().map(of).any(|path| files.contains_key(&path)) {
        let place = if folder.is_empty() { "it".into() } else { format!("its folder {folder}") };
        let error = Error::input(format!("{place} has no {}", KUSTOMIZATION_FILES[0]));
        return Err(error.with_hint("say `FOLDER#PATH` when the kustomization is a folder below the one that has all of its files"));
    }
    let files = files.into_iter().map(|(path, bytes)| (format!("{KUSTOMIZATION}{path}"), bytes));
    Ok(files.chain([about("kustomization", "A kustomization, rendered where it is installed.", &version)]).collect())
}

fn manifests(version: &str, files: ChartFiles) -> Result<ChartFiles> {
    if KUSTOMIZATION_FILES.iter().any(|name| files.contains_key(*name)) {
        return Err(Error::input("it is a kustomization, no folder of manifests").with_hint("say `kustomize` instead of `manifests`"));
    }
    let files: Vec<_> = files.into_iter().filter(|(path, _)| MANIFESTS.iter().any(|end| path.ends_with(end))).collect();
    if files.is_empty() {
        return Err(Error::input(format!("it has no file that ends with {}", MANIFESTS.join(", "))));
    }
    Ok(of_manifests("manifests", version, &files))
}

/// The chart that plain manifests become: its templates only name the files, so that nothing in them is taken for a template.
pub fn of_manifests(name: &str, version: &str, manifests: &[(String, Vec<u8>)]) -> ChartFiles {
    let mut out = ChartFiles::from([about(name, "Plain manifests.", version)]);
    for (n, (path, bytes)) in manifests.iter().enumerate() {
        let name = format!("{n:03}-{}", path.rsplit('/').next().unwrap_or(path));
        out.insert(format!("templates/{name}"), format!("{{{{ .Files.Get \"files/{name}\" }}}}\n").into_bytes());
        out.insert(format!("files/{name}"), bytes.clone());
    }
    out
}

fn about(name: &str, description: &str, version: &str) -> (String, Vec<u8>) {
    (CHART_FILE.into(), format!("apiVersion: v2\nname: {name}\ndescription: {description}\nversion: {version}\n").into_bytes())
}

/// A kustomization's files, from the archive that the image has of it.
pub fn kustomization(archive: &[u8]) -> Result<ChartFiles> {
    let (_, files) = archive::unpack(archive)?;
    Ok(files.into_iter().filter_map(|(path, bytes)| Some((path.strip_prefix(KUSTOMIZATION)?.to_string(), bytes))).collect())
}

/// The archive of the chart that a kustomization becomes, from its own archive and what `kubectl kustomize` made of it.
pub fn rendered(archive: &[u8], manifests: Vec<u8>) -> Result<Vec<u8>> {
    let about = archive::look_into(archive)?;
    let files = of_manifests(&about.name, &about.version, &[("rendered.yaml".into(), manifests)]);
    archive::pack(&files).map(|(_, archive)| archive).context(|| "packing what a kustomization became".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> ChartFiles {
        list.iter().map(|(path, text)| ((*path).to_string(), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn manifests_become_a_chart_that_renders_nothing_in_them() {
        let files = of_manifests("manifests", "1.2.3", &[("x/a.yaml".into(), b"a: '{{ b }}'".to_vec())]);
        assert_eq!(metadata(&files).unwrap().version, "1.2.3");
        assert_eq!(files["templates/000-a.yaml"], b"{{ .Files.Get \"files/000-a.yaml\" }}\n");
        assert_eq!(files["files/000-a.yaml"], b"a: '{{ b }}'");
    }

    #[test]
    fn a_folder_of_manifests_is_named_by_what_is_in_it() {
        let of = |list: &[(&str, &str)]| of_files(&Form::Manifests, files(list));
        let made = of(&[("b/x.yml", "kind: A"), ("a.json", "{}"), ("README.md", "text")]).unwrap();
        let names: Vec<_> = made.keys().map(String::as_str).collect();
        assert_eq!(names, ["Chart.yaml", "files/000-a.json", "files/001-x.yml", "templates/000-a.json", "templates/001-x.yml"]);
        let version = |made: &ChartFiles| metadata(made).unwrap().version;
        assert!(
            version(&made).starts_with("0.0.0-sha256-") && made == of(&[("b/x.yml", "kind: A"), ("a.json", "{}"), ("README.md", "text")]).unwrap()
        );
        assert_ne!(version(&made), version(&of(&[("b/x.yml", "kind: B"), ("a.json", "{}")]).unwrap()));
        let refused = |list: &[(&str, &str)]| of(list).unwrap_err();
        assert!(refused(&[("README.md", "")]).to_string().contains("no file that ends with .yaml, .yml, .json"));
        assert_eq!(refused(&[("kustomization.yaml", "")]).hint(), Some("say `kustomize` instead of `manifests`"));
    }

    #[test]
    fn a_kustomization_keeps_its_files_and_becomes_a_chart_of_the_same_version() {
        let form = Form::Kustomize("overlays/a".into());
        let all = files(&[("base/x.yaml", "kind: A"), ("overlays/a/kustomization.yml", "resources: [../../base]")]);
        let made = of_files(&form, all.clone()).unwrap();
        let packed = archive::pack(&made).unwrap().1;
        assert_eq!(kustomization(&packed).unwrap(), all);
        let chart = rendered(&packed, b"kind: A\n".to_vec()).unwrap();
        let (about, files) = archive::unpack(&chart).unwrap();
        assert_eq!((about.name.as_str(), about.version), ("kustomization", metadata(&made).unwrap().version));
        assert_eq!(files["files/000-rendered.yaml"], b"kind: A\n");
        for (folder, says) in [("", "it has no kustomization.yaml"), ("overlays/b", "its folder overlays/b has no kustomization.yaml")] {
            let error = of_files(&Form::Kustomize(folder.into()), all.clone()).unwrap_err();
            assert!(error.to_string().contains(says) && error.hint().unwrap().contains("FOLDER#PATH"), "{error}");
        }
        assert_ne!(metadata(&of_files(&Form::Kustomize("overlays/a/".into()), all.clone()).unwrap()).unwrap().version, "0");
    }
}
