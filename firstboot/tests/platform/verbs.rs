//! The node's own commands against a live API: what they make, show and try again.

use std::process::Command;

use layers::platform::component::ComponentPhase;
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
