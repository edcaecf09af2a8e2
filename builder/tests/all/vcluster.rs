//! The layer `vcluster`: which program becomes vcluster's, by its licence.

use std::fs;

use builder::pipeline;
use serde_json::Value;

use crate::common;

/// The sources that the image layer of vcluster's program comes from, with what they replace.
fn program(parameters: &str) -> (String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let (profile, shipped) = (dir.path().join("site.yaml"), common::workspace().join("profiles/cluster.yaml"));
    fs::write(&profile, format!("extends: {}\nname: site\nlayers: [{{name: vcluster, parameters: {{{parameters}}}}}]\n", shipped.display())).unwrap();
    let plan = pipeline::plan(&profile).unwrap_or_else(|error| panic!("{error}")).plan;
    let plan = serde_json::to_value(plan).unwrap();
    let find = |list: &str, name: &str| plan[list].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone();
    let file = find("imageLayers", "vcluster")["files"].as_array().unwrap().iter().find(|file| file["path"] == "/vcluster").unwrap().clone();
    let source = file["body"]["from"]["source"].as_str().unwrap_or_else(|| panic!("{file}")).to_string();
    let replaces = find("sources", &source)["go"]["replace"].clone();
    (source, replaces)
}

#[test]
fn the_module_that_may_not_be_passed_on_is_replaced_unless_the_profile_says_otherwise() {
    let (source, replaces) = program("");
    assert_eq!((source.as_str(), &replaces["github.com/loft-sh/admin-apis"]), ("vcluster", &"./go/admin-apis".into()));
    let (source, replaces) = program("upstreamLicence: true");
    assert_eq!(source, "vcluster-upstream");
    assert!(replaces["github.com/loft-sh/admin-apis"].is_null(), "{replaces}");
}
