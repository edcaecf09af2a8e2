//! The layers `monitoring` and `logs`: their charts wait for components, and Debian's Prometheus (scripts/setup has it and `promtool`) judges alert rules and page.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use builder::pipeline;

use crate::common;

const PROFILE: &str = "layers: [vcluster, monitoring, logs]
components:
- {name: node-exporter, source: {chart: {name: node-exporter}}, target: {namespace: monitoring}}
- {name: kube-state-metrics, source: {chart: {name: kube-state-metrics}}, target: {namespace: monitoring}}
- {name: prometheus, source: {chart: {name: prometheus}}, target: {namespace: monitoring}}
- {name: logs, source: {chart: {name: logs}}, target: {namespace: logs}}
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

fn files() -> PathBuf {
    common::workspace().join("layers/defs/monitoring/charts/prometheus/files")
}

fn rules() -> PathBuf {
    files().join("rules.yaml")
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

/// Two minutes of series that go on for one more, for promtool: names with labels, and values.
const SERIES: [(&str, &str); 9] = [
    ("ALERTS{alertname=\"NodeStepFailed\",alertstate=\"firing\",severity=\"critical\",node=\"a\"}", "1"),
    ("chasi_bod_image_info{node=\"a\",name=\"site\",version=\"1.2.3\",slot=\"B\"}", "1"),
    ("chasi_bod_node_ready{node=\"a\"}", "1"),
    ("chasi_bod_virtual_cluster_phase{name=\"biz\",phase=\"RUNNING\"}", "1"),
    ("chasi_bod_virtual_cluster_phase{name=\"biz\",phase=\"ERROR\"}", "0"),
    ("chasi_bod_virtual_cluster_failed_attempts{name=\"biz\"}", "3"),
    ("container_memory_working_set_bytes{namespace=\"vcluster-biz\",container=\"syncer\"}", "1048576"),
    ("node_memory_MemAvailable_bytes{node=\"a\"}", "250"),
    ("node_memory_MemTotal_bytes{node=\"a\"}", "1000"),
];

/// Debian's Prometheus with the page, ended with the test.
struct Prometheus(Child, u16);

impl Prometheus {
    fn start(folder: &Path) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let (metrics, data, config) = (folder.join("metrics"), folder.join("data"), folder.join("config.yaml"));
        let samples =
            |(name, value): &(&str, &str)| (now - 120..now + 60).step_by(30).map(|time| format!("{name} {value} {time}\n")).collect::<String>();
        fs::write(&metrics, SERIES.iter().map(samples).collect::<String>() + "# EOF\n").unwrap();
        promtool(&["tsdb", "create-blocks-from", "openmetrics", metrics.to_str().unwrap()], &data);
        fs::write(&config, "{}").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let flag = |name: &str, value: String| format!("--{name}={value}");
        let args = [
            flag("config.file", config.display().to_string()),
            flag("storage.tsdb.path", data.display().to_string()),
            flag("web.listen-address", format!("127.0.0.1:{port}")),
            flag("web.console.templates", files().join("consoles").display().to_string()),
        ];
        let mut command = Command::new("prometheus");
        let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus, which scripts/setup test installs");
        Self(child, port)
    }

    /// What a browser gets; nothing while it does not serve.
    fn get(&self, path: &str) -> String {
        let mut out = String::new();
        let ask = |mut server: TcpStream, out: &mut String| write!(server, "GET {path} HTTP/1.0\r\n\r\n").and_then(|()| server.read_to_string(out));
        let _ = TcpStream::connect(("127.0.0.1", self.1)).and_then(|server| ask(server, &mut out));
        out
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_page_shows_alerts_nodes_virtual_clusters_components_and_what_they_use() {
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path());
    let end = Instant::now() + Duration::from_secs(60);
    while !prometheus.get("/-/ready").starts_with("HTTP/1.0 200") {
        assert!(Instant::now() < end, "prometheus does not serve");
        std::thread::sleep(Duration::from_millis(100));
    }
    let page = prometheus.get("/consoles/index.html");
    for shown in [
        "<td class=\"critical\">critical</td><td>NodeStepFailed</td>\n<td>a ",
        "<td>a</td><td>site 1.2.3</td><td>B</td>\n<td>all</td>\n<td>–</td><td>75%</td>",
        "<td>biz</td><td>RUNNING</td>\n<td></td>\n<td>3</td>",
        "<tr><td colspan=\"4\">none</td></tr>",
        "<td>vcluster-biz</td>\n<td>–</td><td>1MiB</td>",
    ] {
        assert!(page.contains(shown), "{shown} is not in {page}");
    }
    assert!(!page.contains("ERROR"), "{page}");
}

/// A rule about a metric of ours that nobody writes would never say anything, nor would a place of the page.
#[test]
fn rules_and_page_ask_for_metrics_of_ours_that_the_document_describes() {
    let text =
        fs::read_to_string(rules()).unwrap() + &fs::read_to_string(files().join("consoles/index.html")).unwrap().replace("%s", "virtual_cluster");
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
        assert!(!chart.spec.install);
        let images = if chart.spec.name == "logs" { vec!["victoria-logs", "vlagent"] } else { vec![chart.spec.name.as_str()] };
        for image in images {
            assert!(plan.images.iter().any(|planned| planned.image.name.contains(&format!("/{image}:"))), "{image}");
        }
    }
    assert_eq!(plan.components.len(), 4);
}
