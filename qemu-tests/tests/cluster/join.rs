//! Two machines with the same image on one link: the second joins the first, and pods of both reach each other.

use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;
use qemu_tests::vm::Vm;

use super::{CLIENT, account, formed, kube, policies};

const SECRET: &str = "canary-in-the-coal-mine-0123456789";
/// Pod and node that it runs on.
const PODS: [(&str, &str); 2] = [("one", "founder"), ("two", "member")];

/// Runs a command on the founder until it succeeds, for some minutes.
pub fn eventually(founder: &Node, command: &str) -> String {
    kube(founder, &format!("for try in $(seq 100); do ({command}) 2>/run/why && exit 0; sleep 2; done; cat /run/why >&2; exit 1"))
}

/// A pod on each node, and a Service of the pod's name.
fn start_pods(founder: &Node) {
    for (pod, node) in PODS {
        start_pod(founder, pod, node);
        kube(founder, &format!("kubectl expose pod {pod} --port=8001"));
    }
}

/// A pod on a node that answers HTTP on port 8001 with what the API says to it, and by itself under `/static/`.
pub fn start_pod(founder: &Node, pod: &str, node: &str) {
    let overrides = format!(r#"{{"spec":{{"nodeName":"{node}","terminationGracePeriodSeconds":1}}}}"#);
    let command = "/usr/local/bin/kubectl proxy --address=0.0.0.0 --accept-hosts=.* --www=/usr/local/bin";
    kube(founder, &format!("kubectl run {pod} --image={CLIENT} --overrides='{overrides}' --command -- {command}"));
}

/// The address of a pod.
pub fn address(founder: &Node, pod: &str) -> String {
    kube(founder, &format!("kubectl get pod {pod} -o jsonpath='{{.status.podIP}}'"))
}

/// From a pod on each node: the other pod by its address and by its Service's name, the API by its Service's name.
fn pods_reach_each_other(founder: &Node, member: &Node) {
    eventually(founder, "kubectl wait pod/one pod/two --for=condition=Ready --timeout=5s");
    let from = |pod: &str, arguments: &str| eventually(founder, &format!("kubectl exec {pod} -- /usr/local/bin/kubectl {arguments}"));
    for (pod, other) in [("one", "two"), ("two", "one")] {
        let other_address = address(founder, other);
        for server in [other_address.as_str(), &format!("{other}.default.svc.cluster.local")] {
            let said = from(pod, &format!("--server=http://{server}:8001 get --raw /version"));
            assert!(said.contains("v1.36"), "{pod} to {server}: {said}");
        }
        let authority = "--certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt --token=$(kubectl create token default)";
        assert_eq!(from(pod, &format!("--server=https://kubernetes.default.svc.cluster.local {authority} get --raw /readyz")), "ok");
        founder.ssh(&format!("ping -c 1 -W 5 {other_address}")).unwrap();
    }
    let (one, two) = (address(founder, "one"), address(founder, "two"));
    let seen = member.ssh(&format!("conntrack -L -p tcp --orig-dst {two} --dport 8001 2>/dev/null")).unwrap();
    assert!(seen.contains(&format!("src={one} dst={two}")), "the other node's pod does not show its own address: {seen}");
    let service = kube(founder, "kubectl get service two -o jsonpath='{.spec.clusterIP}'");
    assert!(founder.ssh(&format!("curl -s --max-time 20 http://{service}:8001/version")).unwrap().contains("v1.36"));
}

/// What is not the cluster's sees the node's address: the harness, which knows no way to pods, answers one.
fn what_leaves_the_cluster_is_masqueraded(node: &Node) {
    node.ssh("ip netns exec $(ls /run/netns | head -n 1) ping -c 1 -W 10 10.77.0.1").unwrap();
}

/// The kubelet of each node knows the size of its own machine.
fn reservations_are_the_machines_own(founder: &Node) {
    for (_, node) in PODS {
        let config = kube(founder, &format!("kubectl get --raw /api/v1/nodes/{node}/proxy/configz"));
        assert!(config.contains(r#""systemReserved":{"cpu":"70m""#), "{node}: {config}");
    }
}

fn f6_the_clusters_secret_is_nowhere_to_be_read(node: &Node) {
    assert!(node.ssh("chasi-bod config show").unwrap().contains("cluster.secret         (hidden)"));
    let arguments = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c 'canary-in-the-[c]oal' || true";
    assert_eq!(node.ssh(arguments).unwrap(), "0");
    assert_eq!(node.ssh("journalctl --no-pager -o export | grep -c 'canary-in-the-[c]oal' || true").unwrap(), "0");
    let files =
        node.ssh("grep -rlF --exclude-dir=etcd 'canary-in-the-coal' /etc /var /run/chasi-bod 2>/dev/null | xargs -r stat -c '%a %n'").unwrap();
    assert!(!files.is_empty() && files.lines().all(|line| line.starts_with("600 ")), "{files}");
}

/// The token of a node that has joined is gone.
fn f4_tokens_end_with_their_purpose(founder: &Node) {
    let tokens = "kubectl -n kube-system get secrets --field-selector type=bootstrap.kubernetes.io/token -o json";
    eventually(founder, &format!("test $({tokens} | grep -c token-secret) -le 1"));
}

/// Without a name of its own the node is not taken in, says so, and joins as soon as it has one.
fn f2_a_host_name_of_another_node_is_said(member: &Node, member_vm: &mut Vm) {
    member_vm
        .wait("cluster failed joining through 10.77.0.11:6444: another machine is node founder already; give this node another `hostname`", 60)
        .unwrap();
    member.ssh("chasi-bod config set hostname=member").unwrap();
}

#[test]
fn uml_a_second_node_joins_and_pods_on_both_reach_each_other() {
    let (one, two, net) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Net::new(2).unwrap());
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (mut founder, start_founder) = Node::in_uml(one.path(), &raw, &net, 1).unwrap();
    let (mut member, start_member) = Node::in_uml(two.path(), &raw, &net, 2).unwrap();
    founder.configure(&format!("hostname: founder\ncluster: {{secret: {SECRET}}}\n")).unwrap();
    member.configure(&format!("hostname: founder\ncluster: {{endpoint: 10.77.0.11, secret: {SECRET}}}\n")).unwrap();
    let mut founder_vm = founder.start(start_founder.clone()).unwrap();
    let mut member_vm = member.start(start_member).unwrap();
    member_vm.wait("cluster waiting for 10.77.0.11:6444: ", 300).unwrap();
    println!("UML two nodes: founder Ready and whole {:?} s", formed(&founder, &mut founder_vm));
    f2_a_host_name_of_another_node_is_said(&member, &mut member_vm);
    match member_vm.wait("cluster done", 300) {
        Ok(line) => println!("UML two nodes: {line}"),
        Err(error) => panic!("{error}\n{}\n{}", account(&founder), account(&member)),
    }
    assert_eq!(founder.ssh("chasi-bod cluster secret").unwrap(), SECRET);
    let nodes = kube(&founder, "kubectl get nodes -o wide --no-headers");
    assert!(nodes.lines().count() == 2 && nodes.lines().all(|line| line.contains(" Ready ")) && nodes.contains("10.77.0.12"), "{nodes}");
    start_pods(&founder);
    pods_reach_each_other(&founder, &member);
    [&founder, &member].into_iter().for_each(what_leaves_the_cluster_is_masqueraded);
    reservations_are_the_machines_own(&founder);
    policies::policies_hold_on_one_bridge_and_between_nodes(&founder);
    f4_tokens_end_with_their_purpose(&founder);
    [&founder, &member].into_iter().for_each(f6_the_clusters_secret_is_nowhere_to_be_read);

    founder.shut_down(founder_vm).unwrap();
    let mut founder_vm = founder.start(start_founder).unwrap();
    println!("UML two nodes: founder Ready and whole after a reboot {:?} s", formed(&founder, &mut founder_vm));
    eventually(&founder, "kubectl wait nodes --all --for=condition=Ready --timeout=5s");
    // The kubelet ends pods when its machine shuts down, and nobody makes a bare one again.
    kube(&founder, "kubectl delete pod,service one two");
    start_pods(&founder);
    pods_reach_each_other(&founder, &member);
    member.shut_down(member_vm).unwrap();
    founder.shut_down(founder_vm).unwrap();
}
