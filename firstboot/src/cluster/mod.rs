//! The cluster that the node belongs to. kubeadm forms it; the agent decides when and with what.
//!
//! All of this takes minutes, so it runs in a thread of its own and reports to the agent's loop.

mod api;
mod certificates;
mod csr;
mod files;
mod founding;
mod kubeadm;

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

pub use certificates::renew_now;
pub use files::DUMMY;
use layers::node::KUBERNETES;
use layers::settings::{Role, Settings};
use layers::{Context, Error, Fault, Result};

use crate::exec;
use crate::host::{Host, STATE};
use crate::status::State;

/// Names of the steps, in their order.
pub const NAMES: [&str; 2] = ["runtime", "cluster"];

const CONTAINERD: &str = "run/containerd/containerd.sock";
const POLL: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(2);

/// The condition of one step.
#[derive(Debug)]
pub struct Report {
    /// One of [`NAMES`], or a condition of [`crate::agent::health`].
    pub step: &'static str,
    /// Condition.
    pub state: State,
    /// For people.
    pub detail: String,
    /// What a person can do next.
    pub hint: Option<String>,
}

/// Whether the image has what a cluster is formed with.
pub fn is_wanted(host: &Host) -> bool {
    host.path(KUBERNETES).is_dir()
}

/// What the cluster is formed with on this node.
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Address that other nodes reach it by.
    pub address: IpAddr,
}

/// Starts forming or rejoining the cluster; the receiver gets every change of condition.
pub fn start(settings: &Settings, addresses: Vec<IpAddr>, hostname: String) -> Receiver<Report> {
    let (sender, receiver) = channel();
    let role = settings.role.as_ref().map(|role| role.value);
    let node = Node { name: hostname.to_lowercase(), address: addresses.first().copied().unwrap_or(DUMMY) };
    let reporter = Reporter { sender };
    let keeper = reporter.clone();
    std::thread::spawn(move || certificates::keep(&Host::new("/"), &keeper));
    std::thread::spawn(|| csr::approve_all(&Host::new("/")));
    std::thread::spawn(move || {
        let host = Host::new("/");
        while let Err(error) = follow(&host, role, &node, &reporter) {
            reporter.say("cluster", State::Failed, error.to_string(), error.hint());
            std::thread::sleep(RETRY);
        }
    });
    receiver
}

#[derive(Clone)]
struct Reporter {
    sender: Sender<Report>,
}

impl Reporter {
    /// The agent that does not listen any more ends with this thread.
    fn say(&self, step: &'static str, state: State, detail: impl Into<String>, hint: Option<&str>) {
        let _ = self.sender.send(Report { step, state, detail: detail.into(), hint: hint.map(Into::into) });
    }
}

/// From whatever the node is in to a node that is watched; returns only with an error.
fn follow(host: &Host, role: Option<Role>, node: &Node, reporter: &Reporter) -> Result<()> {
    wait_for_runtime(host, reporter);
    match (exists(host, &formed_path()), role) {
        (true, _) => reporter.say("cluster", State::Running, "starting", None),
        (false, Some(Role::Founder)) => found(host, node, reporter)?,
        (false, Some(Role::Member)) | (false, None) => {
            let hint = "`chasi-bod config set cluster.role=founder` makes this node a cluster of its own";
            reporter.say("cluster", State::Waiting, "no role given", Some(hint));
            loop {
                std::thread::park();
            }
        }
    }
    api::watch(host, node, reporter)
}

fn wait_for_runtime(host: &Host, reporter: &Reporter) {
    let socket = host.path(CONTAINERD);
    if UnixStream::connect(&socket).is_err() {
        reporter.say("runtime", State::Waiting, "for containerd", Some("see `systemctl status containerd.service`"));
    }
    while UnixStream::connect(&socket).is_err() {
        std::thread::sleep(POLL);
    }
    reporter.say("runtime", State::Done, "containerd", None);
}

/// The record of the cluster that this node belongs to.
pub(crate) fn formed_path() -> String {
    format!("{STATE}/cluster.json")
}

/// Founds a cluster; see [`founding`] for what becomes of a run that was cut off.
fn found(host: &Host, node: &Node, reporter: &Reporter) -> Result<()> {
    reporter.say("cluster", State::Running, "founding", None);
    founding::begin(host, reporter)?;
    let base = kubeadm::Documents::read(host)?;
    files::write(host, node, &base)?;
    let config = base.for_founder(&kubeadm::Machine::of(host), node)?;
    let path = "run/chasi-bod/kubeadm.yaml";
    host.write(path, config.as_bytes(), 0o600)?;
    let mut command = host.program("kubeadm");
    command.args([
        "init",
        "--config",
        "/run/chasi-bod/kubeadm.yaml",
        "--skip-phases=preflight",
        "--skip-token-print",
        "--skip-certificate-key-print",
    ]);
    exec::follow(&mut command, |line| {
        if let Some(phase) = phase(line) {
            reporter.say("cluster", State::Running, phase, None);
        }
    })?;
    host.remove(path)?;
    host.sync();
    let text = serde_json::json!({"node": node.name, "address": node.address});
    host.write(&formed_path(), format!("{text}\n").as_bytes(), 0o600)?;
    host.sync();
    founding::end(host)
}

/// What kubeadm says of a phase: `[certs] Generating …`.
fn phase(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix('[')?.split_once("] ")?;
    Some(format!("{name}: {}", rest.trim_end_matches('.')))
}

/// Prints the operator's kubeconfig, optionally for another address of the API server.
pub fn kubeconfig(host: &Host, server: Option<&str>) -> Result<String> {
    let text = host.read("etc/kubernetes/admin.conf")?.ok_or_else(|| {
        Error::environment("reading /etc/kubernetes/admin.conf: this node is no control plane, or has not founded its cluster yet")
            .with_hint("see `chasi-bod status`")
    })?;
    let Some(server) = server else { return Ok(text) };
    let mut document: serde_json::Value = serde_saphyr::from_str(&text).fault(Fault::Internal, || "reading /etc/kubernetes/admin.conf".into())?;
    let port = if server.contains(':') { "" } else { ":6443" };
    let cluster = &mut document["clusters"][0]["cluster"];
    cluster["server"] = format!("https://{server}{port}").into();
    // The certificate has no name that only people know.
    cluster["tls-server-name"] = kubeadm::ENDPOINT_NAME.into();
    serde_saphyr::to_string(&document).fault(Fault::Internal, || "printing the kubeconfig".into())
}

/// Whether a file exists below the root of the node.
fn exists(host: &Host, path: &str) -> bool {
    host.path(path).exists()
}
