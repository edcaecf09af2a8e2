//! The joining side: from an endpoint and a secret to a kubelet with credentials of its own.

use std::net::IpAddr;

use layers::settings::rules::Standing;
use layers::settings::{Role, Settings};
use layers::units::Digest;
use layers::{Error, Result};

use super::founder::PIN;
use super::{Grant, Request, Trouble, VERSION, Wants, ask};
use crate::cluster::kubeadm::{self, ENDPOINT_NAME};
use crate::cluster::{CONTAINERD, Formed, Node, Reporter, exists, files, founding, runtime, standing, wait_for_runtime};
use crate::host::Host;
use crate::images::config::CLUSTER_CA as AUTHORITY;
use crate::status::State;
use crate::steps::{set_further_names, systemctl};

/// The kubelet's own credentials: it writes this file when the cluster has signed its certificate.
const CREDENTIALS: &str = "etc/kubernetes/kubelet.conf";
/// Credentials of the token, useless when the kubelet has its own.
const BOOTSTRAP: &str = "etc/kubernetes/bootstrap-kubelet.conf";

/// There from before the first file of a control plane that joins until after the record that it has.
const MARK: &str = "var/lib/chasi-bod/joining";
const MANIFESTS: &str = "etc/kubernetes/manifests";

/// Makes this machine a node of the cluster at the configured endpoint. May be called in any state that a kill has left; `None` means that
/// something is waited for, which has been reported.
pub fn join(host: &Host, name: &str, settings: &Settings, reporter: &Reporter) -> Result<Option<Formed>> {
    let (Some(endpoint), Some(_)) = (&settings.endpoint, &settings.secret) else {
        let missing = if settings.endpoint.is_none() { "cluster.endpoint" } else { "cluster.secret" };
        let hint = "`chasi-bod cluster secret` on the founder prints the secret; `chasi-bod config set` takes both";
        reporter.say("cluster", State::Waiting, format!("for the setting {missing}"), Some(hint));
        return Ok(None);
    };
    join_through(host, name, &endpoint.value, None, settings, reporter)
}

/// The same through one endpoint; `authority` is that of the cluster which it is to be, where that is known before.
pub fn join_through(
    host: &Host,
    name: &str,
    endpoint: &str,
    authority: Option<Digest>,
    settings: &Settings,
    reporter: &Reporter,
) -> Result<Option<Formed>> {
    let was_cut_off = exists(host, MARK);
    if exists(host, &format!("{MANIFESTS}/kube-apiserver.yaml")) && !was_cut_off {
        let error = Error::input("joining a cluster: this node has begun to found one itself");
        return Err(error.with_hint("take `cluster.endpoint` and the role back, or install the node anew"));
    }
    let mut formed = Formed { node: name.into(), address: None };
    if !exists(host, CREDENTIALS) || was_cut_off {
        let refuse = |why: &str| {
            let error = Error::environment(format!("joining through {endpoint}: {why}"));
            error.with_hint("see `journalctl -u chasi-bod-agent.service` on the founder, too")
        };
        match request(host, name, endpoint, settings)? {
            Ok((grant, _)) if authority.is_some_and(|wanted| !grant.authorities.contains(&format!("{PIN}{}", wanted.hex()))) => {
                return Err(refuse("it is in another cluster than the one that the nodes have agreed on"));
            }
            Ok((grant, address)) => {
                run(host, &Node { name: name.into(), address }, &grant, &standing::of(host, settings)?, reporter)?;
                formed.address = grant.control_plane.map(|_| address);
            }
            Err(Trouble::Silent(why)) => {
                let hint = "check `cluster.endpoint` here and `chasi-bod status` on the founder";
                reporter.say("cluster", State::Waiting, format!("for {endpoint}: {why}"), Some(hint));
                if was_cut_off && exists(host, &format!("{MANIFESTS}/etcd.yaml")) {
                    // The others may have counted this node's etcd already, and wait for it.
                    systemctl(host, &["start", "--no-block", "kubelet.service"])?;
                }
                return Ok(None);
            }
            Err(Trouble::Refused(why)) => {
                if was_cut_off {
                    // As long as the kubelet reports, this node looks like one that is there already.
                    systemctl(host, &["stop", "kubelet.service"])?;
                }
                return Err(refuse(&why));
            }
        }
    }
    host.remove(BOOTSTRAP)?;
    systemctl(host, &["start", "--no-block", "kubelet.service"])?;
    Ok(Some(formed))
}

/// Says that a join is through, which is on the disk already.
pub fn end(host: &Host) -> Result<()> {
    host.remove(MARK).map(drop)
}

fn request(host: &Host, name: &str, endpoint: &str, settings: &Settings) -> Result<std::result::Result<(Grant, IpAddr), Trouble>> {
    let wants = if standing::part(host, settings)? == Some(Role::Worker) { Wants::Worker } else { Wants::ControlPlane };
    let system = Some(host.firmware("product_uuid").to_lowercase()).filter(|uuid| !uuid.is_empty());
    let request = Request { version: VERSION, name: name.into(), machine: host.line("etc/machine-id"), system, wants };
    let secret = settings.secret.as_ref().map(|secret| &secret.value).ok_or_else(|| Error::internal("joining a cluster: no secret"))?;
    Ok(runtime()?.block_on(ask(endpoint, secret, &request)))
}

/// Runs kubeadm with what was granted; a token that has ended or an authority that is another one is kubeadm's to tell.
fn run(host: &Host, node: &Node, grant: &Grant, standing: &Standing, reporter: &Reporter) -> Result<()> {
    reporter.say("cluster", State::Running, format!("joining {}", grant.endpoint), None);
    let documents = kubeadm::Documents::read(host)?.with(standing);
    let config = documents.for_member(node, grant)?;
    if exists(host, MARK) {
        // Whoever grants anew has taken what came of it out of the cluster.
        wait_for_runtime(&host.path(CONTAINERD), reporter);
        founding::undo(host)?;
    }
    if let Some(control_plane) = &grant.control_plane {
        host.write(MARK, b"", 0o600)?;
        host.sync();
        files::write_control_plane(host, Some(&control_plane.encryption))?;
    }
    set_further_names(host, &format!("{} {ENDPOINT_NAME}\n", grant.endpoint.ip()))?;
    // kubeadm keeps the authority that is there, which may be of a cluster that this node tried to join before.
    [BOOTSTRAP, AUTHORITY].iter().try_for_each(|path| host.remove(path).map(|_| ()))?;
    kubeadm::run(host, "join", &config, reporter)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc::channel;

    use layers::membership::Secret;
    use tokio::net::TcpListener;

    use super::*;
    use crate::cluster::join::{Answer, ControlPlane, serve};
    use crate::config;

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
        let endpoint = endpoint.map(|endpoint| ("cluster.endpoint", endpoint));
        config::example(&[("cluster.secret", secret)].into_iter().chain(endpoint).collect::<Vec<_>>())
    }

    /// A service on loopback, in a thread that ends with the test's process.
    fn service(control_plane: Option<ControlPlane>) -> String {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            runtime().unwrap().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap().to_string()).unwrap();
                let numbers = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
                let make = move |request: Request, here: IpAddr| {
                    let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    assert_eq!((request.name.as_str(), request.machine.as_str()), ("n", "0123456789abcdef0123456789abcdef"));
                    let grant = Grant {
                        endpoint: (here, 6443).into(),
                        authorities: vec!["sha256:00".into()],
                        token: format!("abcdef.{number:016}"),
                        control_plane: control_plane.clone(),
                    };
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
        let settings = settings(Some(&service(None)), SECRET);
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
    fn f1_a_control_plane_whose_join_was_cut_off_begins_anew_with_nothing_of_before() {
        let (_dir, host) = fake(
            "echo $1 >>said; test $1 = reset && exit 0\n\
             mkdir -p etc/kubernetes/manifests var/lib/etcd; touch etc/kubernetes/kubelet.conf etc/kubernetes/manifests/kube-apiserver.yaml var/lib/etcd/wal\n\
             test $(grep -c join said) = 2",
        );
        std::fs::create_dir_all(host.path("run/containerd")).unwrap();
        let _containerd = std::os::unix::net::UnixListener::bind(host.path(CONTAINERD)).unwrap();
        let keys = ControlPlane { certificate_key: "k".into(), encryption: "the keys\n".into() };
        let settings = settings(Some(&service(Some(keys))), SECRET);
        join(&host, "n", &settings, &reporter().0).unwrap_err();
        assert!(exists(&host, MARK) && exists(&host, CREDENTIALS));
        let formed = join(&host, "n", &settings, &reporter().0).unwrap().unwrap();
        assert_eq!(formed.address, Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(host.read("said").unwrap().unwrap(), "join\nreset\njoin\n");
        assert_eq!(host.read("etc/kubernetes/chasi-bod/encryption.yaml").unwrap().as_deref(), Some("the keys\n"));
        end(&host).unwrap();
        assert!(!exists(&host, MARK));
    }

    #[test]
    fn f4_kubeadms_reason_for_a_wrong_authority_is_shown_and_only_root_reads_the_token() {
        let (_dir, host) = fake(
            "stat -c %a run/chasi-bod/kubeadm.yaml >mode\n\
             echo 'error execution phase kubelet-start: cluster CA found in cluster-info ConfigMap is invalid: none of the public keys' >&2; exit 1",
        );
        let error = join(&host, "n", &settings(Some(&service(None)), SECRET), &reporter().0).unwrap_err().to_string();
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
        let service = service(None);
        let wrong = settings(Some(&service), "another-secret-0123456789abcdefgh");
        let error = join(&host, "n", &wrong, &reporter).unwrap_err();
        assert_eq!(error.to_string(), format!("joining through {service}: the other side has another cluster secret than this node"));
        host.write("etc/kubernetes/manifests/kube-apiserver.yaml", b"", 0o600).unwrap();
        assert!(join(&host, "n", &settings(Some(&service), SECRET), &reporter).unwrap_err().to_string().contains("has begun to found one"));
    }
}
