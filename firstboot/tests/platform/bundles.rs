//! Components of manifests and of kustomizations: they come, change with the image, are put right again, and go, as releases of helm.

use std::fs;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use layers::chart::bundle::{Form, of_files};
use layers::chart::{ChartFiles, archive};
use layers::platform::Component;
use layers::platform::component::ComponentPhase;
use layers::seed::{CHARTS, Release, SEED, Seed};
use layers::units::{Bytes, Digest};
use serde_json::json;

use crate::bench::Bench;
use crate::kills::release_is_sane;
use crate::rates::is_ready;

/// The two components by their names, with their forms, targets and objects.
const NAMES: [(&str, &str); 2] = [("rules", "manifests"), ("shop", "kustomize")];

/// Manifests with and without a namespace, and a kustomization whose base is beside it.
fn files(form: &Form, text: &str) -> ChartFiles {
    let map = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{text: '{text} {{{{ .Values.x }}}}'}}\n");
    let files = match form {
        Form::Manifests => vec![
            ("own.yaml", map("rules")),
            (
                "more/other.json",
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rules-else", "namespace": "default"}}).to_string(),
            ),
            ("README.md", "no manifest".into()),
        ],
        _ => vec![
            ("base/kustomization.yaml", "resources: [map.yaml]\n".into()),
            ("base/map.yaml", map("shop")),
            ("overlays/a/kustomization.yaml", "resources: [../../base]\nnamePrefix: big-\nlabels: [{pairs: {from: overlay}}]\n".into()),
        ],
    };
    files.into_iter().map(|(path, text): (&str, String)| (path.to_string(), text.into_bytes())).collect()
}

/// Puts both into the root, as a later image would have them.
fn lay(bench: &Bench, text: &str) {
    let root = bench.path("root");
    let seed = root.join(SEED.trim_start_matches('/'));
    let mut listed: Seed = serde_json::from_slice(&fs::read(&seed).unwrap()).unwrap();
    for (name, form) in [("rules", Form::Manifests), ("shop", Form::Kustomize("overlays/a".into()))] {
        let (about, bytes) = archive::pack(&of_files(&form, files(&form, text)).unwrap()).unwrap();
        let file = format!("{name}-{}.tgz", about.version);
        fs::write(root.join(CHARTS.trim_start_matches('/')).join(&file), &bytes).unwrap();
        listed.releases.retain(|known| known.name != name);
        let (sha256, size) = (Digest::of(&bytes), Bytes(bytes.len() as u64));
        let (name, namespace, values, wanted_by) = (name.into(), "default".into(), Default::default(), "test".into());
        let (chart, version) = (about.name, about.version);
        listed.releases.push(Release { name, namespace, chart, version, file, sha256, size, form, values, install: false, wanted_by });
    }
    fs::write(seed, serde_json::to_vec(&listed).unwrap()).unwrap();
}

async fn map(bench: &Bench, namespace: &str, name: &str) -> Option<ConfigMap> {
    Api::<ConfigMap>::namespaced(bench.client.clone(), namespace).get_opt(name).await.unwrap()
}

/// Both are there as the image has them; nothing in them was taken for a template.
async fn are_as_laid(bench: &Bench, text: &str, revisions: usize) {
    for (name, _) in NAMES {
        bench.until::<Component>(name, "READY", is_ready).await;
        release_is_sane(bench, &format!("at-{name}"), name, revisions).await;
    }
    let (rules, shop) = (map(bench, "at-rules", "rules").await.unwrap(), map(bench, "at-shop", "big-shop").await.unwrap());
    for found in [&rules, &shop] {
        assert_eq!(found.data.as_ref().unwrap()["text"], format!("{text} {{{{ .Values.x }}}}"));
    }
    assert_eq!(shop.labels()["from"], "overlay");
    assert!(map(bench, "default", "rules-else").await.is_some());
}

/// Somebody else's change is taken back when the objects are compared: at the controllers' first look.
async fn heal(bench: &mut Bench) {
    bench.kill();
    for (namespace, name) in [("at-rules", "rules"), ("at-shop", "big-shop")] {
        let patch = Patch::Merge(json!({"data": {"text": "meddled"}}));
        Api::<ConfigMap>::namespaced(bench.client.clone(), namespace).patch(name, &PatchParams::default(), &patch).await.unwrap();
    }
    bench.start();
    for (name, _) in NAMES {
        let healed = |object: &Component| {
            let conditions = object.status.as_ref().map(|status| &status.conditions);
            conditions.into_iter().flatten().any(|one| one.type_ == "Drifted" && one.reason == "Healed" && one.message.contains("ConfigMap"))
        };
        bench.until::<Component>(name, "healed", healed).await;
    }
}

async fn what_is_wrong_is_said(bench: &Bench) {
    for (spec, said) in [
        (json!({"source": {"manifests": "rules"}, "values": {"a": 1}}), "spec.values: only a chart takes values"),
        (json!({"source": {"kustomize": "shop"}, "valuesFrom": [{"secret": "x"}]}), "spec.valuesFrom: only a chart takes values"),
        (json!({"source": {"kustomize": "shop", "manifests": "rules"}}), "name one of chart, kustomize and manifests"),
    ] {
        let error = bench.create::<Component>("wrong", spec).await.expect_err(said);
        assert!(error.contains(said), "{error}");
    }
    for (name, source, said) in [
        ("lost", json!({"manifests": "ruels"}), "spec.source.manifests: the image brings no manifests ruels; it has rules"),
        ("other", json!({"kustomize": "rules"}), "spec.source.kustomize: the image brings no kustomization rules; it has shop"),
    ] {
        bench.create::<Component>(name, json!({"source": source})).await.unwrap();
        let refused = |object: &Component| {
            let status = object.status.clone().unwrap_or_default();
            status.phase == ComponentPhase::Error && status.failure.is_some_and(|failure| failure.reason == "Refused" && failure.message == said)
        };
        bench.until::<Component>(name, said, refused).await;
    }
}

pub async fn come_change_and_go(mut bench: Bench) {
    lay(&bench, "first");
    bench.start();
    bench.until_defined().await;
    what_is_wrong_is_said(&bench).await;
    for (name, key) in NAMES {
        let spec = json!({"source": {key: name}, "target": {"namespace": format!("at-{name}")}, "drift": "Heal"});
        bench.create::<Component>(name, spec).await.unwrap();
    }
    are_as_laid(&bench, "first", 1).await;
    heal(&mut bench).await;
    are_as_laid(&bench, "first", 2).await;
    bench.kill();
    lay(&bench, "second");
    bench.start();
    bench.until_leading().await;
    for (name, _) in NAMES {
        bench.until::<Component>(name, "changed", |object| object.status.as_ref().is_some_and(|status| status.revision == Some(3))).await;
    }
    are_as_laid(&bench, "second", 3).await;
    for (name, _) in NAMES {
        bench.delete::<Component>(name).await;
        bench.gone::<Component>(name).await;
        assert_eq!(bench.revisions(&format!("at-{name}"), name).await, [""; 0]);
    }
    assert!(map(&bench, "at-rules", "rules").await.is_none() && map(&bench, "at-shop", "big-shop").await.is_none());
    assert!(map(&bench, "default", "rules-else").await.is_none());
    bench.kill();
}
