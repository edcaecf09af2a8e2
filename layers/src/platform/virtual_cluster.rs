//! VirtualCluster and its templates.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Failure, Phase, Settings};
use crate::{Error, Result};

/// A Kubernetes cluster inside of the host's: an own API and own controllers; its pods run as the host's.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "VirtualCluster",
    shortname = "vc",
    category = "chasi-bod",
    status = "VirtualClusterStatus",
    derive = "PartialEq",
    doc = "A Kubernetes cluster inside of the host's: an own API and own controllers; its pods run as the host's.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.template"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failure.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    // Objects of it are named NAME-x-NAMESPACE-x-…, and its host namespace `vcluster-NAME`, whose names end at 63 characters.
    validation = Rule::new("size(self.metadata.name) <= 40 && !self.metadata.name.contains('.')")
        .message("metadata.name: at most 40 characters, and no dot: it is part of the names of a namespace and of services"),
    // RFC 1035, as services of most versions of Kubernetes have it.
    validation = Rule::new("self.metadata.name.matches('^[a-z]')").message("metadata.name: it begins with a letter, as names of services do"),
    validation = Rule::new("!has(oldSelf.spec.store) || (has(self.spec.store) && self.spec.store == oldSelf.spec.store)")
        .message("spec.store: it cannot change; restore a snapshot into a new virtual cluster instead")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualClusterSpec {
    /// The template that the settings here go over.
    #[serde(default = "general")]
    pub template: String,
    /// Whether its control plane and its workloads are stopped; the data is kept.
    #[serde(default)]
    pub suspended: bool,
    /// What becomes of the data when the object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The settings.
    #[serde(flatten)]
    pub settings: Settings,
}

/// What becomes of a virtual cluster's data when it is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It goes too: nothing is left on the host.
    #[default]
    Delete,
    /// The namespace with the volume claim of the store and the certificates stays; a virtual cluster of the same name goes on with them.
    Retain,
}

/// What the controller says of a virtual cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualClusterStatus {
    /// What it is at.
    #[serde(default)]
    pub phase: Phase,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of chart and values that were installed: with an equal one the release is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<String>,
    /// The Kubernetes version that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The replicas of the control plane that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Address of its API for the outside, as `network.exposure` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What failed last, until the work is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// In the phase ERROR: the phase in which it failed and that is entered again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_phase: Option<Phase>,
    /// `ControlPlaneReady`, `SyncerReady`, `DNSReady`, `Isolated` and their sum `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Settings with a name for virtual clusters and other templates.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "VirtualClusterTemplate",
    shortname = "vct",
    category = "chasi-bod",
    derive = "PartialEq",
    doc = "Settings with a name for virtual clusters and other templates.",
    printcolumn(name = "Extends", type_ = "string", json_path = ".spec.extends"),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description"),
    validation = Rule::new("!has(self.spec.extends) || self.spec.extends != self.metadata.name").message("spec.extends: a template cannot extend itself")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualClusterTemplateSpec {
    /// The template that the settings here go over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// What it is for, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The settings.
    #[serde(flatten)]
    pub settings: Settings,
}

impl VirtualClusterSpec {
    /// The settings over those of the template, which go over those of the one that it extends, and so on.
    pub fn effective<'a>(&self, template: impl Fn(&str) -> Option<&'a VirtualClusterTemplateSpec>) -> Result<Settings> {
        let (mut chain, mut next, mut field) = (vec![self.template.as_str()], Some(self.template.as_str()), "spec.template".to_string());
        let mut settings = vec![&self.settings];
        while let Some(name) = next {
            let found = template(name).ok_or_else(|| Error::input(format!("{field}: there is no VirtualClusterTemplate `{name}`")))?;
            settings.push(&found.settings);
            next = found.extends.as_deref();
            field = format!("spec.extends of VirtualClusterTemplate `{name}`");
            chain.extend(next);
            if let Some(again) = next.filter(|again| chain[..chain.len() - 1].contains(again)) {
                return Err(Error::input(format!("{field}: `{again}` extends itself: {}", chain.join(" → "))));
            }
        }
        settings.into_iter().rev().try_fold(Settings::default(), |below, above| above.over(&below))
    }
}

/// The template of virtual clusters that name none.
fn general() -> String {
    "general".into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn templates(yaml: &str) -> BTreeMap<String, VirtualClusterTemplateSpec> {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn effective(templates: &BTreeMap<String, VirtualClusterTemplateSpec>, spec: &str) -> Result<Settings> {
        serde_saphyr::from_str::<VirtualClusterSpec>(spec).unwrap().effective(|name| templates.get(name))
    }

    const TEMPLATES: &str = "
general: {replicas: 1, store: sqlite, quota: {cpu: 2, memory: 2Gi}, network: {plane: isolated, fromNamespaces: [ingress]}, admissionPlugins: {enable: [a, b]}}
edge: {extends: general, controlPlane: {env: {GOGC: '40'}}, quota: {memory: 1Gi}}
site: {extends: edge, network: {domain: site.test}, admissionPlugins: {enable: [c]}}
one: {extends: two}
two: {extends: three}
three: {extends: two}
";

    #[test]
    fn settings_go_over_their_templates_field_by_field() {
        let templates = templates(TEMPLATES);
        let settings =
            effective(&templates, "{template: site, quota: {cpu: 3, pods: 20}, network: {fromNamespaces: []}, values: {a: {b: 1}}}").unwrap();
        let expected = "{replicas: 1, store: sqlite, quota: {cpu: 3, memory: 1Gi, pods: 20}, controlPlane: {env: {GOGC: '40'}}, values: {a: {b: 1}},
            network: {plane: isolated, fromNamespaces: [], domain: site.test}, admissionPlugins: {enable: [c]}}";
        assert_eq!(settings, serde_saphyr::from_str(expected).unwrap());
        assert_eq!(effective(&templates, "{}").unwrap(), templates["general"].settings);
    }

    #[test]
    fn unknown_and_circular_templates_are_named_with_their_field() {
        for (spec, said) in [
            ("{template: cpy}", "spec.template: there is no VirtualClusterTemplate `cpy`"),
            ("{template: one}", "spec.extends of VirtualClusterTemplate `three`: `two` extends itself: one → two → three → two"),
        ] {
            assert_eq!(effective(&templates(TEMPLATES), spec).unwrap_err().to_string(), said);
        }
        let lonely = templates("x: {extends: y}");
        assert_eq!(
            effective(&lonely, "{template: x}").unwrap_err().to_string(),
            "spec.extends of VirtualClusterTemplate `x`: there is no VirtualClusterTemplate `y`"
        );
    }
}
