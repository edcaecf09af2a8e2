//! One address for the API servers of all control planes, which one that works has: keepalived's VRRP (RFC 9568), from node to node instead of by
//! multicast, which many networks do not pass on. It needs neither the API nor etcd, so the address moves also while they are on their way back.

use std::net::IpAddr;
use std::time::Duration;

use kube::config::Kubeconfig;
use layers::units::Digest;
use layers::{Error, Result};

use super::{api, exists, kubeadm, runtime};
use crate::agent::addresses;
use crate::config;
use crate::host::{Change, Host, RUN};
use crate::status::Address;
use crate::steps::systemctl;

const DAEMON: &str = "usr/sbin/keepalived";
const UNIT: &str = "keepalived.service";
/// Longest answer of an API server that is called ready, in seconds.
const LIMIT: u64 = 3;

fn path() -> String {
    format!("{RUN}/keepalived.conf")
}

/// Lets this node take part in having the address, if it is a control plane; `planes` are the addresses of all, its own first. What is in the way is
/// returned.
pub fn keep(host: &Host, planes: &[IpAddr]) -> Result<Option<String>> {
    let wanted = config::published(host).and_then(|settings| settings.shared_address());
    let (Some(address), Some((own, others)), true) = (wanted, planes.split_first(), exists(host, api::ADMIN)) else {
        if host.remove(&path())? == Change::Made {
            systemctl(host, &["stop", UNIT])?;
        }
        return Ok(None);
    };
    if !exists(host, DAEMON) {
        return Ok(Some("`controlPlane.address`: the image has no keepalived (layer `ha`)".into()));
    }
    let device = addresses::list(host).into_iter().find(|there| Address::ip(there) == Some(*own)).map(|there| there.interface);
    let Some(device) = device.filter(|_| planes.iter().all(|plane| plane.is_ipv4() == address.is_ipv4())) else {
        return Ok(Some(format!("`controlPlane.address` {address}: the control planes have no addresses of its kind")));
    };
    if host.write(&path(), configuration(address, &device, own, others).as_bytes(), 0o600)? == Change::Made {
        systemctl(host, &["reload-or-restart", UNIT])?;
    }
    Ok(None)
}

/// The configuration of keepalived (keepalived.conf(5)).
fn configuration(address: IpAddr, device: &str, own: &IpAddr, others: &[IpAddr]) -> String {
    // Two clusters of one link have two numbers, most probably; the peers that are named keep them apart in any case.
    let number = Digest::of(address.to_string().as_bytes()).0[0].max(1);
    let peers: String = others.iter().map(|other| format!("    {other}\n")).collect();
    let length = if address.is_ipv4() { 32 } else { 128 };
    format!(
        "global_defs {{\n  enable_script_security\n  script_user root\n  vrrp_garp_master_refresh 60\n}}\n\
         vrrp_script api {{\n  script \"/usr/bin/chasi-bod cluster probe\"\n  interval 2\n  timeout {LIMIT}\n  fall 2\n  rise 1\n}}\n\
         vrrp_instance api {{\n  state BACKUP\n  nopreempt\n  interface {device}\n  virtual_router_id {number}\n  priority 100\n  advert_int 1\n  check_unicast_src\n  \
         unicast_src_ip {own}\n  unicast_peer {{\n{peers}  }}\n  virtual_ipaddress {{\n    {address}/{length} dev {device}\n  }}\n  \
         track_script {{\n    api\n  }}\n}}\n"
    )
}

/// Whether this node's own API server is ready; the name in the kubeconfig may lead to another one.
pub fn probe(host: &Host) -> Result<()> {
    let asking = || "asking this node's API server whether it is ready".to_string();
    let mut kubeconfig = Kubeconfig::read_from(host.path(api::ADMIN)).map_err(|error| Error::environment(format!("{}: {error}", asking())))?;
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        cluster.server = Some("https://127.0.0.1:6443".into());
        cluster.tls_server_name = Some(kubeadm::ENDPOINT_NAME.into());
    }
    runtime()?.block_on(async {
        let client = api::connect(kubeconfig, Duration::from_secs(LIMIT)).await?;
        let request = hyper::http::Request::get("/readyz").body(Vec::new()).map_err(|error| Error::internal(error.to_string()))?;
        client.request_text(request).await.map(drop).map_err(|error| Error::environment(format!("{}: {}", asking(), api::reason(&error))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_names_its_peers_and_one_that_is_none_gives_the_address_up() {
        let (own, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let text = configuration(IpAddr::from([10, 0, 0, 9]), "eth0", &own, &[other]);
        for line in ["interface eth0", "unicast_src_ip 10.0.0.1", "unicast_peer {\n    10.0.0.2\n  }", "10.0.0.9/32 dev eth0"] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        config::publish(&host, &config::example(&[("controlPlane.address", "10.0.0.9")])).unwrap();
        host.write(&path(), b"old", 0o600).unwrap();
        assert_eq!(keep(&host, &[own, other]).unwrap(), None);
        assert!(!exists(&host, &path()), "a worker has no part in it");
        host.write(api::ADMIN, b"", 0o600).unwrap();
        assert!(keep(&host, &[own, other]).unwrap().unwrap().contains("no keepalived"));
        host.write(DAEMON, b"", 0o755).unwrap();
        assert!(keep(&host, &[own, other]).unwrap().unwrap().contains("no addresses of its kind"));
    }
}
