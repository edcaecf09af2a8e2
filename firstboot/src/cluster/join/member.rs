//! The joining side: from an endpoint and a secret to a kubelet with credentials of its own.

use std::net::IpAddr;

use layers::membership::Secret;
use layers::settings::Settings;
use layers::{Error, Result};

use super::{Grant, Request, Trouble, VERSION, Wants, ask};
use crate::cluster::kubeadm::{self, ENDPOINT_NAME};
use crate::cluster::{Formed, Node, Reporter, exists, runtime};
use crate::host::Host;
use crate::images::config::CLUSTER_CA as AUTHORITY;
use crate::status::State;
use crate::steps::{set_further_names, systemctl};

/// The kubelet's own credentials: it writes this file when the cluster has signed its certificate.
const CREDENTIALS: &str = "etc/kubernetes/kubelet.conf";
/// Credentials of the token, useless when the kubelet has its own.
const BOOTSTRAP: &str = "etc/kubernetes/bootstrap-kubelet.conf";

/// Makes this machine a worker of the cluster at the configured endpoint. May be called in any state that a kill has left; `None` means that
/// something is waited for, which has been reported.
pub fn join(host: &Host, name: &str, settings: &Settings, reporter: &Reporter) -> Result<Option<Formed>> {
    let wait = |what: String, hint: &str| reporter.say("cluster", State::Waiting, what, Some(hint));
    let (Some(endpoint), Some(secret)) = (&settings.endpoint, &settings.secret) else {
        let missing = if settings.endpoint.is_none() { "cluster.endpoint" } else { "cluster.secret" };
        wait(format!("for the setting {missing}"), "`chasi-bod cluster secret` on the founder prints the secret; `chasi-bod config set` takes both");
        return Ok(None);
    };
    if exists(host, "etc/kubernetes/manifests/kube-apiserver.yaml") {
        let error = Error::input("joining a cluster: this node has begun to found one itself");
        return Err(error.with_hint("take `cluster.endpoint` and the role back, or install the node anew"));
    }
    if !exists(host, CREDENTIALS) {
        match request(host, name, &endpoint.value, &secret.value)? {
            Ok((grant, address)) => run(host, &Node { name: name.into(), address }, &grant, reporter)?,
            Err(Trouble::Silent(why)) => {
                wait(format!("for {}: {why}", endpoint.value), "check `cluster.endpoint` here and `chasi-bod status` on the founder");
                return Ok(None);
            }
            Err(Trouble::Refused(why)) => {
                let error = Error::environment(format!("joining through {}: {why}", endpoint.value));
                return Err(error.with_hint("see `journalctl -u chasi-bod-agent.service` on the founder, too"));
            }
        }
    }
    host.remove(BOOTSTRAP)?;
    systemctl(host, &["start", "--no-block", "kubelet.service"])?;
    Ok(Some(Formed { node: name.into(), address: None }))
}

fn request(host: &Host, name: &str, endpoint: &str, secret: &Secret) -> Result<std::result::Result<(Grant, IpAddr), Trouble>> {
    let request = Request { version: VERSION, name: name.into(), machine: host.line("etc/machine-id"), wants: Wants::Worker };
    Ok(runtime()?.block_on(ask(endpoint, secret, &request)))
}

/// Runs kubeadm with what was granted; a token that has ended or an authority that is another one is kubeadm's to tell.
fn run(host: &Host, node: &Node, grant: &Grant, reporter: &Reporter) -> Result<()> {
    reporter.say("cluster", State::Running, format!("joining {}", grant.endpoint), None);
    let config = kubeadm::Documents::read(host)?.for_worker(node, grant)?;
    set_further_names(host, &format!("{} {ENDPOINT_NAME}\n", grant.endpoint.ip()))?;
    // kubeadm keeps the authority that is there, which may be of a cluster that this node tried to join before.
    [BOOTSTRAP, AUTHORITY].iter().try_for_each(|path| host.remove(path).map(|_| ()))?;
    kubeadm::run(host, "join", &config, reporter)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc::channel;

    use layers::settings::Item;
    use tokio::net::TcpListener;

    use super::*;
    use crate::cluster::join::{Answer, serve};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// A folder with the image's documents and a kubeadm that does what the script says.
    fn fake(script: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.write("usr/lib/chasi-bod/kubernetes/kubeadm.yaml", kubeadm::shipped().as_bytes(), 0o444).unwrap();
        host.write("etc/hostname", b"n\n", 0o644).unwrap();
        host.write("etc/machine-id", b"0123456789abcdef0123456789abcdef\n", 0o444).unwrap();
        host.write("usr/bin/kubeadm", format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display()).as_bytes(), 0o755).unwrap();
        (dir, host)
    }

    fn settings(endpoint: Option<&str>, secret: &str) -> Settings {
        let json = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"n","network":{},"disk":{},"time":{},"console":{}}"#;
        let mut settings = Settings::of_image(&serde_json::from_str(json).unwrap());
        settings.set(&Item::text("cluster.secret", secret, "test")).unwrap();
        if let Some(endpoint) = endpoint {
            settings.set(&Item::text("cluster.endpoint", endpoint, "test")).unwrap();
        }
        settings
    }

    /// A service on loopback, in a thread that ends with the test's process.
    fn service() -> String {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            runtime().unwrap().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap().to_string()).unwrap();
                let numbers = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
                let make = move |request: Request, here: IpAddr| {
                    let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    assert_eq!((request.name.as_str(), request.machine.as_str()), ("n", "0123456789abcdef0123456789abcdef"));
                    let grant = Grant { endpoint: (here, 6443).into(), authorities: vec!["sha256:00".into()], token: format!("abcdef.{number:016}") };
                    async { Answer::Granted(grant) }
                };
                serve(listener, Secret::parse(SECRET).unwrap(), make, |_| ()).await;
            });
        });
        receiver.recv().unwrap()
    }

    fn reporter() -> (Reporter, std::sync::mpsc::Receiver<crate::cluster::Report>) {
        let (sender, receiver) = channel();
        (Reporter { sender, up: None }, receiver)
    }

    #[test]
    fn f4_a_token_that_has_ended_is_replaced_by_a_new_one() {
        let (_dir, host) = fake(
            "grep -o 'abcdef\\.[0-9]*' run/chasi-bod/kubeadm.yaml >>tokens\n\
             mkdir -p etc/kubernetes/pki; echo half >etc/kubernetes/bootstrap-kubelet.conf; echo other >etc/kubernetes/pki/ca.crt\n\
             test $(wc -l <tokens) = 1 && { echo 'error: token id \"abcdef\" is invalid for this cluster or it has expired' >&2; exit 1; }\n\
             echo '[kubelet-start] Starting the kubelet'; touch etc/kubernetes/kubelet.conf",
        );
        let (reporter, said) = reporter();
        let settings = settings(Some(&service()), SECRET);
        let error = join(&host, "n", &settings, &reporter).unwrap_err().to_string();
        assert!(error.contains("kubeadm join") && error.contains("it has expired"), "{error}");
        assert!(!exists(&host, "run/chasi-bod/kubeadm.yaml"), "the token stays behind");
        assert_eq!(join(&host, "n", &settings, &reporter).unwrap().unwrap().node, "n");
        assert_eq!(host.read("tokens").unwrap().unwrap(), "abcdef.0000000000000000\nabcdef.0000000000000001\n");
        assert!(host.read("etc/hosts").unwrap().unwrap().ends_with("\n127.0.0.1 kube-api.chasi-bod.internal\n"));
        assert!(!exists(&host, BOOTSTRAP));
        assert!(said.try_iter().any(|report| report.detail == "kubelet-start: Starting the kubelet"));
        // Whoever has credentials asks for nothing more.
        join(&host, "n", &settings, &reporter).unwrap().unwrap();
        assert_eq!(host.read("tokens").unwrap().unwrap().lines().count(), 2);
    }

    #[test]
    fn f4_kubeadms_reason_for_a_wrong_authority_is_shown_and_only_root_reads_the_token() {
        let (_dir, host) = fake(
            "stat -c %a run/chasi-bod/kubeadm.yaml >mode\n\
             echo 'error execution phase kubelet-start: cluster CA found in cluster-info ConfigMap is invalid: none of the public keys' >&2; exit 1",
        );
        let error = join(&host, "n", &settings(Some(&service()), SECRET), &reporter().0).unwrap_err().to_string();
        assert!(error.contains("cluster CA found in cluster-info ConfigMap is invalid"), "{error}");
        assert!(!error.contains("abcdef.") && !error.contains(SECRET));
        assert_eq!(host.read("mode").unwrap().unwrap(), "600\n");
        assert_eq!(std::fs::metadata(host.path("usr/bin/kubeadm")).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn f4_what_is_missing_silent_or_refused_is_said_by_name() {
        let (_dir, host) = fake("exit 9");
        let (reporter, said) = reporter();
        let last = || said.try_iter().last().map(|report| (report.state, report.detail));
        assert!(join(&host, "n", &settings(None, SECRET), &reporter).unwrap().is_none());
        assert_eq!(last(), Some((State::Waiting, "for the setting cluster.endpoint".into())));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(join(&host, "n", &settings(Some(&free), SECRET), &reporter).unwrap().is_none());
        assert_eq!(last(), Some((State::Waiting, format!("for {free}: connection refused"))));
        let service = service();
        let wrong = settings(Some(&service), "another-secret-0123456789abcdefgh");
        let error = join(&host, "n", &wrong, &reporter).unwrap_err();
        assert_eq!(error.to_string(), format!("joining through {service}: the other side has another cluster secret than this node"));
        host.write("etc/kubernetes/manifests/kube-apiserver.yaml", b"", 0o600).unwrap();
        assert!(join(&host, "n", &settings(Some(&service), SECRET), &reporter).unwrap_err().to_string().contains("has begun to found one"));
    }
}
