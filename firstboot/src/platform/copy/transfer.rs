//! The way of a snapshot between the pod that copies and a file of this node: through `kubectl exec`, checked by its digest at the other end.

use std::fs::{self, File};
use std::io::Seek as _;
use std::process::{Command, Stdio};

use layers::reference::Reference;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};

use super::oci;
use super::pod::{KEEPER, NAME, SNAPSHOT};
use crate::cluster::api::ADMIN;
use crate::exec;
use crate::host::{Host, STATE};
use crate::images::artifact;

/// Where snapshots lie on a control plane, below the state.
const FOLDER: &str = "snapshots";

/// A snapshot that lies somewhere whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Copied {
    pub size: u64,
    pub digest: Digest,
}

impl Copied {
    /// From the line that the keeper leaves: size, digest, path.
    pub fn read(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let read = words.next().and_then(|size| size.parse().ok()).zip(words.next().and_then(|digest| digest.parse().ok()));
        let (size, digest) = read.ok_or_else(|| Error::environment(format!("reading size and digest of the snapshot: `{line}`")))?;
        Ok(Self { size, digest })
    }
}

/// Path of a snapshot of this node.
pub fn path(name: &str) -> String {
    format!("{STATE}/{FOLDER}/{name}")
}

/// Takes the pod's snapshot into a file of the node, whole or not at all.
pub fn to_file(host: &Host, namespace: &str, name: &str) -> Result<Copied> {
    let (target, partial) = (host.path(&path(name)), host.path(&path(&format!("{name}.partial"))));
    let writing = || format!("writing /{}", path(name));
    fs::create_dir_all(folder(host)).context(writing)?;
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&partial).context(writing)?;
    let copied = fetch(host, namespace, &mut file).context(writing)?;
    file.sync_all().context(writing)?;
    fs::rename(&partial, &target).context(writing)?;
    Ok(copied)
}

/// Takes the pod's snapshot to a registry.
pub fn to_registry(host: &Host, namespace: &str, reference: &Reference) -> Result<Copied> {
    let mut file = scratch(host)?;
    let copied = fetch(host, namespace, &mut file)?;
    artifact::push(host, reference, &oci::SNAPSHOT, &file, copied.size, copied.digest)?;
    Ok(copied)
}

/// Gives the pod a snapshot from a file of the node.
pub fn from_file(host: &Host, namespace: &str, name: &str) -> Result<()> {
    let mut file = File::open(host.path(&path(name))).context(|| format!("reading /{}", path(name)))?;
    put(host, namespace, &mut file)
}

/// Gives the pod a snapshot from a registry.
pub fn from_registry(host: &Host, namespace: &str, reference: &Reference) -> Result<()> {
    let mut file = scratch(host)?;
    artifact::pull(host, reference, &oci::SNAPSHOT, &mut file)?;
    put(host, namespace, &mut file)
}

/// Refuses a file that there is not, or that is no gzip (RFC 1952).
pub fn check(host: &Host, field: &str, name: &str) -> Result<()> {
    match host.read_start(&path(name), 2)? {
        None => Err(Error::input(format!("{field}: this node, which leads, has no /{}", path(name)))),
        Some(bytes) if bytes != [0x1f, 0x8b] => Err(Error::input(format!("{field}: /{} is no snapshot: it is not compressed by gzip", path(name)))),
        Some(_) => Ok(()),
    }
}

fn folder(host: &Host) -> std::path::PathBuf {
    host.path(&format!("{STATE}/{FOLDER}"))
}

/// A file that goes with the process.
fn scratch(host: &Host) -> Result<File> {
    let making = || "making a scratch file".to_string();
    fs::create_dir_all(folder(host)).context(making)?;
    tempfile::tempfile_in(folder(host)).context(making)
}

fn fetch(host: &Host, namespace: &str, file: &mut File) -> Result<Copied> {
    let tell = format!("echo $(busybox stat -c %s {SNAPSHOT}) $(busybox sha256sum {SNAPSHOT})");
    let said = exec::run(in_pod(host, namespace, None).arg(tell))?.stdout;
    let copied = Copied::read(&String::from_utf8_lossy(&said))?;
    let to = file.try_clone().fault(Fault::Environment, || "copying the snapshot".into())?;
    exec::between(in_pod(host, namespace, None).arg(format!("cat {SNAPSHOT}")), Stdio::null(), to.into())?;
    let found = digest(file)?;
    if found != copied.digest {
        return Err(Error::environment(format!("copying the snapshot: {found} came, not {}", copied.digest)));
    }
    Ok(copied)
}

fn put(host: &Host, namespace: &str, file: &mut File) -> Result<()> {
    let digest = digest(file)?.hex();
    file.rewind().fault(Fault::Environment, || "reading the snapshot".into())?;
    let from = file.try_clone().fault(Fault::Environment, || "reading the snapshot".into())?;
    // It may be there from an earlier look, and the worker at it.
    let script = format!(
        "[ -e {SNAPSHOT} ] || {{ cat >{SNAPSHOT}.partial && echo '{digest}  {SNAPSHOT}.partial' | busybox sha256sum -c && busybox mv {SNAPSHOT}.partial {SNAPSHOT}; }}"
    );
    exec::between(in_pod(host, namespace, Some("-i")).arg(script), from.into(), Stdio::null())
}

fn digest(file: &mut File) -> Result<Digest> {
    let reading = || "reading the snapshot".to_string();
    file.rewind().fault(Fault::Environment, reading)?;
    Digest::of_reader(file).fault(Fault::Environment, reading)
}

/// A shell in the keeper, still without its script.
fn in_pod(host: &Host, namespace: &str, option: Option<&str>) -> Command {
    let mut kubectl = host.program("kubectl");
    kubectl.arg("--kubeconfig").arg(host.path(ADMIN)).args([&format!("--namespace={namespace}"), "exec"]).args(option);
    kubectl.args([NAME, &format!("--container={KEEPER}"), "--", "/usr/bin/busybox", "sh", "-c"]);
    kubectl
}
