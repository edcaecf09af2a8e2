//! What a virtual cluster is on its host: a namespace of its own, a release of vcluster's chart in it, and what its syncer copies there.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::config::{Kubeconfig, KubeconfigError};
use kube::{Api, Client, ResourceExt as _};
use layers::platform::isolation::NAMES;
use layers::platform::settings::PodSecurity;
use layers::{Context as _, Error, Fault, Result};
use serde_json::{Value, json};

use super::apply;
use crate::cluster::api::{PATIENCE, connect, gone};

/// Marks the namespace as one virtual cluster's.
pub const LABEL: &str = "chasi-bod.io/virtual-cluster";
/// What the names of host namespaces begin with.
pub const PREFIX: &str = "vcluster-";

/// The virtual cluster of a host namespace.
pub fn owner(namespace: &str) -> Option<&str> {
    namespace.strip_prefix(PREFIX)
}

/// One virtual cluster's place on the host.
pub struct Place<'a> {
    client: &'a Client,
    pub name: &'a str,
    pub namespace: String,
}

impl<'a> Place<'a> {
    pub fn new(client: &'a Client, name: &'a str) -> Self {
        Self { client, name, namespace: format!("{PREFIX}{name}") }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes the namespace; one of the same name that is somebody else's is left alone.
    pub async fn make(&self, level: PodSecurity) -> Result<()> {
        let api = Api::<Namespace>::all(self.client.clone());
        if self.found().await?.is_some_and(|found| !self.owns(&found)) {
            return Err(Error::input(format!("namespace {} is there already and lacks the label {LABEL}={}", self.namespace, self.name)));
        }
        let labels = json!({LABEL: self.name, "pod-security.kubernetes.io/enforce": level});
        apply(&api, &self.namespace, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}})).await
    }

    async fn found(&self) -> Result<Option<Namespace>> {
        let found = Api::<Namespace>::all(self.client.clone()).get_opt(&self.namespace).await;
        found.fault(Fault::Environment, || format!("reading namespace {}", self.namespace))
    }

    fn owns(&self, namespace: &Namespace) -> bool {
        namespace.labels().get(LABEL).is_some_and(|name| name == self.name)
    }

    /// Begins to remove the namespace with everything in it; `true` once it is gone.
    pub async fn remove(&self) -> Result<bool> {
        let Some(found) = self.found().await?.filter(|found| self.owns(found)) else { return Ok(true) };
        if found.metadata.deletion_timestamp.is_none() {
            let gone = Api::<Namespace>::all(self.client.clone()).delete(&self.namespace, &DeleteParams::default()).await;
            gone.map(drop).fault(Fault::Environment, || format!("deleting namespace {}", self.namespace))?;
        }
        Ok(false)
    }

    /// Control plane and store.
    pub async fn sets(&self) -> Result<Vec<StatefulSet>> {
        let list = self.api::<StatefulSet>().list(&ListParams::default().labels(&format!("release={}", self.name))).await;
        list.map(|list| list.items).fault(Fault::Environment, || format!("listing StatefulSets of {}", self.namespace))
    }

    /// Gives control plane and store a number of replicas; an etcd runs with the members that it was made with.
    pub async fn scale(&self, sets: &[StatefulSet], replicas: i64) -> Result<()> {
        for set in sets {
            let name = set.name_any();
            let replicas = members(set).filter(|_| replicas > 0).unwrap_or(replicas);
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            let done = self.api::<StatefulSet>().patch(&name, &PatchParams::default(), &patch).await;
            done.map(drop).fault(Fault::Environment, || format!("scaling {name} of {}", self.namespace))?;
        }
        Ok(())
    }

    /// Deletes the pods of the workloads once the syncer, which would make them anew, runs no more.
    pub async fn clear(&self, sets: &[StatefulSet]) -> Result<()> {
        if sets.iter().all(|set| set.status.as_ref().is_none_or(|status| status.replicas == 0)) {
            let own = ListParams::default().labels(&managed(self.name));
            let done = self.api::<Pod>().delete_collection(&DeleteParams::default(), &own).await;
            done.map(drop).fault(Fault::Environment, || format!("deleting pods of {}", self.namespace))?;
        }
        Ok(())
    }

    /// Whether no pod is left.
    pub async fn is_empty(&self) -> Result<bool> {
        self.lacks("").await
    }

    /// Label selector of the control plane's pods.
    pub fn pods(&self) -> String {
        format!("app=vcluster,release={}", self.name)
    }

    async fn lacks(&self, labels: &str) -> Result<bool> {
        let left = self.api::<Pod>().list(&ListParams::default().labels(labels).limit(1)).await;
        left.map(|left| left.items.is_empty()).fault(Fault::Environment, || format!("listing pods of {}", self.namespace))
    }

    /// Stops the control plane, but not its store, and the workloads; `true` once that is so.
    pub async fn halted(&self, own: &StatefulSet) -> Result<bool> {
        let own = std::slice::from_ref(own);
        self.scale(own, 0).await?;
        self.clear(own).await?;
        Ok(self.lacks(&self.pods()).await? && self.lacks(&managed(self.name)).await?)
    }

    /// What the virtual cluster lacks to serve; nothing when its API answers, its syncer's controllers run and its DNS serves.
    pub async fn lack(&self, sets: &[StatefulSet]) -> Result<Option<Lack>> {
        let ready = |set: &StatefulSet| {
            let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = set.status.clone().unwrap_or_default();
            // A pod of the former settings is ready until its last moment.
            let fresh = status.observed_generation == set.metadata.generation && status.updated_replicas.unwrap_or(0) >= wanted;
            wanted > 0 && fresh && status.ready_replicas.unwrap_or(0) >= wanted
        };
        if sets.is_empty() || !sets.iter().all(ready) {
            return Ok(Some(Lack::ControlPlane));
        }
        let Some(kubeconfig) = self.kubeconfig().await? else { return Ok(Some(Lack::Syncer)) };
        let pods = self.api::<Pod>().list(&ListParams::default().labels(&format!("{DNS},{}", managed(self.name)))).await;
        let pods = pods.fault(Fault::Environment, || format!("listing pods of {}", self.namespace))?.items;
        if !pods.iter().any(is_ready) {
            return Ok(Some(Lack::Dns));
        }
        // What the virtual cluster itself says of them may be from before it slept or was restored: only a syncer that runs has told it of these containers.
        let inside = connect(kubeconfig, PATIENCE).await.context(|| format!("reading the credentials of {}", self.namespace))?;
        let known = Api::<Pod>::namespaced(inside, "kube-system").list(&ListParams::default().labels(DNS)).await;
        let known = known.map(|list| list.items).unwrap_or_default();
        let is_told = pods.iter().any(|pod| is_ready(pod) && known.iter().any(|copy| is_of(copy, pod)));
        Ok((!is_told).then_some(Lack::Syncer))
    }

    /// The syncer's kubeconfig as it wrote it, and the address of the virtual cluster's Service: each as soon as it is there.
    pub async fn credentials(&self) -> Result<(Option<String>, Option<String>)> {
        let reading = || format!("reading the credentials of {}", self.namespace);
        let secret = self.api::<Secret>().get_opt(&format!("vc-{}", self.name)).await.fault(Fault::Environment, reading)?;
        let service = self.api::<Service>().get_opt(self.name).await.fault(Fault::Environment, reading)?;
        let text = secret.and_then(|secret| String::from_utf8(secret.data?.remove("config")?.0).ok());
        Ok((text, service.and_then(|service| service.spec?.cluster_ip)))
    }

    /// Credentials for the virtual cluster's own API, by the address of its Service; none before its syncer has written them.
    pub async fn kubeconfig(&self) -> Result<Option<Kubeconfig>> {
        let (Some(text), Some(address)) = self.credentials().await? else { return Ok(None) };
        let kubeconfig = leading_to(&text, &url_host(&address));
        kubeconfig.map(Some).fault(Fault::Environment, || format!("reading the credentials of {}", self.namespace))
    }

    /// Makes the policies of the namespace the wanted ones; users' own are left alone.
    pub async fn isolate(&self, policies: &[Value]) -> Result<()> {
        let api = self.api::<NetworkPolicy>();
        for name in NAMES {
            match policies.iter().find(|policy| policy["metadata"]["name"] == name) {
                Some(policy) => apply(&api, name, policy).await?,
                None => gone(api.delete(name, &DeleteParams::default()).await)
                    .fault(Fault::Environment, || format!("deleting NetworkPolicy {name} of {}", self.namespace))?,
            }
        }
        Ok(())
    }
}

/// How many members an etcd was made with, whether it runs or not. Whoever starts with a longer list finds a majority of new ones, which is another store
/// and an empty one (etcd, `--initial-cluster`).
pub fn members(set: &StatefulSet) -> Option<i64> {
    let containers = &set.spec.as_ref()?.template.spec.as_ref()?.containers;
    let list = containers.iter().flat_map(|one| one.command.iter().flatten()).find_map(|word| word.strip_prefix("--initial-cluster="))?;
    list.split(',').count().try_into().ok()
}

/// Whether a kubelet says that a pod serves.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    pod.metadata.deletion_timestamp.is_none() && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether a virtual cluster's pod is the one that the host runs as this pod, with the containers that run now.
fn is_of(copy: &Pod, pod: &Pod) -> bool {
    let containers = |pod: &Pod| -> Vec<_> {
        let all = pod.status.iter().filter_map(|status| status.container_statuses.as_ref()).flatten();
        all.filter_map(|container| container.container_id.clone()).collect()
    };
    let running = containers(pod);
    pod.annotations().get(COPY_OF).is_some_and(|name| *name == copy.name_any()) && !running.is_empty() && containers(copy) == running
}

/// The label of the pods of a virtual cluster's DNS, in it and on the host.
pub const DNS: &str = "k8s-app=vcluster-kube-dns";
/// The annotation with the name that a pod of the host has in its virtual cluster.
const COPY_OF: &str = "vcluster.loft.sh/object-name";

/// The label of what the syncer copied to the host.
fn managed(name: &str) -> String {
    format!("vcluster.loft.sh/managed-by={name}")
}

/// A kubeconfig with another host, and port where that is not 443, of the API server.
pub fn leading_to(text: &str, host: &str) -> std::result::Result<Kubeconfig, KubeconfigError> {
    let mut kubeconfig = Kubeconfig::from_yaml(text)?;
    kubeconfig.clusters.iter_mut().flat_map(|named| &mut named.cluster).for_each(|cluster| cluster.server = Some(format!("https://{host}")));
    Ok(kubeconfig)
}

/// An address as URLs have it (RFC 3986, 3.2.2).
pub fn url_host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.into() }
}

/// What a virtual cluster lacks to serve, in the order in which it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    ControlPlane,
    Syncer,
    Dns,
}

impl Lack {
    /// All of them with the conditions that tell of them.
    pub const CONDITIONS: [(Self, &'static str); 3] =
        [(Self::ControlPlane, "ControlPlaneReady"), (Self::Syncer, "SyncerReady"), (Self::Dns, "DNSReady")];

    pub fn text(self) -> &'static str {
        match self {
            Self::ControlPlane => "its control plane is not ready",
            Self::Syncer => "its syncer does not run yet",
            Self::Dns => "its DNS does not serve yet",
        }
    }
}
