//! Container images pulled from a real registry: distribution, built by our own Go source.

use std::fs;
use std::path::Path;
use std::process::Command;

use builder::source;
use builder::source::auth::DockerConfig;
use layers::chart::{ChartFiles, ChartSpec, PlannedChart};
use layers::image::LockedImage;
use layers::lock::Lock;
use layers::profile::Spot;
use layers::seed::ImageIndex;
use layers::units::Digest;
use serde_json::json;

use registry::{Bench, Registry};

use crate::common;
use crate::common::oci as made;
use crate::common::registry;

fn patient(mirrors: &[String], docker: DockerConfig) -> Bench {
    Bench::new(mirrors, docker, registry::patient())
}

/// Whether a store has all of an image, whole.
fn has(bench: &Bench, image: &LockedImage) -> bool {
    image.descriptors().all(|part| fs::read(bench.store.blob(&part.digest)).is_ok_and(|bytes| Digest::of(&bytes) == part.digest))
}

fn anonymous(mirrors: &[String]) -> Bench {
    patient(mirrors, DockerConfig::default())
}

fn some_image(architecture: &str) -> made::Image {
    let noise = made::noise(200_000);
    made::image(architecture, &[made::tar(&[("etc/a", b"a"), ("usr/noise", &noise)]), made::tar(&[("etc/.wh.a", b""), ("x", b"x")])])
}

#[test]
fn an_index_is_locked_with_its_digests_and_only_our_platform_is_fetched() {
    let registry = Registry::open();
    let (ours, other) = (some_image("amd64"), made::image("arm64", &[made::tar(&[("y", b"y")])]));
    let index = made::index(&[("arm64", &other), ("amd64", &ours)]);
    registry.push("team/app", "1.2", &index);
    let bench = anonymous(&[]);
    let name = registry.name("team/app:1.2");
    let image = bench.lock(&name).unwrap();
    assert_eq!((image.target.digest, image.target.media_type.as_str()), (Digest::of(&index.target), made::INDEX));
    assert_eq!((image.manifest.digest, image.layers.len()), (Digest::of(&ours.target), 2));
    assert!(!has(&bench, &image), "layers wait for the build");
    bench.fetch(&image).unwrap();
    assert!(has(&bench, &image));
    assert!(other.blobs.keys().all(|digest| !bench.store.blob(digest).exists()), "another platform is not ours");
    // By digest, under another name, from another machine's empty store.
    let there = anonymous(&[]);
    let pull = registry.name(&format!("team/app@{}", image.target.digest));
    let same = there.lock_from("registry.k8s.io/app:1.2", &pull).unwrap();
    assert_eq!(LockedImage { name: name.clone(), pull: name, ..same.clone() }, image);
    for blob in [same.target.digest, same.manifest.digest, same.config.digest] {
        fs::remove_file(there.store.blob(&blob)).unwrap();
    }
    there.fetch(&same).unwrap();
    assert!(has(&there, &same));
}

#[test]
fn a_mirror_stands_for_a_registry_and_its_path_for_a_prefix() {
    let registry = Registry::open();
    registry.push("proxy/library/tool", "1", &some_image("amd64"));
    let bench = anonymous(&[format!("docker.io=http://{}/proxy", registry.host)]);
    let name = "docker.io/library/tool:1";
    let image = bench.lock(name).unwrap();
    assert_eq!((image.pull.as_str(), image.name.as_str()), (name, name));
    bench.fetch(&image).unwrap();
    assert!(has(&bench, &image));
}

#[test]
fn what_is_not_there_is_named() {
    let registry = Registry::open();
    let image = some_image("amd64");
    registry.push("app", "1", &image);
    let bench = anonymous(&[]);
    for (rest, what) in
        [("app:2".to_string(), "reading manifest 2 of"), (format!("app@{}", Digest::of(b"x")), "reading manifest sha256:"), ("no:1".into(), "no")]
    {
        let name = registry.name(&rest);
        let error = bench.lock_from("r.test/x:1", &name).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("locking image r.test/x:1 from {name}: ")) && text.contains(what), "{text}");
        assert!(text.contains("does not have it") && error.fault() == layers::Fault::Input, "{text}");
    }
    // A layer that vanished is told when locking, not when building.
    let layer = image.blobs.iter().map(|(digest, bytes)| (bytes.len(), digest)).max().unwrap().1;
    let data = registry.dir().join("data/docker/registry/v2");
    fs::remove_dir_all(data.join("blobs/sha256").join(&layer.hex()[..2]).join(layer.hex())).unwrap();
    fs::remove_dir_all(data.join("repositories/app/_layers/sha256").join(layer.hex())).unwrap();
    let name = registry.name("app:1");
    let text = bench.lock(&name).unwrap_err().to_string();
    assert!(text.contains(&format!("looking for blob {layer}")) && text.contains("does not have it"), "{text}");
}

#[test]
fn user_and_password_come_from_dockers_configuration() {
    let registry = Registry::with_password();
    registry.push("app", "1", &some_image("amd64"));
    let name = registry.name("app:1");
    let error = anonymous(&[]).lock(&name).unwrap_err();
    assert!(error.to_string().contains("asks for a user name and password") && error.hint().unwrap().contains("docker login"), "{error}");
    let config = |password: &str| {
        let dir = tempfile::tempdir().unwrap();
        let text = json!({"auths": {registry.host.clone(): {"username": "me", "password": password}}}).to_string();
        fs::write(dir.path().join("config.json"), text).unwrap();
        DockerConfig::read(dir.path()).unwrap()
    };
    let bench = patient(&[], config("geheim"));
    let image = bench.lock(&name).unwrap();
    bench.fetch(&image).unwrap();
    assert!(has(&bench, &image));
    let error = patient(&[], config("falsch")).lock(&name).unwrap_err();
    assert!(error.to_string().contains("refuses the user name and password") && !format!("{error:?}").contains("falsch"), "{error}");
}

#[test]
fn tls_is_checked_against_the_machines_authorities() {
    let registry = Registry::with_tls();
    registry.push("app", "1", &some_image("amd64"));
    let child = |ca: &Path| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "oci_source::tls_child", "--ignored"])
            .env("SSL_CERT_FILE", ca)
            .env("CHASI_BOD_TEST_HOST", &registry.host)
            .output()
            .unwrap()
    };
    let output = child(&registry.dir().join("ca.pem"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let output = child(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.to_lowercase().contains("certificate"), "{said}");
}

#[test]
#[ignore = "run by tls_is_checked_against_the_machines_authorities, which sets the authority"]
fn tls_child() {
    let Some(host) = std::env::var("CHASI_BOD_TEST_HOST").ok() else { return };
    let bench = anonymous(&[format!("tls.test=https://{host}")]);
    let image = bench.lock("tls.test/app:1").unwrap();
    bench.fetch(&image).unwrap();
    assert!(has(&bench, &image));
}

/// What `helm push` makes of a chart: a manifest with another configuration, the archive as its one layer.
fn chart(archive: &[u8]) -> made::Image {
    let mut image = made::image_of("amd64", &[("application/vnd.cncf.helm.chart.content.v1.tar+gzip", archive.to_vec(), Digest::of(archive))]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.target).unwrap();
    manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    image.target = manifest.to_string().into_bytes();
    image.manifests = vec![(made::MANIFEST.into(), image.target.clone())];
    image
}

#[test]
fn a_chart_is_locked_by_its_version_and_fetched_again_by_digest() {
    let registry = Registry::open();
    let archive = made::gzip(&made::tar(&[("web/Chart.yaml", b"apiVersion: v2\nname: web\nversion: 1.0.0+b1\n")]));
    registry.push("charts/web", "1.0.0_b1", &chart(&archive));
    let bench = anonymous(&[]);
    let site = bench.site();
    let planned = |path: &str| {
        let spec = ChartSpec {
            name: "shop".into(),
            chart: format!("oci://{}", registry.name(path)),
            version: Some("1.0.0+b1".into()),
            ..ChartSpec::default()
        };
        PlannedChart { layer: "profile".into(), spec, files: ChartFiles::new(), keyring: Vec::new(), at: Spot::default() }
    };
    let locked = source::chart::lock(&site, &bench.registries, &planned("charts/web")).unwrap();
    assert_eq!((locked.chart.as_str(), locked.version.as_str(), locked.sha256), ("web", "1.0.0+b1", Digest::of(&archive)));
    fs::remove_file(bench.store.blob(&locked.sha256)).unwrap();
    // The tag may move: the digest is what counts.
    registry.push("charts/web", "1.0.0_b1", &chart(&made::gzip(b"another")));
    source::chart::fetch(&site, &bench.registries, &locked).unwrap();
    assert_eq!(fs::read(bench.store.blob(&locked.sha256)).unwrap(), archive);

    let error = |path: &str| source::chart::lock(&site, &bench.registries, &planned(path)).unwrap_err().to_string();
    assert!(error("charts/missing").contains("charts/missing: the registry does not have it"), "{}", error("charts/missing"));
    registry.push("some/image", "1.0.0_b1", &some_image("amd64"));
    assert!(error("some/image").contains("it is no chart"), "{}", error("some/image"));
    let name = registry.name("charts/web:1.0.0_b1");
    let error = bench.lock(&name).unwrap_err().to_string();
    assert!(error.contains("it is no container image: its configuration is `application/vnd.cncf.helm.config"), "{error}");
}

fn profile(dir: &Path, images: &str) -> std::path::PathBuf {
    let path = common::site(dir);
    let site = path.with_file_name("site.yaml");
    fs::write(&site, format!("extends: minimal.yaml\nname: pulled\nversion: 1.0.0\nimages:\n{images}")).unwrap();
    fs::copy(path.with_extension("lock"), site.with_extension("lock")).unwrap();
    site
}

/// The whole way of a user: lock, a tag that moves, build, what is in the image.
#[test]
fn c5_the_lock_keeps_its_digest_when_a_tag_moves_and_the_root_has_the_image() {
    let registry = Registry::open();
    // Never in the shared store before.
    let unique = format!("{} {:?}", std::process::id(), std::time::SystemTime::now());
    let first = made::image("amd64", &[made::tar(&[("etc/a", unique.as_bytes())]), made::tar(&[("etc/.wh.a", b""), ("x", unique.as_bytes())])]);
    let second = made::image("amd64", &[made::tar(&[("later", b"x")])]);
    registry.push("library/app", "1", &first);
    let dir = tempfile::tempdir().unwrap();
    let site = profile(dir.path(), "- docker.io/library/app:1\n");
    let (site, mirror) = (site.to_str().unwrap(), format!("docker.io=http://{}", registry.host));
    let run = |args: &[&str]| common::good(common::chasi_bod(args).env("CHASI_BOD_REGISTRIES", &mirror).env("DOCKER_CONFIG", dir.path()));
    let locked = || Lock::from_yaml(&fs::read_to_string(dir.path().join("site.lock")).unwrap(), "site.lock").unwrap().images[0].clone();
    run(&["lock", site]);
    assert_eq!((locked().target.digest, locked().wanted_by), (Digest::of(&first.target), vec!["profile".to_string()]));
    registry.push("library/app", "1", &second);
    let said = String::from_utf8(run(&["lock", site]).stderr).unwrap();
    let (old, new) = (Digest::of(&first.target).to_string(), Digest::of(&second.target).to_string());
    assert!(said.contains("warning: docker.io/library/app:1 was moved") && said.contains(&old) && said.contains(&new), "{said}");
    assert_eq!(locked().target.digest, Digest::of(&first.target));
    let out = dir.path().join("out");
    let shown = String::from_utf8(run(&["build", site, "--dry-run", "--json"]).stdout).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["packages"]["toFetch"]["count"].as_u64().unwrap() >= 2, "{shown}");
    run(&["build", site, "--locked", "--format", "qcow2", "--output", out.to_str().unwrap()]);
    let image = common::artifact(&out.join("pulled/1.0.0"), "qcow2");
    let image = image.to_str().unwrap();
    let index: ImageIndex = serde_json::from_slice(&run(&["inspect", image, "--cat", layers::seed::INDEX]).stdout).unwrap();
    assert_eq!((index.images[0].name.as_str(), index.images[0].digest), ("docker.io/library/app:1", Digest::of(&first.target)));
    assert_eq!((index.images[0].wanted_by.clone(), index.chains.len()), (vec!["profile".to_string()], 2));
    let document = format!("{}/{}", layers::seed::DOCUMENTS, Digest::of(&first.target).hex());
    assert_eq!(run(&["inspect", image, "--cat", &document]).stdout, first.target);
    let files = String::from_utf8(run(&["inspect", image, "--files", &format!("{}/*/etc/a", layers::seed::LAYERS)]).stdout).unwrap();
    assert_eq!(files.lines().count(), 2, "the file and its whiteout: {files}");
    let record = fs::read_to_string(out.join("pulled/1.0.0/build.json")).unwrap();
    assert!(record.contains("docker.io/library/app:1") && record.contains(&old));
    // Without network and registry from what the store has.
    drop(registry);
    run(&["build", site, "--locked", "--offline", "--output", dir.path().join("again").to_str().unwrap()]);
    let error = common::chasi_bod(&["lock", site, "--update", "docker.io/library/ap:1"]).env("CHASI_BOD_REGISTRIES", &mirror).output().unwrap();
    let said = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(error.status.code() == Some(1) && said.contains("did you mean `docker.io/library/app:1`?"), "{said}");
    // A profile that asks for another image makes the lock outdated.
    fs::write(dir.path().join("site.yaml"), fs::read_to_string(site).unwrap() + "- docker.io/library/more:1\n").unwrap();
    let error = common::chasi_bod(&["build", site, "--locked"]).output().unwrap();
    assert_eq!(error.status.code(), Some(1), "{}", String::from_utf8_lossy(&error.stderr));
}

#[test]
fn updating_an_image_by_name_follows_its_tag_alone() {
    let registry = Registry::open();
    for repository in ["a", "b"] {
        registry.push(repository, "1", &some_image("amd64"));
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (registry.name("a:1"), registry.name("b:1"));
    let site = profile(dir.path(), &format!("- {a}\n- {{name: registry.k8s.io/b:2, pull: '{b}'}}\n"));
    let site = site.to_str().unwrap();
    common::good(&mut common::chasi_bod(&["lock", site]));
    let second = made::image("amd64", &[made::tar(&[("later", b"x")])]);
    registry.push("a", "1", &second);
    registry.push("b", "1", &second);
    let output = common::good(&mut common::chasi_bod(&["lock", site, "--update", "registry.k8s.io/b:2"]));
    let lock = Lock::from_yaml(&fs::read_to_string(dir.path().join("site.lock")).unwrap(), "site.lock").unwrap();
    let digests: Vec<_> = lock.images.iter().map(|image| (image.name.as_str(), image.target.digest)).collect();
    assert_eq!(digests, [(a.as_str(), Digest::of(&some_image("amd64").target)), ("registry.k8s.io/b:2", Digest::of(&second.target))]);
    let said = String::from_utf8(output.stdout).unwrap();
    let change = format!("registry.k8s.io/b:2 {} -> {}\n", Digest::of(&some_image("amd64").target), Digest::of(&second.target));
    assert!(said.contains(&change), "{said}");
}
