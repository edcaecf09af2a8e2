//! The writable registry inside the cluster: what an operator pushes there, pods pull under any name.

use std::fs;
use std::path::Path;

use layers::units::Digest;
use qemu_tests::exec;
use qemu_tests::node::Node;
use serde_json::json;

use super::{kube, program};

const ADDRESS: &str = "10.96.0.5:5000";

/// An image of one program, the node's own static shell, in an OCI layout (image-layout.md of the OCI image specification).
fn layout(folder: &Path) {
    let (layout, tree) = (folder.join("layout"), folder.join("tree"));
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::create_dir_all(&tree).unwrap();
    program(&tree, "busybox", "/usr/bin/busybox");
    let tar = exec::run("tar", &["-C", tree.to_str().unwrap(), "--mode=0755", "-cf", "-", "busybox"]).unwrap().stdout;
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len()})
    };
    let layer = blob("layer.v1.tar", &tar);
    let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]});
    let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
}

/// Pushed from the neighbourhood with an operator's certificate; nothing on the node says where the name `example.org` is.
pub fn an_image_that_was_pushed_runs_under_any_name(node: &Node) {
    layout(&node.folder);
    let authority = node.folder.join("authority");
    fs::create_dir_all(&authority).unwrap();
    fs::write(authority.join("ca.crt"), node.ssh("cat /etc/kubernetes/pki/ca.crt").unwrap()).unwrap();
    node.beside("ip", &["route", "replace", "10.96.0.0/16", "via", "10.77.0.11"]).unwrap();
    let (source, target) = (format!("oci:{}", node.folder.join("layout").display()), format!("docker://{ADDRESS}/team/tool:1"));
    let (ca, url) = (authority.join("ca.crt").display().to_string(), format!("https://{ADDRESS}/v2/"));
    // With TLS 1.3 the refusal comes after the handshake, and the connection may be reset before the client has read it.
    let refused = || node.beside("curl", &["--silent", "--show-error", "--cacert", &ca, &url]).unwrap_err().to_string();
    let refusals: Vec<_> = std::iter::repeat_with(refused).take(5).collect();
    assert!(refusals.iter().any(|said| said.contains("certificate required")), "whoever has no certificate is let in: {refusals:#?}");
    let field = |name: &str| format!("sed -n 's/.*{name}: //p' /etc/kubernetes/admin.conf | base64 -d");
    for (file, name) in [("client.cert", "client-certificate-data"), ("client.key", "client-key-data")] {
        fs::write(authority.join(file), node.ssh(&field(name)).unwrap() + "\n").unwrap();
    }
    let copy = ["--insecure-policy", "copy", "--dest-cert-dir", authority.to_str().unwrap(), &source, &target];
    node.beside("skopeo", &copy).unwrap();
    the_pushed_image_runs(node);
}

/// Pulled, run to its end and read; afterwards the node has it no more.
fn the_pushed_image_runs(node: &Node) {
    kube(node, "kubectl run pushed --image=example.org/team/tool:1 --restart=Never --command -- /busybox echo came-from-the-registry");
    kube(node, "kubectl wait pod/pushed --for=jsonpath='{.status.phase}'=Succeeded --timeout=180s");
    assert_eq!(kube(node, "kubectl logs pushed; kubectl delete pod pushed --wait=true >&2"), "came-from-the-registry");
    // The kubelet may still have to remove the pod's container, and who counts next counts what that holds.
    let left = "ls -d /var/lib/chasi-bod/s/*/fs/busybox 2>/dev/null";
    node.ssh(&format!("crictl rmi example.org/team/tool:1 || exit 1; for i in $(seq 120); do {left} || exit 0; sleep 1; done; crictl ps -a; exit 1"))
        .unwrap();
}

/// After a reboot the registry has what it had: the image is pulled anew.
pub fn what_was_pushed_outlives_a_reboot(node: &Node) {
    kube(node, "kubectl -n registry rollout status deployment/registry --timeout=180s");
    the_pushed_image_runs(node);
}
