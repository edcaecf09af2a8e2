//! A port of this machine that leads to a pod through the API server, as `kubectl port-forward` makes one.

use std::net::{Ipv4Addr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use layers::{Context as _, Error, Fault, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::cluster::api::reason;

/// The port; it ends with this value.
#[derive(Debug)]
pub struct Forward {
    pub at: SocketAddr,
    task: AbortHandle,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens one to a pod of a namespace that is ready and has the label.
pub async fn open(client: &Client, namespace: &str, label: &str, port: u16) -> Result<Forward> {
    let opening = || format!("forwarding a port to namespace {namespace}");
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let pods = api.list(&ListParams::default().labels(label)).await;
    let pods = pods.map_err(|error| Error::environment(format!("{}: {}", opening(), reason(&error))))?.items;
    let name = pods.iter().find(|pod| is_ready(pod)).map(Pod::name_any);
    let name = name.ok_or_else(|| Error::environment(format!("{}: no pod {label} is ready there", opening())))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.fault(Fault::Environment, opening)?;
    let at = listener.local_addr().fault(Fault::Environment, opening)?;
    let serve = async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (api, name) = (api.clone(), name.clone());
            // Whoever waits at the other end notices that nothing comes.
            tokio::spawn(async move { carry(&api, &name, port, stream).await });
        }
    };
    Ok(Forward { at, task: tokio::spawn(serve).abort_handle() })
}

async fn carry(api: &Api<Pod>, name: &str, port: u16, mut stream: TcpStream) {
    let Ok(mut forwarder) = api.portforward(name, &[port]).await else { return };
    if let Some(mut there) = forwarder.take_stream(port) {
        drop(tokio::io::copy_bidirectional(&mut stream, &mut there).await);
    }
    forwarder.abort();
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}
