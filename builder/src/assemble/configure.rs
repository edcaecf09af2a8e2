//! From unpacked packages to a configured tree: dpkg's own program, from the image itself, runs the maintainer scripts in the sandbox;
//! then the layers' scripts; then what has a clock, a random number or a log in it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use layers::lock::Package;
use layers::units::Digest;
use layers::{Context, Error, Result};

use super::readback::Fate;
use super::scratch::{Options, Root};
use super::unpack::Unpacked;
use super::{database, merge};
use crate::exec;
use crate::store::Store;
use crate::tree::{Kind, Node, Tree, TreePath};

/// A package that counts as installed although it is not in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assumed {
    /// Package name.
    pub name: String,
    /// Virtual packages it provides.
    pub provides: Vec<String>,
}

/// A layer's script, run as root of the image by /bin/sh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// What errors call it.
    pub name: String,
    /// The shell text.
    pub text: String,
}

/// Denies service starts; removed before the tree is read back.
const POLICY: &str = "usr/sbin/policy-rc.d";

/// Keys that openssh-server makes where it finds none. No image has them: each is an empty file until the tree is read back, which drops it.
const HOST_KEYS: [&str; 3] = ["etc/ssh/ssh_host_ecdsa_key", "etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key"];

/// Files that hold a clock, a random number or a former state, and mean nothing in an image.
const DROPPED: [&str; 24] = [
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/.pwd.lock",
    "etc/.updated",
    "var/.updated",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/passwords.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    POLICY,
];

/// Configures the packages and runs the scripts; the result is kept under a key of everything that goes in.
pub fn configure(store: &Store, packages: &[(Package, Unpacked)], assumed: &[Assumed], scripts: &[Script], epoch: i64) -> Result<Tree> {
    let key = key(packages, assumed, scripts, epoch);
    let (input, output) = (Digest::of_parts([b"configure input".as_slice(), &key.0]), Digest::of_parts([b"configure output".as_slice(), &key.0]));
    if let Some(tree) = store.load("configured", &key)?
        && store.pack(&input).exists()
        && store.pack(&output).exists()
    {
        return Ok(tree);
    }
    let merge::Merged { mut tree, owners } = merge::merge(packages)?;
    let mut pack = store.new_pack(input)?;
    database::write(&mut tree, &mut pack, packages, assumed, epoch)?;
    let policy = pack.add(b"#!/bin/sh\nexit 101\n")?;
    tree.insert(TreePath::new(POLICY).map_err(Error::internal)?, Node::new(Kind::File(policy), 0o755, epoch));
    if tree.at("etc/ssh").is_some_and(Node::is_dir) {
        let nothing = pack.add(b"")?;
        for path in HOST_KEYS {
            tree.insert(TreePath::new(path).map_err(Error::internal)?, Node::new(Kind::File(nothing.clone()), 0o600, epoch));
        }
    }
    pack.finish()?;
    let root = Root::materialize(store, &tree)?;
    let session = Session { store, key, root: &root, options: Options::new(epoch) };
    session.configure_packages(packages)?;
    session.check_diversions(packages, &owners)?;
    for script in scripts {
        session.step(&["/bin/sh", "-euc", &script.text], || format!("running script {}", script.name))?;
    }
    let mut pack = store.new_pack(output)?;
    let mut configured = root.read_back(&tree, epoch, &|path, size| fate(path, size, &tree), &mut pack)?;
    // No file looks younger than the image.
    configured.entries.values_mut().for_each(|node| node.mtime = node.mtime.min(epoch));
    pack.finish()?;
    store.save("configured", &key, &configured)?;
    Ok(configured)
}

fn key(packages: &[(Package, Unpacked)], assumed: &[Assumed], scripts: &[Script], epoch: i64) -> Digest {
    let mut parts: Vec<Vec<u8>> = vec![b"configure v1".to_vec(), epoch.to_le_bytes().to_vec()];
    parts.extend(packages.iter().map(|(p, _)| p.sha256.0.to_vec()));
    parts.extend(assumed.iter().map(|a| format!("assumed {} {}", a.name, a.provides.join(" ")).into_bytes()));
    parts.extend(scripts.iter().map(|s| format!("script {}\n{}", s.name, s.text).into_bytes()));
    Digest::of_parts(parts.iter().map(Vec::as_slice))
}

/// One image's root while its scripts run.
struct Session<'a> {
    store: &'a Store,
    key: Digest,
    root: &'a Root,
    options: Options,
}

impl Session<'_> {
    /// What dpkg does between unpacking and configuring, then dpkg itself: the essential packages first, because no other package
    /// names them as dependencies although its scripts use them.
    fn configure_packages(&self, packages: &[(Package, Unpacked)]) -> Result<()> {
        let graph = Graph::new(packages);
        let driver = preinst_driver(packages, &graph.order());
        self.step(&["/bin/sh", "-c", &driver], || "configuring packages".into())?;
        let dpkg = ["dpkg", "--force-unsafe-io", "--force-confdef", "--force-confold"];
        let essential = graph.essential();
        if !essential.is_empty() {
            let names = essential.iter().map(|i| packages[*i].0.name.as_str());
            let argv: Vec<&str> = dpkg.into_iter().chain(["--no-triggers", "--configure"]).chain(names).collect();
            self.step(&argv, || "configuring essential packages".into())?;
        }
        let argv: Vec<&str> = dpkg.into_iter().chain(["--configure", "-a"]).collect();
        self.step(&argv, || "configuring packages".into())
    }

    /// Runs one command; a failure names the package and script where the log tells, and the log is kept.
    fn step(&self, argv: &[&str], naming: impl Fn() -> String) -> Result<()> {
        let output = self.root.run(argv, &self.options).context(&naming)?;
        if output.status == 0 {
            return Ok(());
        }
        let log = self.store.derived("log", &self.key)?;
        self.store.write_atomic(&log, output.log.as_bytes())?;
        let culprit = culprit(&output.log).map(|c| format!(": {c}")).unwrap_or_default();
        let text = format!("{}{culprit}: exit status {}{}", naming(), output.status, exec::tail(until_failure(&output.log).as_bytes()));
        Err(Error::input(text).with_hint(format!("the whole log is in {}", log.display())))
    }

    /// A diversion registered by a package's preinst would have moved another package's file at unpacking; ours is already in place.
    fn check_diversions(&self, packages: &[(Package, Unpacked)], owners: &BTreeMap<TreePath, usize>) -> Result<()> {
        let text = self.root.read_text("var/lib/dpkg/diversions")?;
        let lines: Vec<_> = text.lines().collect();
        for triple in lines.chunks_exact(3) {
            let owner = TreePath::new(triple[0]).ok().and_then(|p| owners.get(&p)).map(|i| packages[*i].0.name.as_str());
            if owner.is_some_and(|o| o != triple[2]) {
                return Err(Error::input(format!(
                    "configuring packages: {} diverts {} of {}, which is not supported",
                    triple[2],
                    triple[0],
                    owner.unwrap_or("")
                )));
            }
        }
        Ok(())
    }
}

/// Package and script of a failure: dpkg's own message, or the mark of our preinst driver.
fn culprit(log: &str) -> Option<String> {
    if let Some(mark) = log.lines().rev().find_map(|l| l.strip_prefix("chasi-bod: failed preinst of ")) {
        return Some(format!("package {mark}, script preinst"));
    }
    let at = log.lines().position(|l| l.starts_with("dpkg: error processing package "))?;
    let mut lines = log.lines().skip(at);
    let package = lines.next()?.strip_prefix("dpkg: error processing package ")?.split(' ').next()?;
    let reason = lines.next().unwrap_or_default().trim();
    let script = [("post-installation", "postinst"), ("pre-installation", "preinst")].iter().find(|(long, _)| reason.contains(long));
    Some(format!("package {package}{}", script.map(|(_, s)| format!(", script {s}")).unwrap_or_default()))
}

/// The log up to dpkg's first complaint: dpkg goes on with other packages and buries what the failed script said.
fn until_failure(log: &str) -> &str {
    let Some(at) = log.find("dpkg: error processing package ") else { return log };
    log[at..].match_indices('\n').nth(1).map_or(log, |(end, _)| &log[..at + end])
}

/// A shell program that runs every preinst as dpkg would for a first installation.
fn preinst_driver(packages: &[(Package, Unpacked)], order: &[usize]) -> String {
    let mut out = String::from(
        "export DPKG_ROOT= DPKG_ADMINDIR=/var/lib/dpkg DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1\n\
         p() { DEBCONF_PACKAGE=$1 DPKG_MAINTSCRIPT_PACKAGE=$1 DPKG_MAINTSCRIPT_ARCH=$2 \"/var/lib/dpkg/info/$3.preinst\" install && return\n\
         s=$?; echo \"chasi-bod: failed preinst of $1\"; exit $s; }\n",
    );
    for (package, unpacked) in order.iter().map(|i| &packages[*i]).filter(|(_, u)| u.control.files.contains_key("preinst")) {
        let _ = writeln!(out, "p '{}' '{}' '{}'", package.name, package.architecture, database::stem(package, &unpacked.control));
    }
    out
}

/// Who depends on whom, by index.
struct Graph<'a> {
    packages: &'a [(Package, Unpacked)],
    needs: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn new(packages: &'a [(Package, Unpacked)]) -> Self {
        let bare = |one: &str| one.trim().split([' ', '(', ':', '[']).next().unwrap_or_default().to_string();
        let mut by_name = BTreeMap::new();
        for (i, (_, unpacked)) in packages.iter().enumerate() {
            for virtual_name in unpacked.control.field("Provides").unwrap_or_default().split(',') {
                by_name.entry(bare(virtual_name)).or_insert(i);
            }
        }
        by_name.extend(packages.iter().enumerate().map(|(i, (p, _))| (p.name.clone(), i)));
        let needs = packages.iter().map(|(_, unpacked)| {
            let fields = ["Pre-Depends", "Depends"].map(|f| unpacked.control.field(f).unwrap_or_default()).join(",");
            fields.split(',').filter_map(|group| group.split('|').find_map(|one| by_name.get(&bare(one)).copied())).collect()
        });
        Self { packages, needs: needs.collect() }
    }

    /// All packages, dependencies first where there is no cycle; `base-passwd` before all, because every other script needs its users.
    fn order(&self) -> Vec<usize> {
        let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
        let mut roots: Vec<usize> = (0..self.packages.len()).collect();
        roots.sort_by_key(|i| (self.packages[*i].0.name != "base-passwd", !self.is_essential(*i), &self.packages[*i].0.name));
        if let Some(first) = roots.first().filter(|i| self.packages[**i].0.name == "base-passwd") {
            seen.insert(*first);
            out.push(*first);
        }
        roots.into_iter().for_each(|i| self.visit(i, &mut seen, &mut out));
        out
    }

    /// The essential packages with all that they need.
    fn essential(&self) -> Vec<usize> {
        let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
        (0..self.packages.len()).filter(|i| self.is_essential(*i)).for_each(|i| self.visit(i, &mut seen, &mut out));
        out
    }

    fn is_essential(&self, index: usize) -> bool {
        self.packages[index].1.control.field("Essential").as_deref() == Some("yes")
    }

    fn visit(&self, start: usize, seen: &mut BTreeSet<usize>, out: &mut Vec<usize>) {
        if seen.insert(start) {
            self.needs[start].iter().for_each(|i| self.visit(*i, seen, out));
            out.push(start);
        }
    }
}

/// Takes out what depends on the clock, the machine or chance; a secret of them must not even reach the store.
fn fate(path: &TreePath, size: Option<u64>, before: &Tree) -> Fate {
    let text = path.as_bytes();
    // A log with something in it that no package brought; empty ones carry owner and mode for programs that do not make their own.
    let is_log = text.starts_with(b"var/log/") && size.is_some_and(|s| s > 0) && before.get(path).is_none();
    if is_log || text.starts_with(b"etc/ssh/ssh_host_") || DROPPED.iter().any(|d| d.as_bytes() == text) {
        return Fate::Drop;
    }
    if text == b"etc/machine-id" { Fate::Empty } else { Fate::Keep }
}
