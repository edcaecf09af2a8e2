//! Machines that have one secret and no roles agree on who founds their cluster; the others join it where beacons say.

use std::path::Path;

use qemu_tests::build::{build, profiles};
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;
use qemu_tests::vm::{Firmware, Vm};
use tempfile::TempDir;

use super::join::eventually;
use super::{account, kube};

const SECRET: &str = "canary-in-the-coal-mine-0123456789";
const OTHER: &str = "another-coal-mine-for-one-machine-42";
/// The address that control planes share.
const SHARED: &str = "10.77.0.99";
const NAMES: [&str; 3] = ["one", "two", "three"];

/// Beacons that a node sends in a minute: a counter of the firewall's, as nobody else uses that port.
fn beacons_in_a_minute(node: &Node) -> u64 {
    let chain = "add chain inet beacons out { type filter hook output priority 0; }";
    node.ssh(&format!("nft add table inet beacons; nft '{chain}'; nft add rule inet beacons out udp dport 6444 counter")).unwrap();
    let count =
        node.ssh("sleep 60; nft list chain inet beacons out | grep -o 'packets [0-9]*' | cut -d' ' -f2; nft delete table inet beacons").unwrap();
    count.parse().unwrap()
}

/// Machines of one image, all switched on.
struct Site {
    nodes: Vec<Node>,
    vms: Vec<Vm>,
    starts: Vec<Firmware>,
    /// What they stand on, for as long as they run.
    below: (Net, Vec<TempDir>),
}

impl Site {
    /// Three nodes of one secret, and a fourth.
    fn switch_on(raw: &Path, control_plane: &str, (fourth, its_secret): (&str, &str)) -> Self {
        let nodes: Vec<_> = NAMES.iter().map(|name| (*name, SECRET)).chain([(fourth, its_secret)]).collect();
        let mut site = Self { nodes: Vec::new(), vms: Vec::new(), starts: Vec::new(), below: (Net::new(nodes.len() as u8).unwrap(), Vec::new()) };
        for (n, (name, secret)) in nodes.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let (mut node, start) = Node::in_uml(folder.path(), raw, &site.below.0, n as u8 + 1).unwrap();
            let cluster = format!("nodes: {{expected: 3}}\ncontrolPlane: {{{control_plane}}}\ncluster: {{secret: {secret}}}\n");
            node.configure(&format!("hostname: {name}\n{cluster}")).unwrap();
            site.vms.push(node.start(start.clone()).unwrap());
            site.nodes.push(node);
            site.starts.push(start);
            site.below.1.push(folder);
        }
        site
    }

    fn done(&mut self, n: usize) {
        if let Err(error) = self.vms[n].wait("cluster done", 900) {
            panic!("{error}\n{}", self.nodes.iter().map(account).collect::<String>());
        }
        println!("UML agreement: node {n} is done {} s after power-on", self.vms[n].age().as_secs());
    }
}

fn is_control_plane(node: &Node) -> bool {
    node.ssh("test -e /etc/kubernetes/admin.conf").is_ok()
}

#[test]
#[ignore = "four nodes, about ten minutes"]
fn soak_uml_f2_f4_nodes_switched_on_at_once_form_one_cluster_and_a_wrong_secret_is_named() {
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let mut site = Site::switch_on(&raw, "replicas: 1", ("stranger", OTHER));
    println!("stranger: {}", site.vms[3].wait("has another cluster secret", 300).unwrap());
    (0..3).for_each(|n| site.done(n));
    let founders: Vec<_> = (0..3).filter(|n| is_control_plane(&site.nodes[*n])).collect();
    assert_eq!(founders.len(), 1);
    let (founder, stranger) = (&site.nodes[founders[0]], &site.nodes[3]);
    eventually(founder, "kubectl wait nodes --all --for=condition=Ready --timeout=5s");
    let list = kube(founder, "kubectl get nodes --no-headers");
    assert!(list.lines().count() == 3 && NAMES.iter().all(|name| list.contains(name)), "{list}");
    // A machine that does not know the secret gets nothing, however long it is there, and then joins without an endpoint.
    assert!(stranger.ssh("test -e /var/lib/chasi-bod/cluster.json").is_err());
    // The cluster of one control plane grows: before the second one comes, the first elects as well.
    let does_not_elect = "grep -l -e --leader-elect=false /etc/kubernetes/manifests/*.yaml | wc -l";
    assert_eq!(founder.ssh(does_not_elect).unwrap(), "2");
    for node in [founder, stranger] {
        node.ssh("chasi-bod config set controlPlane.replicas=3").unwrap();
    }
    // No multicast leads to it any more; the others have no word of it, and answer as it tells one of them directly.
    stranger.beside("bridge", &["link", "set", "dev", "vb4", "mcast_flood", "off"]).unwrap();
    stranger.ssh(&format!("chasi-bod config set nodes.peers={}", site.below.0.link(founders[0] as u8 + 1).address())).unwrap();
    stranger.ssh(&format!("echo {SECRET} | chasi-bod config set cluster.secret=-")).unwrap();
    eventually(founder, "test $(kubectl get nodes --no-headers | grep -c ' Ready ') = 4");
    eventually(founder, "test $(kubectl get nodes -l node-role.kubernetes.io/control-plane --no-headers | wc -l) = 2");
    let electing = "kubectl -n kube-system get pods -l tier=control-plane -o yaml | grep -c -e '- --leader-elect=true'";
    eventually(founder, &format!("test $({electing}) = 4"));
    for node in [founder, stranger] {
        assert_eq!((voters(node), node.ssh(does_not_elect).unwrap().as_str()), (2, "0"));
        let count = beacons_in_a_minute(node);
        println!("UML agreement: {count} beacons a minute");
        assert!(count > 0 && count <= 60);
    }
}

/// Voting members of etcd, as that of a node knows them.
fn voters(node: &Node) -> usize {
    let pki = "/etc/kubernetes/pki/etcd";
    let ask = format!("curl -s --cacert {pki}/ca.crt --cert {pki}/healthcheck-client.crt --key {pki}/healthcheck-client.key");
    let said = node.ssh(&format!("{ask} -d '{{}}' https://127.0.0.1:2379/v3/cluster/member/list")).unwrap();
    let members: serde_json::Value = serde_json::from_str(&said).unwrap();
    members["members"].as_array().unwrap().iter().filter(|member| member["isLearner"] != true).count()
}

/// Writes numbered objects through the address that the control planes share for a minute; the longest time between two that were taken, and how many there are.
fn write_for_a_minute(node: &Node) -> (f64, usize) {
    let write = "kubectl --kubeconfig /run/shared --request-timeout=3s create configmap w$n --from-literal=n=$n >/dev/null 2>&1 && date +%s.%N && echo w$n >>/run/written";
    let script = format!("end=$(($(date +%s)+60)); n=0; date +%s.%N; while test $(date +%s) -lt $end; do n=$((n+1)); {write}; done; true");
    let said = kube(node, &script);
    let times: Vec<f64> = said.lines().map(|line| line.parse().unwrap()).collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    (longest, times.len() - 1)
}

#[test]
#[ignore = "builds another image, four nodes, about a quarter of an hour"]
fn soak_uml_g1_three_control_planes_form_by_themselves_and_go_on_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let profile = format!("extends: {}\nname: site\n", profiles().join("ha.yaml").display());
    std::fs::write(folder.path().join("site.yaml"), profile).unwrap();
    let raw = build(folder.path(), "site", "raw");
    let mut site = Site::switch_on(&raw, &format!("replicas: 3, address: {SHARED}"), ("four", SECRET));
    (0..4).for_each(|n| site.done(n));
    let planes: Vec<usize> = (0..4).filter(|n| is_control_plane(&site.nodes[*n])).collect();
    assert_eq!(planes.len(), 3);
    let has_shared = |node: &Node| node.ssh(&format!("ip -o addr show to {SHARED}/32")).is_ok_and(|said| !said.is_empty());
    let having: Vec<usize> = (0..4).filter(|n| has_shared(&site.nodes[*n])).collect();
    assert!(having.len() == 1 && planes.contains(&having[0]), "one control plane has the address that they share, not {having:?} of {planes:?}");
    let lost = having[0];
    let others: Vec<usize> = planes.into_iter().filter(|n| *n != lost).collect();
    let left = &site.nodes[others[0]];
    left.ssh("chasi-bod kubeconfig >/run/shared && grep -q server:.*https://10.77.0.99:6443 /run/shared").unwrap();
    eventually(left, "kubectl wait nodes --all --for=condition=Ready --timeout=5s");
    eventually(left, "test $(kubectl get nodes -l node-role.kubernetes.io/control-plane --no-headers | wc -l) = 3");
    assert_eq!(voters(left), 3);
    site.vms[lost].kill();
    let (gap, count) = write_for_a_minute(left);
    println!("UML control planes: the one with the shared address killed; {count} objects written, longest gap {gap:.1} s");
    assert_eq!(kube(left, "for name in $(cat /run/written); do kubectl get configmap $name -o name; done | wc -l"), count.to_string());
    assert!(count > 0 && gap <= 15.0);
    let start = site.starts[lost].clone();
    site.vms[lost] = site.nodes[lost].start(start).unwrap();
    site.done(lost);
    eventually(&site.nodes[others[0]], "kubectl wait nodes --all --for=condition=Ready --timeout=5s");
    assert_eq!(voters(&site.nodes[lost]), 3);
}
