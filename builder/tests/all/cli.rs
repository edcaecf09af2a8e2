//! The command line as a person or a script meets it: what a dry run says, what failures print, exit codes, the files of an image, the store.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{BIN, artifact, built, chasi_bod, cut, downloads_only, flip, good, node, only_child, partition, site, sums};
use serde_json::{Value, json};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs with a store of its own; exit code, stdout, stderr.
fn said(store: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(BIN).args(args).env("CHASI_BOD_CACHE", store).env("CHASI_BOD_NODE", node()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn paths_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        out.push(path.clone());
        if path.is_dir() && !path.is_symlink() {
            out.extend(paths_below(&path));
        }
    }
    out.sort();
    out
}

#[test]
fn a_dry_run_says_what_is_fetched_and_written_and_touches_nothing() {
    let dir = scratch();
    let (profile, store, out) = (site(dir.path()), dir.path().join("store"), dir.path().join("out"));
    let (profile, out) = (profile.to_str().unwrap(), out.to_str().unwrap());
    let before = paths_below(dir.path());
    let dry = |more: &[&str]| said(&store, &[&["build", profile, "--output", out, "--format", "qcow2,raw", "--dry-run"], more].concat());
    let (code, text, _) = dry(&["--json"]);
    let value = json_of(&text);
    assert_eq!((code, &value["lock"]["state"], &value["packages"]["stored"]["count"]), (0, &json!("current"), &json!(0)));
    let lock = fs::read_to_string(dir.path().join("minimal.lock")).unwrap();
    let locked = lock.lines().filter(|l| l.trim_start().starts_with("size:")).map(|l| l.split_once(':').unwrap().1.trim().parse::<u64>().unwrap());
    let (count, size) = (value["packages"]["toFetch"]["count"].as_u64().unwrap(), value["packages"]["toFetch"]["size"].as_u64().unwrap());
    // A package of both image and tool root is one download.
    assert!(count > 150 && size > 50 << 20 && size <= locked.sum::<u64>(), "{count} packages, {size} bytes");
    assert!(value["outputs"].as_array().unwrap().iter().all(|o| o["state"] == "would-write" && o["about"].as_u64().unwrap() > 50 << 20));
    let (_, text, _) = dry(&[]);
    assert!(text.contains("minimal.lock is current") && text.contains(&format!("{count} (")) && text.contains("would write"), "{text}");
    let (code, _, text) = dry(&["--offline"]);
    assert!(code == 3 && text.contains("lacks") && text.contains("hint:") && text.contains("cache export"), "{text}");
    assert_eq!(paths_below(dir.path()), before);

    fs::write(profile, fs::read_to_string(profile).unwrap() + "\npackages: [htop]\n").unwrap();
    let (code, text, _) = dry(&[]);
    assert!(code == 0 && text.contains("would be made anew: the profile asks for something else"), "{text}");
    let (code, _, text) = dry(&["--locked"]);
    assert!(code == 1 && text.contains("hint: run `chasi-bod lock"), "{text}");
    fs::remove_file(dir.path().join("minimal.lock")).unwrap();
    let (code, text, _) = dry(&["--json"]);
    let value = json_of(&text);
    assert_eq!((code, &value["lock"]["state"], &value["packages"]), (0, &json!("missing"), &Value::Null));
    assert!(!store.exists() && !Path::new(out).exists());
}

#[test]
fn a_dry_run_knows_what_is_up_to_date() {
    let dir = scratch();
    let (profile, out) = (site(dir.path()), dir.path().join("out"));
    good(chasi_bod(&["build", profile.to_str().unwrap(), "--output"]).arg(&out));
    let dry = || {
        let args = ["build", profile.to_str().unwrap(), "--format", "qcow2,raw", "--dry-run", "--json", "--output"];
        let value = json_of(&String::from_utf8(good(chasi_bod(&args).arg(&out)).stdout).unwrap());
        [&value["outputs"][0]["state"], &value["outputs"][1]["state"]].map(|s| s.as_str().unwrap().to_string())
    };
    assert_eq!(dry(), ["up-to-date", "would-write"]);
    fs::write(&profile, fs::read_to_string(&profile).unwrap() + "\nsysctl:\n  vm.swappiness: 10\n").unwrap();
    assert_eq!(dry(), ["would-write", "would-write"]);
}

#[test]
fn failures_are_one_json_object_with_the_same_exit_code() {
    let dir = scratch();
    let (store, profile) = (dir.path().join("store"), dir.path().join("site.yaml"));
    fs::write(&profile, "name: site\nversion: 1.0.0\nlayers: [boot, os, toolchain]\nhostnam: web-1\nnetwrk: {}\n").unwrap();
    let path = profile.to_str().unwrap();
    let (code, text, errors) = said(&store, &["plan", path, "--json"]);
    let error = &json_of(&text)["error"];
    assert_eq!((code, &error["exitCode"]), (1, &json!(1)));
    assert_eq!(error["message"], format!("checking {path}: 2 problems"));
    let first = json!({"file": path, "line": 4, "column": 1, "message": "unknown key `hostnam`", "hint": "did you mean `hostname`?"});
    assert_eq!((&error["diagnostics"][0], error["diagnostics"].as_array().unwrap().len()), (&first, 2));
    assert!(errors.starts_with("error: checking"), "people read stderr all the same: {errors}");
    let (code, text, _) = said(&store, &["build", path, "--no-such-option", "--json"]);
    let error = &json_of(&text)["error"];
    assert!(code == 1 && error["exitCode"] == 1 && error["message"].as_str().unwrap().contains("--no-such-option"), "{text}");
    // A store below a file cannot be made: the surroundings.
    let (code, text, _) = said(&profile.join("store"), &["build", site(dir.path()).to_str().unwrap(), "--json"]);
    let error = &json_of(&text)["error"];
    assert!(code == 3 && error["exitCode"] == 3 && error["hint"].as_str().unwrap().contains("--cache"), "{text}");
    assert!(error["causes"].as_array().unwrap().len() >= 2 && error["diagnostics"] == json!([]), "{text}");
    let (_, text, _) = said(&store, &["plan", path]);
    assert_eq!(text, "", "without --json stdout has results only");
}

#[test]
fn a_path_that_does_not_exist_is_the_users_mistake_everywhere() {
    let dir = scratch();
    let (store, profile) = (dir.path().join("store"), site(dir.path()));
    let (profile, absent) = (profile.to_str().unwrap(), dir.path().join("absent"));
    let absent = absent.to_str().unwrap();
    let table: [&[&str]; 15] = [
        &["plan", absent],
        &["lock", absent],
        &["lock", absent, "--offline"],
        &["build", absent],
        &["build", absent, "--dry-run"],
        &["build", profile, "--node-binary", absent],
        &["run", absent],
        &["run", profile, "--print", "--ssh-key", absent],
        &["inspect", absent],
        &["inspect", absent, "--files"],
        &["inspect", absent, "--cat", "/etc/os-release"],
        &["verify", absent],
        &["config", "image", absent],
        &["cache", "prune", absent],
        &["cache", "export", absent, "target"],
    ];
    for args in table {
        let (code, _, text) = said(&store, args);
        assert!(code == 1 && text.contains(absent), "{args:?}: {code}: {text}");
    }
}

#[test]
fn what_is_missing_here_is_named_with_the_next_step() {
    let dir = scratch();
    let (store, profile) = (dir.path().join("store"), site(dir.path()));
    let profile = profile.to_str().unwrap();
    let alone = dir.path().join("chasi-bod");
    fs::copy(BIN, &alone).unwrap();
    let output = Command::new(&alone).args(["build", profile]).env("CHASI_BOD_CACHE", &store).env_remove("CHASI_BOD_NODE").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let here = dir.path().to_str().unwrap();
    assert!(output.status.code() == Some(3) && text.contains(here) && text.contains("make tools") && text.contains("--node-binary"), "{text}");
    let output = Command::new(BIN).args(["run", profile]).env("CHASI_BOD_CACHE", &store).env("PATH", here).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && text.contains("qemu-system-x86`") && text.contains("--print"), "{text}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, _, text) = said(&store, &["build", profile, "--output", file.to_str().unwrap()]);
    assert!(code == 3 && text.contains("hint:") && text.contains("--output"), "{text}");
    let (code, _, text) = said(&store, &["lock", profile, "--offline"]);
    assert!(code == 3 && text.contains("chasi-bod lock PROFILE") && text.contains("cache export"), "{text}");
    let (code, _, text) = said(&store, &["build", profile, "--offline"]);
    assert!(code == 3 && text.contains("lacks") && text.contains("cache export"), "{text}");
    for (bytes, what) in [
        (b"conectix".as_slice(), "VHD"),
        (b"\x1f\x8b", "gzip"),
        (b"#!/bin/sh\n", "neither the magic of QCOW2, VMDK, VHDX, OVA, VMA or zstd nor a GUID"),
    ] {
        fs::write(&file, [bytes, &[0; 4096]].concat()).unwrap();
        let (code, _, text) = said(&store, &["inspect", file.to_str().unwrap()]);
        assert!(code == 1 && text.contains("not a disk image") && text.contains(what) && text.contains("hint:"), "{text}");
    }
    fs::write(&file, [b"KDMV".as_slice(), &[0; 4096]].concat()).unwrap();
    let (code, _, text) = said(&store, &["inspect", file.to_str().unwrap()]);
    assert!(code == 1 && text.contains("reading the VMDK header: version 0 is not known"), "{text}");
}

#[test]
fn d2_verify_lists_every_file_that_is_missing_or_differs() {
    let dir = scratch();
    let folder = dir.path().join("copy");
    good(Command::new("cp").args(["-r", "--sparse=always"]).args([built(), &folder]));
    fs::remove_file(artifact(&folder, "qcow2")).unwrap();
    fs::remove_file(folder.join("lock")).unwrap();
    fs::write(folder.join("sbom.spdx.json"), "{}").unwrap();
    let raw = artifact(&folder, "raw");
    let (offset, _) = partition(&raw, "root-a");
    flip(&raw, offset + 5000);
    let (code, text, errors) = said(&dir.path().join("store"), &["verify", folder.to_str().unwrap(), "--json"]);
    let found: Vec<_> = json_of(&text)["error"]["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["file"].as_str().unwrap().rsplit('/').next().unwrap().to_string(), d["message"].as_str().unwrap().to_string()))
        .collect();
    let of = |name: &str| &found.iter().find(|(file, _)| file.contains(name)).unwrap_or_else(|| panic!("{name}: {found:?}")).1;
    assert_eq!((code, found.len()), (1, 4), "{found:?}");
    assert_eq!((of("qcow2").as_str(), of("lock").as_str()), ("it is missing", "it is missing"));
    assert!(of("sbom").contains("SHA256SUMS says") && of("raw").starts_with("root-a at offset 4096"), "{found:?}");
    assert!(found.iter().all(|(file, _)| errors.contains(file)), "{errors}");
    let (code, _, text) = said(&dir.path().join("store"), &["verify", folder.join("build.json").to_str().unwrap()]);
    assert!(code == 1 && text.contains("it knows minimal-"), "{text}");
}

/// What `fsck.erofs --extract` made of a path, in the words of `inspect --files --json`.
fn extracted(path: &Path, at: &str) -> Value {
    let meta = path.symlink_metadata().unwrap();
    let (kind, text) = match meta.file_type() {
        t if t.is_dir() => ("directory", None),
        t if t.is_symlink() => ("symlink", Some(fs::read_link(path).unwrap().to_str().unwrap().to_string())),
        t if t.is_fifo() => ("fifo", None),
        _ => ("file", None),
    };
    let mut value = json!({"path": at, "type": kind, "mode": format!("{:04o}", meta.permissions().mode() & 0o1777)});
    if meta.is_file() {
        value["size"] = json!(meta.len());
    }
    text.into_iter().for_each(|target| value["target"] = json!(target));
    // Only root gets files with their owners.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        (value["uid"], value["gid"]) = (json!(meta.uid()), json!(meta.gid()));
    }
    value
}

/// Permission bits in the inode (`i_mode`, Linux: fs/erofs/erofs_fs.h) whose number dump.erofs tells.
fn stored_mode(root: &Path, path: &str) -> u16 {
    let dump = String::from_utf8(good(Command::new("dump.erofs").arg(format!("--path={path}")).arg(root)).stdout).unwrap();
    let nid: u64 = dump.split("NID:").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let file = fs::File::open(root).unwrap();
    let (mut block, mut mode) = ([0; 4], [0; 2]);
    file.read_exact_at(&mut block, 1024 + 40).unwrap();
    file.read_exact_at(&mut mode, u64::from(u32::from_le_bytes(block)) * 4096 + nid * 32 + 4).unwrap();
    u16::from_le_bytes(mode) & 0o7777
}

#[test]
fn the_files_of_an_image_are_those_that_fsck_erofs_extracts() {
    let (raw, qcow2) = (artifact(built(), "raw"), artifact(built(), "qcow2"));
    let dir = scratch();
    let (root, tree) = (dir.path().join("root"), dir.path().join("tree"));
    let (offset, size) = partition(&raw, "root-a");
    cut(&raw, offset, size, &root);
    good(Command::new("fsck.erofs").args(["--preserve-perms", &format!("--extract={}", tree.display())]).arg(&root));
    let listing = |image: &Path, more: &[&str]| {
        let (code, text, errors) = said(dir.path(), &[&["inspect", image.to_str().unwrap(), "--files"], more, &["--json"]].concat());
        assert_eq!(code, 0, "{errors}");
        json_of(&text)
    };
    let ours = listing(&qcow2, &[]);
    assert_eq!(ours, listing(&raw, &[]));
    let mut ours: BTreeMap<String, Value> = ours.as_array().unwrap().iter().map(|e| (e["path"].as_str().unwrap().to_string(), e.clone())).collect();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut special = 0;
    for (path, entry) in ours.iter_mut().map(|(path, e)| (path, e.as_object_mut().unwrap())) {
        entry.remove("xattrs");
        // fsck.erofs changes the owner last, which clears setuid and setgid, and dump.erofs leaves them out: the inode itself tells.
        let mode = u16::from_str_radix(entry["mode"].as_str().unwrap(), 8).unwrap();
        if mode & 0o6000 != 0 {
            assert_eq!(stored_mode(&root, path), mode, "{path}");
            entry.insert("mode".into(), json!(format!("{:04o}", mode & 0o1777)));
            special += 1;
        }
        if !is_root {
            entry.retain(|key, _| key != "uid" && key != "gid");
        }
    }
    let theirs = paths_below(&tree).into_iter().chain([tree.clone()]).map(|path| {
        let at = format!("/{}", path.strip_prefix(&tree).unwrap().display());
        (at.clone(), extracted(&path, &at))
    });
    let theirs: BTreeMap<String, Value> = theirs.collect();
    assert!(theirs.len() > 2000 && special > 3, "{} entries, {special} with setuid or setgid", theirs.len());
    for (path, entry) in &theirs {
        assert_eq!(ours.get(path), Some(entry), "{path}");
    }
    assert_eq!(ours.len(), theirs.len());

    // Names, folders and whole paths.
    let paths =
        |pattern: &str| listing(&raw, &[pattern]).as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap().to_string()).collect::<Vec<_>>();
    let etc: Vec<_> = theirs.keys().filter(|p| *p == "/etc" || p.starts_with("/etc/")).cloned().collect();
    assert_eq!(paths("/etc"), etc);
    let services: Vec<_> = theirs.keys().filter(|p| p.ends_with(".service")).cloned().collect();
    assert_eq!(paths("*.service"), services);
    let (code, _, text) = said(dir.path(), &["inspect", raw.to_str().unwrap(), "--files", "/nothing/*"]);
    assert!(code == 1 && text.contains("/nothing/*") && text.contains("hint:"), "{text}");
    let (code, text, _) = said(dir.path(), &["inspect", raw.to_str().unwrap(), "--files", "/usr/bin/sh"]);
    assert!(code == 0 && text.starts_with("l 0777 0:0 ") && text.ends_with(" /usr/bin/sh -> dash\n"), "{text}");

    // Contents; /bin and /etc/os-release are links.
    for (asked, file) in [("/etc/os-release", "usr/lib/os-release"), ("/bin/bash", "usr/bin/bash"), ("usr/lib/../bin/env", "usr/bin/env")] {
        for image in [&raw, &qcow2] {
            let shown = good(Command::new(BIN).args(["inspect", image.to_str().unwrap(), "--cat", asked])).stdout;
            assert!(shown == fs::read(tree.join(file)).unwrap(), "{asked}");
        }
    }
    for (path, what) in [("/etc", "no regular file"), ("/etc/nothing", "has no /etc/nothing")] {
        let (code, _, text) = said(dir.path(), &["inspect", raw.to_str().unwrap(), "--cat", path]);
        assert!(code == 1 && text.contains(what) && text.contains("hint:"), "{text}");
    }
    let (code, _, text) = said(dir.path(), &["inspect", raw.to_str().unwrap(), "--files", "--partition", "esp"]);
    assert!(code == 1 && text.contains("`esp`") && text.contains("root-a"), "{text}");
}

#[test]
fn prune_keeps_what_the_newest_build_needs_and_waits_for_other_builds() {
    let dir = scratch();
    let store = downloads_only(dir.path());
    fs::create_dir(dir.path().join("kept")).unwrap();
    let profile = site(&dir.path().join("kept"));
    let build = |out: &str| {
        let out = dir.path().join(out);
        let (code, _, text) = said(&store, &["build", profile.to_str().unwrap(), "--offline", "--quiet", "--output", out.to_str().unwrap()]);
        assert_eq!(code, 0, "{text}");
        sums(&only_child(&out.join("minimal")))
    };
    let first = build("first");
    // Another profile's build and downloads, an unfinished download, one with wrong bytes.
    let other = "a".repeat(64);
    let rubbish = ["blobs", "packs", "derived/unpacked", "derived/configured", "partial", "quarantine"].map(|kind| store.join(kind).join(&other));
    rubbish.iter().for_each(|path| fs::write(path, "x").unwrap());
    let keep = dir.path().join("kept");
    let prune = |more: &[&str]| said(&store, &[&["cache", "prune", keep.to_str().unwrap()], more].concat());
    let (_, listed, _) = said(&store, &["cache", "list", "--json"]);
    let count = |kind: &str| json_of(&listed).as_array().unwrap().iter().find(|u| u["kind"] == kind).unwrap()["files"].as_u64().unwrap();
    let on_disk = |kind: &str| fs::read_dir(store.join(kind)).unwrap().count() as u64;
    for kind in ["blobs", "packs", "derived/unpacked", "derived/configured", "partial", "quarantine"] {
        assert_eq!(count(kind), on_disk(kind), "{kind}");
    }

    let before = paths_below(&store);
    let (code, text, _) = prune(&["--dry-run", "--json"]);
    let value = json_of(&text);
    let named: Vec<_> = value["files"].as_array().unwrap().iter().map(|f| PathBuf::from(f["path"].as_str().unwrap())).collect();
    assert!(code == 0 && value["dryRun"] == true && rubbish.iter().all(|path| named.contains(path)), "{text}");
    assert_eq!(paths_below(&store), before);

    let in_use = fs::File::open(&store).unwrap();
    in_use.lock_shared().unwrap();
    let (code, _, text) = prune(&[]);
    assert!(code == 3 && text.contains("another chasi-bod uses it") && paths_below(&store) == before, "{text}");
    drop(in_use);

    let (code, _, text) = prune(&[]);
    assert_eq!(code, 0, "{text}");
    let gone: Vec<_> = before.iter().filter(|path| !path.exists()).cloned().collect();
    assert_eq!(gone, {
        let mut named = named;
        named.sort();
        named
    });
    let packs = on_disk("packs");
    assert!(packs > 100, "the packs of the build are kept");
    assert_eq!(build("second"), first);
    assert_eq!(on_disk("packs"), packs, "nothing had to be made again");
    // The second build took configured tree and loader as they were: what only those were made from goes too, and is not missed.
    assert_eq!(prune(&[]).0, 0);
    assert!(on_disk("packs") > 100 && prune(&[]).1.is_empty(), "then nothing is left to remove");

    let (code, _, text) = said(&store, &["cache", "prune", dir.path().join("first").join("minimal").join("0.1.0").to_str().unwrap(), "--dry-run"]);
    assert!(code == 0 && text.contains("would remove 0 files"), "the lock among the results is the same: {text}");
    assert_eq!(build("third"), first);
    fs::create_dir(dir.path().join("empty")).unwrap();
    let (code, _, text) = said(&store, &["cache", "prune", dir.path().join("empty").to_str().unwrap()]);
    assert!(code == 1 && text.contains("everything would go"), "{text}");
}

/// Needs the mirror once; then the archive is an address where nobody answers.
#[test]
fn a_lock_is_made_offline_from_what_the_store_or_its_export_holds() {
    let dir = scratch();
    let (store, export) = (downloads_only(dir.path()), dir.path().join("export"));
    let profile = site(dir.path());
    let (path, lock) = (profile.to_str().unwrap(), dir.path().join("minimal.lock"));
    let (code, _, text) = said(&store, &["lock", path, "--update"]);
    assert_eq!(code, 0, "{text}");
    let online = fs::read(&lock).unwrap();
    // What the archive has renewed since `make image` is not among the downloads yet.
    if said(&store, &["build", path, "--offline", "--dry-run"]).0 != 0 {
        let (code, _, text) = said(&store, &["build", path, "--quiet", "--output", dir.path().join("out").to_str().unwrap()]);
        assert_eq!(code, 0, "{text}");
    }
    let nobody = "\ndebian:\n  mirror: http://127.0.0.1:1/debian\n  securityMirror: http://127.0.0.1:1/security\n";
    fs::write(&profile, fs::read_to_string(&profile).unwrap() + nobody).unwrap();
    fs::remove_file(&lock).unwrap();
    let (code, _, text) = said(&store, &["lock", path]);
    assert!(code == 3 && !lock.exists(), "nobody answers there: {text}");
    let (code, _, text) = said(&store, &["lock", path, "--offline"]);
    assert_eq!((code, fs::read(&lock).unwrap() == online), (0, true), "{text}");

    let (code, text, errors) = said(&store, &["cache", "export", path, export.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{errors}");
    assert!(json_of(&text)["copied"].as_u64().unwrap() > 50 << 20, "{text}");
    fs::remove_file(&lock).unwrap();
    let (code, _, text) = said(&export, &["lock", path, "--offline"]);
    assert_eq!((code, fs::read(&lock).unwrap() == online), (0, true), "{text}");
    let (code, text, _) = said(&export, &["build", path, "--locked", "--offline", "--dry-run", "--json"]);
    assert!(code == 0 && json_of(&text)["packages"]["toFetch"]["count"] == 0, "{text}");
}

#[test]
fn a_verb_of_day_2_says_where_it_looked_for_a_cluster_and_needs_none_for_a_dry_run() {
    let dir = scratch();
    let verb = |args: &[&str]| {
        let output = Command::new(BIN).args(args).env("HOME", dir.path()).env_remove("KUBECONFIG").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, out, text) = verb(&["vcluster", "list"]);
    assert!(code == 3 && out.is_empty() && text.contains("$KUBECONFIG") && text.contains(".kube/config") && text.contains("hint:"), "{text}");
    let (code, _, text) = verb(&["vcluster", "list", "--kubeconfig", "/nowhere/config"]);
    assert!(code == 1 && text.contains("/nowhere/config"), "{text}");
    let (code, out, _) = verb(&["vcluster", "create", "biz", "--set", "quota.pods=20", "--dry-run"]);
    assert!(code == 0 && out.contains("kind: VirtualCluster") && out.contains("pods: 20"), "{out}");
}
