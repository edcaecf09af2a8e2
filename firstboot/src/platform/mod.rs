//! The controllers of the platform, of its API (`layers/src/platform`) and of the addresses for Services, on control planes: of several, the one that
//! holds the Lease works.

mod addresses;
mod bring;
mod certificates;
mod component;
pub(crate) mod copy;
pub(crate) mod exposure;
pub(crate) mod host;
mod isolation;
mod lease;
mod metrics;
mod report;
pub(crate) mod stock;
mod virtual_cluster;

pub use addresses::DEVICE as POOL_DEVICE;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use layers::platform::definitions;
use layers::pool::Pool;
use layers::seed::{Release, Seed};
use layers::{Context as _, Error, Fault, Result};
use metrics::Metrics;
use report::Voice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use stock::Stock;

use crate::cluster::{api, seed};
use crate::host::Host;

/// Who applies what the controller applies.
const MANAGER: &str = "chasi-bod";
const PAUSE: Duration = Duration::from_secs(2);
/// Keeps an object until what it made is gone.
const FINALIZER: &str = "chasi-bod.io/remove";
/// The namespace of what people give to the platform, such as the objects that `valuesFrom` names.
pub(crate) const NAMESPACE: &str = "chasi-bod-system";
/// The chart of virtual clusters, by its name in the seed.
const VCLUSTER: &str = "vcluster";

/// Runs the controllers whenever this node leads, on a control plane whose API may come and go; returns only when the image has nothing to control.
pub fn keep(host: &Host) {
    let (seed, pool) = match seed::read(host).and_then(|seed| Ok((seed, addresses::pool(host)?))) {
        Ok(found) => found,
        Err(error) => return println!("platform: {error}"),
    };
    let chart = seed.releases.iter().find(|release| release.name == VCLUSTER && !release.install);
    if chart.is_none() && pool.is_empty() {
        return;
    }
    let metrics = Arc::new(Metrics::new());
    loop {
        metrics.rest(host);
        if host.path(api::ADMIN).exists()
            && let Err(error) = crate::cluster::runtime().and_then(|runtime| runtime.block_on(lead(host, &seed, (chart, &pool), &metrics)))
        {
            println!("platform: {error}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits for the Lease, then works until it is lost.
async fn lead(host: &Host, seed: &Seed, (chart, pool): (Option<&Release>, &Pool), metrics: &Arc<Metrics>) -> Result<()> {
    let (client, node) = (api::client(host, api::PATIENCE).await?, host.line("etc/hostname"));
    let give_up = || {
        if !pool.is_empty() {
            addresses::release(host)
        }
    };
    let lease = lease::Lease::acquire(client.clone(), &node, give_up).await?;
    println!("platform: this node leads");
    let (patient, voice) = (api::watching(host).await?, Voice::new(&client, &node, metrics));
    tokio::select! {
        lost = lease.keep() => lost,
        () = metrics.keep(host) => ended("metrics"),
        () = addresses::run(host, &client, patient.clone(), &voice, pool), if !pool.is_empty() => ended("Services"),
        ended = objects(host, seed, chart, (&client, &patient), &voice) => ended,
    }
}

/// Follows the objects of the platform's API; forever when the image has no virtual clusters.
async fn objects(host: &Host, seed: &Seed, chart: Option<&Release>, (client, patient): (&Client, &Client), voice: &Voice) -> Result<()> {
    let Some(chart) = chart else { return std::future::pending().await };
    let ranges = crate::cluster::ranges(host)?;
    define(client).await?;
    bring::templates(host, client).await?;
    let stock = Stock::of_host(host)?;
    bring::stock(&stock, client).await?;
    let image = virtual_cluster::Image { chart: chart.clone(), versions: stock.versions() };
    // Nothing can be isolated before; until then the Lease is tried anew.
    isolation::surroundings(client, ranges).await?;
    // Before there are users of virtual clusters.
    exposure::guard(client).await?;
    bring::seed(seed, client).await?;
    tokio::select! {
        () = virtual_cluster::run(host.clone(), client.clone(), patient.clone(), voice.clone(), image, ranges) => ended("VirtualClusters"),
        () = copy::astray(client.clone(), patient.clone(), voice.clone()) => ended("Snapshots and Restores"),
        () = component::run(host.clone(), client.clone(), patient.clone(), voice.clone(), seed.releases.clone()) => ended("Components"),
    }
}

fn ended(what: &str) -> Result<()> {
    Err(Error::environment(format!("following {what}: the watch has ended")))
}

/// Puts the definitions of all kinds into the API, and waits until it serves them.
async fn define(client: &Client) -> Result<()> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap_or_default();
        apply(&api, &name, &definition).await?;
        let served = kube::runtime::wait::await_condition(api.clone(), &name, kube::runtime::conditions::is_crd_established());
        served.await.fault(Fault::Environment, || format!("waiting for definition {name}"))?;
    }
    Ok(())
}

/// Applies one object as the controller's.
async fn apply<K>(api: &Api<K>, name: &str, object: &(impl Serialize + std::fmt::Debug)) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let done = api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await;
    done.map(drop).fault(Fault::Environment, || format!("applying {name}"))
}

/// Does what waits for a program beside everything else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.fault(Fault::Internal, || "working beside the controller".into())?
}

/// An object as the API has it now.
async fn fresh<K>(client: &Client, known: &K) -> Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let found = Api::<K>::all(client.clone()).get_opt(&known.name_any()).await;
    found.fault(Fault::Environment, || format!("reading {} {}", K::kind(&()), known.name_any()))
}

/// Sees to it that an object stays until [`unfinalize`].
async fn finalize<K>(client: &Client, object: &K) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    if object.finalizers().iter().any(|known| known == FINALIZER) {
        return Ok(());
    }
    let all: Vec<_> = object.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    write_finalizers(client, object, &all).await
}

/// Lets an object go.
async fn unfinalize<K>(client: &Client, object: &K) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let others: Vec<_> = object.finalizers().iter().map(String::as_str).filter(|known| *known != FINALIZER).collect();
    write_finalizers(client, object, &others).await
}

async fn write_finalizers<K>(client: &Client, object: &K, list: &[&str]) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    // With the version that was seen, so that nobody else's is lost.
    let patch = Patch::Merge(json!({"metadata": {"finalizers": list, "resourceVersion": object.meta().resource_version}}));
    let done = Api::<K>::all(client.clone()).patch(&object.name_any(), &PatchParams::default(), &patch).await;
    done.map(drop).fault(Fault::Environment, || format!("changing {} {}", K::kind(&()), object.name_any()))
}
