//! What is told of nodes: a table, what is not as it should be, and how much etcd bears.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::quorum::Quorum;
use crate::cluster::api::not_ready;
use crate::cluster::etcd::{Seat, Standing};
use crate::cluster::routes::CONTROL_PLANE;
use crate::verbs::table::{age, table};

/// Whoever is away no longer than this may just be starting again.
const AWAY: Duration = Duration::from_secs(300);

/// The nodes, and what is to say about them.
pub fn listed(nodes: &[Node], standing: Option<&Standing>, now: Timestamp) -> String {
    let rows = nodes.iter().map(|node| {
        let version = node.status.as_ref().and_then(|status| status.node_info.as_ref()).map_or("-", |info| &info.kubelet_version);
        let (role, age) = (if is_plane(node) { "control plane" } else { "worker" }, age(node.creation_timestamp().as_ref(), now));
        [node.name_any(), role.into(), state(node, now), place(node, standing), address(node).unwrap_or("-").into(), version.into(), age]
    });
    let lines = quorum(nodes, standing).into_iter().chain(remarks(nodes, standing, now));
    table(["NAME", "ROLE", "STATE", "ETCD", "ADDRESS", "VERSION", "AGE"], rows) + &lines.map(|line| line + "\n").collect::<String>()
}

pub fn is_plane(node: &Node) -> bool {
    node.labels().contains_key(CONTROL_PLANE)
}

pub fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// Members of etcd by the name of a node: one that came back without its disk may have two.
pub fn seats<'a>(standing: &'a Standing, name: &str) -> Vec<&'a Seat> {
    standing.seats.iter().filter(|seat| seat.member.name == name).collect()
}

/// Since when a node is not Ready: its own last word, or its making when it has not said one.
fn since(node: &Node) -> Option<Time> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    ready.map_or_else(|| node.creation_timestamp(), |ready| ready.last_transition_time.clone())
}

fn state(node: &Node, now: Timestamp) -> String {
    let state = if not_ready(node).is_some() { format!("NotReady for {}", age(since(node).as_ref(), now)) } else { "Ready".into() };
    state + if is_cordoned(node) { ", cordoned" } else { "" }
}

fn address(node: &Node) -> Option<&str> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    addresses.iter().find(|address| address.type_ == "InternalIP").map(|address| address.address.as_str())
}

/// What a member of etcd is.
fn part(seat: &Seat, standing: &Standing) -> &'static str {
    match (seat.learner, seat.member.id == standing.leader) {
        (true, _) => "learner",
        (false, true) => "leader",
        (false, false) => "voter",
    }
}

/// What a node is in etcd, as far as that is known.
fn place(node: &Node, standing: Option<&Standing>) -> String {
    let Some(standing) = standing else { return "-".into() };
    let seats = seats(standing, &node.name_any());
    if seats.is_empty() {
        return if is_plane(node) { "missing" } else { "-" }.into();
    }
    let told = |seat: &&Seat| format!("{}{}", part(seat, standing), if seat.answers { "" } else { ", no answer" });
    seats.iter().map(told).collect::<Vec<_>>().join(" and ")
}

/// How much etcd bears; where it cannot be asked, as far as control planes tell that are Ready.
fn quorum(nodes: &[Node], standing: Option<&Standing>) -> Option<String> {
    if let Some(standing) = standing {
        return Some(Quorum::sentence(standing));
    }
    let votes = by_nodes(nodes)?;
    let told = format!("control planes: {} of {} Ready, etcd needs {}: {}", votes.healthy, votes.voters, votes.needed(), votes.outlook());
    Some(told + " (their nodes tell so much; `chasi-bod nodes list` on a control plane asks etcd itself)")
}

fn by_nodes(nodes: &[Node]) -> Option<Quorum> {
    let planes = || nodes.iter().filter(|node| is_plane(node));
    let healthy = planes().filter(|node| not_ready(node).is_none()).count();
    Some(Quorum { voters: planes().count(), healthy }).filter(|quorum| quorum.voters > 0)
}

/// Members that no node has the name of.
fn strangers<'a>(nodes: &[Node], standing: &'a Standing) -> Vec<&'a Seat> {
    let has_node = |seat: &Seat| nodes.iter().any(|node| node.name_any() == seat.member.name);
    standing.seats.iter().filter(|seat| !has_node(seat)).collect()
}

/// What is not as it should be.
fn remarks(nodes: &[Node], standing: Option<&Standing>, now: Timestamp) -> Vec<String> {
    let away = nodes.iter().filter_map(|node| {
        let (why, since) = (not_ready(node)?, since(node)?);
        let long = now.duration_since(since.0) >= SignedDuration::try_from(AWAY).unwrap_or_default();
        long.then(|| format!("{} is NotReady since {} ({} ago): {why}", node.name_any(), since.0, age(Some(&since), now)))
    });
    let mut lines: Vec<String> = away.collect();
    for seat in standing.map(|standing| strangers(nodes, standing)).unwrap_or_default() {
        lines.push(match (seat.member.name.as_str(), &seat.member.id) {
            ("", id) => format!("member {id} of etcd has not started yet: it is joining, or goes when the next control plane joins"),
            (name, _) => format!("member {name} of etcd has no node: it is joining, or `chasi-bod nodes remove {name}` takes it out"),
        });
    }
    lines
}

/// The same for programs.
pub fn summary(nodes: &[Node], standing: Option<&Standing>) -> Value {
    let etcd = |node: &Node| {
        let (standing, name) = (standing?, node.name_any());
        let seats: Vec<_> = seats(standing, &name).into_iter().map(|seat| member(seat, standing)).collect();
        Some(if seats.is_empty() && is_plane(node) { vec![json!({"state": "missing"})] } else { seats })
    };
    let told = nodes.iter().map(|node| {
        let why = not_ready(node);
        json!({
            "name": node.name_any(), "role": if is_plane(node) { "control-plane" } else { "worker" }, "ready": why.is_none(),
            "notReady": why.map(|why| json!({"since": since(node), "message": why})), "cordoned": is_cordoned(node), "address": address(node),
            "version": node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| &info.kubelet_version),
            "created": node.creation_timestamp(), "etcd": etcd(node),
        })
    });
    let votes = standing.map(Quorum::of).or_else(|| by_nodes(nodes));
    let quorum = votes.map(|votes| {
        let source = if standing.is_some() { "etcd" } else { "nodes" };
        json!({"source": source, "voters": votes.voters, "healthy": votes.healthy, "needed": votes.needed(), "mayBeLost": votes.spare()})
    });
    let strangers = standing.map(|standing| strangers(nodes, standing).into_iter().map(|seat| member(seat, standing)).collect::<Vec<_>>());
    json!({"nodes": told.collect::<Vec<_>>(), "quorum": quorum, "membersWithoutNode": strangers})
}

fn member(seat: &Seat, standing: &Standing) -> Value {
    json!({"id": seat.member.id, "name": seat.member.name, "state": part(seat, standing), "answers": seat.answers})
}

#[cfg(test)]
pub mod tests {
    use super::super::quorum::tests::standing;
    use super::*;

    /// A node of a role, with the status of its condition, and since when, on the first of January.
    pub fn node(name: &str, plane: bool, ready: &str, since: &str) -> Node {
        let labels = if plane { json!({CONTROL_PLANE: "", "kubernetes.io/hostname": name}) } else { json!({"kubernetes.io/hostname": name}) };
        let since = format!("2026-01-01T{since}Z");
        let condition = json!({"type": "Ready", "status": ready, "message": "Kubelet stopped posting", "lastTransitionTime": since});
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "conditions": [condition], "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.3"},
            },
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    #[test]
    fn g2_the_list_has_state_and_vote_of_each_node_and_says_what_may_be_lost() {
        let mut nodes = [
            node("n1", true, "True", "00:00:00"),
            node("n2", true, "Unknown", "00:30:00"),
            node("n3", true, "False", "00:56:00"),
            node("worker", false, "True", "00:00:00"),
        ];
        nodes[3].spec = Some(serde_json::from_value(json!({"unschedulable": true})).unwrap());
        let seen = standing(&[("n1", 'L'), ("n2", 'x'), ("gone", 'v'), ("", 'l')]);
        let unnamed = seen.seats[3].member.id.clone();
        let expected = format!(
            "NAME    ROLE           STATE             ETCD              ADDRESS   VERSION  AGE
n1      control plane  Ready             leader            10.0.0.1  v1.36.3  60m
n2      control plane  NotReady for 30m  voter, no answer  10.0.0.1  v1.36.3  60m
n3      control plane  NotReady for 4m   missing           10.0.0.1  v1.36.3  60m
worker  worker         Ready, cordoned   -                 10.0.0.1  v1.36.3  60m
etcd: 2 of 3 voters answer, 2 are needed: none may be lost, with the next one it stops
n2 is NotReady since 2026-01-01T00:30:00Z (30m ago): Kubelet stopped posting
member gone of etcd has no node: it is joining, or `chasi-bod nodes remove gone` takes it out
member {unnamed} of etcd has not started yet: it is joining, or goes when the next control plane joins
"
        );
        assert_eq!(listed(&nodes, Some(&seen), now()), expected);
    }

    #[test]
    fn where_etcd_cannot_be_asked_the_nodes_tell() {
        let nodes = [node("a", true, "True", "00:00:00"), node("b", false, "True", "00:00:00")];
        let text = listed(&nodes, None, now());
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("control planes: 1 of 1 Ready, etcd needs 1: there is no other, so the API is away whenever it is ("), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("  Ready  -     10.0.0.1"), "{text}");
        assert_eq!(listed(&nodes[1..], None, now()).lines().count(), 2, "nothing is known of control planes");
    }

    #[test]
    fn programs_get_the_same() {
        let nodes = [node("a", true, "True", "00:00:00"), node("b", true, "False", "00:30:00"), node("c", false, "True", "00:00:00")];
        let told = summary(&nodes, Some(&standing(&[("a", 'L'), ("z", 'x')])));
        assert_eq!(told["quorum"], json!({"source": "etcd", "voters": 2, "healthy": 1, "needed": 2, "mayBeLost": null}));
        assert_eq!((&told["nodes"][0]["etcd"][0]["state"], &told["nodes"][0]["notReady"]), (&json!("leader"), &Value::Null));
        assert_eq!(told["nodes"][1]["etcd"], json!([{"state": "missing"}]));
        assert_eq!(told["nodes"][1]["notReady"], json!({"since": "2026-01-01T00:30:00Z", "message": "Kubelet stopped posting"}));
        assert_eq!((&told["nodes"][2]["etcd"], &told["membersWithoutNode"][0]["name"]), (&json!([]), &json!("z")));
        let told = summary(&nodes, None);
        assert_eq!((&told["nodes"][0]["etcd"], &told["membersWithoutNode"]), (&Value::Null, &Value::Null));
        assert_eq!(told["quorum"]["source"], "nodes");
    }
}
