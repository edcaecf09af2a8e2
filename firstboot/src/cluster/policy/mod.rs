//! NetworkPolicies, enforced on the node by nftables: pods on one bridge pass the same hooks, as the node's sysctls ask for (`br_netfilter`).
//!
//! Between the start of a pod and the API's knowledge of its address, about a second, it is free.

mod rules;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, Client};
use layers::Result;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::mirror::{config, mirror};
use super::routes::Troubles;
use crate::exec;
use crate::host::{Host, RUN};
use rules::World;

/// Many objects change at once.
const GATHER: Duration = Duration::from_millis(100);
/// How long a table that the kernel did not take waits for its next try.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the node's table right until the runtime ends.
pub async fn keep(client: Client, node: String, troubles: Troubles) {
    let (host, mut mirrors, changed) = (Host::new("/"), JoinSet::new(), Arc::new(Notify::new()));
    let namespaces = mirror::<Namespace>(Api::all(client.clone()), config(), &mut mirrors, (&changed, &troubles, "network policies"));
    let pods = mirror::<Pod>(Api::all(client.clone()), config(), &mut mirrors, (&changed, &troubles, "network policies"));
    let policies = mirror::<NetworkPolicy>(Api::all(client), config(), &mut mirrors, (&changed, &troubles, "network policies"));
    // Without one of them the others would free what they must not.
    let _ = (namespaces.wait_until_ready().await, pods.wait_until_ready().await, policies.wait_until_ready().await);
    let mut present = None;
    loop {
        let world = World { namespaces: namespaces.state(), pods: pods.state(), policies: policies.state() };
        let wanted = world.rules(&node);
        let loaded = if present.as_ref() == Some(&wanted) { Ok(()) } else { load(&host, &wanted) };
        // Also ends what a watch has said that works again: it says so again if not.
        troubles.set(loaded.as_ref().err().map(|error| format!("network policies: {error}")).into_iter().collect());
        present = loaded.ok().map(|()| wanted);
        let _ = timeout(AGAIN, changed.notified()).await;
        sleep(GATHER).await;
    }
}

/// Gives the kernel the table, whole or not at all.
fn load(host: &Host, rules: &str) -> Result<()> {
    let path = format!("{RUN}/policies.nft");
    host.write(&path, rules.as_bytes(), 0o600)?;
    exec::run(host.program("nft").arg("-f").arg(host.path(&path))).map(drop)
}
