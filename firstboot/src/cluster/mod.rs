//! The cluster that the node belongs to. kubeadm forms it; the agent decides when and with what.
//!
//! All of this takes minutes, so it runs in a thread of its own and reports to the agent's loop.

pub(crate) mod api;
mod certificates;
mod csr;
mod discovery;
pub(crate) mod etcd;
mod files;
mod founding;
pub(crate) mod helm;
mod join;
pub(crate) mod kubeadm;
pub(crate) mod kustomize;
pub(crate) mod mirror;
mod policy;
mod registry;
pub(crate) mod routes;
pub(crate) mod seed;
mod shared;
mod standing;

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

pub use certificates::renew_now;
pub use discovery::forget;
pub use files::{CNI, DUMMY};
pub(crate) use founding::has_begun;
pub(crate) use join::authority;
use layers::membership::Secret;
use layers::node::KUBERNETES;
use layers::platform::check::Ranges;
use layers::seed::REGISTRY_PORT;
use layers::settings::{Role, Settings, without_secrets};
use layers::{Context, Error, Fault, Result};
use serde::{Deserialize, Serialize};
pub use shared::probe;

use crate::agent::addresses;
use crate::backup::{Manifest, restore, schedule};
use crate::config;
use crate::host::{Host, STATE};
use crate::images;
use crate::platform;
use crate::status::{Address, State};
use discovery::{Discovery, Next};

/// Names of the steps of this image, in their order.
pub fn names(host: &Host) -> Vec<&'static str> {
    let steps = [("runtime", is_wanted(host)), ("cluster", is_wanted(host)), (seed::STEP, is_wanted(host) && seed::is_wanted(host))];
    steps.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect()
}

const CONTAINERD: &str = "run/containerd/containerd.sock";
const POLL: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(2);

/// The condition of one step.
#[derive(Debug)]
pub struct Report {
    /// One of [`names`], or a condition of [`crate::agent::health`].
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

/// What the node is in its cluster, kept in the state as soon as it is so.
#[derive(Debug, Serialize, Deserialize)]
struct Formed {
    /// Name of the Node object; a host name that is changed later does not change it.
    node: String,
    /// Address that a founder founded its cluster with.
    address: Option<IpAddr>,
}

impl Formed {
    fn read(host: &Host, path: &str) -> Result<Option<Self>> {
        let text = host.read(path)?;
        text.map(|text| serde_json::from_str(&text).fault(Fault::Environment, || format!("reading /{path}"))).transpose()
    }

    /// Returns when it is on the disk.
    fn write(&self, host: &Host, path: &str) -> Result<()> {
        let text = serde_json::to_string(self).fault(Fault::Internal, || "encoding the node's membership".into())?;
        host.write(path, format!("{text}\n").as_bytes(), 0o600)?;
        host.sync();
        Ok(())
    }
}

/// Starts forming or rejoining the cluster; the receiver gets every change of condition.
pub fn start() -> Receiver<Report> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let reporter = Reporter { sender, up: None };
        let reporter = Reporter { up: Some(seed::start(reporter.clone())), ..reporter };
        let host = Host::new("/");
        // Only reported here: kubeadm waits for containerd by itself, and the kubelet's unit does.
        let (runtime, socket) = (reporter.clone(), host.path(CONTAINERD));
        std::thread::spawn(move || wait_for_runtime(&socket, &runtime));
        let keeper = reporter.clone();
        std::thread::spawn(move || certificates::keep(&Host::new("/"), &keeper));
        let teller = reporter.clone();
        std::thread::spawn(move || schedule::keep(&Host::new("/"), |state, detail, hint| teller.say(schedule::CONDITION, state, detail, hint)));
        std::thread::spawn(|| csr::approve_all(&Host::new("/")));
        std::thread::spawn(|| platform::keep(&Host::new("/")));
        let discovery = Discovery::start(&host, &reporter);
        while let Err(error) = follow(&host, &discovery, &reporter) {
            reporter.say("cluster", State::Failed, error.to_string(), error.hint());
            std::thread::sleep(RETRY);
        }
    });
    receiver
}

#[derive(Clone)]
struct Reporter {
    sender: Sender<Report>,
    /// Who waits for the cluster to be up.
    up: Option<Sender<()>>,
}

impl Reporter {
    /// The agent that does not listen any more ends with this thread.
    fn say(&self, step: &'static str, state: State, detail: impl Into<String>, hint: Option<&str>) {
        let _ = self.sender.send(Report { step, state, detail: detail.into(), hint: hint.map(Into::into) });
        if let Some(up) = self.up.as_ref().filter(|_| (step, state) == ("cluster", State::Done)) {
            // Who has heard it once listens no more.
            let _ = up.send(());
        }
    }
}

/// From whatever the node is in to a node that is watched; returns only with an error.
fn follow(host: &Host, discovery: &Discovery, reporter: &Reporter) -> Result<()> {
    let backup = restore::pending(host)?;
    let formed = match Formed::read(host, &formed_path())?.filter(|_| backup.is_none()) {
        Some(formed) => {
            reporter.say("cluster", State::Running, "starting", None);
            formed
        }
        None => {
            let formed = match backup {
                Some(manifest) => bring_back(host, &manifest, reporter)?,
                None => form(host, discovery, reporter)?,
            };
            // Nothing that the record speaks for may still be on its way to the disk.
            host.sync();
            formed.write(host, &formed_path())?;
            founding::end(host)?;
            join::end(host)?;
            // Cut off before this it is all brought back once more: nobody has used it yet.
            restore::end(host)?;
            formed
        }
    };
    // From now on there is an authority that vouches for the registry inside the cluster.
    images::config::write_hosts(host, REGISTRY_PORT)?;
    api::watch(host, &formed, reporter)
}

/// Founds or joins a cluster as soon as the settings, which may change at any time, say what, or the nodes have agreed.
fn form(host: &Host, discovery: &Discovery, reporter: &Reporter) -> Result<Formed> {
    loop {
        if let Some(manifest) = restore::pending(host)? {
            return bring_back(host, &manifest, reporter);
        }
        let node = this(host);
        let formed = match config::published(host) {
            None => None,
            Some(settings) => become_part(host, &node, &settings, discovery, reporter)?,
        };
        if let Some(formed) = formed {
            return Ok(formed);
        }
        std::thread::sleep(CALM);
    }
}

fn this(host: &Host) -> Node {
    let first = addresses::list(host).first().and_then(Address::ip).unwrap_or(DUMMY);
    Node { name: host.line("etc/hostname").to_lowercase(), address: first }
}

/// Founds the cluster of a backup in the place of whatever this node is in.
fn bring_back(host: &Host, manifest: &Manifest, reporter: &Reporter) -> Result<Formed> {
    reporter.say("cluster", State::Running, format!("restoring the backup of {}", manifest.time), None);
    let settings = config::published(host).ok_or_else(|| Error::environment("restoring: the node's settings are not known yet"))?;
    let node = this(host);
    if node.name != manifest.node {
        let error = Error::input(format!("restoring: the backup is of node {}, this one is {}", manifest.node, node.name));
        return Err(error.with_hint(format!("`chasi-bod config set hostname={}`", manifest.node)));
    }
    host.remove(&formed_path())?;
    founding::begin_anew(host, reporter)?;
    restore::lay(host, &node, manifest)?;
    make(host, &node, &settings, reporter)
}

/// Takes the part that the settings give the node; none while there is something to wait for.
fn become_part(host: &Host, node: &Node, settings: &Settings, discovery: &Discovery, reporter: &Reporter) -> Result<Option<Formed>> {
    if let Some(url) = settings.unread_part() {
        let hint = "`chasi-bod config set cluster.role=founder`, member or worker, goes on without it";
        reporter.say("cluster", State::Waiting, format!("for {}, which may say the node's part", without_secrets(url)), Some(hint));
        return Ok(None);
    }
    match standing::part(host, settings)? {
        Some(Role::Founder) => found(host, node, settings, reporter).map(Some),
        Some(_) if settings.endpoint.is_some() || settings.secret.is_none() => join::join(host, &node.name, settings, reporter),
        _ => agree(host, node, settings, discovery, reporter),
    }
}

/// Does what the nodes of one secret have agreed on; none while there is something to wait for.
fn agree(host: &Host, node: &Node, settings: &Settings, discovery: &Discovery, reporter: &Reporter) -> Result<Option<Formed>> {
    let Some(next) = discovery.next()? else {
        let hint = "`chasi-bod config set cluster.role=founder` makes this node a cluster of its own, cluster.secret lets it join one of its link, \
                    cluster.endpoint one elsewhere, and nodes.expected found one with others";
        reporter.say("cluster", State::Waiting, "for a role, a secret or an endpoint", Some(hint));
        return Ok(None);
    };
    match next {
        Next::Wait(what) => reporter.say("cluster", State::Waiting, what, Some("see `chasi-bod config show`: all nodes need one cluster.secret")),
        Next::Found => {
            let made = found(host, node, settings, reporter).and_then(|formed| founding::keep(host, &formed));
            match made {
                Ok(()) => discovery.made(join::authority(host)?)?,
                Err(error) => {
                    discovery.failed()?;
                    return Err(error);
                }
            }
        }
        Next::Lead => return founding::kept(host).map(Some),
        Next::Undo => {
            founding::abandon(host, reporter)?;
            discovery.undone()?;
        }
        Next::Join(endpoints, authority) => {
            founding::abandon(host, reporter)?;
            let mut refused = None;
            for endpoint in endpoints {
                match join::join_through(host, &node.name, &endpoint.to_string(), Some(authority), settings, reporter) {
                    Ok(Some(formed)) => return Ok(Some(formed)),
                    Ok(None) => {}
                    // Another control plane may know more, or be the one that can be reached.
                    Err(error) => refused = Some(error),
                }
            }
            return refused.map_or(Ok(None), Err);
        }
    }
    Ok(None)
}

/// What talks to the network without threads of its own.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().fault(Fault::Environment, || "starting the network's runtime".into())
}

fn wait_for_runtime(socket: &Path, reporter: &Reporter) {
    if UnixStream::connect(socket).is_err() {
        reporter.say("runtime", State::Waiting, "for containerd", Some("see `systemctl status containerd.service`"));
    }
    while UnixStream::connect(socket).is_err() {
        std::thread::sleep(POLL);
    }
    reporter.say("runtime", State::Done, "containerd", None);
}

/// Path of [`Formed`].
pub(crate) fn formed_path() -> String {
    format!("{STATE}/cluster.json")
}

/// Whether this node is in a cluster already.
pub fn is_formed(host: &Host) -> bool {
    exists(host, &formed_path())
}

/// Founds a cluster; see [`founding`] for what becomes of a run that was cut off.
fn found(host: &Host, node: &Node, settings: &Settings, reporter: &Reporter) -> Result<Formed> {
    reporter.say("cluster", State::Running, "founding", None);
    founding::begin(host, reporter)?;
    make(host, node, settings, reporter)
}

/// Makes this node a control plane with the authorities and the data that are there, or with new ones.
fn make(host: &Host, node: &Node, settings: &Settings, reporter: &Reporter) -> Result<Formed> {
    let base = kubeadm::Documents::read(host)?.with(&standing::of(host, settings)?);
    files::write(host, node, &base)?;
    kubeadm::run(host, "init", &base.for_founder(node, settings.control_planes(), settings.shared_address())?, reporter)?;
    files::use_rotated_certificate(host)?;
    Ok(Formed { node: node.name.clone(), address: Some(node.address) })
}

/// Gives the kubelet, before it starts, what depends on the size of this machine.
pub fn prepare(host: &Host) -> Result<()> {
    if is_wanted(host) { kubeadm::Machine::of(host).write(host) } else { Ok(()) }
}

/// The secret that further nodes join with.
pub fn secret(host: &Host) -> Result<Secret> {
    if !exists(host, "etc/kubernetes/admin.conf") {
        return Err(Error::environment("reading the cluster's secret: this node is no control plane, or has not founded its cluster yet")
            .with_hint("see `chasi-bod status`"));
    }
    join::open(host, config::published(host).as_ref())
}

/// The secret of this node's cluster, as far as it knows one.
pub(crate) fn known_secret(host: &Host) -> Result<Option<Secret>> {
    join::known(host, config::published(host).as_ref())
}

/// Name of this node in its cluster.
pub(crate) fn recorded_name(host: &Host) -> Result<String> {
    certificates::recorded(host).map(|node| node.name)
}

/// The version of Kubernetes in this image.
pub(crate) fn kubernetes(host: &Host) -> Result<String> {
    Ok(kubeadm::Documents::read(host)?.version()?.as_str().unwrap_or_default().into())
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

/// The ranges of the cluster's pods and services.
pub(crate) fn ranges(host: &Host) -> Result<Ranges> {
    let documents = kubeadm::Documents::read(host)?;
    Ok(Ranges { pods: documents.pods()?, services: documents.services()? })
}

/// Whether a file exists below the root of the node.
fn exists(host: &Host, path: &str) -> bool {
    host.path(path).exists()
}
