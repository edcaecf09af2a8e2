//! What a profile's components and virtual clusters need of charts and images.

use super::*;

const BUNDLES: &str = "name: a\ncharts:\n- {name: vcluster, chart: charts/web, install: false}\n- {name: rules, manifests: ./quota.yaml, install: false}\n\
                       - {name: shop, kustomize: 'shop#overlays/a', install: false}\n";

fn with_bundles(components: &Value) -> Result<Plan> {
    let files = ["charts/web/Chart.yaml", "quota.yaml", "shop/base/x.yaml", "shop/overlays/a/kustomization.yaml"];
    let files = files.map(|path| (path.to_string(), if path.contains("Chart") { CHART.into() } else { b"kind: A\n".to_vec() }));
    let layer = LoadedLayer::new("layers/a", &format!("summary: s\n{BUNDLES}"), files.into()).unwrap();
    plan(&loaded(&json!({"layers": ["a"], "components": components})), &[layer], &BTreeMap::new(), &no_file, Vec::new())
}

#[test]
fn components_are_made_of_manifests_and_kustomizations_by_their_names() {
    let both = json!([{"name": "a", "source": {"manifests": "rules"}}, {"name": "b", "source": {"kustomize": "shop"}, "target": {"namespace": "s"}}]);
    let planned = with_bundles(&both).unwrap();
    let files = |name: &str| planned.charts.iter().find(|chart| chart.spec.name == name).unwrap().files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(files("rules"), ["Chart.yaml", "files/000-quota.yaml", "templates/000-quota.yaml"]);
    assert_eq!(files("shop"), ["Chart.yaml", "kustomization/base/x.yaml", "kustomization/overlays/a/kustomization.yaml"]);
    says(
        &planned.to_text(),
        &["manifests ./quota.yaml", "kustomize shop", "manifests rules into namespace default", "kustomize shop into namespace s"],
    );
    for (source, parts) in [
        (
            json!({"manifests": "rulse"}),
            ["p.yaml:", "component a is made of the manifests `rulse`, which is not among `charts`", "did you mean `rules`?"],
        ),
        (
            json!({"kustomize": "rules"}),
            ["p.yaml:", "made of the kustomize `rules`, but `rules` under `charts` has `manifests`", "say `manifests` instead of"],
        ),
        (
            json!({"chart": {"name": "shop"}}),
            ["p.yaml:", "made of the chart `shop`, but `shop` under `charts` has `kustomize`", "say `kustomize` instead"],
        ),
    ] {
        says(&with_bundles(&json!([{"name": "a", "source": source}])).unwrap_err().to_string(), &parts);
    }
}

#[test]
fn versions_of_virtual_clusters_are_those_that_some_image_brings() {
    let layer = "name: a\ncharts: [{name: vcluster, chart: x, repo: 'https://r.test', version: 1.0.0, install: false}]\nimageLayers: {b: {files: [{path: /b, content: x}]}}\nimages:\n\
                 - {name: 'chasi-bod.internal/vcluster-binaries:v1.36.3', layers: [b]}\n\
                 - {name: 'chasi-bod.internal/vcluster-binaries:v1.35.4', layers: [b], when: '(has profile.virtualVersions \"v1.35.4\")'}\n";
    let named = |plan: &Plan| plan.images.iter().map(|image| image.image.name.rsplit(':').next().unwrap().to_string()).collect::<Vec<_>>();
    let cluster = json!([{"name": "old", "version": "v1.35.4"}]);
    assert_eq!(named(&planned(json!({"layers": ["a"]}), &[layer]).unwrap()), ["v1.36.3"]);
    assert_eq!(
        named(&planned(json!({"layers": ["a"], "virtualVersions": ["v1.35.4"], "vclusters": cluster}), &[layer]).unwrap()),
        ["v1.35.4", "v1.36.3"]
    );
    let own = json!({"layers": ["a"], "virtualVersions": ["v1.34.0"], "images": ["chasi-bod.internal/vcluster-binaries:v1.34.0"]});
    assert_eq!(planned(own, &[layer]).unwrap().pulls.len(), 1);
    let lost = "no layer has a control plane of Kubernetes v1.34.0 for virtual clusters; there are v1.35.4, v1.36.3";
    says(&refused(json!({"layers": ["a"], "virtualVersions": ["v1.34.0"]}), &[layer]), &[lost]);
    let old = ["virtual cluster old is of version v1.35.4, but the image will have v1.36.3", "list v1.35.4 under `virtualVersions`"];
    says(&refused(json!({"layers": ["a"], "vclusters": cluster}), &[layer]), &old);
}
