//! Components in their order: side by side where nothing keeps them, after what they depend on, gone in reverse; with values of objects, and put back when
//! an upgrade fails.

use std::fs;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use layers::platform::Component;
use layers::platform::component::ComponentPhase as Phase;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::kills::release_is_sane;
use crate::rates::{is_at, is_ready};

const PLATFORM: &str = "chasi-bod-system";

fn chart(name: &str, namespace: &str, more: Value) -> Value {
    let mut spec = json!({"source": {"chart": {"name": name, "version": "1.0.0"}}, "target": {"namespace": namespace}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Three wait for their pods at the same time; who depends on one of them, and who depends on that, are not begun before.
async fn come(bench: &Bench) {
    bench.script.hold("side-");
    for n in 0..3 {
        bench.create::<Component>(&format!("side{n}"), chart("welcome", &format!("side-{n}"), json!({}))).await.unwrap();
    }
    bench.create::<Component>("middle", chart("note", "middle", json!({"dependsOn": ["side0"]}))).await.unwrap();
    bench.create::<Component>("last", chart("note", "last", json!({"dependsOn": ["middle", "side1"]}))).await.unwrap();
    for n in 0..3 {
        bench.until::<Component>(&format!("side{n}"), "INSTALLING", is_at(Phase::Installing)).await;
    }
    let waits =
        |what: &'static str| move |object: &Component| object.status.as_ref().is_some_and(|status| status.waiting_for.iter().any(|w| w == what));
    bench.until::<Component>("middle", "waiting", waits("component side0 (installing)")).await;
    bench.until::<Component>("last", "waiting", waits("component middle (waiting)")).await;
    for n in 0..3 {
        assert!(is_at(Phase::Installing)(&bench.all::<Component>().get(&format!("side{n}")).await.unwrap()), "all three at once");
    }
    bench.script.release("side-");
    for name in ["side0", "side1", "side2", "middle", "last"] {
        bench.until::<Component>(name, "READY", is_ready).await;
    }
    let log = changes(bench);
    let place = |name: &str| log.iter().position(|change| change == &format!("create {name}")).unwrap();
    assert!(place("middle") < place("last"), "{log:?}");
}

/// What was done to first revisions of releases, as the API server saw it.
fn changes(bench: &Bench) -> Vec<String> {
    let log = fs::read_to_string(bench.path("audit.log")).unwrap();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_releases = events.filter_map(|event| {
        let name = event["objectRef"]["name"].as_str()?.strip_prefix("sh.helm.release.v1.")?.strip_suffix(".v1")?.to_string();
        let done = event["stage"] == "ResponseComplete" && event["responseStatus"]["code"].as_u64()? < 300;
        done.then(|| format!("{} {name}", event["verb"].as_str().unwrap_or_default()))
    });
    of_releases.collect()
}

/// All are deleted at once; each goes after those that depend on it.
async fn go(bench: &mut Bench) {
    let names = ["side0", "side1", "middle", "last"];
    bench.kill();
    for name in names {
        bench.delete::<Component>(name).await;
    }
    bench.start();
    for name in names {
        bench.gone::<Component>(name).await;
    }
    let log = changes(bench);
    let place = |name: &str| log.iter().position(|change| change == &format!("delete {name}")).unwrap_or_else(|| panic!("{name}: {log:?}"));
    assert!(place("last") < place("middle") && place("middle") < place("side0") && place("last") < place("side1"), "{log:?}");
}

/// Values of a ConfigMap and, over them, of a Secret reach the release; so does a change of them.
async fn values_come_from_objects(bench: &Bench) {
    let space: Namespace = serde_json::from_value(json!({"metadata": {"name": PLATFORM}})).unwrap();
    let _ = bench.all::<Namespace>().create(&PostParams::default(), &space).await;
    let (maps, secrets) = ("/api/v1/namespaces/chasi-bod-system/configmaps", "/api/v1/namespaces/chasi-bod-system/secrets");
    for (path, object) in [
        (maps, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "site"}, "data": {"values.yaml": "text: of the site"}})),
        (secrets, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "site"}, "stringData": {"own": "other: 1"}})),
    ] {
        let request = hyper::http::Request::post(path).header("content-type", "application/json").body(object.to_string().into_bytes());
        bench.client.request::<Value>(request.unwrap()).await.unwrap();
    }
    let from = json!({"valuesFrom": [{"configMap": "site"}, {"secret": "site", "key": "own"}]});
    bench.create::<Component>("told", chart("note", "told", from)).await.unwrap();
    bench.until::<Component>("told", "READY", is_ready).await;
    let text = async || Api::<ConfigMap>::namespaced(bench.client.clone(), "told").get("told").await.unwrap().data.unwrap()["text"].clone();
    assert_eq!(text().await, "of the site");
    let patch = Patch::Merge(json!({"stringData": {"own": "text: of the secret"}}));
    let api = Api::<k8s_openapi::api::core::v1::Secret>::namespaced(bench.client.clone(), PLATFORM);
    api.patch("site", &PatchParams::default(), &patch).await.unwrap();
    bench.until::<Component>("told", "changed", |object| is_ready(object) && object.status.as_ref().unwrap().revision == Some(2)).await;
    assert_eq!(text().await, "of the secret");
}

/// An upgrade that the API server refuses half-way is rolled back: what ran goes on as it was.
async fn a_failed_upgrade_is_rolled_back(bench: &Bench) {
    let page = async || Api::<ConfigMap>::namespaced(bench.client.clone(), "side-2").get("side2").await.unwrap().data.unwrap()["index.html"].clone();
    let before = page().await;
    bench.change::<Component>("side2", json!({"retries": 0, "values": {"title": "Broken", "image": ""}})).await.unwrap();
    bench.until::<Component>("side2", "FAILED", is_at(Phase::Failed)).await;
    let failure = bench.all::<Component>().get("side2").await.unwrap().status.unwrap().failure.unwrap();
    assert!(failure.message.contains("image: Required value"), "{failure:?}");
    assert_eq!((bench.revisions("side-2", "side2").await, page().await), (["superseded", "failed", "deployed"].map(String::from).to_vec(), before));
    bench.change::<Component>("side2", json!({"values": {"title": "Mended", "image": "mended"}})).await.unwrap();
    bench.until::<Component>("side2", "READY", is_ready).await;
    assert!(page().await.contains("Mended"));
}

pub async fn come_and_go(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    come(&bench).await;
    values_come_from_objects(&bench).await;
    release_is_sane(&bench, "told", "told", 2).await;
    a_failed_upgrade_is_rolled_back(&bench).await;
    go(&mut bench).await;
    bench.kill();
}
