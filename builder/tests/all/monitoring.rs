//! The layer `monitoring`: its charts wait for components, and `promtool` (package `prometheus`; scripts/setup has it) judges its alert rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use builder::pipeline;

use crate::common;

const PROFILE: &str = "layers: [vcluster, monitoring]
components:
- {name: node-exporter, source: {chart: {name: node-exporter}}, target: {namespace: monitoring}}
- {name: kube-state-metrics, source: {chart: {name: kube-state-metrics}}, target: {namespace: monitoring}}
- {name: prometheus, source: {chart: {name: prometheus}}, target: {namespace: monitoring}}
";

/// Series, and the alerts that they raise: each row is 100 minutes long.
const TESTS: &str = r#"
rule_files: [RULES]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {series: 'up{job="kubelet", node="a", instance="10.0.0.1:10250"}', values: '1+0x10 0+0x90'}
  - {series: 'up{job="node-exporter", node="a", instance="10.0.0.1:9100"}', values: '1+0x100'}
  - {series: 'up{job="node-exporter", node="c", instance="10.0.0.3:9100"}', values: '1+0x100'}
  - {series: 'chasi_bod_node_ready{node="a"}', values: '1+0x100'}
  - {series: 'chasi_bod_step_state{node="a", step="cluster", state="failed"}', values: '0+0x5 1+0x95'}
  - {series: 'chasi_bod_step_state{node="b", step="cluster", state="done"}', values: '1+0x100'}
  - {series: 'chasi_bod_platform_leader{node="a"}', values: '1+0x20 0+0x80'}
  - {series: 'chasi_bod_platform_leader{node="b"}', values: '0+0x100'}
  - {series: 'chasi_bod_virtual_cluster_phase{name="biz", phase="ERROR"}', values: '1+0x100'}
  - {series: 'chasi_bod_virtual_cluster_phase{name="slow", phase="CREATING"}', values: '1+0x100'}
  - {series: 'chasi_bod_virtual_cluster_phase_start_time_seconds{name="slow"}', values: '0+0x100'}
  - {series: 'chasi_bod_virtual_cluster_phase{name="long", phase="RUNNING"}', values: '1+0x100'}
  - {series: 'chasi_bod_virtual_cluster_phase_start_time_seconds{name="long"}', values: '0+0x100'}
  - {series: 'chasi_bod_component_phase{name="web", phase="FAILED"}', values: '1+0x100'}
  - {series: 'kube_pod_status_ready{namespace="x", pod="job", condition="false"}', values: '1+0x100'}
  - {series: 'kube_pod_status_phase{namespace="x", pod="job", phase="Succeeded"}', values: '1+0x100'}
  - {series: 'kube_pod_status_ready{namespace="x", pod="web", condition="false"}', values: '1+0x100'}
  - {series: 'kube_resourcequota{namespace="vcluster-biz", resourcequota="q", resource="pods", type="used"}', values: '19+0x100'}
  - {series: 'kube_resourcequota{namespace="vcluster-biz", resourcequota="q", resource="pods", type="hard"}', values: '20+0x100'}
  - {series: 'kube_resourcequota{namespace="vcluster-biz", resourcequota="q", resource="services.nodeports", type="used"}', values: '0+0x100'}
  - {series: 'kube_resourcequota{namespace="vcluster-biz", resourcequota="q", resource="services.nodeports", type="hard"}', values: '0+0x100'}
  - {series: 'node_filesystem_avail_bytes{node="a", mountpoint="/var"}', values: '4+0x100'}
  - {series: 'node_filesystem_size_bytes{node="a", mountpoint="/var"}', values: '100+0x100'}
  - {series: 'node_filesystem_readonly{node="a", mountpoint="/var"}', values: '0+0x100'}
  alert_rule_test:
  - {eval_time: 12m, alertname: TargetDown, exp_alerts: []}
  - eval_time: 20m
    alertname: TargetDown
    exp_alerts: [{exp_labels: {severity: warning, job: kubelet, node: a, instance: '10.0.0.1:10250'}, exp_annotations: {summary: kubelet of a does not answer}}]
  - eval_time: 30m
    alertname: AgentSilent
    exp_alerts: [{exp_labels: {severity: critical, job: node-exporter, node: c, instance: '10.0.0.3:9100'}, exp_annotations: {summary: 'Nothing is heard of the agent of node c; see `journalctl -u chasi-bod-agent` there'}}]
  - eval_time: 20m
    alertname: NodeStepFailed
    exp_alerts: [{exp_labels: {severity: critical, node: a, step: cluster, state: failed}, exp_annotations: {summary: 'Step cluster of node a failed; see `chasi-bod status` there'}}]
  - {eval_time: 20m, alertname: PlatformWithoutLeader, exp_alerts: []}
  - eval_time: 30m
    alertname: PlatformWithoutLeader
    exp_alerts: [{exp_labels: {severity: critical}, exp_annotations: {summary: "No node's controllers work: virtual clusters and components stay as they are"}}]
  - eval_time: 10m
    alertname: VirtualClusterFailed
    exp_alerts: [{exp_labels: {severity: critical, name: biz, phase: ERROR}, exp_annotations: {summary: 'Virtual cluster biz is in ERROR; see `kubectl describe vc biz`'}}]
  - {eval_time: 29m, alertname: VirtualClusterStuck, exp_alerts: []}
  - eval_time: 60m
    alertname: VirtualClusterStuck
    exp_alerts: [{exp_labels: {severity: warning, name: slow}, exp_annotations: {summary: Virtual cluster slow is at the same work since 1h 0m 0s}}]
  - eval_time: 10m
    alertname: ComponentFailed
    exp_alerts: [{exp_labels: {severity: warning, name: web, phase: FAILED}, exp_annotations: {summary: 'Component web is in FAILED; see `chasi-bod component why web`'}}]
  - eval_time: 30m
    alertname: PodNotReady
    exp_alerts: [{exp_labels: {severity: warning, namespace: x, pod: web}, exp_annotations: {summary: Pod x/web is not ready since a quarter of an hour}}]
  - eval_time: 30m
    alertname: QuotaNearlyUsed
    exp_alerts: [{exp_labels: {severity: warning, namespace: vcluster-biz, resourcequota: q, resource: pods}, exp_annotations: {summary: 95% of the quota pods of namespace vcluster-biz are used}}]
  - eval_time: 30m
    alertname: NodeFilesystemFull
    exp_alerts: [{exp_labels: {severity: critical, node: a, mountpoint: /var}, exp_annotations: {summary: /var of node a has 4% left}}]
"#;

fn rules() -> PathBuf {
    common::workspace().join("layers/defs/monitoring/charts/prometheus/files/rules.yaml")
}

fn promtool(words: &[&str], file: &Path) {
    let output = Command::new("promtool").args(words).arg(file).output().expect("promtool, which scripts/setup test installs");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

#[test]
fn alert_rules_are_right_and_tell_of_what_needs_people_alone() {
    let dir = tempfile::tempdir().unwrap();
    promtool(&["check", "rules"], &rules());
    let tests = dir.path().join("tests.yaml");
    fs::write(&tests, TESTS.replace("RULES", &rules().display().to_string())).unwrap();
    promtool(&["test", "rules"], &tests);
}

/// A rule about a metric of ours that nobody writes would never say anything.
#[test]
fn rules_ask_for_metrics_of_ours_that_the_document_describes() {
    let text = fs::read_to_string(rules()).unwrap();
    let document = fs::read_to_string(common::workspace().join("docs/operations.md")).unwrap();
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let asked: BTreeSet<_> = text.split(|c| !is_name(c)).filter(|word| word.starts_with("chasi_bod_")).collect();
    assert!(asked.len() > 5, "{asked:?}");
    for name in asked {
        let general = ["virtual_cluster", "component"].iter().fold(name.to_string(), |name, kind| name.replace(kind, "KIND"));
        assert!([name, &general].iter().any(|name| document.contains(&format!("`{name}`"))), "{name}");
    }
}

#[test]
fn its_charts_wait_for_components_and_its_images_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let (profile, shipped) = (dir.path().join("site.yaml"), common::workspace().join("profiles/cluster.yaml"));
    fs::write(&profile, format!("extends: {}\nname: site\n{PROFILE}", shipped.display())).unwrap();
    let plan = pipeline::plan(&profile).unwrap_or_else(|error| panic!("{error}")).plan;
    for component in &plan.components {
        let chart = plan.charts.iter().find(|chart| chart.spec.name == component.chart()).unwrap();
        assert!(!chart.spec.install && plan.images.iter().any(|planned| planned.image.name.contains(&format!("/{}:", chart.spec.name))));
    }
    assert_eq!(plan.components.len(), 3);
}
