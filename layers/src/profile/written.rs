//! Reading a profile: the file, those it extends, merged; then checked as a whole.

use std::collections::BTreeMap;

use crate::error::Result;

use super::check::{refuse_secrets, typed};
use super::diagnostic::{Diagnostics, Place, Problem, Sources, quote};
use super::document::Document;
use super::merge::merge;
use super::tree::{self, Kind, Node};
use super::{Profile, valid};

/// How long a chain of `extends` may be.
const DEPTH: usize = 16;
/// How often files may be merged, so that files that all extend each other's bases twice end.
const MERGES: usize = 256;

/// A valid profile and the files it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The profile, merged and checked. Its relative paths start where the path given to [`load`] starts.
    pub profile: Profile,
    /// Path and text of every file that was read: the profile first, then what it extends.
    pub files: Vec<(String, String)>,
    /// What later stages point into when they find a problem.
    pub document: Document,
}

/// Reads a profile through `read`, which gives the text of a path. Reports all problems of all files at once.
pub fn load(path: &str, read: &mut dyn FnMut(&str) -> Result<String>) -> Result<Loaded, Diagnostics> {
    let mut reader = Reader { read, files: Vec::new(), trees: BTreeMap::new(), sources: Sources::default(), problems: Vec::new(), merges: 0 };
    let path = join("", path);
    let root = reader.tree(&path, None, &mut Vec::new());
    let Reader { files, sources, mut problems, .. } = reader;
    let Some(root) = root else { return Err(sources.render(problems)) };
    valid::check(&root, &mut problems);
    let profile = typed::<Profile>(&root, &mut problems);
    match profile.filter(|_| problems.is_empty()) {
        Some(profile) => Ok(Loaded { profile, files, document: Document::new(root, sources) }),
        None => Err(sources.render(problems)),
    }
}

struct Reader<'a> {
    read: &'a mut dyn FnMut(&str) -> Result<String>,
    files: Vec<(String, String)>,
    /// What each file and those below it gave.
    trees: BTreeMap<String, Option<Node>>,
    sources: Sources,
    problems: Vec<Problem>,
    merges: usize,
}

impl Reader<'_> {
    /// The merged tree of a file; `from` is the place that names it. `None` when it was unreadable.
    fn tree(&mut self, path: &str, from: Option<Place>, chain: &mut Vec<String>) -> Option<Node> {
        if let Some(known) = self.trees.get(path) {
            return known.clone();
        }
        let text = match (self.read)(path) {
            Ok(text) => text,
            Err(e) => {
                // Without a place that names it, it is the profile itself.
                let place = from.unwrap_or_else(|| Place { file: self.sources.add(path, ""), ..Place::default() });
                self.problems.push(Problem::new(place, format!("reading {}: {e}", quote(path))).hint(e.hint().map(str::to_string)));
                return None;
            }
        };
        let file = self.sources.add(path, &text);
        let (root, problems) = tree::parse(file, &text);
        self.files.push((path.into(), text));
        self.problems.extend(problems);
        let root = root.map(|root| self.merged(root, path, chain));
        self.trees.insert(path.into(), root.clone());
        root
    }

    fn merged(&mut self, mut root: Node, path: &str, chain: &mut Vec<String>) -> Node {
        refuse_secrets(&root, &mut self.sources, &mut self.problems);
        let bases = self.take_extends(&mut root);
        locate(&mut root, path);
        chain.push(path.into());
        let mut below: Option<Node> = None;
        for (name, place) in bases {
            let Some(base) = self.base(&join(folder(path), &name), place, chain) else { continue };
            below = Some(match below {
                Some(lower) => merge(lower, base),
                None => base,
            });
        }
        chain.pop();
        match below {
            Some(below) => merge(below, root),
            None => root,
        }
    }

    fn base(&mut self, path: &str, place: Place, chain: &mut Vec<String>) -> Option<Node> {
        self.merges += 1;
        if let Some(start) = chain.iter().position(|p| p == path) {
            let circle = chain[start..].iter().map(String::as_str).chain([path]).collect::<Vec<_>>().join(" → ");
            self.problems.push(Problem::new(place, format!("profiles extend each other in a circle: {circle}")));
            return None;
        }
        if chain.len() >= DEPTH || self.merges > MERGES {
            self.problems.push(Problem::new(place, format!("extending too much: more than {DEPTH} files deep or {MERGES} in all")));
            return None;
        }
        self.tree(path, Some(place), chain)
    }

    /// Takes `extends` out of a file: one path or a list of paths.
    fn take_extends(&mut self, root: &mut Node) -> Vec<(String, Place)> {
        let Kind::Map(entries) = &mut root.kind else { return Vec::new() };
        let Some(n) = entries.iter().position(|(key, _)| key.text == "extends") else { return Vec::new() };
        let (_, value) = entries.remove(n);
        let list = match value.kind {
            Kind::List(items) => items,
            _ => vec![value],
        };
        let mut bases = Vec::new();
        for item in list {
            match item.text() {
                Some(text) if !text.is_empty() && text != "~" => bases.push((text.to_string(), item.place)),
                _ => self.problems.push(Problem::new(item.place, "`extends` must be a path or a list of paths")),
            }
        }
        bases
    }
}

/// Makes the paths that a file writes start where its own path starts.
fn locate(root: &mut Node, path: &str) {
    for (list, key) in [("files", "source"), ("layers", "path")] {
        let Some(Kind::List(items)) = entry(root, list).map(|n| &mut n.kind) else { continue };
        items.iter_mut().filter_map(|item| entry(item, key)).for_each(|node| locate_one(node, path));
    }
    if let Some(Kind::List(items)) = entry(root, "manifests").map(|n| &mut n.kind) {
        items.iter_mut().for_each(|node| locate_one(node, path));
    }
    if let Some(Kind::List(items)) = entry(root, "charts").map(|n| &mut n.kind) {
        items.iter_mut().for_each(|item| locate_chart(item, path));
    }
    if let Some(node) = entry(root, "debian").and_then(|n| entry(n, "keyring")) {
        locate_one(node, path);
    }
}

/// A chart is a path unless it is in a registry, repository or module; the keyring always is one.
fn locate_chart(chart: &mut Node, path: &str) {
    let named = ["repo", "module"].iter().any(|key| chart.get(key).is_some_and(|n| !n.is_null()));
    let elsewhere = named || chart.get("chart").and_then(Node::text).is_some_and(|t| t.starts_with("oci://"));
    let keys = if elsewhere { &["keyring"][..] } else { &["chart", "manifests", "kustomize", "keyring"] };
    keys.iter().for_each(|key| entry(chart, key).into_iter().for_each(|node| locate_one(node, path)));
}

fn entry<'a>(node: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    let Kind::Map(entries) = &mut node.kind else { return None };
    entries.iter_mut().find(|(k, _)| k.text == key).map(|(_, v)| v)
}

fn locate_one(node: &mut Node, path: &str) {
    if node.is_null() {
        return;
    }
    if let Kind::Text(text, _) = &mut node.kind
        && !text.is_empty()
    {
        *text = join(folder(path), text);
    }
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| if folder.is_empty() { "/" } else { folder })
}

/// A path seen from a folder, without `.` and with `..` taken together where possible.
fn join(folder: &str, path: &str) -> String {
    let whole = if path.starts_with('/') || folder.is_empty() { path.to_string() } else { format!("{folder}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => {
                parts.pop();
            }
            ("..", None) if whole.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    match (whole.starts_with('/'), parts.join("/")) {
        (true, rest) => format!("/{rest}"),
        (false, rest) if rest.is_empty() => ".".into(),
        (false, rest) => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_join_from_the_folder_of_the_file() {
        let table = [
            ("p/x.yaml", "a", "p/a"),
            ("x.yaml", "./a/../b", "b"),
            ("p/q/x", "../a", "p/a"),
            ("/x", "../a", "/a"),
            ("x", "../a", "../a"),
            ("p/x", "/a", "/a"),
        ];
        for (file, path, expected) in table {
            assert_eq!(join(folder(file), path), expected, "{file} {path}");
        }
    }

    #[test]
    fn only_charts_that_are_folders_start_where_the_file_is() {
        let text = "charts:\n- chart: web\n- {manifests: a, kustomize: './b#c/d'}\n- {chart: web, module: m.test/x}\n- {chart: web, repo: 'https://r.test'}\n- {chart: 'oci://r.test/x'}\n";
        let mut root = tree::parse(0, text).0.unwrap();
        locate(&mut root, "p/x.yaml");
        let charts: Vec<_> = valid::at(&root, "charts.[].chart").into_iter().filter_map(Node::text).collect();
        assert_eq!(charts, ["p/web", "web", "web", "oci://r.test/x"]);
        let others = ["manifests", "kustomize"].map(|key| valid::at(&root, &format!("charts.[].{key}"))[0].text());
        assert_eq!(others, [Some("p/a"), Some("p/b#c/d")]);
    }
}
