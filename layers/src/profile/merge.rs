//! Merging: what a file writes goes over what the files it extends wrote.
//!
//! - Maps merge by key.
//! - Scalars and lists replace what was there, except for these lists:
//! - `packages` is appended to, without duplicates.
//! - `layers`, `users`, `images`, `charts`, `vclusters`, `components` and `network.interfaces` (by `name`), `files` and `disk.mounts` (by `path`) are lists of
//!   named things: an entry goes over the entry of the same name, which keeps its position; others are appended.
//! - Keys of a named thing that exclude each other do so across files too: `source` of a file replaces a `content` below it.

use super::tree::{Key, Kind, Node};

/// The lists of named things: path, key of the name, keys of which each thing has one.
const NAMED: [(&str, &str, &[&str]); 9] = [
    ("layers", "name", &[]),
    ("users", "name", &[]),
    ("images", "name", &[]),
    ("files", "path", &["content", "source", "link"]),
    ("charts", "name", &[]),
    ("vclusters", "name", &[]),
    ("components", "name", &[]),
    ("network.interfaces", "name", &["match", "vlan", "bond", "bridge"]),
    ("disk.mounts", "path", &[]),
];

/// The key by which entries of a list are named, if it is a list of named things.
pub(super) fn name_key(path: &str) -> Option<&'static str> {
    NAMED.iter().find(|(list, ..)| *list == path).map(|(_, key, _)| *key)
}

/// Name of an entry: the text itself, or the text of its key.
pub(super) fn name_of<'a>(entry: &'a Node, key: &str) -> Option<&'a Node> {
    if entry.text().is_some() { Some(entry) } else { entry.get(key).filter(|n| n.text().is_some()) }
}

/// Puts `over` over `base`; both are whole documents.
pub(super) fn merge(base: Node, over: Node) -> Node {
    merge_at(base, over, "")
}

fn merge_at(base: Node, over: Node, path: &str) -> Node {
    let Node { place, last_line, kind } = over;
    let kind = match (base.kind, kind) {
        (Kind::Map(below), Kind::Map(above)) => Kind::Map(merge_maps(below, above, path)),
        (Kind::List(below), Kind::List(above)) => Kind::List(merge_lists(below, above, path)),
        (_, kind) => kind,
    };
    Node { place, last_line, kind }
}

fn merge_maps(mut below: Vec<(Key, Node)>, above: Vec<(Key, Node)>, path: &str) -> Vec<(Key, Node)> {
    for (key, value) in above {
        let inner = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
        match below.iter().position(|(k, _)| k.text == key.text) {
            Some(n) => {
                let (_, old) = below.remove(n);
                below.insert(n, (key, merge_at(old, value, &inner)));
            }
            None => below.push((key, value)),
        }
    }
    below
}

fn merge_lists(mut below: Vec<Node>, above: Vec<Node>, path: &str) -> Vec<Node> {
    if path == "packages" {
        let new: Vec<Node> = above.into_iter().filter(|p| p.text().is_none() || below.iter().all(|b| b.text() != p.text())).collect();
        below.extend(new);
        return below;
    }
    let Some((_, key, exclusive)) = NAMED.iter().find(|(list, ..)| *list == path) else { return above };
    let mut open: Vec<bool> = vec![true; below.len()];
    for entry in above {
        let name = name_of(&entry, key).and_then(Node::text);
        let same = below.iter().zip(&open).position(|(b, open)| *open && name.is_some() && name_of(b, key).and_then(Node::text) == name);
        match same {
            Some(n) => {
                let old = below.remove(n);
                below.insert(n, merge_named(old, entry, exclusive));
                // A second entry of this name in the same file stays apart, so that it is reported as a duplicate.
                open[n] = false;
            }
            None => below.push(entry),
        }
    }
    below
}

fn merge_named(base: Node, over: Node, exclusive: &[&str]) -> Node {
    match (base.kind, over.kind) {
        (Kind::Map(mut below), Kind::Map(above)) => {
            if above.iter().any(|(k, _)| exclusive.contains(&k.text.as_str())) {
                below.retain(|(k, _)| !exclusive.contains(&k.text.as_str()) || above.iter().any(|(a, _)| a.text == k.text));
            }
            // Named things hold no named things, so paths within them do not matter.
            Node { kind: Kind::Map(merge_maps(below, above, "*")), ..over_place(over.place, over.last_line) }
        }
        // A bare name adds nothing to an entry with more.
        (below @ Kind::Map(_), Kind::Text(..)) => Node { kind: below, ..over_place(base.place, base.last_line) },
        (_, kind) => Node { kind, ..over_place(over.place, over.last_line) },
    }
}

fn over_place(place: super::diagnostic::Place, last_line: usize) -> Node {
    Node { place, last_line, kind: Kind::List(Vec::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{check, tree};

    /// Merges two texts and gives the result as JSON.
    fn merged(base: &str, over: &str) -> serde_json::Value {
        let node = merge(tree::parse(0, base).0.unwrap(), tree::parse(1, over).0.unwrap());
        check::typed(&node, &mut Vec::new()).unwrap()
    }

    #[test]
    fn maps_merge_scalars_and_lists_replace_packages_append() {
        let base = "boot: {timeout: 1, console: [tty0, ttyS0]}\npackages: [a, b]\nhostname: x\n";
        let over = "boot: {console: [tty1]}\npackages: [b, c]\nhostname: y\n";
        let expected = serde_json::json!({"boot": {"timeout": 1, "console": ["tty1"]}, "packages": ["a", "b", "c"], "hostname": "y"});
        assert_eq!(merged(base, over), expected);
    }

    #[test]
    fn named_things_merge_by_name_and_keep_their_position() {
        let base = "users: [{name: a, sudo: true, groups: [x]}, {name: b}]\nlayers: [boot, {name: os, parameters: {p: 1, q: 2}}, tools]\n\
                    components: [{name: c, values: {x: 1, y: 2}, dependsOn: [d]}]\n";
        let over = "users: [{name: c}, {name: a, groups: [y]}]\nlayers: [os, {name: os, parameters: {p: 3}}, {name: boot, path: x}, new]\n\
                    components: [{name: c, values: {y: 3}, dependsOn: [e]}]\n";
        let expected = serde_json::json!({
            "users": [{"name": "a", "sudo": true, "groups": ["y"]}, {"name": "b"}, {"name": "c"}],
            // `os` twice in one file is left for the rules to report.
            "layers": [{"name": "boot", "path": "x"}, {"name": "os", "parameters": {"p": 1, "q": 2}}, "tools", {"name": "os", "parameters": {"p": 3}}, "new"],
            "components": [{"name": "c", "values": {"x": 1, "y": 3}, "dependsOn": ["e"]}],
        });
        assert_eq!(merged(base, over), expected);
    }

    #[test]
    fn keys_that_exclude_each_other_do_so_across_files() {
        let base = "files: [{path: /a, content: x, mode: '0600'}]\nnetwork: {interfaces: [{name: l, match: {name: e*}, dhcp: true}]}\n";
        let over = "files: [{path: /a, source: y}]\nnetwork: {interfaces: [{name: l, match: {driver: v}}]}\n";
        let expected = serde_json::json!({
            "files": [{"path": "/a", "mode": "0600", "source": "y"}],
            "network": {"interfaces": [{"name": "l", "match": {"name": "e*", "driver": "v"}, "dhcp": true}]},
        });
        assert_eq!(merged(base, over), expected);
    }
}
