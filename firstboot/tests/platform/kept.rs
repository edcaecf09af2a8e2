//! What stays when its owner goes, and what comes back when others change it.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use layers::platform::{Component, Phase, VirtualCluster};
use serde_json::json;

use crate::bench::Bench;
use crate::rates::is_ready;

const SPACE: &str = "vcluster-kept";

/// The claims of the store, by their identity.
async fn claims(bench: &Bench) -> Vec<String> {
    let list = Api::<PersistentVolumeClaim>::namespaced(bench.client.clone(), SPACE).list(&ListParams::default()).await.unwrap();
    list.items.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none()).map(|claim| claim.uid().unwrap()).collect()
}

/// The Secret of the control plane's certificates: its identity, and the names in it but for the extensions.
async fn certificates(bench: &Bench) -> (String, String) {
    let secret = Api::<Secret>::namespaced(bench.client.clone(), SPACE).get("kept-certs").await.unwrap();
    let mut names: Vec<_> = secret.data.iter().flatten().map(|(name, _)| name.split('.').next().unwrap()).collect();
    names.dedup();
    (secret.uid().unwrap(), names.join(" "))
}

/// With `Retain` the data outlives its virtual cluster, and the next one of the name goes on with it.
async fn retained_data_is_taken_up_again(bench: &Bench) {
    bench.create::<VirtualCluster>("kept", json!({"template": "edge", "deletionPolicy": "Retain"})).await.unwrap();
    bench.rests("kept", Phase::Running).await;
    let before = claims(bench).await;
    assert_eq!(before.len(), 1);
    let keys = certificates(bench).await;
    assert_eq!(
        keys.1,
        "admin apiserver-etcd-client apiserver-kubelet-client apiserver ca controller-manager \
         etcd-ca etcd-healthcheck-client etcd-peer etcd-server front-proxy-ca front-proxy-client sa scheduler"
    );
    bench.delete::<VirtualCluster>("kept").await;
    bench.gone::<VirtualCluster>("kept").await;
    assert_eq!((bench.revisions(SPACE, "kept").await, claims(bench).await), (Vec::new(), before.clone()));
    bench.create::<VirtualCluster>("kept", json!({"template": "edge"})).await.unwrap();
    bench.rests("kept", Phase::Running).await;
    assert_eq!((bench.revisions(SPACE, "kept").await, claims(bench).await), (vec!["deployed".to_string()], before));
    assert_eq!(certificates(bench).await, keys);
    bench.delete::<VirtualCluster>("kept").await;
    bench.gone::<VirtualCluster>("kept").await;
    bench.gone::<Namespace>(SPACE).await;
}

/// Others change what three components made; whoever leads next looks at each, and does with it what it is told to.
async fn drift_is_healed_told_or_ignored(bench: &mut Bench) {
    let policies = ["Heal", "Report", "Ignore"];
    for policy in policies {
        let spec = json!({"source": {"chart": {"name": "note", "version": "1.0.0"}}, "drift": policy, "values": {"text": "ours"}});
        bench.create::<Component>(&policy.to_lowercase(), spec).await.unwrap();
    }
    for policy in policies {
        bench.until::<Component>(&policy.to_lowercase(), "READY", is_ready).await;
    }
    bench.kill();
    let maps = Api::<ConfigMap>::namespaced(bench.client.clone(), "default");
    for policy in policies {
        let theirs = Patch::Merge(json!({"data": {"text": "theirs"}}));
        maps.patch(&policy.to_lowercase(), &PatchParams::default(), &theirs).await.unwrap();
    }
    bench.start();
    for (name, status, reason, text, revision) in
        [("heal", "False", "Healed", "ours", 2), ("report", "True", "ChangedByOthers", "theirs", 1), ("ignore", "False", "Installed", "theirs", 1)]
    {
        let told = |object: &Component| {
            let conditions = object.status.iter().flat_map(|status| &status.conditions);
            let drifted = conditions.into_iter().find(|condition| condition.type_ == "Drifted");
            let names = |message: &str| reason == "Installed" || message == format!("v1.ConfigMap.default.{name}");
            drifted.is_some_and(|drifted| drifted.status == status && drifted.reason == reason && names(&drifted.message))
        };
        bench.until::<Component>(name, reason, told).await;
        assert_eq!(maps.get(name).await.unwrap().data.unwrap()["text"], text, "{name}");
        assert_eq!(bench.revisions("default", name).await.len(), revision, "{name}");
    }
}

pub async fn all(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    retained_data_is_taken_up_again(&bench).await;
    drift_is_healed_told_or_ignored(&mut bench).await;
    bench.kill();
}
