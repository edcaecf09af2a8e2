//! Programs from Go modules, as a user asks for them: a module proxy of files beside the machine's own, which has the toolchain.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use builder::assemble::scratch;
use builder::progress::Progress;
use builder::source::go::{self, Proxies};
use builder::store::Store;
use layers::lock::Lock;
use layers::source::{LockedBlob, LockedGo, LockedModule};
use layers::units::{Bytes, Digest};

use crate::common;

const MODULE: &str = "example.test/Greeting";
const PLACE: &str = "example.test/!greeting/@v";
const MIT: &str = "Permission is hereby granted, free of charge, to any person obtaining a copy";

fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(format!("{MODULE}@v1.0.0/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Prints the module's text.
fn command() -> String {
    format!("package main\n\nimport \"{MODULE}\"\n\nfunc main() {{ println(greeting.Text) }}\n")
}

/// A proxy with one module: a library and a command that prints its text.
fn proxy(dir: &Path) -> String {
    let folder = dir.join("proxy").join(PLACE);
    fs::create_dir_all(&folder).unwrap();
    let go_mod = format!("module {MODULE}\n\ngo 1.24\n");
    let library = "package greeting\n\nvar Text = \"unset\"\n";
    let files = [("go.mod", go_mod.as_str()), ("greeting.go", library), ("cmd/greet/main.go", &command()), ("LICENSE", MIT)];
    fs::write(folder.join("v1.0.0.zip"), zip(&files)).unwrap();
    fs::write(folder.join("v1.0.0.mod"), &go_mod).unwrap();
    fs::write(folder.join("v1.0.0.info"), r#"{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z"}"#).unwrap();
    fs::write(folder.join("list"), "v1.0.0\n").unwrap();
    format!("file://{}", dir.join("proxy").display())
}

/// A layer with a program whose module it replaces by one of its own.
fn layer(dir: &Path) {
    let folder = dir.join("own/go/greeting");
    fs::create_dir_all(folder.join("cmd/greet")).unwrap();
    let files = [
        ("go.mod", format!("module {MODULE}\n\ngo 1.24\n")),
        ("own.go", "package greeting\n\nvar Text = \"own\"\n".into()),
        ("cmd/greet/main.go", command()),
    ];
    files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    let text = format!(
        "name: own\nsummary: An own module.\nsources:\n  own-greet:\n    go:\n      package: {MODULE}/cmd/greet\n      toolchain: 1.26.8\n      require: {{{MODULE}: v1.0.0}}\n\
         \x20     replace: {{{MODULE}: ./go/greeting}}\nfiles:\n- {{path: /usr/bin/own-greet, from: own-greet, mode: '0755'}}\n"
    );
    fs::write(dir.join("own/layer.yaml"), text).unwrap();
}

fn profile(dir: &Path) -> PathBuf {
    let path = common::site(dir);
    layer(dir);
    let text = format!(
        "extends: minimal.yaml\nname: greeting\nversion: 1.0.0\nsources:\n  greet:\n    go:\n      package: {MODULE}/cmd/greet\n      toolchain: 1.26.8\n\
         \x20     require: {{{MODULE}: v1.0.0}}\n      variables: {{{MODULE}.Text: hello from here}}\nlayers:\n- {{name: own, path: own}}\n\
         files:\n- {{path: /usr/bin/greet, from: greet, mode: '0755'}}\n"
    );
    let site = path.with_file_name("site.yaml");
    fs::write(&site, text).unwrap();
    fs::copy(path.with_extension("lock"), site.with_extension("lock")).unwrap();
    site
}

fn machines_proxies() -> String {
    Proxies::find().unwrap().list()
}

fn with_proxy(command: &mut Command, own: &str) -> std::process::Output {
    common::good(command.env("GOPROXY", format!("{own},{}", machines_proxies())).env("GONOSUMDB", "example.test"))
}

#[test]
fn a_profiles_program_is_locked_built_without_network_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (own, site) = (proxy(dir.path()), profile(dir.path()));
    let (site, out) = (site.to_str().unwrap(), dir.path().join("out"));
    with_proxy(&mut common::chasi_bod(&["lock", site]), &own);
    let text = fs::read_to_string(dir.path().join("site.lock")).unwrap();
    let lock = Lock::from_yaml(&text, "site.lock").unwrap();
    let go = lock.sources[0].go.as_ref().unwrap();
    assert!(lock.sources[1].name == "own-greet" && lock.sources[1].go.as_ref().unwrap().modules.is_empty());
    let module = &go.modules[0];
    assert_eq!((module.path.as_str(), module.version.as_str(), module.licence.as_deref()), (MODULE, "v1.0.0", Some("MIT")));
    assert_eq!(module.sha256, Digest::of(&fs::read(dir.path().join("proxy").join(PLACE).join("v1.0.0.zip")).unwrap()));
    assert!(go.go_sum.contains(MODULE) && go.toolchain.version.ends_with("go1.26.8.linux-amd64"));
    // The modules are in the store now: no proxy is asked any more. Packages may be newer than those of `make image`.
    fs::remove_dir_all(dir.path().join("proxy")).unwrap();
    let build = ["build", site, "--locked", "--format", "qcow2", "--output"];
    common::good(common::chasi_bod(&build).arg(dir.path().join("online")).env("GOPROXY", "off"));
    common::good(common::chasi_bod(&build).arg(&out).arg("--offline"));
    let image = common::artifact(&out.join("greeting/1.0.0"), "qcow2");
    for (name, says) in [("greet", "hello from here\n"), ("own-greet", "own\n")] {
        let program = common::good(&mut common::chasi_bod(&["inspect", image.to_str().unwrap(), "--cat", &format!("/usr/bin/{name}")])).stdout;
        let path = dir.path().join(name);
        fs::write(&path, program).unwrap();
        common::good(Command::new("chmod").arg("755").arg(&path));
        assert_eq!(String::from_utf8(common::good(&mut Command::new(&path)).stderr).unwrap(), says);
    }
    // What its licence asks for beside it, and what it is made of.
    let notice = common::good(&mut common::chasi_bod(&["inspect", image.to_str().unwrap(), "--cat", "/usr/lib/chasi-bod/licences/greet.txt"])).stdout;
    let notice = String::from_utf8(notice).unwrap();
    assert!(notice.contains(&format!("{MODULE} v1.0.0 (MIT)\n")) && notice.contains(&format!("{MODULE} v1.0.0: LICENSE\n\n{MIT}\n")), "{notice}");
    assert!(notice.contains("golang.org/toolchain v0.0.1-go1.26.8.linux-amd64: LICENSE"), "{notice}");
    let sbom = fs::read_to_string(out.join("greeting/1.0.0/sbom.spdx.json")).unwrap();
    assert!(sbom.contains("pkg:golang/example.test/greeting@v1.0.0") && sbom.contains("SPDXRef-program-greet"));
    // A lock that is current is left alone.
    common::good(&mut common::chasi_bod(&["lock", site, "--offline"]));
    assert_eq!(fs::read_to_string(dir.path().join("site.lock")).unwrap(), text);
}

#[test]
fn a_version_that_does_not_exist_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (own, site) = (proxy(dir.path()), profile(dir.path()));
    let text = fs::read_to_string(&site).unwrap();
    fs::write(&site, text.replace("{example.test/Greeting: v1.0.0}", "{example.test/Greeting: v1.0.9}")).unwrap();
    let mut command = common::chasi_bod(&["lock", site.to_str().unwrap()]);
    let output = command.env("GOPROXY", format!("{own},{}", machines_proxies())).env("GONOSUMDB", "example.test").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("locking source `greet`") && said.contains("example.test/Greeting v1.0.9"), "{said}");
}

#[test]
fn b1_a_module_with_other_bytes_is_named_and_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let own = proxy(dir.path());
    let path = dir.path().join("proxy").join(PLACE);
    let file = |name: &str| fs::read(path.join(name)).unwrap();
    let (zip, go_mod) = (file("v1.0.0.zip"), file("v1.0.0.mod"));
    let module = LockedModule {
        path: MODULE.into(),
        version: "v1.0.0".into(),
        sha256: Digest::of(&zip),
        size: Bytes(zip.len() as u64),
        go_mod: Some(LockedBlob { sha256: Digest::of(&go_mod), size: Bytes(go_mod.len() as u64) }),
        licence: None,
    };
    let locked = LockedGo { toolchain: module.clone(), go_mod: String::new(), go_sum: String::new(), modules: vec![module.clone()] };
    let (store, progress) = (Store::open(&dir.path().join("store")).unwrap(), Progress::silent());
    let mut damaged = zip.clone();
    damaged[40] ^= 1;
    fs::write(path.join("v1.0.0.zip"), &damaged).unwrap();
    let error = go::fetch(&common::archive(&store, &progress), &Proxies::from_list(&own), "greet", &locked).unwrap_err().to_string();
    assert!(error.contains(&format!("{MODULE} v1.0.0")) && error.contains(&module.sha256.to_string()), "{error}");
    assert!(error.contains(&Digest::of(&damaged).to_string()) && store.quarantine(&module.sha256).exists(), "{error}");
    fs::write(path.join("v1.0.0.zip"), &zip).unwrap();
    go::fetch(&common::archive(&store, &progress), &Proxies::from_list(&own), "greet", &locked).unwrap();
    assert!(store.blob(&module.sha256).exists());
    let gone = Proxies::from_list(&format!("{own}/nowhere"));
    fs::remove_file(store.blob(&module.sha256)).unwrap();
    let error = go::fetch(&common::archive(&store, &progress), &gone, "greet", &locked).unwrap_err();
    assert!(error.to_string().contains("no proxy has it") && error.hint().is_some(), "{error}");
}

fn shipped_locks() -> Vec<(PathBuf, Lock)> {
    let files = fs::read_dir(common::workspace().join("profiles")).unwrap().map(|entry| entry.unwrap().path());
    let locks = files.filter(|path| path.extension().is_some_and(|e| e == "lock"));
    locks.map(|path| (path.clone(), Lock::from_yaml(&fs::read_to_string(&path).unwrap(), &path.to_string_lossy()).unwrap())).collect()
}

#[test]
fn no_module_of_a_shipped_profile_has_a_licence_in_doubt() {
    let locks = shipped_locks();
    assert!(locks.iter().any(|(_, lock)| lock.sources.len() > 5));
    for (path, lock) in locks {
        assert_eq!(go::licence::doubts(&lock), Vec::<String>::new(), "{}", path.display());
    }
}

#[test]
#[ignore = "needs the modules of all shipped profiles in the store: make soak"]
fn soak_the_shipped_locks_say_of_licences_what_the_modules_say() {
    for (path, lock) in shipped_locks() {
        for module in lock.sources.iter().flat_map(|source| &source.go).flat_map(|go| &go.modules) {
            let zip = fs::File::open(common::cache().join("blobs").join(module.sha256.hex())).unwrap();
            let found = go::licence::of_zip(std::io::BufReader::new(zip));
            assert_eq!(found, module.licence, "{} {} in {}", module.path, module.version, path.display());
        }
    }
}

/// Two stores that share nothing but the downloads.
#[test]
#[ignore = "builds the standard library twice: make soak"]
fn soak_go_programs_are_byte_equal_in_two_stores() {
    scratch::use_executable(Path::new(common::BIN));
    let dir = tempfile::tempdir().unwrap();
    let (own, profile) = (proxy(dir.path()), profile(dir.path()));
    let planned = builder::pipeline::plan(&profile).unwrap();
    with_proxy(&mut common::chasi_bod(&["lock", profile.to_str().unwrap()]), &own);
    let lock = Lock::from_yaml(&fs::read_to_string(profile.with_extension("lock")).unwrap(), "site.lock").unwrap();
    let (source, locked) = (&planned.plan.sources[0], lock.sources[0].go.as_ref().unwrap());
    let mut digests = BTreeMap::new();
    for name in ["one", "two"] {
        let store = Store::open(&dir.path().join(name)).unwrap();
        for (sha256, _) in lock.sources[0].blobs() {
            fs::copy(common::cache().join("blobs").join(sha256.hex()), store.blob(&sha256)).unwrap();
        }
        let content = go::build(&store, source, source.source.go.as_ref().unwrap(), locked).unwrap();
        digests.insert(name, content.sha256);
    }
    assert_eq!(digests["one"], digests["two"]);
}
