//! Routes to the pods of the other nodes: the range of each by its address, as all nodes are on one link. Another way to reach a node, such as
//! VXLAN, would be another kind of [`Routes`] entry; who wants which route stays the same.
//!
//! The routes are made with ip(8): they change when a node comes or goes, and a process then costs nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt as _};
use layers::range::Range;
use layers::{Context, Fault, Result};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

use super::kubeadm::ENDPOINT_NAME;
use super::{RETRY, shared};
use crate::exec;
use crate::host::Host;
use crate::steps::set_further_names;

/// Marks our routes among all others (rtnetlink(7), rtm_protocol; the numbers from 192 on are nobody's).
const PROTOCOL: &str = "196";
/// How often the kernel's table is compared: a link that was down has lost its routes.
const CHECK: Duration = Duration::from_secs(10);
/// Seconds after which the API server ends a watch; below the client's own limit.
pub const WATCH: u32 = 240;

/// Label of a control plane's Node object.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Pod range to the address of its node.
type Routes = BTreeMap<Range, Ipv4Addr>;

/// What keeps other nodes' pods out of reach, for the node's condition.
#[derive(Clone, Default)]
pub struct Troubles(Arc<Mutex<Vec<String>>>);

impl Troubles {
    /// What there is now.
    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what there is from now on.
    pub fn set(&self, now: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Keeps the routes right until the runtime ends.
pub async fn keep(client: Client, own: String, pods: Range, troubles: Troubles) {
    loop {
        if let Err(error) = follow(&client, &own, pods, &troubles).await {
            troubles.set(vec![format!("the list of nodes: {error}")]);
        }
        sleep(RETRY).await;
    }
}

/// Follows the Node objects until the API server ends that, which it does now and then.
async fn follow(client: &Client, own: &str, pods: Range, troubles: &Troubles) -> std::result::Result<(), kube::Error> {
    let (host, api) = (Host::new("/"), Api::<NodeObject>::all(client.clone()));
    // From the API server's cache: hundreds of nodes may ask at once.
    let list = api.list(&ListParams::default().match_any()).await?;
    let name = |node: &NodeObject| node.metadata.name.clone().unwrap_or_default();
    let mut nodes: BTreeMap<_, _> = list.items.into_iter().map(|node| (name(&node), node)).collect();
    let version = list.metadata.resource_version.unwrap_or_default();
    let mut events = pin!(api.watch(&WatchParams::default().timeout(WATCH), &version).await?);
    loop {
        let planes = control_planes(nodes.values(), own);
        let named = name_control_planes(&host, &planes).err().map(|error| error.to_string());
        let shared = shared::keep(&host, &planes).unwrap_or_else(|error| Some(error.to_string()));
        let settled = settle(&host, &wanted(nodes.values(), own, pods)).unwrap_or_else(|error| vec![error.to_string()]);
        troubles.set(settled.into_iter().chain(named).chain(shared).collect());
        match timeout(CHECK, events.next()).await {
            Err(_) => {}
            Ok(None) => return Ok(()),
            Ok(Some(event)) => match event? {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => _ = nodes.insert(name(&node), node),
                WatchEvent::Deleted(node) => _ = nodes.remove(&name(&node)),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            },
        }
    }
}

/// Addresses of the control planes, the node's own first: whoever looks for the API tries them in this order.
fn control_planes<'a>(nodes: impl Iterator<Item = &'a NodeObject>, own: &str) -> Vec<IpAddr> {
    let planes = nodes.filter(|node| node.labels().contains_key(CONTROL_PLANE));
    let mut found: Vec<_> = planes.filter_map(|node| Some((node.name_any() != own, address(node)?))).collect();
    found.sort();
    found.into_iter().map(|(_, address)| address).collect()
}

/// Gives the API's name their addresses; where none are known yet, it keeps those that it has.
fn name_control_planes(host: &Host, addresses: &[IpAddr]) -> Result<()> {
    let lines: String = addresses.iter().map(|address| format!("{address} {ENDPOINT_NAME}\n")).collect();
    if lines.is_empty() { Ok(()) } else { set_further_names(host, &lines) }
}

/// The address that a node is reached by.
fn address<T: FromStr>(node: &NodeObject) -> Option<T> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

/// The routes that a node needs; a range that is not the cluster's to give leads nowhere.
fn wanted<'a>(nodes: impl Iterator<Item = &'a NodeObject>, own: &str, pods: Range) -> Routes {
    let others = nodes.filter(|node| node.metadata.name.as_deref() != Some(own));
    let route = |node: &NodeObject| {
        let range = Range::parse(node.spec.as_ref()?.pod_cidr.as_deref()?).filter(|range| pods.holds(*range))?;
        Some((range, address(node)?))
    };
    others.filter_map(route).collect()
}

/// Makes the kernel's routes of ours the wanted ones; returns those that it does not take.
fn settle(host: &Host, wanted: &Routes) -> Result<Vec<String>> {
    let present = present(host)?;
    for range in present.keys().filter(|range| !wanted.contains_key(range)) {
        exec::run(host.program("ip").args(["-4", "route", "del", &range.to_string(), "proto", PROTOCOL]))?;
    }
    let missing = wanted.iter().filter(|(range, address)| present.get(range) != Some(address));
    let add = |(range, address): (&Range, &Ipv4Addr)| {
        let (range, address) = (range.to_string(), address.to_string());
        let made = exec::run(host.program("ip").args(["-4", "route", "replace", &range, "via", &address, "proto", PROTOCOL]));
        made.err().map(|error| format!("a route to the pods of {address}: {}", error.to_string().lines().last().unwrap_or_default().trim()))
    };
    Ok(missing.filter_map(add).collect())
}

fn present(host: &Host) -> Result<Routes> {
    let text = exec::run(host.program("ip").args(["-4", "-json", "route", "show", "proto", PROTOCOL]))?.stdout;
    let text = if text.trim_ascii().is_empty() { b"[]".to_vec() } else { text };
    let list: Vec<serde_json::Value> = serde_json::from_slice(&text).fault(Fault::Internal, || "reading the output of `ip -json route`".into())?;
    let route = |route: &serde_json::Value| Some((Range::parse(route["dst"].as_str()?)?, route["gateway"].as_str()?.parse().ok()?));
    Ok(list.iter().filter_map(route).collect())
}

/// Lets nodes read each other's addresses and ranges, and what policies speak of: by itself a node may read its own object and pods only.
pub async fn permit(client: &Client) -> std::result::Result<(), kube::Error> {
    let name = "chasi-bod:pod-network";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
        "rules": [
            {"apiGroups": [""], "resources": ["nodes", "namespaces", "pods"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "list", "watch"]},
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
    });
    let ours = PatchParams::apply("chasi-bod").force();
    Api::<ClusterRole>::all(client.clone()).patch(name, &ours, &Patch::Apply(role)).await?;
    Api::<ClusterRoleBinding>::all(client.clone()).patch(name, &ours, &Patch::Apply(binding)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        Range::parse(text).unwrap()
    }

    fn node(name: &str, range: &str, address: &str) -> NodeObject {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "spec": {"podCIDR": range},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
        }))
        .unwrap()
    }

    #[test]
    fn only_the_clusters_own_ranges_are_routed_to_other_nodes() {
        let nodes = [
            node("self", "10.244.0.0/24", "10.0.0.1"),
            node("two", "10.244.1.0/24", "10.0.0.2"),
            node("thief", "0.0.0.0/0", "10.0.0.3"),
            node("outside", "10.96.0.0/24", "10.0.0.4"),
            node("six", "10.244.2.0/24", "fd00::1"),
            node("three", "10.244.3.0/24", "10.0.0.5"),
        ];
        let found: Vec<_> = wanted(nodes.iter(), "self", range("10.244.0.0/16")).into_iter().map(|(r, a)| format!("{r} {a}")).collect();
        assert_eq!(found, ["10.244.1.0/24 10.0.0.2", "10.244.3.0/24 10.0.0.5"]);
        assert!(wanted([NodeObject::default()].iter(), "self", range("10.244.0.0/16")).is_empty());
    }

    #[test]
    fn the_api_is_first_looked_for_at_home() {
        let plane = |name: &str, address: &str| {
            let mut plane = node(name, "10.244.0.0/24", address);
            plane.metadata.labels = Some([(CONTROL_PLANE.to_string(), String::new())].into());
            plane
        };
        let nodes = [plane("one", "10.0.0.1"), plane("two", "10.0.0.2"), node("three", "10.244.3.0/24", "10.0.0.3")];
        let of = |own: &str| control_planes(nodes.iter(), own).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!((of("two"), of("three")), (vec!["10.0.0.2".to_string(), "10.0.0.1".into()], vec!["10.0.0.1".to_string(), "10.0.0.2".into()]));
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        name_control_planes(&host, &control_planes(nodes.iter(), "two")).unwrap();
        name_control_planes(&host, &[]).unwrap();
        assert!(host.read("etc/hosts").unwrap().unwrap().ends_with("\n10.0.0.2 kube-api.chasi-bod.internal\n10.0.0.1 kube-api.chasi-bod.internal\n"));
    }

    /// The running kernel's table, in a network namespace of the test's own where the machine allows one.
    #[test]
    fn routes_come_change_and_go_in_a_real_kernel() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mut holder = std::process::Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--net",
                "sh",
                "-c",
                "ip link add lan0 type veth peer name lan1 && ip link set lan1 up && ip addr add 10.0.0.1/24 dev lan0 && ip link set lan0 up && echo up && exec cat",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.as_mut().unwrap()), &mut line).unwrap();
        assert_eq!(line, "up\n", "no network namespace to be had");
        let script = format!("#!/bin/sh\nexec nsenter -t {} --user --net --preserve-credentials ip \"$@\"\n", holder.id());
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        std::fs::write(dir.path().join("usr/bin/ip"), script).unwrap();
        std::fs::set_permissions(dir.path().join("usr/bin/ip"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = Host::new(dir.path());
        let routes = |list: &[(&str, [u8; 4])]| list.iter().map(|(r, a)| (range(r), Ipv4Addr::from(*a))).collect::<Routes>();
        for wanted in
            [routes(&[("10.244.1.0/24", [10, 0, 0, 2]), ("10.244.2.0/24", [10, 0, 0, 3])]), routes(&[("10.244.1.0/24", [10, 0, 0, 4])]), routes(&[])]
        {
            assert_eq!(settle(&host, &wanted).unwrap(), Vec::<String>::new());
            assert_eq!(present(&host).unwrap(), wanted);
        }
        let troubles = settle(&host, &routes(&[("10.244.1.0/24", [10, 9, 9, 9])])).unwrap();
        assert!(troubles.len() == 1 && troubles[0].starts_with("a route to the pods of 10.9.9.9: "), "{troubles:?}");
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }
}
