//! Backups that a control plane makes by itself, and what is told of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use layers::Result;
use layers::settings::Every;
use layers::units::Digest;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::folder::{self, Backup};
use crate::cluster;
use crate::config;
use crate::host::Host;
use crate::metrics;
use crate::status::State;

/// Condition of a control plane.
pub const CONDITION: &str = "backup";
/// Seconds of uptime before the first one: a machine that starts has other work.
const QUIET: f64 = 600.0;
/// How often it is looked whether one is due.
const LOOK: Duration = Duration::from_secs(30);
/// How long after one that failed the next is tried.
const RETRY: Duration = Duration::from_secs(900);
const AGAIN: &str = "a backup is tried again after 15 minutes, a push with the next backup; `chasi-bod backup run` tries both now";

/// Makes backups when they are due and says of each how it went; never returns.
pub fn keep(host: &Host, say: impl Fn(State, String, Option<&str>)) {
    let mut failed: Option<(SystemTime, String)> = None;
    loop {
        std::thread::sleep(LOOK);
        if !cluster::is_formed(host) || !cluster::etcd::is_here(host) {
            continue;
        }
        let every = config::published(host).map(|settings| settings.backup_every()).unwrap_or_default();
        let mut newest = newest(host);
        let waits = failed.as_ref().is_some_and(|(at, _)| at.elapsed().is_ok_and(|age| age < RETRY));
        if !waits && host.uptime() > QUIET && is_due(every, newest.as_ref().and_then(|backup| backup.made), &host.line("etc/hostname")) {
            let made = super::make(host).and_then(|made| super::target::push(host, &made.backup));
            failed = made.err().map(|error| (SystemTime::now(), error.to_string()));
            newest = self::newest(host);
        }
        let (state, detail) = told(every, newest.as_ref(), failed.as_ref().map(|(_, why)| why.as_str()));
        say(state, detail, (state == State::Failed).then_some(AGAIN));
        if let Some(Err(error)) = newest.as_ref().map(|newest| tell(host, newest)) {
            println!("backup: {error}");
        }
    }
}

fn newest(host: &Host) -> Option<Backup> {
    let (cluster, node) = (cluster::authority(host).ok()?.hex(), cluster::recorded_name(host).ok()?);
    folder::own(host, &cluster, &node).into_iter().max_by_key(|backup| backup.made)
}

/// Whether the last one is so old. The control planes of one cluster are some minutes apart.
fn is_due(every: Every, last: Option<SystemTime>, node: &str) -> bool {
    let Every::Seconds(every) = every else { return false };
    let apart = u64::from(Digest::of(node.as_bytes()).0[0]);
    // One that a clock which was set back has left in the future is no reason to wait for that.
    last.and_then(|last| last.elapsed().ok()).is_none_or(|age| age.as_secs() >= every + apart)
}

/// State and detail of the condition.
fn told(every: Every, newest: Option<&Backup>, failed: Option<&str>) -> (State, String) {
    let last = newest.map_or_else(|| "there is none yet".to_string(), |backup| format!("the last one is {}", backup.name));
    match (failed, every) {
        (Some(why), _) => (State::Failed, format!("{why}; {last}")),
        (None, Every::Off) => (State::Done, format!("none by itself (backup.every=off); {last}")),
        (None, every) if newest.is_none() => {
            (State::Waiting, format!("for the first one, ten minutes after the start, then every {}", String::from(every)))
        }
        (None, every) => (State::Done, format!("every {}; {last}", String::from(every))),
    }
}

/// Keeps `backup.prom`.
fn tell(host: &Host, newest: &Backup) -> Result<()> {
    let mut registry = Registry::with_prefix(metrics::PREFIX);
    let made = newest.made.and_then(|made| made.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64());
    registry.register_with_unit(
        "backup_last_success_timestamp",
        "When this node made its newest backup, since the epoch",
        Unit::Seconds,
        ConstGauge::new(made),
    );
    let size = i64::try_from(newest.size).unwrap_or(i64::MAX);
    registry.register_with_unit("backup_last_size", "Size of this node's newest backup", Unit::Bytes, ConstGauge::new(size));
    metrics::write(host, CONDITION, &registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_due_when_the_last_one_is_old_missing_or_of_the_future() {
        let (hours, now) = (Every::Seconds(6 * 3600), SystemTime::now());
        let ago = |seconds: u64| Some(now - Duration::from_secs(seconds));
        assert!(is_due(hours, None, "n") && is_due(hours, ago(6 * 3600 + 256), "n") && is_due(hours, Some(now + Duration::from_secs(3600)), "n"));
        assert!(!is_due(hours, ago(6 * 3600 - 60), "n") && !is_due(Every::Off, None, "n"));
    }

    #[test]
    fn what_failed_is_told_with_what_there_is() {
        let backup = Backup { name: "x".into(), path: "x".into(), size: 1, made: None };
        assert_eq!(told(Every::Off, None, Some("no room")), (State::Failed, "no room; there is none yet".into()));
        assert_eq!(told(Every::Seconds(21_600), Some(&backup), None), (State::Done, "every 6h; the last one is x".into()));
        assert_eq!(told(Every::default(), None, None).0, State::Waiting);
    }
}
