//! The node's own commands against a live API: what they make, show and try again.

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use kube::Api;
use kube::api::PostParams;
use layers::platform::component::ComponentPhase;
use layers::platform::settings::merge;
use layers::platform::{Component, Phase, VirtualCluster};
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::rates::{is_at, is_ready};

/// Runs one as on the node, which answers meanwhile; its words on stdout and stderr, and whether it was content.
pub async fn chasi_bod(bench: &Bench, words: &str) -> (String, String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chasi-bod-node"));
    command.arg("--root").arg(bench.path("root")).args(words.split(' '));
    let said = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(said.stdout), text(said.stderr), said.status.success())
}

pub async fn good(bench: &Bench, words: &str) -> String {
    let (out, error, good) = chasi_bod(bench, words).await;
    assert!(good, "{words}: {out}{error}\n{}", bench.story());
    out
}

/// The words of the line that begins with a name.
pub fn line<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let found = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| words.first() == Some(&name));
    found.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
}

async fn virtual_clusters(bench: &Bench) {
    good(bench, "vcluster create shop --template edge --set quota.pods=20 --wait").await;
    let made = bench.all::<VirtualCluster>().get("shop").await.unwrap();
    assert_eq!(serde_json::to_value(&made.spec).unwrap()["quota"], json!({"pods": "20"}));
    assert_eq!(made.status.unwrap().phase, Phase::Running);
    let (_, error, again) = chasi_bod(bench, "vcluster create shop").await;
    assert!(!again && error.contains("shop"), "{error}");
    let listed = good(bench, "vcluster list").await;
    assert!(line(&listed, "shop")[1] == "RUNNING" && line(&listed, "shop").contains(&"edge"), "{listed}");
    let listed: Value = serde_json::from_str(&good(bench, "vcluster list --json").await).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), listed[0]["name"].as_str()), (1, Some("shop")));
    below_a_path(bench).await;
    // A pod network of others' before the own one: nobody knows whether it enforces what keeps virtual clusters apart.
    let folder = bench.path("root/etc/cni/net.d");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("05-calico.conflist"), "{}").unwrap();
    bench.change::<VirtualCluster>("shop", json!({"quota": {"pods": "21"}})).await.unwrap();
    let is_told = |object: &VirtualCluster| {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        let isolated = conditions.into_iter().find(|condition| condition.type_ == "Isolated");
        isolated.is_some_and(|one| one.status == "Unknown" && one.reason == "ForeignPodNetwork" && one.message.contains("05-calico.conflist"))
    };
    bench.until::<VirtualCluster>("shop", "isolated by nobody known", is_told).await;
}

/// The host's certificate, which only an authority of the platform's own signs, where the ingress controller finds it; nobody else's Ingress of that class.
async fn below_a_path(bench: &Bench) {
    let exposure = |more: Value| {
        let mut exposure = json!({"host": "apis.example.org", "path": "/shop"});
        merge(&mut exposure, more);
        json!({"network": {"exposure": exposure}})
    };
    for path in ["shop", "/shop/", "/a b", "/a//b", "/a.*"] {
        let refused = bench.change::<VirtualCluster>("shop", exposure(json!({"path": path}))).await.unwrap_err();
        assert!(refused.contains("spec.network.exposure.path"), "{path}: {refused}");
    }
    let has = |endpoint: Option<&'static str>| {
        move |object: &VirtualCluster| object.status.as_ref().is_some_and(|status| status.endpoint.as_deref() == endpoint)
    };
    bench.change::<VirtualCluster>("shop", exposure(json!({}))).await.unwrap();
    bench.until::<VirtualCluster>("shop", "exposed", has(Some("https://apis.example.org/shop"))).await;
    let ingresses = Api::<Ingress>::namespaced(bench.client.clone(), "chasi-bod-system");
    let secret = async || Some(ingresses.get_opt("exposure-shop").await.unwrap()?.spec?.tls?.first()?.secret_name.clone()?);
    assert_eq!(secret().await.as_deref(), Some("exposure-shop"));
    let made = Api::<Secret>::namespaced(bench.client.clone(), "chasi-bod-system").get("exposure-shop").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |key: &str| {
        std::fs::write(folder.path().join(key), &made.data.as_ref().unwrap()[key].0).unwrap();
        folder.path().join(key)
    };
    let verified = Command::new("openssl")
        .args(["verify", "-purpose", "sslserver", "-verify_hostname", "apis.example.org", "-CAfile"])
        .args([file("ca.crt"), file("tls.crt")])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let ingress = |name: &str, class: &str| {
        let rules = json!([{"host": "apis.example.org"}]);
        serde_json::from_value::<Ingress>(json!({"metadata": {"name": name}, "spec": {"ingressClassName": class, "rules": rules}})).unwrap()
    };
    let there = Api::<Ingress>::namespaced(bench.client.clone(), "vcluster-shop");
    let refused = there.create(&PostParams::default(), &ingress("thief-x-web-x-shop", "virtual-apis")).await.unwrap_err().to_string();
    assert!(refused.contains("for the APIs of virtual clusters alone"), "{refused}");
    there.create(&PostParams::default(), &ingress("page-x-web-x-shop", "traefik")).await.unwrap();
    bench.change::<VirtualCluster>("shop", exposure(json!({"tlsSecret": "own"}))).await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while secret().await.as_deref() != Some("own") {
        assert!(Instant::now() < end, "{}", bench.story());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bench.change::<VirtualCluster>("shop", json!({"network": {"exposure": null}})).await.unwrap();
    bench.until::<VirtualCluster>("shop", "exposed no more", has(None)).await;
    assert_eq!(secret().await, None);
}

/// One that lacks a kind fails for good; once the kind is there a person has it tried again.
async fn components(bench: &Bench) {
    let chart = |name: &str| json!({"source": {"chart": {"name": name, "version": "1.0.0"}}});
    let mut gadget = chart("note");
    (gadget["values"], gadget["retries"]) = (json!({"kind": "Gadget"}), json!(0));
    bench.create::<Component>("gadget", gadget).await.unwrap();
    let is_failed = is_at(ComponentPhase::Failed);
    bench.until::<Component>("gadget", "FAILED", &is_failed).await;
    let listed = good(bench, "component list").await;
    assert!(line(&listed, "gadget")[1] == "FAILED" && listed.contains("Gadget"), "{listed}");
    bench.create::<Component>("kinds", chart("kinds")).await.unwrap();
    bench.until::<Component>("kinds", "READY", is_ready).await;
    assert!(is_failed(&bench.all::<Component>().get("gadget").await.unwrap()), "nothing tries it again by itself");
    good(bench, "component retry gadget").await;
    bench.until::<Component>("gadget", "READY", is_ready).await;
    let listed = good(bench, "component list").await;
    assert!(line(&listed, "gadget")[1] == "READY" && line(&listed, "kinds")[1] == "READY", "{listed}");
    let (_, error, found) = chasi_bod(bench, "component retry gadgte").await;
    assert!(!found && error.contains("gadgte"), "{error}");
}

pub async fn all(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    virtual_clusters(&bench).await;
    components(&bench).await;
    bench.kill();
}
