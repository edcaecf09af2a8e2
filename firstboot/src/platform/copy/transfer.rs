//! The way of a snapshot between the pod that copies and a file of this node: through `kubectl exec`, checked by its digest at the other end.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};

use super::pod::{KEEPER, NAME, SNAPSHOT};
use crate::cluster::api::ADMIN;
use crate::exec;
use crate::host::{Host, STATE};

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

/// Takes the pod's snapshot into a file, whole or not at all.
pub fn fetch(host: &Host, namespace: &str, name: &str) -> Result<Copied> {
    let said =
        exec::run(in_pod(host, namespace, "").args([&format!("echo $(busybox stat -c %s {SNAPSHOT}) $(busybox sha256sum {SNAPSHOT})")]))?.stdout;
    let copied = Copied::read(&String::from_utf8_lossy(&said))?;
    let (target, partial) = (host.path(&path(name)), host.path(&path(&format!("{name}.partial"))));
    let writing = || format!("writing /{}", path(name));
    fs::create_dir_all(host.path(&format!("{STATE}/{FOLDER}"))).context(writing)?;
    let file = File::create(&partial).context(writing)?;
    let to = file.try_clone().context(writing)?;
    exec::between(in_pod(host, namespace, "").arg(format!("cat {SNAPSHOT}")), Stdio::null(), to.into())?;
    file.sync_all().context(writing)?;
    let digest = digest(&partial)?;
    if digest != copied.digest {
        return Err(Error::environment(format!("{}: {digest} came, not {}", writing(), copied.digest)));
    }
    fs::rename(&partial, &target).context(writing)?;
    Ok(copied)
}

/// Gives the pod a snapshot from a file.
pub fn put(host: &Host, namespace: &str, name: &str) -> Result<()> {
    let from = host.path(&path(name));
    let digest = digest(&from)?.hex();
    let file = File::open(&from).context(|| format!("reading /{}", path(name)))?;
    let script =
        format!("cat >{SNAPSHOT}.partial && echo '{digest}  {SNAPSHOT}.partial' | busybox sha256sum -c && busybox mv {SNAPSHOT}.partial {SNAPSHOT}");
    exec::between(in_pod(host, namespace, "-i").arg(script), file.into(), Stdio::null())
}

/// Refuses a file that there is not, or that is no gzip (RFC 1952).
pub fn check(host: &Host, field: &str, name: &str) -> Result<()> {
    match host.read_start(&path(name), 2)? {
        None => Err(Error::input(format!("{field}: this node, which leads, has no /{}", path(name)))),
        Some(bytes) if bytes != [0x1f, 0x8b] => Err(Error::input(format!("{field}: /{} is no snapshot: it is not compressed by gzip", path(name)))),
        Some(_) => Ok(()),
    }
}

fn digest(path: &std::path::Path) -> Result<Digest> {
    let reading = || format!("reading {}", path.display());
    Digest::of_reader(File::open(path).context(reading)?).fault(Fault::Environment, reading)
}

/// A shell in the keeper, still without its script.
fn in_pod(host: &Host, namespace: &str, option: &str) -> Command {
    let mut kubectl = host.program("kubectl");
    kubectl.arg("--kubeconfig").arg(host.path(ADMIN)).args([&format!("--namespace={namespace}"), "exec"]);
    kubectl.args(Some(option).filter(|option| !option.is_empty()));
    kubectl.args([NAME, &format!("--container={KEEPER}"), "--", "/usr/bin/busybox", "sh", "-c"]);
    kubectl
}
