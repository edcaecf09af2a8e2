use std::collections::BTreeMap;

use layers::layer::LoadedLayer;
use layers::profile;
use layers::units::{Bytes, Digest};

use super::list::Listing;
use super::*;

pub const PROFILE: &str = "name: site\nversion: 1.0.0\nlayers: [a]\nvclusters: [{name: demo, template: edge, quota: {cpu: 2}}]\ncomponents:\n\
                       - {name: console, source: {chart: {name: tools}}, target: {virtualCluster: demo, namespace: t}, values: {a: {y: 3}}, dependsOn: [base]}\n\
                       - {name: base, source: {chart: {name: tools, version: 1.0.0}}}\n\
                       - {name: rules, source: {manifests: rules}}\n";
const LAYER: &str = "name: a\nsummary: s\ncharts:\n- {name: vcluster, chart: web, install: false}\n\
                     - {name: tools, chart: web, install: false, values: {a: {x: 1, y: 2}}, images: ['r.test/i:1']}\n- {name: web, chart: web}\n- {name: rules, manifests: web/rules.yaml, install: false}\n";

/// The plan of a profile over a layer with three charts, and a lock for it.
pub fn planned(profile: &str) -> (Plan, Lock) {
    let loaded = profile::load("p.yaml", &mut |_| Ok(profile.into())).unwrap_or_else(|e| panic!("{e}"));
    let files = [("web/Chart.yaml", "name: web\nversion: 1.0.0\n"), ("web/rules.yaml", "kind: LimitRange\n")];
    let files = files.map(|(path, text)| (path.to_string(), text.as_bytes().to_vec())).into();
    let layer = LoadedLayer::new("layers/a", LAYER, files).unwrap_or_else(|e| panic!("{e}"));
    let plan = layers::plan::plan(&loaded, &[layer], &BTreeMap::new(), &|name: &str| Err(Error::input(name)), Vec::new()).unwrap();
    let locked = |planned: &PlannedChart| LockedChart {
        name: planned.spec.name.clone(),
        request: planned.request(),
        chart: "web".into(),
        version: "1.0.0".into(),
        sha256: Digest::of(b"chart"),
        size: Bytes(1),
        from: Vec::new(),
        signed_by: None,
    };
    let lock = Lock { charts: plan.charts.iter().map(locked).collect(), components: plan.components_request(), ..Lock::default() };
    (plan, lock)
}

#[test]
fn the_seed_has_whole_objects_with_locked_versions() {
    let (plan, lock) = planned(PROFILE);
    let seed = serde_json::to_value(seed(&plan, &lock)).unwrap();
    let expected = serde_json::json!([{"apiVersion": "chasi-bod.io/v1alpha1", "kind": "VirtualCluster", "metadata": {"name": "demo"},
        "spec": {"template": "edge", "suspended": false, "deletionPolicy": "Delete", "quota": {"cpu": "2"}}}]);
    assert_eq!(seed["virtualClusters"], expected);
    let console = &seed["components"][0];
    assert_eq!((&console["kind"], &console["metadata"]["name"]), (&"Component".into(), &"console".into()));
    // What the image has for the chart stays with the release, so that a later image may change it.
    assert_eq!(
        (&console["spec"]["source"], &console["spec"]["values"]),
        (&serde_json::json!({"chart": {"name": "tools", "version": "1.0.0"}}), &serde_json::json!({"a": {"y": 3}}))
    );
    assert_eq!(
        (&seed["components"][2]["spec"]["source"], &seed["releases"][3]["form"]),
        (&serde_json::json!({"manifests": "rules"}), &"manifests".into())
    );
    assert_eq!(seed["releases"][2].get("form"), None, "charts are as they were");
    let again: Seed = serde_json::from_value(seed.clone()).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), seed);
    let (plan, lock) = planned("name: site\nversion: 1.0.0\nlayers: [a]\n");
    assert_eq!(serde_json::to_value(super::seed(&plan, &lock)).unwrap().as_object().unwrap().keys().collect::<Vec<_>>(), ["releases"]);
}

#[test]
fn a_lock_is_old_when_a_component_gives_its_chart_other_values() {
    let (plan, lock) = planned(PROFILE);
    assert!(answers(&plan, &lock));
    assert!(!answers(&planned(&PROFILE.replace("y: 3", "y: 4")).0, &lock));
    assert!(answers(&planned(&PROFILE.replace(", dependsOn: [base]", "")).0, &lock));
}

#[test]
fn the_list_shows_virtual_clusters_and_components_when_there_are_any() {
    let (plan, lock) = planned(PROFILE);
    let shown = Listing::new(seed(&plan, &lock), Vec::new()).to_string();
    let lines: Vec<_> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["rules manifests rules - default", "demo edge -", "console tools 1.0.0 demo t base", "base tools 1.0.0 - default"] {
        assert!(lines.iter().any(|shown| shown == line), "{line}: {shown}");
    }
    let shown = Listing::new(Seed::default(), Vec::new()).to_string();
    assert!(!shown.contains("VIRTUAL CLUSTER") && !shown.contains("COMPONENT"), "{shown}");
}
