//! Waiting for an object: a line for each new phase, an end as soon as nothing is to come.

use std::time::{Duration, Instant};

use clap::Args;
use k8s_openapi::jiff::SignedDuration;
use kube::Api;
use layers::platform::{Phase, VirtualCluster};
use layers::{Error, Result};

use super::objects::{self, Kind};
use super::table::{failure, word};
use crate::cluster::api::reason;

/// A virtual cluster, and whether it is waited for.
#[derive(Debug, Args)]
pub struct Target {
    /// Name of the virtual cluster: at most 40 small letters, digits and dashes.
    pub name: String,
    #[command(flatten)]
    pub patience: Patience,
}

/// Whether something is waited for.
#[derive(Debug, Args)]
pub struct Patience {
    /// Wait until it is done, with a line for each new phase.
    #[arg(long)]
    pub wait: bool,
    /// How long at most, such as `90s` or `1h`.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration, requires = "wait")]
    pub timeout: Duration,
}

/// A length of time with its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let length = text.parse::<SignedDuration>().ok().and_then(|length| Duration::try_from(length).ok());
    length.ok_or_else(|| "write a number with its unit, such as 90s, 10m or 1h".into())
}

/// What one look at an object means for who waits.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Going,
    Done,
    /// Only a change of the object helps.
    Refused,
}

/// Waits for one of the phases, or for the end of the object when there is none.
pub async fn follow(api: &Api<VirtualCluster>, target: &Target, goals: &[Phase], say: &dyn Fn(&str)) -> Result<()> {
    let hint = "it goes on by itself; `chasi-bod vcluster list` shows how far it is";
    let look = |object: Option<&VirtualCluster>| match object {
        Some(object) => Some((judge(object, goals), state(object))),
        None => goals.is_empty().then(|| (Seen::Done, "gone".into())),
    };
    until(api, (&target.name, hint), target.patience.timeout, look, say).await
}

/// Looks at an object until it is done; a `look` that sees nothing ends it.
pub async fn until<K: Kind>(
    api: &Api<K>,
    (name, hint): (&str, &str),
    timeout: Duration,
    look: impl Fn(Option<&K>) -> Option<(Seen, String)>,
    say: &dyn Fn(&str),
) -> Result<()> {
    let (begun, mut last, waiting) = (Instant::now(), String::new(), format!("waiting for {} {name}", K::WORD));
    loop {
        let (seen, state) = match api.get_opt(name).await {
            Ok(found) => match look(found.as_ref()) {
                Some(seen) => seen,
                None => return Err(Error::environment(waiting + ": it is gone")),
            },
            Err(error @ kube::Error::Api(_)) => return Err(objects::failure::<K>(&error, &waiting)),
            // A server that is away comes back.
            Err(error) => (Seen::Going, format!("no answer: {}", reason(&error))),
        };
        news(&mut last, &state, begun.elapsed()).iter().for_each(|line| say(line));
        match seen {
            Seen::Done => return Ok(()),
            Seen::Refused => return Err(Error::input(format!("{waiting}: {state}"))),
            Seen::Going if begun.elapsed() >= timeout => {
                return Err(Error::environment(format!("{waiting}: after {timeout:?} it is {state}")).with_hint(hint));
            }
            Seen::Going => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn judge(object: &VirtualCluster, goals: &[Phase]) -> Seen {
    match &object.status {
        // Until the controller has seen the change, the status is about what was before.
        Some(status) if status.observed_generation != object.metadata.generation => Seen::Going,
        Some(status) if goals.contains(&status.phase) => Seen::Done,
        Some(status) if status.phase == Phase::Error && status.failure.as_ref().is_some_and(|failed| failed.reason == "Refused") => Seen::Refused,
        _ => Seen::Going,
    }
}

/// The phase, and what failed in it.
fn state(object: &VirtualCluster) -> String {
    let status = object.status.clone().unwrap_or_default();
    let failed = status.failure.map(|failed| format!(": {}", failure(&failed)));
    word(status.phase) + &failed.unwrap_or_default()
}

/// A line, when there is something new to tell.
pub fn news(last: &mut String, state: &str, elapsed: Duration) -> Option<String> {
    let old = std::mem::replace(last, state.into());
    (old != state).then(|| format!("{:>5} s  {state}", elapsed.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(status: &str) -> VirtualCluster {
        let head = "apiVersion: chasi-bod.io/v1alpha1, kind: VirtualCluster, metadata: {name: biz, generation: 3}, spec: {}";
        serde_saphyr::from_str(&format!("{{{head}{status}}}")).unwrap()
    }

    const FAILURE: &str = "failure: {reason: REASON, message: 'spec.template: none', since: '2026-01-01T00:00:00Z', attempts: 1}";

    #[test]
    fn a_status_counts_when_it_is_about_the_object_as_it_is_now() {
        let running = [Phase::Running];
        assert_eq!(judge(&object(""), &running), Seen::Going);
        assert_eq!(judge(&object(", status: {phase: RUNNING, observedGeneration: 2}"), &running), Seen::Going);
        assert_eq!(judge(&object(", status: {phase: RUNNING, observedGeneration: 3}"), &running), Seen::Done);
        assert_eq!(judge(&object(", status: {phase: SUSPENDED, observedGeneration: 3}"), &[Phase::Running, Phase::Suspended]), Seen::Done);
        assert_eq!(judge(&object(", status: {phase: DELETING, observedGeneration: 3}"), &[]), Seen::Going);
    }

    #[test]
    fn a_refusal_ends_the_waiting_and_a_failure_does_not() {
        let failed = |reason: &str, seen: u32| {
            let status = format!(", status: {{phase: ERROR, observedGeneration: {seen}, {}}}", FAILURE.replace("REASON", reason));
            judge(&object(&status), &[Phase::Running])
        };
        assert_eq!(failed("Refused", 3), Seen::Refused);
        assert_eq!(failed("Refused", 2), Seen::Going, "an older refusal");
        assert_eq!(failed("Failed", 3), Seen::Going, "it is tried again");
    }

    #[test]
    fn each_new_phase_is_a_line_with_its_time() {
        let mut last = String::new();
        let seen = [(0, ""), (2, ""), (3, ", status: {phase: CREATING}"), (9, ", status: {phase: CREATING}"), (125, ", status: {phase: RUNNING}")];
        let lines: Vec<_> =
            seen.into_iter().filter_map(|(time, status)| news(&mut last, &state(&object(status)), Duration::from_secs(time))).collect();
        assert_eq!(lines, ["    0 s  PENDING", "    3 s  CREATING", "  125 s  RUNNING"]);
        let failed = object(&format!(", status: {{phase: ERROR, {}}}", FAILURE.replace("REASON", "Failed")));
        assert_eq!(state(&failed), "ERROR: Failed: spec.template: none");
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("10").is_err() && duration("soon").is_err() && duration("-5s").is_err());
    }
}
