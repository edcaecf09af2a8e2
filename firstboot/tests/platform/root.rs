//! The root of a node as far as the controllers look at it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use layers::chart::bundle::Form;
use layers::platform::{Component, VirtualCluster};
use layers::seed::{Release, Seed};
use layers::units::{Bytes, Digest};
use serde_json::Value;

use crate::bench::PLATFORM;
use crate::programs::{programs, values, workspace};

/// The image's charts by their names: all are there for components, `welcome` is also installed by itself.
const CHARTS: [&str; 6] = ["vcluster", "welcome", "note", "kinds", "node-exporter", "kube-state-metrics"];
/// Those of the layer `monitoring`.
const MONITORING: [&str; 2] = ["node-exporter", "kube-state-metrics"];

/// Charts of our own: of one object whose values have a schema, with one of another kind if wanted, and of that kind's definition.
const FILES: [(&str, &str); 7] = [
    ("note/Chart.yaml", "{apiVersion: v2, name: note, version: 1.0.0}"),
    ("note/values.yaml", "text: hello\n"),
    ("note/values.schema.json", r#"{"type": "object", "properties": {"text": {"type": "string"}}}"#),
    (
        "note/templates/note.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {text: {{ .Values.text | quote }}}\n",
    ),
    (
        "note/templates/kind.yaml",
        "{{ with .Values.kind }}\napiVersion: test.example/v1\nkind: {{ . }}\nmetadata: {name: {{ $.Release.Name }}}\n{{ end }}",
    ),
    ("kinds/Chart.yaml", "{apiVersion: v2, name: kinds, version: 1.0.0}"),
    ("kinds/templates/gadgets.yaml", GADGETS),
];

const GADGETS: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.test.example}
spec:
  group: test.example
  scope: Namespaced
  names: {kind: Gadget, plural: gadgets}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
";

/// Lays it below `root`; `folder` has the credentials.
pub fn lay(root: &Path, folder: &Path) {
    let of_programs = |name: &str| fs::read(programs().join(name)).unwrap();
    put(root, "etc/hostname", b"node\n");
    put(root, "etc/kubernetes/admin.conf", &fs::read(folder.join(format!("{PLATFORM}.conf"))).unwrap());
    for name in ["ca.crt", "healthcheck-client.crt", "healthcheck-client.key"] {
        put(root, &format!("etc/kubernetes/pki/etcd/{name}"), &fs::read(folder.join("pki/etcd").join(name)).unwrap());
    }
    put(root, "usr/lib/chasi-bod/kubernetes/kubeadm.yaml", &of_programs("kubeadm.yaml"));
    put(root, "usr/lib/chasi-bod/platform/templates.yaml", &fs::read(workspace().join("layers/defs/vcluster/files/templates.yaml")).unwrap());
    for (name, text) in FILES {
        put(root, &format!("usr/lib/chasi-bod/charts/{name}"), text.as_bytes());
    }
    for name in ["vcluster.tgz", "welcome.tgz"] {
        put(root, &format!("usr/lib/chasi-bod/charts/{name}"), &of_programs(name));
    }
    for name in MONITORING {
        symlink(workspace().join("layers/defs/monitoring/charts").join(name), root.join("usr/lib/chasi-bod/charts").join(name)).unwrap();
    }
    seed(root, Vec::new(), Vec::new());
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    for program in ["helm", "kubeadm", "kubectl"] {
        symlink(programs().join(program), root.join("usr/bin").join(program)).unwrap();
    }
}

/// What the image brings: its charts, and objects of the platform's API.
pub fn seed(root: &Path, virtual_clusters: Vec<VirtualCluster>, components: Vec<Component>) {
    let releases = CHARTS.map(release).into();
    put(root, "usr/lib/chasi-bod/seed.json", &serde_json::to_vec(&Seed { releases, virtual_clusters, components }).unwrap());
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn release(name: &str) -> Release {
    let packed = ["vcluster", "welcome"].contains(&name);
    let file = if packed { format!("{name}.tgz") } else { name.into() };
    let values: BTreeMap<String, Value> = if name == "vcluster" { serde_json::from_value(values()).unwrap() } else { BTreeMap::new() };
    let (sha256, install) = (Digest::of(name.as_bytes()), name == "welcome");
    let (name, namespace, chart, version, wanted_by) = (name.into(), "default".into(), name.into(), "1.0.0".into(), "test".into());
    Release { name, namespace, chart, version, file, sha256, size: Bytes(1), form: Form::Chart, values, install, wanted_by }
}
