//! Helm charts: each release declared once, by a layer or by the profile, which wins; manifests as a chart of their own.

use super::content::Site;
use super::*;
use crate::chart::bundle::{of_files, of_manifests};
use crate::chart::{ChartFiles, ChartSpec, Place};

/// Gives the files of a chart's folder.
pub(super) type ReadFolder<'a> = &'a dyn Fn(&str) -> Result<ChartFiles>;

/// What the layers and the profile declare, as they are planned.
#[derive(Default)]
pub(super) struct Charts(Vec<PlannedChart>);

impl Charts {
    /// Takes in what one layer, or the profile, declares.
    pub fn add(&mut self, site: &mut Site<'_, '_>, layer: &str, specs: &[ChartSpec], folder: ReadFolder<'_>) {
        for (n, spec) in specs.iter().enumerate() {
            let n = n.to_string();
            if site.holds(spec.when.as_deref(), &["charts", &n, "when"]) {
                self.chart(site, layer, spec, folder, &n);
            }
        }
    }

    fn chart(&mut self, site: &mut Site<'_, '_>, layer: &str, spec: &ChartSpec, folder: ReadFolder<'_>, n: &str) {
        let form = spec.form();
        let at = site.document.spot(&["charts", n, form.key()]);
        let files = match spec.place() {
            Place::Folder(name) => folder(name).and_then(|files| of_files(&form, files)).context(|| format!("reading {} {name}", form.key())),
            _ => Ok(ChartFiles::new()),
        };
        let files = files.unwrap_or_else(|error| {
            site.problems.push(at.problem(error.to_string(), error.hint().map(str::to_string)));
            ChartFiles::new()
        });
        let keyring = spec.keyring.as_ref().map(|name| site.bytes(name, &["charts", n, "keyring"])).unwrap_or_default();
        let spec = ChartSpec { when: None, ..spec.clone() };
        self.put(site, PlannedChart { layer: layer.into(), spec, files, keyring, at });
    }

    /// The manifests of one layer, or of the profile, as one release.
    pub fn add_manifests(&mut self, site: &mut Site<'_, '_>, layer: &str, version: &str, manifests: &[String]) {
        if manifests.is_empty() {
            return;
        }
        let read = |(n, path): (usize, &String)| (path.clone(), site.bytes(path, &["manifests", &n.to_string()]));
        let files: Vec<_> = manifests.iter().enumerate().map(read).collect();
        let name = format!("manifests-{layer}");
        let spec = ChartSpec { name, chart: "manifests".into(), ..ChartSpec::default() };
        let at = site.document.spot(&["manifests"]);
        self.put(site, PlannedChart { layer: layer.into(), spec, files: of_manifests("manifests", version, &files), keyring: Vec::new(), at });
    }

    /// A release of the profile takes the place of a layer's of the same name; of two layers both are named.
    fn put(&mut self, site: &mut Site<'_, '_>, chart: PlannedChart) {
        let Some(known) = self.0.iter_mut().find(|known| known.spec.name == chart.spec.name) else { return self.0.push(chart) };
        if chart.layer != PROFILE_LAYER {
            let message = format!("layers `{}` and `{}` both declare release {}", known.layer, chart.layer, chart.spec.name);
            site.problems.push(chart.at.problem(message, None));
        }
        *known = chart;
    }

    /// The releases in the order in which they are installed.
    pub fn used(self) -> Vec<PlannedChart> {
        self.0
    }
}
