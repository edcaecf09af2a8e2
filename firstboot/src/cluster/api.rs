//! What the node sees of itself through the Kubernetes API.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Node as NodeObject, Pod};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use layers::{Context as _, Error, Result};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::join::{Service, end_turn};
use super::kubeadm::Documents;
pub use super::routes::WATCH;
use super::routes::{self, Troubles};
use super::{Formed, POLL, Reporter, etcd, files, policy, runtime};
use crate::host::Host;
use crate::status::State;
use crate::verbs::Quorum;

/// Credentials that only control planes have.
pub const ADMIN: &str = "etc/kubernetes/admin.conf";

/// How long one request may take: a cluster that forms on a slow machine answers late.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a node that is whole is looked at: a look is four requests.
const REST: Duration = Duration::from_secs(10);

/// Somebody else's making of the same thing is as good as ours.
pub fn made<T>(made: kube::Result<T>) -> kube::Result<()> {
    match made {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// What is not there any more is as good as removed.
pub fn gone<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Keeps the condition of the cluster step true, the routes to other nodes' pods, their policies and, on a control plane, the service that takes nodes in;
/// returns only when this node's credentials cannot be read.
pub(super) fn watch(host: &Host, formed: &Formed, reporter: &Reporter) -> Result<()> {
    let pods = Documents::read(host)?.pods()?;
    runtime()?.block_on(async {
        let mut service = Service::default();
        loop {
            // Made anew after every failure: the certificate may be a newer one.
            let (brief, patient) = (client(host, PATIENCE).await?, watching(host).await?);
            if formed.address.is_some()
                && let Err(error) = begin(&brief, &formed.node).await
            {
                reporter.say("cluster", State::Waiting, silence(host, &error).await, Some(KUBELET));
                sleep(POLL * 5).await;
                continue;
            }
            let troubles = [(Troubles::default(), ROUTES), (Troubles::default(), POLICIES)];
            let mut keeper = JoinSet::new();
            keeper.spawn(routes::keep(patient.clone(), formed.node.clone(), pods, troubles[0].0.clone()));
            keeper.spawn(policy::keep(patient, formed.node.clone(), troubles[1].0.clone()));
            let error = loop {
                let begun = Instant::now();
                match observe(&brief, host, formed, &mut service, &troubles).await {
                    Ok((state, detail, hint)) => {
                        reporter.say("cluster", state, detail, hint);
                        sleep(pause(state, begun.elapsed())).await;
                    }
                    Err(error) => break error,
                }
            };
            reporter.say("cluster", State::Waiting, silence(host, &error).await, Some(KUBELET));
            sleep(POLL * 5).await;
        }
    })
}

/// Why the API does not answer: as a rule by its own words; that etcd has lost its majority it does not say, and waiting may be in vain then.
async fn silence(host: &Host, error: &kube::Error) -> String {
    let standing = if etcd::is_here(host) { etcd::standing(host).await.ok() } else { None };
    standing.as_ref().and_then(Quorum::trouble).unwrap_or_else(|| format!("for the API: {}", reason(error)))
}

/// What a control plane does once it reaches the API.
async fn begin(client: &Client, name: &str) -> kube::Result<()> {
    routes::permit(client).await?;
    end_turn(client, name).await
}

/// How long after a look that took so long the next one comes: an API that is slow, as its machine is busy, is asked less.
fn pause(state: State, took: Duration) -> Duration {
    (if state == State::Done { REST } else { POLL * 5 }).max(took * 3)
}

/// What a person needs of an error: the API's own sentence, or the innermost cause.
pub(crate) fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The node's condition with what is in the way of its neighbours' pods; on a founder, further nodes may come from now on.
async fn observe(
    client: &Client,
    host: &Host,
    formed: &Formed,
    service: &mut Service,
    troubles: &[(Troubles, &'static str)],
) -> std::result::Result<Condition, kube::Error> {
    if let Some(address) = formed.address
        && let Err(error) = service.keep(host, &formed.node, address).await
    {
        return Ok((State::Failed, error.to_string(), None));
    }
    let (state, detail, hint) = look(client, host, &formed.node).await?;
    let trouble = troubles.iter().map(|(troubles, hint)| (troubles.list(), *hint)).find(|(list, _)| !list.is_empty());
    Ok(match trouble {
        Some((list, hint)) if state == State::Done => (State::Waiting, format!("{detail}; for {}", list.join(", ")), Some(hint)),
        _ => (state, detail, hint),
    })
}

/// A client for watches, which are longer than a request may be.
pub fn watching(host: &Host) -> impl Future<Output = Result<Client>> + use<> {
    client(host, PATIENCE + Duration::from_secs(WATCH.into()))
}

/// A client with the operator's credentials on a control plane, the node's own elsewhere; `patience` is the longest silence.
pub fn client(host: &Host, patience: Duration) -> impl Future<Output = Result<Client>> + use<> {
    let credentials = credentials(host);
    async move {
        let (path, kubeconfig) = credentials?;
        connect(kubeconfig, patience).await.context(|| format!("reading /{path}"))
    }
}

/// A client with the credentials of a kubeconfig.
pub async fn connect(kubeconfig: Kubeconfig, patience: Duration) -> Result<Client> {
    made_with(kubeconfig, |config| (config.read_timeout, config.connect_timeout) = (Some(patience), Some(PATIENCE))).await
}

/// One that tells of a refusal at once: the usual one asks again by itself, for minutes, when a server says that it cannot now (429, 503).
pub async fn at_once(kubeconfig: Kubeconfig, patience: Duration) -> Result<Client> {
    made_with(kubeconfig, |config| (config.read_timeout, config.connect_timeout, config.default_retry) = (Some(patience), Some(patience), false))
        .await
}

async fn made_with(kubeconfig: Kubeconfig, change: impl FnOnce(&mut Config)) -> Result<Client> {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|e| Error::environment(e.to_string()))?;
    change(&mut config);
    Client::try_from(config).map_err(|e| Error::environment(e.to_string()))
}

fn credentials(host: &Host) -> Result<(&'static str, Kubeconfig)> {
    let path = [ADMIN, "etc/kubernetes/kubelet.conf"].into_iter().find(|path| super::exists(host, path));
    let path = path.ok_or_else(|| Error::environment("reading /etc/kubernetes: no kubeconfig"))?;
    let kubeconfig = Kubeconfig::read_from(host.path(path)).map_err(|e| Error::environment(format!("reading /{path}: {e}")))?;
    Ok((path, kubeconfig))
}

const KUBELET: &str = "see `journalctl -u kubelet.service`";

const ROUTES: &str = "see `ip route` and `kubectl get nodes -o wide`";
const POLICIES: &str = "see `nft list table ip chasi-bod-policies` and `kubectl get networkpolicies -A`";

type Condition = (State, String, Option<&'static str>);

/// The node's condition; its pod range goes to the pod network's configuration.
async fn look(client: &Client, host: &Host, name: &str) -> std::result::Result<Condition, kube::Error> {
    let Some(object) = Api::<NodeObject>::all(client.clone()).get_opt(name).await? else {
        return Ok((State::Waiting, format!("for the kubelet to make node {name}"), Some(KUBELET)));
    };
    if let Some(range) = object.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref())
        && let Err(error) = files::write_pod_range(host, range)
    {
        return Ok((State::Failed, error.to_string(), None));
    }
    if let Some(why) = not_ready(&object) {
        return Ok((State::Waiting, format!("for node {name}: {why}"), Some(KUBELET)));
    }
    if !super::exists(host, ADMIN) {
        return Ok((State::Done, format!("node {name} is ready"), None));
    }
    let mut missing = unready_addons(client).await?;
    missing.extend(stale_pods(client, host, name).await?);
    Ok(match missing.as_slice() {
        [] => (State::Done, format!("node {name} is ready"), None),
        names => (State::Waiting, format!("node is up; for {}", names.join(", ")), Some("see `kubectl -n kube-system describe pods`")),
    })
}

/// What every cluster needs and is not there whole; the seed has a step of its own.
async fn unready_addons(client: &Client) -> std::result::Result<Vec<String>, kube::Error> {
    let all = ListParams::default();
    let deployments = Api::<Deployment>::namespaced(client.clone(), "kube-system").list(&all).await?;
    let daemons = Api::<DaemonSet>::namespaced(client.clone(), "kube-system").list(&all).await?;
    let dns = deployments.into_iter().any(|deployment| {
        let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let available = deployment.status.and_then(|status| status.available_replicas).unwrap_or(0);
        deployment.metadata.name.as_deref() == Some("coredns") && available >= wanted
    });
    let proxy = daemons.into_iter().any(|daemon| {
        let whole = daemon.status.is_some_and(|status| status.number_ready >= status.desired_number_scheduled.max(1));
        daemon.metadata.name.as_deref() == Some("kube-proxy") && whole
    });
    Ok([("CoreDNS", dns), ("kube-proxy", proxy)].into_iter().filter(|(_, ready)| !ready).map(|(name, _)| name.to_string()).collect())
}

/// Pods of this node that the API still calls ready from before the machine started.
async fn stale_pods(client: &Client, host: &Host, name: &str) -> std::result::Result<Vec<String>, kube::Error> {
    let here = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let pods = Api::<Pod>::namespaced(client.clone(), "kube-system").list(&here).await?;
    Ok(pods.iter().filter(|pod| !runs(pod, |id| super::exists(host, &format!("{TASKS}/{id}")))).filter_map(|pod| pod.metadata.name.clone()).collect())
}

/// Containerd's folder of each container that runs; gone with the boot that started it. Times would not do: a clock may be set.
const TASKS: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// Whether a pod has ended for good, or all its containers are ready and run on this node in this boot.
fn runs(pod: &Pod, has_task: impl Fn(&str) -> bool) -> bool {
    let Some(status) = &pod.status else { return false };
    let here = |container: &ContainerStatus| container.container_id.as_deref().and_then(|id| id.strip_prefix("containerd://")).is_some_and(&has_task);
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let fresh = !containers.is_empty() && containers.iter().all(|container| container.ready && here(container));
    fresh || status.phase.as_deref() == Some("Succeeded")
}

/// Why a node is not Ready.
pub fn not_ready(node: &NodeObject) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(ready.message.clone().unwrap_or_default()),
        None => Some("the kubelet has not reported yet".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_api_is_asked_less() {
        let (fast, slow) = (Duration::from_millis(20), Duration::from_secs(4));
        assert_eq!([pause(State::Waiting, fast), pause(State::Done, fast)], [Duration::from_millis(500), REST]);
        assert_eq!([pause(State::Waiting, slow), pause(State::Done, slow)], [slow * 3; 2]);
    }

    #[test]
    fn a_node_says_why_it_is_not_ready() {
        let node = |conditions: &str| serde_json::from_str::<NodeObject>(&format!(r#"{{"status":{{"conditions":[{conditions}]}}}}"#)).unwrap();
        let condition = |status: &str| format!(r#"{{"type":"Ready","status":"{status}","message":"because"}}"#);
        assert_eq!(not_ready(&node(&condition("True"))), None);
        assert_eq!(not_ready(&node(&condition("False"))).as_deref(), Some("because"));
        assert_eq!(not_ready(&node(&condition("Unknown"))).as_deref(), Some("because"));
        assert_eq!(not_ready(&node(r#"{"type":"DiskPressure","status":"True"}"#)).as_deref(), Some("the kubelet has not reported yet"));
    }

    #[test]
    fn a_pod_from_before_the_boot_does_not_count_as_running() {
        let pod = |text: &str| serde_json::from_str::<Pod>(&format!(r#"{{"status":{text}}}"#)).unwrap();
        let ready = |ready: bool, id: &str| {
            pod(&format!(
                r#"{{"containerStatuses":[{{"name":"a","ready":{ready},"restartCount":0,"image":"i","imageID":"i","containerID":"containerd://{id}"}}]}}"#
            ))
        };
        let has_task = |id: &str| id == "new";
        assert!(runs(&ready(true, "new"), has_task));
        assert!(!runs(&ready(true, "old"), has_task));
        assert!(!runs(&ready(false, "new"), has_task));
        assert!(!runs(&pod(r#"{"phase":"Pending"}"#), has_task));
        assert!(runs(&pod(r#"{"phase":"Succeeded"}"#), has_task));
    }
}
