//! Helm charts that an image brings: how a profile or layer names them, what a plan and a lock hold of them, and what a chart must be.
//!
//! A chart is a folder, a name in a chart repository, a reference in an OCI registry, or a folder of a Go module. Plain manifests become a chart, too, so that one
//! way installs, upgrades and lists everything; so do kustomizations.

pub mod archive;
pub mod bundle;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::profile::{Spot, quote, suggest};
use crate::units::{Bytes, Digest};
use crate::{Error, Result};
use bundle::Form;

/// A release of a Helm chart, of manifests or of a kustomization that the cluster gets when it is founded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChartSpec {
    /// Name of the release.
    pub name: String,
    /// A folder relative to the file this is written in, `oci://registry/path`, with `repo` the chart's name there, or with `module` a folder of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub chart: String,
    /// Instead of a chart a file, or a folder of YAML and JSON files, of manifests that are installed as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<String>,
    /// Instead of a chart a folder with a `kustomization.yaml`; `FOLDER#PATH` when that is in a folder below the one that has all of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kustomize: Option<String>,
    /// Base URL of a chart repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// Path of a Go module that has the chart's folder; `version` is the module's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Version of a chart that is no folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Namespace of the release, made when missing; `default` when absent, as with helm.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Values over those of the chart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, Value>,
    /// Images that the chart's programs ask for without any manifest naming them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// File with the OpenPGP certificates that may have signed the chart; with it a chart without good provenance is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<String>,
    /// Whether the cluster gets the release by itself; if not, the chart lies there for who uses it.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub install: bool,
    /// Only when this Handlebars expression holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

impl Default for ChartSpec {
    fn default() -> Self {
        let (name, chart, namespace) = (String::new(), String::new(), default_namespace());
        Self {
            name,
            chart,
            manifests: None,
            kustomize: None,
            repo: None,
            module: None,
            version: None,
            namespace,
            values: BTreeMap::new(),
            images: Vec::new(),
            keyring: None,
            install: true,
            when: None,
        }
    }
}

pub(crate) fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn is_yes(install: &bool) -> bool {
    *install
}

fn default_namespace() -> String {
    "default".into()
}

/// Where a chart comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A folder; of manifests also a file.
    Folder(&'a str),
    /// A chart of a repository with an `index.yaml`.
    Repository {
        /// Base URL.
        url: &'a str,
        /// Name of the chart.
        name: &'a str,
    },
    /// A repository of an OCI registry, without `oci://`.
    Registry(&'a str),
    /// A folder of a Go module.
    Module {
        /// Path of the module.
        module: &'a str,
        /// The folder.
        folder: &'a str,
    },
}

impl ChartSpec {
    /// What it is declared as.
    pub fn form(&self) -> Form {
        match (&self.manifests, &self.kustomize) {
            (Some(_), _) => Form::Manifests,
            (_, Some(place)) => Form::Kustomize(place.split_once('#').map_or("", |(_, path)| path).into()),
            _ => Form::Chart,
        }
    }

    /// Where the chart, or what it is made of, comes from.
    pub fn place(&self) -> Place<'_> {
        if let Some(place) = self.manifests.as_ref().or(self.kustomize.as_ref()) {
            return Place::Folder(if self.kustomize.is_some() { place.split('#').next().unwrap_or(place) } else { place });
        }
        match (self.chart.strip_prefix("oci://"), &self.repo, &self.module) {
            (Some(reference), ..) => Place::Registry(reference),
            (_, Some(url), _) => Place::Repository { url, name: &self.chart },
            (_, _, Some(module)) => Place::Module { module, folder: &self.chart },
            _ => Place::Folder(&self.chart),
        }
    }
}

/// Files of a chart's folder by relative path.
pub type ChartFiles = BTreeMap<String, Vec<u8>>;

/// A release that the image will bring.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedChart {
    /// Layer that declares it.
    pub layer: String,
    /// The declaration.
    #[serde(flatten)]
    pub spec: ChartSpec,
    /// Files of a chart that is a folder.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "digests")]
    pub files: ChartFiles,
    /// Certificates of the keyring.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "digest")]
    pub keyring: Vec<u8>,
    /// Where its chart is written.
    #[serde(skip)]
    pub at: Spot,
}

fn digests<S: Serializer>(files: &ChartFiles, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(files.iter().map(|(name, bytes)| (name, Digest::of(bytes))))
}

fn digest<S: Serializer>(bytes: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&Digest::of(bytes))
}

impl PlannedChart {
    /// Digest of the declaration with its files; a lock made for another one is outdated.
    pub fn request(&self) -> Digest {
        // No map of it has keys other than text.
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }
}

impl std::fmt::Display for PlannedChart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.spec.place() {
            Place::Folder(folder) if self.spec.form().is_chart() => write!(f, "folder {folder}")?,
            Place::Folder(place) => write!(f, "{} {place}", self.spec.form().key())?,
            Place::Repository { url, name } => write!(f, "{name} of {url}")?,
            Place::Registry(reference) => write!(f, "oci://{reference}")?,
            Place::Module { module, folder } => write!(f, "folder {folder} of {module}")?,
        }
        self.spec.version.iter().try_for_each(|version| write!(f, " {version}"))?;
        if self.spec.install { write!(f, " into namespace {}", self.spec.namespace) } else { write!(f, ", not installed by itself") }
    }
}

/// What a chart resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedChart {
    /// Name of the release.
    pub name: String,
    /// Digest of the declaration it was locked for.
    pub request: Digest,
    /// The chart's own name.
    pub chart: String,
    /// Its version.
    pub version: String,
    /// Digest of its archive.
    pub sha256: Digest,
    /// Size of its archive.
    pub size: Bytes,
    /// Where the archive is fetched; nowhere for a folder, which is packed anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// Fingerprint of the certificate whose signature was good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

/// What a chart says of itself in `Chart.yaml`, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// `application` or `library`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Charts that it needs below `charts/`.
    #[serde(default)]
    pub dependencies: Vec<Dependency>,
}

/// A chart that another one needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Dependency {
    /// Name.
    pub name: String,
}

/// Reads a chart's files and refuses what no chart may be: C7.
pub fn metadata(files: &ChartFiles) -> Result<Metadata> {
    let text = files.get(CHART_FILE).ok_or_else(|| missing(files))?;
    let text = str::from_utf8(text).map_err(|_| Error::input(format!("{CHART_FILE} is not UTF-8")))?;
    let options = serde_saphyr::options! { with_snippet: false };
    let chart: Metadata =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| Error::input(format!("reading {CHART_FILE}: {}", e.without_snippet())))?;
    if !is_chart_name(&chart.name) {
        return Err(Error::input(format!(
            "{CHART_FILE}: {} is not the name of a chart: lower-case letters, digits, `-` and `.`",
            quote(&chart.name)
        )));
    }
    if semver::Version::parse(chart.version.trim_start_matches('v')).is_err() {
        return Err(Error::input(format!("{CHART_FILE}: {} is not a semantic version", quote(&chart.version))));
    }
    if chart.kind.as_deref() == Some("library") {
        return Err(Error::input(format!("chart {} is a library: it has nothing to install", chart.name)));
    }
    let below = |name: &str| files.keys().filter_map(|path| path.strip_prefix("charts/")).any(|path| is_of(path, name));
    if let Some(lost) = chart.dependencies.iter().find(|needed| !below(&needed.name)) {
        let hint = "run `helm dependency build` in its folder, so that charts/ has all that it needs";
        return Err(Error::input(format!("chart {} needs the chart {}, which is not below its charts/", chart.name, lost.name)).with_hint(hint));
    }
    Ok(chart)
}

const CHART_FILE: &str = "Chart.yaml";

fn missing(files: &ChartFiles) -> Error {
    let error = Error::input(format!("it has no {CHART_FILE}"));
    match suggest(CHART_FILE, files.keys().map(String::as_str)).filter(|hint| hint.ends_with('?')) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Whether a path below `charts/` belongs to the chart of a name: `name/…`, `name-1.2.3.tgz`.
fn is_of(path: &str, name: &str) -> bool {
    path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/') || rest.starts_with('-') && rest.ends_with(".tgz"))
}

/// Whether a text may name a chart; never a path.
pub fn is_chart_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (1..=250).contains(&text.len()) && text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && !text.contains("..")
}

/// Whether a text may name a release (helm: a DNS subdomain of at most 53 characters).
pub fn is_release_name(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= 53 && text.split('.').all(label)
}

/// One version of a chart in a repository's `index.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IndexEntry {
    /// Version.
    pub version: String,
    /// Where the archive is, relative to the repository.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Digest of the archive, where the repository gives one.
    #[serde(default)]
    pub digest: Option<String>,
}

/// The version of a chart in the text of a repository's `index.yaml`.
pub fn find_in_index(text: &str, name: &str, version: &str) -> Result<IndexEntry> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        entries: BTreeMap<String, Vec<IndexEntry>>,
    }
    let options = serde_saphyr::options! { with_snippet: false };
    let index: Index = serde_saphyr::from_str_with_options(text, options).map_err(|e| Error::input(e.without_snippet().to_string()))?;
    let Some(versions) = index.entries.get(name) else {
        let error = Error::input(format!("it has no chart {}", quote(name)));
        return Err(match suggest(name, index.entries.keys().map(String::as_str)) {
            Some(hint) => error.with_hint(hint),
            None => error,
        });
    };
    let plain = |text: &str| text.trim_start_matches('v').to_string();
    let found = versions.iter().find(|entry| plain(&entry.version) == plain(version)).cloned();
    let newest = versions.first().map(|entry| format!("the first that it has is {}", entry.version)).unwrap_or_default();
    found.ok_or_else(|| Error::input(format!("it has no version {} of chart {name}", quote(version))).with_hint(newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(chart: &str, more: &[&str]) -> ChartFiles {
        let more = more.iter().map(|path| (path.to_string(), Vec::new()));
        more.chain([(CHART_FILE.to_string(), chart.as_bytes().to_vec())]).collect()
    }

    fn refused(chart: &str, more: &[&str]) -> String {
        metadata(&files(chart, more)).unwrap_err().to_string()
    }

    #[test]
    fn c7_a_chart_that_is_named_like_a_path_is_refused() {
        for name in ["..", ".", "a/b", "../x", "a..b", "", "-a"] {
            assert!(refused(&format!("name: '{name}'\nversion: 1.0.0\n"), &[]).contains("is not the name of a chart"), "{name}");
        }
        assert!(refused("name: a\nversion: '1'\n", &[]).contains("is not a semantic version"));
        assert!(refused("name: a\nversion: 1.0.0\ntype: library\n", &[]).contains("is a library"));
        assert!(metadata(&ChartFiles::from([("chart.yaml".to_string(), Vec::new())])).unwrap_err().to_string().contains("no Chart.yaml"));
    }

    #[test]
    fn c7_a_dependency_that_is_not_there_is_named() {
        let chart = "name: a\nversion: 1.0.0\ndependencies: [{name: redis, version: 1.x, repository: 'https://x.test'}]\n";
        assert!(refused(chart, &["charts/redis2/Chart.yaml"]).contains("chart a needs the chart redis,"));
        for there in ["charts/redis/Chart.yaml", "charts/redis-1.2.3.tgz"] {
            assert_eq!(metadata(&files(chart, &[there])).unwrap().name, "a", "{there}");
        }
    }

    #[test]
    fn an_index_names_what_it_lacks() {
        let text = "apiVersion: v1\nentries:\n  web:\n  - {version: v1.2.0, urls: [web-1.2.0.tgz], digest: abc, created: '2026-01-01'}\n";
        assert_eq!(find_in_index(text, "web", "1.2.0").unwrap().urls, ["web-1.2.0.tgz"]);
        let error = find_in_index(text, "wbe", "1.2.0").unwrap_err();
        assert!(error.to_string().contains("no chart `wbe`") && error.hint() == Some("did you mean `web`?"), "{error}");
        assert!(find_in_index(text, "web", "2.0.0").unwrap_err().hint().unwrap().contains("v1.2.0"));
    }

    #[test]
    fn release_names_are_those_of_helm() {
        assert!(["web", "a.b-c", "x1"].into_iter().all(is_release_name));
        assert!(!["", "Web", "-a", "a..b", "a_b", &"x".repeat(54)].into_iter().any(is_release_name));
    }
}
