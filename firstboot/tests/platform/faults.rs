//! Bad input is a refusal by the API server or a condition, with field and reason; and the API may be away.

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use layers::platform::component::ComponentPhase;
use layers::platform::{Component, Phase, VirtualCluster, VirtualClusterTemplate};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::bench::{Bench, Kind};
use crate::programs::{programs, run};
use crate::rates::is_ready;

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// What the API server refuses itself, by our definitions.
async fn refused<K: Kind>(bench: &Bench, name: &str, spec: &str, said: &str) {
    let error = bench.create::<K>(name, yaml(spec)).await.expect_err(spec);
    assert!(error.contains(said), "{spec}: {error}");
}

async fn the_api_server_refuses(bench: &Bench) {
    const CHART: &str = "source: {chart: {name: note, version: 1.0.0}}";
    let (long, longer) = ("v".repeat(41), "c".repeat(54));
    for (name, spec, said) in [
        (long.as_str(), "{}", "metadata.name: at most 40 characters"),
        ("a.b", "{}", "metadata.name: at most 40 characters, and no dot"),
        ("1biz", "{}", "metadata.name: it begins with a letter, as names of services do"),
        ("a", "{replicas: 3, store: sqlite}", "more than one replica needs `store: etcd`: sqlite has one writer"),
        ("a", "{replicas: 9}", "spec.replicas"),
        ("a", "{version: '1.36'}", "spec.version"),
        ("a", "{store: postgres}", "spec.store: Unsupported value: \"postgres\""),
        ("a", "{network: {plane: open}}", "spec.network.plane: Unsupported value: \"open\""),
    ] {
        refused::<VirtualCluster>(bench, name, spec, said).await;
    }
    for (name, spec, said) in [
        (longer.as_str(), format!("{{{CHART}}}"), "metadata.name: at most 53 characters"),
        ("a", format!("{{{CHART}, dependsOn: [a]}}"), "spec.dependsOn: a component cannot wait for itself"),
        ("a", "{source: {}}".into(), "name one of chart, kustomize and manifests"),
        ("a", "{source: {chart: {name: note}}}".into(), "name the version, exactly"),
        ("a", format!("{{{CHART}, valuesFrom: [{{key: x}}]}}"), "name one of configMap and secret"),
        ("a", format!("{{{CHART}, timeoutSeconds: 1}}"), "spec.timeoutSeconds"),
        (
            "biz",
            format!("{{{CHART}, target: {{namespace: vcluster-biz}}}}"),
            "spec.target.namespace: the release of this name there is a virtual cluster's",
        ),
    ] {
        refused::<Component>(bench, name, &spec, said).await;
    }
    refused::<VirtualClusterTemplate>(bench, "own", "{extends: own}", "spec.extends: a template cannot extend itself").await;
}

/// What only the controllers can see; each object says it by itself, and goes.
async fn virtual_clusters_say_what_is_wrong(bench: &Bench) {
    let cases = [
        ("{template: cpy}", "Refused", "spec.template: there is no VirtualClusterTemplate `cpy`"),
        ("{network: {podCIDR: 10.244.3.0/24}}", "Refused", "spec.network.podCIDR: 10.244.3.0/24 overlaps 10.244.0.0/16 of the host's pods"),
        ("{network: {podCIDR: 10.60.1.0/24}}", "Refused", "spec.network.podCIDR: 10.60.1.0/24 overlaps 10.60.0.0/16 of virtual cluster a-first"),
        ("{network: {serviceCIDR: 10.60.0.0/16}}", "Refused", "spec.network.serviceCIDR: 10.60.0.0/16 is not the host's 10.96.0.0/16"),
        ("{quota: {requests.memory: 64Mi}}", "Refused", "spec.quota.requests.memory: 64Mi is less than the"),
        ("{replicas: 3}", "Refused", "spec.replicas: 3 need `store: etcd`: sqlite has one writer"),
        ("{values: {sleepMode: {enabled: true}}}", "Refused", "spec.values.sleepMode: only vcluster's paid product honours it"),
        ("{values: {controlPlane: {nonsense: 1}}}", "Failed", "'nonsense' not allowed (chart vcluster"),
    ];
    // Of two of one second, which is all that the API tells, the name decides who is the older one.
    bench.create::<VirtualCluster>("a-first", yaml("{network: {podCIDR: 10.60.0.0/16}}")).await.unwrap();
    for (n, (spec, ..)) in cases.iter().enumerate() {
        bench.create::<VirtualCluster>(&format!("bad{n}"), yaml(spec)).await.unwrap();
    }
    for (n, (spec, reason, message)) in cases.iter().enumerate() {
        let said = |object: &VirtualCluster| {
            let status = object.status.clone().unwrap_or_default();
            let condition = status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "False" && one.message.contains(message));
            let failure = status.failure.is_some_and(|failure| failure.reason == *reason && failure.message.contains(message));
            failure && condition && status.phase == Phase::Error
        };
        bench.until::<VirtualCluster>(&format!("bad{n}"), &format!("what says `{message}` of {spec}"), said).await;
    }
    // Mended, it comes; the others go as they are.
    bench.change::<VirtualCluster>("bad0", json!({"template": "general"})).await.unwrap();
    bench.rests("bad0", Phase::Running).await;
    bench.rests("a-first", Phase::Running).await;
}

/// A store is for life, however the change comes.
async fn a_store_does_not_change(bench: &Bench) {
    bench.create::<VirtualClusterTemplate>("site", yaml("{extends: general, store: sqlite}")).await.unwrap();
    bench.create::<VirtualCluster>("kept", yaml("{store: sqlite, template: site}")).await.unwrap();
    let error = bench.change::<VirtualCluster>("kept", yaml("{store: etcd}")).await.expect_err("another store");
    assert!(error.contains("spec.store: it cannot change; restore a snapshot into a new virtual cluster instead"), "{error}");
    bench.create::<VirtualCluster>("told", yaml("{template: site}")).await.unwrap();
    bench.rests("told", Phase::Running).await;
    bench.change::<VirtualClusterTemplate>("site", yaml("{store: etcd}")).await.unwrap();
    let said = |object: &VirtualCluster| {
        let failure = object.status.as_ref().and_then(|status| status.failure.as_ref());
        failure.is_some_and(|failure| failure.reason == "Refused" && failure.message.starts_with("spec.store: it is sqlite and cannot become etcd"))
    };
    bench.until::<VirtualCluster>("told", "what keeps its store", said).await;
    assert_eq!(bench.revisions("vcluster-told", "told").await, ["deployed"]);
    bench.change::<VirtualClusterTemplate>("site", yaml("{store: sqlite}")).await.unwrap();
    bench.rests("told", Phase::Running).await;
    bench.rests("kept", Phase::Running).await;
}

async fn deletion_waits_for_nothing(bench: &Bench) {
    bench.script.hold("vcluster-brief/");
    bench.create::<VirtualCluster>("brief", yaml("{store: etcd}")).await.unwrap();
    bench.reaches("brief", Phase::Creating).await;
    bench.delete::<VirtualCluster>("brief").await;
    bench.create::<VirtualCluster>("briefer", yaml("{}")).await.unwrap();
    bench.hold_helm("vcluster-briefer", "briefer", 1).await;
    bench.delete::<VirtualCluster>("briefer").await;
    bench.let_go();
    for name in ["brief", "briefer", "bad1", "bad7"] {
        if name.starts_with("bad") {
            bench.delete::<VirtualCluster>(name).await;
        }
        bench.gone::<VirtualCluster>(name).await;
        bench.gone::<Namespace>(&format!("vcluster-{name}")).await;
    }
}

async fn components_say_what_is_wrong(bench: &Bench) {
    let note = |more: &str| format!("{{source: {{chart: {{name: note, version: 1.0.0}}}}{more}}}");
    let chart = |name: &str, version: &str| format!("{{source: {{chart: {{name: {name}, version: {version}}}}}}}");
    let cases = [
        (
            "missing",
            chart("nto", "1.0.0"),
            "Refused",
            "spec.source.chart.name: the image brings no chart nto; it has kinds, kube-state-metrics, node-exporter, note, vcluster, welcome",
        ),
        ("older", chart("note", "0.9.0"), "Refused", "spec.source.chart.version: the image brings no version 0.9.0 of chart note; it has 1.0.0"),
        ("welcome", chart("welcome", "1.0.0"), "Refused", "metadata.name: the image installs chart welcome as release welcome of namespace default"),
        ("typed", note(", values: {text: 5}"), "Failed", "spec.values: '/text': got number, want string (chart note)"),
        ("from", note(", valuesFrom: [{configMap: site}]"), "Refused", "spec.valuesFrom[0]: there is no ConfigMap site with a key values.yaml"),
        ("ring1", note(", dependsOn: [ring2]"), "Refused", "spec.dependsOn: "),
        ("ring2", note(", dependsOn: [ring3]"), "Refused", "spec.dependsOn: "),
        ("ring3", note(", dependsOn: [ring1]"), "Refused", " wait for each other"),
    ];
    for (name, spec, ..) in &cases {
        bench.create::<Component>(name, yaml(spec)).await.unwrap();
    }
    for (name, _, reason, message) in &cases {
        let said = |object: &Component| {
            let status = object.status.clone().unwrap_or_default();
            let failure = status.failure.is_some_and(|failure| failure.reason == *reason && failure.message.contains(message));
            status.phase == ComponentPhase::Error && failure
        };
        bench.until::<Component>(name, &format!("what says `{message}`"), said).await;
    }
    // The circle is broken, the type mended: all of them come.
    bench.change::<Component>("ring3", json!({"dependsOn": []})).await.unwrap();
    bench.change::<Component>("typed", json!({"values": {"text": "five"}})).await.unwrap();
    for name in ["ring1", "ring2", "ring3", "typed"] {
        bench.until::<Component>(name, "READY", is_ready).await;
    }
    let error = bench.change::<Component>("typed", json!({"target": {"namespace": "elsewhere"}})).await.expect_err("another target");
    assert!(error.contains("spec.target: it cannot change; make another component"), "{error}");
}

/// A release that the image installs by itself outlives a component of its name.
async fn a_release_of_others_stays(bench: &Bench) {
    let mut helm = Command::new(programs().join("helm"));
    helm.arg(format!("--kubeconfig={}", bench.path("test.conf").display()));
    run(helm.args(["install", "welcome"]).arg(bench.path("root/usr/lib/chasi-bod/charts/note")));
    bench.change::<Component>("welcome", json!({"values": {"title": "Mine"}})).await.unwrap();
    let seen = |object: &Component| object.status.as_ref().is_some_and(|status| status.observed_generation == object.metadata.generation);
    bench.until::<Component>("welcome", "seen", seen).await;
    bench.delete::<Component>("welcome").await;
    bench.gone::<Component>("welcome").await;
    assert_eq!(bench.revisions("default", "welcome").await, ["deployed"]);
}

/// What fails because of others is tried again, as often as asked; those beside it come.
async fn tries_are_bounded_and_come_to_an_end(bench: &Bench) {
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "hook.test.example"},
        "webhooks": [{
            "name": "hook.test.example", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
            "clientConfig": {"service": {"namespace": "hooked", "name": "hook"}},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hooked"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE"]}],
        }],
    });
    let hooks = Api::<ValidatingWebhookConfiguration>::all(bench.client.clone());
    hooks.create(&PostParams::default(), &serde_json::from_value(hook).unwrap()).await.unwrap();
    let note = |more: &str| yaml(&format!("{{source: {{chart: {{name: note, version: 1.0.0}}}}, {more}}}"));
    let failing = [
        ("gives-up", "retries: 1, values: {text: 5}", ["spec.values", "(chart note)"]),
        ("early", "values: {kind: Gadget}", ["/charts/note", "no matches for kind \"Gadget\" in version \"test.example/v1\""]),
        ("hooked", "target: {namespace: hooked}", ["/charts/note", "failed calling webhook \"hook.test.example\""]),
    ];
    for (name, more, _) in failing {
        bench.create::<Component>(name, note(more)).await.unwrap();
    }
    bench.create::<Component>("beside", note("target: {namespace: beside}")).await.unwrap();
    for (name, _, parts) in failing {
        let said = |object: &Component| {
            let failure = object.status.as_ref().and_then(|status| status.failure.as_ref());
            failure.is_some_and(|failure| failure.reason == "Failed" && parts.iter().all(|part| failure.message.contains(part)))
        };
        bench.until::<Component>(name, &format!("what says {parts:?}"), said).await;
    }
    bench.until::<Component>("beside", "READY", is_ready).await;
    bench.create::<Component>("kinds", yaml("{source: {chart: {name: kinds, version: 1.0.0}}}")).await.unwrap();
    let ignore = json!({"webhooks": [{"name": "hook.test.example", "failurePolicy": "Ignore"}]});
    hooks.patch("hook.test.example", &PatchParams::default(), &Patch::Strategic(ignore)).await.unwrap();
    for name in ["kinds", "early", "hooked"] {
        println!("{name} is READY after {:.1} s", bench.until::<Component>(name, "READY", is_ready).await);
    }
    let given_up = |object: &Component| {
        let status = object.status.clone().unwrap_or_default();
        status.phase == ComponentPhase::Failed && status.failure.is_some_and(|failure| failure.attempts == 2 && failure.next_retry.is_none())
    };
    bench.until::<Component>("gives-up", "FAILED", given_up).await;
}

pub async fn bad_input(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    the_api_server_refuses(&bench).await;
    components_say_what_is_wrong(&bench).await;
    a_release_of_others_stays(&bench).await;
    tries_are_bounded_and_come_to_an_end(&bench).await;
    virtual_clusters_say_what_is_wrong(&bench).await;
    a_store_does_not_change(&bench).await;
    deletion_waits_for_nothing(&bench).await;
    bench.kill();
}

/// Helm is at `biz`, and the controllers have noted what it has ended of the others: of what they could not note they would have it do the same again.
async fn is_in_the_middle(bench: &Bench) -> bool {
    let at_work = bench.state("vcluster-biz", "biz", 2).await.is_some_and(|state| state.starts_with("pending-"));
    let kept = bench.all::<Component>().get("kept").await.unwrap().status.unwrap_or_default();
    let new = bench.all::<VirtualCluster>().get("new").await.unwrap().status.unwrap_or_default();
    let is_noted = async |namespace, name, revision, noted| noted || bench.state(namespace, name, revision).await.as_deref() != Some("deployed");
    at_work && is_noted("default", "kept", 2, kept.revision == Some(2)).await && is_noted("vcluster-new", "new", 1, new.installed.is_some()).await
}

/// The API goes in the middle of work of every kind, and comes back.
pub async fn the_api_away(mut bench: Bench, seconds: u64) {
    const CHART: &str = "source: {chart: {name: note, version: 1.0.0}}";
    bench.start();
    bench.until_defined().await;
    for name in ["biz", "goes", "sleeps"] {
        bench.create::<VirtualCluster>(name, yaml("{template: edge}")).await.unwrap();
    }
    for (name, spec) in [("kept", format!("{{{CHART}}}")), ("inside", format!("{{{CHART}, target: {{virtualCluster: biz, namespace: web}}}}"))] {
        bench.create::<Component>(name, yaml(&spec)).await.unwrap();
    }
    for name in ["biz", "goes", "sleeps"] {
        bench.rests(name, Phase::Running).await;
    }
    bench.until::<Component>("kept", "READY", is_ready).await;
    bench.until::<Component>("inside", "READY", is_ready).await;
    bench.change::<VirtualCluster>("sleeps", json!({"suspended": true})).await.unwrap();
    bench.delete::<VirtualCluster>("goes").await;
    bench.create::<VirtualCluster>("new", yaml("{template: edge}")).await.unwrap();
    bench.change::<Component>("kept", json!({"values": {"text": "changed"}})).await.unwrap();
    bench.change::<VirtualCluster>("biz", json!({"quota": {"count/pods": "50"}})).await.unwrap();
    bench.hold_when("biz being upgraded and nothing done that is not noted", async || is_in_the_middle(&bench).await).await;
    bench.stop_api();
    bench.let_go();
    sleep(Duration::from_secs(seconds)).await;
    bench.start_api().await;
    for (name, phase) in [("biz", Phase::Running), ("sleeps", Phase::Suspended), ("new", Phase::Running)] {
        println!("{name} is {phase:?} {:.1} s after the API", bench.rests(name, phase).await);
    }
    bench.gone::<VirtualCluster>("goes").await;
    bench.gone::<Namespace>("vcluster-goes").await;
    bench.until::<Component>("kept", "READY", is_ready).await;
    bench.until::<Component>("inside", "READY", is_ready).await;
    for (namespace, name, revisions) in [("vcluster-biz", "biz", 2), ("vcluster-new", "new", 1), ("default", "kept", 2), ("web", "inside", 1)] {
        crate::kills::release_is_sane(&bench, namespace, name, revisions).await;
    }
    // The same process all the time.
    bench.kill();
}
