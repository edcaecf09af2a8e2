//! What a component comes to: its chart, the values of all places, and a digest of everything that decides what is installed.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt as _};
use layers::chart::bundle::Form;
use layers::platform::component::{Source, ValuesFrom};
use layers::platform::{Component, VirtualCluster};
use layers::seed::Release;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use serde_json::Value;

use super::{NAMESPACE, Site};
use crate::cluster::helm;

/// What one comes to.
pub(super) struct Wanted {
    /// Path or reference.
    pub chart: String,
    /// What it is declared as in the image.
    pub form: Form,
    /// Version of a chart that is no path.
    pub version: Option<String>,
    pub values: Value,
    /// Of all of it, and of the cluster that it goes to.
    pub digest: String,
}

impl Site {
    pub(super) async fn wanted(&self, object: &Component, cluster: Option<&VirtualCluster>) -> Result<Wanted> {
        self.check_name(object)?;
        let source = &object.spec.source;
        let (path, version, form, image, sha256) = match &source.chart {
            Some(chart) if chart.name.starts_with("oci://") => (chart.name.clone(), Some(chart.version.clone()), Form::Chart, Value::Null, None),
            _ => {
                let release = bundled(&self.releases, source)?;
                let image = serde_json::to_value(&release.values).fault(Fault::Internal, || "reading the image's values".into())?;
                (helm::bundled(&release.file), None, release.form.clone(), image, Some(release.sha256))
            }
        };
        let values = object.spec.effective(&image, &self.texts(object).await?)?;
        let uid = cluster.and_then(|cluster| cluster.uid()).unwrap_or_default();
        let named = source.chart.as_ref().map(|chart| chart.version.as_str()).unwrap_or_default();
        let parts = [path.as_bytes(), named.as_bytes(), &sha256.map(|digest| digest.0).unwrap_or_default(), uid.as_bytes()];
        let digest = Digest::of_parts(parts.into_iter().chain([values.to_string().as_bytes()])).to_string();
        Ok(Wanted { chart: path, form, version, values, digest })
    }

    /// Refuses the name of a release that the step `seed` keeps: both would make theirs of it by turns, and the component's removal would remove it.
    pub(super) fn check_name(&self, object: &Component) -> Result<()> {
        let (name, target) = (object.name_any(), &object.spec.target);
        let same = |release: &&Release| release.install && release.name == name && release.namespace == target.namespace;
        match self.releases.iter().find(same).filter(|_| target.virtual_cluster.is_none()) {
            None => Ok(()),
            Some(release) => Err(Error::input(format!(
                "metadata.name: the image installs chart {} as release {name} of namespace {} by itself; give the component another name",
                release.chart, release.namespace
            ))),
        }
    }

    /// What the objects of `valuesFrom` have.
    async fn texts(&self, object: &Component) -> Result<Vec<Option<String>>> {
        let mut out = Vec::new();
        for (n, from) in object.spec.values_from.iter().enumerate() {
            let text = self.text(from).await?;
            if text.is_none() && !from.optional {
                let (kind, name) = if from.secret.is_some() { ("Secret", &from.secret) } else { ("ConfigMap", &from.config_map) };
                let name = name.as_deref().unwrap_or_default();
                return Err(Error::input(format!(
                    "spec.valuesFrom[{n}]: there is no {kind} {name} with a key {} in namespace {NAMESPACE}",
                    from.key
                )));
            }
            out.push(text);
        }
        Ok(out)
    }

    async fn text(&self, from: &ValuesFrom) -> Result<Option<String>> {
        let reading = || "reading an object of spec.valuesFrom".to_string();
        if let Some(name) = &from.config_map {
            let found = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE).get_opt(name).await.fault(Fault::Environment, reading)?;
            return Ok(found.and_then(|map| map.data?.remove(&from.key)));
        }
        let name = from.secret.as_deref().unwrap_or_default();
        let found = Api::<Secret>::namespaced(self.client.clone(), NAMESPACE).get_opt(name).await.fault(Fault::Environment, reading)?;
        let bytes = found.and_then(|secret| secret.data?.remove(&from.key));
        Ok(bytes.map(|ByteString(bytes)| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// What the seed has under a name, in the form that the source asks for, and of a chart the version.
fn bundled<'a>(releases: &'a [Release], source: &Source) -> Result<&'a Release> {
    let (key, name) = source.entry();
    let of_form: Vec<_> = releases.iter().filter(|release| release.form.key() == key).collect();
    let of_name: Vec<_> = of_form.iter().filter(|release| release.name == name).copied().collect();
    let version = source.chart.as_ref().map(|chart| &chart.version);
    of_name.iter().find(|release| version.is_none_or(|version| release.version == *version)).copied().ok_or_else(|| {
        let (what, mut have): (_, Vec<_>) = match (of_name.is_empty(), version) {
            (false, Some(version)) => (
                format!("spec.source.chart.version: the image brings no version {version} of chart {name}"),
                of_name.iter().map(|release| release.version.as_str()).collect(),
            ),
            _ => {
                let field = if key == "chart" { ".name" } else { "" };
                let what = format!("spec.source.{key}{field}: the image brings no {} {name}", thing(key));
                (what, of_form.iter().map(|release| release.name.as_str()).collect())
            }
        };
        have.sort_unstable();
        Error::input(format!("{what}; it has {}", if have.is_empty() { "none".into() } else { have.join(", ") }))
    })
}

fn thing(key: &str) -> &str {
    if key == "kustomize" { "kustomization" } else { key }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use layers::platform::component::Chart;
    use layers::units::Bytes;

    use super::*;

    fn release(name: &str, version: &str) -> Release {
        let (file, sha256, values) = (format!("{name}-{version}.tgz"), Digest::of(version.as_bytes()), BTreeMap::new());
        let (name, namespace, chart, version, wanted_by) = (name.into(), "default".into(), name.into(), version.into(), "profile".into());
        Release { name, namespace, chart, version, file, sha256, size: Bytes(1), form: Form::Chart, values, install: false, wanted_by }
    }

    #[test]
    fn manifests_and_kustomizations_are_found_by_their_names_and_forms() {
        let of_form = |name: &str, form: Form| Release { form, ..release(name, "0.0.0-sha256-1") };
        let releases = [release("web", "1.0.0"), of_form("rules", Form::Manifests), of_form("shop", Form::Kustomize("overlays/a".into()))];
        let of = |source: &str| {
            let source: Source = serde_saphyr::from_str(source).unwrap();
            bundled(&releases, &source).map(|found| found.name.clone()).map_err(|error| error.to_string())
        };
        assert_eq!((of("{manifests: rules}").as_deref(), of("{kustomize: shop}").as_deref()), (Ok("rules"), Ok("shop")));
        assert_eq!(of("{manifests: web}").unwrap_err(), "spec.source.manifests: the image brings no manifests web; it has rules");
        assert_eq!(of("{kustomize: rules}").unwrap_err(), "spec.source.kustomize: the image brings no kustomization rules; it has shop");
        assert_eq!(
            of("{chart: {name: shop, version: 0.0.0-sha256-1}}").unwrap_err(),
            "spec.source.chart.name: the image brings no chart shop; it has web"
        );
    }

    #[test]
    fn a_chart_that_the_image_lacks_is_named_with_what_it_has() {
        let releases = [release("web", "1.0.0"), release("db", "2.0.0")];
        let of = |name: &str, version: &str| {
            let chart = Some(Chart { name: name.into(), version: version.into() });
            bundled(&releases, &Source { chart, ..Source::default() }).map(|found| found.file.clone()).map_err(|error| error.to_string())
        };
        assert_eq!(of("web", "1.0.0").as_deref(), Ok("web-1.0.0.tgz"));
        assert_eq!(of("web", "1.0.1").unwrap_err(), "spec.source.chart.version: the image brings no version 1.0.1 of chart web; it has 1.0.0");
        assert_eq!(of("wbe", "1.0.0").unwrap_err(), "spec.source.chart.name: the image brings no chart wbe; it has db, web");
    }
}
