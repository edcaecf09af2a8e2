//! Reading a `layer.yaml`: the same tree, schema check and rules as for profiles, so that every mistake has its place.

use serde_json::Value;

use crate::layer::{Definition, ParameterType};

use super::diagnostic::{Diagnostics, Problem, quote, suggest};
use super::document::{self, Document};
use super::schema;
use super::syntax::{LAYER_RULES, RULES, is_name};
use super::tree::{Kind, Node};
use super::valid::{at, content, distinct, origin, texts, unique};

/// Reads the text of a `layer.yaml`; `file` is its name in messages. All problems are told at once.
pub fn parse_layer(file: &str, text: &str) -> Result<(Definition, Document), Diagnostics> {
    document::read(file, text, rules)
}

/// The JSON schema (2020-12) of a `layer.yaml`.
pub fn layer_schema() -> Value {
    schema::of::<Definition>("chasi-bod layer")
}

fn rules(root: &Node, problems: &mut Vec<Problem>) {
    texts(root, LAYER_RULES.iter().chain(RULES.iter().filter(|rule| rule.path.starts_with("files."))), problems);
    unique(root, "files", problems);
    distinct(at(root, "scripts.[].name"), "the name", problems);
    content(root, problems);
    images(root, problems);
    defaults(root, problems);
    lists(root, problems);
}

/// Image layers have files as layers have, but may hold any path; images have whole references.
fn images(root: &Node, problems: &mut Vec<Problem>) {
    for (name, layer) in at(root, "imageLayers").into_iter().flat_map(Node::entries) {
        if !is_name(&name.text) {
            let text = quote(&name.text);
            problems.push(Problem::new(name.place, format!("{text} is not the name of an image layer: lower-case letters, digits and `-`")));
        }
        texts(layer, RULES.iter().filter(|rule| rule.path.starts_with("files.") || rule.path == "packages.[]"), problems);
        unique(layer, "files", problems);
        at(layer, "files.[]").into_iter().for_each(|file| origin(file, problems));
    }
    unique(root, "images", problems);
    at(root, "images.[]").into_iter().for_each(|image| origin_of_image(image, problems));
}

/// An image is made of layers or pulled, and only one that is made here can be told how to run.
fn origin_of_image(image: &Node, problems: &mut Vec<Problem>) {
    let (made, pulled) = (image.get("layers").is_some(), image.get("pull").is_some());
    if let Some(list) = image.get("layers").filter(|layers| layers.items().is_empty()) {
        problems.push(Problem::new(list.place, "an image that is made here needs a layer"));
    }
    if made && pulled {
        problems.push(Problem::new(image.place, "an image takes only one of `layers`, `pull`, not both"));
    }
    let keys = image.entries().iter().filter(|(key, _)| ["entrypoint", "command", "environment", "user"].contains(&key.text.as_str()));
    for (key, _) in keys.filter(|_| !made) {
        let problem = Problem::new(key.place, format!("a pulled image takes no {}", quote(&key.text)));
        problems.push(problem.hint(Some("an image with `layers` is made here".into())));
    }
    let name = image.get("name").filter(|name| made && name.text().is_some_and(|text| text.contains('@')));
    problems.extend(name.map(|node| Problem::new(node.place, "the digest of an image that is made here is not known yet")));
}

/// A default must be of the type that it is a default for.
fn defaults(root: &Node, problems: &mut Vec<Problem>) {
    for (name, parameter) in at(root, "parameters").into_iter().flat_map(Node::entries) {
        let kind = parameter.get("type").and_then(Node::text).and_then(|text| serde_json::from_value::<ParameterType>(text.into()).ok());
        let (Some(kind), Some(default)) = (kind, parameter.get("default")) else { continue };
        if !kind.accepts(&super::check::value(default)) {
            problems.push(Problem::new(default.place, format!("the default of {} must be {}", quote(&name.text), kind.words())));
        }
    }
}

/// `{parameter: x}` takes its names from a parameter that is a list.
fn lists(root: &Node, problems: &mut Vec<Problem>) {
    let is_list = |(_, parameter): &&(_, Node)| parameter.get("type").and_then(Node::text) == Some("list");
    let entries: Vec<_> = at(root, "parameters").into_iter().flat_map(Node::entries).collect();
    let known: Vec<&str> = entries.into_iter().filter(is_list).map(|(key, _)| key.text.as_str()).collect();
    for node in ["packages.[].parameter", "initrdModules.[].parameter"].iter().flat_map(|path| at(root, path)) {
        let Kind::Text(text, _) = &node.kind else { continue };
        if !known.contains(&text.as_str()) {
            let problem = Problem::new(node.place, format!("{} is not a parameter of type `list`", quote(text)));
            problems.push(problem.hint(suggest(text, known.iter().copied())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(yaml: &str) -> String {
        parse_layer("own/layer.yaml", &format!("name: x\nsummary: s\n{yaml}")).unwrap_err().to_string()
    }

    #[test]
    fn a1_every_mistake_of_a_layer_is_told_at_once_at_its_place() {
        let yaml = "packagse: []\nparameters:\n  size: {type: number, default: big, description: d}\n  names: {type: list, default: [], description: d}\n\
                    packages: [Vim, {parameter: nmaes}]\nfiles:\n- {path: /etc/../x, content: y, mode: '0999'}\n- {path: /etc/y}\n- {path: /tmp/z, link: w}\n\
                    remove: [usr]\nunits: {enable: [../x.service]}\nsysctl: {'a b': 1}\ninitrdModules: ['a b']\n";
        let all = wrong(yaml);
        for says in [
            "own/layer.yaml:3:1: unknown key `packagse`\n  3 | packagse: []\n    | ^^^^^^^^\nhint: did you mean `packages`?",
            "5:33: the default of `size` must be a whole number",
            "7:12: `Vim` is not a package name",
            "7:29: `nmaes` is not a parameter of type `list`",
            "hint: did you mean `names`?",
            "9:10: `/etc/../x` is not an absolute path",
            "9:39: `0999` is not an octal mode",
            "10:3: a file needs one of `content`",
            "11:10: nothing can lie below /tmp",
            "12:10: `usr` is not a pattern of absolute paths",
            "13:18: `../x.service` is not the name of a unit",
            "14:10: `a b` is not a kernel parameter",
            "15:17: `a b` is not the name of a kernel module",
        ] {
            assert!(all.contains(says), "`{says}` is not in:\n{all}");
        }
    }

    #[test]
    fn a4_hostile_destinations_are_refused_with_their_path() {
        let long = format!("/etc/{}", "x".repeat(256));
        for (path, why) in [
            ("/etc/../../x", "absolute path"),
            ("etc/x", "absolute path"),
            ("/etc/x\\0y", "control characters"),
            ("/", "absolute path"),
            ("/proc/x", "nothing can lie below"),
            ("/run/x", "nothing can lie below"),
            ("/etc/passwd", "accounts come from"),
            ("/etc/./shadow", "absolute path"),
            (&long, "255 bytes"),
        ] {
            let shown = wrong(&format!("files: [{{path: \"{path}\", content: x}}]\n"));
            assert!(shown.starts_with("own/layer.yaml:3:16: ") && shown.contains(why), "{path}: {shown}");
        }
        let shown = wrong("files: [{path: /etc/a, link: /tmp}, {path: /etc/a/b, content: x}]\n");
        assert!(shown.contains("3:44: `/etc/a/b` lies below `/etc/a`"), "{shown}");
    }

    #[test]
    fn a7_a_secret_in_a_layer_is_refused_and_not_shown() {
        let shown = wrong("files: [{path: /etc/x, content: \"$6$abcdefgh$0123456789abcdefghij\"}]\n");
        assert!(shown.contains("must not be written here") && !shown.contains("$6$"), "{shown}");
    }

    #[test]
    fn a1_mistakes_in_sources_are_told_at_their_places() {
        let yaml = "sources:\n  Tool: {}\n  b: {go: {toolchain: '1.26', require: {'../x': latest}, replace: {y.test: ./../y}}}\n  c: {url: {from: [ftp://x], sha256: abc}}\n\
                    files: [{path: /usr/bin/x, from: 'b#../y'}]\n";
        let all = wrong(yaml);
        for says in [
            "4:3: `Tool` is not the name of a source",
            "4:9: a source needs one of `go`, `url`",
            "5:11: a Go program needs one of `package`, `main`",
            "`1.26` is not a version of Go",
            "`../x` is not the path of a Go module",
            "`latest` is not a version such as v1.2.3",
            "`./../y` is not a version such as v1.2.3",
            "`ftp://x` is not a URL",
            "`b#../y` is not the name of a source",
        ] {
            assert!(all.contains(says), "`{says}` is not in:\n{all}");
        }
    }

    #[test]
    fn a1_mistakes_in_images_are_told_at_their_places() {
        let yaml = "imageLayers:\n  Base: {files: [{path: etc/x, content: y}]}\n  b: {files: [{path: /x}], packages: [B]}\n\
                    images:\n- {name: 'pause:3', layers: [b]}\n- {name: 'r.test/a:1', layers: []}\n- {name: 'r.test/a:1', layers: []}\n\
                    - nginx\n- {name: 'r.test/b:1', layers: [b], pull: 'r.test/c:1'}\n- {name: r.test/d:1, user: '1'}\n- {name: r.test/e:1, pul: x}\n\
                    - {name: 'r.test/f:1', pull: b}\n";
        let all = wrong(yaml);
        for says in [
            "4:3: `Base` is not the name of an image layer",
            "`etc/x` is not an absolute path",
            "5:15: a file needs one of",
            "`B` is not a package name",
            "7:10: `pause:3` is not a whole image reference",
            "9:10: the name `r.test/a:1` is given twice, first in line 8",
            "10:3: `nginx` is not a whole image reference such as registry.k8s.io/pause:3.10.2\n",
            "hint: did you mean `docker.io/library/nginx:latest`?",
            "11:3: an image takes only one of `layers`, `pull`",
            "8:32: an image that is made here needs a layer",
            "12:22: a pulled image takes no `user`",
            "13:22: unknown key `pul`",
            "hint: did you mean `pull`?",
            "14:30: `b` is not a whole image reference",
        ] {
            assert!(all.contains(says), "`{says}` is not in:\n{all}");
        }
    }

    #[test]
    fn a1_mistakes_in_charts_are_told_at_their_places() {
        let yaml = "charts:\n- {name: Web, chart: web, version: 1.0.0}\n- {name: a, chart: 'oci://r.test/x'}\n- {name: a, chart: x, repo: ftp://x, version: x, namespace: N}\n\
                    - {name: b, chart: 'oci://r.test/x', repo: 'https://x.test', images: ['A B']}\n- {name: c, chrat: x}\n- {name: d, manifests: x, values: {a: 1}}\n- {name: e, manifests: x, kustomize: y}\nmanifests: ['']\n";
        let all = wrong(yaml);
        for says in [
            "4:10: `Web` is not the name of a release",
            "4:3: a chart that is a folder takes neither `version` nor `keyring`",
            "5:3: a chart that is fetched needs a `version`",
            "6:10: the name `a` is given twice, first in line 5",
            "`ftp://x` is not a URL",
            "`x` is not a version such as 1.2.3",
            "`N` is not a namespace",
            "7:3: a chart takes only one of `oci://`, `repo` and `module`",
            "`A B` is not an image reference",
            "unknown key `chrat`",
            "did you mean `chart`?",
            "8:3: a release needs one of `chart`, `manifests`, `kustomize`",
            "9:3: `manifests` takes no `values`: that is for charts",
            "10:3: a release takes only one of `chart`, `manifests`, `kustomize`, not `manifests` and `kustomize`",
            "11:13: `` is not a path",
        ] {
            assert!(all.contains(says), "`{says}` is not in:\n{all}");
        }
    }

    #[test]
    fn the_name_profile_is_taken() {
        let shown = parse_layer("l", "name: profile\nsummary: s\n").unwrap_err().to_string();
        assert!(shown.contains("l:1:7: `profile` is not a layer name"), "{shown}");
    }
}
