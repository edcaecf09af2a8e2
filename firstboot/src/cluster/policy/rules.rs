//! From NetworkPolicies to the rules of a node: what the objects mean (`networking.k8s.io/v1`, Kubernetes documentation "Network Policies") as text
//! for nft(8). Pure: the same objects give the same text.
//!
//! A pod that no policy selects for a direction is not mentioned and free. One that a policy selects has a chain for that direction with a `return` for
//! all that some policy allows, and a `drop` at its end. The sender's chain is asked on the sender's node, the receiver's on the receiver's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Name of our table, of which nothing else changes anything.
const TABLE: &str = "ip chasi-bod-policies";

type Labels = BTreeMap<String, String>;

/// What policies speak of, as the API has it.
pub struct World {
    /// All namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// All pods of the cluster.
    pub pods: Vec<Arc<Pod>>,
    /// All policies.
    pub policies: Vec<Arc<NetworkPolicy>>,
}

/// A pod that has an address of its own.
struct Peer<'a> {
    pod: &'a Pod,
    namespace: &'a str,
    address: Ipv4Addr,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::In => "to",
            Self::Out => "from",
        }
    }

    /// Which end of a packet is the other one.
    fn other(self) -> &'static str {
        match self {
            Self::In => "saddr",
            Self::Out => "daddr",
        }
    }
}

impl World {
    /// The table for a node, made anew in one transaction; none when no pod here is selected, so that packets pay nothing.
    pub fn rules(&self, node: &str) -> String {
        let peers = self.peers();
        let gone = format!("table {TABLE}\ndelete table {TABLE}\n");
        let mut text = format!("{gone}table {TABLE} {{\n");
        let (mut maps, mut selected) = (String::new(), 0);
        for direction in [Direction::Out, Direction::In] {
            let mut elements = Vec::new();
            for peer in peers.iter().filter(|peer| peer.node() == Some(node)) {
                let Some(allowed) = self.allowed(peer, direction, &peers) else { continue };
                let chain = format!("{}-{}", direction.name(), peer.address);
                let _ = writeln!(text, "\tchain {chain} {{\n\t\tip {} {} return", direction.other(), peer.address);
                allowed.iter().for_each(|rule| _ = writeln!(text, "\t\t{rule}return"));
                text.push_str("\t\tdrop\n\t}\n");
                elements.push(format!("{} : jump {chain}", peer.address));
            }
            selected += elements.len();
            let list = if elements.is_empty() { String::new() } else { format!("\t\telements = {{ {} }}\n", elements.join(", ")) };
            let _ = writeln!(maps, "\tmap {}-pods {{\n\t\ttype ipv4_addr : verdict\n{list}\t}}", direction.name());
        }
        if selected == 0 {
            return gone;
        }
        // What goes from the node itself to its pods passes no hook of these: the kubelet's probes. Answers go with their question.
        let hook = |name| {
            format!(
                "\tchain {name} {{\n\t\ttype filter hook {name} priority filter - 10; policy accept;\n\t\tct state established,related accept\n\t\tip saddr vmap @from-pods\n"
            )
        };
        text + &maps + &hook("forward") + "\t\tip daddr vmap @to-pods\n\t}\n" + &hook("input") + "\t}\n}\n"
    }

    /// Pods that still run, without those that share a node's address.
    fn peers(&self) -> Vec<Peer<'_>> {
        let mut out: Vec<_> = self.pods.iter().filter_map(|pod| Peer::of(pod)).collect();
        out.sort_by_key(|peer| peer.address);
        // An address that went from one pod to the next belongs to the younger.
        out.dedup_by(|later, kept| {
            let same = later.address == kept.address;
            if same && later.pod.metadata.creation_timestamp > kept.pod.metadata.creation_timestamp {
                std::mem::swap(later, kept);
            }
            same
        });
        out
    }

    /// What policies allow a pod in a direction, as matches; `None` when none selects it.
    fn allowed(&self, pod: &Peer, direction: Direction, peers: &[Peer]) -> Option<BTreeSet<String>> {
        let mut selecting = self.policies.iter().filter(|policy| concerns(policy, pod, direction)).peekable();
        selecting.peek()?;
        let mut out = BTreeSet::new();
        for policy in selecting {
            let (Some(spec), Some(namespace)) = (&policy.spec, &policy.metadata.namespace) else { continue };
            let rules: Vec<_> = match direction {
                Direction::In => spec.ingress.iter().flatten().map(|rule| (rule.from.as_deref(), rule.ports.as_deref())).collect(),
                Direction::Out => spec.egress.iter().flatten().map(|rule| (rule.to.as_deref(), rule.ports.as_deref())).collect(),
            };
            for (others, ports) in rules {
                out.extend(self.matches(pod, direction, namespace, others.unwrap_or_default(), ports.unwrap_or_default(), peers));
            }
        }
        Some(out)
    }

    /// The matches of one rule of a policy; no peers are all, no ports are all.
    fn matches(
        &self,
        pod: &Peer,
        direction: Direction,
        namespace: &str,
        others: &[NetworkPolicyPeer],
        ports: &[NetworkPolicyPort],
        peers: &[Peer],
    ) -> Vec<String> {
        let chosen: Vec<&Peer> =
            peers.iter().filter(|peer| others.is_empty() || others.iter().any(|other| self.is_peer(other, namespace, peer))).collect();
        let end = direction.other();
        let who = |list: &[&Peer]| match list {
            [] => None,
            list => Some(format!("ip {end} {{ {} }} ", list.iter().map(|peer| peer.address.to_string()).collect::<Vec<_>>().join(", "))),
        };
        let mut places: Vec<String> = others.iter().filter_map(|other| other.ip_block.as_ref()).filter_map(|block| range(block, end)).collect();
        places.extend(if others.is_empty() { Some(String::new()) } else { who(&chosen) });
        if ports.is_empty() {
            return places;
        }
        let mut out = Vec::new();
        for port in ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            match (&port.port, direction) {
                (Some(IntOrString::String(name)), Direction::In) => {
                    out.extend(
                        pod.port(name, protocol)
                            .into_iter()
                            .flat_map(|number| places.iter().map(move |place| format!("{place}{}", numbered(protocol, number, None)))),
                    );
                }
                // A name means another number at each receiver.
                (Some(IntOrString::String(name)), Direction::Out) => {
                    let mut by_number = BTreeMap::<i32, Vec<&Peer>>::new();
                    for peer in &chosen {
                        peer.port(name, protocol).into_iter().for_each(|number| by_number.entry(number).or_default().push(peer));
                    }
                    out.extend(by_number.iter().filter_map(|(number, list)| Some(format!("{}{}", who(list)?, numbered(protocol, *number, None)))));
                }
                (Some(IntOrString::Int(number)), _) => {
                    out.extend(places.iter().map(|place| format!("{place}{}", numbered(protocol, *number, port.end_port))))
                }
                (None, _) => out.extend(places.iter().map(|place| format!("{place}meta l4proto {} ", protocol.to_lowercase()))),
            }
        }
        out
    }

    /// Whether a rule's peer means this pod; without a selector of namespaces the policy's own is meant.
    fn is_peer(&self, other: &NetworkPolicyPeer, own: &str, peer: &Peer) -> bool {
        if other.ip_block.is_some() {
            return false;
        }
        let namespace = match &other.namespace_selector {
            None => peer.namespace == own,
            Some(selector) => self
                .namespaces
                .iter()
                .any(|namespace| namespace.metadata.name.as_deref() == Some(peer.namespace) && selects(selector, namespace.metadata.labels.as_ref())),
        };
        namespace && other.pod_selector.as_ref().is_none_or(|selector| selects(selector, peer.pod.metadata.labels.as_ref()))
    }
}

impl<'a> Peer<'a> {
    fn of(pod: &'a Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let address = status.pod_ip.as_deref()?.parse().ok().filter(|_| !ended && spec.host_network != Some(true))?;
        Some(Self { pod, namespace: pod.metadata.namespace.as_deref()?, address })
    }

    fn node(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.node_name.as_deref()
    }

    /// The number of a port that a container names.
    fn port(&self, name: &str, protocol: &str) -> Option<i32> {
        let containers = self.pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
        let found = ports.find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol);
        found.map(|port| port.container_port)
    }
}

/// Whether a policy selects a pod for a direction. Without `policyTypes` it is about ingress, and about egress when it has such rules.
fn concerns(policy: &NetworkPolicy, pod: &Peer, direction: Direction) -> bool {
    let Some(spec) = policy.spec.as_ref().filter(|_| policy.metadata.namespace.as_deref() == Some(pod.namespace)) else { return false };
    let about = match (&spec.policy_types, direction) {
        (Some(types), Direction::In) => types.iter().any(|kind| kind == "Ingress"),
        (Some(types), Direction::Out) => types.iter().any(|kind| kind == "Egress"),
        (None, Direction::In) => true,
        (None, Direction::Out) => spec.egress.is_some(),
    };
    about && spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, pod.pod.metadata.labels.as_ref()))
}

/// Whether a selector fits labels; an empty one fits all. An operator that is not known fits nothing.
fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let is_among = value(&expression.key).is_some_and(|value| expression.values.iter().flatten().any(|wanted| wanted == value));
            match expression.operator.as_str() {
                "In" => is_among,
                "NotIn" => !is_among,
                "Exists" => value(&expression.key).is_some(),
                "DoesNotExist" => value(&expression.key).is_none(),
                _ => false,
            }
        })
}

/// A match for a block of addresses; `None` for IPv6, of which pods have none.
fn range(block: &IPBlock, end: &str) -> Option<String> {
    let is_v4 = |text: &&str| {
        text.split_once('/').is_some_and(|(address, length)| address.parse::<Ipv4Addr>().is_ok() && length.parse::<u8>().is_ok_and(|n| n <= 32))
    };
    let cidr = Some(block.cidr.as_str()).filter(is_v4)?;
    let except: Vec<_> = block.except.iter().flatten().map(String::as_str).filter(is_v4).collect();
    let except = if except.is_empty() { String::new() } else { format!("ip {end} != {{ {} }} ", except.join(", ")) };
    Some(format!("ip {end} {cidr} {except}"))
}

fn numbered(protocol: &str, first: i32, last: Option<i32>) -> String {
    let last = last.map(|last| format!("-{last}")).unwrap_or_default();
    format!("{} dport {first}{last} ", protocol.to_lowercase())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::{Value, json};

    use super::*;

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(namespace: &str, name: &str, address: &str, ports: &Value) -> Value {
        json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": ports}]},
            "status": {"podIP": address, "phase": "Running"},
        })
    }

    fn policy(namespace: &str, spec: &Value) -> Value {
        json!({"metadata": {"namespace": namespace, "name": "p"}, "spec": spec})
    }

    /// Pods a and b in namespace `one` of team x, pod c in namespace `two`; a and c name port 8080.
    fn world(policies: &[Value]) -> World {
        let web = json!([{"name": "web", "containerPort": 8080}]);
        let pods = [pod("one", "a", "10.244.0.2", &web), pod("one", "b", "10.244.0.3", &json!([])), pod("two", "c", "10.244.0.4", &web)];
        let namespaces = [json!({"metadata": {"name": "one", "labels": {"team": "x"}}}), json!({"metadata": {"name": "two"}})];
        World { namespaces: namespaces.map(of).into(), pods: pods.map(of).into(), policies: policies.iter().cloned().map(of).collect() }
    }

    /// The lines of one chain between its first and its last.
    fn chain(rules: &str, name: &str) -> Option<Vec<String>> {
        let (_, rest) = rules.split_once(&format!("chain {name} {{\n"))?;
        let lines: Vec<_> = rest.split_once("\t}\n")?.0.lines().map(|line| line.trim().to_string()).collect();
        assert_eq!(lines.last().map(String::as_str), Some("drop"), "{rules}");
        Some(lines[1..lines.len() - 1].to_vec())
    }

    fn to_b(ingress: &Value) -> Vec<String> {
        let spec = json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": ingress});
        chain(&world(&[policy("one", &spec)]).rules("n1"), "to-10.244.0.3").unwrap()
    }

    #[test]
    fn who_is_selected_by_nothing_is_free() {
        let rules = world(&[]).rules("n1");
        assert!(!rules.contains("drop") && !rules.contains("elements"), "{rules}");
        assert!(rules.ends_with("delete table ip chasi-bod-policies\n"), "hooks without need: {rules}");
        let elsewhere = world(&[policy("one", &json!({"podSelector": {}}))]);
        assert!(!elsewhere.rules("n2").contains("10.244"), "rules for pods of another node");
        let rules = elsewhere.rules("n1");
        assert_eq!((chain(&rules, "to-10.244.0.2"), chain(&rules, "from-10.244.0.2"), chain(&rules, "to-10.244.0.4")), (Some(vec![]), None, None));
    }

    #[test]
    fn peers_are_pods_of_the_own_namespace_of_others_or_blocks() {
        assert_eq!(to_b(&json!([{}])), ["return"], "an empty rule is all");
        assert_eq!(to_b(&json!([{"from": [{"podSelector": {}}]}])), ["ip saddr { 10.244.0.2, 10.244.0.3 } return"]);
        assert_eq!(to_b(&json!([{"from": [{"namespaceSelector": {}}]}])), ["ip saddr { 10.244.0.2, 10.244.0.3, 10.244.0.4 } return"]);
        let both = json!([{"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["b"]}]}}]}]);
        assert_eq!(to_b(&both), ["ip saddr { 10.244.0.2 } return"]);
        let block =
            json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16", "fd00::/8"]}}, {"ipBlock": {"cidr": "fd00::/8"}}]}]);
        assert_eq!(to_b(&block), ["ip saddr 10.0.0.0/8 ip saddr != { 10.244.0.0/16 } return"]);
        assert_eq!(to_b(&json!([{"from": [{"podSelector": {"matchLabels": {"app": "none"}}}]}])), Vec::<String>::new(), "nobody is not everybody");
        assert_eq!(
            to_b(&json!([{"from": [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Near"}]}}]}])),
            Vec::<String>::new()
        );
    }

    #[test]
    fn ports_have_protocols_ranges_and_names() {
        let ports = json!([{"port": 80}, {"protocol": "UDP", "port": 5000, "endPort": 5010}, {"protocol": "SCTP"}, {"port": "web"}]);
        assert_eq!(
            to_b(&json!([{"ports": ports}])),
            ["meta l4proto sctp return", "tcp dport 80 return", "udp dport 5000-5010 return"],
            "b names no port"
        );
        let spec = json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}]});
        let rules = world(&[policy("one", &spec)]).rules("n1");
        assert_eq!(chain(&rules, "from-10.244.0.3").unwrap(), ["ip daddr { 10.244.0.2, 10.244.0.4 } tcp dport 8080 return"]);
        assert_eq!(chain(&rules, "to-10.244.0.3"), None, "a policy for egress says nothing of ingress");
    }

    #[test]
    fn pods_that_ended_or_share_the_nodes_address_are_nobody_and_an_address_is_its_last_owners() {
        let mut all = world(&[policy("one", &json!({"podSelector": {}}))]);
        let mut old = pod("one", "old", "10.244.0.2", &json!([]));
        old["metadata"]["labels"] = json!({});
        old["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
        let mut ended = pod("one", "ended", "10.244.0.9", &json!([]));
        ended["status"]["phase"] = json!("Succeeded");
        let mut host = pod("one", "host", "10.0.0.1", &json!([]));
        host["spec"]["hostNetwork"] = json!(true);
        all.pods.extend([old, ended, host].map(of));
        let rules = all.rules("n1");
        assert!(!rules.contains("10.244.0.9") && !rules.contains("10.0.0.1"), "{rules}");
        assert_eq!(rules.matches("10.244.0.2 : jump").count(), 1, "{rules}");
    }

    /// A bridge with three pods in the kernel of this machine, in namespaces of the test's own; each asks each, and the node.
    #[test]
    fn a_real_kernel_lets_through_what_policies_allow_and_nothing_else() {
        let b = json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 80}]}]});
        let c = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}], "ports": [{"port": "web"}]}]});
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("rules");
        std::fs::write(&rules, world(&[policy("one", &b), policy("two", &c)]).rules("n1")).unwrap();
        let script = include_str!("../../../tests/policies/bridge.sh");
        let done = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec", script, "bridge"])
            .arg(&rules)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
        let expected = [
            // a is free both ways, b takes a's questions at port 80, c may ask for the port that a names.
            "2 1 80 yes",
            "2 3 80 yes",
            "2 3 8080 no",
            "2 4 80 yes",
            "2 4 8080 yes",
            "3 1 80 yes",
            "3 2 80 yes",
            "3 2 8080 yes",
            "3 4 80 yes",
            "3 4 8080 yes",
            "4 1 80 no",
            "4 2 80 no",
            "4 2 8080 yes",
            "4 3 80 no",
            "4 3 8080 no",
            // The node asks its pods as the kubelet does.
            "1 3 80 yes",
            "1 3 8080 yes",
            "1 4 80 yes",
        ];
        for line in expected {
            assert!(said.lines().any(|said| said == line), "`{line}` is not in:\n{said}");
        }
    }
}
