//! Conditions that people want to know of and that do not decide whether the node is ready.

use std::net::IpAddr;

use layers::Result;
use serde::{Deserialize, Serialize};

use crate::backup::schedule;
use crate::cluster;
use crate::host::{Host, RUN, STATE};
use crate::init::state::{CHECKED, Checked};
use crate::metrics;
use crate::status::{Reporter, State};

/// Their names: check of the state's file system, clock, certificates of the cluster, address in the cluster, other nodes on
/// the link, endpoint of the metrics, backups.
pub const NAMES: [&str; 7] = ["state", "clock", "certificates", "address", NEIGHBOURS, metrics::serve::CONDITION, schedule::CONDITION];

/// Condition of other nodes on the link.
pub const NEIGHBOURS: &str = "neighbours";

/// The last check that repaired something.
#[derive(Serialize, Deserialize)]
struct Repaired {
    /// Boot's date, UTC.
    date: String,
    said: String,
}

/// Says what `init` found when it checked the state's file system, and what it last repaired.
pub fn state(host: &Host, reporter: &mut Reporter) {
    let Ok(Some(text)) = host.read(&format!("{RUN}/{CHECKED}")) else { return };
    let Ok(checked) = serde_json::from_str::<Checked>(&text) else { return };
    let hint = "the disk may be failing: look at `journalctl -k`, and have a backup";
    match (checked.is_repaired(), last_repair(host, &checked)) {
        (true, _) => reporter.set(host, "state", State::Done, &format!("repaired: {}", checked.said), Some(hint)),
        (false, Some(last)) => reporter.set(host, "state", State::Done, &format!("{}; repaired on {}: {}", checked.said, last.date, last.said), None),
        (false, None) => reporter.set(host, "state", State::Done, &checked.said, None),
    }
}

/// Keeps this boot's repair; returns the last one.
fn last_repair(host: &Host, checked: &Checked) -> Option<Repaired> {
    let path = format!("{STATE}/state-repaired.json");
    if checked.is_repaired() {
        let date = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        let text = serde_json::to_string(&Repaired { date, said: checked.said.clone() }).unwrap_or_default();
        // A state that cannot be written is named by the steps.
        let _ = host.write(&path, text.as_bytes(), 0o600);
    }
    serde_json::from_str(&host.read(&path).ok()??).ok()
}

/// Says whether a time server has been heard (systemd-timesyncd.service(8)).
pub fn clock(host: &Host, reporter: &mut Reporter) {
    if !host.is_live() {
        return;
    }
    match host.path("run/systemd/timesync/synchronized").exists() {
        true => reporter.set(host, "clock", State::Done, "follows a time server", None),
        false => reporter.set(host, "clock", State::Waiting, "no time server heard yet: the clock runs free", Some("time.servers names servers")),
    }
}

/// Says when the node has lost the address that its cluster knows it by.
pub fn address(host: &Host, reporter: &mut Reporter) {
    let Ok(Some(known)) = known_address(host) else { return };
    let has = |text: &str| text.split('/').next().is_some_and(|ip| ip.parse() == Ok(known));
    let addresses = &reporter.status.addresses;
    match known == cluster::DUMMY || addresses.is_empty() || addresses.iter().any(|address| has(&address.address)) {
        true => reporter.set(host, "address", State::Done, &format!("known to the cluster as {known}"), None),
        false => {
            let detail = format!("the cluster knows this node as {known}, an address that it has no longer");
            reporter.set(host, "address", State::Failed, &detail, Some("give it back: a static address, or a reservation at the DHCP server"));
        }
    }
}

fn known_address(host: &Host) -> Result<Option<IpAddr>> {
    let text = host.read(&cluster::formed_path())?.unwrap_or_default();
    let formed: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    Ok(formed["address"].as_str().and_then(|address| address.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Address, StepStatus};

    fn node() -> (tempfile::TempDir, Host, Reporter) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let record = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"n","network":{},"disk":{},"time":{},"console":{}}"#;
        let reporter = Reporter::new(&host, &serde_json::from_str(record).unwrap());
        (dir, host, reporter)
    }

    fn condition<'a>(reporter: &'a Reporter, name: &str) -> &'a StepStatus {
        reporter.status.health.iter().find(|condition| condition.name == name).unwrap()
    }

    fn check(host: &Host, code: i32, said: &str) {
        let text = serde_json::to_string(&Checked { code, said: said.into() }).unwrap();
        host.write(&format!("{RUN}/{CHECKED}"), text.as_bytes(), 0o644).unwrap();
    }

    #[test]
    fn a_repair_of_the_state_is_shown_and_remembered() {
        let (_dir, host, mut reporter) = node();
        state(&host, &mut reporter);
        assert_eq!(condition(&reporter, "state").state, State::Pending);
        check(&host, 0, "clean, 1/2 files");
        state(&host, &mut reporter);
        assert_eq!(condition(&reporter, "state").detail, "clean, 1/2 files");
        check(&host, 1, "Inode 12 was zeroed");
        state(&host, &mut reporter);
        assert_eq!(condition(&reporter, "state").detail, "repaired: Inode 12 was zeroed");
        assert!(condition(&reporter, "state").hint.is_some());
        check(&host, 0, "clean");
        state(&host, &mut reporter);
        let shown = &condition(&reporter, "state").detail;
        assert!(shown.starts_with("clean; repaired on 20") && shown.ends_with(": Inode 12 was zeroed"), "{shown}");
        assert!(reporter.status.lines().iter().any(|line| line.contains("Inode 12")));
    }

    #[test]
    fn g7_an_address_that_the_cluster_knows_and_the_node_has_lost_is_named() {
        let (_dir, host, mut reporter) = node();
        let has = |reporter: &mut Reporter, address: &str| {
            reporter.status.addresses = vec![Address { interface: "e".into(), address: address.into() }];
        };
        has(&mut reporter, "10.0.0.6/24");
        address(&host, &mut reporter);
        assert_eq!(condition(&reporter, "address").state, State::Pending, "no cluster yet");
        host.write(&cluster::formed_path(), br#"{"node":"n","address":"10.0.0.5"}"#, 0o600).unwrap();
        for (now, state) in [("10.0.0.6/24", State::Failed), ("10.0.0.5/24", State::Done)] {
            has(&mut reporter, now);
            address(&host, &mut reporter);
            assert_eq!(condition(&reporter, "address").state, state, "{now}");
        }
        host.write(&cluster::formed_path(), br#"{"node":"n","address":"192.0.0.8"}"#, 0o600).unwrap();
        address(&host, &mut reporter);
        assert_eq!(condition(&reporter, "address").state, State::Done, "the dummy address stays whatever the cards have");
    }
}
