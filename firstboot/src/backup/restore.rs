//! The same cluster from a backup. The command reads a backup to its end into a folder of the state and asks for the agent, which founds the cluster
//! anew with what lies there: its authorities, its keys, its etcd. A restore that was cut off is undone whole and begun again, as a founding is.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use layers::{Context as _, Error, Fault, Result};

use super::archive::MANIFEST;
use super::{Manifest, SNAPSHOT, Which, archive, folder, identities, told, wanted};
use crate::cluster::{self, Node, etcd};
use crate::exec;
use crate::host::{Host, STATE, remove_tree};
use crate::steps::systemctl;

/// What was read and is to be brought back; there until the cluster is.
const READY: &str = "var/lib/chasi-bod/restoring";
/// The same while it is being read.
const PARTIAL: &str = "var/lib/chasi-bod/restoring.partial";
/// So many revisions are skipped (etcd's documentation, "Disaster recovery"): whoever watched the cluster before must not take an old revision for a
/// new one. It is more than a cluster makes between two backups, at a thousand a second for eleven days.
const BUMP: u64 = 1_000_000_000;

/// How a cluster is restored.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    which: Which,
    /// Take a backup of this node first and restore that: what to do when most control planes are lost and this one is left.
    #[arg(long, conflicts_with = "backup", conflicts_with = "identity")]
    this_node: bool,
    /// Give up the cluster that this node is in.
    #[arg(long)]
    replace: bool,
    /// Check everything and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Prepares everything and asks the agent to begin; the text is for stdout.
pub fn run(options: &Options, host: &Host, say: &dyn Fn(&str)) -> Result<String> {
    let scratch = folder::scratch(host)?;
    let backup = match options.this_node && !options.dry_run {
        true => super::make(host)?.backup,
        false => wanted(host, &options.which, scratch.path())?,
    };
    let naming = || format!("restoring {}", backup.path.display());
    let identities = identities(host, &options.which)?;
    let manifest = archive::manifest(&identities, &backup.path).context(naming)?;
    say(&format!("{} is {}", backup.name, told(&manifest)));
    manifest.left.iter().for_each(|left| say(&format!("not in it: {left}")));
    check(host, &manifest, options.replace).context(naming)?;
    if options.dry_run {
        archive::read(&identities, &backup.path, |_| Ok(())).context(naming)?;
        return Ok("everything in it is whole; nothing was changed\n".into());
    }
    let size: u64 = manifest.parts.iter().map(|part| part.size).sum();
    folder::need(host, 2 * size).context(naming)?;
    stage(host, &identities, &backup.path).context(naming)?;
    systemctl(host, &["restart", "--no-block", "chasi-bod-agent.service"])?;
    Ok("the agent brings it back now: `chasi-bod status` says how far it is\n".into())
}

/// Refuses what would not become the same cluster, or would cost another one.
fn check(host: &Host, manifest: &Manifest, replace: bool) -> Result<()> {
    let name = host.line("etc/hostname").to_lowercase();
    if name != manifest.node {
        let error = Error::input(format!("it is of node {}, this one is {name}: volumes and certificates are that node's", manifest.node));
        return Err(error.with_hint(format!("`chasi-bod config set hostname={}` gives this machine its name", manifest.node)));
    }
    if !cluster::is_wanted(host) {
        return Err(Error::input("this image has no Kubernetes"));
    }
    let own = cluster::kubernetes(host)?;
    let fits = minor(&manifest.kubernetes).zip(minor(&own)).is_some_and(|(then, now)| now == then || now == then + 1);
    if !fits {
        let error = Error::input(format!("it is of Kubernetes {}, this image has {own}", manifest.kubernetes));
        return Err(error.with_hint("use an image of its minor version, or of the next one"));
    }
    if (cluster::is_formed(host) || cluster::has_begun(host)) && !replace && pending(host)?.is_none() {
        let own = cluster::authority(host).map(|own| own.hex()).unwrap_or_default();
        let which = if own == manifest.cluster { "this very cluster" } else { "another cluster" };
        let error = Error::input(format!("this node is a part of {which}, which would be given up"));
        return Err(error.with_hint(
            "--replace gives it up. Every other control plane of the backup's cluster has to be off: it would go on with what was, beside this one",
        ));
    }
    Ok(())
}

/// The minor version of `v1.36.3`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("v1.")?.split('.').next()?.parse().ok()
}

/// Reads a backup whole into the state, and says so there.
fn stage(host: &Host, identities: &[super::Identity], backup: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let (partial, ready) = (host.path(PARTIAL), host.path(READY));
    remove_tree(&partial)?;
    fs::create_dir_all(&partial).context(|| format!("making /{PARTIAL}"))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o700)).context(|| format!("making /{PARTIAL}"))?;
    let manifest = archive::read(identities, backup, |found| archive::lay(found, &partial))?;
    let text = serde_json::to_vec_pretty(&manifest).fault(Fault::Internal, || "encoding the manifest".into())?;
    host.write(&format!("{PARTIAL}/{MANIFEST}"), &text, 0o600)?;
    host.sync();
    remove_tree(&ready)?;
    fs::rename(&partial, &ready).context(|| format!("making /{READY}"))?;
    host.sync();
    Ok(())
}

/// What is to be brought back.
pub fn pending(host: &Host) -> Result<Option<Manifest>> {
    let path = format!("{READY}/{MANIFEST}");
    let text = host.read(&path)?;
    text.map(|text| serde_json::from_str(&text).fault(Fault::Environment, || format!("reading /{path}"))).transpose()
}

/// Forgets it, when it is back.
pub fn end(host: &Host) -> Result<()> {
    // The manifest first: what is left without it counts as nothing.
    host.remove(&format!("{READY}/{MANIFEST}"))?;
    host.sync();
    remove_tree(&host.path(READY))
}

/// Puts authorities, keys, etcd's data and volumes in place, on a node on which nothing of a cluster is left.
pub fn lay(host: &Host, node: &Node, manifest: &Manifest) -> Result<()> {
    let staged = host.path(READY);
    for part in manifest.parts.iter().filter(|part| is_laid(host, &part.name)) {
        let bytes = fs::read(staged.join(&part.name)).context(|| format!("reading {}", staged.join(&part.name).display()))?;
        host.write(&part.name, &bytes, 0o600)?;
    }
    volumes(host, &staged, manifest)?;
    let peer = format!("https://{}", std::net::SocketAddr::new(node.address, etcd::PEERS));
    let mut etcdutl = host.program("etcdutl");
    etcdutl.args(["snapshot", "restore"]).arg(staged.join(SNAPSHOT)).arg("--data-dir").arg(host.path("var/lib/etcd"));
    etcdutl.args(["--name", &node.name, "--initial-cluster", &format!("{}={peer}", node.name), "--initial-advertise-peer-urls", &peer]);
    exec::run(etcdutl.args(["--bump-revision", &BUMP.to_string(), "--mark-compacted"]))?;
    host.sync();
    Ok(())
}

/// Authorities and keys. What is made of them, and the settings of this machine, are not the backup's.
fn is_laid(host: &Host, name: &str) -> bool {
    let own_secret = format!("{STATE}/cluster-secret");
    name.starts_with("etc/kubernetes/") || name == own_secret && !host.path(&own_secret).exists()
}

/// Puts volumes in place that this node has not; one that is there has what was written since the backup.
fn volumes(host: &Host, staged: &Path, manifest: &Manifest) -> Result<()> {
    for part in &manifest.parts {
        let Some(name) = volume(&part.name) else { continue };
        let (from, to): (PathBuf, PathBuf) = (staged.join(name), host.path(name));
        if to.exists() || !from.exists() {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(Path::new("/"))).context(|| format!("making the folder of /{name}"))?;
        fs::rename(&from, &to).context(|| format!("putting /{name} in place"))?;
    }
    Ok(())
}

/// The folder of a volume, from its entry.
fn volume(name: &str) -> Option<&str> {
    let name = name.strip_suffix('/')?;
    let (base, folder) = name.rsplit_once('/')?;
    (super::collect::VOLUMES.contains(&base) && !folder.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::archive::{Bytes, Entry, VERSION};
    use super::*;

    #[test]
    fn only_whole_volumes_are_moved_and_versions_go_forward() {
        assert_eq!(volume("var/lib/chasi-bod/volumes/pvc-1/"), Some("var/lib/chasi-bod/volumes/pvc-1"));
        for name in ["var/lib/chasi-bod/volumes/pvc-1/sub/", "var/lib/chasi-bod/volumes/pvc-1/state.db", "var/lib/chasi-bod/volumes/", "etc/"] {
            assert_eq!(volume(name), None, "{name}");
        }
        assert_eq!(["v1.36.3", "v1.9.0", "1.36", "v2.0.0"].map(minor), [Some(36), Some(9), None, None]);
    }

    fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            cluster: "0123456789abcdef".into(),
            uid: None,
            time: "2026-01-01T00:00:00Z".into(),
            node: "n1".into(),
            image: String::new(),
            kubernetes: "v1.36.3".into(),
            revision: 7,
            virtual_clusters: vec!["biz".into()],
            left: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// A machine of the name n1 with the secret, an `etcdutl` that notes what it is asked, and a backup.
    fn machine() -> (tempfile::TempDir, Host, PathBuf, super::super::Identity) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let secret = layers::membership::Secret::parse("0123456789abcdefghijklmnopqrstuvwxyz").unwrap();
        let identity = super::super::Identity::of_cluster(&secret);
        host.write("var/lib/chasi-bod/cluster-secret", secret.reveal().as_bytes(), 0o600).unwrap();
        host.write("etc/hostname", b"n1\n", 0o644).unwrap();
        let text = cluster::kubeadm::shipped();
        host.write("usr/lib/chasi-bod/kubernetes/kubeadm.yaml", text.as_bytes(), 0o644).unwrap();
        let script = format!("#!/bin/sh\necho \"$*\" >> {0}/said\nmkdir -p {0}/var/lib/etcd/member\n", dir.path().display());
        host.write("usr/bin/etcdutl", script.as_bytes(), 0o755).unwrap();
        let here = |name: &str, text: &str| Entry { name: name.into(), mode: 0o640, owner: (0, 0), bytes: Bytes::Here(text.into()) };
        let folder = |name: &str| Entry { name: name.into(), mode: 0o777, owner: (0, 0), bytes: Bytes::Folder };
        let entries = [
            here(SNAPSHOT, "snapshot"),
            here("etc/kubernetes/pki/ca.key", "key"),
            here("var/lib/chasi-bod/console.json", "not for this machine"),
            folder("var/lib/chasi-bod/volumes/pvc-1/"),
            here("var/lib/chasi-bod/volumes/pvc-1/state.db", "store"),
            folder("var/lib/chasi-bod/volumes/pvc-2/"),
            here("var/lib/chasi-bod/volumes/pvc-2/state.db", "of then"),
        ];
        let path = dir.path().join("backup.age");
        let file = fs::File::create(&path).unwrap();
        archive::write(&host, &[identity.recipient()], manifest(), &entries, file).unwrap();
        (dir, host, path, identity)
    }

    fn options(backup: &Path, replace: bool) -> Options {
        let which = Which { backup: Some(backup.display().to_string()), identity: None };
        Options { which, this_node: false, replace, dry_run: false }
    }

    #[test]
    fn g2_what_is_brought_back_is_laid_as_often_as_it_is_cut_off_and_what_is_there_of_volumes_stays() {
        let (_dir, host, backup, _) = machine();
        host.write("var/lib/chasi-bod/volumes/pvc-2/state.db", b"of now", 0o600).unwrap();
        run(&options(&backup, false), &host, &|_| {}).unwrap();
        let staged = pending(&host).unwrap().unwrap();
        assert_eq!(fs::metadata(host.path(READY)).unwrap().permissions().mode() & 0o777, 0o700);
        let node = Node { name: "n1".into(), address: "fd00::5".parse().unwrap() };
        for _ in 0..2 {
            lay(&host, &node, &staged).unwrap();
            assert_eq!(host.read("etc/kubernetes/pki/ca.key").unwrap().as_deref(), Some("key"));
            assert_eq!(host.read("var/lib/chasi-bod/volumes/pvc-1/state.db").unwrap().as_deref(), Some("store"));
            assert_eq!(host.read("var/lib/chasi-bod/volumes/pvc-2/state.db").unwrap().as_deref(), Some("of now"));
            assert!(!host.path("var/lib/chasi-bod/console.json").exists());
        }
        assert_eq!(fs::metadata(host.path("var/lib/chasi-bod/volumes/pvc-1")).unwrap().permissions().mode() & 0o777, 0o777);
        let said = host.read("said").unwrap().unwrap();
        for words in ["--name n1 --initial-cluster n1=https://[fd00::5]:2380", "--bump-revision 1000000000 --mark-compacted"] {
            assert_eq!(said.matches(words).count(), 2, "{said}");
        }
        end(&host).unwrap();
        assert!(pending(&host).unwrap().is_none() && !host.path(READY).exists());
        end(&host).unwrap();
    }

    #[test]
    fn g2_nothing_is_staged_that_does_not_fit_or_is_not_whole() {
        let (_dir, host, backup, _) = machine();
        let refused = |replace: bool| run(&options(&backup, replace), &host, &|_| {}).unwrap_err();
        host.write("etc/hostname", b"n2\n", 0o644).unwrap();
        assert!(refused(true).to_string().contains("it is of node n1, this one is n2"));
        host.write("etc/hostname", b"n1\n", 0o644).unwrap();
        host.write("var/lib/chasi-bod/cluster.json", b"{}", 0o600).unwrap();
        let error = refused(false);
        assert!(error.to_string().contains("a part of another cluster") && error.hint().is_some_and(|hint| hint.contains("--replace")), "{error}");
        let old = cluster::kubeadm::shipped().replace("v1.36.3", "v1.35.9");
        host.write("usr/lib/chasi-bod/kubernetes/kubeadm.yaml", old.as_bytes(), 0o644).unwrap();
        assert!(refused(true).to_string().contains("it is of Kubernetes v1.36.3, this image has v1.35.9"));
        host.write("usr/lib/chasi-bod/kubernetes/kubeadm.yaml", cluster::kubeadm::shipped().as_bytes(), 0o644).unwrap();
        // All of it is read, though its manifest is whole, and what a cut-off run has left does not count.
        host.write(&format!("{PARTIAL}/{MANIFEST}"), b"{}", 0o600).unwrap();
        let whole = fs::read(&backup).unwrap();
        let mut file = fs::File::create(&backup).unwrap();
        file.write_all(&whole[..whole.len() - 1]).unwrap();
        assert!(refused(true).to_string().contains("it is damaged, or cut off"), "{}", refused(true));
        assert!(pending(&host).unwrap().is_none());
        fs::write(&backup, whole).unwrap();
        run(&options(&backup, true), &host, &|_| {}).unwrap();
        assert!(pending(&host).unwrap().is_some());
    }
}
