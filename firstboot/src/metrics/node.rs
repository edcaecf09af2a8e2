//! Metrics of the node itself: all of them follow from its status, so a restarted agent tells the same.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::PREFIX;
use crate::host::Host;
use crate::status::{Status, StepStatus};

type Seconds = prometheus_client::metrics::gauge::Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Image {
    name: String,
    version: String,
    content_id: String,
    slot: String,
    agent: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    step: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepState {
    step: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionState {
    condition: String,
    state: String,
}

/// Keeps `node.prom`; a full /run must not stop the steps.
pub fn write(host: &Host, status: &Status) {
    if let Err(error) = super::write(host, "node", &registry(status)) {
        println!("metrics: {error}");
    }
}

fn registry(status: &Status) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let image = Family::<Image, Gauge>::default();
    image.get_or_create(&labels(status)).set(1);
    registry.register("image_info", "Image that the node runs, and the version of its agent", image);
    registry.register("node_ready", "Whether all steps are through", ConstGauge::new(i64::from(status.ready)));
    if let Some(seconds) = status.ready_after {
        let help = "Time from the start of the kernel until all steps were through for the first time in this boot";
        registry.register_with_unit("boot_ready", help, Unit::Seconds, ConstGauge::new(seconds));
    }
    steps(status, &mut registry);
    let states = Family::<StepState, Gauge>::default();
    for StepStatus { name, state, .. } in &status.steps {
        states.get_or_create(&StepState { step: name.clone(), state: state.word().into() }).set(1);
    }
    registry.register("step_state", "The state that each step is in", states);
    let states = Family::<ConditionState, Gauge>::default();
    for StepStatus { name, state, .. } in &status.health {
        states.get_or_create(&ConditionState { condition: name.clone(), state: state.word().into() }).set(1);
    }
    registry.register("condition_state", "The state of each condition that does not decide on readiness", states);
    registry
}

fn labels(status: &Status) -> Image {
    let Status { name, version, content_id, slot, .. } = status.clone();
    Image { name, version, content_id, slot, agent: env!("CARGO_PKG_VERSION").into() }
}

fn steps(status: &Status, registry: &mut Registry) {
    let (starts, lengths) = (Family::<Step, Seconds>::default(), Family::<Step, Seconds>::default());
    for (step, times) in &status.times {
        let step = Step { step: step.clone() };
        starts.get_or_create(&step).set(times.began);
        if let Some(done) = times.done {
            lengths.get_or_create(&step).set(done - times.began);
        }
    }
    registry.register_with_unit("step_start", "Time from the start of the kernel until the step began in this boot", Unit::Seconds, starts);
    registry.register_with_unit("step", "Time that the step took until it was through for the first time in this boot", Unit::Seconds, lengths);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::judge;
    use crate::metrics::text;
    use crate::status::{Reporter, State};

    fn uptime(host: &Host, seconds: &str) {
        host.write("proc/uptime", format!("{seconds} 1.00\n").as_bytes(), 0o444).unwrap();
    }

    #[test]
    fn a_step_has_the_times_of_its_first_way_through_also_after_the_agent_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        let record = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"n","network":{},"disk":{},"time":{},"console":{}}"#;
        let new = || Reporter::new(&host, &serde_json::from_str(record).unwrap());
        let mut reporter = new();
        for (seconds, state) in [("3.5", State::Running), ("4.0", State::Waiting), ("6.25", State::Done), ("90", State::Waiting), ("91", State::Done)]
        {
            uptime(&host, seconds);
            reporter.set(&host, "network", state, seconds, None);
        }
        assert!(!text(&host).unwrap().contains("boot_ready"), "not ready yet");
        reporter.set_ready(&host, true);
        uptime(&host, "4000");
        let mut reporter = new();
        reporter.set(&host, "network", State::Unchanged, "", None);
        reporter.set(&host, "clock", State::Waiting, "a \"quoted\" \\ text", None);
        reporter.set_ready(&host, true);
        let said = text(&host).unwrap();
        judge(&said);
        for line in [
            "chasi_bod_step_start_seconds{step=\"network\"} 3.5",
            "chasi_bod_step_seconds{step=\"network\"} 2.75",
            "chasi_bod_step_state{step=\"network\",state=\"unchanged\"} 1",
            "chasi_bod_step_state{step=\"time\",state=\"pending\"} 1",
            "chasi_bod_condition_state{condition=\"clock\",state=\"waiting\"} 1",
            "chasi_bod_boot_ready_seconds 91.0",
            "chasi_bod_node_ready 1",
        ] {
            assert!(said.lines().any(|known| known == line), "{line}\n{said}");
        }
        assert!(said.contains("chasi_bod_image_info{name=\"m\",version=\"1.0.0\","), "{said}");
    }
}
