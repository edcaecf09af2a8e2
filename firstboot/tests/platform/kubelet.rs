//! What stands for nodes here: pods that become ready, addresses of services that lead somewhere, and what the syncer of a virtual cluster does whose
//! control plane is such a pod: it writes credentials and has the host run the pod of its DNS.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::apart::NODE;

/// Address of the host's own API, by its service.
const HOST: &str = "10.96.0.1";

/// What the pod of a copy says at its end; those of virtual clusters go on.
pub const SIZE: &str = "4096";
pub const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// What the pods do.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<Parts>>);

#[derive(Default)]
pub struct Parts {
    /// Pods that do not become, or stay, ready: what `NAMESPACE/NAME` begins with.
    pub held: BTreeSet<String>,
    /// What each syncer writes once its control plane is ready.
    pub credentials: String,
    /// The pod of each one's DNS by its name in there.
    pub dns: String,
    /// Who answers at the services of virtual clusters.
    pub virtual_api: String,
    /// The virtual cluster whose syncer is a real one.
    pub real: Option<String>,
}

impl Script {
    pub fn change(&self, change: impl FnOnce(&mut Parts)) {
        change(&mut self.0.lock().unwrap());
    }

    pub fn hold(&self, pods: &str) {
        self.change(|parts| _ = parts.held.insert(pods.into()));
    }

    pub fn release(&self, pods: &str) {
        self.change(|parts| _ = parts.held.remove(pods));
    }

    fn holds(&self, pod: &Pod) -> bool {
        let name = format!("{}/{}", pod.namespace().unwrap(), pod.name_any());
        self.0.lock().unwrap().held.iter().any(|held| name.starts_with(held))
    }

    /// The virtual cluster whose control plane a pod is, and the credentials that its syncer writes.
    fn credentials(&self, pod: &Pod) -> Option<(String, String)> {
        let parts = self.0.lock().unwrap();
        let name = pod.namespace()?.strip_prefix("vcluster-").filter(|name| pod.name_any() == format!("{name}-0"))?.to_string();
        (parts.real.as_ref() != Some(&name)).then(|| (name, parts.credentials.clone()))
    }
}

/// Marks pods as running and ready for as long as the test lasts.
pub async fn keep(client: Client, script: Script) {
    let pods = Api::<Pod>::all(client.clone());
    loop {
        // The API may be away for a while.
        for pod in pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            let ready = !script.holds(&pod);
            if pod.metadata.deletion_timestamp.is_some() || is_ready(&pod) == ready {
                continue;
            }
            let _ = mark(&client, &pod, ready).await;
            if let Some((name, credentials)) = script.credentials(&pod).filter(|_| ready) {
                let secret = json!({"metadata": {"name": format!("vc-{name}")}, "stringData": {"config": credentials}});
                let secret: Secret = serde_json::from_value(secret).unwrap();
                let space = pod.namespace().unwrap();
                let _ = Api::namespaced(client.clone(), &space).create(&PostParams::default(), &secret).await;
                let copy_of = script.0.lock().unwrap().dns.clone();
                let mut dns = dns(&format!("coredns-x-kube-system-x-{name}"), &copy_of, &json!({"vcluster.loft.sh/managed-by": name}));
                // With its virtual cluster's Service goes what the syncer had the host run.
                let service = Api::<Service>::namespaced(client.clone(), &space).get(&name).await;
                dns.metadata.owner_references = service.ok().map(|service| vec![service.owner_ref(&()).unwrap()]);
                let _ = Api::namespaced(client.clone(), &space).create(&PostParams::default(), &dns).await;
            }
        }
        sleep(Duration::from_millis(400)).await;
    }
}

/// The pod of a virtual cluster's DNS: there, or on the host as the copy of one.
pub fn dns(name: &str, copy_of: &str, more: &Value) -> Pod {
    let mut metadata = json!({"name": name, "labels": more, "annotations": {"vcluster.loft.sh/object-name": copy_of}});
    metadata["labels"]["k8s-app"] = "vcluster-kube-dns".into();
    serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [{"name": "coredns", "image": "coredns"}]}})).unwrap()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn mark(client: &Client, pod: &Pod, ready: bool) -> kube::Result<Pod> {
    let says = if ready { "True" } else { "False" };
    let conditions = ["Initialized", "ContainersReady", "Ready"].map(|kind| json!({"type": kind, "status": says}));
    let mut status = json!({"phase": "Running", "conditions": conditions, "podIP": "10.244.0.9"});
    let container = |name: &str, ready: bool, state: Value| json!([{"name": name, "image": "", "imageID": "", "containerID": "scripted://1", "ready": ready, "restartCount": 0, "state": state}]);
    status["containerStatuses"] = container(&pod.spec.as_ref().unwrap().containers[0].name, ready, json!({"running": {}}));
    if pod.labels().get("app").is_some_and(|app| app == "vcluster-copy") {
        let ended = json!({"exitCode": 0, "message": format!("{SIZE} {DIGEST}  /claim/copy.tar.gz")});
        (status["phase"], status["containerStatuses"]) = ("Succeeded".into(), container("keeper", false, json!({"terminated": ended})));
    }
    let patch = Patch::Strategic(json!({"status": status}));
    Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap()).patch_status(&pod.name_any(), &PatchParams::default(), &patch).await
}

/// Takes connections to port 443 of every service's address to whoever serves there.
pub async fn services(script: Script) {
    let listener = TcpListener::bind("0.0.0.0:443").await.unwrap();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let of_host = client.local_addr().is_ok_and(|address| address.ip().to_string() == HOST);
        let to = if of_host { format!("{NODE}:6444") } else { script.0.lock().unwrap().virtual_api.clone() };
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(to).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
