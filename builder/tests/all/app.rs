//! `app check` by the command line, and pushing of images to a real registry.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use builder::source::auth::DockerConfig;
use builder::source::http::{Client, Limits, Private};
use builder::source::oci::{Registries, Repository};
use firstboot::remote::oci::{Content, Layout, Platforms};
use layers::Result;
use layers::reference::Reference;
use layers::units::Digest;
use serde_json::{Value, json};

use super::common::oci::{self as made, Image, image, index, noise, tar};
use super::common::registry::{Bench, Registry, patient};
use super::common::{self, BIN};

/// An OCI layout of images under their names.
fn layout(folder: &Path, images: &[(&str, &Image)]) -> Arc<Layout> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
    let mut entries = Vec::new();
    for (name, image) in images {
        image.blobs.values().chain(image.manifests.iter().map(|(_, bytes)| bytes)).for_each(|bytes| put(bytes));
        let (media_type, _) = image.manifests.iter().find(|(_, bytes)| *bytes == image.target).unwrap();
        let mut entry = made::descriptor(media_type, &image.target);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entries.push(entry);
    }
    fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": entries}).to_string()).unwrap();
    Arc::new(Layout::open(folder).unwrap())
}

fn repository(registry: &Registry, path: &str, http: &Client, docker: DockerConfig) -> Repository {
    let reference: Reference = registry.name(&format!("{path}:1")).parse().unwrap();
    Repository::open(http, &Registries::new(&[], docker).unwrap(), &reference).unwrap()
}

/// Copies the first image of a layout under tag 1; the bytes that were sent.
fn copied(layout: &Arc<Layout>, to: &Repository, wanted: &str, platforms: Platforms<'_>) -> Result<u64> {
    let content = Content::of_layout(layout, &layout.entries()[0].target)?;
    content.copy_to(to, &content.chosen(platforms)?, wanted, platforms)
}

const HERE: Platforms<'_> = Platforms::One("amd64");

#[test]
fn an_image_is_pushed_with_all_that_it_needs_and_its_blobs_once() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::open());
    let image = image("amd64", &[tar(&[("a", &noise(70_000))]), tar(&[("b", b"b")])]);
    let layout = layout(dir.path(), &[("example.org/team/tool:1", &image)]);
    let to = repository(&registry, "team/tool", &Client::new(patient()), DockerConfig::default());
    assert_eq!(to.find("1").unwrap(), None);
    let whole: usize = image.blobs.values().map(Vec::len).sum::<usize>() + image.target.len();
    assert_eq!(copied(&layout, &to, "1", HERE).unwrap(), whole as u64);
    assert_eq!(to.find("1").unwrap(), Some(Digest::of(&image.target)), "the digest is that of the layout");
    assert_eq!(copied(&layout, &to, "2", HERE).unwrap(), image.target.len() as u64, "only the manifest is sent for another tag");
    // What reads images judges: all documents and layers are there.
    let bench = Bench::new(&[], DockerConfig::default(), patient());
    bench.fetch(&bench.lock(&registry.name("team/tool:1")).unwrap()).unwrap();
    // From one registry to another, as `--from` does.
    let (other, http) = (Registry::open(), Client::new(patient()));
    let content = Content::of_repository(repository(&registry, "team/tool", &http, DockerConfig::default()), "1").unwrap();
    let there = repository(&other, "copy/tool", &http, DockerConfig::default());
    content.copy_to(&there, &content.chosen(HERE).unwrap(), "1", HERE).unwrap();
    bench.fetch(&bench.lock(&other.name("copy/tool:1")).unwrap()).unwrap();
}

#[test]
fn of_several_platforms_a_tag_gets_the_nodes_one_and_a_digest_all() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::open());
    let (ours, theirs) = (image("amd64", &[tar(&[("a", b"x")])]), image("arm64", &[tar(&[("a", b"y")])]));
    let both = index(&[("amd64", &ours), ("arm64", &theirs)]);
    let layout = layout(dir.path(), &[("example.org/tool:1", &both)]);
    let to = repository(&registry, "tool", &Client::new(patient()), DockerConfig::default());
    copied(&layout, &to, "1", HERE).unwrap();
    assert_eq!(to.find("1").unwrap(), Some(Digest::of(&ours.target)));
    assert_eq!(to.find(&Digest::of(&theirs.target).to_string()).unwrap(), None);
    let whole = Digest::of(&both.target);
    copied(&layout, &to, &whole.to_string(), Platforms::All).unwrap();
    assert_eq!(to.find(&whole.to_string()).unwrap(), Some(whole));
    assert!(to.find(&Digest::of(&theirs.target).to_string()).unwrap().is_some());
}

#[test]
fn what_cannot_be_pushed_is_named_with_its_place() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::open());
    let to = repository(&registry, "tool", &Client::new(patient()), DockerConfig::default());
    let wrong = layout(&dir.path().join("arm"), &[("example.org/tool:1", &image("arm64", &[tar(&[("a", b"x")])]))]);
    let error = copied(&wrong, &to, "1", HERE).unwrap_err().to_string();
    assert!(error.contains("the image is for linux/arm64, needed is linux/amd64"), "{error}");
    let (lost, folder) = (image("amd64", &[tar(&[("a", b"x")])]), dir.path().join("lost"));
    let layer = Digest::of(lost.blobs.values().find(|bytes| !bytes.starts_with(b"{")).unwrap());
    let layout = layout(&folder, &[("example.org/tool:1", &lost)]);
    let file = folder.join("blobs/sha256").join(layer.hex());
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let error = copied(&layout, &to, "1", HERE).unwrap_err().to_string();
    assert!(error.contains(&format!("pushing blob {layer}")) && error.contains("digest"), "{error}");
    fs::write(&file, "short").unwrap();
    let error = copied(&layout, &to, "1", HERE).unwrap_err().to_string();
    assert!(error.contains(&layer.to_string()) && error.contains("it has 5 bytes"), "{error}");
    fs::remove_file(&file).unwrap();
    let error = copied(&layout, &to, "1", HERE).unwrap_err().to_string();
    assert!(error.contains(&layer.to_string()) && error.contains("lost"), "{error}");
    assert_eq!(to.find("1").unwrap(), None, "nothing whole is there");
}

#[test]
fn a_registry_that_asks_who_comes_is_told_when_pushing_too() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::with_password());
    let layout = layout(&dir.path().join("layout"), &[("example.org/tool:1", &image("amd64", &[tar(&[("a", b"x")])]))]);
    let nobody = repository(&registry, "tool", &Client::new(Limits { attempts: 2, ..patient() }), DockerConfig::default());
    assert!(copied(&layout, &nobody, "1", HERE).unwrap_err().to_string().contains("asks for a user name and password"));
    let auth = json!({"auths": {&registry.host: {"username": "me", "password": "geheim"}}});
    fs::write(dir.path().join("config.json"), auth.to_string()).unwrap();
    let me = repository(&registry, "tool", &Client::new(patient()), DockerConfig::read(dir.path()).unwrap());
    copied(&layout, &me, "1", HERE).unwrap();
    assert!(me.find("1").unwrap().is_some());
}

/// As the cluster's registry is reached: by a name that only its certificate has, with a certificate of its authority.
#[test]
fn a_registry_of_a_cluster_is_known_by_its_authority_and_knows_us_by_our_certificate() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::with_client_certificates());
    let layout = layout(dir.path(), &[("example.org/tool:1", &image("amd64", &[tar(&[("a", b"x")])]))]);
    let read = |name: &str| fs::read_to_string(registry.dir().join(name)).unwrap();
    let server = Private { authorities: read("ca.pem"), identity: Some((read("client.pem"), read("client.key"))), at: registry.host.parse().ok() };
    let to = |server: &Private| {
        let registries = Registries::new(&["in.cluster:5000=https://registry.registry.svc:5000".into()], DockerConfig::default()).unwrap();
        let http = Client::private(Limits { attempts: 4, ..patient() }, server).unwrap();
        Repository::open(&http, &registries, &"in.cluster:5000/tool:1".parse().unwrap()).unwrap()
    };
    copied(&layout, &to(&server), "1", HERE).unwrap();
    assert!(to(&server).find("1").unwrap().is_some());
    assert!(to(&Private { identity: None, ..server.clone() }).find("1").is_err(), "without a certificate nobody is let in");
    assert!(to(&Private { authorities: read("client.pem"), ..server }).find("1").is_err(), "another authority's registry is not trusted");
}

/// Exit code, stdout and stderr.
fn said(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(BIN).args(args).env("HOME", "/nonexistent").env_remove("KUBECONFIG").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn without_helm_chart_or_cluster_app_says_what_is_missing() {
    let chart = common::workspace().join("profiles/charts/welcome").display().to_string();
    let (code, _, errors) = said(&["app", "check", &chart, "--helm", "/nowhere/helm"]);
    assert!(code == Some(3) && errors.contains("there is no program /nowhere/helm") && errors.contains("--helm PROGRAM"), "{errors}");
    let (code, _, errors) = said(&["app", "check", "/nowhere/chart"]);
    assert!(code == Some(1) && errors.contains("/nowhere/chart"), "{errors}");
    let deploy = ["app", "deploy", "shop", "--vcluster-name=biz", "--chart-path", &chart];
    let (code, _, errors) = said(&deploy);
    assert!(code == Some(3) && errors.contains("looking for a kubeconfig"), "{errors}");
    let (code, _, errors) = said(&[&deploy[..], &["--images", "x=/nowhere/images"]].concat());
    assert!(code == Some(1) && errors.contains("/nowhere/images"), "{errors}");
    let (code, _, errors) = said(&["app", "deploy", "Shop", "--vcluster-name=biz", "--chart-path", &chart]);
    assert!(code == Some(1) && errors.contains("deploying `Shop`"), "{errors}");
    assert_eq!(said(&["app", "deploy", "shop"]).0, Some(1), "as with every mistake in arguments");
}

#[test]
#[ignore = "needs the standalone image: make soak"]
fn soak_the_shipped_chart_is_rendered_by_the_images_helm_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let image = common::artifact(&common::only_child(&common::workspace().join("output/standalone")), "qcow2");
    let bytes = common::good(&mut common::chasi_bod(&["inspect", image.to_str().unwrap(), "--cat", "/usr/bin/helm"])).stdout;
    let helm = dir.path().join("helm");
    fs::write(&helm, bytes).unwrap();
    common::good(Command::new("chmod").arg("755").arg(&helm));
    let chart = common::workspace().join("profiles/charts/welcome");
    let values = dir.path().join("values.yaml");
    fs::write(&values, "title: Shop\n").unwrap();
    let words = ["app", "check", chart.to_str().unwrap(), "--helm", helm.to_str().unwrap(), "-f", values.to_str().unwrap()];
    let (code, text, errors) = said(&[&words[..], &["--json"]].concat());
    assert_eq!(code, Some(0), "{text}{errors}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let results: Vec<_> =
        report["points"].as_array().unwrap().iter().map(|point| (point["point"].as_str().unwrap(), point["result"].as_str().unwrap())).collect();
    let rest = ["security", "storage", "network"].map(|point| (point, "pass"));
    assert_eq!(results[..4], [&[("images", "warn")][..], &rest].concat());
    assert_eq!(report["points"][0]["findings"][0]["object"], "chasi-bod.internal/busybox:1.37");
    assert_eq!((&report["result"], &report["template"]["name"]), (&json!("warn"), &json!("edge")), "{text}");
    let (code, text, _) = said(&words);
    assert!(code == Some(0) && text.contains("chart welcome ") && text.starts_with("POINT"), "{text}");
    // What helm says of a chart is kept.
    fs::write(&values, "title: {a: 1}\nimage: [\n").unwrap();
    let (code, _, errors) = said(&words);
    assert!(code == Some(1) && errors.contains("values.yaml"), "{errors}");
}
