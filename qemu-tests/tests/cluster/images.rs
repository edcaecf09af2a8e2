//! The images of the root on the running node: they are pinned, survive kills and are back after a reboot.

use std::collections::BTreeSet;
use std::path::Path;

use qemu_tests::exec;
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::uml::Net;

use super::{build, formed, kube, registry, seed};

fn known(node: &Node) -> BTreeSet<String> {
    node.ssh("crictl images --quiet").unwrap().lines().map(str::to_string).collect()
}

/// Pods of the system as the API tells them, without those that tests start.
fn restarts(node: &Node) -> String {
    kube(
        node,
        "kubectl -n kube-system get pods -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}'",
    )
}

/// Garbage collection, forced, leaves every image; what is deleted comes back without a network.
pub fn g8_collected_images_stay_and_pods_come_back(node: &Node) {
    let before = known(node);
    node.ssh("crictl rmi --prune").unwrap();
    // More may have come meanwhile: the releases are being installed.
    assert!(known(node).is_superset(&before), "an image of the root was collected");
    assert_eq!(node.ssh("crictl images --output json | grep -c '\"pinned\": *false' || true").unwrap(), "0");
    kube(node, "kubectl -n kube-system delete pod -l k8s-app=kube-dns --wait=true");
    // The one in its place may not be there yet, and then there is nothing to wait for.
    let wait = "kubectl -n kube-system wait pod -l k8s-app=kube-dns --for=condition=Ready --timeout=10s";
    kube(node, &format!("for i in $(seq 60); do {wait} 2>/dev/null && exit 0; sleep 1; done; exit 1"));
}

/// The images service and containerd die at once: no container notices, and new ones start.
pub fn f1_running_pods_outlive_the_image_service_and_containerd(node: &Node) {
    let (before, containers) = (restarts(node), node.ssh("crictl ps --quiet | sort").unwrap());
    node.ssh("systemctl kill --kill-whom=main --signal=KILL chasi-bod-images.service containerd.service").unwrap();
    node.ssh("for i in $(seq 60); do crictl version >/dev/null 2>&1 && exit 0; sleep 1; done; exit 1").unwrap();
    assert_eq!(node.ssh("crictl ps --quiet | sort").unwrap(), containers);
    // The kubelet may tell the API of a static pod, or of its containers, only now: that is no restart.
    let after = restarts(node);
    let of = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let went_on = |then: &[String]| after.lines().map(of).any(|now| if then.len() == 1 { now[..1] == *then } else { now == then });
    assert!(before.lines().map(of).all(|then| went_on(&then)), "before:\n{before}\nafter:\n{after}");
}

/// What was mounted from the root stays small in the state, and the reconciling unit had nothing to do.
pub fn nothing_was_reconciled(node: &Node) {
    assert_eq!(node.ssh("systemctl show -P ConditionResult chasi-bod-reconcile.service").unwrap(), "no");
    assert_eq!(node.ssh("systemctl show -P Result chasi-bod-images.service").unwrap(), "success");
}

/// Bytes that a machine has read of its disk when its cluster is up.
fn read_until_ready(raw: &Path) -> i64 {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), raw, &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    let sectors: i64 = node.ssh("awk '$3 == \"ubda\" {print $6}' /proc/diskstats").unwrap().parse().unwrap();
    vm.kill();
    sectors * 512
}

/// `cluster` with two files of noise as an image that no pod asks for.
fn with_300_mb_more(folder: &Path) -> std::path::PathBuf {
    let shipped = Path::new("../profiles/cluster.yaml").canonicalize().unwrap();
    let charts = shipped.with_file_name("charts").display().to_string();
    let profile = std::fs::read_to_string(&shipped).unwrap().replace("name: cluster", "name: more");
    let profile =
        profile.replace("chart: charts/", &format!("chart: {charts}/")).replace("- toolchain\n", "- toolchain\n- {name: more, path: layer}\n");
    std::fs::create_dir_all(folder.join("layer")).unwrap();
    std::fs::write(folder.join("more.yaml"), profile).unwrap();
    let files = "[{path: /a, source: a}, {path: /b, source: b}]";
    let layer = format!(
        "name: more\nsummary: Images that no pod asks for.\nrequires: [orchestration]\nimageLayers: {{more: {{files: {files}}}}}\nimages: [{{name: 'example.org/more:1', layers: [more]}}]\n"
    );
    std::fs::write(folder.join("layer/layer.yaml"), layer).unwrap();
    for name in ["a", "b"] {
        let target = folder.join("layer").join(name).display().to_string();
        exec::run("sh", &["-c", &format!("head -c 150000000 /dev/urandom > {target}")]).unwrap();
    }
    build(folder, "more", "raw")
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_uml_300_mb_more_of_images_are_not_read_before_ready() {
    let folder = tempfile::tempdir().unwrap();
    // Two boots of one image differ by some MB, as programs race: the lesser of two counts.
    let least = |raw: &Path| (0..2).map(|_| read_until_ready(raw)).min().unwrap();
    let more = least(&with_300_mb_more(folder.path()));
    let shipped = least(&artifact(&artifacts("standalone").unwrap(), "raw").unwrap());
    println!("read until Ready: {shipped} bytes, with 300 MB more of images {more}");
    assert!(more - shipped <= 2_000_000, "{} bytes more are read", more - shipped);
}

/// The kubelet's own collection with a disk that is always too full for it: what was pulled and is not used goes, what the root has stays.
#[test]
#[ignore = "soak: the kubelet collects every five minutes"]
fn soak_uml_g8_the_kubelet_collects_what_was_pulled_and_nothing_of_the_root() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let raw = artifact(&artifacts("standalone").unwrap(), "raw").unwrap();
    let (node, firmware) = Node::in_uml(folder.path(), &raw, &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    let before = known(&node).len();
    registry::an_image_that_was_pushed_runs_under_any_name(&node);
    node.ssh("crictl pull example.org/team/tool:1").unwrap();
    assert_eq!(known(&node).len(), before + 1);
    let rules = "imageMinimumGCAge: 5s\\nimageGCHighThresholdPercent: 1\\nimageGCLowThresholdPercent: 0\\n";
    let file = "/var/lib/kubelet/config.yaml";
    node.ssh(&format!("sed -i '/^imageMinimumGCAge\\|^imageGC/d' {file} && printf '{rules}' >> {file} && systemctl restart kubelet")).unwrap();
    let gone = "for i in $(seq 90); do crictl images | grep -q example.org/team/tool || exit 0; sleep 5; done; crictl images; exit 1";
    node.ssh(gone).unwrap();
    assert_eq!(known(&node).len(), before, "an image of the root was collected");
    kube(&node, "kubectl wait nodes --all --for=condition=Ready --timeout=60s");
    node.shut_down(vm).unwrap();
}
