//! How nodes of one image and one secret find each other on their link and agree on one cluster.
//!
//! Every node that has a secret sends and hears beacons for as long as it runs: one that is not in a cluster yet to take part in founding one or
//! to find one that takes it, one that is in a cluster to be found, and to hear of what should not be.

mod beacon;
mod election;
mod link;
mod part;
mod peers;
#[cfg(test)]
mod simulation;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use layers::membership::Secret;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use tokio::time::timeout;

use super::{Reporter, exists, is_formed, join, runtime, standing};
use crate::agent::addresses;
use crate::agent::health::NEIGHBOURS;
use crate::config;
use crate::host::Host;
use crate::status::State;
use crate::steps::systemctl;
use link::Link;
use part::{Datagrams, Part, Place};
use peers::Peers;

/// How often the node looks at its settings, and at its clock where nobody is heard.
const TICK: Duration = Duration::from_secs(1);
/// How long a link that cannot be used is left alone.
const AGAIN: Duration = Duration::from_secs(10);

/// What the node is to do next for its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// To wait, for what is said here.
    Wait(String),
    /// To make a cluster.
    Found,
    /// To go on with the cluster that it has made: it was chosen.
    Lead,
    /// To undo what it has made or begun: another one was chosen.
    Undo,
    /// To join through one of the endpoints the cluster of that authority.
    Join(Vec<SocketAddr>, Digest),
}

/// The node's part in it, from any thread.
#[derive(Clone)]
pub struct Discovery {
    host: Host,
    begun: Instant,
    part: Arc<Mutex<Option<Part>>>,
}

impl Discovery {
    /// Starts it; what is heard of other nodes becomes the condition of neighbours.
    pub fn start(host: &Host, reporter: &Reporter) -> Self {
        let discovery = Self { host: host.clone(), begun: Instant::now(), part: Arc::default() };
        let (own, reporter) = (discovery.clone(), reporter.clone());
        std::thread::spawn(move || {
            loop {
                let pause = match runtime().and_then(|runtime| runtime.block_on(own.run(&reporter))) {
                    Ok(()) => TICK,
                    Err(error) => {
                        reporter.say(NEIGHBOURS, State::Failed, error.to_string(), None);
                        AGAIN
                    }
                };
                std::thread::sleep(pause);
            }
        });
        discovery
    }

    /// What is next; none while the node has no secret and so no part in it.
    pub fn next(&self) -> Result<Option<Next>> {
        self.adapt()?;
        self.with(|part, now| part.next(now))
    }

    /// The cluster of this authority is made.
    pub fn made(&self, authority: Digest) -> Result<()> {
        self.with(|part, _| part.election.made(authority)).map(drop)
    }

    /// No cluster could be made for now.
    pub fn failed(&self) -> Result<()> {
        self.with(|part, now| part.election.failed(now)).map(drop)
    }

    /// What was made is no more.
    pub fn undone(&self) -> Result<()> {
        self.with(|part, _| part.election.undone()).map(drop)
    }

    fn report(&self, reporter: &Reporter) -> Result<()> {
        if let Some((heard, troubles)) = self.with(|part, now| (part.heard(now), part.troubles(now)))? {
            let hint = "see `chasi-bod config show` on both machines; nothing is changed by it here";
            match troubles.is_empty() {
                true => reporter.say(NEIGHBOURS, State::Done, format!("{heard} other nodes of this secret heard"), None),
                false => reporter.say(NEIGHBOURS, State::Failed, troubles.join("; "), Some(hint)),
            }
        }
        Ok(())
    }

    /// Begins, changes or ends the node's part as the settings are now.
    fn adapt(&self) -> Result<()> {
        let (rules, mut part) = (Rules::of(&self.host)?, self.lock());
        if part.as_ref().map(|part| &part.rules) != rules.as_ref() {
            *part = rules.map(|rules| Part::begin(&self.host, rules, self.begun.elapsed())).transpose()?;
        }
        if let Some(part) = part.as_mut().filter(|part| !part.election.is_settled() && is_formed(&self.host)) {
            part.election.settle(join::authority(&self.host)?);
        }
        Ok(())
    }

    /// Does something with the node's part and keeps what came of it on the disk.
    fn with<T>(&self, act: impl FnOnce(&mut Part, Duration) -> T) -> Result<Option<T>> {
        let act = |part: &mut Part| {
            let result = act(part, self.begun.elapsed());
            part.keep(&self.host).map(|()| result)
        };
        self.lock().as_mut().map(act).transpose()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Part>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends and hears beacons on the link of the node's first address, if it has one, until its addresses change or something is wrong with it.
    async fn run(&self, reporter: &Reporter) -> Result<()> {
        let addresses = addresses::list(&self.host);
        let Some(device) = addresses.first().map(|address| address.interface.as_str()) else { return Ok(()) };
        let place = Place::of(&self.host, device, &addresses);
        let index = self.host.line(&format!("sys/class/net/{device}/ifindex"));
        let index = index.parse().fault(Fault::Environment, || format!("reading the number of the network device {device}"))?;
        let v4 = place.addresses.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let link = Link::open(index, v4).fault(Fault::Environment, || format!("opening the group of beacons on {device}"))?;
        let (mut looked, mut peers) = (None, Peers::default());
        loop {
            if looked.is_none_or(|at: Instant| at.elapsed() >= TICK) {
                if addresses::list(&self.host) != addresses {
                    return Ok(());
                }
                self.adapt()?;
                let names = self.with(|part, _| part.rules.peers.clone())?.unwrap_or_default();
                let unknown = peers.look_up(names, &place.addresses).await;
                self.with(|part, _| part.unknown = unknown)?;
                self.report(reporter)?;
                looked = Some(Instant::now());
            }
            let heard = timeout(TICK, link.receive()).await;
            let takes = takes_nodes(&self.host);
            let nonces = [self.host.random()?, self.host.random()?];
            let datagrams = self.with(|part, now| {
                if let Ok(Ok((datagram, from))) = &heard {
                    part.hear(datagram, from.ip().to_canonical(), now);
                }
                part.tell(&place, takes, nonces, now).map(|datagrams| (datagrams, part.election.is_settled()))
            })?;
            if let Some((Datagrams { group, direct, askers }, is_settled)) = datagrams.flatten() {
                // A link that is down for a while is what beacons are repeated for.
                let _ = link.send(&group).await;
                for to in peers.next(is_settled).into_iter().chain(askers).collect::<BTreeSet<_>>() {
                    let _ = link.send_to(&direct, to).await;
                }
            }
            if let Ok(Err(error)) = heard {
                return Err(error).fault(Fault::Environment, || format!("hearing beacons on {device}"));
            }
        }
    }
}

/// Forgets what a node that is in no cluster has heard of one, and what it has promised others for making one.
pub fn forget(host: &Host) -> Result<()> {
    if is_formed(host) {
        let error = Error::input("forgetting what was heard of clusters: this node is in one");
        return Err(error.with_hint("install the node anew to give it to another"));
    }
    systemctl(host, &["stop", AGENT])?;
    host.remove(&part::path())?;
    host.sync();
    systemctl(host, &["start", AGENT])
}

const AGENT: &str = "chasi-bod-agent.service";

/// Whether the node is a control plane, which has a secret even if nobody gave one.
fn takes_nodes(host: &Host) -> bool {
    is_formed(host) && exists(host, super::api::ADMIN)
}

/// What the settings say about the node's part.
#[derive(Clone, PartialEq, Eq)]
struct Rules {
    secret: Secret,
    /// `nodes.expected`; 0 where nobody founds by agreement.
    expected: usize,
    may_found: bool,
    /// `nodes.peers`.
    peers: Vec<String>,
}

impl Rules {
    /// None for a node without a secret: it cannot tell friend from foe.
    fn of(host: &Host) -> Result<Option<Self>> {
        let Some(settings) = config::published(host) else { return Ok(None) };
        if settings.secret.is_none() && !takes_nodes(host) {
            return Ok(None);
        }
        let expected = settings.expected.as_ref().map_or(0, |expected| expected.value.into());
        let may_found = expected > 0 && standing::part(host, &settings)?.is_none();
        let peers = settings.peers.as_ref().map(|peers| peers.value.clone()).unwrap_or_default();
        Ok(Some(Self { secret: join::open(host, Some(&settings))?, expected, may_found, peers }))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::images::config::CLUSTER_CA;

    #[test]
    fn f5_a_node_in_a_cluster_tells_of_its_own_and_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        config::publish(&host, &config::example(&[("cluster.secret", "0123456789abcdef0123456789abcdef")])).unwrap();
        host.write("etc/machine-id", b"0123456789abcdef0123456789abcdef\n", 0o444).unwrap();
        let heard = Digest::of(b"heard first");
        let votes = serde_json::json!({"starts": 1, "votes": {"promised": null, "accepted": null, "chosen": heard, "made": null}});
        host.write(&part::path(), votes.to_string().as_bytes(), 0o600).unwrap();
        let discovery = Discovery { host: host.clone(), begun: Instant::now(), part: Arc::default() };
        let chosen = || {
            let told = discovery.with(|part, now| (part.election.votes().chosen, part.election.beacon(now).votes.chosen));
            told.unwrap().unwrap()
        };
        discovery.adapt().unwrap();
        assert_eq!(chosen(), (Some(heard), None), "who is in no cluster tells of none");
        let (key, certificate) = (dir.path().join("key"), host.path(CLUSTER_CA));
        std::fs::create_dir_all(certificate.parent().unwrap()).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-subj", "/CN=ca", "-days", "1", "-newkey", "ed25519", "-keyout"]).arg(key);
        assert!(openssl.arg("-out").arg(certificate).output().unwrap().status.success());
        host.write(&crate::cluster::formed_path(), b"{}", 0o600).unwrap();
        discovery.adapt().unwrap();
        let own = join::authority(&host).unwrap();
        assert_eq!(chosen(), (Some(own), Some(own)));
        assert!(forget(&host).unwrap_err().to_string().ends_with("this node is in one"));
        host.remove(&crate::cluster::formed_path()).unwrap();
        forget(&host).unwrap();
        assert!(!exists(&host, &part::path()));
    }
}
