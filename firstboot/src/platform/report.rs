//! How the controllers tell what they do: the status with its conditions and failures, events, the journal.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{self, Action};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt as _};
use layers::platform::Failure;
use layers::{Context as _, Error, Fault, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_stream::{Stream, StreamExt as _};

use super::MANAGER;
use super::metrics::Metrics;

/// The pause after the first failure; it doubles with each.
const PAUSE: u64 = 5;
const LONGEST_PAUSE: u64 = 300;
/// Longest note of an event (events.k8s.io/v1).
const NOTE: usize = 1000;

/// What came of one look at an object.
pub type Done<K> = Result<(ObjectRef<K>, Action), controller::Error<Error, watcher::Error>>;

/// The controllers' voice.
#[derive(Clone)]
pub struct Voice {
    client: Client,
    recorder: Recorder,
    metrics: Arc<Metrics>,
}

impl Voice {
    pub fn new(client: &Client, node: &str, metrics: &Arc<Metrics>) -> Self {
        let reporter = Reporter { controller: "chasi-bod.io/platform".into(), instance: Some(node.into()) };
        Self { client: client.clone(), recorder: Recorder::new(client.clone(), reporter), metrics: metrics.clone() }
    }

    /// Writes a status. It is applied, so that what is not said any more goes.
    pub async fn write<K>(&self, name: &str, status: &impl Serialize) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let patch = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status});
        let done = Api::<K>::all(self.client.clone()).patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await;
        done.fault(Fault::Environment, || format!("writing the status of {} {name}", K::kind(&())))?;
        self.metrics.written(&K::kind(&()), name, patch["status"].clone());
        Ok(())
    }

    /// Counts what a controller does and prints what it fails at until its watch ends for good; `known` are the objects that it knows.
    pub async fn follow<K>(&self, known: Store<K>, events: impl Stream<Item = Done<K>>)
    where
        K: Resource<DynamicType = ()> + Serialize + Clone + Send + Sync + 'static,
    {
        let (kind, mut events) = (K::kind(&()), std::pin::pin!(events));
        self.metrics.follow(known);
        while let Some(event) = events.next().await {
            match &event {
                // It was deleted before its next look was due.
                Err(controller::Error::ObjectNotFound(_)) => continue,
                Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => self.metrics.looked(&kind, event.is_err()),
                Err(_) => self.metrics.failed(&kind),
            }
            if let Err(error) = event {
                println!("platform: {error}");
            }
        }
    }

    /// Tells of a new phase in the journal and by an event.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, phase: &impl Serialize, failure: Option<&Failure>) {
        let phase = pascal(phase);
        let note = failure.map_or_else(|| format!("it is {phase} now"), |failure| failure.message.clone());
        println!(
            "platform: {} {}: {phase}{}",
            K::kind(&()),
            object.name_any(),
            failure.map_or(String::new(), |failure| format!(": {}", failure.message))
        );
        let type_ = if failure.is_some() { EventType::Warning } else { EventType::Normal };
        self.publish(object, type_, &phase, &note).await;
    }

    /// Warns of something in the journal and by an event.
    pub async fn warn<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &str, note: &str) {
        let namespace = object.namespace().map_or(String::new(), |namespace| format!("{namespace}/"));
        println!("platform: {} {namespace}{}: {note}", K::kind(&()), object.name_any());
        self.publish(object, EventType::Warning, reason, note).await;
    }

    /// Nothing depends on it.
    async fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, type_: EventType, reason: &str, note: &str) {
        let (reason, note, action) = (reason.into(), Some(note.chars().take(NOTE).collect()), "Reconcile".into());
        let event = Event { type_, reason, note, action, secondary: None };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            println!("platform: telling of {} {}: {error}", K::kind(&()), object.name_any());
        }
    }
}

/// A phase, `RUNNING`, as events and conditions have it: `Running`.
pub fn pascal(phase: &impl Serialize) -> String {
    let phase = json!(phase);
    phase.as_str().unwrap_or_default().char_indices().map(|(n, letter)| if n == 0 { letter } else { letter.to_ascii_lowercase() }).collect()
}

/// Sets a condition; without `holds` nobody knows. Its time changes with that alone.
pub fn condition(conditions: &mut Vec<Condition>, generation: Option<i64>, type_: &str, holds: Option<bool>, (reason, message): (&str, &str)) {
    let status = holds.map_or("Unknown", |holds| if holds { "True" } else { "False" });
    let known = conditions.iter().position(|known| known.type_ == type_).map(|n| conditions.remove(n));
    let last_transition_time = known.filter(|known| known.status == status).map_or_else(now, |known| known.last_transition_time);
    let (type_, status, reason, message) = (type_.to_string(), status.to_string(), reason.to_string(), message.to_string());
    conditions.push(Condition { last_transition_time, message, observed_generation: generation, reason, status, type_ });
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}

/// The failure after another try: a mistake of the object waits for a change, all else for the next try.
pub fn failure(known: Option<Failure>, error: &Error) -> Failure {
    let attempts = known.as_ref().map_or(0, |failure| failure.attempts) + 1;
    let pause = PAUSE.saturating_mul(1 << attempts.clamp(1, 10) >> 1).min(LONGEST_PAUSE);
    let (reason, next_retry) = match error.fault() {
        Fault::Input => ("Refused", None),
        _ => ("Failed", Some(Time(Timestamp::now() + Duration::from_secs(pause)))),
    };
    let since = known.map_or_else(now, |failure| failure.since);
    Failure { reason: reason.into(), message: error.to_string(), since, next_retry, attempts }
}

/// Whether no pause after a failure is left. What was refused is looked at anew whenever something changes.
pub fn is_due(failure: Option<&Failure>) -> bool {
    failure.and_then(|failure| failure.next_retry.as_ref()).is_none_or(|time| time.0 <= Timestamp::now())
}

/// How long that is from now.
pub fn until(time: &Time) -> Duration {
    let left = time.0.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default() + Duration::from_millis(200)
}

pub fn now() -> Time {
    Time(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_tried_again_later_and_later_unless_only_a_change_helps() {
        let mut known = None;
        let waits: Vec<_> = (0..9)
            .map(|_| {
                known = Some(failure(known.take(), &Error::environment("the API is away")));
                until(known.as_ref().unwrap().next_retry.as_ref().unwrap()).as_secs_f64().round()
            })
            .collect();
        assert_eq!(waits, [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]);
        let refused = failure(known, &Error::input("spec.template: there is no VirtualClusterTemplate `x`"));
        assert_eq!((refused.reason.as_str(), refused.attempts, refused.next_retry.is_none()), ("Refused", 10, true));
        assert!(is_due(None) && is_due(Some(&refused)) && !is_due(Some(&failure(None, &Error::environment("x")))));
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut conditions = Vec::new();
        condition(&mut conditions, Some(1), "Ready", Some(false), ("Creating", "its DNS does not serve yet"));
        conditions[0].last_transition_time = Time(Timestamp::UNIX_EPOCH);
        condition(&mut conditions, Some(2), "Ready", Some(false), ("Error", "no room"));
        condition(&mut conditions, Some(2), "Isolated", None, ("Foreign", "another pod network"));
        assert_eq!((conditions[1].last_transition_time.0, conditions[1].message.as_str()), (Timestamp::UNIX_EPOCH, "no room"));
        condition(&mut conditions, Some(2), "Ready", Some(true), ("Running", ""));
        assert!(conditions.len() == 2 && conditions[1].last_transition_time.0 > Timestamp::UNIX_EPOCH);
        assert_eq!((conditions[0].status.as_str(), conditions[1].status.as_str()), ("Unknown", "True"));
    }
}
