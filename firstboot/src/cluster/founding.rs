//! A founding that was cut off, by a power cut in any phase of kubeadm, may have left files that are empty or half written and a control
//! plane that runs with them. Nobody has used it yet: it is undone whole, and begun again.

use layers::{Error, Result};

use super::{Formed, Reporter};
use crate::exec;
use crate::host::{Host, STATE, remove_tree};
use crate::status::State;

/// There from before the first file of a founding until after the record that it is through.
fn mark() -> String {
    format!("{STATE}/founding")
}

/// Says that a founding begins; undoes the one before, if that did not end.
pub fn begin(host: &Host, reporter: &Reporter) -> Result<()> {
    if super::exists(host, &mark()) {
        reporter.say("cluster", State::Running, "undoing a founding that was cut off", None);
        // What it has started runs there.
        super::wait_for_runtime(&host.path(super::CONTAINERD), reporter);
        undo(host)?;
    }
    host.write(&mark(), b"", 0o600)?;
    host.sync();
    Ok(())
}

/// Says that a cluster begins in whose place nothing of another one may be left.
pub fn begin_anew(host: &Host, reporter: &Reporter) -> Result<()> {
    host.write(&mark(), b"", 0o600)?;
    host.sync();
    begin(host, reporter)
}

/// Whether one was begun that is not through.
pub fn has_begun(host: &Host) -> bool {
    super::exists(host, &mark())
}

/// Says that the founding is through, which is on the disk already.
pub fn end(host: &Host) -> Result<()> {
    host.remove(&made())?;
    host.remove(&mark()).map(drop)
}

/// What a cluster is that is made, and that the other nodes have not chosen yet.
fn made() -> String {
    format!("{STATE}/made.json")
}

/// Keeps what this node is in the cluster that it has made.
pub fn keep(host: &Host, formed: &Formed) -> Result<()> {
    formed.write(host, &made())
}

/// The same once the cluster is chosen.
pub fn kept(host: &Host) -> Result<Formed> {
    Formed::read(host, &made())?.ok_or_else(|| Error::environment(format!("reading /{}: no such file", made())))
}

/// Leaves nothing of a cluster that this node has begun or made, and that the others have not chosen.
pub fn abandon(host: &Host, reporter: &Reporter) -> Result<()> {
    if super::exists(host, &mark()) {
        reporter.say("cluster", State::Running, "undoing this node's own cluster: the nodes have agreed on another one", None);
        super::wait_for_runtime(&host.path(super::CONTAINERD), reporter);
        undo(host)?;
        end(host)?;
    }
    Ok(())
}

/// Takes away what kubeadm and the agent have made of a control plane.
pub fn undo(host: &Host) -> Result<()> {
    // With the operator's kubeconfig kubeadm would ask the API first, and wait for it.
    host.remove(super::api::ADMIN)?;
    let fixed = ["--force", "--skip-phases=preflight,remove-etcd-member", "--cri-socket=unix:///run/containerd/containerd.sock"];
    exec::run(host.program("kubeadm").arg("reset").args(fixed))?;
    for folder in ["var/lib/etcd", "etc/kubernetes/chasi-bod", "etc/kubernetes/pki", "etc/cni/net.d"] {
        remove_tree(&host.path(folder))?;
    }
    host.remove(&made())?;
    host.sync();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn f1_what_a_founding_that_was_cut_off_has_left_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let (host, (sender, said)) = (Host::new(dir.path()), channel());
        let reporter = Reporter { sender, up: None };
        let script = format!("#!/bin/sh\ntest ! -e {0}/etc/kubernetes/admin.conf && echo \"$*\" >> {0}/said\n", dir.path().display());
        host.write("usr/bin/kubeadm", script.as_bytes(), 0o755).unwrap();
        std::fs::create_dir_all(host.path("run/containerd")).unwrap();
        let _containerd = std::os::unix::net::UnixListener::bind(host.path(crate::cluster::CONTAINERD)).unwrap();
        begin(&host, &reporter).unwrap();
        assert_eq!(said.try_iter().count(), 0);
        let half = ["etc/kubernetes/admin.conf", "etc/kubernetes/pki/ca.crt", "var/lib/etcd/member/wal", "etc/cni/net.d/10-chasi-bod.conflist"];
        for path in half {
            host.write(path, b"", 0o600).unwrap();
        }
        begin(&host, &reporter).unwrap();
        assert!(half.iter().all(|path| !host.path(path).exists()));
        assert!(host.read("said").unwrap().unwrap().starts_with("reset --force"));
        end(&host).unwrap();
        host.write(half[0], b"", 0o600).unwrap();
        begin(&host, &reporter).unwrap();
        assert!(host.path(half[0]).exists(), "a founding that is through is never undone");
    }
}
