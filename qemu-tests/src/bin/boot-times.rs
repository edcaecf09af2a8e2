//! Boots a built image with its kernel given to QEMU directly and prints, as JSON, the seconds from power-on: of `minimal` to the agent's `ready`
//! on the first boot and on the boot after it, of `standalone` and `plain` to each step of their clusters. Part of `make bench` and `make bench-boot`.
//! With CHASI_BOD_DISK=FILE the machine has a second disk, a raw one.
//! With CHASI_BOD_JOURNAL=FILE the node's journal of the first boot is left there.

use std::path::Path;
use std::process::ExitCode;

use layers::{Context, Result};
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::slots;
use qemu_tests::vm::{Drive, Firmware, Vm};
use serde_json::{Map, Value, json};

/// Lines of the console that mark a cluster's way up, and what they mean.
type Marks = [(&'static str, &'static str)];

const OURS: &Marks = &[
    ("runtime done", "containerd answers"),
    ("Starting the kubelet", "kubelet started"),
    ("kube-apiserver is healthy", "API healthy"),
    ("cluster done", "CoreDNS and kube-proxy Ready"),
];

/// Those of `qemu-tests/plain`.
const USUAL: &Marks = &[
    ("plain: containerd answers", "containerd answers"),
    ("plain: images imported", "images imported"),
    ("Starting the kubelet", "kubelet started"),
    ("kube-apiserver is healthy", "API healthy"),
    ("plain: CoreDNS and kube-proxy Ready", "CoreDNS and kube-proxy Ready"),
];

const READY: &str = "node Ready";

fn main() -> ExitCode {
    let profile = std::env::args().nth(1).unwrap_or_else(|| "minimal".into());
    match measure(&profile) {
        Ok(rows) => {
            println!("{}", Value::Object(rows));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.fault() as u8)
        }
    }
}

fn measure(profile: &str) -> Result<Map<String, Value>> {
    let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    let folder = artifacts(profile)?;
    let firmware = slots::direct(&artifact(&folder, "raw")?, scratch.path())?;
    let mut node = Node::of_artifact(scratch.path(), &artifact(&folder, "qcow2")?)?;
    if profile == "minimal" {
        return host(&node, &firmware);
    }
    node.memory = 4096;
    node.further.extend(std::env::var_os("CHASI_BOD_DISK").map(|path| Drive::raw(Path::new(&path))));
    cluster(&node, firmware, if profile == "plain" { USUAL } else { OURS })
}

fn host(node: &Node, firmware: &Firmware) -> Result<Map<String, Value>> {
    let mut rows = Map::new();
    for name in ["boot to ready, first, direct kernel", "boot to ready, later, direct kernel"] {
        let (vm, own) = node.boot(firmware.clone())?;
        rows.insert(name.into(), json!({"seconds": age(&vm), "nodeSeconds": own}));
        node.shut_down(vm)?;
    }
    Ok(rows)
}

fn cluster(node: &Node, firmware: Firmware, marks: &Marks) -> Result<Map<String, Value>> {
    let mut rows = Map::new();
    let mut vm = node.start(firmware)?;
    for (line, meaning) in marks {
        vm.wait(line, 900)?;
        rows.insert((*meaning).into(), json!({"seconds": age(&vm)}));
    }
    let up = condition_since(node)?;
    rows.insert(READY.into(), json!({"seconds": ((vm.age().as_secs_f64() - up) * 100.0).round() / 100.0}));
    let used = node.ssh("awk '/MemTotal/ {t=$2} /MemAvailable/ {print int((t-$2)/1024)}' /proc/meminfo")?;
    rows.insert("memory in use".into(), json!({"MiB": used.parse::<u64>().unwrap_or(0)}));
    if let Some(path) = std::env::var_os("CHASI_BOD_JOURNAL") {
        let said = node.ssh("journalctl -b -o short-monotonic --no-pager; cat /proc/meminfo; ps -eo pid,times,rss,args --sort=-times | head -n 40; tail -n +1 /var/log/pods/*/*/*.log")?;
        std::fs::write(&path, said).context(|| format!("writing {}", path.display()))?;
    }
    vm.kill();
    Ok(rows)
}

/// How many seconds ago the Node object became Ready: kubeadm and the agent look only after kubeadm's last phase. Its time is in whole seconds,
/// of which this takes the end.
fn condition_since(node: &Node) -> Result<f64> {
    let path = "{.items[0].status.conditions[?(@.type==\"Ready\")].lastTransitionTime}";
    let command = format!(
        "since=$(kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes -o jsonpath='{path}') && echo $(date +%s.%N) $(date -d $since +%s) | awk '{{print $1 - $2 - 1}}'"
    );
    let said = node.ssh(&command)?;
    said.parse().map_err(|_| layers::Error::environment(format!("reading since when the node is Ready: `{said}`")))
}

fn age(vm: &Vm) -> f64 {
    (vm.age().as_secs_f64() * 100.0).round() / 100.0
}
