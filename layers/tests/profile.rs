//! The profile path from outside: golden diagnostics, shipped profiles, the schema file, round trips, the fuzz corpus.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use layers::profile::{self, Diagnostics, FileSpec, LayerUse, Loaded, Profile, Scalar};
use layers::units::Bytes;
use layers::{Error, Fault};
use proptest::prelude::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Loads the first of some files, given as pairs of path and text.
fn load(files: &[(&str, &str)]) -> Result<Loaded, Diagnostics> {
    let map: BTreeMap<&str, &str> = files.iter().copied().collect();
    profile::load(files[0].0, &mut |path| map.get(path).map(|t| t.to_string()).ok_or_else(|| Error::environment("no such file")))
}

fn one(text: &str) -> Result<Loaded, Diagnostics> {
    load(&[("p.yaml", text)])
}

/// A minimal profile with some lines added.
fn with(lines: &str) -> Result<Profile, String> {
    one(&format!("name: x\nversion: 1.0.0\n{lines}")).map(|l| l.profile).map_err(|d| d.to_string())
}

/// Compares with a file in `tests/golden`; `CHASI_BOD_RECORD=1` writes it instead.
fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("CHASI_BOD_RECORD").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(actual, expected, "\nwhen the change is meant, record it: CHASI_BOD_RECORD=1 cargo test -p layers --test profile");
}

#[test]
fn a1_a4_a7_a8_every_problem_is_shown_at_once() {
    let golden_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut read = |path: &str| std::fs::read_to_string(golden_dir.join(path)).map_err(|e| Error::environment(e.to_string()));
    let error: Error = profile::load("wrong.yaml", &mut read).unwrap_err().into();
    assert_eq!(error.fault(), Fault::Input);
    golden("wrong.txt", &format!("{error}\n"));
}

#[test]
fn a1_a_syntax_error_shows_the_line() {
    let shown = one("name: x\nusers: [a, b\nversion: 1.0.0\n").unwrap_err().to_string();
    assert!(shown.starts_with("p.yaml:3:") && shown.contains("not valid YAML") && shown.contains("  3 | version: 1.0.0"), "{shown}");
}

#[test]
fn a1_an_unreadable_profile_is_named() {
    let shown = load(&[("a.yaml", "extends: b.yaml\nname: x\nversion: 1.0.0\n")]).unwrap_err().to_string();
    assert_eq!(shown, "a.yaml:1:10: reading `b.yaml`: no such file\n  1 | extends: b.yaml\n    |          ^^^^^^");
    let shown = profile::load("a.yaml", &mut |_| Err(Error::environment("no such file").with_hint("look"))).unwrap_err().to_string();
    assert_eq!(shown, "a.yaml: reading `a.yaml`: no such file\nhint: look");
}

#[test]
fn a1_circles_of_extends_are_shown_whole() {
    let files = [
        ("p/a.yaml", "extends: sub/b.yaml\nname: x\nversion: 1.0.0\n"),
        ("p/sub/b.yaml", "extends: [../c.yaml]\n"),
        ("p/c.yaml", "extends: a.yaml\n"),
    ];
    let shown = load(&files).unwrap_err().to_string();
    assert!(shown.starts_with("p/c.yaml:1:10: profiles extend each other in a circle: p/a.yaml → p/sub/b.yaml → p/c.yaml → p/a.yaml\n"), "{shown}");
}

#[test]
fn long_chains_and_wide_trees_of_extends_end() {
    let mut read = |path: &str| Ok(format!("extends: [{0}.yaml, x/{0}.yaml, x/{0}.yaml]\n", path.len()));
    assert!(profile::load("p.yaml", &mut read).unwrap_err().to_string().contains("extending too much"));
}

#[test]
fn extends_merges_and_paths_belong_to_the_file_that_wrote_them() {
    let base = "debian: {keyring: keys/a.pgp}\npackages: [b, a]\nfiles: [{path: /a, source: f/a}, {path: /b, source: /abs}]\nlayers: [os, {name: my, path: my}]\n";
    let top = "extends: ../base/b.yaml\nname: x\nversion: 1.0.0\npackages: [htop, strace]\nfiles: [{path: /c, source: c}]\nlayers: [extra]\n";
    let base = base.replace("[b, a]", "[bb, htop]");
    let loaded = load(&[("p/top.yaml", top), ("base/b.yaml", &base)]).unwrap();
    assert_eq!(loaded.files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["p/top.yaml", "base/b.yaml"]);
    let profile = loaded.profile;
    assert_eq!(profile.packages, ["bb", "htop", "strace"]);
    assert_eq!(profile.debian.keyring.as_deref(), Some("base/keys/a.pgp"));
    assert_eq!(profile.files.iter().filter_map(|f| f.source.as_deref()).collect::<Vec<_>>(), ["base/f/a", "/abs", "p/c"]);
    assert_eq!(
        profile.layers.iter().map(|l| l.full()).map(|l| (l.name, l.path)).collect::<Vec<_>>(),
        [("os".into(), None), ("my".into(), Some("base/my".into())), ("extra".into(), None)]
    );
}

#[test]
fn a_problem_is_shown_in_the_file_that_wrote_it() {
    let shown = load(&[("a.yaml", "extends: b.yaml\nname: x\nversion: 1.0.0\n"), ("b.yaml", "\nboot:\n  timeot: 1\n")]).unwrap_err().to_string();
    assert_eq!(shown, "b.yaml:3:3: unknown key `timeot`\n  3 |   timeot: 1\n    |   ^^^^^^\nhint: did you mean `timeout`?");
}

#[test]
fn a1_later_stages_point_into_the_profile_too() {
    let loaded = one("name: x\nversion: 1.0.0\nlayers: [boot, {name: toolchian}]\n").unwrap();
    let hint = profile::suggest("toolchian", ["boot", "os", "toolchain"]);
    let shown = loaded.document.spot(&["layers", "1", "name"]).problem("there is no layer `toolchian`", hint).to_string();
    assert_eq!(
        shown,
        "p.yaml:3:23: there is no layer `toolchian`\n  3 | layers: [boot, {name: toolchian}]\n    |                       ^^^^^^^^^\nhint: did you mean `toolchain`?"
    );
    let place = |path: &[&str]| loaded.document.spot(path).problem("m", None).to_string();
    assert!(place(&["layers", "0", "name"]).starts_with("p.yaml:3:10: m"));
    assert!(place(&["disk", "size"]).starts_with("p.yaml:1:1: m"));
}

#[test]
fn a4_destinations_outside_the_image_are_refused_with_their_path() {
    for path in ["../etc/x", "/etc/../../x", "\"/a\\0b\"", "/a//b", "etc/x", "/proc/x"] {
        let shown = with(&format!("files: [{{path: {path}, content: a}}]\n")).unwrap_err();
        assert!(shown.contains("p.yaml:3:16: ") && (shown.contains("absolute path") || shown.contains("below /proc")), "{shown}");
    }
}

const PEM: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n-----END OPENSSH PRIVATE KEY-----";

#[test]
fn a7_inline_secrets_are_refused_and_never_printed() {
    let secrets =
        ["$6$abcdefgh$0123456789abcdefghij", "abcdef.0123456789abcdef", "AKIAIOSFODNN7EXAMPLE", "ghp_0123456789012345678901234567890123456"];
    let places = [
        "users: [{name: SECRET}]",
        "SECRET: 1",
        "files:\n  - path: /a\n    content: |\n      first\n      SECRET\n    mode: SECRET",
        "sysctl: {a.b: \"SECRET\"}",
        "sysctl: {SECRET: 1}",
        "layers: [{name: os, parameters: {x: [SECRET, y]}}]",
        "extends: [SECRET]",
        "boot: {kernel: SECRET, timeout: SECRET}",
        "hostname: \"SECRET\nbad",
        "seed: &SECRET x\nname: *SECRET",
        "network: {dns: [SECRET, {a: SECRET}]} # SECRET",
        "# SECRET\nusres: 1 # SECRET",
    ];
    for (secret, place) in secrets.iter().flat_map(|s| places.iter().map(move |p| (s, p))) {
        let shown = with(&place.replace("SECRET", secret)).unwrap_err();
        assert!(!shown.contains(secret), "{shown}");
        if !place.contains('#') && !place.contains("hostname") && !place.contains('&') {
            assert!(shown.contains("must not be written here"), "{shown}");
        }
    }
}

#[test]
fn a7_private_keys_and_passwords_are_hidden_whole() {
    let indented = PEM.replace('\n', "\n      ");
    for text in [
        format!("files:\n  - path: /k\n    content: |\n      {indented}\n    mod: 1\n"),
        format!("files:\n  - path: /k\n    content: \"{}\"\n", PEM.replace('\n', "\\n")),
        format!("files:\n  - path: /k\n    content: >-\n      {indented}\n  broken: [\n"),
    ] {
        let shown = with(&text).unwrap_err();
        assert!(!shown.contains("b3Blbn") && !shown.contains("BEGIN OPENSSH"), "{shown}");
    }
    for text in [
        "password: hunter2",
        "users: [{name: a, password: hunter2}]",
        "layers: [{name: os, parameters: {adminPassword: 'hunter2'}}]",
        "console: {login: code, token: |\n  hunter2\n  }",
    ] {
        let shown = with(text).unwrap_err();
        assert!(!shown.contains("hunter2") && shown.contains("p.yaml:3:"), "{shown}");
    }
}

#[test]
fn a8_a_disk_too_small_shows_needed_and_given() {
    let shown = with("disk:\n  size: 4GiB\n  slotSize: 2GiB\n  stateSize: 1GiB\n").unwrap_err();
    // 512 + 1 + 2 × 2048 + 2 × 32 + 1024 + 2 MiB.
    assert!(shown.starts_with("p.yaml:4:9: the disk is too small: 4GiB given, 5.6GiB needed") && shown.contains("at least 5699MiB"), "{shown}");
    assert!(with("disk: {size: 5699MiB, slotSize: 2GiB, stateSize: 1GiB}\n").is_ok());
    assert!(with("disk: {size: 5698MiB, slotSize: 2GiB, stateSize: 1GiB}\n").is_err());
    assert!(with("disk: {size: 18446744073709551615, slotSize: 17179869183GiB}\n").is_err(), "sums do not overflow");
    assert!(with("disk: {slotSize: 10GiB}\n").unwrap_err().starts_with("p.yaml:3:7: the disk is too small: 16GiB given"));
}

#[test]
fn network_rules_name_what_is_wrong() {
    let table = [
        ("[{name: a}]", "an interface needs one of `match`, `vlan`, `bond`, `bridge`"),
        ("[{name: a, match: {name: e*}, bridge: {members: [b]}}, {name: b, match: {name: e*}}]", "not `match` and `bridge`"),
        ("[{name: a, match: {}}]", "`match` needs at least one of"),
        ("[{name: lan, match: {name: e*}}, {name: v, vlan: {id: 5, parent: lam}}]", "there is no interface `lam`"),
        ("[{name: a, match: {name: e*}}, {name: v, vlan: {id: 4095, parent: a}}]", "`id` must be from 1 to 4094, not `4095`"),
        ("[{name: a, vlan: {id: 1, parent: b}}, {name: b, bridge: {members: [c]}}, {name: c, vlan: {id: 2, parent: a}}]", "circle: a → b → c → a"),
        ("[{name: a, vlan: {id: 1, parent: a}}]", "circle: a → a"),
        (
            "[{name: a, plane: storage, match: {name: e*}}, {name: b, plane: storage, match: {name: f*}}]",
            "the plane `storage` is given twice, first in line 4",
        ),
        ("[{name: a, match: {name: e*}}, {name: a, match: {name: f*}}]", "the name `a` is given twice"),
        ("[{name: a, match: {name: e*}, mtu: 100}]", "`mtu` must be from 576 to 9216"),
        ("[{name: a, match: {name: e*}, dhcp: true}, {name: b, bond: {mode: 802.3ad, members: [a]}}]", "cannot have addresses or DHCP of its own"),
        ("[{name: b, bond: {mode: active-backup, members: []}}]", "must name at least one interface"),
        ("[{name: a, match: {name: e*}, addresses: [10.0.0.1]}]", "`10.0.0.1` is not an address with prefix length"),
    ];
    for (interfaces, message) in table {
        let shown = with(&format!("network:\n  interfaces: {interfaces}\n")).unwrap_err();
        assert!(shown.contains(message) && shown.starts_with("p.yaml:4:"), "{interfaces}\n{shown}");
    }
    let good = "[{name: e0, match: {name: e*0}}, {name: e1, match: {name: e*1}}, {name: bo, bond: {mode: 802.3ad, members: [e0, e1]}}, \
                {name: v, vlan: {id: 4094, parent: bo}, plane: business, addresses: [192.0.2.1/24]}]";
    with(&format!("network:\n  interfaces: {good}\n")).unwrap();
}

#[test]
fn long_chains_of_interfaces_are_walked_once() {
    let chain: String = (0..10_000).map(|n| format!("    - {{name: i{n}, vlan: {{id: 1, parent: i{}}}}}\n", (n + 1) % 10_000)).collect();
    let shown = with(&format!("network:\n  interfaces:\n{chain}")).unwrap_err();
    assert_eq!(shown.matches("in a circle").count(), 1);
}

#[test]
fn other_rules_name_what_is_wrong() {
    let table = [
        ("files: [{path: /a}]", "a file needs one of `content`, `source`, `link`"),
        ("files: [{path: /a, content: x, link: y}]", "not `content` and `link`"),
        ("files: [{path: /a, content: x}, {path: /a, content: y}]", "the path `/a` is given twice"),
        ("users: [{name: a, uid: 1000}, {name: b, uid: 1000}]", "the uid `1000` is given twice"),
        ("disk: {stateSize: 4GiB, stateLimit: 3GiB}", "`stateLimit` is 3GiB, less than `stateSize` 4GiB"),
        ("machine: {memory: 256MiB}", "`memory` is 256MiB, but must be whole MiB and at least 512MiB"),
        ("machine: {memory: 1073741825}", "must be whole MiB"),
        ("machine: {processors: 0}", "from 1 to 256"),
        ("disk: {mounts: [{path: /srv/a, disk: siz > 1 * GiB}]}", "unknown variable `siz`, did you mean `size`?"),
        ("disk: {target: size > 1 * GiB &&}", "not an expression that picks a disk: `size > 1 * GiB &&`"),
        ("disk: {erase: true}", "`erase` needs a `target`"),
        ("files: [{path: /a/b/c, content: x}, {path: /a, link: /etc}]", "`/a/b/c` lies below `/a`"),
        ("boot: {timeout: 601}", "from 0 to 600"),
        ("hostname: \"n-{macc}\"", "did you mean `{mac}`?"),
        ("layers: [./mine]", "a folder of your own is given by `name` and `path`"),
        ("sysctl: {x: 1}", "`x` is not a kernel parameter"),
        ("users: [{name: root, sshKeys: []}]", "root's ssh keys are handed to the node"),
        ("users: [{name: a, uid: 0}]", "`uid` must be from 1000 to 59999"),
        ("users: [{name: www-data}]", "`www-data` is an account or group that Debian makes itself"),
        ("users: [{name: sudo}]", "`sudo` is an account or group"),
        ("files: [{path: /etc/passwd, content: x}]", "accounts come from packages"),
        ("files: [{path: /tmp/x, content: x}]", "nothing can lie below /tmp"),
    ];
    for (lines, message) in table {
        let shown = with(lines).unwrap_err();
        assert!(shown.contains(message) && shown.starts_with("p.yaml:3:"), "{lines}\n{shown}");
    }
}

/// Components `a` and `b` with some keys added to `a`.
fn components(keys: &str) -> String {
    format!("components: [{{name: a, source: {{chart: {{name: x}}}}, {keys}}}, {{name: b, source: {{chart: {{name: x}}}}, dependsOn: [a]}}]")
}

#[test]
fn virtual_clusters_and_components_name_what_is_wrong() {
    let table = [
        ("vclusters: [{name: a}, {name: a}]".into(), "the name `a` is given twice"),
        (
            "vclusters: [{name: a.b}]".into(),
            "`a.b` is not the name of a virtual cluster: a lower-case letter, then such letters, digits and `-`, at most 40",
        ),
        ("vclusters: [{name: a, quotta: {}}]".into(), "unknown key `quotta`"),
        ("vclusters: [{name: a, quotta: {}}]".into(), "did you mean `quota`?"),
        ("vclusters: [{name: a, network: {plan: closed}}]".into(), "did you mean `plane`?"),
        ("vclusters: [{name: a, controlPlane: {resources: {limit: {}}}}]".into(), "did you mean `limits`?"),
        ("vclusters: [{name: a, quota: {pods: [1]}}]".into(), "`pods` must be a whole number or text, not a list"),
        ("vclusters: [{name: a, deletionPolicy: retain}]".into(), "did you mean `Retain`?"),
        ("vclusters: [{name: a, replicas: 8}]".into(), "`replicas` must be from 1 to 7"),
        ("vclusters: [{name: a, replicas: 3, store: sqlite}]".into(), "more than one replica needs `store: etcd`"),
        ("vclusters: [{name: a, version: 1.36.3}]".into(), "`1.36.3` is not a version of Kubernetes such as v1.36.3"),
        ("vclusters: [{name: a, network: {serviceCIDR: 10.0.0.1/8}}]".into(), "`10.0.0.1/8` is not an IPv4 range such as 10.244.0.0/16"),
        ("components: [{name: A, source: {chart: {name: x}}}]".into(), "`A` is not the name of a component"),
        ("components: [{name: a}]".into(), "lacks the key `source`"),
        ("components: [{name: a, source: {}}]".into(), "`source` needs one of `chart`, `manifests`, `kustomize`"),
        ("components: [{name: a, source: {kustomize: x, manifests: y}}]".into(), "`source` takes only one of `chart`, `manifests`, `kustomize`"),
        ("components: [{name: a, source: {kustomize: x}, values: {a: 1}}]".into(), "only a chart takes `values`: `kustomize` is installed as it is"),
        ("components: [{name: a, source: {manifests: x}, valuesFrom: [{secret: s}]}]".into(), "only a chart takes `valuesFrom`"),
        ("virtualVersions: [1.35.4]".into(), "`1.35.4` is not a version of Kubernetes such as v1.36.3"),
        ("virtualVersions: [v1.35.4, v1.35.4]".into(), "version `v1.35.4` is given twice"),
        ("components: [{name: a, source: {chart: {nam: x}}}]".into(), "did you mean `name`?"),
        (components("target: {virtualCluster: dmeo}"), "there is no virtual cluster `dmeo`"),
        (components("target: {namespace: A}"), "`A` is not a namespace"),
        (components("dependsOn: [c]"), "there is no component `c`"),
        (components("dependsOn: [b]"), "components wait for each other in a circle: a → b → a"),
        (components("dependsOn: [a]"), "circle: a → a"),
        (components("drift: heal"), "did you mean `Heal`?"),
        (components("timeout: 5"), "unknown key `timeout`"),
        (components("values: {password: hunter2}"), "a password or token must not be written here"),
    ];
    for (lines, message) in table {
        let shown = with(&lines).unwrap_err();
        assert!(shown.contains(message) && shown.starts_with("p.yaml:3:"), "{lines}\n{shown}");
    }
    let good = components("values: {a: [1, x]}, valuesFrom: [{secret: db, key: url, at: db.url}], target: {virtualCluster: v}");
    let profile =
        with(&format!("vclusters: [{{name: v, quota: {{cpu: 2, memory: 2Gi}}, network: {{plane: closed}}, replicas: 3, store: etcd}}]\n{good}\n"));
    round_trip(&profile.unwrap());
}

#[test]
fn shipped_profiles_load_and_carry_the_editor_line() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("profiles")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        count += 1;
        let mut read = |path: &str| std::fs::read_to_string(path).map_err(|e| Error::environment(e.to_string()));
        let loaded = profile::load(path.to_str().unwrap(), &mut read).unwrap_or_else(|d| panic!("{d}"));
        assert!(loaded.files.iter().all(|(_, text)| text.starts_with("# yaml-language-server: $schema=../schema/profile.schema.json\n")), "{path:?}");
    }
    assert!(count >= 1);
}

#[test]
fn the_schema_files_are_up_to_date() {
    for (of, schema) in [("profile", profile::json_schema()), ("layer", profile::layer_schema()), ("object", profile::object_schema())] {
        let schema = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        let path = root().join(format!("schema/{of}.schema.json"));
        if std::env::var_os("CHASI_BOD_RECORD").is_some() {
            std::fs::write(&path, &schema).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file == schema, "schema/{of}.schema.json is old; run: chasi-bod schema --of {of} > schema/{of}.schema.json");
    }
}

#[test]
fn shipped_layers_read_and_carry_the_editor_line() {
    let folders: Vec<_> = std::fs::read_dir(root().join("layers/defs")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    assert!(folders.len() >= 3);
    for folder in folders {
        let text = std::fs::read_to_string(folder.join("layer.yaml")).unwrap();
        profile::parse_layer(&folder.display().to_string(), &text).unwrap_or_else(|d| panic!("{d}"));
        assert!(text.starts_with("# yaml-language-server: $schema=../../../schema/layer.schema.json\n"), "{folder:?}");
    }
}

#[test]
fn a1_a_name_that_no_profile_may_have_is_refused_by_new_with_the_same_words() {
    for name in ["My Image", "", "-x", "a/b", "x\nversion: 2"] {
        let said = profile::template(name).unwrap_err();
        assert_eq!(said.fault(), Fault::Input);
        assert!(said.to_string().contains("is not an image name: lower-case letters, digits and `-`, at most 63"), "{said}");
    }
    let shown = load(&[("p.yaml", "name: My Image\nversion: 1.0.0\n")]).unwrap_err().to_string();
    assert!(shown.contains("`My Image` is not an image name: lower-case letters, digits and `-`, at most 63"), "{shown}");
}

#[test]
fn the_schema_of_objects_takes_what_the_docs_show_and_nothing_else() {
    let schema = jsonschema::draft202012::new(&profile::object_schema()).unwrap();
    let docs = std::fs::read_to_string(root().join("docs/virtual-clusters.md")).unwrap();
    let blocks = docs.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let manifests = blocks.flat_map(|block| block.split("---\n")).filter(|text| text.starts_with("apiVersion: chasi-bod.io/"));
    let mut kinds = BTreeSet::new();
    for text in manifests {
        let mut object: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        assert_eq!(schema.iter_errors(&object).map(|error| error.to_string()).collect::<Vec<_>>(), [""; 0], "{text}");
        kinds.insert(object["kind"].as_str().unwrap().to_string());
        object["spec"]["mistyped"] = true.into();
        assert!(!schema.is_valid(&object), "{text}");
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["Component", "Restore", "Snapshot", "VirtualCluster"]);
    let template = serde_json::json!({ "apiVersion": "chasi-bod.io/v1alpha1", "kind": "VirtualClusterTemplate", "metadata": { "name": "own" }, "spec": { "extends": "edge" } });
    assert!(schema.is_valid(&template));
    assert!(!schema.is_valid(&serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "own" }, "spec": {} })));
}

#[test]
fn the_schema_describes_every_key() {
    fn walk(value: &serde_json::Value, path: &str) {
        for (key, property) in value.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
            assert!(property.get("description").is_some(), "{path}.{key} has no description");
            walk(property, &format!("{path}.{key}"));
        }
    }
    for schema in [profile::json_schema(), profile::layer_schema(), profile::object_schema()] {
        walk(&schema, "");
        schema["$defs"].as_object().unwrap().iter().for_each(|(name, def)| walk(def, name));
    }
    let schema = profile::json_schema();
    assert!(schema["properties"]["extends"].is_object());
}

#[test]
fn the_template_loads_and_explains_every_key() {
    let text = profile::template("my-image").unwrap();
    let profile = one(&text).unwrap_or_else(|d| panic!("{d}")).profile;
    assert_eq!((profile.name.as_str(), profile.version.as_str()), ("my-image", "0.1.0"));
    for key in profile::json_schema()["properties"].as_object().unwrap().keys() {
        let line = text.lines().position(|l| l.trim_start_matches("# ").starts_with(&format!("{key}:"))).unwrap_or_else(|| panic!("{key}"));
        assert!(text.lines().nth(line - 1).unwrap().starts_with('#'), "{key} is not explained");
    }
    // What is commented out must be right too.
    let examples = text.lines().map(|l| match l.trim_start().strip_prefix("# ") {
        Some(code)
            if code.starts_with(['-', ' '])
                || code.split_once(':').is_some_and(|(k, _)| k.chars().all(|c| c.is_ascii_lowercase() || c == 'S' || c == 'M' || c == 'L')) =>
        {
            format!("{}{code}", &l[..l.len() - l.trim_start().len()])
        }
        _ => l.to_string(),
    });
    let whole: Vec<String> = examples
        .filter(|l| {
            !l.starts_with("extends")
                && ![
                    "packages: []",
                    "users: []",
                    "files: []",
                    "sources: {}",
                    "images: []",
                    "charts: []",
                    "manifests: []",
                    "vclusters: []",
                    "components: []",
                    "sysctl: {}",
                    "  mounts: []",
                ]
                .contains(&l.as_str())
        })
        .collect();
    let profile = one(&whole.join("\n")).unwrap_or_else(|d| panic!("{d}")).profile;
    assert_eq!((profile.users.len(), profile.files.len(), profile.network.interfaces.len(), profile.disk.mounts.len()), (1, 3, 3, 1));
    assert_eq!((profile.vclusters.len(), profile.components.len()), (1, 2));
}

#[test]
fn yaml_indicators_templates_and_line_breaks_survive_a_round_trip() {
    let texts = [
        "{{profile.name}}",
        "- a",
        "a: b",
        "#x",
        "&a",
        "*a",
        "!t",
        "|",
        ">",
        "%",
        "@",
        "`",
        "'",
        "\"",
        "null",
        "~",
        "true",
        "no",
        "1",
        "0x1F",
        "1e3",
        ".inf",
        "1_000",
        "2001-01-01",
        "12:30",
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "\na",
        "a\n\n",
        "\n",
        "a\n b\n  c\n",
        "  a\nb",
        "\ta",
        "a\tb",
        "a\r\nb",
        "a\rb",
        "---",
        "...",
        "--- a",
        "a\n---\nb",
        "a #b",
        "ä\u{85}\u{2028}\u{feff}\u{1f600}",
        "\u{1b}[0m",
        "$(x) `y` ; rm",
        "<<",
        "=",
        "[a",
        "{a",
        "a, b",
        "?",
        "? a",
        ":",
        "\\n",
        "a\\",
        "\u{7f}",
        "a\n#b\n",
    ];
    for text in texts {
        let mut profile = with("").unwrap();
        profile.files = vec![FileSpec {
            path: "/a".into(),
            content: Some(text.into()),
            source: None,
            link: None,
            from: None,
            when: None,
            template: true,
            mode: "0644".into(),
            owner: "root".into(),
            group: "0".into(),
            overrides: false,
        }];
        let mut full = LayerUse::Name("os".into()).full();
        full.parameters.insert("p".into(), serde_json::json!({ text: [text, {"x": text}] }));
        profile.layers = vec![LayerUse::Full(full)];
        round_trip(&profile);
    }
}

fn round_trip(profile: &Profile) {
    let yaml = profile::to_yaml(profile).unwrap();
    let again = one(&yaml).unwrap_or_else(|d| panic!("{d}\n{yaml}")).profile;
    assert_eq!(&again, profile, "{yaml}");
    assert_eq!(profile::to_yaml(&again).unwrap(), yaml);
}

/// Any text but those that the secret lint could take for a secret.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[ -~\n]{0,40}", "[-:#{}\\[\\],&*!|>'\"%@` \n\ta-c]{0,12}"]
        .prop_filter("a secret", |t| profile::secret_kind(t).is_none())
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
        text().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[ -~]{1,8}", inner, 0..4).prop_map(|m| serde_json::json!(m))
        ]
    })
}

prop_compose! {
    fn file()(content in prop::option::of(text()), link in "[a-z/.]{1,10}", path in "/[a-z]{1,5}/[a-zA-Z0-9 .#:-]{1,10}x", template: bool, mode in "0[0-7]{3}", owner in "[a-z]{1,8}|[0-9]{1,4}", overrides: bool) -> FileSpec {
        let link = content.is_none().then_some(link);
        FileSpec { path: format!("/etc{path}"), template: template && link.is_none(), content, source: None, link, from: None, when: None, mode, owner: owner.clone(), group: owner, overrides }
    }
}

fn scalar() -> impl Strategy<Value = Scalar> {
    // Text that looks like a number or truth value stays text only in quotes; the writer must see to that.
    prop_oneof![
        any::<bool>().prop_map(Scalar::Bool),
        any::<i64>().prop_map(Scalar::Number),
        "[ -~]{0,10}|[0-9]{1,4}|true".prop_filter("a secret", |t| profile::secret_kind(t).is_none()).prop_map(Scalar::Text)
    ]
}

prop_compose! {
    fn any_profile()(
        name in "[a-z][a-z0-9]{0,8}", version in "[1-9][0-9]{0,2}\\.0\\.[1-9]", seed in prop::option::of("[ -~]{1,20}"),
        packages in prop::collection::btree_set("[a-z0-9]{2,9}", 0..4), timeout in 0u16..=600,
        files in prop::collection::btree_map("[a-z]{1,4}", file(), 0..4), sysctl in prop::collection::btree_map("[a-z]{1,4}\\.[a-z_]{1,8}", scalar(), 0..4),
        parameters in prop::collection::btree_map("[a-z]{1,4}", json(), 0..4), size in (20u64 << 30)..(1 << 50), dhcp: bool, mtu in prop::option::of(576u16..9216),
        servers in prop::collection::vec("[a-z]{1,5}\\.[a-z]{2,3}", 0..3),
    ) -> Profile {
        let mut profile = with("").unwrap();
        (profile.name, profile.version, profile.seed) = (name, version, seed);
        profile.packages = packages.into_iter().collect();
        profile.boot.timeout = timeout;
        profile.files = files.into_iter().map(|(n, f)| FileSpec { path: format!("{}/{n}", f.path), ..f }).collect();
        profile.files.dedup_by(|a, b| a.path == b.path);
        profile.sysctl = sysctl;
        let full = layers::profile::LayerRef { parameters, ..LayerUse::Name("os".into()).full() };
        profile.layers = vec![LayerUse::Name("boot".into()), LayerUse::Full(full)];
        profile.disk.size = Bytes(size);
        (profile.network.interfaces[0].dhcp, profile.network.interfaces[0].mtu) = (dhcp, mtu);
        profile.time.servers = servers;
        profile
    }
}

proptest! {
    #[test]
    fn a7_no_mistake_around_a_secret_prints_it(at in 0usize..1200, before in "[-:\"'\\[{,|> \n#&]{1,4}", after in "[:\"'\\]},| \n#]{1,4}", which in 0usize..4) {
        let secret = ["$6$abcdefgh$0123456789abcdefghij", "abcdef.0123456789abcdef", "AKIAIOSFODNN7EXAMPLE", "ghp_0123456789012345678901234567890123456"][which];
        let mut text = include_str!("golden/wrong.yaml").to_string();
        // The last character before a token must not be part of it.
        text.insert_str(at.min(text.len()), &format!("{before} {secret}{after}"));
        let shown = one(&text).unwrap_err().to_string();
        prop_assert!(!shown.contains(secret), "{shown}");
    }

    #[test]
    fn any_profile_written_and_read_is_the_same(profile in any_profile().prop_filter("a secret", |p| profile::secret_kind(&serde_json::to_string(p).unwrap()).is_none())) {
        round_trip(&profile);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in prop_oneof![any::<String>(), "[-:#{}\\[\\],&*!|>'\"%@? \n\ta-c0-9]{0,80}"]) {
        let _ = one(&text);
        let _ = profile::parse_layer("l", &text);
        let _ = profile::parse_layer("l", &format!("name: {text}\nparameters: {{a: {text}}}\npackages: [{text}]\nfiles:\n  - {text}\n"));
        let _ = one(&format!("name: {text}\nfiles: [{text}]\nnetwork: {{interfaces: [{text}]}}\nusers:\n  - {text}\n"));
    }
}

#[test]
fn the_fuzz_corpus_replays_without_a_panic() {
    let files: Vec<_> = std::fs::read_dir(root().join("fuzz/corpus/profile")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() >= 10, "the corpus is there");
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        // Every file of the corpus that extends another extends itself.
        if let Ok(loaded) = profile::load("p.yaml", &mut |_| Ok(text.to_string())) {
            round_trip(&loaded.profile);
        }
    }
}
