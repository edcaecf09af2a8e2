use std::fmt::Write as _;

use super::*;
use crate::layer::parse_definition;

fn layer(yaml: &str) -> LoadedLayer {
    let definition = parse_definition("test", &format!("summary: s\n{yaml}")).unwrap();
    let files = BTreeMap::from([("run.sh".to_string(), b"#!/bin/sh\n".to_vec())]);
    LoadedLayer { folder: format!("layers/{}", definition.name), definition, files }
}

fn profile(extra: Value) -> Profile {
    let mut all = json!({"name": "minimal", "version": "0.1.0"});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn planned(extra: Value, layers: &[&str]) -> Result<Plan> {
    plan(&profile(extra), &BTreeMap::new(), &layers.iter().map(|l| layer(l)).collect::<Vec<_>>())
}

fn refused(extra: Value, layers: &[&str]) -> String {
    let error = planned(extra, layers).unwrap_err();
    assert_eq!(error.fault(), crate::Fault::Input);
    format!("{error} / {}", error.hint().unwrap_or_default())
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
    says(&refused(json!({"layers": ["x"]}), &["name: a"]), &["`x`", "known layers: a"]);
    says(&refused(json!({"layers": ["a", "a"]}), &["name: a"]), &["`a`", "twice"]);
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
    says(&refused(both.clone(), &[&low, &high]), &["`a`", "`b`", "/etc/x", "override: true"]);
    let same = format!("name: b\n{}", file("one", ""));
    planned(both.clone(), &[&low, &same]).unwrap();
    let forced = format!("name: b\n{}", file("two", ", override: true"));
    planned(both.clone(), &[&low, &forced]).unwrap();
    let from_profile = json!({"layers": ["a"], "files": [{"path": "/etc//x", "content": "mine"}]});
    says(&refused(from_profile, &[&low]), &["`a`", "`profile`", "/etc/x"]);
    says(&refused(both, &[&low, "name: b\nfiles: [{path: /etc/x, content: one, mode: '0600'}]"]), &["/etc/x"]);
}

#[test]
fn a4_hostile_destinations_are_refused_with_their_path() {
    for (path, why) in [
        ("/etc/../../x", "`..`"),
        ("etc/x", "absolute"),
        ("/etc/x\0y", "control"),
        ("/", "no files there"),
        ("/proc/x", "no files there"),
        ("/run/x", "no files there"),
        ("/etc/passwd", "users"),
        ("/etc/./shadow", "users"),
    ] {
        let error = refused(json!({"files": [{"path": path, "content": "x"}]}), &[]);
        says(&error, &[why, &path.escape_debug().to_string()]);
    }
    let long = format!("/etc/{}", "x".repeat(256));
    says(&refused(json!({"files": [{"path": long, "content": "x"}]}), &[]), &["255"]);
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
fn files_need_exactly_one_origin_and_a_sound_mode() {
    for file in [
        json!({"path": "/a"}),
        json!({"path": "/a", "content": "x", "link": "y"}),
        json!({"path": "/a", "content": "x", "mode": "0999"}),
        json!({"path": "/a", "content": "x", "mode": "17777"}),
        json!({"path": "/a", "link": ""}),
    ] {
        says(&refused(json!({"files": [file]}), &[]), &["/a"]);
    }
    says(&refused(json!({"files": [{"path": "/a", "source": "b"}]}), &[]), &["`b`", "profile's folder"]);
}

#[test]
fn parameters_are_checked_by_name_and_type() {
    let yaml = "name: a\nparameters:\n  size: {type: number, default: 3, description: d}\n  names: {type: list, default: [], description: d}\n\
                packages: [{parameter: names}, {name: big, when: (gt parameters.size 5)}]\nfiles: [{path: /etc/a.conf, content: 'n={{parameters.size}}', template: true}]";
    let with = |p: Value| json!({"layers": [{"name": "a", "parameters": p}]});
    says(&refused(with(json!({"siez": 1})), &[yaml]), &["`siez`", "did you mean `size`", "`a`"]);
    says(&refused(with(json!({"size": "big"})), &[yaml]), &["`size`", "a whole number", "\"big\""]);
    says(&refused(with(json!({"names": [1]})), &[yaml]), &["a list of texts"]);
    let plan = planned(with(json!({"size": 7, "names": ["curl"]})), &[yaml]).unwrap();
    assert_eq!(plan.layers[0].packages, ["big", "curl"]);
    assert_eq!(plan.layers[0].files[0].body, Body::Bytes(b"n=7".to_vec()));
    says(&refused(json!({"layers": ["b"]}), &["name: b\nparameters: {x: {type: text, description: d}}"]), &["`x`", "no default"]);
}

#[test]
fn a5_a_profile_value_cannot_add_a_line_to_a_configuration_file() {
    let yaml = "name: a\nfiles: [{path: /etc/a.conf, content: 'zone {{profile.time.zone}}', template: true}]";
    let error = refused(json!({"layers": ["a"], "time": {"zone": "UTC\nroot yes"}}), &[yaml]);
    says(&error, &["/etc/a.conf", "line 1"]);
    let plan = planned(json!({"layers": ["a"], "time": {"zone": "{{profile.name}}"}}), &[yaml]).unwrap();
    assert_eq!(plan.layers[0].files[0].body, Body::Bytes(b"zone {{profile.name}}".to_vec()));
}

#[test]
fn users_get_numbers_in_order_and_around_taken_ones() {
    let plan = planned(json!({"users": [{"name": "a"}, {"name": "b", "uid": 1000, "sudo": true}, {"name": "c"}]}), &[]).unwrap();
    let top = &plan.layers[0];
    assert_eq!(top.users.iter().map(|u| u.uid).collect::<Vec<_>>(), [1001, 1000, 1002]);
    assert_eq!(top.packages, ["sudo"]);
    for user in [
        json!({"name": "Root"}),
        json!({"name": "a:b"}),
        json!({"name": "a", "uid": 0}),
        json!({"name": "a", "shell": "/bin/sh\n"}),
        json!({"name": "a", "sshKeys": ["k\nroot"]}),
    ] {
        refused(json!({"users": [user]}), &[]);
    }
}

#[test]
fn units_kernel_parameters_and_patterns_are_checked() {
    refused(json!({"sysctl": {"a b": 1}}), &[]);
    refused(json!({"sysctl": {"kernel.panic": "1\nx=y"}}), &[]);
    for yaml in
        ["units: {enable: [../x.service]}", "remove: ['/**']", "remove: ['/usr/../x']", "remove: [usr]", "scripts: [{name: x, file: nothing.sh}]"]
    {
        refused(json!({"layers": ["a"]}), &[&format!("name: a\n{yaml}")]);
    }
}

#[test]
fn the_plan_prints_as_the_golden_text_and_its_digest_follows_content() {
    let os = "name: os\npackages: [systemd, udev]\nassume: [{name: fake, provides: [virtual]}]\nfiles:\n- {path: /etc/a, content: x}\n- {path: /etc/b, link: a}\n\
              units: {enable: [a.service], mask: [b.service]}\nsysctl: {kernel.panic: 10}\nremove: [/usr/share/doc/**]\nscripts: [{name: run, file: run.sh}]\ninitrdModules: [erofs]";
    let input = json!({"layers": ["os"], "packages": ["vim"], "users": [{"name": "admin", "sshKeys": ["k"], "sudo": true}]});
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
    golden.push_str("\nlayer profile\n  packages  sudo vim\n  user      admin (1000), 1 ssh keys, sudo\n");
    assert_eq!(one.to_text(), golden);
    assert_eq!(one.digest(), planned(input.clone(), &[os]).unwrap().digest());
    assert_ne!(one.digest(), planned(input, &[&os.replace("content: x", "content: y")]).unwrap().digest());
}
