//! Certificates of the node in its cluster. kubeadm makes a control plane's for a year; the agent renews them in time, without asking the
//! API, so that a machine that was off for longer heals, too. Kubelets rotate theirs themselves.
//!
//! API server and etcd read renewed files at the next connection. Scheduler and controller manager have theirs inside a kubeconfig, which
//! they read once: their containers are restarted, one after the other.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use layers::{Context, Error, Result};
use x509_cert::Certificate;
use x509_cert::der::DecodePem as _;

use super::kubeadm::{self, Documents};
use super::{DUMMY, Formed, Node, Reporter, api, formed_path};
use crate::exec;
use crate::host::{Host, RUN, remove_tree};
use crate::images::config::NODE_CERTIFICATE as KUBELET;
use crate::status::State;

const ETC: &str = "etc/kubernetes";
/// Kubeconfigs with a certificate inside that kubeadm renews.
const KUBECONFIGS: [&str; 4] = ["admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf"];
const KUBELET_CONFIG: &str = "etc/kubernetes/kubelet.conf";
/// What there was before a renewal, until it is through: kubeadm takes names from the old files and writes over them.
const SAVED: &str = "etc/kubernetes/chasi-bod/before-renewal";
/// There while programs run that have read what was renewed since; a reboot starts them anew, too.
const STALE: &str = "run/chasi-bod/renewed";
/// What restarts to read its kubeconfig, and its port on loopback.
const RESTARTED: [(&str, u16); 2] = [("kube-controller-manager", 10257), ("kube-scheduler", 10259)];

const DAY: i64 = 86_400;
/// Renewed when fewer days are left.
const DAYS: i64 = 90;
const PERIOD: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(600);

/// Looks at the certificates at once and every hour, renews what is due, and reports as condition `certificates`; never returns.
pub fn keep(host: &Host, reporter: &Reporter) {
    loop {
        let pause = match super::is_formed(host).then(|| look(host)) {
            None => super::CALM,
            Some(Ok((state, detail))) => {
                reporter.say("certificates", state, detail, None);
                PERIOD
            }
            Some(Err(error)) => {
                reporter.say("certificates", State::Failed, error.to_string(), Some("it is tried again every minute"));
                RETRY
            }
        };
        std::thread::sleep(pause);
    }
}

/// Renews what is due; the condition of what there is then.
fn look(host: &Host) -> Result<(State, String)> {
    let _lock = lock(host)?;
    restore(host)?;
    let due = is_control_plane(host) && read_all(host)?.iter().any(|found| found.use_ == Use::Leaf && found.not_after < now() + DAYS * DAY);
    if due {
        renew(host)?;
    }
    let renewed = super::exists(host, STALE);
    restart_stale(host)?;
    if is_control_plane(host) && kubelet_is_locked_out(host) {
        revive_kubelet(host)?;
    }
    let all = read_all(host)?;
    if let Some(authority) = all.iter().find(|found| found.use_ == Use::Authority && found.not_after < now() + DAYS * DAY) {
        return Ok((State::Failed, format!("the authority /{} is valid only until {}", authority.path, date(authority.not_after))));
    }
    let Some(first) = all.iter().filter(|found| found.use_ != Use::Authority).min_by_key(|found| found.not_after) else {
        return Ok((State::Waiting, "for the node's first certificate".into()));
    };
    Ok((State::Done, format!("{}valid until {}", if renewed { "renewed, " } else { "" }, date(first.not_after))))
}

/// The operator's way to [`keep`]'s work: renews all now; one line per certificate.
pub fn renew_now(host: &Host) -> Result<Vec<String>> {
    if !is_control_plane(host) {
        let error = Error::environment("renewing certificates: this node is no control plane, or has not founded its cluster yet");
        return Err(error.with_hint("kubelets renew theirs by themselves; see `chasi-bod status`"));
    }
    let _lock = lock(host)?;
    restore(host)?;
    renew(host)?;
    restart_stale(host)?;
    Ok(read_all(host)?.iter().map(|found| format!("{}  /{}", date(found.not_after), found.path)).collect())
}

fn is_control_plane(host: &Host) -> bool {
    super::exists(host, api::ADMIN) && super::exists(host, "etc/kubernetes/pki/ca.key")
}

/// Who makes a certificate anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// We do.
    Leaf,
    /// The kubelet does.
    Kubelet,
    /// Nobody does by itself.
    Authority,
}

#[derive(Debug, PartialEq)]
struct Found {
    path: String,
    use_: Use,
    /// Seconds since 1970.
    not_after: i64,
}

/// Every certificate of the node.
fn read_all(host: &Host) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for folder in [format!("{ETC}/pki"), format!("{ETC}/pki/etcd")] {
        for name in host.names(&folder).iter().filter(|name| name.ends_with(".crt")) {
            let path = format!("{folder}/{name}");
            let text = host.read(&path)?.unwrap_or_default();
            let use_ = if name.ends_with("ca.crt") { Use::Authority } else { Use::Leaf };
            found.push(Found { not_after: not_after(&text).context(|| format!("reading /{path}"))?, use_, path });
        }
    }
    for name in KUBECONFIGS {
        let path = format!("{ETC}/{name}");
        if let Some(text) = host.read(&path)? {
            found.push(Found { not_after: of_kubeconfig(&text).context(|| format!("reading /{path}"))?, use_: Use::Leaf, path });
        }
    }
    if let Some(text) = host.read(KUBELET)? {
        found.push(Found { not_after: not_after(&text).context(|| format!("reading /{KUBELET}"))?, use_: Use::Kubelet, path: KUBELET.into() });
    }
    Ok(found)
}

/// End of validity of the first certificate of a PEM text, in seconds since 1970.
fn not_after(text: &str) -> Result<i64> {
    const END: &str = "-----END CERTIFICATE-----";
    let block = text.find("-----BEGIN CERTIFICATE-----").and_then(|start| Some(&text[start..start + text[start..].find(END)? + END.len()]));
    let block = block.ok_or_else(|| Error::environment("there is no certificate in it"))?;
    let certificate = Certificate::from_pem(block).map_err(|e| Error::environment(e.to_string()))?;
    Ok(i64::try_from(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}

fn of_kubeconfig(text: &str) -> Result<i64> {
    let document: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| Error::environment(e.without_snippet().to_string()))?;
    let data = document["users"][0]["user"]["client-certificate-data"].as_str().and_then(layers::settings::decode_base64);
    not_after(&String::from_utf8_lossy(&data.ok_or_else(|| Error::environment("there is no client certificate in it"))?))
}

/// Seconds since 1970.
fn now() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.strftime("%Y-%m-%d").to_string())
}

/// The agent and an operator may both want to renew; the files change under one of them only.
fn lock(host: &Host) -> Result<File> {
    let lock = File::create(host.path(RUN).join("renewal.lock")).context(|| "creating the lock of the renewal".into())?;
    lock.lock().context(|| "waiting for another renewal".into())?;
    Ok(lock)
}

/// Renews every certificate that kubeadm made; [`restart_stale`] goes with it.
fn renew(host: &Host) -> Result<()> {
    save(host).context(|| "saving the certificates".into())?;
    host.write(STALE, b"", 0o600)?;
    if let Err(error) = kubeadm(host, &["certs", "renew", "all"]) {
        restore(host)?;
        return Err(error);
    }
    host.sync();
    remove_tree(&host.path(SAVED))
}

/// Restarts what does not read renewed files by itself, one after the other; nothing when nothing was renewed.
fn restart_stale(host: &Host) -> Result<()> {
    if super::exists(host, STALE) {
        RESTARTED.iter().try_for_each(|(name, port)| restart(host, name, *port))?;
        host.remove(STALE)?;
    }
    Ok(())
}

/// Runs kubeadm with this node's configuration: it shall not ask an API that may be away.
fn kubeadm(host: &Host, words: &[&str]) -> Result<()> {
    // How many control planes there are is not in any certificate, and names are taken from the old ones.
    kubeadm::call(host, "renewal.yaml", words, &Documents::read(host)?.for_founder(&recorded(host)?, 1, None)?, PATIENCE)
}

/// The node as its cluster knows it.
pub fn recorded(host: &Host) -> Result<Node> {
    let path = formed_path();
    let formed = Formed::read(host, &path)?.ok_or_else(|| Error::environment(format!("reading /{path}: no such file")))?;
    Ok(Node { name: formed.node, address: formed.address.unwrap_or(DUMMY) })
}

fn restart(host: &Host, name: &str, port: u16) -> Result<()> {
    let crictl = |words: &[&str]| exec::run(host.program("crictl").args(["--timeout", "60s"]).args(words));
    let listed = crictl(&["ps", "--quiet", "--state", "Running", "--name", &format!("^{name}$")])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for id in listed.lines() {
        crictl(&["stop", "--timeout", "20", id])?;
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if Instant::now() > end {
                return Err(Error::environment(format!("restarting {name}: nothing answers on port {port}")).with_hint("see `crictl ps -a`"));
            }
            std::thread::sleep(super::CALM);
        }
    }
    Ok(())
}

/// Whether the kubelet has no way to its API any more: the node was off for longer than its certificate was valid.
fn kubelet_is_locked_out(host: &Host) -> bool {
    let expired = |text: String| not_after(&text).is_ok_and(|end| end < now());
    !super::exists(host, KUBELET_CONFIG) || host.read(KUBELET).ok().flatten().is_some_and(expired)
}

/// Gives the kubelet a first certificate again; it rotates from there.
fn revive_kubelet(host: &Host) -> Result<()> {
    host.remove(KUBELET_CONFIG)?;
    host.remove(KUBELET)?;
    kubeadm(host, &["init", "phase", "kubeconfig", "kubelet"])?;
    host.sync();
    exec::run(host.program("systemctl").args(["restart", "--no-block", "kubelet.service"])).map(drop)
}

/// Copies what a renewal writes over, whole or not at all.
fn save(host: &Host) -> Result<()> {
    let (draft, saved) = (host.path(&format!("{SAVED}.partial")), host.path(SAVED));
    remove_tree(&draft)?;
    copy_tree(&host.path(ETC).join("pki"), &draft.join("pki"))?;
    for name in KUBECONFIGS.iter().filter(|name| host.path(ETC).join(name).exists()) {
        fs::copy(host.path(ETC).join(name), draft.join(name)).context(|| format!("copying {name}"))?;
    }
    host.sync();
    fs::rename(&draft, &saved).context(|| format!("creating {}", saved.display()))?;
    host.sync();
    Ok(())
}

/// Undoes a renewal that was cut off, if there was one: its files may be half written.
fn restore(host: &Host) -> Result<()> {
    let saved = host.path(SAVED);
    if !saved.exists() {
        return Ok(());
    }
    copy_tree(&saved, &host.path(ETC)).context(|| "restoring the certificates".into())?;
    host.sync();
    remove_tree(&saved)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).context(|| format!("listing {}", from.display()))?.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target).context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine as _};

    use super::*;

    const DUE: &str = include_str!("../../tests/certificates/due.crt");
    const LONG: &str = include_str!("../../tests/certificates/long.crt");

    fn kubeconfig(certificate: &str) -> String {
        serde_json::json!({"users": [{"user": {"client-certificate-data": BASE64_STANDARD.encode(certificate)}}]}).to_string()
    }

    /// A control plane whose kubeadm is a script.
    fn control_plane(kubeadm: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let file = |path: &str, text: &str| host.write(path, text.as_bytes(), 0o600).unwrap();
        file("etc/kubernetes/pki/ca.crt", LONG);
        file("etc/kubernetes/pki/ca.key", "key");
        file("etc/kubernetes/pki/etcd/server.crt", LONG);
        file("etc/kubernetes/pki/apiserver.crt", DUE);
        file("etc/kubernetes/admin.conf", &kubeconfig(LONG));
        file(KUBELET, LONG);
        file(KUBELET_CONFIG, "");
        file(&formed_path(), r#"{"node":"n","address":"10.0.0.5"}"#);
        file(&format!("{RUN}/x"), "");
        file(&format!("{}/kubeadm.yaml", layers::node::KUBERNETES), &super::super::kubeadm::shipped());
        file("new.crt", LONG);
        let script = format!("#!/bin/sh\ncd {}\necho \"$*\" >> said\ntest -s \"$5\" || test -s \"$6\" || exit 9\n{kubeadm}\n", dir.path().display());
        host.write("usr/bin/kubeadm", script.as_bytes(), 0o755).unwrap();
        host.write("usr/bin/crictl", b"#!/bin/sh\n", 0o755).unwrap();
        host.write("usr/bin/systemctl", format!("#!/bin/sh\necho \"$*\" >> {}/said\n", dir.path().display()).as_bytes(), 0o755).unwrap();
        (dir, host)
    }

    const RENEW: &str = "cp new.crt etc/kubernetes/pki/apiserver.crt";

    #[test]
    fn g4_what_ends_within_90_days_is_renewed_and_what_does_not_is_left_alone() {
        let (_dir, host) = control_plane(RENEW);
        let (state, detail) = look(&host).unwrap();
        assert_eq!((state, detail.as_str()), (State::Done, format!("renewed, valid until {}", date(not_after(LONG).unwrap())).as_str()));
        assert!(host.read("said").unwrap().unwrap().starts_with("certs renew all --config "));
        assert!(!host.path(SAVED).exists() && !host.path("run/chasi-bod/renewal.yaml").exists(), "keys and tokens are left behind");
        assert!(look(&host).unwrap().1.starts_with("valid until"));
        assert_eq!(host.read("said").unwrap().unwrap().lines().count(), 1);
    }

    #[test]
    fn what_could_not_be_restarted_is_restarted_later() {
        let (dir, host) = control_plane(RENEW);
        let crictl = |end: &str| format!("#!/bin/sh\necho \"$*\" >> {}/said\n{end}\n", dir.path().display());
        host.write("usr/bin/crictl", crictl("exit 1").as_bytes(), 0o755).unwrap();
        assert!(look(&host).unwrap_err().to_string().contains("crictl"));
        host.write("usr/bin/crictl", crictl("").as_bytes(), 0o755).unwrap();
        look(&host).unwrap();
        look(&host).unwrap();
        let said = host.read("said").unwrap().unwrap();
        assert_eq!(said.matches("--name ^kube-scheduler$").count(), 1, "{said}");
        assert_eq!(said.matches("certs renew all").count(), 1, "{said}");
    }

    #[test]
    fn a_renewal_that_fails_or_is_cut_off_leaves_the_old_files() {
        let (_dir, host) = control_plane(": > etc/kubernetes/pki/apiserver.crt; echo why >&2; exit 1");
        let error = look(&host).unwrap_err().to_string();
        assert!(error.contains("certs renew all") && error.contains("why"), "{error}");
        assert_eq!(host.read("etc/kubernetes/pki/apiserver.crt").unwrap().as_deref(), Some(DUE));
        save(&host).unwrap();
        host.write("etc/kubernetes/pki/apiserver.crt", b"", 0o600).unwrap();
        host.write("etc/kubernetes/admin.conf", b"", 0o600).unwrap();
        restore(&host).unwrap();
        assert_eq!(host.read("etc/kubernetes/pki/apiserver.crt").unwrap().as_deref(), Some(DUE));
        assert_eq!(host.read("etc/kubernetes/admin.conf").unwrap(), Some(kubeconfig(LONG)));
        assert!(!host.path(SAVED).exists());
    }

    #[test]
    fn g4_a_kubelet_that_was_off_for_too_long_gets_a_new_first_certificate() {
        let (_dir, host) = control_plane(&format!("{RENEW}; echo new > etc/kubernetes/kubelet.conf"));
        look(&host).unwrap();
        assert!(!host.read("said").unwrap().unwrap().contains("kubelet"));
        host.remove(KUBELET_CONFIG).unwrap();
        look(&host).unwrap();
        let said = host.read("said").unwrap().unwrap();
        assert!(said.contains("init phase kubeconfig kubelet --config") && said.ends_with("restart --no-block kubelet.service\n"), "{said}");
    }

    #[test]
    fn an_authority_that_ends_is_named_and_a_damaged_certificate_is_an_error() {
        let (_dir, host) = control_plane(RENEW);
        host.write("etc/kubernetes/pki/ca.crt", DUE.as_bytes(), 0o600).unwrap();
        let (state, detail) = look(&host).unwrap();
        assert!(state == State::Failed && detail.contains("/etc/kubernetes/pki/ca.crt"), "{detail}");
        host.write("etc/kubernetes/pki/etcd/server.crt", &LONG.as_bytes()[..200], 0o600).unwrap();
        assert!(look(&host).unwrap_err().to_string().contains("reading /etc/kubernetes/pki/etcd/server.crt"));
    }
}
