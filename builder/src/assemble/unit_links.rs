//! systemd units switched on and off by links, as `systemctl --root enable` does (systemd.unit(5), section \[Install\]).

use std::collections::BTreeSet;

use layers::layer::Units;
use layers::profile::suggest;
use layers::{Context, Error, Result};

use crate::assemble::editor::{Editor, known, remove};
use crate::tree::{Kind, TreePath};

const ADMIN: &str = "etc/systemd/system";
const VENDOR: &str = "usr/lib/systemd/system";

/// Enables, then disables and masks units: an enabled unit's `Also=` may bring one that the layer does not want. What is disabled or
/// masked need not exist. `refused` takes what is wrong with a unit, and says whether to go on.
pub fn switch(editor: &mut Editor<'_, '_>, units: &Units, refused: &mut dyn FnMut(&str, Error) -> Result<()>) -> Result<()> {
    for unit in &units.enable {
        let done = enable(editor, unit, &mut BTreeSet::new()).context(|| format!("enabling unit `{unit}`"));
        done.or_else(|error| refused(unit, error))?;
    }
    for unit in units.disable.iter().chain(&units.mask) {
        disable(editor, unit)?;
    }
    for unit in &units.mask {
        let path = known(&format!("{ADMIN}/{unit}"))?;
        if matches!(editor.tree.get(&path).map(|n| &n.kind), Some(Kind::File(_) | Kind::Directory)) {
            refused(unit, Error::input(format!("masking unit `{unit}`: {path} is a file")).with_hint("remove it with `remove`"))?;
        } else {
            editor.link(path, "/dev/null")?;
        }
    }
    Ok(())
}

/// Removes all links below /etc/systemd/system that are called like the unit or lead to it.
fn disable(editor: &mut Editor<'_, '_>, unit: &str) -> Result<()> {
    let dir = known(ADMIN)?;
    let leads = |path: &TreePath, target: &[u8]| path.name() == unit.as_bytes() || target.rsplit(|b| *b == b'/').next() == Some(unit.as_bytes());
    let links = editor.tree.below(&dir).filter_map(|(path, node)| match &node.kind {
        Kind::Symlink(target) if leads(path, target) => Some(path.clone()),
        _ => None,
    });
    let links: BTreeSet<_> = links.collect();
    remove(editor.tree, &links);
    Ok(())
}

fn enable(editor: &mut Editor<'_, '_>, unit: &str, seen: &mut BTreeSet<String>) -> Result<()> {
    if !seen.insert(unit.into()) {
        return Ok(());
    }
    let file = file_of(editor, unit)?;
    let text = editor.read(&file)?.unwrap_or_default();
    let install = Install::parse(&String::from_utf8_lossy(&text));
    if install.wants.is_empty() && install.alias.is_empty() && install.also.is_empty() {
        return Err(Error::input(format!("{file} has no [Install] section")));
    }
    let unit = install.instance_of(unit)?;
    for (target, kind) in &install.wants {
        let target = expand(target, &unit);
        editor.link(known(&format!("{ADMIN}/{target}.{kind}/{unit}"))?, &file.to_string())?;
    }
    for alias in &install.alias {
        editor.link(known(&format!("{ADMIN}/{}", expand(alias, &unit)))?, &file.to_string())?;
    }
    for also in &install.also {
        enable(editor, also, seen)?;
    }
    Ok(())
}

/// The unit's file; for `name@instance.service` that is `name@.service` unless the instance has its own.
fn file_of(editor: &Editor<'_, '_>, unit: &str) -> Result<TreePath> {
    let names = [Some(unit.to_string()), template_of(unit)];
    for name in names.into_iter().flatten() {
        for dir in [ADMIN, VENDOR] {
            let path = known(&format!("{dir}/{name}"))?;
            match editor.tree.get(&path).map(|n| &n.kind) {
                Some(Kind::File(_) | Kind::HardLink(_)) => return Ok(path),
                Some(Kind::Symlink(target)) if target == b"/dev/null" => return Err(Error::input(format!("{path} masks it"))),
                _ => {}
            }
        }
    }
    let dir = known(VENDOR)?;
    let all: Vec<_> = editor.tree.below(&dir).map(|(p, _)| String::from_utf8_lossy(p.name()).into_owned()).collect();
    let error = Error::input("the image has no such unit");
    Err(match suggest(unit, all.iter().map(String::as_str)) {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}

fn template_of(unit: &str) -> Option<String> {
    let (name, rest) = unit.split_once('@')?;
    let (_, suffix) = rest.rsplit_once('.')?;
    Some(format!("{name}@.{suffix}"))
}

/// The two specifiers that [Install] sections use.
fn expand(text: &str, unit: &str) -> String {
    let instance = unit.split_once('@').and_then(|(_, rest)| rest.rsplit_once('.')).map_or("", |(i, _)| i);
    text.replace("%i", instance).replace("%I", instance).replace("%n", unit)
}

/// An [Install] section.
#[derive(Debug, Default)]
struct Install {
    wants: Vec<(String, &'static str)>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        let mut inside = false;
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
            if line.starts_with('[') {
                inside = line == "[Install]";
            } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
                out.take(key.trim(), value.trim());
            }
        }
        out
    }

    fn take(&mut self, key: &str, value: &str) {
        let words = || value.split_whitespace().map(str::to_string);
        match key {
            "WantedBy" => self.wants.extend(words().map(|w| (w, "wants"))),
            "RequiredBy" => self.wants.extend(words().map(|w| (w, "requires"))),
            "UpheldBy" => self.wants.extend(words().map(|w| (w, "upholds"))),
            "Alias" => self.alias.extend(words()),
            "Also" => self.also.extend(words()),
            "DefaultInstance" => self.default_instance = Some(value.into()),
            _ => {}
        }
    }

    fn instance_of(&self, unit: &str) -> Result<String> {
        let Some((name, suffix)) = unit.split_once("@.") else { return Ok(unit.into()) };
        let instance = self.default_instance.as_ref().ok_or_else(|| Error::input("it is a template: an instance must be named"))?;
        Ok(format!("{name}@{instance}.{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::editor::testing::Bench;

    fn switch(editor: &mut Editor<'_, '_>, units: &Units) -> Result<()> {
        super::switch(editor, units, &mut |_, error| Err(error))
    }

    fn units(enable: &[&str], disable: &[&str], mask: &[&str]) -> Units {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Units { enable: own(enable), disable: own(disable), mask: own(mask) }
    }

    fn bench() -> Bench {
        Bench::new(&[
            (
                "usr/lib/systemd/system/a.service",
                "[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=multi-user.target \\\n x.target\nAlias=alias.service\nAlso=b.socket\n",
            ),
            ("usr/lib/systemd/system/b.socket", "[Install]\nRequiredBy=sockets.target\nAlso=a.service\n"),
            ("usr/lib/systemd/system/c@.service", "[Install]\nWantedBy=dev-%i.device\nDefaultInstance=tty1\n"),
            ("usr/lib/systemd/system/plain.service", "[Service]\n"),
        ])
    }

    #[test]
    fn enabling_links_all_that_install_says() {
        let mut bench = bench();
        bench.edit(|e| switch(e, &units(&["a.service", "c@ttyS0.service", "c@.service"], &[], &[]))).unwrap();
        for (path, target) in [
            ("multi-user.target.wants/a.service", "a.service"),
            ("x.target.wants/a.service", "a.service"),
            ("alias.service", "a.service"),
            ("sockets.target.requires/b.socket", "b.socket"),
            ("dev-ttyS0.device.wants/c@ttyS0.service", "c@.service"),
            ("dev-tty1.device.wants/c@tty1.service", "c@.service"),
        ] {
            assert_eq!(bench.target(&format!("etc/systemd/system/{path}")), Some(format!("/usr/lib/systemd/system/{target}")), "{path}");
        }
        assert!(bench.tree.at("etc/systemd/system/no.target.wants").is_none());
    }

    #[test]
    fn disabling_and_masking_undo_it_and_win_over_later_enabling() {
        let mut bench = bench();
        // `a.service` brings `b.socket` by `Also=`, and the mask wins.
        bench.edit(|e| switch(e, &units(&["a.service"], &["a.service"], &["b.socket", "absent.timer"]))).unwrap();
        let below = known("etc/systemd/system").unwrap();
        let left: Vec<_> = bench.tree.below(&below).filter(|(_, n)| !n.is_dir()).map(|(p, _)| p.to_string()).collect();
        assert_eq!(left, ["/etc/systemd/system/absent.timer", "/etc/systemd/system/b.socket"]);
        assert_eq!(bench.target("etc/systemd/system/b.socket"), Some("/dev/null".into()));
        assert!(bench.edit(|e| switch(e, &units(&["b.socket"], &[], &[]))).unwrap_err().to_string().contains("masks"));
    }

    #[test]
    fn a_unit_that_cannot_be_enabled_is_named() {
        let mut bench = bench();
        let error = bench.edit(|e| switch(e, &units(&["plian.service"], &[], &[]))).unwrap_err();
        assert!(error.to_string().contains("plian.service") && error.hint().unwrap().contains("plain.service"));
        assert!(bench.edit(|e| switch(e, &units(&["plain.service"], &[], &[]))).unwrap_err().to_string().contains("[Install]"));
    }
}
