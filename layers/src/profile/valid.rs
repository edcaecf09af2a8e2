//! The rules of a valid profile that no type can say. They look at the merged tree, so that they also run when keys or types are
//! wrong, and every failure has a place.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph;
use crate::reference::Reference;
use crate::selector::Selector;
use crate::units::Bytes;

use super::diagnostic::{Place, Problem, quote, suggest};
use super::merge::{name_key, name_of};
use super::syntax::{self, CHART_RULES, GO_RULES, Rule, URL, is_module_path, is_module_version, is_name, is_url};
use super::tree::Node;
use super::{Disk, network, platform};

/// Paths below which the running system mounts something over the image.
const MOUNTED_OVER: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// Files that have their own place in the profile (`users`).
const ACCOUNT_FILES: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// Accounts and groups that every Debian system has (package base-passwd).
const RESERVED: [&str; 44] = [
    "_apt", "adm", "audio", "backup", "bin", "cdrom", "daemon", "dialout", "dip", "disk", "fax", "floppy", "games", "irc", "kmem", "list", "lp",
    "mail", "man", "news", "nobody", "nogroup", "operator", "plugdev", "proxy", "root", "sasl", "shadow", "src", "staff", "sudo", "sync", "sys",
    "tape", "tty", "users", "utmp", "uucp", "video", "voice", "www-data", "input", "kvm", "render",
];

/// Checks all rules.
pub(super) fn check(root: &Node, problems: &mut Vec<Problem>) {
    texts(root, syntax::RULES, problems);
    for list in ["layers", "users", "files", "images", "vclusters", "components", "network.interfaces", "disk.mounts"] {
        unique(root, list, problems);
    }
    distinct(at(root, "virtualVersions.[]"), "version", problems);
    users(root, problems);
    content(root, problems);
    hostname(root, problems);
    network::check(root, problems);
    platform::check(root, problems);
    disk(root, problems);
    machine(root.get("machine"), problems);
}

/// What profiles and layers have in common: files and kernel parameters.
pub(super) fn content(root: &Node, problems: &mut Vec<Problem>) {
    files(root, problems);
    parents(root, problems);
    sources(root, problems);
    references(root, problems);
    charts(root, problems);
    sysctl(root, problems);
}

/// A chart's keys fit where it comes from.
fn charts(root: &Node, problems: &mut Vec<Problem>) {
    texts(root, CHART_RULES, problems);
    unique(root, "charts", problems);
    for chart in at(root, "charts.[]") {
        exactly_one(chart, &["chart", "manifests", "kustomize"], "a release", problems);
        let form = given(chart, &["manifests", "kustomize"]).first().copied();
        if let Some(form) = form {
            for key in given(chart, &["repo", "module", "version", "keyring", "values"]) {
                problems.push(Problem::new(chart.place, format!("`{form}` takes no `{key}`: that is for charts")));
            }
            continue;
        }
        let registry = chart.get("chart").and_then(Node::text).is_some_and(|text| text.starts_with("oci://"));
        let given = given(chart, &["repo", "module", "version", "keyring"]);
        let has = |key| given.contains(&key);
        let places = usize::from(registry) + usize::from(has("repo")) + usize::from(has("module"));
        let mut told = |message: &str, hint: &str| problems.push(Problem::new(chart.place, message).hint(Some(hint.into())));
        match places {
            0 if !given.is_empty() => {
                told("a chart that is a folder takes neither `version` nor `keyring`", "give `repo` if it is the name of a chart in a repository")
            }
            1 if !has("version") => told("a chart that is fetched needs a `version`", "such as `version: 1.2.3`"),
            1 if has("module") && has("keyring") => told("a chart of a module has no provenance", "leave out `keyring`"),
            2.. => told("a chart takes only one of `oci://`, `repo` and `module`", "leave out the others"),
            _ => {}
        }
    }
}

/// Images have whole references; a name has a tag or a digest, so that a node can ask for it.
fn references(root: &Node, problems: &mut Vec<Problem>) {
    let names = at(root, "images.[]").into_iter().filter_map(|image| name_of(image, "name")).map(|node| (node, true));
    for (node, is_name) in names.chain(at(root, "images.[].pull").into_iter().map(|node| (node, false))) {
        let Some(text) = node.text() else { continue };
        let message = match text.parse::<Reference>() {
            Ok(Reference { tag: Some(_), digest: Some(_), .. }) if is_name => format!("{} has a tag and a digest", quote(text)),
            Ok(_) => continue,
            Err(_) => format!("{} is not a whole image reference such as registry.k8s.io/pause:3.10.2", quote(text)),
        };
        let hint = match text.rsplit_once('@') {
            Some((name, _)) if is_name => Some(format!("say `{{name: {name}, pull: …@…}}`")).filter(|_| name.contains(':')),
            _ => None,
        };
        let meant = || Reference::canonical(text).map(|whole| format!("did you mean `{whole}`?"));
        problems.push(Problem::new(node.place, message).hint(hint.or_else(meant)));
    }
}

/// Each source has one kind, and what it names can be asked of a module proxy or a web server.
fn sources(root: &Node, problems: &mut Vec<Problem>) {
    for (name, source) in at(root, "sources").into_iter().flat_map(Node::entries) {
        if !is_name(&name.text) {
            problems.push(Problem::new(name.place, format!("{} is not the name of a source: lower-case letters, digits and `-`", quote(&name.text))));
        }
        exactly_one(source, &["go", "url"], "a source", problems);
        if let Some(go) = source.get("go") {
            exactly_one(go, &["package", "main"], "a Go program", problems);
            texts(go, GO_RULES, problems);
            modules(go, problems);
        }
        for url in at(source, "url.from.[]").into_iter().filter(|node| node.text().is_some_and(|text| !is_url(text))) {
            problems.push(Problem::new(url.place, format!("{} is not {URL}", quote(url.text().unwrap_or_default()))));
        }
    }
}

/// The modules of a Go program: versions, and in `replace` folders of the layer.
fn modules(go: &Node, problems: &mut Vec<Problem>) {
    let of = |key| go.get(key).into_iter().flat_map(Node::entries).map(move |entry| (key, entry));
    for (key, (module, version)) in of("require").chain(of("replace")) {
        if !is_module_path(&module.text) {
            problems.push(Problem::new(module.place, format!("{} is not the path of a Go module", quote(&module.text))));
        }
        let Some(text) = version.text() else { continue };
        let is_folder = key == "replace" && text.strip_prefix("./").is_some_and(is_module_path);
        if !is_folder && !is_module_version(text) {
            problems.push(Problem::new(version.place, format!("{} is not a version such as v1.2.3, alone or behind a module's path", quote(text))));
        }
    }
}

/// Checks single texts.
pub(super) fn texts<'r>(root: &Node, rules: impl IntoIterator<Item = &'r Rule>, problems: &mut Vec<Problem>) {
    for rule in rules {
        for node in at(root, rule.path) {
            if let Some(text) = node.text().filter(|text| !(rule.holds)(text)) {
                problems.push(Problem::new(node.place, format!("{} is not {}", quote(text), rule.wanted)));
            }
        }
    }
}

/// All values at a path of keys; `[]` stands for each item of a list. Values that are nothing are left out.
pub(super) fn at<'n>(root: &'n Node, path: &str) -> Vec<&'n Node> {
    path.split('.').filter(|part| !part.is_empty()).fold(vec![root], |nodes, part| {
        let step = |node: &'n Node| if part == "[]" { node.items().iter().collect() } else { Vec::from_iter(node.get(part)) };
        nodes.into_iter().flat_map(step).filter(|n| !n.is_null()).collect()
    })
}

/// The keys of a map that have a value.
pub(super) fn given<'n>(node: &'n Node, keys: &[&str]) -> Vec<&'n str> {
    node.entries().iter().filter(|(k, v)| keys.contains(&k.text.as_str()) && !v.is_null()).map(|(k, _)| k.text.as_str()).collect()
}

/// Checks that a map has exactly one of some keys.
pub(super) fn exactly_one(node: &Node, keys: &[&str], what: &str, problems: &mut Vec<Problem>) {
    let found = given(node, keys);
    let all = keys.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    match found.as_slice() {
        [_] => {}
        [] => problems.push(Problem::new(node.place, format!("{what} needs one of {all}"))),
        several => {
            let both = several.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(" and ");
            problems.push(Problem::new(node.place, format!("{what} takes only one of {all}, not {both}")));
        }
    }
}

/// Checks that no two texts are equal.
pub(super) fn distinct<'n>(nodes: impl IntoIterator<Item = &'n Node>, what: &str, problems: &mut Vec<Problem>) {
    let mut seen = BTreeMap::new();
    for node in nodes {
        let Some(text) = node.text() else { continue };
        if let Some(first) = seen.insert(text, node.place) {
            problems.push(Problem::new(node.place, format!("{what} {} is given twice, first in line {}", quote(text), first.line)));
        }
    }
}

pub(super) fn unique(root: &Node, list: &str, problems: &mut Vec<Problem>) {
    let Some(key) = name_key(list) else { return };
    // Whether entries under conditions meet is known when these are.
    let entries = at(root, list).into_iter().flat_map(Node::items).filter(|entry| entry.get("when").is_none());
    distinct(entries.filter_map(|entry| name_of(entry, key)), &format!("the {key}"), problems);
}

/// Things by their names.
pub(super) fn named<'n>(things: &[&'n Node]) -> BTreeMap<&'n str, &'n Node> {
    things.iter().filter_map(|thing| Some((thing.get("name")?.text()?, *thing))).collect()
}

/// Checks that texts name things that there are.
pub(super) fn known<'n>(nodes: impl IntoIterator<Item = &'n Node>, names: &BTreeMap<&str, &Node>, what: &str, problems: &mut Vec<Problem>) {
    for node in nodes {
        let Some(name) = node.text().filter(|name| !names.contains_key(name)) else { continue };
        problems.push(Problem::new(node.place, format!("there is no {what} {}", quote(name))).hint(suggest(name, names.keys().copied())));
    }
}

/// Reports every reference that closes a circle; `below` gives those of one thing.
pub(super) fn circles<'n>(
    names: &BTreeMap<&'n str, &'n Node>,
    below: impl Fn(&'n Node) -> Vec<&'n Node>,
    message: &str,
    problems: &mut Vec<Problem>,
) {
    let next = |name: &str| {
        names.get(name).map(|thing| below(thing)).unwrap_or_default().into_iter().filter_map(|node| Some((node.text()?, node))).collect()
    };
    graph::circles(names.keys().copied(), next, |circle, node| problems.push(Problem::new(node.place, format!("{message}: {}", circle.join(" → ")))));
}

fn users(root: &Node, problems: &mut Vec<Problem>) {
    distinct(at(root, "users.[].uid"), "the uid", problems);
    for node in at(root, "users.[].name") {
        let Some(name) = node.text().filter(|name| RESERVED.contains(name)) else { continue };
        let hint = match name {
            "root" => "root's ssh keys are handed to the node: `sshKeys` of a configuration source (docs/node-config.md)",
            _ => "choose another name",
        };
        let message = format!("{} is an account or group that Debian makes itself", quote(name));
        problems.push(Problem::new(node.place, message).hint(Some(hint.into())));
    }
}

fn files(root: &Node, problems: &mut Vec<Problem>) {
    for file in at(root, "files.[]").into_iter().filter(|f| !f.entries().is_empty()) {
        origin(file, problems);
        let below = |path: &str| MOUNTED_OVER.into_iter().find(|m| path.strip_prefix(m).is_some_and(|r| r.is_empty() || r.starts_with('/')));
        if let Some((node, mount)) = file.get("path").and_then(|n| Some((n, below(n.text()?)?))) {
            let hint = "let a file below /usr/lib/tmpfiles.d make it at boot".to_string();
            problems.push(Problem::new(node.place, format!("nothing can lie below {mount}: the running system mounts over it")).hint(Some(hint)));
        }
        if let Some(node) = file.get("path").filter(|n| n.text().is_some_and(|path| ACCOUNT_FILES.contains(&path))) {
            let hint = "put a file into /usr/lib/sysusers.d".to_string();
            problems.push(Problem::new(node.place, "accounts come from packages, sysusers.d and the profile's `users`").hint(Some(hint)));
        }
    }
}

/// A file has one origin.
pub(super) fn origin(file: &Node, problems: &mut Vec<Problem>) {
    exactly_one(file, &["content", "source", "link", "from"], "a file", problems);
}

/// A4: a file must not be written through another one, which may be a link.
fn parents(root: &Node, problems: &mut Vec<Problem>) {
    let paths: Vec<&Node> = at(root, "files.[].path");
    let known: BTreeSet<&str> = paths.iter().filter_map(|n| n.text()).collect();
    for node in paths {
        let Some(text) = node.text() else { continue };
        let mut above = text.match_indices('/').map(|(n, _)| &text[..n]).filter(|p| !p.is_empty());
        if let Some(parent) = above.find(|p| known.contains(p)) {
            problems.push(Problem::new(node.place, format!("{} lies below {}, which is a file or link itself", quote(text), quote(parent))));
        }
    }
}

fn sysctl(root: &Node, problems: &mut Vec<Problem>) {
    for (key, value) in at(root, "sysctl").into_iter().flat_map(Node::entries) {
        if !syntax::is_sysctl(&key.text) {
            problems.push(Problem::new(key.place, format!("{} is not a kernel parameter such as net.ipv4.ip_forward", quote(&key.text))));
        }
        if value.text().is_some_and(|text| text.chars().any(char::is_control)) {
            problems.push(Problem::new(value.place, "a kernel parameter must be one line"));
        }
    }
}

fn hostname(root: &Node, problems: &mut Vec<Problem>) {
    for node in at(root, "hostname") {
        if let Some(Err((message, hint))) = node.text().map(syntax::hostname) {
            problems.push(Problem::new(node.place, format!("the host name {message}")).hint(hint));
        }
    }
}

fn size(disk: Option<&Node>, key: &str) -> Option<Bytes> {
    disk?.get(key).filter(|n| !n.is_null())?.text()?.parse().ok()
}

fn disk(root: &Node, problems: &mut Vec<Problem>) {
    let disk = root.get("disk");
    room(root, disk, problems);
    limits(disk, ("stateSize", Some(Disk::default().state_size)), "stateLimit", problems);
    for (key, least) in [("espSize", Bytes::mib(64)), ("slotSize", Bytes::mib(16)), ("stateSize", Bytes::mib(16))] {
        if let (Some(given), Some(node)) = (size(disk, key).filter(|given| *given < least), disk.and_then(|d| d.get(key))) {
            problems.push(Problem::new(node.place, format!("`{key}` is {given}, but must be at least {least}")));
        }
    }
    for node in at(root, "disk.mounts.[].disk").into_iter().chain(at(root, "disk.target")) {
        if let Some(Err(why)) = node.text().map(|text| Selector::try_from(text.to_string())) {
            problems.push(Problem::new(node.place, format!("not an expression that picks a disk: {why}")));
        }
    }
    let consent = disk.and_then(|d| d.get("erase")).filter(|n| n.text() == Some("true"));
    if let Some(node) = consent.filter(|_| disk.is_none_or(|d| d.get("target").is_none())) {
        problems.push(Problem::new(node.place, "`erase` needs a `target`: nothing is erased without a disk being named"));
    }
}

/// A virtual machine's memory is told to hypervisors in MiB.
fn machine(machine: Option<&Node>, problems: &mut Vec<Problem>) {
    if let (Some(given), Some(node)) = (size(machine, "memory"), machine.and_then(|m| m.get("memory")))
        && (given < Bytes::mib(512) || given.round_up(1 << 20) != given)
    {
        problems.push(Problem::new(node.place, format!("`memory` is {given}, but must be whole MiB and at least 512MiB")));
    }
}

fn limits(map: Option<&Node>, (low, default): (&str, Option<Bytes>), high: &str, problems: &mut Vec<Problem>) {
    if let (Some(least), Some(most)) = (size(map, low).or(default), size(map, high))
        && most < least
    {
        let place = map.and_then(|m| m.get(high)).map_or(Place::default(), |n| n.place);
        problems.push(Problem::new(place, format!("`{high}` is {most}, less than `{low}` {least}")));
    }
}

/// A8: the disk must hold the EFI system partition, BIOS boot, two slots with verity, the state and both partition tables.
fn room(root: &Node, disk: Option<&Node>, problems: &mut Vec<Problem>) {
    const MIB: u64 = 1 << 20;
    let default = Disk::default();
    let given = size(disk, "size").unwrap_or(default.size);
    // A slot that is not given is never smaller than this.
    let slot = size(disk, "slotSize").unwrap_or(Bytes(4 << 30));
    let (esp, state) = (size(disk, "espSize").unwrap_or(default.esp_size), size(disk, "stateSize").unwrap_or(default.state_size));
    let verity = Bytes(slot.0.div_ceil(64)).round_up(MIB);
    let parts = [esp.0, MIB, slot.0, slot.0, verity.0, verity.0, state.0, 2 * MIB];
    let sum: u128 = parts.iter().map(|n| u128::from(*n)).sum();
    if u128::from(given.0) < sum {
        let needed = Bytes(u64::try_from(sum).unwrap_or(u64::MAX));
        let node = disk.map(|d| d.get("size").unwrap_or(d));
        let message = format!(
            "the disk is too small: {given} given, {needed} needed ({esp} EFI system partition, 2 × {slot} slot, 2 × {verity} verity, {state} state, 3MiB boot and tables)"
        );
        problems.push(Problem::new(node.unwrap_or(root).place, message).hint(Some(format!("set `size` to at least {}MiB", needed.0.div_ceil(MIB)))));
    }
}
