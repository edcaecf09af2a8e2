//! The controllers are killed in every state of what they keep, and come to what was asked for.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use layers::platform::component::ComponentPhase;
use layers::platform::{Component, Phase, Snapshot, VirtualCluster};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::bench::Bench;
use crate::{copies, root};

/// The virtual cluster that lives through all of it.
const NAME: &str = "biz";

/// How long controllers that were started have for a first look at everything.
pub const LOOK: Duration = Duration::from_secs(1);

/// A state, what leads to it, and in what it ends however the controllers were killed.
struct Case {
    state: Phase,
    act: Act,
    end: Phase,
    /// Revisions of the release by then: what was done once is not done again.
    revisions: usize,
}

enum Act {
    Nothing,
    Spec(&'static str),
    /// Its pods are ready no more.
    Break,
}

/// All but DELETING and those of copies, in the order of a life.
fn cases() -> Vec<Case> {
    use Phase::{Creating, Error, Resuming, Running, Scaling, Suspended, Suspending, Updating};
    let case = |state, act, end, revisions| Case { state, act, end, revisions };
    vec![
        case(Creating, Act::Nothing, Running, 1),
        case(Running, Act::Nothing, Running, 1),
        case(Scaling, Act::Spec(r#"{"replicas": 2}"#), Running, 2),
        case(Updating, Act::Spec(r#"{"quota": {"count/pods": "50"}}"#), Running, 3),
        case(Suspending, Act::Spec(r#"{"suspended": true}"#), Suspended, 3),
        case(Suspended, Act::Nothing, Suspended, 3),
        case(Resuming, Act::Spec(r#"{"suspended": false}"#), Running, 3),
        case(Error, Act::Break, Running, 3),
    ]
}

fn phase(object: &VirtualCluster) -> Phase {
    object.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

impl Bench {
    pub async fn reaches(&self, name: &str, wanted: Phase) -> f64 {
        self.until::<VirtualCluster>(name, &format!("{wanted:?}"), |object| phase(object) == wanted).await
    }

    /// Whether the controllers have seen the last change and rest in a phase.
    pub async fn rests(&self, name: &str, wanted: Phase) -> f64 {
        let rests = |object: &VirtualCluster| {
            let seen = object.status.as_ref().and_then(|status| status.observed_generation) == object.metadata.generation;
            seen && phase(object) == wanted
        };
        self.until::<VirtualCluster>(name, &format!("{wanted:?} as last changed"), rests).await
    }

    /// Holds the controllers in a phase.
    async fn hold_in(&self, name: &str, wanted: Phase) {
        self.hold_at::<VirtualCluster>(name, &format!("in {wanted:?}"), |object| phase(object) == wanted).await;
    }

    /// Holds the controllers while helm makes a revision of a release.
    pub async fn hold_helm(&self, namespace: &str, name: &str, revision: usize) {
        let works = async || self.state(namespace, name, revision).await.is_some_and(|state| state.starts_with("pending-"));
        self.hold_when(&format!("helm at revision {revision} of {name}"), works).await;
    }

    /// State of a revision of a release, once helm has begun with it.
    pub async fn state(&self, namespace: &str, name: &str, revision: usize) -> Option<String> {
        let records = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let found = records.get_metadata_opt(&format!("sh.helm.release.v1.{name}.v{revision}")).await.unwrap();
        found.map(|found| found.labels()["status"].clone())
    }
}

/// One revision is deployed, the last; nothing is pending.
pub async fn release_is_sane(bench: &Bench, namespace: &str, name: &str, revisions: usize) {
    let found = bench.revisions(namespace, name).await;
    let mut wanted = vec!["superseded"; revisions - 1];
    wanted.push("deployed");
    assert_eq!(found, wanted, "release {name}\n{}", bench.story());
}

pub async fn of_a_virtual_cluster(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    bench.create::<VirtualCluster>(NAME, json!({"store": "etcd"})).await.unwrap();
    // PENDING: the controllers have begun with it and told of nothing.
    bench.hold_at::<VirtualCluster>(NAME, "begun", |object| !object.finalizers().is_empty()).await;
    kill(&mut bench, "PENDING");
    // Helm is killed with them: what it has made is taken over.
    bench.hold_helm("vcluster-biz", NAME, 1).await;
    kill(&mut bench, "PENDING, while helm installs");
    for case in cases() {
        match case.act {
            Act::Nothing => {}
            Act::Spec(spec) => drop(bench.change::<VirtualCluster>(NAME, serde_json::from_str(spec).unwrap()).await.unwrap()),
            Act::Break => bench.script.hold("vcluster-biz/"),
        }
        bench.hold_in(NAME, case.state).await;
        kill(&mut bench, &format!("{:?}", case.state));
        bench.script.change(|parts| parts.held.clear());
        bench.until_leading().await;
        // Whatever would be done twice is begun by now.
        sleep(LOOK).await;
        let took = bench.rests(NAME, case.end).await;
        println!("  {:?} after {took:.1} s", case.end);
        release_is_sane(&bench, "vcluster-biz", NAME, case.revisions).await;
    }
    // Two members of which one was there before would be two stores.
    let sets = Api::<StatefulSet>::namespaced(bench.client.clone(), "vcluster-biz");
    for (name, replicas) in [(NAME, 2), ("biz-etcd", 1)] {
        assert_eq!(sets.get(name).await.unwrap().spec.unwrap().replicas, Some(replicas), "{name}");
    }
    bench.change::<VirtualCluster>(NAME, json!({"quota": {"count/pods": "60"}})).await.unwrap();
    bench.hold_helm("vcluster-biz", NAME, 4).await;
    kill(&mut bench, "RUNNING, while helm upgrades");
    bench.rests(NAME, Phase::Running).await;
    release_is_sane(&bench, "vcluster-biz", NAME, 4).await;
    copies::of_its_data(&mut bench, NAME).await;
    release_is_sane(&bench, "vcluster-biz", NAME, 4).await;
    // A copy that is being made keeps nothing.
    copies::begin::<Snapshot>(&bench, "late", NAME).await;
    bench.delete::<VirtualCluster>(NAME).await;
    bench.hold_in(NAME, Phase::Deleting).await;
    kill(&mut bench, "DELETING, while a snapshot is made");
    bench.gone::<VirtualCluster>(NAME).await;
    nothing_is_left(&bench).await;
}

pub fn kill(bench: &mut Bench, state: &str) {
    bench.kill();
    println!("killed in {state}");
    bench.start();
}

/// Nothing on the host bears the name of the one that went.
async fn nothing_is_left(bench: &Bench) {
    assert!(bench.all::<Namespace>().get_opt("vcluster-biz").await.unwrap().is_none());
    for path in
        ["/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "/api/v1/persistentvolumes"]
    {
        let list: Value = bench.client.request(crate::bench::http(path)).await.unwrap();
        let names: Vec<_> = list["items"].as_array().unwrap().iter().filter_map(|object| object["metadata"]["name"].as_str()).collect();
        assert!(!names.iter().any(|name| name.contains(NAME)), "{path}: {names:?}");
    }
}

pub async fn of_a_component(mut bench: Bench) {
    let installing = |object: &Component| object.status.as_ref().is_some_and(|status| status.phase == ComponentPhase::Installing);
    let ready = |object: &Component| {
        object.status.as_ref().is_some_and(|status| status.phase == ComponentPhase::Ready && status.observed_generation == object.metadata.generation)
    };
    bench.start();
    bench.until_defined().await;
    let spec = json!({"source": {"chart": {"name": "welcome", "version": "1.0.0"}}, "target": {"namespace": "web"}});
    bench.create::<Component>("web", spec).await.unwrap();
    bench.hold_at::<Component>("web", "INSTALLING", installing).await;
    kill(&mut bench, "INSTALLING");
    bench.hold_helm("web", "web", 1).await;
    kill(&mut bench, "INSTALLING, while helm installs");
    bench.until::<Component>("web", "READY", ready).await;
    release_is_sane(&bench, "web", "web", 1).await;
    kill(&mut bench, "READY");
    bench.until_leading().await;
    sleep(LOOK).await;
    release_is_sane(&bench, "web", "web", 1).await;
    bench.change::<Component>("web", json!({"values": {"title": "Changed"}})).await.unwrap();
    bench.hold_at::<Component>("web", "INSTALLING", installing).await;
    kill(&mut bench, "INSTALLING, of a change");
    bench.until::<Component>("web", "READY", ready).await;
    release_is_sane(&bench, "web", "web", 2).await;
    bench.delete::<Component>("web").await;
    bench.hold_at::<Component>("web", "DELETING", |object| object.metadata.deletion_timestamp.is_some()).await;
    kill(&mut bench, "DELETING");
    bench.gone::<Component>("web").await;
    assert_eq!(bench.revisions("web", "web").await, [""; 0]);
}

/// What the image brings is cut off in the middle; one object of it is refused, and one goes by people's will.
pub async fn of_a_seed(mut bench: Bench) {
    let cluster = VirtualCluster::new("biz", serde_saphyr::from_str("{template: edge}").unwrap());
    let note = |name: &str| Component::new(name, serde_saphyr::from_str("{source: {chart: {name: note, version: 1.0.0}}}").unwrap());
    let names: Vec<_> = (0..20).map(|n| format!("note{n}")).collect();
    // One that a profile would not have passed.
    let components = [vec![note(&"n".repeat(60))], names.iter().map(|name| note(name)).collect()].concat();
    root::seed(&bench.path("root"), vec![cluster], components);
    bench.start();
    let there = async |bench: &Bench| bench.all::<Component>().list(&ListParams::default()).await.map_or(0, |list| list.items.len());
    bench.hold_at::<Component>("note2", "brought", |_| true).await;
    bench.kill();
    let half = there(&bench).await;
    println!("killed with {half} of {} components", names.len());
    assert!(half < names.len(), "the seed was brought whole before the kill");
    bench.start();
    for name in &names {
        bench.until::<Component>(name, "READY", crate::rates::is_ready).await;
    }
    bench.rests("biz", Phase::Running).await;
    assert_eq!(there(&bench).await, names.len());
    assert!(bench.said("metadata.name: at most 53 characters"), "{}", bench.story());
    bench.delete::<Component>("note0").await;
    bench.gone::<Component>("note0").await;
    kill(&mut bench, "RUNNING, with one of the seed deleted");
    bench.until_leading().await;
    bench.create::<Component>("last", json!({"source": {"chart": {"name": "note", "version": "1.0.0"}}})).await.unwrap();
    bench.until::<Component>("last", "READY", crate::rates::is_ready).await;
    assert!(bench.all::<Component>().get_opt("note0").await.unwrap().is_none());
    bench.kill();
}
