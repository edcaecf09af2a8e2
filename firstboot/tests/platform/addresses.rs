//! Services of type LoadBalancer get addresses of the image's pool, the node answers for them, and who gets none is told why.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, Namespace, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use layers::pool::POOL;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::bench::Bench;
use crate::programs::run;

const PATIENCE: Duration = Duration::from_secs(60);

fn ip(args: &[&str]) -> String {
    String::from_utf8(run(Command::new("ip").args(args))).unwrap()
}

fn services(bench: &Bench, namespace: &str) -> Api<Service> {
    Api::namespaced(bench.client.clone(), namespace)
}

async fn make(bench: &Bench, namespace: &str, name: &str, more: Value) {
    let mut spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    services(bench, namespace).create(&PostParams::default(), &service).await.unwrap();
}

/// The address of a Service; empty when it has none.
async fn address(bench: &Bench, namespace: &str, name: &str) -> String {
    let service = json!(services(bench, namespace).get(name).await.unwrap());
    service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().unwrap_or_default().into()
}

/// Waits until a Service has that address, and the device has exactly these.
async fn until(bench: &Bench, (namespace, name): (&str, &str), expected: &str, all: &[&str]) {
    let end = Instant::now() + PATIENCE;
    let on_device = || -> Vec<String> {
        let shown: Value = serde_json::from_str(&ip(&["-json", "-4", "address", "show", "dev", "pool0"])).unwrap();
        let mut list: Vec<_> = shown[0]["addr_info"].as_array().into_iter().flatten().map(|one| one["local"].as_str().unwrap().to_string()).collect();
        list.sort();
        list
    };
    loop {
        let now = (address(bench, namespace, name).await, on_device());
        if now.0 == expected && now.1 == all {
            return;
        }
        assert!(Instant::now() < end, "{namespace}/{name} has {now:?} and not {expected} of {all:?}\n{}", bench.story());
        sleep(Duration::from_millis(100)).await;
    }
}

/// What a Service was told as often as it was.
async fn told(bench: &Bench, namespace: &str, name: &str, reason: &str) -> Vec<String> {
    let (end, which) = (Instant::now() + PATIENCE, ListParams::default().fields(&format!("involvedObject.name={name},reason={reason}")));
    loop {
        let events = Api::<Event>::namespaced(bench.client.clone(), namespace).list(&which).await.unwrap().items;
        if !events.is_empty() {
            return events.into_iter().map(|event| event.message.unwrap_or_default()).collect();
        }
        assert!(Instant::now() < end, "{namespace}/{name} was not told of {reason}\n{}", bench.story());
        sleep(Duration::from_millis(100)).await;
    }
}

pub async fn of_a_pool(mut bench: Bench) {
    let root = bench.path("root");
    fs::write(root.join(POOL), "- 10.99.0.8\n- 10.99.0.4-10.99.0.5\n").unwrap();
    let program = String::from_utf8(run(Command::new("which").arg("ip"))).unwrap();
    symlink(program.trim(), root.join("usr/bin/ip")).unwrap();
    // A node makes a dummy device, which not every kernel has that tests run on.
    ip(&["link", "add", "pool0", "type", "veth", "peer", "name", "other0"]);
    ip(&["address", "add", "10.99.0.77/32", "dev", "pool0"]);
    for namespace in ["one", "two"] {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        bench.all::<Namespace>().create(&PostParams::default(), &namespace).await.unwrap();
    }
    make(&bench, "one", "web", json!({"loadBalancerIP": "10.99.0.5"})).await;
    make(&bench, "one", "foreign", json!({"loadBalancerClass": "example.org/other"})).await;
    make(&bench, "one", "inside", json!({"type": "ClusterIP", "allocateLoadBalancerNodePorts": null})).await;
    bench.start();
    // What nobody has any more went with the first look.
    until(&bench, ("one", "web"), "10.99.0.5", &["10.99.0.5"]).await;
    make(&bench, "two", "web", json!({})).await;
    until(&bench, ("two", "web"), "10.99.0.8", &["10.99.0.5", "10.99.0.8"]).await;
    make(&bench, "two", "mail", json!({"loadBalancerClass": "chasi-bod.io/pool"})).await;
    let all = ["10.99.0.4", "10.99.0.5", "10.99.0.8"];
    until(&bench, ("two", "mail"), "10.99.0.4", &all).await;
    full_until_one_goes(&bench, &all).await;
    started_again_nothing_changes(&mut bench, &all).await;
    bench.kill();
}

async fn full_until_one_goes(bench: &Bench, all: &[&str]) {
    make(bench, "one", "late", json!({})).await;
    make(bench, "one", "greedy", json!({"loadBalancerIP": "10.99.0.8"})).await;
    make(bench, "one", "astray", json!({"loadBalancerIP": "192.0.2.1"})).await;
    let full = told(bench, "one", "late", "PoolExhausted").await;
    assert_eq!(full, ["all 3 addresses of the pool are taken; it gets one as soon as a Service goes that has one"]);
    assert_eq!(told(bench, "one", "greedy", "AddressRefused").await, ["spec.loadBalancerIP: 10.99.0.8 is that of Service two/web"]);
    assert_eq!(told(bench, "one", "astray", "AddressRefused").await, ["spec.loadBalancerIP: 192.0.2.1 is not in the pool"]);
    until(bench, ("one", "late"), "", all).await;
    services(bench, "two").delete("mail", &DeleteParams::default()).await.unwrap();
    until(bench, ("one", "late"), "10.99.0.4", all).await;
    // One that wants an address no more gives it back, too.
    let inside = Patch::Merge(json!({"spec": {"type": "ClusterIP", "allocateLoadBalancerNodePorts": null}}));
    services(bench, "two").patch("web", &PatchParams::default(), &inside).await.unwrap();
    until(bench, ("one", "greedy"), "10.99.0.8", all).await;
    for (name, why) in [("foreign", "another controller's"), ("inside", "not asked for"), ("astray", "not to be had")] {
        assert_eq!(address(bench, "one", name).await, "", "{name}: {why}");
    }
}

async fn started_again_nothing_changes(bench: &mut Bench, all: &[&str]) {
    let versions = |list: Vec<Service>| -> Vec<_> { list.iter().map(ResourceExt::resource_version).collect() };
    let before = versions(services(bench, "one").list(&ListParams::default()).await.unwrap().items);
    bench.kill();
    ip(&["address", "del", "10.99.0.4/32", "dev", "pool0"]);
    bench.start();
    until(bench, ("one", "late"), "10.99.0.4", all).await;
    assert_eq!(versions(services(bench, "one").list(&ListParams::default()).await.unwrap().items), before);
}
