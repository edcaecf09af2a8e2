//! Virtual clusters and components of the profile: what they need of the layers is there. What they name of each other was checked with the profile.

use super::*;
use crate::platform::ComponentSpec;
use crate::profile::Named;

/// The layer of virtual clusters and its chart.
const VCLUSTER: &str = "vcluster";

/// An application that the cluster gets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedComponent {
    /// The declaration.
    #[serde(flatten)]
    pub component: Named<ComponentSpec>,
    /// Where its chart is named.
    #[serde(skip)]
    pub at: Spot,
}

impl PlannedComponent {
    /// The entry of `charts` that it is made of.
    pub fn chart(&self) -> &str {
        self.component.spec.source.entry().1
    }

    /// The chart's values for it, as far as they are known before there is a cluster: `valuesFrom` counts for nothing.
    pub fn values(&self, chart: &PlannedChart) -> Result<Value> {
        self.component.spec.effective(&json!(chart.spec.values), &[])
    }
}

impl std::fmt::Display for PlannedComponent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let target = &self.component.spec.target;
        let (key, name) = self.component.spec.source.entry();
        write!(f, "{key} {name} into namespace {}", target.namespace)?;
        target.virtual_cluster.iter().try_for_each(|name| write!(f, " of virtual cluster {name}"))
    }
}

/// The profile's components.
pub(super) fn planned(loaded: &Loaded, charts: &[PlannedChart], problems: &mut Vec<Diagnostic>) -> Vec<PlannedComponent> {
    let (profile, document) = (&loaded.profile, &loaded.document);
    let chart = |name: &str| charts.iter().find(|chart| chart.spec.name == name);
    // The controller of both kinds looks for this chart.
    let followed = chart(VCLUSTER).is_some_and(|chart| !chart.spec.install);
    let sections = [("vclusters", profile.vclusters.is_empty()), ("components", profile.components.is_empty())];
    for (section, _) in sections.into_iter().filter(|(_, empty)| !empty && !followed) {
        let message = format!("`{section}` needs the layer `{VCLUSTER}`, which brings their definitions");
        problems.push(document.key_spot(&[section]).problem(message, Some(format!("list `{VCLUSTER}` under `layers`"))));
    }
    let mut out = Vec::new();
    for (n, component) in profile.components.iter().enumerate() {
        let (key, name) = component.spec.source.entry();
        let n = n.to_string();
        let path = ["components", &n, "source", key, "name"];
        let at = document.spot(if key == "chart" { &path } else { &path[..4] });
        let planned = PlannedComponent { component: component.clone(), at };
        match chart(name) {
            None => {
                let message = format!("component {} is made of the {key} {}, which is not among `charts`", component.name, quote(name));
                let like = charts.iter().filter(|chart| chart.spec.form().key() == key).map(|chart| chart.spec.name.as_str());
                problems.push(planned.at.problem(message, suggest(name, like)));
            }
            Some(chart) if chart.spec.form().key() != key => {
                let (is, name) = (chart.spec.form().key(), quote(name));
                let message = format!("component {} is made of the {key} {name}, but {name} under `charts` has `{is}`", component.name);
                problems.push(planned.at.problem(message, Some(format!("say `{is}` instead of `{key}`"))));
            }
            // A virtual cluster is another cluster.
            Some(chart) if chart.spec.install && component.spec.target.virtual_cluster.is_none() => {
                let message = format!("chart {} would be installed twice: by itself, too, not only as component {}", quote(name), component.name);
                problems.push(planned.at.problem(message, Some(format!("say `install: false` at {} under `charts`", quote(name)))));
            }
            Some(_) => {}
        }
        problems.extend(taken(document, &n, component, charts));
        out.push(planned);
    }
    out
}

/// A component whose release would be one that others keep.
fn taken(document: &Document, n: &str, component: &Named<ComponentSpec>, charts: &[PlannedChart]) -> Option<Diagnostic> {
    let (name, target) = (&component.name, &component.spec.target);
    let same = |chart: &&PlannedChart| chart.spec.install && chart.spec.name == *name && chart.spec.namespace == target.namespace;
    let of = match charts.iter().find(same) {
        _ if target.virtual_cluster.is_some() => None,
        _ if target.namespace == format!("vcluster-{name}") => Some("virtual cluster"),
        chart => chart.map(|_| "chart under `charts`"),
    }?;
    let message = format!("component {name} would be the release {name} of namespace {}, which the {of} of that name has", target.namespace);
    Some(document.spot(&["components", n, "name"]).problem(message, Some("give it another name or namespace".into())))
}

impl Plan {
    /// Digest of all that components give to charts, none without components; a lock with another one does not know what they ask for.
    pub fn components_request(&self) -> Option<Digest> {
        let given = |Named { name, spec }: &Named<ComponentSpec>| json!([name, spec.source, spec.target.namespace, spec.values]);
        let all: Vec<_> = self.components.iter().map(|planned| given(&planned.component)).collect();
        (!all.is_empty()).then(|| digest_of(&all))
    }
}
