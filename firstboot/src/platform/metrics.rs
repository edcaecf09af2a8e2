//! What the controllers tell Prometheus. Series of an object follow from the objects that the watch knows at that time, so those of a deleted one go.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt as _};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use serde_json::Value;

use crate::host::Host;
use crate::metrics;

/// How often the file is written.
const PAUSE: Duration = Duration::from_secs(5);
/// Bounds of the histograms, in seconds: from what needs no work to a day of rest.
const BOUNDS: [f64; 12] = [1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0, 86_400.0];

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Object {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectPhase {
    name: String,
    phase: String,
}

/// The controllers' metrics, kept as `platform.prom`.
pub struct Metrics {
    all: Mutex<All>,
}

struct All {
    registry: Registry,
    leads: Gauge,
    reconciles: Family<Kind, Counter>,
    errors: Family<Kind, Counter>,
    kinds: BTreeMap<String, Objects>,
}

/// The objects of one kind.
struct Objects {
    /// Names and statuses of those that there are.
    list: Box<dyn Fn() -> Vec<(String, Value)> + Send>,
    seen: BTreeMap<String, Seen>,
    phase: Family<ObjectPhase, Gauge>,
    start: Family<Object, Seconds>,
    last: Family<ObjectPhase, Seconds>,
    attempts: Family<Object, Gauge>,
    lengths: Family<Phase, Histogram>,
}

/// What was last written of an object, and how long its phases last took.
#[derive(Default)]
struct Seen {
    status: Value,
    /// When its phase began, as long as this process knows: a clock may be set meanwhile.
    since: Option<Instant>,
    took: BTreeMap<String, f64>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(metrics::PREFIX);
        let (leads, reconciles, errors) = (Gauge::default(), Family::default(), Family::default());
        registry.register("platform_leader", "Whether this node's controllers are those that work", leads.clone());
        registry.register("reconciles", "Looks at objects of a kind", reconciles.clone());
        registry.register("reconcile_errors", "Looks that failed, and failures of the work that a status tells of", errors.clone());
        Self { all: Mutex::new(All { registry, leads, reconciles, errors, kinds: BTreeMap::new() }) }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the objects that a watch knows.
    pub fn follow<K>(&self, known: Store<K>)
    where
        K: Resource<DynamicType = ()> + Serialize + Clone + Send + Sync + 'static,
    {
        let status = |object: &K| serde_json::to_value(object).map(|mut whole| whole["status"].take()).unwrap_or_default();
        let list = move || known.state().iter().map(|object| (object.name_any(), status(object))).collect();
        self.all().follow(&K::kind(&()), Box::new(list));
    }

    /// Counts a look at an object, and whether it failed.
    pub fn looked(&self, kind: &str, failed: bool) {
        let all = self.all();
        all.reconciles.get_or_create(&Kind { kind: kind.into() }).inc();
        all.errors.get_or_create(&Kind { kind: kind.into() }).inc_by(u64::from(failed));
    }

    /// Counts something that failed outside of a look.
    pub fn failed(&self, kind: &str) {
        self.all().errors.get_or_create(&Kind { kind: kind.into() }).inc();
    }

    /// Notes a status that was written: how long the phase before it took, and whether there is one more failure.
    pub fn written(&self, kind: &str, name: &str, status: Value) {
        self.all().written(kind, name, status);
    }

    /// Keeps the file as long as this node leads.
    pub async fn keep(&self, host: &Host) {
        self.all().leads.set(1);
        loop {
            self.write(host);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells that this node does not lead, and of no object: the one that does tells of them.
    pub fn rest(&self, host: &Host) {
        let mut all = self.all();
        all.leads.set(0);
        all.kinds.values_mut().for_each(|objects| (objects.list, objects.seen) = (Box::new(Vec::new), BTreeMap::new()));
        drop(all);
        self.write(host);
    }

    fn write(&self, host: &Host) {
        let mut all = self.all();
        all.kinds.values_mut().for_each(Objects::renew);
        if let Err(error) = metrics::write(host, "platform", &all.registry) {
            println!("metrics: {error}");
        }
    }
}

impl All {
    fn follow(&mut self, kind: &str, list: Box<dyn Fn() -> Vec<(String, Value)> + Send>) {
        if let Some(objects) = self.kinds.get_mut(kind) {
            objects.list = list;
            return;
        }
        let lengths = Family::new_with_constructor((|| Histogram::new(BOUNDS)) as fn() -> Histogram);
        let (phase, start, last, attempts) = (Family::default(), Family::default(), Family::default(), Family::default());
        let objects = Objects { list, seen: BTreeMap::new(), phase, start, last, attempts, lengths };
        let registry = self.registry.sub_registry_with_prefix(snake(kind));
        registry.register("phase", "The phase that each is in", objects.phase.clone());
        let help = "When its phase began, since the epoch";
        registry.register_with_unit("phase_start_time", help, Unit::Seconds, objects.start.clone());
        registry.register_with_unit("last_phase", "How long each of its phases took when it last left it", Unit::Seconds, objects.last.clone());
        registry.register("failed_attempts", "Failures of its work in a row", objects.attempts.clone());
        let help = "How long phases took that were left, those of deleted ones included";
        registry.register_with_unit("phase", help, Unit::Seconds, objects.lengths.clone());
        self.kinds.insert(kind.into(), objects);
        // Nothing has failed yet, which is not the same as unknown.
        drop(self.reconciles.get_or_create(&Kind { kind: kind.into() }));
        drop(self.errors.get_or_create(&Kind { kind: kind.into() }));
    }

    fn written(&mut self, kind: &str, name: &str, status: Value) {
        let Some(objects) = self.kinds.get_mut(kind) else { return };
        let known = |objects: &Objects| (objects.list)().into_iter().find(|(known, _)| known == name).map(|(_, status)| status);
        let mut seen = match objects.seen.remove(name) {
            Some(seen) => seen,
            None => Seen { status: known(objects).unwrap_or_default(), ..Seen::default() },
        };
        if attempts(&status) > attempts(&seen.status) {
            self.errors.get_or_create(&Kind { kind: kind.into() }).inc();
        }
        if seen.status["phase"] != status["phase"] {
            if let (Some(phase), Some(seconds)) = (phase(&seen.status), seen.length(&status)) {
                objects.lengths.get_or_create(&Phase { phase: phase.clone() }).observe(seconds);
                seen.took.insert(phase, seconds);
            }
            seen.since = Some(Instant::now());
        }
        seen.status = status;
        objects.seen.insert(name.into(), seen);
    }
}

impl Seen {
    /// How long its phase took when another status follows.
    fn length(&self, next: &Value) -> Option<f64> {
        let by_clock = || Some((since(next)? - since(&self.status)?).max(0.0));
        self.since.map(|since| since.elapsed().as_secs_f64()).or_else(by_clock)
    }
}

impl Objects {
    /// Makes the series those of the objects that there are.
    fn renew(&mut self) {
        let list = (self.list)();
        let names: HashSet<_> = list.iter().map(|(name, _)| name.as_str()).collect();
        self.seen.retain(|name, _| names.contains(name.as_str()));
        self.phase.clear();
        self.start.clear();
        self.last.clear();
        self.attempts.clear();
        for (name, status) in &list {
            let Some(phase) = phase(status) else { continue };
            self.phase.get_or_create(&ObjectPhase { name: name.clone(), phase }).set(1);
            let object = Object { name: name.clone() };
            self.attempts.get_or_create(&object).set(attempts(status));
            since(status).into_iter().for_each(|time| _ = self.start.get_or_create(&object).set(time));
            for (phase, seconds) in self.seen.get(name).into_iter().flat_map(|seen| &seen.took) {
                self.last.get_or_create(&ObjectPhase { name: name.clone(), phase: phase.clone() }).set(*seconds);
            }
        }
    }
}

fn phase(status: &Value) -> Option<String> {
    status["phase"].as_str().map(Into::into)
}

fn attempts(status: &Value) -> i64 {
    status["failure"]["attempts"].as_i64().unwrap_or(0)
}

/// When the phase began, in seconds since the epoch.
fn since(status: &Value) -> Option<f64> {
    let time: Time = serde_json::from_value(status["since"].clone()).ok()?;
    Some(time.0.as_duration().as_secs_f64())
}

/// `VirtualCluster` as names of metrics have it: `virtual_cluster`.
fn snake(kind: &str) -> String {
    let split = |(n, letter): (usize, char)| (n > 0 && letter.is_ascii_uppercase()).then_some('_').into_iter().chain([letter.to_ascii_lowercase()]);
    kind.char_indices().flat_map(split).collect()
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store::{Writer, store};
    use kube::runtime::watcher::Event;
    use layers::platform::{Component, VirtualCluster};
    use serde_json::json;

    use super::*;
    use crate::metrics::tests::judge;

    fn cluster(name: &str, status: &Value) -> VirtualCluster {
        serde_json::from_value(json!({
            "apiVersion": "chasi-bod.io/v1alpha1", "kind": "VirtualCluster", "metadata": {"name": name}, "spec": {"template": "general"}, "status": status,
        }))
        .unwrap()
    }

    fn at(phase: &str, second: u32) -> Value {
        json!({"phase": phase, "since": format!("2026-01-01T00:00:{second:02}Z")})
    }

    struct Bench {
        _folder: tempfile::TempDir,
        host: Host,
        metrics: Metrics,
        writer: Writer<VirtualCluster>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (host, metrics) = (Host::new(folder.path()), Metrics::new());
            let (reader, writer) = store();
            metrics.follow::<VirtualCluster>(reader);
            metrics.follow::<Component>(store().0);
            metrics.all().leads.set(1);
            Self { _folder: folder, host, metrics, writer }
        }

        /// The controller writes a status, and the watch tells of it.
        fn write(&mut self, name: &str, status: Value) {
            self.metrics.written("VirtualCluster", name, status.clone());
            self.writer.apply_watcher_event(&Event::Apply(cluster(name, &status)));
        }

        fn text(&self) -> String {
            self.metrics.write(&self.host);
            let text = metrics::text(&self.host).unwrap();
            judge(&text);
            text
        }
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }

    #[test]
    fn phases_of_objects_are_told_with_the_time_that_the_last_ones_took() {
        let mut bench = Bench::new();
        // As an agent that has just started finds it: only the clock tells how long.
        bench.writer.apply_watcher_event(&Event::Apply(cluster("biz", &at("PENDING", 10))));
        bench.write("biz", at("CREATING", 12));
        bench.write("biz", at("RUNNING", 50));
        let text = bench.text();
        has(&text, "chasi_bod_virtual_cluster_phase{name=\"biz\",phase=\"RUNNING\"} 1");
        has(&text, "chasi_bod_virtual_cluster_last_phase_seconds{name=\"biz\",phase=\"PENDING\"} 2.0");
        has(&text, "chasi_bod_virtual_cluster_phase_start_time_seconds{name=\"biz\"} 1767225650.0");
        has(&text, "chasi_bod_virtual_cluster_phase_seconds_bucket{phase=\"PENDING\",le=\"1\"} 0");
        has(&text, "chasi_bod_virtual_cluster_phase_seconds_bucket{phase=\"PENDING\",le=\"3\"} 1");
        has(&text, "chasi_bod_virtual_cluster_phase_seconds_count{phase=\"CREATING\"} 1");
        // By this process's own time, not by the clock that may have been set.
        has(&text, "chasi_bod_virtual_cluster_phase_seconds_bucket{phase=\"CREATING\",le=\"1\"} 1");
        assert_eq!(text.lines().filter(|line| line.starts_with("chasi_bod_virtual_cluster_phase{")).count(), 1, "one phase at a time\n{text}");
    }

    #[test]
    fn a_deleted_objects_series_go_and_those_of_a_node_that_leads_no_more() {
        let mut bench = Bench::new();
        for name in ["biz", "shop"] {
            bench.write(name, at("CREATING", 1));
            bench.write(name, at("RUNNING", 2));
        }
        assert!(bench.text().contains("name=\"biz\""));
        bench.write("biz", at("DELETING", 3));
        bench.writer.apply_watcher_event(&Event::Delete(cluster("biz", &at("DELETING", 3))));
        let text = bench.text();
        assert!(!text.contains("biz") && text.contains("name=\"shop\""), "{text}");
        has(&text, "chasi_bod_virtual_cluster_phase_seconds_count{phase=\"RUNNING\"} 1");
        // One of the same name begins anew.
        bench.write("biz", at("PENDING", 4));
        let text = bench.text();
        assert!(!text.contains("last_phase_seconds{name=\"biz\""), "{text}");
        has(&text, "chasi_bod_platform_leader 1");
        bench.metrics.rest(&bench.host);
        let text = metrics::text(&bench.host).unwrap();
        assert!(!text.contains("name="), "{text}");
        has(&text, "chasi_bod_platform_leader 0");
    }

    #[test]
    fn each_failure_is_counted_once_and_nothing_is_unknown_before() {
        let mut bench = Bench::new();
        has(&bench.text(), "chasi_bod_reconcile_errors_total{kind=\"Component\"} 0");
        let failed = |attempts: i64| {
            json!({"phase": "ERROR", "failure": {
            "reason": "Failed", "message": "x", "since": "2026-01-01T00:00:00Z", "attempts": attempts}})
        };
        bench.writer.apply_watcher_event(&Event::Apply(cluster("biz", &failed(4))));
        bench.write("biz", failed(4));
        bench.write("biz", failed(5));
        bench.write("biz", failed(5));
        has(&bench.text(), "chasi_bod_virtual_cluster_failed_attempts{name=\"biz\"} 5");
        bench.write("biz", at("RUNNING", 1));
        bench.write("biz", failed(1));
        bench.metrics.looked("VirtualCluster", false);
        bench.metrics.looked("VirtualCluster", true);
        bench.metrics.failed("Component");
        let text = bench.text();
        has(&text, "chasi_bod_reconcile_errors_total{kind=\"VirtualCluster\"} 3");
        has(&text, "chasi_bod_reconciles_total{kind=\"VirtualCluster\"} 2");
        has(&text, "chasi_bod_reconcile_errors_total{kind=\"Component\"} 1");
    }
}
