//! The rules of a profile's network: each interface is one thing, refers to what exists, and never to itself.

use std::collections::{BTreeMap, BTreeSet};

use super::check::typed;
use super::diagnostic::{Problem, quote, suggest};
use super::tree::Node;
use super::valid::{at, distinct, exactly_one, given, texts};
use super::{Network, syntax};

/// Checks a network that no profile wrote by the rules of profiles; the error tells all that is wrong.
pub fn check_network(network: &Network) -> Result<(), String> {
    let value = serde_json::json!({ "network": network });
    let (root, mut problems) = (Node::of(&value), Vec::new());
    if let Some(node) = root.get("network") {
        typed::<Network>(node, &mut problems);
    }
    texts(&root, syntax::RULES, &mut problems);
    check(&root, &mut problems);
    distinct(at(&root, "network.interfaces.[].name"), "the name", &mut problems);
    let said: Vec<String> = problems.into_iter().map(|p| p.hint.into_iter().fold(p.message, |all, hint| format!("{all} ({hint})"))).collect();
    if said.is_empty() { Ok(()) } else { Err(said.join("; ")) }
}

/// Checks the rules of `network`.
pub(super) fn check(root: &Node, problems: &mut Vec<Problem>) {
    distinct(at(root, "network.interfaces.[].plane"), "the plane", problems);
    let interfaces = at(root, "network.interfaces.[]");
    for interface in interfaces.iter().filter(|i| !i.entries().is_empty()) {
        exactly_one(interface, &["match", "vlan", "bond", "bridge"], "an interface", problems);
    }
    for node in at(root, "network.interfaces.[].match") {
        if given(node, &["mac", "driver", "name"]).is_empty() {
            problems.push(Problem::new(node.place, "`match` needs at least one of `mac`, `driver`, `name`"));
        }
    }
    let names: BTreeMap<&str, &Node> = interfaces.iter().filter_map(|i| Some((i.get("name")?.text()?, *i))).collect();
    references(&interfaces, &names, problems);
    members(root, &names, problems);
    circles(&names, problems);
}

/// The interfaces that one stands on.
fn below(interface: &Node) -> Vec<&Node> {
    ["vlan.parent", "bond.members.[]", "bridge.members.[]"].iter().flat_map(|path| at(interface, path)).filter(|n| n.text().is_some()).collect()
}

fn references(interfaces: &[&Node], names: &BTreeMap<&str, &Node>, problems: &mut Vec<Problem>) {
    for node in interfaces.iter().flat_map(|i| below(i)) {
        let Some(name) = node.text().filter(|name| !names.contains_key(name)) else { continue };
        problems.push(Problem::new(node.place, format!("there is no interface {}", quote(name))).hint(suggest(name, names.keys().copied())));
    }
}

/// A member belongs to one bond or bridge and has no addresses of its own.
fn members(root: &Node, names: &BTreeMap<&str, &Node>, problems: &mut Vec<Problem>) {
    let both = ["network.interfaces.[].bond.members", "network.interfaces.[].bridge.members"];
    let lists: Vec<&Node> = both.iter().flat_map(|path| at(root, path)).collect();
    for list in lists.iter().filter(|l| l.items().is_empty() && l.text().is_none()) {
        problems.push(Problem::new(list.place, "`members` must name at least one interface"));
    }
    let all: Vec<&Node> = lists.into_iter().flat_map(Node::items).collect();
    distinct(all.iter().copied(), "the member", problems);
    for node in all {
        let Some(interface) = node.text().and_then(|name| names.get(name)) else { continue };
        let addressed = at(interface, "dhcp").iter().any(|n| n.is_true()) || !at(interface, "addresses.[]").is_empty();
        if addressed {
            problems.push(Problem::new(node.place, "a member of a bond or bridge cannot have addresses or DHCP of its own"));
        }
    }
}

/// Reports every reference that closes a circle. Walks down without recursion, so that no chain is too long.
fn circles(names: &BTreeMap<&str, &Node>, problems: &mut Vec<Problem>) {
    let next = |name: &str| names.get(name).map(|n| below(n)).unwrap_or_default();
    let mut done = BTreeSet::new();
    for start in names.keys().copied() {
        // The way down from `start`, with what is still to be looked at below each, and the depth of each.
        let (mut chain, mut depth) = (vec![(start, next(start))], BTreeMap::from([(start, 0)]));
        while let Some((name, list)) = chain.last_mut().filter(|_| !done.contains(start)) {
            let Some((node, text)) = list.pop().and_then(|n| Some((n, n.text()?))) else {
                done.insert(*name);
                depth.remove(name);
                chain.pop();
                continue;
            };
            if let Some(n) = depth.get(text) {
                let circle = chain[*n..].iter().map(|(name, _)| *name).chain([text]).collect::<Vec<_>>().join(" → ");
                problems.push(Problem::new(node.place, format!("interfaces stand on each other in a circle: {circle}")));
            } else if !done.contains(text) {
                depth.insert(text, chain.len());
                chain.push((text, next(text)));
            }
        }
    }
}
