//! What locking makes of manifests and kustomizations: the image's own kubectl and helm render them, and their images are known with who asks for them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::programs::{chasi_bod, run, workspace};

/// Images that the shipped layers make, so that nothing has to be pulled; of the layer `vcluster` no more than the name of its chart.
const PROFILE: &str = "name: bundles
charts:
- {name: vcluster, manifests: ./rules, install: false}
- {name: rules, manifests: ./rules, install: false}
- {name: shop, kustomize: './shop#overlays/a', install: false}
components:
- {name: rules, source: {manifests: rules}}
- {name: shop, source: {kustomize: shop}, target: {namespace: shop}}
";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: IMAGE}]}\n";

fn lay(folder: &Path) -> Command {
    let shipped = workspace().join("profiles/cluster.yaml");
    let profile = folder.join("bundles.yaml");
    fs::write(&profile, format!("extends: {}\n{PROFILE}", shipped.display())).unwrap();
    fs::copy(shipped.with_file_name("standalone.lock"), profile.with_extension("lock")).unwrap();
    for (path, text) in [
        ("rules/pod.yaml", POD.replace("IMAGE", "chasi-bod.internal/busybox:1.37")),
        ("shop/base/kustomization.yaml", "resources: [pod.yaml]\n".into()),
        ("shop/base/pod.yaml", POD.replace("IMAGE", "web")),
        // Nothing but the rendered text names the image.
        (
            "shop/overlays/a/kustomization.yaml",
            "resources: [../../base]\nimages: [{name: web, newName: registry.k8s.io/pause, newTag: 3.10.2}]\n".into(),
        ),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let mut lock = chasi_bod();
    lock.arg("lock").arg(&profile);
    lock
}

fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
}

#[test]
fn locking_finds_the_images_of_manifests_and_kustomizations() {
    let folder = tempfile::tempdir().unwrap();
    let mut lock = lay(folder.path());
    run(&mut lock);
    let listed = run(chasi_bod().args(["seed", "list", "--json"]).arg(folder.path().join("bundles.yaml")));
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    let asked = |image: &str, by: &str| {
        let found = listed["images"].as_array().unwrap().iter().find(|one| one["name"] == image).unwrap();
        assert!(found["wantedBy"].as_array().unwrap().iter().any(|one| one == by), "{found:#}");
    };
    asked("chasi-bod.internal/busybox:1.37", "component rules: manifests/templates/000-pod.yaml");
    asked("registry.k8s.io/pause:3.10.2", "component shop: kustomization/templates/000-rendered.yaml");
    let release = listed["releases"].as_array().unwrap().iter().find(|one| one["name"] == "shop").unwrap();
    assert_eq!((&release["form"]["kustomize"], &release["chart"]), (&"overlays/a".into(), &"kustomization".into()));

    fs::write(folder.path().join("shop/base/kustomization.yaml"), "resources: [pdo.yaml]\n").unwrap();
    let said = refused(&mut lock);
    assert!(said.contains("bundles.yaml:") && said.contains("kustomize shop: ") && said.contains("base/pdo.yaml"), "{said}");
    fs::write(folder.path().join("shop/base/kustomization.yaml"), "resources: [pod.yaml]\n").unwrap();
    fs::write(folder.path().join("rules/pod.yaml"), "kind: [\n").unwrap();
    let said = refused(&mut lock);
    assert!(said.contains("manifests vcluster: ") && said.contains("000-pod.yaml"), "{said}");
}
