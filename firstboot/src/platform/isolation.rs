//! The host that virtual clusters are isolated from, as the API has it, and whether anybody enforces that.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use layers::platform::check::Ranges;
use layers::platform::isolation::Host as Surroundings;
use layers::{Context as _, Error, Fault, Result};

use crate::cluster::CNI;
use crate::host::Host;

/// Nodes and the API server's endpoints.
pub async fn surroundings(client: &Client, ranges: Ranges) -> Result<Surroundings> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.fault(Fault::Environment, || "listing nodes".into())?;
    let addresses = nodes.items.into_iter().filter_map(|node| node.status?.addresses).flatten();
    let mut nodes: Vec<IpAddr> = addresses.filter(|address| address.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect();
    let of_api = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default").list(&of_api).await;
    let mut api = Vec::new();
    for slice in slices.fault(Fault::Environment, || "listing the API server's endpoints".into())? {
        let addresses = slice.endpoints.into_iter().flatten().flat_map(|endpoint| endpoint.addresses);
        let addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
        for port in slice.ports.into_iter().flatten().filter_map(|port| port.port) {
            api.extend(addresses.iter().map(|address| (*address, port)));
        }
    }
    nodes.sort_unstable();
    api.sort_unstable();
    if nodes.is_empty() || api.is_empty() {
        // As in the first seconds of a cluster: policies made of this would shut what must be open.
        return Err(Error::environment("looking for the addresses of nodes and API server: the API does not know them yet"));
    }
    Ok(Surroundings { pods: ranges.pods, services: ranges.services, nodes, api })
}

/// Name of the pod network that is not the built-in one; nobody knows whether such a one enforces policies.
pub fn foreign_network(host: &Host) -> Option<String> {
    let (folder, own) = CNI.rsplit_once('/')?;
    // The first by name is the one that containerd takes.
    let first = host.names(folder).into_iter().find(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)));
    first.filter(|name| name != own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_network_before_the_own_one_is_foreign() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        assert_eq!(foreign_network(&host), None);
        host.write(CNI, b"{}", 0o600).unwrap();
        host.write("etc/cni/net.d/05-calico.conflist.disabled", b"{}", 0o600).unwrap();
        assert_eq!(foreign_network(&host), None);
        host.write("etc/cni/net.d/05-calico.conflist", b"{}", 0o600).unwrap();
        assert_eq!(foreign_network(&host).as_deref(), Some("05-calico.conflist"));
    }
}
