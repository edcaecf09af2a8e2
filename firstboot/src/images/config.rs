//! What containerd reads beside its own configuration, written each time before it starts: which images the kubelet must never drop, and where
//! images are asked for.

use std::fmt::Write as _;

use layers::seed::{Image, REGISTRIES, Registries};
use layers::{Context, Fault, Result};

use crate::host::{Change, Host, RUN};
use crate::registry::split;

/// Names of the root's images, imported by containerd's configuration.
const PINNED: &str = "containerd/pinned.toml";
/// The mirrors of every registry (containerd, docs/hosts.md); `/etc/containerd/certs.d/_default` is a link to its folder.
const HOSTS: &str = "registries/hosts.toml";
/// Certificate of the cluster's authority.
pub const CLUSTER_CA: &str = "etc/kubernetes/pki/ca.crt";
/// Certificate and key of the kubelet, which it keeps fresh.
pub const NODE_CERTIFICATE: &str = "var/lib/kubelet/pki/kubelet-client-current.pem";

/// Writes which images are part of the root. They take no room, so dropping them frees none.
pub fn write_pinned(host: &Host, images: &[Image]) -> Result<Change> {
    let mut text = String::from("version = 4\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n");
    let names = images.iter().flat_map(|image| [image.name.clone(), format!("{}@{}", split(&image.name).0, image.digest)]);
    for (number, name) in names.enumerate() {
        let _ = writeln!(text, "{number} = {}", quoted(&name));
    }
    host.write(&format!("{RUN}/{PINNED}"), text.as_bytes(), 0o644)
}

/// Which registries the image names.
pub fn registries(host: &Host) -> Result<Registries> {
    let Some(text) = host.read(REGISTRIES.trim_start_matches('/'))? else { return Ok(Registries::default()) };
    serde_saphyr::from_str(&text).fault(Fault::Internal, || format!("reading {REGISTRIES}"))
}

/// Writes in which order registries are asked: the images of the root, the registry inside the cluster as soon as there is a cluster to vouch
/// for it, the image's own registry where the profile allows it. containerd reads the file at each pull.
pub fn write_hosts(host: &Host, port: u16) -> Result<Change> {
    let registries = registries(host)?;
    let plain = registries.cluster.starts_with("http://");
    let files = [CLUSTER_CA, NODE_CERTIFICATE].map(|path| host.path(path));
    let vouched = plain || files.iter().all(|path| path.exists());
    let mut mirrors = vec![Mirror { url: format!("http://127.0.0.1:{port}"), further: String::new() }];
    if !registries.cluster.is_empty() && vouched {
        let [ca, node] = files.map(|path| quoted(&path.display().to_string()));
        // It knows its nodes by their kubelets' certificates.
        let trust = if plain { String::new() } else { format!("ca = {ca}\nclient = [[{node}, {node}]]\n") };
        // Before the cluster runs nobody answers there.
        mirrors.push(Mirror { url: registries.cluster, further: format!("dial_timeout = \"2s\"\n{trust}") });
    }
    host.write(&format!("{RUN}/{HOSTS}"), hosts(mirrors, registries.upstream).as_bytes(), 0o644)
}

/// A registry that is asked in the place of another, and further lines about it.
struct Mirror {
    url: String,
    further: String,
}

/// containerd asks `server` after all hosts, and the registry of the name itself where there is none: a closed list's last one is its server.
fn hosts(mut mirrors: Vec<Mirror>, upstream: bool) -> String {
    let last = if upstream { None } else { mirrors.pop() };
    let capabilities = "capabilities = [\"pull\", \"resolve\"]";
    let server = last.iter().map(|m| format!("server = {}\n{capabilities}\n{}", quoted(&m.url), m.further));
    let hosts = mirrors.iter().map(|m| format!("[host.{}]\n{capabilities}\n{}", quoted(&m.url), m.further));
    std::iter::once("# Written by chasi-bod.\n".to_string()).chain(server).chain(hosts).collect()
}

/// A TOML basic string; JSON's escapes are a subset of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tree::{Tree, tests::root};

    #[test]
    fn g8_every_image_is_pinned_by_tag_and_by_digest() {
        let (_folder, host) = root(&[("a.io:5000/x:1", "p"), ("b.io/y:2", "q")]);
        let tree = Tree::load(&host).unwrap();
        write_pinned(&host, tree.images()).unwrap();
        let text = host.read("run/chasi-bod/containerd/pinned.toml").unwrap().unwrap();
        for name in ["\"a.io:5000/x:1\"".into(), format!("\"a.io:5000/x@{}\"", tree.images()[0].digest), "\"b.io/y:2\"".into()] {
            assert!(text.contains(&name), "{name} is not in {text}");
        }
    }

    #[test]
    fn registries_are_asked_in_their_order_and_no_other() {
        let (_folder, host) = root(&[]);
        let read = || {
            write_hosts(&host, 955).unwrap();
            host.read("run/chasi-bod/registries/hosts.toml").unwrap().unwrap().lines().skip(1).collect::<Vec<_>>().join("\n")
        };
        let seed = "capabilities = [\"pull\", \"resolve\"]";
        assert_eq!(read(), format!("server = \"http://127.0.0.1:955\"\n{seed}"));
        host.write("usr/lib/chasi-bod/registries.yaml", b"cluster: https://10.96.0.9:5000\nupstream: false\n", 0o644).unwrap();
        assert!(!read().contains("10.96"), "nobody vouches for it yet");
        host.write(CLUSTER_CA, b"x", 0o644).unwrap();
        assert!(!read().contains("10.96"), "the node could not say who it is");
        host.write(NODE_CERTIFICATE, b"x", 0o600).unwrap();
        let text = read();
        assert!(text.starts_with("server = \"https://10.96.0.9:5000\"\n") && text.contains("pki/ca.crt"), "{text}");
        assert!(text.contains("client = [[\"") && text.contains("kubelet-client-current.pem\"]]"), "{text}");
        assert!(text.contains("[host.\"http://127.0.0.1:955\"]"), "{text}");
        host.write("usr/lib/chasi-bod/registries.yaml", b"cluster: http://10.96.0.9:5000\n", 0o644).unwrap();
        assert!(!read().contains("ca =") && read().starts_with("server = \"http://10.96"), "{}", read());
        host.write("usr/lib/chasi-bod/registries.yaml", b"upstream: true\n", 0o644).unwrap();
        assert_eq!(read(), format!("[host.\"http://127.0.0.1:955\"]\n{seed}"));
    }
}
