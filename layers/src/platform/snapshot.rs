//! Snapshots of virtual clusters, and their way back.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Failure;

/// A copy of everything that a virtual cluster's API holds.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "Snapshot",
    category = "chasi-bod",
    status = "CopyStatus",
    derive = "PartialEq",
    doc = "A copy of everything that a virtual cluster's API holds.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.virtualCluster"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failure.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("spec: a snapshot is made once; make another one")
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// The virtual cluster.
    #[schemars(length(min = 1, max = 40))]
    pub virtual_cluster: String,
    /// Where the copy goes.
    pub to: Place,
}

/// Puts a snapshot into a virtual cluster, whose objects it replaces.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "Restore",
    category = "chasi-bod",
    status = "CopyStatus",
    derive = "PartialEq",
    doc = "Puts a snapshot into a virtual cluster, whose objects it replaces.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.virtualCluster"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failure.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("spec: a restore is done once; make another one")
)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// The virtual cluster.
    #[schemars(length(min = 1, max = 40))]
    pub virtual_cluster: String,
    /// Where the copy lies.
    pub from: Place,
}

/// Where a copy lies: one of its kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.volumeClaim), has(self.oci), has(self.file)].filter(x, x).size() == 1")
    .message("name one of volumeClaim, oci and file"))]
pub struct Place {
    /// A volume claim in the virtual cluster's host namespace, and a path on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_claim: Option<VolumePlace>,
    /// An artifact in a registry, `registry/repository:tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub oci: Option<String>,
    /// A file below the control plane node's `/var/lib/chasi-bod/snapshots`, without slashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}$"))]
    pub file: Option<String>,
}

/// A path on a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumePlace {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Path of the file on it.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
}

/// What a copy is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CopyPhase {
    /// It waits for the virtual cluster.
    #[default]
    Pending,
    /// It is being made.
    Running,
    /// It is there, whole.
    Done,
    /// It failed; it is tried again.
    Error,
}

/// What the controller says of a snapshot or restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyStatus {
    /// What it is at.
    #[serde(default)]
    pub phase: CopyPhase,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Size of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// `Complete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
