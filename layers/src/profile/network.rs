//! The rules of a profile's network: each interface is one thing, refers to what exists, and never to itself.

use std::collections::BTreeMap;

use super::check::typed;
use super::diagnostic::Problem;
use super::tree::Node;
use super::valid::{at, circles, distinct, exactly_one, given, known, named, texts};
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
    let names = named(&interfaces);
    known(interfaces.iter().flat_map(|i| below(i)), &names, "interface", problems);
    members(root, &names, problems);
    circles(&names, below, "interfaces stand on each other in a circle", problems);
}

/// The interfaces that one stands on.
fn below(interface: &Node) -> Vec<&Node> {
    ["vlan.parent", "bond.members.[]", "bridge.members.[]"].iter().flat_map(|path| at(interface, path)).filter(|n| n.text().is_some()).collect()
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
