//! kubeadm's configuration: the documents of the image (kubeadm.k8s.io/v1beta4 and the kinds that kubeadm hands on) with what only the node
//! knows. Values go in through the documents' tree, never through their text.

use layers::node::KUBERNETES;
use layers::{Context, Error, Result};
use serde_json::{Value, json};

use super::Node;
use crate::host::Host;

/// The API's name in every kubeconfig, as in the image's `controlPlaneEndpoint`.
pub const ENDPOINT_NAME: &str = "kube-api.chasi-bod.internal";

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

    /// The kubelet's reservations and when it evicts.
    fn settings(&self) -> Value {
        let reserved =
            json!({"cpu": format!("{}m", self.reserved_processor()), "memory": format!("{}Mi", self.reserved_memory()), "ephemeral-storage": "1Gi"});
        let hard = json!({"memory.available": "100Mi", "nodefs.available": "5%", "nodefs.inodesFree": "5%", "imagefs.available": "5%"});
        json!({"systemReserved": reserved, "evictionHard": hard})
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

    fn of_kind(&self, kind: &str) -> Result<Value> {
        let found = self.0.iter().find(|document| document["kind"] == kind).cloned();
        found.ok_or_else(|| Error::internal(format!("reading kubeadm.yaml: no document of kind {kind}")))
    }

    /// The pod range of the first node: the first 256 addresses, as the controller manager cuts them.
    pub fn first_node_range(&self) -> Option<String> {
        let cluster = self.of_kind("ClusterConfiguration").ok()?;
        let (first, _) = cluster["networking"]["podSubnet"].as_str()?.split_once('/')?;
        Some(format!("{first}/24"))
    }

    /// The configuration of `kubeadm init` on a node.
    pub fn for_founder(&self, machine: &Machine, node: &Node) -> Result<String> {
        let mut init = self.of_kind("InitConfiguration")?;
        register(&mut init, node);
        init["localAPIEndpoint"] = json!({"advertiseAddress": node.address, "bindPort": 6443});
        // Nobody ever sees this token: joining nodes get one of their own, when they have shown the cluster secret.
        init["bootstrapTokens"] =
            json!([{"ttl": "10m0s", "usages": ["signing", "authentication"], "groups": ["system:bootstrappers:kubeadm:default-node-token"]}]);
        let mut cluster = self.of_kind("ClusterConfiguration")?;
        cluster["apiServer"]["certSANs"] = json!([ENDPOINT_NAME, "localhost", "127.0.0.1", super::files::DUMMY, node.name]);
        let mut kubelet = self.of_kind("KubeletConfiguration")?;
        merge(&mut kubelet, machine.settings());
        let mut proxy = self.of_kind("KubeProxyConfiguration")?;
        proxy["clusterCIDR"] = cluster["networking"]["podSubnet"].clone();
        Ok([init, cluster, kubelet, proxy].iter().map(|document| format!("---\n{document:#}\n")).collect())
    }
}

fn register(configuration: &mut Value, node: &Node) {
    configuration["nodeRegistration"]["name"] = json!(node.name);
    configuration["nodeRegistration"]["kubeletExtraArgs"] = json!([{"name": "node-ip", "value": node.address}]);
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// The documents of the shipped layer with its parameters' defaults.
#[cfg(test)]
pub fn shipped() -> Documents {
    Documents::parse(&shipped_text()).unwrap()
}

/// Their text.
#[cfg(test)]
pub fn shipped_text() -> String {
    let parameters = [("patience", "20m0s"), ("clusterName", "c"), ("podCidr", "10.244.0.0/16"), ("serviceCidr", "10.96.0.0/16"), ("dnsDomain", "d")];
    let text = include_str!("../../../layers/defs/orchestration/files/kubeadm.yaml").to_string();
    parameters.iter().fold(text, |text, (name, value)| text.replace(&format!("{{{{parameters.{name}}}}}"), value))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn the_founders_configuration_has_what_only_the_node_knows() {
        let node = Node { name: "n1".into(), address: IpAddr::from([10, 0, 0, 5]) };
        let text = shipped().for_founder(&Machine { processors: 2, memory: 4000 }, &node).unwrap();
        let documents = Documents::parse(&text).unwrap();
        let init = documents.of_kind("InitConfiguration").unwrap();
        assert_eq!(init["localAPIEndpoint"]["advertiseAddress"], "10.0.0.5");
        assert_eq!(init["nodeRegistration"]["criSocket"], "unix:///run/containerd/containerd.sock");
        let kubelet = documents.of_kind("KubeletConfiguration").unwrap();
        assert_eq!(kubelet["systemReserved"]["memory"], "180Mi");
        assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
        assert_eq!(documents.of_kind("KubeProxyConfiguration").unwrap()["clusterCIDR"], "10.244.0.0/16");
        assert_eq!(documents.first_node_range().as_deref(), Some("10.244.0.0/24"));
    }

    #[test]
    fn reservations_never_take_more_than_an_eighth_of_a_small_machine() {
        for (memory, reserved) in [(512, 64), (2048, 140), (65536, 1410)] {
            assert_eq!(Machine { processors: 1, memory }.reserved_memory(), reserved);
        }
    }
}
