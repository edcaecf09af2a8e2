use std::fmt::Write as _;

use super::*;
use crate::profile;

mod platform;

fn layer(yaml: &str) -> LoadedLayer {
    let name = yaml.lines().find_map(|line| line.strip_prefix("name: ")).unwrap();
    let files = [
        ("run.sh", "#!/bin/sh\n"),
        ("x.tmpl", "one\nzone {{profile.time.zoen}}\n"),
        ("go/own/go.mod", "module y.test/lib\n"),
        ("go/own/x/x.go", "package x\n"),
        ("go/own/notes.txt", "none\n"),
    ];
    let files = files.map(|(path, text)| (path.to_string(), text.as_bytes().to_vec())).into();
    LoadedLayer::new(&format!("layers/{name}"), &format!("{yaml}\nsummary: s\n"), files).unwrap_or_else(|e| panic!("{e}"))
}

fn loaded(extra: &Value) -> Loaded {
    let mut all = json!({"name": "minimal", "version": "0.1.0"});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    profile::load("p.yaml", &mut |_| Ok(serde_json::to_string_pretty(&all).unwrap())).unwrap_or_else(|e| panic!("{e}"))
}

fn no_file(name: &str) -> Result<Vec<u8>> {
    Err(Error::input(format!("reading {name}: no such file")).with_hint("did you mean `b`?"))
}

fn planned(extra: Value, layers: &[&str]) -> Result<Plan> {
    plan(&loaded(&extra), &layers.iter().map(|l| layer(l)).collect::<Vec<_>>(), &BTreeMap::new(), &no_file, Vec::new())
}

fn refused(extra: Value, layers: &[&str]) -> String {
    let error = planned(extra, layers).unwrap_err();
    assert_eq!(error.fault(), crate::Fault::Input);
    error.to_string()
}

fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn a2_a_cycle_is_named_whole() {
    let error = refused(json!({"layers": ["a"]}), &["name: a\nrequires: [b]", "name: b\nrequires: [c]", "name: c\nrequires: [b]"]);
    says(&error, &["b -> c -> b"]);
}

#[test]
fn a2_a_missing_layer_is_named_with_who_requires_it() {
    says(
        &refused(json!({"layers": ["a"]}), &["name: a\nrequires: [toolchian]", "name: toolchain"]),
        &["`toolchian`", "`a`", "did you mean `toolchain`"],
    );
    says(&refused(json!({"layers": ["x"]}), &["name: a"]), &["p.yaml:", "`x`", "valid here: a"]);
}

#[test]
fn a2_two_providers_of_one_role_are_both_named() {
    says(&refused(json!({"layers": ["a", "b"]}), &["name: a\nprovides: [kernel]", "name: b\nprovides: [kernel]"]), &["`a`", "`b`", "`kernel`"]);
}

#[test]
fn required_layers_come_in_by_themselves_and_below() {
    let plan = planned(json!({"layers": ["top", "a"]}), &["name: a", "name: os", "name: top\nrequires: [os]", "name: unused"]).unwrap();
    assert_eq!(plan.layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["os", "top", "a", "profile"]);
    assert_eq!(plan.layers.iter().map(|l| l.position).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a3_two_owners_of_one_path_are_named_and_override_settles_it() {
    let file = |text: &str, more: &str| format!("files: [{{path: /etc/x, content: {text}{more}}}]");
    let (low, high) = (format!("name: a\n{}", file("one", "")), format!("name: b\n{}", file("two", "")));
    let both = json!({"layers": ["a", "b"]});
    says(&refused(both.clone(), &[&low, &high]), &["layers/b/layer.yaml:2:16: ", "`a`", "`b`", "/etc/x", "override: true"]);
    let same = format!("name: b\n{}", file("one", ""));
    planned(both.clone(), &[&low, &same]).unwrap();
    let forced = format!("name: b\n{}", file("two", ", override: true"));
    planned(both.clone(), &[&low, &forced]).unwrap();
    let from_profile = json!({"layers": ["a"], "files": [{"path": "/etc/x", "content": "mine"}]});
    says(&refused(from_profile, &[&low]), &["p.yaml:9:15: ", "`a`", "`profile`", "/etc/x"]);
    says(&refused(both, &[&low, "name: b\nfiles: [{path: /etc/x, content: one, mode: '0600'}]"]), &["/etc/x"]);
}

#[test]
fn a4_a_parent_that_another_layer_links_is_refused() {
    let error = refused(
        json!({"layers": ["a", "b"]}),
        &["name: a\nfiles: [{path: /etc/dir, link: /tmp}]", "name: b\nfiles: [{path: /etc/dir/x, content: y}]"],
    );
    says(&error, &["/etc/dir/x", "`b`", "/etc/dir,", "`a`", "symbolic link"]);
}

#[test]
fn a1_all_problems_of_profile_and_layers_are_told_at_once_with_their_places() {
    let text = "name: site\nversion: 1.0.0\nlayers:\n  - toolchian\n  - name: a\n    parameters:\n      siez: 1\n      names: text\n  - name: b\n\
                files:\n  - path: /etc/one\n    source: a\n  - path: /etc/two\n    template: true\n    content: |\n      first\n        {{profile.nmae}} {{parameters.x}}\n";
    let loaded = profile::load("site.yaml", &mut |_| Ok(text.into())).unwrap();
    let a = "name: a\nparameters:\n  size: {type: number, default: 3, description: d}\n  names: {type: list, default: [], description: d}\n  key: {type: text, description: what opens it}\n\
             files:\n- {path: /etc/a, source: rum.sh}\n- {path: /etc/t, source: x.tmpl, template: true}\npackages:\n- {name: curl, when: parameters.siez}\n";
    let b = "name: b\nrequires: [boto]\nfiles:\n- {path: /etc/l, link: '{{profile.hostnam}}', template: true}\nscripts: [{name: s, file: no.sh}]\n";
    let error =
        plan(&loaded, &[layer(a), layer(b), layer("name: boot"), layer("name: toolchain")], &BTreeMap::new(), &no_file, Vec::new()).unwrap_err();
    let expected = "\
checking site.yaml: 13 problems
site.yaml:4:5: there is no layer `toolchian`
  4 |   - toolchian
    |     ^^^^^^^^^
hint: did you mean `toolchain`?
site.yaml:5:5: layer `a` needs the parameter `key` (text)
  5 |   - name: a
    |     ^
hint: what opens it; say `{name: a, parameters: {key: …}}` under `layers`
site.yaml:7:7: layer `a` has no parameter `siez`
  7 |       siez: 1
    |       ^^^^
hint: did you mean `size`?
site.yaml:8:14: parameter `names` of layer `a` must be a list of texts, not `\"text\"`
  8 |       names: text
    |              ^^^^
site.yaml:12:13: reading a: no such file
  12 |     source: a
     |             ^
hint: did you mean `b`?
site.yaml:17:9: rendering /etc/two: `profile.nmae` is not known
  17 |         {{profile.nmae}} {{parameters.x}}
     |         ^^^^^^^^^^^^^^^^
hint: did you mean `profile.name`?
site.yaml:17:26: rendering /etc/two: `parameters.x` is not known
  17 |         {{profile.nmae}} {{parameters.x}}
     |                          ^^^^^^^^^^^^^^^^
layers/a/layer.yaml:7:26: file `rum.sh` is not in layers/a
  7 | - {path: /etc/a, source: rum.sh}
    |                          ^^^^^^
hint: did you mean `run.sh`?
layers/a/layer.yaml:10:22: `parameters.siez` is not known
  10 | - {name: curl, when: parameters.siez}
     |                      ^^^^^^^^^^^^^^^
hint: did you mean `parameters.size`?
layers/a/x.tmpl:2:6: rendering /etc/t: `profile.time.zoen` is not known
  2 | zone {{profile.time.zoen}}
    |      ^^^^^^^^^^^^^^^^^^^^^
hint: did you mean `profile.time.zone`?
layers/b/layer.yaml:2:12: there is no layer `boto`, which layer `b` requires
  2 | requires: [boto]
    |            ^^^^
hint: did you mean `boot`?
layers/b/layer.yaml:4:25: rendering /etc/l: `profile.hostnam` is not known
  4 | - {path: /etc/l, link: '{{profile.hostnam}}', template: true}
    |                         ^^^^^^^^^^^^^^^^^^^
hint: did you mean `profile.hostname`?
layers/b/layer.yaml:5:27: file `no.sh` is not in layers/b";
    let shown = error.to_string();
    assert!(shown.starts_with(expected), "{shown}");
}

#[test]
fn a1_what_reading_the_layers_met_is_told_with_the_rest() {
    let loaded = loaded(&json!({"layers": [{"name": "mine", "path": "mine"}, "top", "zzz"]}));
    let met = loaded.document.spot(&["layers", "0", "path"]).problem("unreadable", None);
    let shown = plan(&loaded, &[layer("name: top\nrequires: [mine]")], &BTreeMap::new(), &no_file, vec![met]).unwrap_err().to_string();
    says(&shown, &["2 problems", "unreadable", "there is no layer `zzz`"]);
}

#[test]
fn parameters_are_checked_by_name_and_type() {
    let yaml = "name: a\nparameters:\n  size: {type: number, default: 3, description: d}\n  names: {type: list, default: [], description: d}\n\
                packages: [{parameter: names}, {name: big, when: (gt parameters.size 5)}]\nfiles: [{path: /etc/a.conf, content: 'n={{parameters.size}}', template: true}]";
    let with = |p: Value| json!({"layers": [{"name": "a", "parameters": p}]});
    says(&refused(with(json!({"siez": 1})), &[yaml]), &["`siez`", "did you mean `size`", "`a`"]);
    says(&refused(with(json!({"size": "big"})), &[yaml]), &["`size`", "a whole number", "\"big\""]);
    says(&refused(with(json!({"names": [1]})), &[yaml]), &["a list of texts"]);
    says(&refused(with(json!({"names": ["ok", "Not OK"]})), &[yaml]), &["p.yaml:", "`Not OK` is not the name of a package"]);
    let plan = planned(with(json!({"size": 7, "names": ["curl"]})), &[yaml]).unwrap();
    assert_eq!(plan.layers[0].packages, ["big", "curl"]);
    assert_eq!(plan.layers[0].files[0].body, Body::Bytes(b"n=7".to_vec()));
    assert!(plan.asked_at()["curl"][0].problem("", None).source.unwrap().0.contains("\"curl\""));
}

#[test]
fn a5_a_profile_value_cannot_add_a_line_to_a_configuration_file() {
    let yaml = "name: a\nparameters: {zone: {type: text, description: d}}\nfiles: [{path: /etc/a.conf, content: 'zone {{parameters.zone}}', template: true}]";
    let with = |value: &str| json!({"layers": [{"name": "a", "parameters": {"zone": value}}]});
    let error = refused(with("UTC\nroot yes"), &[yaml]);
    says(&error, &["layers/a/layer.yaml:3:", "/etc/a.conf", "line 1"]);
    let plan = planned(with("{{profile.name}}"), &[yaml]).unwrap();
    assert_eq!(plan.layers[0].files[0].body, Body::Bytes(b"zone {{profile.name}}".to_vec()));
}

#[test]
fn users_get_numbers_in_order_and_around_taken_ones() {
    let plan = planned(json!({"users": [{"name": "a"}, {"name": "b", "uid": 1000, "sudo": true}, {"name": "c"}]}), &[]).unwrap();
    let top = &plan.layers[0];
    assert_eq!(top.users.iter().map(|u| u.uid).collect::<Vec<_>>(), [1001, 1000, 1002]);
    assert_eq!(top.packages, ["sudo"]);
}

#[test]
fn the_plan_prints_as_the_golden_text_and_its_digest_follows_content() {
    let os = "name: os\npackages: [systemd, udev]\nassume: [{name: fake, provides: [virtual]}]\nfiles:\n- {path: /etc/a, content: x}\n- {path: /etc/b, link: a}\n\
              units: {enable: [a.service], mask: [b.service]}\nsysctl: {kernel.panic: 10}\nremove: [/usr/share/doc/**]\nscripts: [{name: run, file: run.sh}]\ninitrdModules: [erofs]";
    let input = json!({"layers": ["os"], "packages": ["vim"], "users": [{"name": "admin", "sudo": true}]});
    let one = planned(input.clone(), &[os]).unwrap();
    let mut golden = String::from("minimal 0.1.0\n\nlayer os\n");
    for line in
        ["packages  systemd udev", "assume    fake", "initrd    erofs", "file      /etc/a 0644 root:root 2d711642b726", "file      /etc/b -> a"]
    {
        writeln!(golden, "  {line}").unwrap();
    }
    for line in ["enable    a.service", "mask      b.service", "sysctl    kernel.panic = 10", "remove    /usr/share/doc/**", "scripts   run"] {
        writeln!(golden, "  {line}").unwrap();
    }
    golden.push_str("\nlayer profile\n  packages  sudo vim\n  user      admin (1000), 0 ssh keys, sudo\n");
    assert_eq!(one.to_text(), golden);
    assert_eq!(one.digest(), planned(input.clone(), &[os]).unwrap().digest());
    assert_ne!(one.digest(), planned(input, &[&os.replace("content: x", "content: y")]).unwrap().digest());
}

const PROGRAM: &str = "name: a\nsources:\n  tool: {go: {package: x.test/tool, toolchain: 1.26.8, require: {x.test/tool: v1.0.0}}}\n\
                       files:\n- {path: /usr/bin/tool, from: tool, mode: '0755'}";

#[test]
fn only_sources_that_files_name_are_planned_and_the_profiles_win() {
    let unused =
        "name: b\nsources: {other: {url: {from: ['http://x.test/o'], sha256: 'aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11'}}}";
    let plan = planned(json!({"layers": ["a", "b"]}), &[PROGRAM, unused]).unwrap();
    let names: Vec<_> = plan.sources.iter().map(|s| (s.name.as_str(), s.layer.as_str())).collect();
    assert_eq!(names, [("tool", "a")]);
    assert_eq!(plan.layers[0].files[0].body, Body::From { source: "tool".into(), member: None });
    let other = json!({"go": {"package": "y.test/tool", "toolchain": "1.26.8", "require": {"y.test/tool": "v2.0.0"}}});
    let changed = planned(json!({"layers": ["a"], "sources": {"tool": other}}), &[PROGRAM]).unwrap();
    assert_eq!(changed.sources[0].layer, PROFILE_LAYER);
    assert_ne!(changed.sources[0].request(), plan.sources[0].request());
    assert!(changed.to_text().contains("go 1.26.8 y.test/tool y.test/tool@v2.0.0"), "{}", changed.to_text());
}

#[test]
fn a_source_that_is_not_declared_or_declared_twice_is_named() {
    let wrong = "name: a\nsources: {tool: {go: {main: gone, toolchain: 1.26.8, require: {}}}}\nfiles:\n- {path: /x, from: tol}\n- {path: /y, from: 'tool#bin/y'}";
    let error = refused(json!({"layers": ["a", "b"]}), &[wrong, &PROGRAM.replace("name: a", "name: b")]);
    says(
        &error,
        &["/x comes from `tol`, which no layer declares", "did you mean `tool`?", "one program, not an archive", "`a` and `b` both declare"],
    );
    says(&error, &["folder `gone` of layers/a has no Go files"]);
}

#[test]
fn a_folder_of_the_layer_takes_the_place_of_a_module() {
    let own = |folder: &str| PROGRAM.replace("require:", &format!("replace: {{y.test/lib: {folder}}}, require:"));
    let plan = planned(json!({"layers": ["a"]}), &[&own("./go/own")]).unwrap();
    assert_eq!(plan.sources[0].files.keys().collect::<Vec<_>>(), ["go/own/go.mod", "go/own/x/x.go"]);
    says(&refused(json!({"layers": ["a"]}), &[&own("./go/none")]), &["folder `go/none` of layers/a has no go.mod"]);
    let source = json!({"go": {"package": "x.test/a", "toolchain": "1.26.8", "require": {}, "replace": {"y.test/lib": "./go/own"}}});
    says(&refused(json!({"layers": ["a"], "sources": {"tool": source}}), &[PROGRAM]), &["a profile has no folder with Go files"]);
}

#[test]
fn a_file_under_a_condition_is_there_when_it_holds() {
    let layer = "name: a\nparameters: {wifi: {type: bool, default: false, description: d}}\nfiles:\n- {path: /x, content: y, when: parameters.wifi}";
    assert!(planned(json!({"layers": ["a"]}), &[layer]).unwrap().layers[0].files.is_empty());
    let with = planned(json!({"layers": [{"name": "a", "parameters": {"wifi": true}}]}), &[layer]).unwrap();
    assert_eq!(with.layers[0].files.len(), 1);
    let either = format!("{layer}\n- {{path: /x, content: z, when: (not parameters.wifi)}}");
    let one = planned(json!({"layers": ["a"]}), &[&either]).unwrap();
    assert_eq!(one.layers[0].files.iter().map(|f| &f.body).collect::<Vec<_>>(), [&Body::Bytes(b"z".to_vec())]);
    says(&refused(json!({"layers": ["a"]}), &[&either.replace("when: parameters.wifi", "when: 'true'")]), &["/x is there twice"]);
}

#[test]
fn images_are_made_of_declared_layers_and_only_those_are_planned() {
    let layer = "name: a\nimageLayers:\n  tool: {files: [{path: /bin/tool, content: x, mode: '0755'}]}\n  other: {packages: [zz, aa]}\n\
                 images:\n- {name: 'r.test/tool:1', layers: [tool], entrypoint: [/bin/tool]}\n- {name: 'r.test/no:1', layers: [other], when: 'false'}";
    let plan = planned(json!({"layers": ["a"]}), &[layer]).unwrap();
    assert_eq!(plan.image_layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["tool"]);
    assert_eq!((plan.images.len(), plan.images[0].image.name.as_str(), plan.images[0].layer.as_str()), (1, "r.test/tool:1", "a"));
    assert_eq!(plan.image_layers[0].files[0].path, "/bin/tool");
    let wrong = layer.replace("layers: [tool]", "layers: [tol]");
    says(&refused(json!({"layers": ["a"]}), &[&wrong]), &["r.test/tool:1 has the layer `tol`, which is not declared", "did you mean `tool`?"]);
    let twice = layer.replace("name: a\n", "name: b\n");
    says(
        &refused(json!({"layers": ["a", "b"]}), &[layer, &twice]),
        &["both declare image r.test/tool:1", "image layer `tool` is declared by a lower layer"],
    );
}

const CHART: &str = "name: web\nversion: 1.0.0\n";

fn with_chart(text: &str, yaml: &str) -> LoadedLayer {
    let files = BTreeMap::from([("charts/web/Chart.yaml".to_string(), text.into()), ("quota.yaml".to_string(), b"kind: ResourceQuota\n".to_vec())]);
    LoadedLayer::new("layers/a", &format!("summary: s\n{yaml}"), files).unwrap()
}

#[test]
fn releases_come_in_order_with_manifests_and_the_profiles_wins() {
    let yaml = "name: a\ncharts:\n- {name: web, chart: charts/web}\n- {name: off, chart: ./charts/web, when: 'false'}\nmanifests: [quota.yaml]\n";
    let site =
        |extra: Value, folders: &BTreeMap<String, ChartFiles>| plan(&loaded(&extra), &[with_chart(CHART, yaml)], folders, &no_file, Vec::new());
    let planned = site(json!({"layers": ["a"]}), &BTreeMap::new()).unwrap();
    let names: Vec<_> = planned.charts.iter().map(|c| (c.spec.name.as_str(), c.spec.namespace.as_str(), c.files.len())).collect();
    assert_eq!(names, [("web", "default", 1), ("manifests-a", "default", 3)]);
    let own = json!({"layers": ["a"], "charts": [{"name": "web", "chart": "mine", "values": {"a": 1}}]});
    let folder = ChartFiles::from([("Chart.yaml".to_string(), b"name: mine\nversion: 2.0.0\n".to_vec())]);
    let changed = site(own, &BTreeMap::from([("mine".to_string(), folder)])).unwrap();
    assert_eq!((changed.charts[0].layer.as_str(), changed.charts.len()), (PROFILE_LAYER, 2));
    assert_ne!(changed.charts[0].request(), planned.charts[0].request());
    assert!(changed.to_text().contains("release web of layer profile\n  folder mine into namespace default"), "{}", changed.to_text());
}

#[test]
fn a1_mistakes_in_charts_are_told_at_their_places() {
    let yaml = "name: a\ncharts:\n- {name: web, chart: charts/wbe}\nmanifests: [qouta.yaml]\n";
    let error = plan(&loaded(&json!({"layers": ["a"]})), &[with_chart(CHART, yaml)], &BTreeMap::new(), &no_file, Vec::new()).unwrap_err().to_string();
    says(&error, &["layers/a/layer.yaml:4:", "reading chart charts/wbe: there is no such folder", "layer.yaml:5:", "did you mean `quota.yaml`?"]);
    let lost = with_chart("name: web\nversion: 1.0.0\ndependencies: [{name: redis}]\n", "name: a\ncharts:\n- {name: web, chart: charts/web}\n");
    let error = plan(&loaded(&json!({"layers": ["a"]})), &[lost], &BTreeMap::new(), &no_file, Vec::new()).unwrap_err().to_string();
    says(&error, &["layer.yaml:4:", "chart web needs the chart redis"]);
}

const CHARTS: &str = "name: a\ncharts:\n- {name: vcluster, chart: charts/web, install: false}\n- {name: tools, chart: charts/web, install: false, values: {a: {x: 1, y: 2}}}\n\
                      - {name: web, chart: charts/web}\n";

fn with_components(extra: Value, charts: &str) -> Result<Plan> {
    let mut all = json!({"layers": ["a"], "vclusters": [{"name": "demo", "template": "edge"}]});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    plan(&loaded(&all), &[with_chart(CHART, charts)], &BTreeMap::new(), &no_file, Vec::new())
}

#[test]
fn components_are_made_of_charts_that_nobody_installs_else() {
    let of = |chart: &str, more: Value| {
        let mut component = json!({"name": "console", "source": {"chart": {"name": chart}}, "values": {"a": {"y": 3}}});
        component.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"components": [component]})
    };
    let planned = with_components(of("tools", json!({"target": {"virtualCluster": "demo", "namespace": "t"}})), CHARTS).unwrap();
    let chart = planned.charts.iter().find(|chart| chart.spec.name == "tools").unwrap();
    assert_eq!(planned.components[0].values(chart).unwrap(), json!({"a": {"x": 1, "y": 3}}));
    says(
        &planned.to_text(),
        &["virtual cluster demo\n  of template edge", "component console\n  chart tools into namespace t of virtual cluster demo"],
    );
    with_components(of("web", json!({"target": {"virtualCluster": "demo"}})), CHARTS).unwrap();
    let bare = CHARTS.replace("vcluster", "other");
    for (chart, charts, parts) in [
        ("tolls", CHARTS, ["p.yaml:", "component console is made of the chart `tolls`, which is not among `charts`", "did you mean `tools`?"]),
        ("web", CHARTS, ["p.yaml:", "chart `web` would be installed twice", "say `install: false` at `web` under `charts`"]),
        (
            "tools",
            bare.as_str(),
            ["`vclusters` needs the layer `vcluster`", "`components` needs the layer `vcluster`", "list `vcluster` under `layers`"],
        ),
    ] {
        says(&with_components(of(chart, json!({})), charts).unwrap_err().to_string(), &parts);
    }
}

#[test]
fn f8_a_component_takes_no_release_of_others() {
    let named = |name: &str, target: Value| json!({"components": [{"name": name, "source": {"chart": {"name": "tools"}}, "target": target}]});
    for (name, target, said) in [
        ("web", json!({}), "component web would be the release web of namespace default, which the chart under `charts` of that name has"),
        (
            "demo",
            json!({"namespace": "vcluster-demo"}),
            "component demo would be the release demo of namespace vcluster-demo, which the virtual cluster",
        ),
    ] {
        says(&with_components(named(name, target), CHARTS).unwrap_err().to_string(), &["p.yaml:", said, "give it another name or namespace"]);
    }
    for (name, target) in [("web", json!({"namespace": "shop"})), ("web", json!({"virtualCluster": "demo"})), ("tools", json!({}))] {
        with_components(named(name, target), CHARTS).unwrap();
    }
}

#[test]
fn only_what_components_give_to_charts_makes_a_lock_old() {
    let request = |component: Value| {
        let mut all = json!({"name": "console", "source": {"chart": {"name": "tools"}}});
        all.as_object_mut().unwrap().extend(component.as_object().unwrap().clone());
        with_components(json!({"components": [all]}), CHARTS).unwrap().components_request()
    };
    let plain = request(json!({}));
    assert_eq!((with_components(json!({}), CHARTS).unwrap().components_request(), plain), (None, request(json!({"retries": 3}))));
    for more in
        [json!({"values": {"a": 1}}), json!({"target": {"namespace": "t"}}), json!({"source": {"chart": {"name": "tools", "version": "1.0.0"}}})]
    {
        assert_ne!(request(more.clone()), plain, "{more}");
    }
}

#[test]
fn images_are_pulled_by_layers_and_a_profile_pulls_instead_of_what_layers_make() {
    let layer = "name: a\nimageLayers:\n  tool: {files: [{path: /bin/tool, content: x}]}\nimages:\n- {name: 'r.test/tool:1', layers: [tool]}\n\
                 - r.test/plain:1\n- {name: 'r.test/other:1', pull: 'm.test/o:2'}\n- {name: 'r.test/no:1', pull: 'm.test/o:2', when: 'false'}";
    let pulls = |plan: &Plan| plan.pulls.iter().map(|p| format!("{} {} {}", p.name, p.pull, p.wanted_by)).collect::<Vec<_>>();
    let plan = planned(json!({"layers": ["a"]}), &[layer]).unwrap();
    assert_eq!(
        (plan.images.len(), pulls(&plan)),
        (1, vec!["r.test/other:1 m.test/o:2 layer a".into(), "r.test/plain:1 r.test/plain:1 layer a".into()])
    );
    let digest = format!("m.test/tool@{}", Digest::of(b"x"));
    let images = json!([{"name": "r.test/tool:1", "pull": digest}, "r.test/other:1", "r.test/new:1"]);
    let plan = planned(json!({"layers": ["a"], "images": images}), &[layer]).unwrap();
    let expected = [
        "r.test/new:1 r.test/new:1 profile".into(),
        "r.test/other:1 r.test/other:1 profile".into(),
        "r.test/plain:1 r.test/plain:1 layer a".into(),
        format!("r.test/tool:1 {digest} profile"),
    ];
    assert_eq!((plan.images.len(), plan.image_layers.len(), pulls(&plan)), (0, 0, expected.to_vec()));
    let twice = refused(json!({"layers": ["a", "b"]}), &[layer, "name: b\nimages: ['r.test/tool:1', 'r.test/plain:1']"]);
    says(&twice, &["layer a and layer b both declare image r.test/tool:1", "layer a and layer b both declare image r.test/plain:1"]);
}

/// The shipped parameters, and what a profile says of them.
fn with_ranges(given: &Value) -> Result<Plan> {
    let shipped = include_str!("../../defs/orchestration/layer.yaml");
    let parameters = &shipped[shipped.find("parameters:").unwrap()..shipped.find("sources:").unwrap()];
    let low = format!("name: low\nprovides: [kubernetes]\n{parameters}");
    planned(json!({"layers": [{"name": "low", "parameters": given}]}), &[&low])
}

#[test]
fn f8_ranges_of_addresses_and_ports_that_meet_are_both_named_at_their_place() {
    with_ranges(&json!({})).unwrap();
    with_ranges(&json!({"loadBalancerPool": ["192.0.2.10", "192.0.2.16/28", "192.0.2.40-192.0.2.49"], "nodePorts": "20000-20999", "reservedPorts": ["8000-8099", "21000"]}))
        .unwrap();
    for (given, said) in [
        (json!({"loadBalancerPool": ["10.244.7.1"]}), "loadBalancerPool: 10.244.7.1 overlaps 10.244.0.0/16 of pods (podCidr)"),
        (
            json!({"loadBalancerPool": ["10.95.0.0-10.96.0.1"]}),
            "loadBalancerPool: 10.95.0.0-10.96.0.1 overlaps 10.96.0.0/16 of services (serviceCidr)",
        ),
        (json!({"loadBalancerPool": ["192.0.2.0/24", "192.0.2.9"]}), "loadBalancerPool: 192.0.2.9 overlaps 192.0.2.0/24, another entry"),
        (json!({"loadBalancerPool": ["127.0.0.1"]}), "loadBalancerPool: 127.0.0.1 has addresses that no machine can be reached by"),
        (
            json!({"loadBalancerPool": ["fd00::1"]}),
            "loadBalancerPool: `fd00::1` is no IPv4 address, range 192.0.2.16/28 or range 192.0.2.20-192.0.2.29",
        ),
        (json!({"serviceCidr": "10.244.128.0/17"}), "serviceCidr: 10.244.128.0/17 overlaps podCidr, 10.244.0.0/16"),
        (json!({"nodePorts": "6000-7000"}), "nodePorts: 6000-7000 overlaps 6443 of the API server"),
        (json!({"nodePorts": "30000-"}), "nodePorts: `30000-` is no port such as 8443"),
        (json!({"reservedPorts": ["9000-31000"]}), "reservedPorts: 9000-31000 overlaps 10248-10250 of the kubelet and kube-proxy"),
        (json!({"reservedPorts": ["32000-33000"]}), "reservedPorts: 32000-33000 overlaps nodePorts, 30000-32767"),
        (json!({"reservedPorts": ["8000-8099", "8080"]}), "reservedPorts: 8080 overlaps 8000-8099, another entry"),
        (json!({"reservedPorts": ["22"]}), "reservedPorts: 22 overlaps 22 of ssh"),
        (json!({"reservedPorts": ["http"]}), "reservedPorts: `http` is no port such as 8443"),
    ] {
        let error = with_ranges(&given).unwrap_err().to_string();
        says(&error, &["p.yaml:", said]);
    }
    let both = with_ranges(&json!({"loadBalancerPool": ["10.244.0.0/24"], "reservedPorts": ["22"]})).unwrap_err().to_string();
    says(&both, &["loadBalancerPool: ", "reservedPorts: "]);
}
