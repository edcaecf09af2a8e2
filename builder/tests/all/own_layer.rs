//! The example of docs/layers.md as a user would write it, planned by the product; and what is told when it is written wrong.

use std::fs;
use std::path::Path;

use builder::pipeline;
use layers::Fault;
use layers::plan::Body;

/// Writes every file that the document shows (a line with its path in backquotes, then a fenced block) below a folder.
fn write_example(dir: &Path) -> usize {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/layers.md")).unwrap();
    let (mut named, mut count) = (None, 0);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix('`').and_then(|l| l.strip_suffix("`:")) {
            named = Some(name);
        } else if line.starts_with("```")
            && let Some(name) = named.take()
        {
            let body: String = lines.by_ref().take_while(|l| *l != "```").map(|l| format!("{l}\n")).collect();
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), body).unwrap();
            count += 1;
        }
    }
    count
}

#[test]
fn the_documents_own_layer_plans() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(write_example(dir.path()), 4);
    let planned = pipeline::plan(&dir.path().join("site.yaml")).unwrap_or_else(|e| panic!("{e}"));
    let own = planned.plan.layers.iter().find(|l| l.name == "motd").unwrap();
    assert_eq!(own.packages, ["bsdutils", "htop"]);
    assert_eq!(own.files[0].body, Body::Bytes(b"Welcome to the lab: site 1.0.0\n".to_vec()));
    assert_eq!((own.position, own.units.enable.as_slice()), (3, ["announce.service".to_string()].as_slice()));
}

#[test]
fn a1_mistakes_in_profile_layer_and_template_are_told_together_and_the_input_is_at_fault() {
    let dir = tempfile::tempdir().unwrap();
    write_example(dir.path());
    let change = |file: &str, from: &str, to: &str| {
        let path = dir.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(path, text.replace(from, to)).unwrap();
    };
    change("site.yaml", "greeting:", "greting:");
    change("site.yaml", "- toolchain", "- toolchian");
    change("layers/motd/layer.yaml", "source: announce.service", "source: anounce.service");
    change("layers/motd/motd", "profile.version", "profile.verison");
    fs::write(dir.path().join("base.yaml"), "files:\n  - {path: /etc/x, source: gone}\n").unwrap();
    change("site.yaml", "name: site\n", "extends: base.yaml\nname: site\ndebian: {keyring: keys.pgp}\n");
    let error = pipeline::plan(&dir.path().join("site.yaml")).unwrap_err();
    let shown = error.to_string().replace(&format!("{}/", dir.path().display()), "");
    for says in [
        "checking site.yaml: 7 problems",
        "site.yaml:3:19: reading keys.pgp: No such file",
        "site.yaml:8:5: there is no layer `toolchian`",
        "site.yaml:9:5: layer `motd` needs the parameter `greeting` (text)",
        "site.yaml:12:7: layer `motd` has no parameter `greting`\n  12 |       greting: Welcome to the lab\n     |       ^^^^^^^\nhint: did you mean `greeting`?",
        "base.yaml:2:28: reading gone: No such file",
        "layers/motd/layer.yaml:21:62: file `anounce.service` is not in",
        "layers/motd/motd:1:43: rendering /etc/motd: `profile.verison` is not known",
    ] {
        assert!(shown.contains(says), "`{says}` is not in:\n{shown}");
    }
    assert_eq!(error.fault(), Fault::Input);
}
