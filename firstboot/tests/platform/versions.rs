//! The Kubernetes version of a virtual cluster: one of the image's, and never backwards.

use std::fs;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::Api;
use layers::platform::{Phase, VirtualCluster};
use layers::seed::{INDEX, Image, ImageIndex};
use layers::units::{Bytes, Digest};
use serde_json::json;

use crate::bench::Bench;

/// Lets the root have control planes of these versions.
fn lay(bench: &Bench, versions: &[&str]) {
    let image = |version: &&str| {
        let (digest, media_type) = (Digest::of(version.as_bytes()), "application/vnd.oci.image.manifest.v1+json".into());
        let name = format!("chasi-bod.internal/vcluster-binaries:{version}");
        Image { name, digest, media_type, size: Bytes(1), manifest: digest, config: digest, wanted_by: Vec::new() }
    };
    let index = ImageIndex { images: versions.iter().map(image).collect(), ..ImageIndex::default() };
    let path = bench.path("root").join(INDEX.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
}

async fn is_refused(bench: &Bench, said: &str) {
    let refused = |object: &VirtualCluster| {
        let status = object.status.clone().unwrap_or_default();
        status.phase == Phase::Error && status.failure.is_some_and(|failure| failure.reason == "Refused" && failure.message == said)
    };
    bench.until::<VirtualCluster>("biz", said, refused).await;
}

/// What the control plane's pods mount as their programs.
async fn runs(bench: &Bench, version: &str) {
    let is_so = |object: &VirtualCluster| {
        let status = object.status.clone().unwrap_or_default();
        (status.phase, status.version.as_deref()) == (Phase::Running, Some(version)) && status.observed_generation == object.metadata.generation
    };
    bench.until::<VirtualCluster>("biz", version, is_so).await;
    let set = Api::<StatefulSet>::namespaced(bench.client.clone(), "vcluster-biz").get("biz").await.unwrap();
    let volumes = set.spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let programs = volumes.iter().find(|volume| volume.name == "binaries").unwrap();
    let wanted = format!("chasi-bod.internal/vcluster-binaries:{version}");
    assert_eq!(programs.image.as_ref().unwrap().reference.as_deref(), Some(wanted.as_str()));
}

pub async fn go_forward(mut bench: Bench) {
    lay(&bench, &["v1.35.4", "v1.36.3", "v1.38.0"]);
    bench.start();
    bench.until_defined().await;
    bench.create::<VirtualCluster>("biz", json!({"version": "v1.34.0"})).await.unwrap();
    is_refused(&bench, "spec.version: the image has no control plane of v1.34.0; it has v1.35.4, v1.36.3, v1.38.0").await;
    bench.change::<VirtualCluster>("biz", json!({"version": "v1.35.4"})).await.unwrap();
    runs(&bench, "v1.35.4").await;
    bench.change::<VirtualCluster>("biz", json!({"version": "v1.38.0"})).await.unwrap();
    let skips = "spec.version: v1.38.0 is more than one minor version after v1.35.4; Kubernetes goes through each: first to a version of v1.36";
    is_refused(&bench, skips).await;
    bench.change::<VirtualCluster>("biz", json!({"version": "v1.36.3"})).await.unwrap();
    runs(&bench, "v1.36.3").await;
    let events = bench.client.request_text(crate::bench::http("/api/v1/namespaces/default/events")).await.unwrap();
    assert!(events.contains("\"Updating\""), "{events}");
    bench.change::<VirtualCluster>("biz", json!({"version": "v1.35.4"})).await.unwrap();
    is_refused(&bench, "spec.version: v1.35.4 is older than v1.36.3, which has written the data; Kubernetes does not go back").await;
    assert_eq!(bench.revisions("vcluster-biz", "biz").await, ["superseded", "deployed"]);
    // Without a version it is the image's, which it has.
    bench.change::<VirtualCluster>("biz", json!({"version": null})).await.unwrap();
    runs(&bench, "v1.36.3").await;
    bench.kill();
}
