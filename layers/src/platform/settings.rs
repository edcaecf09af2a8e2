//! What a virtual cluster is like: the same fields in a VirtualCluster and in templates, which others go over.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Settings of a virtual cluster. What is absent is left to the template, and in the end to the template `general`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.replicas) || self.replicas == 1 || !has(self.store) || self.store == 'etcd'")
    .message("more than one replica needs `store: etcd`: sqlite has one writer").field_path(".store"))]
pub struct Settings {
    /// Kubernetes version of the virtual control plane, one that the image bundles, such as `v1.36.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^v1\.[0-9]+\.[0-9]+$"))]
    pub version: Option<String>,
    /// Replicas of the control plane; more than one needs `store: etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7))]
    pub replicas: Option<i32>,
    /// Where the virtual cluster's objects are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// The control plane's own pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlane>,
    /// Hard limits of everything in the virtual cluster together, its control plane included (`spec.hard` of a ResourceQuota).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<BTreeMap<String, Quantity>>,
    /// What containers get that say nothing (a LimitRange).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_defaults: Option<ResourceRequirements>,
    /// The volume of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Addresses, names, isolation and exposure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Kinds that are copied between the virtual cluster and its host, beside pods, services, config maps, secrets and volume claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<Sync>,
    /// Feature gates of the virtual API server and controller manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_gates: Option<BTreeMap<String, bool>>,
    /// Admission plugins of the virtual API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission_plugins: Option<AdmissionPlugins>,
    /// Pod Security level of the host namespace; `privileged` lets pods of the virtual cluster reach the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_security: Option<PodSecurity>,
    /// When the virtual cluster is suspended and resumed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Sleep>,
    /// vcluster's own configuration (`vcluster.yaml`) over what these settings make of it. Keys that only the paid product honours are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free")]
    pub values: Option<Map<String, Value>>,
}

impl Settings {
    /// These settings over others: maps merge by key, all else replaces what it finds.
    pub fn over(&self, below: &Self) -> Result<Self> {
        let value = |settings: &Self| serde_json::to_value(settings).map_err(|e| Error::internal(format!("encoding settings: {e}")));
        let mut out = value(below)?;
        merge(&mut out, value(self)?);
        serde_json::from_value(out).map_err(|e| Error::input(format!("settings over those of the template: {e}")))
    }
}

/// Puts a document over another: maps merge by key, all else replaces.
pub fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                merge(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

/// The store of a virtual cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// One file beside the one control plane.
    Sqlite,
    /// An etcd of its own, with as many members as there are replicas when it is made; it keeps them.
    Etcd,
}

/// The control plane's own pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Requests and limits; equal ones in whole processors get processors of their own where the kubelet's CPU manager is `static`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Environment of its programs, such as `GOGC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Labels of nodes that it may run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Where it runs in relation to nodes and other pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints that it does not mind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Its priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
}

/// The volume of the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Storage class; the host's default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
}

/// Addresses, names, isolation and exposure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "VirtualNetwork")]
pub struct Network {
    /// The range that the virtual cluster takes its pods to be in. Pods are the host's and have its addresses; it must not overlap the host's ranges or another
    /// virtual cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "podCIDR")]
    #[schemars(length(max = 43))]
    pub pod_cidr: Option<String>,
    /// The range of the virtual cluster's services, which can only be the host's, as they get their addresses there; best left out.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "serviceCIDR")]
    #[schemars(length(max = 43))]
    pub service_cidr: Option<String>,
    /// Domain of the virtual cluster's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub domain: Option<String>,
    /// What may reach whom; `isolated` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plane: Option<Plane>,
    /// Namespaces of the host whose pods may reach the virtual cluster, such as an ingress controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_namespaces: Option<Vec<String>>,
    /// Services of the host that the virtual cluster's applications know by a name of their own. From an isolated one they reach the pods in those services'
    /// namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_services: Option<Vec<HostService>>,
    /// How the virtual cluster's API is reached from outside the host; only from within when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Exposure>,
}

/// A service of the host in the virtual cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "HostService")]
pub struct HostService {
    /// Namespace and name on the host, such as `databases/main`.
    #[schemars(length(max = 127), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub from: String,
    /// Namespace and name in the virtual cluster; the same when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 127), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub to: Option<String>,
}

/// What may reach whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "VirtualPlane")]
pub enum Plane {
    /// Nothing but the own pods, the host's DNS and what `fromNamespaces` and `hostServices` name; out of the cluster all. Nodes may reach it.
    Isolated,
    /// As `isolated`, and nothing out of the cluster.
    Closed,
    /// No rules.
    Shared,
}

/// A name of the virtual cluster's API for the outside, by an Ingress: one without a path leads TLS through by the name that clients ask for (SNI), with a
/// path TLS ends at the ingress controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Host name; without a path the API's certificate has it, too, and no other virtual cluster can have it.
    #[schemars(length(max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"))]
    pub host: String,
    /// Path below it, such as `/biz`, under which the API is reached with tokens, as client certificates end with TLS; several virtual clusters may share a host
    /// by paths none of which is below another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200), regex(pattern = "^(/|(/[-_A-Za-z0-9]+)+)?$"))]
    pub path: Option<String>,
    /// Ingress class of a controller that knows ingress-nginx's annotations; when absent `nginx`, and with a path `virtual-apis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Secret of type `kubernetes.io/tls` in the host's namespace `chasi-bod-system` with the host's certificate, for a path; what is `ca.crt` in it goes into
    /// kubeconfigs. When absent the platform makes a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub tls_secret: Option<String>,
}

impl Exposure {
    /// The class of Ingress objects that lead to virtual clusters' APIs below a path, and to nothing else.
    pub const BELOW: &str = "virtual-apis";

    /// The path, where there is one that tells anything.
    pub fn below(&self) -> Option<&str> {
        self.path.as_deref().filter(|path| !["", "/"].contains(path))
    }

    /// The address of the API, without a slash at its end.
    pub fn url(&self) -> String {
        format!("https://{}{}", self.host, self.below().unwrap_or_default())
    }

    /// The class of its Ingress.
    pub fn class(&self) -> &str {
        self.class.as_deref().unwrap_or(if self.below().is_some() { Self::BELOW } else { "nginx" })
    }
}

/// Kinds that are copied, by vcluster's names of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sync {
    /// From the virtual cluster to the host, such as `ingresses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_host: Option<BTreeMap<String, bool>>,
    /// From the host to the virtual cluster, such as `storageClasses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_host: Option<BTreeMap<String, bool>>,
}

/// Admission plugins beside Kubernetes' own choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionPlugins {
    /// On.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<Vec<String>>,
    /// Off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable: Option<Vec<String>>,
}

/// Levels of the Pod Security Standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PodSecurity {
    /// Everything is allowed.
    Privileged,
    /// No host namespaces, paths, ports and no privileged containers.
    Baseline,
    /// Also not root, no privilege escalation, few capabilities.
    Restricted,
}

/// When a virtual cluster sleeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sleep {
    /// When it is suspended, five fields of cron; who resumes it by hand has it awake until then.
    pub suspend: String,
    /// When it is resumed, five fields of cron; only by hand when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// Time zone of both; the node's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
}

/// An object of any shape.
pub(super) fn free(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
