//! What may reach a virtual cluster's pods and what they may reach: NetworkPolicies (`networking.k8s.io/v1`) of its host namespace, for all pods in it,
//! the control plane's among them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::settings::{Network, Plane};
use crate::range::Range;

/// The host that it is isolated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Range of all pods.
    pub pods: Range,
    /// Range of all services.
    pub services: Range,
    /// Addresses of the nodes.
    pub nodes: Vec<IpAddr>,
    /// Addresses and port of the API server, behind its service.
    pub api: Vec<(IpAddr, i32)>,
}

/// The names of the policies, whether a plane has them or not.
pub const NAMES: [&str; 2] = ["chasi-bod-isolation", "chasi-bod-control-plane"];

/// The policies of one virtual cluster; none for a plane that is shared.
pub fn policies(name: &str, network: Option<&Network>, host: &Host) -> Vec<Value> {
    let plane = network.and_then(|network| network.plane).unwrap_or(Plane::Isolated);
    if plane == Plane::Shared {
        return Vec::new();
    }
    // The agent and, for what comes in by a node's port, the node itself ask from a node's address.
    let mut from: Vec<_> = [json!({"podSelector": {}})].into_iter().chain(host.nodes.iter().map(|node| block(*node))).collect();
    let named = network.and_then(|network| network.from_namespaces.as_deref()).unwrap_or_default();
    if !named.is_empty() {
        from.push(json!({"namespaceSelector": {"matchExpressions": [{"key": NAMESPACE, "operator": "In", "values": named}]}}));
    }
    let dns = json!({"namespaceSelector": {"matchLabels": {NAMESPACE: "kube-system"}}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    // CoreDNS listens on its pod's port; a service's is translated before a policy sees it.
    let dns = json!({"to": [dns], "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]});
    let mut egress = vec![json!({"to": [{"podSelector": {}}]}), dns];
    let offered = network.and_then(|network| network.host_services.as_deref()).unwrap_or_default();
    let offered: BTreeSet<_> = offered.iter().filter_map(|service| Some(service.from.split_once('/')?.0)).collect();
    if !offered.is_empty() {
        // A policy sees the pod behind a service. By the namespace, as the service may come later.
        egress.push(json!({"to": [{"namespaceSelector": {"matchExpressions": [{"key": NAMESPACE, "operator": "In", "values": offered}]}}]}));
    }
    if plane == Plane::Isolated {
        let ranges = [host.pods, host.services].map(|range| range.to_string());
        let nodes = host.nodes.iter().filter(|node| node.is_ipv4()).map(|node| format!("{node}/32"));
        let except: Vec<_> = ranges.into_iter().chain(nodes).collect();
        egress.push(json!({"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": except}}]}));
    }
    let api: Vec<_> = host.api.iter().map(|(address, port)| json!({"to": [block(*address)], "ports": [{"protocol": "TCP", "port": port}]})).collect();
    // The pod that copies its data asks the API server, too, for the certificates of the store.
    let app = json!([{"key": "app", "operator": "In", "values": ["vcluster", "vcluster-copy"]}]);
    let control_plane = json!({"matchLabels": {"release": name}, "matchExpressions": app});
    vec![
        policy(NAMES[0], &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": from}], "egress": egress})),
        policy(NAMES[1], &json!({"podSelector": control_plane, "policyTypes": ["Egress"], "egress": api})),
    ]
}

/// The label that every namespace has with its name.
const NAMESPACE: &str = "kubernetes.io/metadata.name";

fn block(address: IpAddr) -> Value {
    json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}})
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(network: &str) -> Vec<Value> {
        let range = |text: &str| Range::parse(text).unwrap();
        let (pods, services) = (range("10.244.0.0/16"), range("10.96.0.0/12"));
        let host = Host { pods, services, nodes: vec!["192.0.2.1".parse().unwrap()], api: vec![("192.0.2.1".parse().unwrap(), 6443)] };
        policies("biz", Some(&serde_saphyr::from_str(network).unwrap()), &host)
    }

    #[test]
    fn an_isolated_cluster_reaches_itself_names_and_the_outside_but_nothing_of_its_host() {
        let made = of("{fromNamespaces: [ingress]}");
        let spec = &made[0]["spec"];
        assert_eq!(spec["podSelector"], json!({}));
        assert_eq!(
            spec["ingress"],
            json!([{"from": [
                {"podSelector": {}},
                {"ipBlock": {"cidr": "192.0.2.1/32"}},
                {"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["ingress"]}]}},
            ]}])
        );
        assert_eq!(spec["egress"][0], json!({"to": [{"podSelector": {}}]}));
        let outside = json!({"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16", "10.96.0.0/12", "192.0.2.1/32"]});
        assert_eq!(spec["egress"][2]["to"][0]["ipBlock"], outside);
        // Only the control plane and what copies its data speak with the host's API.
        let app = json!([{"key": "app", "operator": "In", "values": ["vcluster", "vcluster-copy"]}]);
        assert_eq!(made[1]["spec"]["podSelector"], json!({"matchLabels": {"release": "biz"}, "matchExpressions": app}));
        let api = json!([{"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"protocol": "TCP", "port": 6443}]}]);
        assert_eq!(made[1]["spec"]["egress"], api);
    }

    #[test]
    fn services_of_the_host_that_are_offered_open_the_way_to_their_namespaces() {
        let made = of("{plane: closed, hostServices: [{from: db/main, to: web/db}, {from: db/other}, {from: mail/smtp}]}");
        let spaces = json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["db", "mail"]});
        assert_eq!(made[0]["spec"]["egress"][2], json!({"to": [{"namespaceSelector": {"matchExpressions": [spaces]}}]}));
        assert_eq!(made[0]["spec"]["egress"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_closed_one_has_no_way_out_and_a_shared_one_no_rules() {
        assert!(of("{plane: closed}")[0]["spec"]["egress"].as_array().unwrap().iter().all(|rule| rule["to"][0]["ipBlock"].is_null()));
        assert!(of("{plane: shared}").is_empty());
    }
}
