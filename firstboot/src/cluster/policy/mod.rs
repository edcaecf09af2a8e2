//! NetworkPolicies, enforced on the node by nftables: pods on one bridge pass the same hooks, as the node's sysctls ask for (`br_netfilter`).
//!
//! Between the start of a pod and the API's knowledge of its address, about a second, it is free.

mod rules;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use layers::Result;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

use super::routes::{Troubles, WATCH};
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
    let namespaces = mirror::<Namespace>(Api::all(client.clone()), &mut mirrors, &changed, &troubles);
    let pods = mirror::<Pod>(Api::all(client.clone()), &mut mirrors, &changed, &troubles);
    let policies = mirror::<NetworkPolicy>(Api::all(client), &mut mirrors, &changed, &troubles);
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

/// A copy of all objects of a kind that follows the API in a task of its own.
fn mirror<K>(api: Api<K>, tasks: &mut JoinSet<()>, changed: &Arc<Notify>, troubles: &Troubles) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default().timeout(WATCH)).default_backoff();
    // Half of an object's size, and nobody here reads it.
    let events = events.modify(|object| object.managed_fields_mut().clear()).reflect(writer).touched_objects();
    let (changed, troubles) = (changed.clone(), troubles.clone());
    tasks.spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => troubles.set(vec![format!("network policies: {error}")]),
            }
        }
    });
    store
}

/// Gives the kernel the table, whole or not at all.
fn load(host: &Host, rules: &str) -> Result<()> {
    let path = format!("{RUN}/policies.nft");
    host.write(&path, rules.as_bytes(), 0o600)?;
    exec::run(host.program("nft").arg("-f").arg(host.path(&path))).map(drop)
}
