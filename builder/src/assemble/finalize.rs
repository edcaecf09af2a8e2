//! The configured tree becomes an image's root: what a node owns moves out of it, what a machine leaves behind goes, times are capped.
//!
//! /var, /root, /home and /srv lie on the state partition. What packages put there becomes a factory copy below
//! /usr/share/factory, and one tmpfiles.d(5) file makes it again at boot where it is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use layers::seed::LAYERS;
use layers::{Error, Result};

use crate::assemble::editor::{Editor, known, remove};
use crate::assemble::glob;
use crate::tree::{Kind, Tree, TreePath};

/// What machines leave behind; files only, their folders stay.
const LEFT_BEHIND: [&str; 33] = [
    "/var/cache/**",
    "/var/log/**",
    "/var/tmp/**",
    "/var/backups/**",
    "/var/lib/apt/lists/**",
    "/var/lib/apt/extended_states",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/catalog/**",
    "/var/lib/dpkg/lock*",
    "/var/lib/dpkg/triggers/Lock",
    "/var/lib/dpkg/*-old",
    "/tmp/**",
    "/run/**",
    "/dev/**",
    "/proc/**",
    "/sys/**",
    "/etc/**/*.dpkg-*",
    "/etc/.pwd.lock",
    "/etc/.updated",
    "/var/.updated",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/sub?id-",
    "/etc/hostname",
    "/etc/ssh/ssh_host_*",
    "/usr/**/__pycache__/**",
    "/initrd.img*",
    "/vmlinuz*",
    "/boot/initrd.img*",
];

/// Folders on the state partition.
const ON_STATE: [&str; 4] = ["var", "root", "home", "srv"];

const DPKG: (&str, &str) = ("var/lib/dpkg", "usr/lib/sysimage/dpkg");
const FACTORY: &str = "usr/share/factory";

/// Name of the generated file; the late letter lets a package's own line for a path win.
const FACTORY_CONF: &str = "usr/lib/tmpfiles.d/zz-chasi-bod-factory.conf";

/// Folders that a running node needs as mount points, with their modes.
const MOUNT_POINTS: [(&str, u16); 12] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("efi", 0o700),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// Makes the tree an image's root; the last change to it before the lint.
pub fn finalize(editor: &mut Editor<'_, '_>) -> Result<()> {
    drop_left_behind(editor.tree)?;
    let machine_id = known("etc/machine-id")?;
    editor.put(machine_id, b"", 0o444, (0, 0))?;
    editor.link(known("etc/resolv.conf")?, "../run/systemd/resolve/stub-resolv.conf")?;
    move_below(editor.tree, &known(DPKG.0)?, &known(DPKG.1)?, editor.epoch);
    let mut lines = vec![format!("L /{} - - - - /{}", DPKG.0, DPKG.1)];
    let claimed = claimed(editor)?;
    for dir in ON_STATE {
        lines.extend(to_factory(editor, &known(dir)?, &claimed)?);
    }
    let text = lines.iter().fold("# Made by chasi-bod from what packages hold here.\n".to_string(), |mut out, line| {
        let _ = writeln!(out, "{line}");
        out
    });
    editor.put_text(FACTORY_CONF, &text)?;
    for (dir, mode) in MOUNT_POINTS {
        editor.directory(dir, mode)?;
    }
    let images = known(LAYERS)?;
    for (_, node) in editor.tree.entries.iter_mut().filter(|(path, _)| !path.is_within(&images)) {
        node.mtime = node.mtime.min(editor.epoch);
    }
    Ok(())
}

fn drop_left_behind(tree: &mut Tree) -> Result<()> {
    let images = known(LAYERS)?;
    let gone = |(path, node): (&TreePath, &crate::tree::Node)| {
        // The files of container images are what their digests say.
        if path.is_within(&images) {
            return None;
        }
        let picked = LEFT_BEHIND.iter().any(|pattern| glob::fits(pattern, path));
        // The kernel's own file systems and /tmp hide folders too; elsewhere a package may rely on its folder.
        let hidden = ["dev", "proc", "run", "sys", "tmp"].iter().any(|dir| path.as_bytes().starts_with(dir.as_bytes()));
        (picked && (!node.is_dir() || hidden)).then(|| path.clone())
    };
    let gone: BTreeSet<_> = tree.entries.iter().filter_map(gone).collect();
    remove(tree, &gone);
    Ok(())
}

/// Renames a subtree; hard links into it follow. The new parents are made when missing.
fn move_below(tree: &mut Tree, from: &TreePath, to: &TreePath, epoch: i64) {
    let renamed = |path: &TreePath| {
        let mut new = to.as_bytes().to_vec();
        new.extend_from_slice(&path.as_bytes()[from.as_bytes().len()..]);
        // Both halves come from valid paths, so that the whole is one.
        TreePath::new(new).unwrap_or_else(|_| path.clone())
    };
    let moved = tree.remove_below(from);
    if moved.is_empty() {
        return;
    }
    for node in tree.entries.values_mut() {
        repoint(node, from, &renamed);
    }
    tree.ensure_parents(to, epoch);
    for (path, mut node) in moved {
        repoint(&mut node, from, &renamed);
        tree.insert(renamed(&path), node);
    }
}

fn repoint(node: &mut crate::tree::Node, from: &TreePath, renamed: &impl Fn(&TreePath) -> TreePath) {
    if let Kind::HardLink(target) = &mut node.kind
        && target.is_within(from)
    {
        *target = renamed(target);
    }
}

/// Paths that packages' own tmpfiles.d files make; a second line for them would only be a warning at boot.
fn claimed(editor: &Editor<'_, '_>) -> Result<BTreeSet<String>> {
    let dir = known("usr/lib/tmpfiles.d")?;
    let mut out = BTreeSet::new();
    for (path, _) in editor.tree.below(&dir) {
        let text = editor.text(&path.to_string())?;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let (Some(kind), Some(path)) = (words.next(), words.next())
                && kind.starts_with(['d', 'D', 'v', 'q', 'Q', 'L', 'C'])
            {
                out.insert(path.to_string());
            }
        }
    }
    Ok(out)
}

/// Moves what lies below a state folder to the factory; returns the lines that make it again. Device nodes are refused.
fn to_factory(editor: &mut Editor<'_, '_>, dir: &TreePath, claimed: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut lines = BTreeMap::new();
    for (path, node) in editor.tree.below(dir).filter(|(p, _)| *p != dir) {
        let shown = escape(&path.to_string());
        let owner = format!("{:04o} {} {}", node.mode, node.uid, node.gid);
        let line = match &node.kind {
            Kind::Directory => format!("d {shown} {owner} -"),
            Kind::File(_) | Kind::HardLink(_) => format!("C {shown} {owner} - /{FACTORY}{shown}"),
            Kind::Symlink(target) => format!("L {shown} - - - - {}", escape(&String::from_utf8_lossy(target))),
            Kind::Fifo => format!("p {shown} {owner} -"),
            Kind::CharDevice(..) | Kind::BlockDevice(..) => return Err(Error::input(format!("{path} is a device node on the state partition"))),
        };
        if !claimed.contains(&shown) {
            lines.insert(path.clone(), line);
        }
    }
    let target = known(&format!("{FACTORY}{dir}"))?;
    move_below(editor.tree, dir, &target, editor.epoch);
    Ok(lines.into_values().collect())
}

/// A path as tmpfiles.d(5) reads it: specifiers and white space escaped.
fn escape(path: &str) -> String {
    path.chars().fold(String::new(), |mut out, c| {
        let _ = match c {
            '%' => write!(out, "%%"),
            '\\' => write!(out, "\\\\"),
            ' ' | '\t' | '\n' | '"' | '\'' => write!(out, "\\x{:02x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::editor::testing::Bench;
    use crate::tree::Node;

    fn finalized(files: &[(&str, &str)]) -> Bench {
        let mut bench = Bench::new(files);
        bench.edit(finalize).unwrap();
        bench
    }

    #[test]
    fn what_lies_in_var_becomes_a_factory_copy_with_its_lines() {
        let bench = finalized(&[
            ("var/lib/misc/a b", "x"),
            ("var/log/dpkg.log", "l"),
            ("root/.profile", "p"),
            ("var/lib/known/x", "k"),
            ("usr/lib/tmpfiles.d/var.conf", "d /var/lib/known 0755 - - -\n"),
        ]);
        assert_eq!(bench.text("usr/share/factory/var/lib/misc/a b"), "x");
        let conf = bench.text(FACTORY_CONF);
        for line in [
            "d /var/lib/misc 0755 0 0 -",
            "C /var/lib/misc/a\\x20b 0644 0 0 - /usr/share/factory/var/lib/misc/a\\x20b",
            "C /root/.profile 0644 0 0 - /usr/share/factory/root/.profile",
            "d /var/log 0755 0 0 -",
            "C /var/lib/known/x 0644 0 0 - /usr/share/factory/var/lib/known/x",
        ] {
            assert!(conf.lines().any(|l| l == line), "{line} is not in {conf}");
        }
        assert!(!conf.contains("dpkg.log") && !conf.contains("d /var/lib/known "), "{conf}");
        let var = known("var").unwrap();
        assert_eq!(bench.tree.below(&var).count(), 1, "/var itself only");
        assert_eq!((bench.tree.at("tmp").unwrap().mode, bench.tree.at("efi").unwrap().mode), (0o1777, 0o700));
    }

    #[test]
    fn dpkgs_database_moves_into_the_image() {
        let bench = finalized(&[("var/lib/dpkg/status", "Package: a\n"), ("var/lib/dpkg/lock", ""), ("var/lib/dpkg/status-old", "o")]);
        assert_eq!(bench.text("usr/lib/sysimage/dpkg/status"), "Package: a\n");
        assert!(bench.tree.at("usr/lib/sysimage/dpkg/lock").is_none() && bench.tree.at("usr/lib/sysimage/dpkg/status-old").is_none());
        assert!(bench.text(FACTORY_CONF).contains("\nL /var/lib/dpkg - - - - /usr/lib/sysimage/dpkg\n"));
    }

    #[test]
    fn d7_what_a_machine_leaves_behind_is_dropped() {
        let bench = finalized(&[
            ("etc/machine-id", "0123"),
            ("etc/hostname", "builder"),
            ("etc/ssh/ssh_host_rsa_key", "k"),
            ("etc/passwd-", "o"),
            ("etc/x/y.dpkg-new", "n"),
            ("usr/lib/python3/__pycache__/a.pyc", "c"),
            ("run/lock/x", ""),
            ("tmp/x", ""),
        ]);
        assert_eq!((bench.text("etc/machine-id").as_str(), bench.tree.at("etc/machine-id").unwrap().mode), ("", 0o444));
        for path in
            ["etc/hostname", "etc/ssh/ssh_host_rsa_key", "etc/passwd-", "etc/x/y.dpkg-new", "usr/lib/python3/__pycache__/a.pyc", "run/lock", "tmp/x"]
        {
            assert!(bench.tree.at(path).is_none(), "{path}");
        }
        assert_eq!(bench.target("etc/resolv.conf"), Some("../run/systemd/resolve/stub-resolv.conf".into()));
    }

    #[test]
    fn times_are_capped_and_hard_links_follow() {
        let mut bench = Bench::new(&[("var/lib/a", "x"), ("etc/new", "n")]);
        bench.tree.insert(known("var/lib/b").unwrap(), Node::new(Kind::HardLink(known("var/lib/a").unwrap()), 0o644, 1));
        bench.tree.entries.get_mut(&known("etc/new").unwrap()).unwrap().mtime = 5000;
        bench.edit(finalize).unwrap();
        let link = bench.tree.at("usr/share/factory/var/lib/b").unwrap();
        assert_eq!((&link.kind, link.mtime), (&Kind::HardLink(known("usr/share/factory/var/lib/a").unwrap()), 1));
        assert_eq!(bench.tree.at("etc/new").unwrap().mtime, 1000);
    }
}
