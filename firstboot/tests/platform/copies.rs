//! Snapshots and restores on a volume claim, which their pod makes alone: the controllers are killed before, in and after it.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use layers::platform::snapshot::{CopyPhase, CopyStatus};
use layers::platform::{Phase, Restore, Snapshot};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::bench::{Bench, Kind};
use crate::kills::{LOOK, kill};
use crate::kubelet::{DIGEST, SIZE};

/// The pod that copies.
const POD: &str = "chasi-bod-copy";

/// Both kinds.
pub trait Copying: Kind {
    /// The field of its place.
    const FIELD: &str;
    /// What the virtual cluster is at meanwhile.
    const PHASE: Phase;
    fn status(&self) -> CopyStatus;
}

impl Copying for Snapshot {
    const FIELD: &str = "to";
    const PHASE: Phase = Phase::Snapshotting;
    fn status(&self) -> CopyStatus {
        self.status.clone().unwrap_or_default()
    }
}

impl Copying for Restore {
    const FIELD: &str = "from";
    const PHASE: Phase = Phase::Restoring;
    fn status(&self) -> CopyStatus {
        self.status.clone().unwrap_or_default()
    }
}

fn place(cluster: &str) -> String {
    format!("vcluster-{cluster}")
}

/// Asks for a copy whose pod does not end, and waits until the virtual cluster is at it.
pub async fn begin<K: Copying>(bench: &Bench, name: &str, cluster: &str) {
    bench.script.hold(&format!("{}/{POD}", place(cluster)));
    let spec: Value = json!({"virtualCluster": cluster, K::FIELD: {"volumeClaim": {"name": "backups", "path": "copy.tar.gz"}}});
    bench.create::<K>(name, spec).await.unwrap();
    bench.reaches(cluster, K::PHASE).await;
}

/// Waits until the pod is there and ended, or not; its identity.
async fn pod(bench: &Bench, cluster: &str, has_ended: bool) -> String {
    let pods = Api::<Pod>::namespaced(bench.client.clone(), &place(cluster));
    for _ in 0..600 {
        let found = pods.get_opt(POD).await.unwrap();
        let ended = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded");
        if let Some(found) = found.filter(|found| ended(found) == has_ended) {
            return found.uid().unwrap();
        }
        sleep(LOOK / 10).await;
    }
    panic!("the pod of the copy: ended should be {has_ended}\n{}", bench.story());
}

/// The controllers are killed before its pod is made, while it works, when it has ended, and when all is done.
async fn copies<K: Copying>(bench: &mut Bench, name: &str, cluster: &str) -> CopyStatus {
    begin::<K>(bench, name, cluster).await;
    kill(bench, &format!("{:?}", K::PHASE));
    bench.until_leading().await;
    let made = pod(bench, cluster, false).await;
    kill(bench, &format!("{:?}, while it copies", K::PHASE));
    bench.until_leading().await;
    sleep(LOOK).await;
    assert_eq!(pod(bench, cluster, false).await, made, "another pod began anew\n{}", bench.story());
    bench.kill();
    bench.script.release(&format!("{}/{POD}", place(cluster)));
    assert_eq!(pod(bench, cluster, true).await, made);
    println!("killed in {:?}, with the copy made", K::PHASE);
    bench.start();
    bench.until::<K>(name, "DONE", |object| object.status().phase == CopyPhase::Done).await;
    kill(bench, &format!("{:?}, with all done", K::PHASE));
    bench.until_leading().await;
    println!("  RUNNING after {:.1} s", bench.rests(cluster, Phase::Running).await);
    sleep(LOOK).await;
    let left = Api::<Pod>::namespaced(bench.client.clone(), &place(cluster)).get_opt(POD).await.unwrap();
    assert!(left.is_none(), "it is made again\n{}", bench.story());
    bench.all::<K>().get(name).await.unwrap().status()
}

pub async fn of_its_data(bench: &mut Bench, cluster: &str) {
    let claim = json!({"metadata": {"name": "backups"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
    Api::namespaced(bench.client.clone(), &place(cluster)).create(&PostParams::default(), &claim).await.unwrap();
    let own = Api::<StatefulSet>::namespaced(bench.client.clone(), &place(cluster));
    let replicas = own.get(cluster).await.unwrap().spec.unwrap().replicas;
    let snapshot = copies::<Snapshot>(bench, "first", cluster).await;
    assert_eq!((snapshot.size.unwrap().0.as_str(), snapshot.digest.unwrap()), (SIZE, format!("sha256:{DIGEST}")));
    let restore = copies::<Restore>(bench, "back", cluster).await;
    assert_eq!((restore.failure, restore.size), (None, None));
    // What was stopped for it runs as before.
    assert_eq!(own.get(cluster).await.unwrap().spec.unwrap().replicas, replicas);
}
