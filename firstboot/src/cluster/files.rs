//! Files that a node of a cluster needs before kubeadm runs.

use std::net::{IpAddr, Ipv4Addr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use layers::node::KUBERNETES;
use layers::{Error, Result};

use super::Node;
use super::kubeadm::Documents;
use crate::host::Host;
use crate::steps::set_further_names;

/// Address of a node without any: the IPv4 dummy address (RFC 7600), on interface `node0`.
pub const DUMMY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8));

const OURS: &str = "etc/kubernetes/chasi-bod";
const ENCRYPTION: &str = "etc/kubernetes/chasi-bod/encryption.yaml";

/// Writes everything that is missing; what holds a key is made once.
pub fn write(host: &Host, node: &Node, base: &Documents) -> Result<()> {
    write_control_plane(host, None)?;
    set_further_names(host, &format!("{} {}\n", node.address, super::kubeadm::ENDPOINT_NAME))?;
    write_pod_network(host, base)
}

/// What an API server reads; the keys of secrets at rest are the cluster's, or made here by its founder.
pub fn write_control_plane(host: &Host, given: Option<&str>) -> Result<()> {
    for name in ["admission.yaml", "audit.yaml", "authentication.yaml"] {
        let text = host.read_bytes(&format!("{KUBERNETES}/{name}"))?.unwrap_or_default();
        host.write(&format!("{OURS}/{name}"), &text, 0o600)?;
    }
    match given {
        Some(given) => host.write(ENCRYPTION, given.as_bytes(), 0o600).map(drop),
        None if super::exists(host, ENCRYPTION) => Ok(()),
        None => host.write(ENCRYPTION, encryption(&host.random::<32>()?).as_bytes(), 0o600).map(drop),
    }
}

/// Lets a program of this control plane elect who of its kind works; the kubelet starts it anew if it did not.
pub fn elect(host: &Host, program: &str) -> Result<()> {
    let path = format!("etc/kubernetes/manifests/{program}.yaml");
    let text = host.read(&path)?.ok_or_else(|| Error::environment(format!("reading /{path}: no such file")))?;
    host.write(&path, text.replace("--leader-elect=false", "--leader-elect=true").as_bytes(), 0o600).map(drop)
}

/// The keys of secrets at rest, for another control plane.
pub fn encryption_keys(host: &Host) -> Result<String> {
    host.read(ENCRYPTION)?.ok_or_else(|| Error::internal(format!("reading /{ENCRYPTION}: no such file")))
}

/// Secrets at rest: AES-GCM is fast and needs keys to be rotated; secretbox has no such bound (Kubernetes documentation, "Encrypting
/// Confidential Data at Rest").
fn encryption(key: &[u8]) -> String {
    let document = serde_json::json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets"],
            "providers": [{"secretbox": {"keys": [{"name": "founder", "secret": BASE64_STANDARD.encode(key)}]}}, {"identity": {}}],
        }],
    });
    format!("{document}\n")
}

/// Bridge and addresses of the node's pods. The controller manager gives the first node the first range; [`super::api`] corrects it.
fn write_pod_network(host: &Host, base: &Documents) -> Result<()> {
    if super::exists(host, CNI) {
        return Ok(());
    }
    write_pod_range(host, &base.first_node_range()?)
}

/// The pod network's configuration.
pub const CNI: &str = "etc/cni/net.d/10-chasi-bod.conflist";

/// Writes the pod network's configuration (CNI specification 1.0.0) for a range; the running kubelet and containerd read it at once. The
/// bridge does not masquerade: that would hide pods from those of other nodes. What leaves the cluster is masqueraded by the image's `pods.nft`.
pub fn write_pod_range(host: &Host, range: &str) -> Result<()> {
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "chasi-bod",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": range}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/chasi-bod/cni"},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
        ],
    });
    host.write(CNI, format!("{list:#}\n").as_bytes(), 0o600).map(|_| ())
}

const KUBELET: &str = "etc/kubernetes/kubelet.conf";

/// Where the kubelet keeps its newest client certificate; it renews it by itself.
const ROTATED: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// Lets the kubelet's next start use its newest client certificate instead of kubeadm's first one (kubeadm's phase `kubelet-finalize`).
pub fn use_rotated_certificate(host: &Host) -> Result<()> {
    let text = host.read(KUBELET)?.ok_or_else(|| Error::internal(format!("reading /{KUBELET}: no such file")))?;
    let bad = |e: String| Error::internal(format!("reading /{KUBELET}: {e}"));
    let mut document: serde_json::Value = serde_saphyr::from_str(&text).map_err(|e| bad(e.without_snippet().to_string()))?;
    let user = document["users"][0]["user"].as_object_mut().ok_or_else(|| bad("no user".into()))?;
    *user = serde_json::Map::from_iter(["client-certificate", "client-key"].map(|key| (key.to_string(), ROTATED.into())));
    host.write(KUBELET, format!("{document:#}\n").as_bytes(), 0o600).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_uses_its_newest_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let text = "apiVersion: v1\nusers:\n- name: system:node:n\n  user:\n    client-certificate-data: QQ==\n    client-key-data: QQ==\n";
        host.write(KUBELET, text.as_bytes(), 0o600).unwrap();
        use_rotated_certificate(&host).unwrap();
        let document: serde_json::Value = serde_saphyr::from_str(&host.read(KUBELET).unwrap().unwrap()).unwrap();
        assert_eq!(
            document["users"][0],
            serde_json::json!({"name": "system:node:n", "user": {"client-certificate": ROTATED, "client-key": ROTATED}})
        );
    }

    #[test]
    fn the_key_is_made_once_and_only_root_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.write("etc/hostname", b"n\n", 0o644).unwrap();
        let base = Documents::parse(&crate::cluster::kubeadm::shipped()).unwrap();
        let node = Node { name: "n".into(), address: DUMMY };
        write(&host, &node, &base).unwrap();
        let key = host.read(ENCRYPTION).unwrap();
        write(&host, &node, &base).unwrap();
        assert_eq!(host.read(ENCRYPTION).unwrap(), key);
        assert_eq!(std::fs::metadata(host.path(ENCRYPTION)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            host.read("etc/hosts").unwrap().unwrap(),
            "127.0.0.1 localhost\n127.0.1.1 n\n::1 localhost ip6-localhost ip6-loopback\n192.0.0.8 kube-api.chasi-bod.internal\n"
        );
        assert!(host.read(CNI).unwrap().unwrap().contains("\"10.244.0.0/24\""));
    }
}
