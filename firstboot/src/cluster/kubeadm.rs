//! kubeadm's configuration: the documents of the image (kubeadm.k8s.io/v1beta4 and the kinds that kubeadm hands on) with what only the node
//! knows. Values go in through the documents' tree, never through their text.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use layers::node::KUBERNETES;
use layers::range::Range;
use layers::settings::rules::Standing;
use layers::{Context, Error, Result};
use serde_json::{Value, json};

use super::join::Grant;
use super::{Node, Reporter};
use crate::exec::{self, Trouble};
use crate::host::{Host, RUN};
use crate::status::State;

/// The API's name in every kubeconfig, as in the image's `controlPlaneEndpoint`.
pub const ENDPOINT_NAME: &str = "kube-api.chasi-bod.internal";

/// In the kubelet's `--config-dir`.
const SIZES: &str = "etc/kubernetes/kubelet.conf.d/10-machine.conf";

/// What the kubelet's reservations depend on.
pub struct Machine {
    /// Logical processors.
    pub processors: u64,
    /// Memory in MiB.
    pub memory: u64,
}

impl Machine {
    /// The running machine.
    pub fn of(host: &Host) -> Self {
        let kib = host.line("proc/meminfo").split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        Self { processors: std::thread::available_parallelism().map_or(1, |n| n.get() as u64), memory: kib / 1024 }
    }

    /// Memory for system and kubelet in MiB: a fixed part and 2 % of what is there, at most an eighth.
    fn reserved_memory(&self) -> u64 {
        (100 + self.memory / 50).min(self.memory / 8).max(50)
    }

    /// Processor time for them in thousandths.
    fn reserved_processor(&self) -> u64 {
        60 + 10 * self.processors
    }

    /// Writes the kubelet's settings of this machine over those that all nodes share: a cluster may have nodes of many sizes.
    pub fn write(&self, host: &Host) -> Result<()> {
        host.write(SIZES, format!("{:#}\n", self.settings()).as_bytes(), 0o600).map(|_| ())
    }

    /// The kubelet's reservations and when it evicts.
    fn settings(&self) -> Value {
        let reserved =
            json!({"cpu": format!("{}m", self.reserved_processor()), "memory": format!("{}Mi", self.reserved_memory()), "ephemeral-storage": "1Gi"});
        let hard = json!({"memory.available": "100Mi", "nodefs.available": "5%", "nodefs.inodesFree": "5%", "imagefs.available": "5%"});
        json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "systemReserved": reserved, "evictionHard": hard})
    }
}

/// The image's documents, in their order.
pub struct Documents(Vec<Value>);

impl Documents {
    /// Reads the image's `kubeadm.yaml`.
    pub fn read(host: &Host) -> Result<Self> {
        let path = format!("{KUBERNETES}/kubeadm.yaml");
        let text = host.read(&path)?.ok_or_else(|| Error::internal(format!("reading /{path}: no such file")))?;
        Self::parse(&text).context(|| format!("reading /{path}"))
    }

    /// Reads documents from YAML.
    pub fn parse(text: &str) -> Result<Self> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| Error::internal(e.without_snippet().to_string()))?;
        Ok(Self(documents))
    }

    /// The same for a node that has labels and taints of its own from the moment that it is registered.
    pub fn with(mut self, standing: &Standing) -> Self {
        let registrations = self.0.iter_mut().filter_map(|document| document.get_mut("nodeRegistration"));
        for registration in registrations {
            let labels = registration["kubeletExtraArgs"].as_array_mut().into_iter().flatten().find(|argument| argument["name"] == "node-labels");
            if let Some(labels) = labels {
                let own = standing.labels.iter().map(|(key, value)| format!(",{key}={value}"));
                labels["value"] = json!(format!("{}{}", labels["value"].as_str().unwrap_or_default(), own.collect::<String>()));
            }
            if !standing.taints.is_empty() {
                registration["taints"] =
                    standing.taints.iter().map(|taint| json!({"key": taint.key, "value": taint.value, "effect": taint.effect})).collect();
            }
        }
        self
    }

    fn of_kind(&self, kind: &str) -> Result<Value> {
        let found = self.0.iter().find(|document| document["kind"] == kind).cloned();
        found.ok_or_else(|| Error::internal(format!("reading kubeadm.yaml: no document of kind {kind}")))
    }

    /// The version of Kubernetes.
    pub fn version(&self) -> Result<Value> {
        Ok(self.of_kind("ClusterConfiguration")?["kubernetesVersion"].clone())
    }

    /// The pod range of the first node: the first 256 addresses, as the controller manager cuts them.
    pub fn first_node_range(&self) -> Result<String> {
        let range = self.pods()?.to_string();
        Ok(format!("{}/24", range.split('/').next().unwrap_or_default()))
    }

    /// The range that the nodes' pod ranges are cut from.
    pub fn pods(&self) -> Result<Range> {
        self.range("podSubnet")
    }

    /// The range of services' addresses.
    pub fn services(&self) -> Result<Range> {
        self.range("serviceSubnet")
    }

    fn range(&self, key: &str) -> Result<Range> {
        let text = self.of_kind("ClusterConfiguration")?["networking"][key].as_str().map(String::from);
        let range = text.as_deref().and_then(Range::parse);
        range.ok_or_else(|| Error::internal(format!("reading kubeadm.yaml: networking.{key} is no IPv4 range")))
    }

    /// The configuration of `kubeadm init` on a node of a cluster that grows to so many control planes, with one more address if they share one.
    pub fn for_founder(&self, node: &Node, replicas: u16, shared: Option<IpAddr>) -> Result<String> {
        let mut init = self.of_kind("InitConfiguration")?;
        register(&mut init, node);
        init["localAPIEndpoint"] = json!({"advertiseAddress": node.address, "bindPort": 6443});
        // Nobody ever sees this token: joining nodes get one of their own, when they have shown the cluster secret.
        init["bootstrapTokens"] =
            json!([{"ttl": "10m0s", "usages": ["signing", "authentication"], "groups": ["system:bootstrappers:kubeadm:default-node-token"]}]);
        let mut cluster = self.of_kind("ClusterConfiguration")?;
        let names = [ENDPOINT_NAME.into(), "localhost".into(), "127.0.0.1".into(), super::files::DUMMY.to_string(), node.name.clone()];
        cluster["apiServer"]["certSANs"] = names.into_iter().chain(shared.map(|address| address.to_string())).collect();
        for component in ELECTING {
            elect(&mut cluster[component]["extraArgs"], replicas > 1);
        }
        let kubelet = self.of_kind("KubeletConfiguration")?;
        let mut proxy = self.of_kind("KubeProxyConfiguration")?;
        proxy["clusterCIDR"] = cluster["networking"]["podSubnet"].clone();
        Ok([init, cluster, kubelet, proxy].iter().map(|document| format!("---\n{document:#}\n")).collect())
    }

    /// The configuration that a control plane of this address puts the keys of the authorities into the cluster with, enciphered.
    pub fn for_keys(&self, address: IpAddr, certificate_key: &str) -> Result<String> {
        let mut init = self.of_kind("InitConfiguration")?;
        init["localAPIEndpoint"] = json!({"advertiseAddress": address});
        init["certificateKey"] = json!(certificate_key);
        Ok([init, self.of_kind("ClusterConfiguration")?].iter().map(|document| format!("---\n{document:#}\n")).collect())
    }

    /// The configuration of `kubeadm join`.
    pub fn for_member(&self, node: &Node, grant: &Grant) -> Result<String> {
        let mut join = self.of_kind("JoinConfiguration")?;
        register(&mut join, node);
        let endpoint = format!("{ENDPOINT_NAME}:{}", grant.endpoint.port());
        join["discovery"]["bootstrapToken"] = json!({"token": grant.token, "apiServerEndpoint": endpoint, "caCertHashes": grant.authorities});
        // kubeadm would wait for a token that has ended as for one that is yet to come; a new one is had for the asking.
        join["timeouts"]["discovery"] = json!("2m0s");
        if let Some(control_plane) = &grant.control_plane {
            let local = json!({"advertiseAddress": node.address, "bindPort": 6443});
            join["controlPlane"] = json!({"localAPIEndpoint": local, "certificateKey": control_plane.certificate_key});
            let init = self.of_kind("InitConfiguration")?;
            // Small clusters have no machine to spare for control planes alone.
            join["nodeRegistration"]["taints"] = init["nodeRegistration"]["taints"].clone();
            join["patches"] = init["patches"].clone();
        }
        Ok(format!("{join:#}\n"))
    }
}

/// Runs kubeadm with a configuration, of which nothing stays behind, and reports its phases. Its preflight checks are the image's promises.
pub(super) fn run(host: &Host, verb: &str, config: &str, reporter: &Reporter) -> Result<()> {
    let words: &[&str] = match verb {
        // The last would restart the kubelet to make it read one line: `files::use_rotated_certificate` writes it for the next start.
        "init" => &["init", "--skip-phases=preflight,kubelet-finalize", "--skip-token-print", "--skip-certificate-key-print"],
        _ => &[verb, "--skip-phases=preflight"],
    };
    with(host, "kubeadm.yaml", words, config, |command| {
        exec::follow(command, |line| {
            if let Some(phase) = phase(line) {
                reporter.say("cluster", State::Running, phase, None);
            }
        })
    })
}

/// Runs a phase of kubeadm that others wait for; `name` is that of its file while it runs.
pub(super) fn call(host: &Host, name: &str, words: &[&str], config: &str, limit: Duration) -> Result<()> {
    with(host, name, words, config, |command| {
        let trouble = exec::within(command, limit, 0)?.trouble;
        let why = match trouble {
            None | Some(Trouble::Cut) => return Ok(()),
            Some(Trouble::TimedOut) => format!("not done after {} s", limit.as_secs()),
            Some(Trouble::Failed(why)) => why,
        };
        Err(Error::environment(format!("running `{}`: {why}", exec::show(command))))
    })
}

/// Runs kubeadm with a configuration, of which nothing stays behind.
fn with(host: &Host, name: &str, words: &[&str], config: &str, run: impl FnOnce(&mut Command) -> Result<()>) -> Result<()> {
    let path = format!("{RUN}/{name}");
    host.write(&path, config.as_bytes(), 0o600)?;
    let ended = run(host.program("kubeadm").args(words).arg("--config").arg(host.path(&path)));
    host.remove(&path)?;
    ended
}

/// What kubeadm says of a phase: `[certs] Generating …`.
fn phase(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix('[')?.split_once("] ")?;
    Some(format!("{name}: {}", rest.trim_end_matches('.')))
}

/// What kubeadm keeps in the cluster for further control planes, with controller managers and schedulers that elect one of theirs; none if they do.
pub fn electing(cluster_configuration: &str) -> Result<Option<String>> {
    let bad = |error: String| Error::environment(format!("reading ConfigMap kubeadm-config: {error}"));
    let mut cluster: Value = serde_saphyr::from_str(cluster_configuration).map_err(|error| bad(error.without_snippet().to_string()))?;
    let before = cluster.clone();
    for component in ELECTING {
        cluster.pointer_mut(&format!("/{component}/extraArgs")).into_iter().for_each(|arguments| elect(arguments, true));
    }
    Ok((cluster != before).then(|| format!("{cluster:#}\n")))
}

const ELECTING: [&str; 2] = ["controllerManager", "scheduler"];

/// Lets several of a kind elect one that works, or the only one work without that.
fn elect(arguments: &mut Value, wanted: bool) {
    let is_it = |argument: &&mut Value| argument["name"] == "leader-elect";
    arguments.as_array_mut().into_iter().flatten().filter(is_it).for_each(|argument| argument["value"] = json!(wanted.to_string()));
}

fn register(configuration: &mut Value, node: &Node) {
    let registration = &mut configuration["nodeRegistration"];
    registration["name"] = json!(node.name);
    let own = json!({"name": "node-ip", "value": node.address});
    let args = registration["kubeletExtraArgs"].as_array().into_iter().flatten().cloned().chain([own]).collect();
    registration["kubeletExtraArgs"] = Value::Array(args);
}

/// The documents of the shipped layer with its parameters' defaults.
#[cfg(test)]
pub fn shipped() -> String {
    let text = include_str!("../../../layers/defs/orchestration/files/kubeadm.yaml");
    let text = text.replace("{{#if parameters.staticCpuManager}}static{{else}}none{{/if}}", "none");
    [
        ("patience", "20m0s"),
        ("clusterName", "c"),
        ("nodePorts", "30000-32767"),
        ("podCidr", "10.244.0.0/16"),
        ("serviceCidr", "10.96.0.0/16"),
        ("dnsDomain", "d"),
    ]
    .iter()
    .fold(text, |text, (name, value)| text.replace(&format!("{{{{parameters.{name}}}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::super::join::ControlPlane;
    use super::*;

    fn documents() -> Documents {
        Documents::parse(&shipped()).unwrap()
    }

    #[test]
    fn the_founders_configuration_has_what_only_the_node_knows() {
        let node = Node { name: "n1".into(), address: IpAddr::from([10, 0, 0, 5]) };
        let text = documents().for_founder(&node, 1, None).unwrap();
        let documents = Documents::parse(&text).unwrap();
        let init = documents.of_kind("InitConfiguration").unwrap();
        assert_eq!(init["localAPIEndpoint"]["advertiseAddress"], "10.0.0.5");
        let args = json!([{"name": "node-labels", "value": "chasi-bod.io/cpu-manager=none"}, {"name": "node-ip", "value": "10.0.0.5"}]);
        assert_eq!(init["nodeRegistration"]["kubeletExtraArgs"], args);
        assert_eq!(init["nodeRegistration"]["criSocket"], "unix:///run/containerd/containerd.sock");
        let kubelet = documents.of_kind("KubeletConfiguration").unwrap();
        assert_eq!(kubelet["systemReserved"], Value::Null, "what suits the founder is not for every node");
        assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
        assert_eq!(documents.of_kind("KubeProxyConfiguration").unwrap()["clusterCIDR"], "10.244.0.0/16");
        assert_eq!(documents.first_node_range().unwrap(), "10.244.0.0/24");
        for (replicas, elects) in [(1, "false"), (3, "true")] {
            let documents = Documents::parse(&self::documents().for_founder(&node, replicas, None).unwrap()).unwrap();
            let cluster = documents.of_kind("ClusterConfiguration").unwrap();
            for component in ["controllerManager", "scheduler"] {
                let arguments = cluster[component]["extraArgs"].as_array().unwrap();
                assert!(arguments.contains(&json!({"name": "leader-elect", "value": elects})), "{replicas} {component}: {arguments:?}");
            }
        }
    }

    #[test]
    fn g1_a_cluster_that_was_founded_for_one_control_plane_elects_before_it_gets_more() {
        let kept = |replicas: u16| {
            let node = Node { name: "n1".into(), address: IpAddr::from([10, 0, 0, 5]) };
            let documents = Documents::parse(&documents().for_founder(&node, replicas, None).unwrap()).unwrap();
            documents.of_kind("ClusterConfiguration").unwrap()
        };
        let made = electing(&kept(1).to_string()).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&made).unwrap(), kept(3));
        assert_eq!(electing(&made).unwrap(), None);
        assert!(electing("a: [").unwrap_err().to_string().starts_with("reading ConfigMap kubeadm-config: "));
        let without = json!({"controllerManager": {}}).to_string();
        assert_eq!(electing(&without).unwrap(), None, "kubeadm's default is to elect");
    }

    #[test]
    fn a_workers_configuration_has_token_pin_and_the_name_that_all_nodes_know() {
        let node = Node { name: "n2".into(), address: IpAddr::from([10, 0, 0, 6]) };
        let worker =
            Grant { endpoint: "10.0.0.5:6443".parse().unwrap(), authorities: vec!["sha256:0".into()], token: "a.b".into(), control_plane: None };
        let of = |grant: &Grant| Documents::parse(&documents().for_member(&node, grant).unwrap()).unwrap().of_kind("JoinConfiguration").unwrap();
        let join = of(&worker);
        let expected = json!({"token": "a.b", "apiServerEndpoint": "kube-api.chasi-bod.internal:6443", "caCertHashes": ["sha256:0"]});
        assert_eq!(join["discovery"]["bootstrapToken"], expected);
        assert_eq!(join["nodeRegistration"]["kubeletExtraArgs"][1]["value"], "10.0.0.6");
        assert_eq!((&join["timeouts"]["discovery"], &join["timeouts"]["tlsBootstrap"]), (&json!("2m0s"), &json!("20m0s")));
        assert_eq!((&join["controlPlane"], &join["patches"]), (&Value::Null, &Value::Null));
        let keys = ControlPlane { certificate_key: "k".into(), encryption: "e".into() };
        let join = of(&Grant { control_plane: Some(keys), ..worker });
        let local = json!({"advertiseAddress": "10.0.0.6", "bindPort": 6443});
        assert_eq!(join["controlPlane"], json!({"localAPIEndpoint": local, "certificateKey": "k"}));
        assert_eq!((&join["nodeRegistration"]["taints"], join["patches"]["directory"].is_string()), (&json!([]), true));
    }

    #[test]
    fn labels_and_taints_of_the_rules_are_there_from_the_first_moment() {
        let taints = vec!["gpu=a:NoSchedule".to_string().try_into().unwrap()];
        let standing = Standing { role: None, labels: [("rack".into(), "r1".into()), ("zone".into(), "z".into())].into(), taints };
        let node = Node { name: "n1".into(), address: IpAddr::from([10, 0, 0, 5]) };
        let grant =
            Grant { endpoint: "10.0.0.5:6443".parse().unwrap(), authorities: vec!["sha256:0".into()], token: "a.b".into(), control_plane: None };
        let documents = documents().with(&standing);
        for (text, kind) in [
            (documents.for_founder(&node, 1, None).unwrap(), "InitConfiguration"),
            (documents.for_member(&node, &grant).unwrap(), "JoinConfiguration"),
        ] {
            let registration = &Documents::parse(&text).unwrap().of_kind(kind).unwrap()["nodeRegistration"];
            assert_eq!(registration["kubeletExtraArgs"][0]["value"], "chasi-bod.io/cpu-manager=none,rack=r1,zone=z");
            assert_eq!(registration["taints"], json!([{"key": "gpu", "value": "a", "effect": "NoSchedule"}]));
        }
    }

    #[test]
    fn the_machines_size_goes_to_the_kubelets_drop_in() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        Machine { processors: 2, memory: 4000 }.write(&host).unwrap();
        let written: Value = serde_json::from_str(&host.read(SIZES).unwrap().unwrap()).unwrap();
        assert_eq!((&written["kind"], &written["systemReserved"]["memory"]), (&json!("KubeletConfiguration"), &json!("180Mi")));
    }

    #[test]
    fn reservations_never_take_more_than_an_eighth_of_a_small_machine() {
        for (memory, reserved) in [(512, 64), (2048, 140), (65536, 1410)] {
            assert_eq!(Machine { processors: 1, memory }.reserved_memory(), reserved);
        }
    }
}
