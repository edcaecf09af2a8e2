//! What the node sees of itself through the Kubernetes API.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Node as NodeObject, Pod};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use layers::{Context, Error, Fault, Result};

use super::{CALM, Node, POLL, Reporter, files};
use crate::host::Host;
use crate::status::State;

/// Credentials that only control planes have.
pub(super) const ADMIN: &str = "etc/kubernetes/admin.conf";

/// How long one request may take: a cluster that forms on a slow machine answers late.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps the condition of the cluster step true; returns only when this node's credentials cannot be read or are refused.
pub fn watch(host: &Host, node: &Node, reporter: &Reporter) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().fault(Fault::Environment, || "starting the API client".into())?;
    runtime.block_on(async {
        let client = client(host).await?;
        loop {
            let ready = match look(&client, host, node).await {
                Ok((state, detail, hint)) => {
                    reporter.say("cluster", state, detail, hint);
                    state == State::Done
                }
                // The certificate of the client has been renewed, or taken away.
                Err(kube::Error::Api(status)) if status.code == 401 => return Err(Error::environment(format!("asking the API: {status}"))),
                Err(error) => {
                    reporter.say("cluster", State::Waiting, format!("for the API: {error}"), Some("see `journalctl -u kubelet.service`"));
                    false
                }
            };
            tokio::time::sleep(if ready { CALM } else { POLL * 5 }).await;
        }
    })
}

/// A client with the operator's credentials on a control plane, the node's own elsewhere.
pub(super) async fn client(host: &Host) -> Result<Client> {
    let path = [ADMIN, "etc/kubernetes/kubelet.conf"].into_iter().find(|path| super::exists(host, path));
    let path = path.ok_or_else(|| Error::environment("reading /etc/kubernetes: no kubeconfig"))?;
    let bad = |why: String| Error::environment(format!("reading /{path}: {why}"));
    let kubeconfig = Kubeconfig::read_from(host.path(path)).map_err(|e| bad(e.to_string()))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|e| bad(e.to_string()))?;
    config.read_timeout = Some(PATIENCE);
    config.connect_timeout = Some(PATIENCE);
    Client::try_from(config).map_err(|e| bad(e.to_string()))
}

type Condition = (State, String, Option<&'static str>);

/// The node's condition; its pod range goes to the pod network's configuration.
async fn look(client: &Client, host: &Host, node: &Node) -> std::result::Result<Condition, kube::Error> {
    let object = Api::<NodeObject>::all(client.clone()).get(&node.name).await?;
    if let Some(range) = object.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref())
        && let Err(error) = files::write_pod_range(host, range)
    {
        return Ok((State::Failed, error.to_string(), None));
    }
    if let Some(why) = not_ready(&object) {
        return Ok((State::Waiting, format!("for node {}: {why}", node.name), Some("see `journalctl -u kubelet.service`")));
    }
    if !super::exists(host, ADMIN) {
        return Ok((State::Done, format!("node {} is ready", node.name), None));
    }
    let mut missing = unready_addons(client).await?;
    missing.extend(stale_pods(client, host, node).await?);
    Ok(match missing.as_slice() {
        [] => (State::Done, format!("node {} is ready", node.name), None),
        names => (State::Waiting, format!("node is up; for {}", names.join(", ")), Some("see `kubectl -n kube-system describe pods`")),
    })
}

/// What kubeadm and the seed run in kube-system and is not there whole.
async fn unready_addons(client: &Client) -> std::result::Result<Vec<String>, kube::Error> {
    let all = ListParams::default();
    let deployments = Api::<Deployment>::namespaced(client.clone(), "kube-system").list(&all).await?;
    let daemons = Api::<DaemonSet>::namespaced(client.clone(), "kube-system").list(&all).await?;
    let mut ready = BTreeMap::from([("CoreDNS".to_string(), false), ("kube-proxy".to_string(), false)]);
    for deployment in deployments {
        let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let available = deployment.status.and_then(|status| status.available_replicas).unwrap_or(0);
        let name = deployment.metadata.name.unwrap_or_default();
        ready.insert(if name == "coredns" { "CoreDNS".into() } else { name }, available >= wanted);
    }
    for daemon in daemons {
        let whole = daemon.status.is_some_and(|status| status.number_ready >= status.desired_number_scheduled.max(1));
        ready.insert(daemon.metadata.name.unwrap_or_default(), whole);
    }
    Ok(ready.into_iter().filter(|(_, ready)| !ready).map(|(name, _)| name).collect())
}

/// Pods of this node that the API still calls ready from before the machine started.
async fn stale_pods(client: &Client, host: &Host, node: &Node) -> std::result::Result<Vec<String>, kube::Error> {
    let here = ListParams::default().fields(&format!("spec.nodeName={}", node.name));
    let pods = Api::<Pod>::namespaced(client.clone(), "kube-system").list(&here).await?;
    let stat = host.read("proc/stat").ok().flatten().unwrap_or_default();
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok()).unwrap_or(0);
    Ok(pods.iter().filter(|pod| !runs_since(pod, boot)).filter_map(|pod| pod.metadata.name.clone()).collect())
}

/// Whether a pod has ended for good, or all its containers run and are ready since a time in seconds since 1970.
fn runs_since(pod: &Pod, boot: i64) -> bool {
    let Some(status) = &pod.status else { return false };
    let since = |container: &ContainerStatus| container.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|time| time.0.as_second());
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let fresh = !containers.is_empty() && containers.iter().all(|container| container.ready && since(container).is_some_and(|time| time >= boot));
    fresh || status.phase.as_deref() == Some("Succeeded")
}

/// Why a node is not Ready.
fn not_ready(node: &NodeObject) -> Option<String> {
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
        let running = |ready: bool, at: &str| {
            format!(
                r#"{{"containerStatuses":[{{"name":"a","ready":{ready},"restartCount":0,"image":"i","imageID":"i","state":{{"running":{{"startedAt":"{at}"}}}}}}]}}"#
            )
        };
        let boot = 1_767_225_600; // 2026-01-01T00:00:00Z
        assert!(runs_since(&pod(&running(true, "2026-01-01T00:00:05Z")), boot));
        assert!(!runs_since(&pod(&running(true, "2025-12-31T23:59:59Z")), boot));
        assert!(!runs_since(&pod(&running(false, "2026-01-01T00:00:05Z")), boot));
        assert!(!runs_since(&pod(r#"{"phase":"Pending"}"#), boot));
        assert!(runs_since(&pod(r#"{"phase":"Succeeded"}"#), boot));
    }
}
