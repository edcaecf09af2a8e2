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
