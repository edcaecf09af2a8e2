//! Component: an application from a chart, kustomization or manifests, on the host or in a virtual cluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Failure;
use super::settings::{free, merge};
use crate::{Error, Result};

/// Annotation that people change to have a component tried again that failed often enough.
pub const RETRY: &str = "chasi-bod.io/retry";

/// An application on the host or in a virtual cluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "Component",
    shortname = "comp",
    category = "chasi-bod",
    status = "ComponentStatus",
    derive = "PartialEq",
    doc = "An application from a chart, kustomization or manifests, on the host or in a virtual cluster.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.target.virtualCluster"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failure.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    // The name is the release's.
    validation = Rule::new("size(self.metadata.name) <= 53").message("metadata.name: at most 53 characters: it is the name of the release"),
    validation = Rule::new("!has(self.spec.dependsOn) || !(self.metadata.name in self.spec.dependsOn)")
        .message("spec.dependsOn: a component cannot wait for itself"),
    validation = Rule::new("has(self.spec.target.virtualCluster) || self.spec.target.namespace != 'vcluster-' + self.metadata.name")
        .message("spec.target.namespace: the release of this name there is a virtual cluster's control plane; give the component another name"),
    validation = Rule::new("has(self.spec.source.chart) || !has(self.spec.values)").message("spec.values: only a chart takes values; manifests and kustomizations are installed as they are"),
    validation = Rule::new("has(self.spec.source.chart) || !has(self.spec.valuesFrom)").message("spec.valuesFrom: only a chart takes values; manifests and kustomizations are installed as they are"),
    validation = Rule::new("self.spec.target == oldSelf.spec.target").message("spec.target: it cannot change; make another component")
)]
#[serde(rename_all = "camelCase")]
pub struct ComponentSpec {
    /// What is installed.
    pub source: Source,
    /// Where.
    #[serde(default)]
    pub target: Target,
    /// Values of the chart, over those of `valuesFrom`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "free")]
    pub values: Map<String, Value>,
    /// Values from objects of the host's namespace `chasi-bod-system`, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub values_from: Vec<ValuesFrom>,
    /// Components that are ready before this one is begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub depends_on: Vec<String>,
    /// How long an installation may take, in seconds.
    #[serde(default = "timeout")]
    #[schemars(range(min = 10, max = 86_400))]
    pub timeout_seconds: i32,
    /// How often a failed installation is tried again before the component waits for a change.
    #[serde(default = "retries")]
    #[schemars(range(min = 0, max = 1000))]
    pub retries: i32,
    /// What becomes of changes by others.
    #[serde(default)]
    pub drift: Drift,
}

/// What is installed: one of its kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.chart), has(self.kustomize), has(self.manifests)].filter(x, x).size() == 1")
    .message("name one of chart, kustomize and manifests"))]
pub struct Source {
    /// A chart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chart: Option<Chart>,
    /// A bundled kustomization, by its name in the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub kustomize: Option<String>,
    /// Bundled manifests, by their name in the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub manifests: Option<String>,
}

impl Source {
    /// The key that is given, and the name there.
    pub fn entry(&self) -> (&'static str, &str) {
        match (&self.chart, &self.manifests, &self.kustomize) {
            (Some(chart), ..) => ("chart", &chart.name),
            (_, Some(name), _) => ("manifests", name),
            (.., name) => ("kustomize", name.as_deref().unwrap_or_default()),
        }
    }
}

/// A chart of the seed or of a registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.version)").message("name the version, exactly").field_path(".version"))]
pub struct Chart {
    /// Its name in the seed, or `oci://registry/repository/name`.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// Its version, exactly; only a profile may leave that to its lock.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 128))]
    pub version: String,
}

/// Where an application is installed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The virtual cluster; the host when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub virtual_cluster: Option<String>,
    /// The namespace there; it is made when it does not exist.
    #[serde(default = "namespace")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
}

impl Default for Target {
    fn default() -> Self {
        Self { virtual_cluster: None, namespace: namespace() }
    }
}

/// Values from an object: one of its kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.configMap), has(self.secret)].filter(x, x).size() == 1").message("name one of configMap and secret"))]
pub struct ValuesFrom {
    /// Name of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<String>,
    /// Name of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Its key.
    #[serde(default = "key")]
    pub key: String,
    /// Dotted place in the values where the key's text goes; without one the key holds a whole document of values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Whether the component goes on without it.
    #[serde(default)]
    pub optional: bool,
}

impl ComponentSpec {
    /// The values over those that the image has for the chart: those of `valuesFrom` in their order, then the own ones. `texts` are what the objects of
    /// `valuesFrom` have.
    pub fn effective(&self, image: &Value, texts: &[Option<String>]) -> Result<Value> {
        let mut out = image.clone();
        for (n, (from, text)) in self.values_from.iter().zip(texts).enumerate() {
            let Some(text) = text else { continue };
            let value = match &from.at {
                Some(place) => place.rsplit('.').fold(json!(text), |value, key| json!({key: value})),
                None => serde_saphyr::from_str(text).map_err(|e| {
                    // Not its text, which may be secret.
                    Error::input(format!("spec.valuesFrom[{n}].key: {} is no document of values: {}", from.key, e.without_snippet()))
                })?,
            };
            merge(&mut out, value);
        }
        merge(&mut out, Value::Object(self.values.clone()));
        Ok(out)
    }
}

/// What becomes of changes by others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Drift {
    /// They are undone.
    Heal,
    /// A condition tells of them.
    #[default]
    Report,
    /// Nobody looks.
    Ignore,
}

/// What a component is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ComponentPhase {
    /// It waits for what it depends on.
    #[default]
    Waiting,
    /// It is being installed or changed.
    Installing,
    /// It is as it was asked for.
    Ready,
    /// Its last work failed; it is tried again.
    Error,
    /// It was tried often enough; it waits for a change or for `chasi-bod component retry`.
    Failed,
    /// It is being removed.
    Deleting,
}

/// What the controller says of a component.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// What it is at.
    #[serde(default)]
    pub phase: ComponentPhase,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of source and effective values that were installed: an equal one leaves the release untouched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<String>,
    /// Digest of what the failure is about: another one is tried at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<String>,
    /// Revision of the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i32>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// `Ready` and `Drifted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn timeout() -> i32 {
    900
}

fn retries() -> i32 {
    10
}

fn namespace() -> String {
    "default".into()
}

fn key() -> String {
    "values.yaml".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_values_go_over_those_of_objects_and_those_over_the_images() {
        let spec: ComponentSpec = serde_saphyr::from_str(
            "{source: {chart: {name: web, version: 1.0.0}}, values: {replicas: 3, db: {user: me}},
              valuesFrom: [{configMap: site}, {secret: db, key: password, at: db.password}, {secret: gone, optional: true}]}",
        )
        .unwrap();
        let texts = [Some("{replicas: 2, db: {host: db.test}}"), Some("a: b"), None].map(|text| text.map(String::from));
        let made = spec.effective(&json!({"replicas": 1, "image": "x"}), &texts).unwrap();
        assert_eq!(made, json!({"replicas": 3, "image": "x", "db": {"host": "db.test", "password": "a: b", "user": "me"}}));
        let error = spec.effective(&json!({}), &[Some("{".into())]).unwrap_err().to_string();
        assert!(error.starts_with("spec.valuesFrom[0].key: values.yaml is no document of values"), "{error}");
    }

    #[test]
    fn an_object_names_the_version_of_its_chart_which_only_a_profile_may_leave_out() {
        let definition = serde_json::to_value(<Component as kube::CustomResourceExt>::crd()).unwrap();
        let chart = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/source/properties/chart").unwrap();
        assert_eq!(chart["x-kubernetes-validations"][0]["rule"], "has(self.version)", "{chart:#}");
        // A default would be no version.
        assert_eq!((&chart["properties"]["version"]["minLength"], chart["properties"]["version"].get("default")), (&json!(1), None));
    }
}
