//! Nodes as the operator sees them: a worker whose kubelet is played here, and control planes that are members of a real etcd and nothing else.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::apart::NODE;
use crate::bench::{Bench, end, member};
use crate::verbs::{chasi_bod, good, line};

const PLANE: &str = "node-role.kubernetes.io/control-plane";

fn made_of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn make<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let object: K = made_of(object);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match api.create(&PostParams::default(), &object).await {
            Ok(made) => return made,
            // Pods are refused until the namespace has its account.
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// A node that has been so for a while.
async fn node(bench: &Bench, name: &str, plane: bool, ready: &str) {
    let nodes = bench.all::<Node>();
    let mut labels = BTreeMap::from([("kubernetes.io/hostname", name)]);
    labels.extend(plane.then_some((PLANE, "")));
    if nodes.get_opt(name).await.unwrap().is_none() {
        make(&nodes, json!({"metadata": {"name": name}})).await;
    }
    let since = Timestamp::now() - SignedDuration::from_mins(10);
    let status = json!({"conditions": [{"type": "Ready", "status": ready, "message": "silent", "lastTransitionTime": since}]});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await.unwrap();
    // What keeps pods from a node that is new, until a controller that does not run here has seen it.
    let patch = json!({"metadata": {"labels": labels}, "spec": {"taints": []}});
    nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

fn pods(bench: &Bench) -> Api<Pod> {
    Api::namespaced(bench.client.clone(), "default")
}

async fn pod(bench: &Bench, name: &str, on: &str, annotations: Value, volumes: Value) {
    let containers = json!([{"name": "a", "image": "a"}]);
    let metadata = json!({"name": name, "labels": {"app": name}, "annotations": annotations});
    let spec = json!({"nodeName": on, "containers": containers, "volumes": volumes, "automountServiceAccountToken": false});
    make(&pods(bench), json!({"metadata": metadata, "spec": spec})).await;
}

/// The kubelets' part in ending pods.
async fn end_pods(client: Client) {
    let api = Api::<Pod>::namespaced(client, "default");
    loop {
        for pod in api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            if pod.metadata.deletion_timestamp.is_some() && pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
                let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            }
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// A DaemonSet's pod on the worker, where the scheduler's part is played.
async fn daemon(bench: &Bench) {
    let containers = json!([{"name": "a", "image": "a"}]);
    let template = json!({"metadata": {"labels": {"app": "daemon"}}, "spec": {
        "containers": containers, "nodeSelector": {"kubernetes.io/hostname": "worker"}, "tolerations": [{"operator": "Exists"}],
    }});
    let spec = json!({"selector": {"matchLabels": {"app": "daemon"}}, "template": template});
    make(&Api::<DaemonSet>::namespaced(bench.client.clone(), "default"), json!({"metadata": {"name": "daemon"}, "spec": spec})).await;
    let end = Instant::now() + Duration::from_secs(60);
    let pod = loop {
        let list = pods(bench).list(&ListParams::default().labels("app=daemon")).await.unwrap();
        if let Some(pod) = list.items.first() {
            break pod.name_any();
        }
        assert!(Instant::now() < end, "the DaemonSet has no pod\n{}", bench.log("kube-controller-manager"));
        sleep(Duration::from_millis(200)).await;
    };
    let binding: Binding = made_of(json!({"metadata": {"name": pod}, "target": {"kind": "Node", "name": "worker"}}));
    pods(bench).create_subresource::<_, Value>("binding", &pod, &PostParams::default(), &binding).await.unwrap();
}

async fn names(bench: &Bench) -> Vec<String> {
    let list = pods(bench).list(&ListParams::default().fields("spec.nodeName=worker")).await.unwrap();
    list.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(|pod| pod.labels()["app"].clone()).collect()
}

/// A worker is cordoned, drained against a budget that first forbids it, and removed.
async fn a_worker(bench: &Bench) {
    node(bench, "worker", false, "True").await;
    daemon(bench).await;
    pod(bench, "static", "worker", json!({"kubernetes.io/config.mirror": "1"}), json!([])).await;
    pod(bench, "cache", "worker", json!({}), json!([{"name": "scratch", "emptyDir": {}}])).await;
    pod(bench, "kept", "worker", json!({}), json!([])).await;
    let budgets = Api::<PodDisruptionBudget>::namespaced(bench.client.clone(), "default");
    let budget = json!({"metadata": {"name": "all"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}});
    make(&budgets, budget).await;
    // A pod that has not started yet may go whatever its budget says.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = budgets.get("all").await.unwrap().status;
        if seen.as_ref().is_some_and(|status| status.current_healthy == Some(1)) {
            break;
        }
        assert!(Instant::now() < end, "the budget counts no pod: {seen:?}\n{}", bench.log("kube-controller-manager"));
        sleep(Duration::from_millis(200)).await;
    }
    tokio::spawn(end_pods(bench.client.clone()));

    good(bench, "nodes cordon worker").await;
    let listed = good(bench, "nodes list").await;
    assert!(line(&listed, "worker").join(" ").starts_with("worker worker Ready, cordoned -"), "{listed}");
    good(bench, "nodes uncordon worker").await;
    let (_, said, found) = chasi_bod(bench, "nodes cordon woker").await;
    assert!(!found && said.contains("there is no node `woker`") && said.contains("did you mean `worker`?"), "{said}");

    let plan = good(bench, "nodes drain worker --dry-run").await;
    assert!(plan.contains("default/cache") && plan.contains("is evicted; what is in its emptyDir is lost (scratch)"), "{plan}");
    assert!(plan.contains("stays: static pod") && plan.contains("stays: of a DaemonSet") && plan.contains("not now: Cannot evict pod"), "{plan}");
    assert_eq!(names(bench).await.len(), 4, "nothing was done\n{plan}");
    assert!(!good(bench, "nodes list").await.contains("cordoned"));

    let (_, said, drained) = chasi_bod(bench, "nodes drain worker --timeout 4").await;
    assert!(!drained && said.contains("default/cache is evicted; what is in its emptyDir is lost (scratch)"), "{said}");
    assert!(said.contains("1 of 2: default/cache is gone") && said.contains("default/kept cannot go yet: Cannot evict pod"), "{said}");
    assert!(said.contains("after 4s there is still default/kept (Cannot evict pod") && said.contains("budget all needs 1 healthy pods"), "{said}");
    let (_, said, removed) = chasi_bod(bench, "nodes remove worker --timeout 2").await;
    assert!(!removed && said.contains("--force removes it all the same"), "{said}");
    assert!(bench.all::<Node>().get_opt("worker").await.unwrap().is_some());

    let lift = async {
        sleep(Duration::from_secs(3)).await;
        budgets.delete("all", &DeleteParams::default()).await.unwrap();
    };
    let ((_, said, drained), ()) = tokio::join!(chasi_bod(bench, "nodes drain worker --timeout 2m"), lift);
    assert!(drained && said.contains("cannot go yet") && said.contains("1 of 1: default/kept is gone"), "{said}");
    let mut left = names(bench).await;
    left.sort();
    assert_eq!(left, ["daemon", "static"]);
    good(bench, "nodes remove worker").await;
    assert!(bench.all::<Node>().get_opt("worker").await.unwrap().is_none());
    let (_, said, good) = chasi_bod(bench, "nodes remove worker").await;
    assert!(good && said.contains("there is no node worker, and no member of etcd is called so"), "{said}");
}

/// What the node's etcd is asked without certificates.
async fn etcd(path: &str, what: Value) -> Result<Value, kube::Error> {
    let client = Client::try_from(Config::new(format!("http://{NODE}:2379").parse().unwrap())).unwrap();
    client.request(hyper::http::Request::post(format!("/v3/cluster/member/{path}")).body(what.to_string().into_bytes()).unwrap()).await
}

/// One more control plane: a Node object and a member of etcd.
async fn join(bench: &Bench, name: &str, port: u16, before: &str) -> Option<Child> {
    let peers = json!({"peerURLs": [format!("http://127.0.0.1:{}", port + 1)]});
    node(bench, name, true, "True").await;
    // Until it has started, the API may wait for its vote.
    etcd("add", peers).await.unwrap();
    let cluster = format!("--initial-cluster={before},{name}=http://127.0.0.1:{}", port + 1);
    let child = member(&bench.path(""), name, port, "", &[&cluster, "--initial-cluster-state=existing"]);
    until(bench, "its member votes", |listed| listed.lines().any(|line| line.starts_with(name) && line.contains("  voter  "))).await;
    Some(child)
}

/// The list as soon as it shows something.
async fn until(bench: &Bench, what: &str, so: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let (listed, said, _) = chasi_bod(bench, "nodes list").await;
        if so(&listed) {
            return listed;
        }
        assert!(Instant::now() < end, "{what} does not come\n{listed}{said}\n{}", bench.log("etcd"));
        sleep(Duration::from_millis(500)).await;
    }
}

/// Three control planes: of those that are left none goes that etcd needs, and what is lost is said also while the API cannot answer.
async fn control_planes(bench: &Bench) {
    node(bench, "node", true, "True").await;
    let listed = good(bench, "nodes list").await;
    assert!(line(&listed, "node").join(" ").starts_with(&format!("node control plane Ready leader {NODE}")), "{listed}");
    assert!(listed.contains("etcd: 1 of 1 voters answers, 1 is needed: there is no other"), "{listed}");
    let (_, said, removed) = chasi_bod(bench, "nodes remove node").await;
    assert!(!removed && said.contains("it is this control plane itself"), "{said}");

    let mut two = join(bench, "two", 2389, "node=http://127.0.0.1:2380").await;
    let mut three = join(bench, "three", 2399, "node=http://127.0.0.1:2380,two=http://127.0.0.1:2390").await;
    let listed = good(bench, "nodes list").await;
    assert!(listed.contains("etcd: 3 of 3 voters answer, 2 are needed: 1 may be lost before it stops"), "{listed}");
    let told: Value = serde_json::from_str(&good(bench, "nodes list --json").await).unwrap();
    assert_eq!((&told["quorum"]["mayBeLost"], &told["nodes"][0]["etcd"][0]["answers"]), (&json!(1), &json!(true)));

    end(&mut three);
    node(bench, "three", true, "Unknown").await;
    let listed = until(bench, "the loss", |listed| listed.contains("2 of 3 voters answer")).await;
    assert!(listed.contains("none may be lost") && listed.contains("three is NotReady since "), "{listed}");
    assert!(line(&listed, "three").join(" ").contains("NotReady for 10m voter, no answer"), "{listed}");
    let (_, said, removed) = chasi_bod(bench, "nodes remove two").await;
    assert!(!removed && said.contains("etcd would lose its majority: now 2 of 3 voters answer, 2 are needed, and without it 1 of 2"), "{said}");
    assert!(said.contains("start what does not answer first, or remove it: three"), "{said}");

    let config = bench.path("root/etc/kubernetes/admin.conf");
    let (_, said, removed) = chasi_bod(bench, &format!("nodes remove three --kubeconfig {}", config.display())).await;
    assert!(!removed && said.contains("only another control plane can take its member out"), "{said}");
    let plan = good(bench, "nodes remove three --dry-run").await;
    assert!(plan.contains("would be taken out, and then 2 of 2 voters answer") && plan.contains("node three would be deleted"), "{plan}");
    // Half of it was done by hand.
    bench.delete::<Node>("three").await;
    assert!(good(bench, "nodes list").await.contains("member three of etcd has no node"));
    good(bench, "nodes remove three").await;
    let listed = good(bench, "nodes list").await;
    assert!(!listed.contains("three") && listed.contains("2 of 2 voters answer, 2 are needed: none may be lost"), "{listed}");

    end(&mut two);
    for words in ["nodes list", "nodes remove two"] {
        let begun = Instant::now();
        let (_, said, _) = chasi_bod(bench, words).await;
        assert!(said.contains("etcd: 1 of 2 voters answers, 2 are needed: its majority is lost"), "{words}: {said}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{words}: {:?}\n{said}", begun.elapsed());
    }
    two = Some(member(&bench.path(""), "two", 2389, "", &[]));
    until(bench, "two again", |listed| listed.contains("2 of 2 voters answer")).await;
    let (_, said, removed) = chasi_bod(bench, "nodes remove two --timeout 20").await;
    assert!(removed && said.contains("two is no member of etcd any more: 1 of 1 voters answers"), "{said}");
    let listed = good(bench, "nodes list").await;
    assert!(listed.contains("etcd: 1 of 1 voters answers, 1 is needed") && !listed.contains("two"), "{listed}");
    end(&mut two);
}

pub async fn all(bench: Bench) {
    a_worker(&bench).await;
    control_planes(&bench).await;
}
