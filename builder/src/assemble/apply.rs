//! One planned layer onto the image tree: removals, files, accounts, units, kernel parameters. Nothing of it runs a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use layers::plan::{Body, PlannedFile, PlannedLayer};
use layers::profile::{Diagnostic, Spot};
use layers::{Context, Error, Fault, Result};

use crate::assemble::editor::{Editor, known, remove};
use crate::assemble::users::Accounts;
use crate::assemble::{glob, unit_links, users};
use crate::tree::{Content, Kind, Node};

/// What a plan names and does not hold itself.
#[derive(Debug)]
pub struct Given<'a> {
    /// The node binary.
    pub node: &'a [u8],
    /// What sources give.
    pub sources: &'a Contents,
}

impl Given<'_> {
    /// What a file takes from a source.
    pub fn content(&self, file: &PlannedFile, source: &str, member: Option<&str>) -> Result<Content> {
        let found = self.sources.get(&(source.to_string(), member.map(str::to_string)));
        found.cloned().ok_or_else(|| Error::internal(format!("writing {}: source `{source}` was not made", file.path)))
    }
}

/// Contents of files from sources, by the source's name and, of an archive, the file's path in it.
pub type Contents = BTreeMap<(String, Option<String>), Content>;

/// Applies a layer; lower layers come first. What the layer's author wrote and the tree contradicts goes to
/// `problems`, with its place; with any the tree is of no use.
pub fn apply(editor: &mut Editor<'_, '_>, layer: &PlannedLayer, given: &Given<'_>, problems: &mut Vec<Diagnostic>) -> Result<()> {
    let context = || format!("applying layer `{}`", layer.name);
    remove_picked(editor, &layer.remove);
    users::add(editor, &layer.users).context(context)?;
    let accounts = Accounts::of(editor)?;
    for file in &layer.files {
        put(editor, file, &accounts, given).or_else(|error| told(error, Some(&file.at), problems)).context(context)?;
    }
    let mut refused = |unit: &str, error| told(error, layer.units_at.get(unit), problems);
    unit_links::switch(editor, &layer.units, &mut refused).context(context)?;
    put_sysctl(editor, layer).context(context)
}

/// Makes an error of the author's a problem at its place; others end the build.
fn told(error: Error, spot: Option<&Spot>, problems: &mut Vec<Diagnostic>) -> Result<()> {
    match (error.fault(), spot) {
        (Fault::Input, Some(spot)) => problems.push(spot.problem(error.to_string(), error.hint().map(str::to_string))),
        _ => return Err(error),
    }
    Ok(())
}

/// Removes what patterns pick. Folders that an entry below keeps stay.
pub fn remove_picked(editor: &mut Editor<'_, '_>, patterns: &[String]) {
    if patterns.is_empty() {
        return;
    }
    let mut picked = BTreeSet::new();
    let mut kept = BTreeSet::new();
    // Children sort after their parents, so that a kept child is seen before its folder.
    for path in editor.tree.entries.keys().rev() {
        if glob::picked(patterns, path) && !kept.contains(path) {
            picked.insert(path.clone());
        } else if let Some(parent) = path.parent() {
            kept.insert(parent);
        }
    }
    remove(editor.tree, &picked);
}

fn put(editor: &mut Editor<'_, '_>, file: &PlannedFile, accounts: &Accounts, given: &Given<'_>) -> Result<()> {
    let path = known(&file.path)?;
    let owner = (accounts.user(&file.owner)?, accounts.group(&file.group)?);
    let before = editor.tree.get(&path).cloned();
    match &file.body {
        Body::Link(target) => editor.link(path.clone(), target)?,
        Body::Bytes(bytes) => editor.put(path.clone(), bytes, file.mode, owner)?,
        Body::Node => editor.put(path.clone(), given.node, file.mode, owner)?,
        Body::From { source, member } => {
            editor.put_content(path.clone(), given.content(file, source, member.as_deref())?, file.mode, owner)?;
        }
    }
    match before {
        Some(before) if !file.overrides && !equal(&before, editor.tree.get(&path)) => {
            let message = format!("{} is there already, from a package, with different content, mode or owner", file.path);
            Err(Error::input(message).with_hint("say `override: true` at the file if it shall win"))
        }
        _ => Ok(()),
    }
}

fn equal(before: &Node, after: Option<&Node>) -> bool {
    let Some(after) = after else { return false };
    let same = match (&before.kind, &after.kind) {
        (Kind::File(a), Kind::File(b)) => a.sha256 == b.sha256,
        (a, b) => a == b,
    };
    same && (before.mode, before.uid, before.gid) == (after.mode, after.uid, after.gid)
}

fn put_sysctl(editor: &mut Editor<'_, '_>, layer: &PlannedLayer) -> Result<()> {
    if layer.sysctl.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for (key, value) in &layer.sysctl {
        let _ = writeln!(text, "{key} = {value}");
    }
    // systemd-sysctl reads by name: the position keeps upper layers last, and all after Debian's own 50-*.
    editor.put_text(&format!("usr/lib/sysctl.d/60-chasi-bod-{:02}-{}.conf", layer.position, layer.name), &text)
}

#[cfg(test)]
mod tests {
    use layers::profile::Diagnostics;

    use super::*;
    use crate::assemble::editor::testing::Bench;

    fn apply(editor: &mut Editor<'_, '_>, layer: &PlannedLayer, node: &[u8]) -> Result<()> {
        let mut problems = Vec::new();
        super::apply(editor, layer, &Given { node, sources: &BTreeMap::new() }, &mut problems)?;
        Ok(Diagnostics::gather(&layer.name, problems)?)
    }

    fn file(path: &str, text: &str) -> PlannedFile {
        let root = || "root".to_string();
        PlannedFile {
            path: path.into(),
            mode: 0o644,
            owner: root(),
            group: root(),
            overrides: false,
            body: Body::Bytes(text.into()),
            at: Spot::default(),
        }
    }

    fn layer(files: Vec<PlannedFile>) -> PlannedLayer {
        PlannedLayer { name: "mine".into(), position: 3, files, ..PlannedLayer::default() }
    }

    #[test]
    fn a3_a_packages_file_is_replaced_only_when_the_layer_says_so() {
        let mut bench = Bench::new(&[("etc/motd", "debian")]);
        let error = bench.edit(|e| apply(e, &layer(vec![file("/etc/motd", "mine")]), b"")).unwrap_err().to_string();
        assert!(error.contains("checking mine") && error.contains("/etc/motd"), "{error}");
        let mut bench = Bench::new(&[("etc/motd", "debian")]);
        bench.edit(|e| apply(e, &layer(vec![file("/etc/motd", "debian")]), b"")).unwrap();
        let forced = PlannedFile { overrides: true, ..file("/etc/motd", "mine") };
        bench.edit(|e| apply(e, &layer(vec![forced]), b"")).unwrap();
        assert_eq!(bench.text("etc/motd"), "mine");
    }

    #[test]
    fn a4_a_file_below_a_packages_link_is_refused() {
        let error = Bench::new(&[]).edit(|e| apply(e, &layer(vec![file("/bin/tool", "x")]), b"")).unwrap_err().to_string();
        assert!(error.contains("/bin/tool") && error.contains("symbolic link"), "{error}");
    }

    #[test]
    fn files_get_owner_mode_and_the_node_binary() {
        let mut bench = Bench::new(&[]);
        let secret = PlannedFile { mode: 0o640, group: "ssl-cert".into(), owner: "_apt".into(), ..file("/etc/key.pub", "k") };
        let node = PlannedFile { mode: 0o755, body: Body::Node, ..file("/usr/bin/chasi-bod", "") };
        bench.edit(|e| apply(e, &layer(vec![secret, node]), b"ELF")).unwrap();
        let key = bench.tree.at("etc/key.pub").unwrap();
        assert_eq!((key.mode, key.uid, key.gid, key.mtime), (0o640, 42, 105, 1000));
        assert_eq!((bench.text("usr/bin/chasi-bod").as_str(), bench.tree.at("usr/bin/chasi-bod").unwrap().mode), ("ELF", 0o755));
        let nobody = PlannedFile { owner: "rooot".into(), ..file("/etc/x", "") };
        let error = bench.edit(|e| apply(e, &layer(vec![nobody]), b"")).unwrap_err();
        assert!(error.to_string().contains("rooot") && error.to_string().contains("did you mean `root`?"), "{error}");
    }

    #[test]
    fn a3_all_that_the_tree_contradicts_is_told_at_once() {
        let mut bench = Bench::new(&[("etc/motd", "debian"), ("usr/lib/systemd/system/ok.service", "[Install]\nWantedBy=x.target\n")]);
        let nobody = PlannedFile { group: "rooot".into(), ..file("/etc/x", "") };
        let units = layers::layer::Units { enable: vec!["okk.service".into(), "gone.socket".into()], ..Default::default() };
        let units_at = units.enable.iter().map(|unit| (unit.clone(), Spot::in_text("own/layer.yaml", unit, 1, 1, 1))).collect();
        let all = PlannedLayer { units, units_at, ..layer(vec![file("/etc/motd", "mine"), nobody]) };
        let shown = bench.edit(|e| apply(e, &all, b"")).unwrap_err().to_string();
        for says in
            ["4 problems", "/etc/motd is there already", "no group `rooot`", "own/layer.yaml:1:1: enabling unit `okk.service`", "`gone.socket`"]
        {
            assert!(shown.contains(says), "`{says}` is not in {shown}");
        }
    }

    #[test]
    fn removal_keeps_what_an_exception_names_and_its_folders() {
        let mut bench = Bench::new(&[("usr/share/doc/a/copyright", "c"), ("usr/share/doc/a/x", ""), ("usr/share/doc/b/y", "")]);
        let patterns = ["/usr/share/doc/**".to_string(), "!/usr/share/doc/*/copyright".into()];
        bench.edit(|e| apply(e, &PlannedLayer { remove: patterns.into(), ..layer(Vec::new()) }, b"")).unwrap();
        assert!(bench.tree.at("usr/share/doc/a/copyright").is_some() && bench.tree.at("usr/share/doc/a/x").is_none());
        assert!(bench.tree.at("usr/share/doc/b").is_none() && bench.tree.at("usr/share/doc").is_some());
    }

    #[test]
    fn kernel_parameters_lie_after_debians() {
        let mut bench = Bench::new(&[]);
        let sysctl = BTreeMap::from([("kernel.panic".to_string(), "10".to_string())]);
        bench.edit(|e| apply(e, &PlannedLayer { sysctl, ..layer(Vec::new()) }, b"")).unwrap();
        assert_eq!(bench.text("usr/lib/sysctl.d/60-chasi-bod-03-mine.conf"), "kernel.panic = 10\n");
    }
}
