//! dpkg's database (`/var/lib/dpkg`) as `dpkg --unpack` would leave it: packages unpacked and not configured, their control files,
//! trigger interests; and packages that count as installed because the image does their part itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use layers::Result;
use layers::lock::Package;

use super::configure::Assumed;
use super::unpack::{Control, ControlFile, Unpacked};
use crate::store::PackWriter;
use crate::tree::{Kind, Node, Tree, TreePath};

/// Control files that are programs.
const SCRIPTS: [&str; 5] = ["preinst", "postinst", "prerm", "postrm", "config"];

/// Adds the database to a merged tree.
pub fn write(tree: &mut Tree, pack: &mut PackWriter<'_>, packages: &[(Package, Unpacked)], assumed: &[Assumed], epoch: i64) -> Result<()> {
    let file = |bytes: &[u8]| ControlFile { bytes: bytes.to_vec(), mtime: epoch };
    let mut files = BTreeMap::from([("info/format".to_string(), file(b"1\n"))]);
    for name in ["diversions", "statoverride", "triggers/File", "triggers/Unincorp"] {
        files.insert(name.into(), file(b""));
    }
    let mut status = String::new();
    for (package, unpacked) in packages {
        let (stem, control) = (stem(package, &unpacked.control), &unpacked.control);
        status += &stanza(control);
        files.insert(format!("info/{stem}.list"), file(&control.list));
        for (name, bytes) in control.files.iter().filter(|(n, _)| *n != "control") {
            files.insert(format!("info/{stem}.{name}"), bytes.clone());
        }
        for (name, line) in interests(&stem, &control.file("triggers")) {
            files.entry(format!("triggers/{name}")).or_insert_with(|| file(b"")).bytes.extend_from_slice(line.as_bytes());
        }
    }
    for one in assumed {
        status += &assumed_stanza(one);
        files.insert(format!("info/{}.list", one.name), file(b"/.\n"));
    }
    files.insert("status".into(), file(status.as_bytes()));
    for (name, ControlFile { bytes, mtime }) in files {
        let path = TreePath::new(format!("var/lib/dpkg/{name}")).map_err(layers::Error::internal)?;
        let mode = if SCRIPTS.iter().any(|s| name.starts_with("info/") && name.ends_with(&format!(".{s}"))) { 0o755 } else { 0o644 };
        tree.ensure_parents(&path, epoch);
        tree.insert(path, Node::new(Kind::File(pack.add(&bytes)?), mode, mtime));
    }
    Ok(())
}

/// The name of a package's files in `info/`: with the architecture where several may be installed at once.
pub fn stem(package: &Package, control: &Control) -> String {
    match control.field("Multi-Arch").as_deref() {
        Some("same") => format!("{}:{}", package.name, package.architecture),
        _ => package.name.clone(),
    }
}

/// The status of a package that is unpacked: all its fields, and `newconffile` in place of each configuration file's digest.
fn stanza(control: &Control) -> String {
    let mut out = String::from("Status: install ok unpacked\n");
    for line in control.text().lines().filter(|l| !l.trim().is_empty()) {
        let _ = writeln!(out, "{line}");
    }
    let conffiles = control.file("conffiles");
    let lines: Vec<_> = conffiles.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if !lines.is_empty() {
        out += "Conffiles:\n";
    }
    for line in lines {
        // A former file, listed in the package so that an upgrade removes it (deb-conffiles(5)).
        let removed = line.strip_prefix("remove-on-upgrade ");
        let _ = writeln!(out, " {} newconffile{}", removed.unwrap_or(line).trim(), if removed.is_some() { " remove-on-upgrade" } else { "" });
    }
    out + "\n"
}

fn assumed_stanza(assumed: &Assumed) -> String {
    let mut out = format!(
        "Package: {}\nStatus: install ok installed\nPriority: optional\nSection: misc\nMaintainer: chasi-bod\nArchitecture: all\nMulti-Arch: foreign\nVersion: 1:0\n",
        assumed.name
    );
    if !assumed.provides.is_empty() {
        let _ = writeln!(out, "Provides: {}", assumed.provides.join(", "));
    }
    out + "Description: done by the image itself\n\n"
}

/// Which files of `triggers/` get which lines for a package's interests (deb-triggers(5)).
fn interests(stem: &str, triggers: &str) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for line in triggers.lines() {
        let mut words = line.split_whitespace();
        let (Some(directive), Some(name)) = (words.next(), words.next()) else { continue };
        let suffix = match directive {
            "interest" | "interest-await" => "",
            "interest-noawait" => "/noawait",
            _ => continue,
        };
        out.insert(match name.starts_with('/') {
            true => ("File".into(), format!("{name} {stem}{suffix}\n")),
            false => (name.to_string(), format!("{stem}{suffix}\n")),
        });
    }
    out
}
