//! The bundled helm, which keeps nothing but the release in the cluster.

use std::process::Command;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use layers::seed::CHARTS;
use layers::{Context as _, Fault, Result};
use serde_json::Value;

use super::api::ADMIN;
use crate::exec;
use crate::host::{Host, RUN};

/// helm with the operator's credentials and without a home.
pub fn command(host: &Host) -> Command {
    let mut command = host.program("helm");
    command.arg("--kubeconfig").arg(format!("/{ADMIN}"));
    for (variable, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data"), ("HOME", "home")] {
        command.env(variable, format!("/{RUN}/helm/{folder}"));
    }
    command
}

/// `helm upgrade --install` of a chart that the image brings, without values.
pub fn upgrade(host: &Host, name: &str, namespace: &str, chart: &str) -> Command {
    let mut helm = command(host);
    helm.args(["--history-max", "5", "upgrade", "--install", name]).arg(format!("{CHARTS}/{chart}")).args(["--namespace", namespace]);
    helm
}

/// Installs or upgrades without waiting for what that starts; fields that others wrote since are taken back.
pub fn take(host: &Host, name: &str, namespace: &str, chart: &str, values: &Value) -> Result<()> {
    let file = format!("{RUN}/helm/{namespace}.{name}.json");
    let text = serde_json::to_string(values).fault(Fault::Internal, || format!("writing /{file}"))?;
    host.write(&file, text.as_bytes(), 0o600)?;
    let mut helm = upgrade(host, name, namespace, chart);
    let done = exec::run(helm.args(["--force-conflicts", "--values"]).arg(format!("/{file}"))).map(drop);
    host.remove(&file)?;
    done
}

/// `helm uninstall`, done also when there is no such release.
pub fn uninstall(host: &Host, name: &str, namespace: &str) -> Result<()> {
    exec::run(command(host).args(["uninstall", name, "--namespace", namespace, "--ignore-not-found"])).map(drop)
}

/// Whether the cluster has anything of a release.
pub async fn knows(client: &Client, namespace: &str, name: &str) -> Result<bool> {
    let which = ListParams::default().labels(&format!("owner=helm,name={name}")).limit(1);
    let found = Api::<Secret>::namespaced(client.clone(), namespace).list(&which).await;
    found.map(|found| !found.items.is_empty()).fault(Fault::Environment, || format!("looking for release {name}"))
}

/// States in which helm leaves a release when it is killed.
const PENDING: &str = "owner=helm,status in (pending-install,pending-upgrade,pending-rollback)";

/// Removes the record of an operation that ended with its helm; what it made stays, and the next one takes it over.
pub async fn forget_pending(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let which = ListParams::default().labels(&format!("{PENDING},name={name}"));
    let gone = Api::<Secret>::namespaced(client.clone(), namespace).delete_collection(&DeleteParams::default(), &which).await;
    gone.map(drop).fault(Fault::Environment, || format!("clearing the unfinished operation of release {name}"))
}
