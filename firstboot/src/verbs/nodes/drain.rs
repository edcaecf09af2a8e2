//! Emptying a node: its pods are evicted, which respects their disruption budgets, and waited for until they are gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use layers::{Error, Result};
use serde_json::Value;

use super::Use;
use crate::cluster::api::{PATIENCE, at_once, reason};
use crate::verbs::objects::failure;
use crate::verbs::table::table;
use crate::verbs::{Session, wait};

/// Marks what the kubelet runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// On pods of virtual clusters: the kind that they belong to in there.
const VIRTUAL_OWNER: &str = "vcluster.loft.sh/owner-set-kind";
const DAEMON_SET: &str = "DaemonSet";
/// Looks between two tries to evict one that was refused; there is a look each second.
const AGAIN: u32 = 5;

/// What becomes of a pod when its node is drained.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It goes, with what a person should know of that.
    Leaves(Vec<String>),
    /// It would be back at once.
    Stays(&'static str),
}

/// A pod that is to go.
struct Leaving {
    pod: Pod,
    known: Vec<String>,
    /// It ends now.
    asked: bool,
    /// Why not, when it was tried last.
    refused: String,
}

impl Leaving {
    fn name(&self) -> String {
        name(&self.pod)
    }

    /// What keeps it.
    fn why(&self) -> String {
        let why = if self.asked { "it is ending" } else { &self.refused };
        format!("{} ({why})", self.name())
    }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn fate(pod: &Pod) -> Fate {
    let owners = pod.owner_references();
    let is_daemon = owners.iter().any(|owner| owner.controller == Some(true) && owner.kind == DAEMON_SET);
    // A virtual cluster's DaemonSet makes it anew on the same node, too.
    let is_virtual_daemon = pod.annotations().get(VIRTUAL_OWNER).is_some_and(|kind| kind == DAEMON_SET);
    if pod.annotations().contains_key(MIRROR) {
        return Fate::Stays("static pod");
    }
    if is_daemon || is_virtual_daemon {
        return Fate::Stays("of a DaemonSet");
    }
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let lost: Vec<_> = volumes.iter().filter(|volume| volume.empty_dir.is_some()).map(|volume| volume.name.as_str()).collect();
    let lost = (!lost.is_empty()).then(|| format!("what is in its emptyDir is lost ({})", lost.join(", ")));
    // Pods of virtual clusters have an owner that is no controller.
    let alone = owners.is_empty().then(|| "nothing makes it anew".to_string());
    Fate::Leaves(lost.into_iter().chain(alone).collect())
}

fn leaving(pods: Vec<Pod>) -> Vec<Leaving> {
    let leaves = |pod: Pod| match fate(&pod) {
        Fate::Leaves(known) => Some(Leaving { pod, known, asked: false, refused: "not tried yet".into() }),
        Fate::Stays(_) => None,
    };
    pods.into_iter().filter_map(leaves).collect()
}

/// The work on one node.
pub struct Drain<'a> {
    client: Client,
    /// The usual client would try again by itself what is refused, for minutes, past any timeout, and say nothing.
    evicting: Client,
    node: &'a str,
    session: &'a Session<'a>,
}

impl<'a> Drain<'a> {
    pub async fn new(node: &'a str, session: &'a Session<'a>) -> Result<Self> {
        let evicting = at_once(session.credentials()?, PATIENCE).await?;
        Ok(Self { client: session.client().await?, evicting, node, session })
    }

    /// What would become of each pod; the API is asked whether it would let it go now.
    pub async fn planned(&self) -> Result<String> {
        let pods = self.pods(&self.client).await.map_err(|error| failure::<Node>(&error, &self.doing()))?;
        let mut rows = Vec::new();
        for pod in &pods {
            let what = match fate(pod) {
                Fate::Stays(why) => format!("stays: {why}"),
                Fate::Leaves(known) => {
                    let refused = evict(&self.evicting, pod, DryRun::Yes).await.map(|why| format!("not now: {why}"));
                    ["is evicted".to_string()].into_iter().chain(known).chain(refused).collect::<Vec<_>>().join("; ")
                }
            };
            rows.push([name(pod), what]);
        }
        Ok(table(["POD", "WHAT"], rows))
    }

    /// Takes the node out of use, then its pods off it; a line for each of them.
    pub async fn run(&self, timeout: Duration) -> Result<()> {
        super::cordon(&Api::all(self.client.clone()), self.node, Use::Stops, self.session.say).await?;
        let pods = self.pods(&self.client).await.map_err(|error| failure::<Node>(&error, &self.doing()))?;
        let (mut rest, begun) = (leaving(pods), Instant::now());
        let (total, mut looks, mut silence) = (rest.len(), 0, String::new());
        loop {
            if looks % AGAIN == 0 {
                self.ask(&mut rest).await;
            }
            match self.pods(&self.evicting).await {
                Ok(pods) => self.see(&mut rest, &pods, total),
                // A server that is away comes back.
                Err(error) => {
                    let news = wait::news(&mut silence, &format!("no answer: {}", reason(&error)), begun.elapsed());
                    news.iter().for_each(|line| self.say(line));
                }
            }
            if rest.is_empty() {
                self.say(&format!("node {} is drained", self.node));
                return Ok(());
            }
            if begun.elapsed() >= timeout {
                return Err(left(self.node, timeout, &rest));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            looks += 1;
        }
    }

    /// Evicts those that have not been; each new reason why not is told.
    async fn ask(&self, rest: &mut [Leaving]) {
        for leaving in rest.iter_mut().filter(|leaving| !leaving.asked) {
            match evict(&self.evicting, &leaving.pod, DryRun::No).await {
                None => {
                    leaving.asked = true;
                    self.say(&[vec![format!("{} is evicted", leaving.name())], leaving.known.clone()].concat().join("; "));
                }
                Some(why) if why == leaving.refused => {}
                Some(why) => {
                    leaving.refused = why;
                    self.say(&format!("{} cannot go yet: {}", leaving.name(), leaving.refused));
                }
            }
        }
    }

    /// Forgets those that are gone; another pod of the same name is not the one that was evicted.
    fn see(&self, rest: &mut Vec<Leaving>, there: &[Pod], total: usize) {
        let there: BTreeSet<_> = there.iter().filter_map(Pod::uid).collect();
        let (gone, still): (Vec<_>, Vec<_>) = rest.drain(..).partition(|leaving| leaving.pod.uid().is_none_or(|uid| !there.contains(&uid)));
        let before = total - still.len() - gone.len();
        for (number, leaving) in (before + 1..).zip(&gone) {
            self.say(&format!("{number} of {total}: {} is gone", leaving.name()));
        }
        *rest = still;
    }

    fn pods(&self, client: &Client) -> impl Future<Output = kube::Result<Vec<Pod>>> + use<> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        let api = Api::<Pod>::all(client.clone());
        async move { api.list(&here).await.map(|list| list.items) }
    }

    fn doing(&self) -> String {
        format!("listing the pods of node {}", self.node)
    }

    fn say(&self, line: &str) {
        (self.session.say)(line);
    }
}

/// What is still there when there is no more time.
fn left(node: &str, timeout: Duration, rest: &[Leaving]) -> Error {
    let names: Vec<_> = rest.iter().map(Leaving::why).collect();
    Error::environment(format!("draining node {node}: after {timeout:?} there is still {}", names.join(", ")))
        .with_hint(format!("a longer --timeout waits longer; `chasi-bod nodes uncordon {node}` takes the node into use again"))
}

#[derive(Clone, Copy)]
enum DryRun {
    Yes,
    No,
}

/// Asks the API to end a pod in order; why it does not.
async fn evict(client: &Client, pod: &Pod, dry_run: DryRun) -> Option<String> {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    // A StatefulSet's next pod has the same name.
    let preconditions = Some(Preconditions { uid: pod.uid(), ..Preconditions::default() });
    let metadata = ObjectMeta { name: Some(name.clone()), namespace: Some(namespace.clone()), ..ObjectMeta::default() };
    let eviction = Eviction { delete_options: Some(DeleteOptions { preconditions, ..DeleteOptions::default() }), metadata };
    let options = PostParams { dry_run: matches!(dry_run, DryRun::Yes), ..PostParams::default() };
    let answer = Api::<Pod>::namespaced(client.clone(), &namespace).create_subresource::<_, Value>("eviction", &name, &options, &eviction).await;
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        other => other.err().map(|error| refusal(&error)),
    }
}

/// The API's sentence, and the budget that is meant, which is in its details.
fn refusal(error: &kube::Error) -> String {
    let details = match error {
        kube::Error::Api(status) => status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default(),
        _ => &[],
    };
    let causes = details.iter().map(|cause| cause.message.trim().trim_end_matches('.').to_string());
    [reason(error).trim_end_matches('.').to_string()].into_iter().chain(causes.filter(|cause| !cause.is_empty())).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(metadata: Value, volumes: Value) -> Pod {
        let mut metadata = metadata;
        (metadata["name"], metadata["namespace"], metadata["uid"]) = ("web".into(), "biz".into(), "u".into());
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [], "volumes": volumes}})).unwrap()
    }

    fn owner(kind: &str, controller: bool) -> Value {
        json!({"ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": "x", "uid": "1", "controller": controller}]})
    }

    #[test]
    fn what_would_be_back_at_once_stays_and_all_else_leaves() {
        assert_eq!(fate(&pod(json!({"annotations": {MIRROR: "x"}}), json!([]))), Fate::Stays("static pod"));
        assert_eq!(fate(&pod(owner(DAEMON_SET, true), json!([]))), Fate::Stays("of a DaemonSet"));
        let mut synced = owner("Service", false);
        synced["annotations"] = json!({VIRTUAL_OWNER: "DaemonSet"});
        assert_eq!(fate(&pod(synced.clone(), json!([]))), Fate::Stays("of a DaemonSet"));
        synced["annotations"] = json!({VIRTUAL_OWNER: "ReplicaSet"});
        assert_eq!(fate(&pod(synced, json!([]))), Fate::Leaves(vec![]));
        assert_eq!(fate(&pod(owner("ReplicaSet", true), json!([]))), Fate::Leaves(vec![]));
    }

    #[test]
    fn what_is_lost_with_a_pod_is_said() {
        let volumes = json!([{"name": "cache", "emptyDir": {}}, {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        let lost = "what is in its emptyDir is lost (cache)".to_string();
        assert_eq!(fate(&pod(owner("StatefulSet", true), volumes.clone())), Fate::Leaves(vec![lost.clone()]));
        assert_eq!(fate(&pod(json!({}), volumes)), Fate::Leaves(vec![lost, "nothing makes it anew".into()]));
    }

    #[test]
    fn what_is_left_is_named_with_its_reason() {
        let mut rest = leaving(vec![pod(json!({}), json!([])), pod(owner("ReplicaSet", true), json!([])), pod(owner(DAEMON_SET, true), json!([]))]);
        assert_eq!(rest.len(), 2);
        rest[0].asked = true;
        rest[1].refused = "Cannot evict pod".into();
        let error = left("b", Duration::from_secs(90), &rest);
        assert_eq!(error.to_string(), "draining node b: after 90s there is still biz/web (it is ending), biz/web (Cannot evict pod)");
        assert!(error.hint().unwrap().contains("nodes uncordon b"));
    }

    #[test]
    fn a_budget_that_forbids_it_is_named() {
        let causes = json!([{"reason": "DisruptionBudget", "message": "The disruption budget web needs 1 healthy pods and has 1 currently"}]);
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let status = json!({"status": "Failure", "reason": "TooManyRequests", "code": 429, "message": message, "details": {"causes": causes}});
        let error = kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
        let budget = "The disruption budget web needs 1 healthy pods and has 1 currently";
        assert_eq!(refusal(&error), format!("{}: {budget}", message.trim_end_matches('.')));
    }
}
