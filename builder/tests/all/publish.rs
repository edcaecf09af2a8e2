//! Artifacts in a real registry (distribution): pushed and pulled by us, judged by skopeo and sha256sum.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::registry::Registry;
use crate::common::{chasi_bod, workspace};

/// The built result of the shipped minimal profile, its files as links, without the disks that only take time.
fn result(dir: &Path) -> PathBuf {
    let built = std::env::var_os("CHASI_BOD_IMAGE_DIR").map_or_else(|| workspace().join("output"), PathBuf::from).join("minimal");
    let version = fs::read_dir(&built).unwrap().flatten().map(|e| e.path()).find(|path| path.join("build.json").exists()).unwrap();
    let folder = dir.join("result");
    fs::create_dir(&folder).unwrap();
    let sums = fs::read_to_string(version.join("SHA256SUMS")).unwrap();
    let kept: Vec<_> = sums.lines().filter(|line| !line.ends_with(".iso")).collect();
    for name in kept.iter().map(|line| line.split_once("  ").unwrap().1) {
        fs::copy(version.join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("SHA256SUMS"), kept.join("\n") + "\n").unwrap();
    folder
}

fn said(args: &[&str]) -> Value {
    let output = chasi_bod(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(args: &[&str]) -> String {
    let output = chasi_bod(args).output().unwrap();
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run(command: &mut Command) -> String {
    String::from_utf8(builder::exec::run(command).unwrap().stdout).unwrap()
}

#[test]
fn artifacts_go_to_a_registry_once_and_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, registry) = (result(dir.path()), Registry::open());
    let (folder, reference) = (folder.to_str().unwrap(), registry.name("site/minimal:1"));
    let dry = said(&["push", folder, &reference, "--dry-run"]);
    assert!(refused(&["pull", &reference]).contains("does not have it"), "a dry run sends nothing");
    let first = said(&["push", folder, &reference]);
    assert_eq!(first["digest"], dry["digest"]);
    let again = said(&["push", folder, &reference]);
    assert!(first["transferred"].as_u64().unwrap() > 1 << 20 && again["transferred"] == 0 && again["digest"] == first["digest"], "{first} {again}");

    let skopeo = |args: &[&str]| run(Command::new("skopeo").args(args));
    let url = format!("docker://{reference}");
    let index: Value = serde_json::from_str(&skopeo(&["inspect", "--raw", "--tls-verify=false", &url])).unwrap();
    assert_eq!(index["artifactType"], "application/vnd.chasi-bod.image.v1");
    let copy = dir.path().join("copy");
    skopeo(&["copy", "--quiet", "--all", "--src-tls-verify=false", &url, &format!("oci:{}:1", copy.display())]);
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    let manifest: Value = serde_json::from_slice(&fs::read(copy.join("blobs/sha256").join(manifest)).unwrap()).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let name = layer["annotations"]["org.opencontainers.image.title"].as_str().unwrap();
        let blob = copy.join("blobs/sha256").join(layer["digest"].as_str().unwrap().replace("sha256:", ""));
        run(Command::new("cmp").arg(blob).arg(Path::new(folder).join(name)));
    }

    let back = dir.path().join("back");
    let by_digest = format!("{}@{}", registry.name("site/minimal"), first["digest"].as_str().unwrap());
    let pulled = said(&["pull", &by_digest, "--output", back.to_str().unwrap()]);
    assert_eq!(pulled["files"], first["files"]);
    run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&back));
    // A file that broke off goes on, one that was changed comes anew, the others stay.
    let disk = back.join("minimal-0.1.0.qcow2");
    let bytes = fs::read(&disk).unwrap();
    fs::remove_file(&disk).unwrap();
    fs::write(back.join(".minimal-0.1.0.qcow2.partial"), &bytes[..bytes.len() - 1000]).unwrap();
    fs::write(back.join("build.json"), "{}").unwrap();
    let record = fs::metadata(Path::new(folder).join("build.json")).unwrap().len();
    let more = said(&["pull", &reference, "--output", back.to_str().unwrap()]);
    assert_eq!(more["transferred"], 1000 + record);
    run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&back));

    let one = dir.path().join("one");
    said(&["pull", &reference, "--file", "build.json", "--output", one.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&one).unwrap().count(), 1);
    assert!(refused(&["pull", &reference, "--file", "x.iso"]).contains("has no file `x.iso`"));
    assert!(refused(&["push", folder, &by_digest]).contains("name a tag, not a digest"));
    fs::write(Path::new(folder).join("lock"), "other").unwrap();
    assert!(refused(&["push", folder, &reference]).contains("lock: SHA256SUMS says"));
}
