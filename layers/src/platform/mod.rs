//! The platform's own API, group `chasi-bod.io/v1alpha1`: what a person or Git asks for, and what the controller says of it.
//!
//! All kinds are cluster-scoped: a virtual cluster has a host namespace of its own, `vcluster-NAME`, and its name is what commands take.
//! Source of the shapes: Kubernetes API conventions (conditions, `observedGeneration`, structural schemas, CEL rules).

pub mod check;
pub mod component;
pub mod isolation;
pub mod machine;
pub mod phase;
pub mod settings;
pub mod sleep;
pub mod snapshot;
pub mod values;
pub mod version;
pub mod virtual_cluster;

pub use component::{Component, ComponentSpec, ComponentStatus};
pub use phase::Phase;
pub use settings::Settings;
pub use snapshot::{Restore, RestoreSpec, Snapshot, SnapshotSpec};
pub use virtual_cluster::{VirtualCluster, VirtualClusterSpec, VirtualClusterStatus, VirtualClusterTemplate, VirtualClusterTemplateSpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The definitions of the kinds that the controller follows, as the API server takes them.
pub fn definitions() -> [CustomResourceDefinition; 5] {
    [VirtualCluster::crd(), VirtualClusterTemplate::crd(), Component::crd(), Snapshot::crd(), Restore::crd()]
}

/// The last failure of an object's work, until that works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One word for programs, such as `ImageMissing`.
    pub reason: String,
    /// A sentence for people that names the field or the object.
    pub message: String,
    /// When it failed first.
    pub since: Time,
    /// When it is tried again; absent when only a change of the object helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry: Option<Time>,
    /// How often it was tried.
    pub attempts: i32,
}
