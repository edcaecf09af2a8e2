//! What a bundle holds, in its order: every file and program by name, never a folder. What is added here has to be free of secrets by what it is.

use layers::platform::definitions;

use crate::cluster;
use crate::host::Host;

/// One entry of the bundle.
pub struct Item {
    /// Its path in the bundle.
    pub name: String,
    /// Where it comes from.
    pub from: From,
}

/// Where an entry comes from.
pub enum From {
    /// What this program and the image call themselves.
    Versions,
    /// The effective settings, as `config show` masks them.
    Settings,
    /// What `chasi-bod metrics` prints.
    Metrics,
    /// A file of the node.
    File(&'static str),
    /// Standard output of a program.
    Program(Vec<String>),
    /// Standard output of a program that gets the cluster's credentials.
    Client(Vec<String>),
    /// The objects of a kind of the platform, cleaned.
    Objects(String),
}

const FILES: [(&str, &str); 8] = [
    ("node/status.json", "run/chasi-bod/status.json"),
    ("node/os-release", "etc/os-release"),
    ("node/memory", "proc/meminfo"),
    ("node/load", "proc/loadavg"),
    ("node/pressure-cpu", "proc/pressure/cpu"),
    ("node/pressure-memory", "proc/pressure/memory"),
    ("node/pressure-io", "proc/pressure/io"),
    ("node/mounts", "proc/self/mounts"),
];

/// Command lines have no blanks in their words. `ps` tells no arguments and `ss` no processes: both may hold what a program was given.
const PROGRAMS: [(&str, &str); 16] = [
    ("node/kernel", "uname -a"),
    ("node/uptime", "uptime"),
    ("node/disk-space", "df -hT"),
    ("node/disk-inodes", "df -i"),
    ("node/free", "free -m"),
    ("node/processes", "ps -eo pid,ppid,stat,etimes,rss,pcpu,comm"),
    ("node/failed-units", "systemctl --failed --no-pager --plain"),
    ("network/addresses", "ip -details address"),
    ("network/routes", "ip route show table all"),
    ("network/rules", "ip rule"),
    ("network/neighbours", "ip neighbour"),
    ("network/sockets", "ss -lntu"),
    ("network/time", "timedatectl timesync-status --no-pager"),
    ("logs/kernel", "journalctl -b -k -n 4000 --no-pager -o short-precise"),
    ("logs/warnings", "journalctl -b -p warning -n 4000 --no-pager -o short-precise"),
    ("logs/warnings-of-the-boot-before", "journalctl -b -1 -p warning -n 4000 --no-pager -o short-precise"),
];

const UNITS: [&str; 4] = ["chasi-bod-agent", "chasi-bod-images", "containerd", "kubelet"];

const RUNTIME: [(&str, &str); 4] = [
    ("network/nft", "nft list ruleset"),
    ("runtime/pods", "crictl pods"),
    ("runtime/containers", "crictl ps -a"),
    ("runtime/images", "crictl images"),
];

const CLUSTER: [(&str, &str); 7] = [
    ("cluster/readyz", "kubectl get --raw /readyz?verbose"),
    ("cluster/version", "kubectl version"),
    ("cluster/nodes", "kubectl get nodes -o wide"),
    ("cluster/pods", "kubectl get pods -A -o wide"),
    ("cluster/events", "kubectl get events -A --sort-by=.lastTimestamp"),
    // Its tokens are Secrets of their own.
    ("cluster/kubeadm-config", "kubectl -n kube-system get configmap kubeadm-config -o jsonpath={.data.ClusterConfiguration}"),
    ("cluster/releases", "helm list -A"),
];

/// Everything that a bundle of this node has.
pub fn plan(host: &Host) -> Vec<Item> {
    let item = |name: &str, from| Item { name: name.into(), from };
    let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
    let mut plan = vec![item("versions", From::Versions), item("node/settings", From::Settings)];
    plan.extend(FILES.map(|(name, path)| item(name, From::File(path))));
    plan.push(item("node/metrics", From::Metrics));
    plan.extend(PROGRAMS.map(|(name, line)| item(name, From::Program(words(line)))));
    let journal = |unit: &str| words(&format!("journalctl -u {unit}.service -n 4000 --no-pager -o short-precise"));
    plan.extend(UNITS.map(|unit| item(&format!("logs/{unit}"), From::Program(journal(unit)))));
    if cluster::is_wanted(host) {
        plan.extend(RUNTIME.map(|(name, line)| item(name, From::Program(words(line)))));
        plan.extend(CLUSTER.map(|(name, line)| item(name, From::Client(words(line)))));
        for definition in definitions() {
            let kind = format!("{}.{}", definition.spec.names.plural, definition.spec.group);
            plan.push(item(&format!("platform/{kind}"), From::Client(words(&format!("kubectl get {kind} -o wide")))));
            plan.push(item(&format!("platform/{kind}.yaml"), From::Objects(kind)));
        }
    }
    plan
}

impl Item {
    /// For people.
    pub fn source(&self) -> String {
        match &self.from {
            From::Versions => "chasi-bod version".into(),
            From::Settings => "chasi-bod config show".into(),
            From::Metrics => "chasi-bod metrics".into(),
            From::File(path) => format!("/{path}"),
            From::Program(words) | From::Client(words) => words.join(" "),
            From::Objects(kind) => format!("kubectl get {kind} -o json, without the texts of their values"),
        }
    }
}
