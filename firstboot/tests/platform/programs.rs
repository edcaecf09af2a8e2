//! What the tests run: the built image's own etcd, Kubernetes and helm, and vcluster's own chart with the values of the layer `vcluster`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

/// A small profile whose lock has vcluster's chart: that comes from a Go module, so that nothing has to be built. Its images are not wanted here.
const PROFILE: &str = "name: platform-test
charts:
- name: virtual
  module: github.com/loft-sh/vcluster
  version: v0.33.1
  chart: chart
  install: false
  values:
    controlPlane:
      distro: {k8s: {image: {registry: registry.k8s.io, repository: pause, tag: 3.10.2}}}
      statefulSet: {image: {registry: registry.k8s.io, repository: pause, tag: 3.10.2}}
";

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// Runs a program to its end; what it wrote.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The builder's command.
pub fn chasi_bod() -> Command {
    let named = std::env::var_os("CHASI_BOD_BIN").map(PathBuf::from);
    Command::new(named.unwrap_or_else(|| workspace().join("target/release/chasi-bod")))
}

/// A file of an image's root; the first that matches the pattern.
pub fn take(image: &Path, pattern: &str, to: &Path) {
    let listed = run(chasi_bod().arg("inspect").arg(image).args(["--files", pattern]));
    let listed = String::from_utf8(listed).unwrap();
    let path = listed.lines().find(|line| line.starts_with('-')).and_then(|line| line.split_whitespace().last());
    let path = path.unwrap_or_else(|| panic!("{} has no {pattern}", image.display()));
    let new = to.with_extension("new");
    fs::write(&new, run(chasi_bod().arg("inspect").arg(image).args(["--cat", path]))).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, to).unwrap();
}

/// The folder of the programs; taken out of the image once for all tests of this process.
pub fn programs() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("platform");
        fs::create_dir_all(&folder).unwrap();
        // Those who run in namespaces find what their parent has put there.
        if !crate::apart::is_inside() {
            fill(&folder);
        }
        folder
    })
}

fn fill(folder: &Path) {
    let images = std::env::var_os("CHASI_BOD_IMAGE_DIR").map_or_else(|| workspace().join("output"), PathBuf::from);
    let image = images.join("standalone/0.1.0/standalone-0.1.0.qcow2");
    assert!(image.exists(), "{} is not there: run `make standalone`", image.display());
    for (name, pattern) in [
        ("etcd", "**/usr/local/bin/etcd"),
        ("kube", "/usr/lib/chasi-bod/bin/kube"),
        ("helm", "/usr/bin/helm"),
        ("kubeadm.yaml", "/usr/lib/chasi-bod/kubernetes/kubeadm.yaml"),
        ("welcome.tgz", "/usr/lib/chasi-bod/charts/welcome-*.tgz"),
    ] {
        take(&image, pattern, &folder.join(name));
    }
    let _ = symlink("etcd", folder.join("etcdutl"));
    for name in ["kube-apiserver", "kube-controller-manager", "kubeadm", "kubectl"] {
        let _ = symlink("kube", folder.join(name));
    }
    fs::write(folder.join("vcluster.tgz"), chart(folder)).unwrap();
}

/// Vcluster's chart, as the builder fetches it.
fn chart(folder: &Path) -> Vec<u8> {
    let (shipped, profile) = (workspace().join("profiles/cluster.yaml"), folder.join("platform-test.yaml"));
    fs::write(&profile, format!("extends: {}\n{PROFILE}", shipped.display())).unwrap();
    // All but the one chart is locked already.
    fs::copy(shipped.with_file_name("standalone.lock"), profile.with_extension("lock")).unwrap();
    run(chasi_bod().arg("lock").arg(&profile));
    let lock = fs::read_to_string(profile.with_extension("lock")).unwrap();
    let lock: Value = serde_saphyr::from_str(&lock).unwrap();
    let chart = lock["charts"].as_array().unwrap().iter().find(|chart| chart["name"] == "virtual").unwrap();
    let digest = chart["sha256"].as_str().unwrap().trim_start_matches("sha256:");
    fs::read(store().join("blobs").join(digest)).unwrap()
}

/// The builder's store.
fn store() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let usual = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("chasi-bod");
    std::env::var_os("CHASI_BOD_CACHE").map_or_else(usual, PathBuf::from)
}

/// What the layer `vcluster` gives every virtual cluster.
pub fn values() -> Value {
    let layer = fs::read_to_string(workspace().join("layers/defs/vcluster/layer.yaml")).unwrap();
    let layer: Value = serde_saphyr::from_str(&layer).unwrap();
    layer["charts"][0]["values"].clone()
}

/// Further programs of the layer `vcluster`, which are in no shipped image: those of the image in `CHASI_BOD_VCLUSTER_IMAGE`, else of one that is built here.
pub fn syncer() {
    if crate::apart::is_inside() {
        return;
    }
    let (folder, built) = (programs(), programs().join("out"));
    let image = std::env::var_os("CHASI_BOD_VCLUSTER_IMAGE").map_or_else(|| build(folder, &built), PathBuf::from);
    take(&image, "**/l/*/vcluster", &folder.join("vcluster"));
    take(&image, "**/l/*/usr/local/bin/kine", &folder.join("kine"));
    let _ = fs::remove_dir_all(built);
}

fn build(folder: &Path, to: &Path) -> PathBuf {
    let (shipped, profile) = (workspace().join("profiles/cluster.yaml"), folder.join("platform-syncer.yaml"));
    fs::write(&profile, format!("extends: {}\nname: syncer\nlayers: [vcluster]\n", shipped.display())).unwrap();
    fs::copy(shipped.with_file_name("standalone.lock"), profile.with_extension("lock")).unwrap();
    run(chasi_bod().arg("build").arg(&profile).args(["--format", "raw", "--output"]).arg(to));
    to.join("syncer/0.1.0/syncer-0.1.0.raw")
}
