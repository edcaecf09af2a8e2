//! Gets a result folder back from a registry.

use std::fs::{self, File};
use std::path::Path;

use layers::image::Descriptor;
use layers::units::Digest;
use layers::{Context, Error, Result};
use oci_spec::image::ImageManifest;

use super::{ARTIFACT, Published, TITLE, repository};
use crate::progress::Progress;
use crate::source::http::Outcome;
use crate::source::oci::{Kind, Registries, Repository, document};

/// Fetches the files of an artifact into `folder`; what is there already is kept, what broke off goes on.
pub fn pull(reference: &str, folder: &Path, only: &[String], registries: &Registries, progress: &Progress) -> Result<Published> {
    let (repository, wanted) = repository(reference, registries)?;
    let top = repository.manifest(&wanted)?;
    let digest = top.descriptor.digest.to_string();
    let inner = match &top.kind {
        Kind::Index(index) => repository.document(&document::choose(index, "amd64").context(|| format!("reading {reference}"))?)?,
        Kind::Manifest(_) => top,
    };
    let Kind::Manifest(manifest) = inner.kind else { return Err(Error::input(format!("reading {reference}: an index of indices"))) };
    let files: Vec<_> = files(&manifest).context(|| format!("reading {reference}"))?;
    if let Some(unknown) = only.iter().find(|name| !files.iter().any(|(file, _)| file == *name)) {
        let there = files.iter().map(|(file, _)| file.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::input(format!("{reference} has no file `{unknown}`")).with_hint(format!("it has {there}")));
    }
    let files: Vec<_> = files.into_iter().filter(|(file, _)| only.is_empty() || only.contains(file)).collect();
    fs::create_dir_all(folder).context(|| format!("creating {}", folder.display()))?;
    progress.start("pulling files", files.len() as u64, files.iter().map(|(_, of)| of.size.0).sum());
    let mut transferred = 0;
    for (name, of) in &files {
        transferred += fetch(&repository, of, &folder.join(name), progress).context(|| format!("pulling `{name}` of {reference}"))?;
        progress.finish_file();
    }
    progress.finish();
    Ok(Published { repository: repository.name().into(), digest, files: files.into_iter().map(|(name, _)| name).collect(), transferred })
}

/// The files that a manifest's layers are.
fn files(manifest: &ImageManifest) -> Result<Vec<(String, Descriptor)>> {
    if manifest.artifact_type().as_ref().is_none_or(|kind| kind.to_string() != ARTIFACT) {
        return Err(Error::input("it is not an image of chasi-bod").with_hint("`chasi-bod push` makes such an artifact"));
    }
    let mut out: Vec<(String, Descriptor)> = Vec::new();
    for layer in manifest.layers() {
        let title = layer.annotations().as_ref().and_then(|all| all.get(TITLE)).cloned().unwrap_or_default();
        let is_name = !title.is_empty() && !title.starts_with('.') && !title.contains(['/', '\\', '\0']);
        if !is_name || out.iter().any(|(name, _)| *name == title) {
            return Err(Error::input(format!("its layer `{}` is not a file beside the others", title.escape_debug())));
        }
        out.push((title, document::descriptor(layer)?));
    }
    Ok(out)
}

/// Fetches one file; how many bytes came.
fn fetch(repository: &Repository, of: &Descriptor, path: &Path, progress: &Progress) -> Result<u64> {
    let naming = || format!("writing {}", path.display());
    let found = |path: &Path| File::open(path).and_then(Digest::of_reader);
    if fs::metadata(path).is_ok_and(|meta| meta.len() == of.size.0) && found(path).is_ok_and(|found| found == of.digest) {
        return Ok(0);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial"));
    let mut file = File::options().create(true).append(true).read(true).open(&partial).context(naming)?;
    let before = file.metadata().context(naming)?.len().min(of.size.0);
    let outcome = repository.client().download(&repository.blob_url(&of.digest), &mut file, of.size.0, &|n| progress.advance(n))?;
    if outcome == Outcome::Missing {
        return Err(Error::environment(format!("the registry does not have blob {}", of.digest)));
    }
    match found(&partial).context(naming)? {
        digest if digest == of.digest => {}
        digest => {
            // Going on after wrong bytes would never end well.
            let _ = fs::remove_file(&partial);
            return Err(Error::environment(format!("the registry sends other bytes: expected {}, got {digest}", of.digest)));
        }
    }
    fs::rename(&partial, path).context(naming)?;
    Ok(of.size.0 - before)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_files_beside_each_other_of_our_artifacts_are_taken() {
        let manifest = |kind: &str, titles: &[&str]| {
            let layer = |title: &&str| json!({"mediaType": "x/y", "digest": Digest::of(b"x").to_string(), "size": 1, "annotations": {TITLE: title}});
            let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2});
            let layers: Vec<_> = titles.iter().map(layer).collect();
            serde_json::from_value::<ImageManifest>(json!({"schemaVersion": 2, "artifactType": kind, "config": config, "layers": layers})).unwrap()
        };
        assert_eq!(files(&manifest(ARTIFACT, &["a.iso", "SHA256SUMS"])).unwrap().len(), 2);
        for titles in [["../a", "b"], ["/etc/passwd", "b"], ["a", "a"], ["", "b"], [".a.partial", "b"], ["a\\b", "b"]] {
            let error = files(&manifest(ARTIFACT, &titles)).unwrap_err().to_string();
            assert!(error.ends_with("is not a file beside the others"), "{titles:?}: {error}");
        }
        assert!(files(&manifest("application/vnd.cncf.helm.chart", &["a"])).unwrap_err().to_string().contains("not an image of chasi-bod"));
    }
}
