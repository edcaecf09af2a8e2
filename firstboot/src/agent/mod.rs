//! The agent: runs the steps, tells systemd as soon as network and sshd may start, then keeps status and addresses fresh.

pub(crate) mod addresses;
mod duplicates;
pub mod health;

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use layers::Result;
use layers::node::ImageRecord;

use duplicates::Duplicates;

use crate::cluster;
use crate::config::{self, Fetched};
use crate::host::{Change, Host};
use crate::metrics;
use crate::status::{Reporter, State};
use crate::steps::{Site, run_all};

/// Seconds of uptime that the boot gives the network before it calls itself ready without.
const PATIENCE: f64 = 60.0;
const POLL: Duration = Duration::from_millis(250);
const CALM: Duration = Duration::from_secs(2);

/// Whether the agent stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// Ends after the steps.
    Once,
    /// Stays until it is stopped.
    Forever,
}

/// Runs the steps; the error is one that leaves nothing to run, such as a missing image record.
pub fn run(host: &Host, stay: Stay) -> Result<()> {
    let image = host.image()?;
    let mut reporter = Reporter::new(host, &image);
    let mut seen = triggers(host);
    let mut fetching = pass(host, &image, &mut reporter);
    if let Err(error) = cluster::prepare(host) {
        reporter.set(host, "cluster", State::Failed, &error.to_string(), error.hint());
    }
    notify_ready();
    health::state(host, &mut reporter);
    let deadline = host.uptime() + PATIENCE;
    let (mut cluster, mut duplicates) = (Cluster::Unstarted, Duplicates::default());
    let serving = (stay == Stay::Forever && host.is_live()).then(metrics::serve::start);
    loop {
        refresh(host, &mut reporter, &mut duplicates, deadline);
        cluster.advance(host, &mut reporter, &duplicates);
        serving.iter().for_each(|reports| pass_on(reports, host, &mut reporter));
        if stay == Stay::Once {
            return Ok(());
        }
        std::thread::sleep(if reporter.status.ready { CALM } else { POLL });
        let now = triggers(host);
        if fetched(host, &fetching, &mut reporter) || now != seen {
            seen = now;
            fetching = pass(host, &image, &mut reporter);
        }
    }
}

/// The thread that forms and watches the cluster.
enum Cluster {
    Unstarted,
    Started(Receiver<cluster::Report>),
}

impl Cluster {
    /// Starts it when the node has name and address, or will get none; then passes on what it says. No cluster is formed with somebody else's address.
    fn advance(&mut self, host: &Host, reporter: &mut Reporter, duplicates: &Duplicates) {
        let is_free = || duplicates.are_none() || cluster::is_formed(host);
        let is_named = || !host.line("etc/hostname").is_empty();
        match self {
            Self::Unstarted if cluster::is_wanted(host) && host.is_live() && has_network(host, reporter) && is_named() && is_free() => {
                *self = Self::Started(cluster::start());
            }
            Self::Unstarted => {}
            Self::Started(reports) => pass_on(reports, host, reporter),
        }
    }
}

fn pass_on(reports: &Receiver<cluster::Report>, host: &Host, reporter: &mut Reporter) {
    reports.try_iter().for_each(|report| reporter.set(host, report.step, report.state, &report.detail, report.hint.as_deref()));
}

/// An address, or no card that could still get one: each is up and without a link, and no driver is loading; or nothing came in time.
fn has_network(host: &Host, reporter: &Reporter) -> bool {
    // A card that is not up yet has no `carrier` to read.
    let is_dead = |name: &String| host.line(&format!("sys/class/net/{name}/carrier")) == "0";
    !reporter.status.addresses.is_empty() || host.cards().iter().all(is_dead) && !host.is_probing() || host.uptime() > PATIENCE
}

/// What makes the sources worth reading again, and the steps worth running: a disk or a network card came or went, a person set something.
fn triggers(host: &Host) -> (Vec<String>, Vec<String>, Vec<u8>) {
    (config::devices(host), host.cards(), host.read_bytes(&config::console_path()).ok().flatten().unwrap_or_default())
}

/// Reads the sources and runs every step; returns what is still being fetched.
fn pass(host: &Host, image: &ImageRecord, reporter: &mut Reporter) -> Option<Receiver<Fetched>> {
    reporter.set(host, "config", State::Running, "", None);
    let collected = match read(host, image) {
        Ok((found, change)) => {
            let state = if change == Change::Made { State::Done } else { State::Unchanged };
            match found.problems.as_slice() {
                [] => reporter.set(host, "config", state, "", None),
                problems => {
                    reporter.set(host, "config", State::Failed, &problems.join("\n"), Some("correct the field at its source; the other values count"))
                }
            }
            found
        }
        Err(error) => {
            reporter.set(host, "config", State::Failed, &error.to_string(), error.hint());
            return None;
        }
    };
    run_all(&Site { host, image, settings: &collected.settings }, reporter);
    reporter.status.hostname = host.line("etc/hostname");
    reporter.save(host);
    let url = collected.settings.unread?;
    if collected.problems.is_empty() {
        reporter.set(host, "config", State::Waiting, &format!("for {}", layers::settings::without_secrets(&url)), None);
    }
    Some(config::fetch(url))
}

fn read(host: &Host, image: &ImageRecord) -> Result<(config::Collected, Change)> {
    let found = config::collect(host, image)?;
    config::publish(host, &found.settings)?;
    let change = config::keep(host, &found.kept)?;
    Ok((found, change))
}

/// Takes what an address said, if anything came; whether the steps shall run again.
fn fetched(host: &Host, fetching: &Option<Receiver<Fetched>>, reporter: &mut Reporter) -> bool {
    match fetching.as_ref().and_then(|receiver| receiver.try_recv().ok()) {
        Some(Ok(items)) => match config::keep_fetched(host, items) {
            Ok(()) => true,
            Err(error) => {
                reporter.set(host, "config", State::Failed, &error.to_string(), error.hint());
                false
            }
        },
        Some(Err(why)) => {
            reporter.set(host, "config", State::Waiting, &why, Some("it is tried again; check address, name service and network"));
            false
        }
        None => false,
    }
}

/// Addresses, the network's condition, readiness.
fn refresh(host: &Host, reporter: &mut Reporter, duplicates: &mut Duplicates, deadline: f64) {
    let addresses = addresses::list(host);
    duplicates.look(host, &addresses);
    if addresses != reporter.status.addresses {
        reporter.status.addresses = addresses;
        reporter.save(host);
    }
    health::clock(host, reporter);
    health::address(host, reporter);
    let settled = |state: State| matches!(state, State::Done | State::Unchanged);
    let network = reporter.status.steps.iter().find(|step| step.name == "network").map(|step| step.state);
    let shown: Vec<_> = reporter.status.addresses.iter().map(|a| format!("{} {}", a.interface, a.address)).collect();
    let wants_address = host.is_live() && network.is_some_and(|state| settled(state) || state == State::Waiting);
    match (wants_address, shown.is_empty(), duplicates.found()) {
        (true, true, _) => reporter.set(host, "network", State::Waiting, "no address yet", Some("check cable, DHCP server or the static address")),
        (true, false, None) => reporter.set(host, "network", State::Done, &shown.join(", "), None),
        (true, false, Some(found)) => {
            reporter.set(host, "network", State::Waiting, &found, Some("give one of the two another address; it is asked again every 30 s"));
        }
        _ => {}
    }
    let patient = host.uptime() < deadline;
    let through = |name: &str, state: State| settled(state) || (name == "network" && state == State::Waiting && !patient);
    let ready = reporter.status.steps.iter().all(|step| through(&step.name, step.state));
    reporter.set_ready(host, ready);
}

/// sd_notify(3); without systemd there is nobody to tell.
pub(crate) fn notify_ready() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = name.to_string_lossy().into_owned();
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = match name.strip_prefix('@') {
            Some(hidden) => {
                use std::os::linux::net::SocketAddrExt as _;
                std::os::unix::net::SocketAddr::from_abstract_name(hidden).and_then(|address| socket.send_to_addr(b"READY=1", &address))
            }
            None => socket.send_to(b"READY=1", &name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f2_a_card_whose_driver_loads_late_is_waited_for_and_runs_the_steps_again() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let json = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"n-{mac}","network":{},"disk":{},"time":{},"console":{}}"#;
        let image: ImageRecord = serde_json::from_str(json).unwrap();
        let reporter = Reporter::new(&host, &image);
        host.write("proc/uptime", b"9.00 9.00\n", 0o444).unwrap();
        host.write("run/udev/queue", b"", 0o644).unwrap();
        assert!(!has_network(&host, &reporter), "a driver may be loading");
        host.remove("run/udev/queue").unwrap();
        assert!(has_network(&host, &reporter), "there is no card");
        let before = triggers(&host);
        host.write("sys/class/net/cni0/address", b"52:54:00:12:34:57\n", 0o444).unwrap();
        assert_eq!(triggers(&host), before, "a bridge is no card");
        host.write("sys/class/net/ens3/device/vendor", b"0x15ad\n", 0o444).unwrap();
        assert_ne!(triggers(&host), before);
        assert!(!has_network(&host, &reporter), "the card is not up yet");
        host.write("sys/class/net/ens3/carrier", b"0\n", 0o444).unwrap();
        assert!(has_network(&host, &reporter), "the card has no link");
    }
}
