//! The controller of the platform's API (`layers/src/platform`), on control planes: of several, the one that holds the Lease works.

mod host;
mod lease;
mod virtual_cluster;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use layers::platform::{VirtualClusterTemplate, definitions};
use layers::seed::Release;
use layers::{Context as _, Error, Fault, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster::{api, seed};
use crate::host::Host;

/// Who applies what the controller applies.
const MANAGER: &str = "chasi-bod";
const PAUSE: Duration = Duration::from_secs(2);
/// The image's templates.
const TEMPLATES: &str = "usr/lib/chasi-bod/platform/templates.yaml";
/// The chart of virtual clusters, by its name in the seed.
const VCLUSTER: &str = "vcluster";

/// Runs the controller whenever this node leads, on a control plane whose API may come and go; returns only when the image has nothing to control.
pub fn keep(host: &Host) {
    let chart = match bundled(host, VCLUSTER) {
        Ok(Some(chart)) => chart,
        Ok(None) => return,
        Err(error) => return println!("platform: {error}"),
    };
    loop {
        if host.path(api::ADMIN).exists()
            && let Err(error) = crate::cluster::runtime().and_then(|runtime| runtime.block_on(lead(host, &chart)))
        {
            println!("platform: {error}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits for the Lease, then works until it is lost.
async fn lead(host: &Host, chart: &Release) -> Result<()> {
    let client = api::client(host, api::PATIENCE).await?;
    let lease = lease::Lease::acquire(client.clone(), &host.line("etc/hostname")).await?;
    println!("platform: this node leads");
    let patient = api::watching(host).await?;
    define(&client).await?;
    bring_templates(host, &client).await?;
    let context = Arc::new(virtual_cluster::Site { client, chart: chart.clone() });
    tokio::select! {
        lost = lease.keep() => lost,
        () = virtual_cluster::run(patient, context) => Err(Error::environment("following VirtualClusters: the watch has ended")),
    }
}

/// A chart of the seed that nobody installs by itself.
fn bundled(host: &Host, name: &str) -> Result<Option<Release>> {
    Ok(seed::read(host)?.releases.into_iter().find(|release| release.name == name && !release.install))
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

/// Gives the API those of the image's templates that it has not: from then on they are people's.
async fn bring_templates(host: &Host, client: &Client) -> Result<()> {
    let Some(text) = host.read(TEMPLATES)? else { return Ok(()) };
    let templates: Vec<VirtualClusterTemplate> = serde_saphyr::from_multiple(&text).fault(Fault::Internal, || format!("reading {TEMPLATES}"))?;
    let api = Api::<VirtualClusterTemplate>::all(client.clone());
    for template in templates {
        match api.create(&PostParams::default(), &template).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made.fault(Fault::Environment, || format!("making template {}", template.name_any()))?),
        }
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
