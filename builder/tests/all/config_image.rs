//! The medium of `config image` against mtools, fsck.fat, blkid and the code that nodes read it with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use firstboot::host::Host;
use layers::units::Digest;
use serde_json::{Value, json};

use crate::common::{BIN, good};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn site() -> String {
    format!("# site, für alle\r\nhostname: edge-{{serial}}\ncluster: {{secret: \"{SECRET}\"}}\nnodes: {{expected: 3}}\n")
}

/// Runs in a folder; exit code, stdout, stderr.
fn said(dir: &Path, args: &[&str], input: &str) -> (i32, String, String) {
    let mut command = Command::new(BIN);
    command.args(["config", "image"]).args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read it is gone.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn fine(dir: &Path, args: &[&str], input: &str) -> (String, String) {
    let (code, text, errors) = said(dir, args, input);
    assert_eq!(code, 0, "{errors}");
    (text, errors)
}

/// A folder with `site.yaml`.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(dir.path().join("site.yaml"), site()).unwrap();
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What an outside tool says of the medium.
fn outside(tool: &str, args: &[&str]) -> String {
    let mut command = Command::new(tool);
    // fsck.fat and blkid are where administrators' programs are.
    command.args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    String::from_utf8(good(&mut command).stdout).unwrap()
}

/// The files of the medium, as mtools gets them, below a folder that nodes take for the volume.
fn unpacked(image: &Path, root: &Path) -> PathBuf {
    let volume = root.join("volumes/CHASI");
    fs::create_dir_all(&volume).unwrap();
    outside("mcopy", &["-n", "-i", image.to_str().unwrap(), "::*", volume.to_str().unwrap()]);
    volume
}

#[test]
fn d9_outside_tools_find_the_label_and_both_files() {
    let dir = folder();
    let (text, errors) = fine(dir.path(), &["site.yaml"], "");
    assert_eq!(
        text,
        "chasi-config.img: 4MiB, FAT volume CHASI with 3 settings: cluster.secret, hostname, nodes.expected\n\
         it holds the cluster's secret: keep it like a key\n"
    );
    assert_eq!((errors.as_str(), names(dir.path())), ("", vec!["chasi-config.img".into(), "site.yaml".into()]));
    let image = dir.path().join("chasi-config.img");
    let meta = fs::metadata(&image).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (4 << 20, 0o600));
    let path = image.to_str().unwrap();
    let checked = outside("fsck.fat", &["-n", "-v", path]);
    assert!(checked.contains("16 bit entries") && checked.lines().last().is_some_and(|l| l.contains(" 3 files, ")), "{checked}");
    let found = outside("blkid", &["-p", "-o", "export", path]);
    assert!(found.contains("LABEL=CHASI\n") && found.contains("TYPE=vfat\n"), "{found}");
    let listing = outside("mdir", &["-i", path, "::"]);
    assert!(listing.contains("chasi-bod.yaml\n") && listing.contains("chasi-bod.yaml.sha256\n") && listing.contains("1980-01-01"), "{listing}");
    let volume = unpacked(&image, dir.path());
    assert_eq!(fs::read(volume.join("chasi-bod.yaml")).unwrap(), site().into_bytes());
    good(Command::new("sha256sum").args(["--check", "--strict", "chasi-bod.yaml.sha256"]).current_dir(&volume));
}

#[test]
fn a_node_takes_every_setting_of_it_and_notices_a_changed_byte() {
    let dir = folder();
    fine(dir.path(), &["site.yaml"], "");
    let volume = unpacked(&dir.path().join("chasi-config.img"), dir.path());
    let host = Host::new(dir.path());
    let record = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"image","network":{},"disk":{},"time":{},"console":{}}"#;
    host.write("usr/lib/chasi-bod/image.json", record.as_bytes(), 0o444).unwrap();
    let collect = || firstboot::config::collect(&host, &host.image().unwrap()).unwrap();
    let found = collect();
    assert_eq!((found.problems, found.settings.secret.unwrap().value.reveal()), (Vec::<String>::new(), SECRET));
    assert_eq!(found.settings.expected.unwrap().source, "disk CHASI: chasi-bod.yaml:4");
    fs::write(volume.join("chasi-bod.yaml"), site().replace("edge", "egde")).unwrap();
    assert!(collect().problems[0].contains("differs from chasi-bod.yaml.sha256"));
}

#[test]
fn equal_settings_give_equal_bytes_and_json_has_their_digest() {
    let dir = folder();
    fine(dir.path(), &["site.yaml", "--output", "a.img"], "");
    // Secrets need not lie in a file.
    let (text, _) = fine(dir.path(), &["-", "--output", "b.img", "--json"], &site());
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.img") == bytes("b.img"));
    let mut expected = json!({"file": "b.img", "size": 4 << 20, "sha256": Digest::of(&bytes("a.img")), "dryRun": false});
    expected["settings"] = json!(["cluster.secret", "hostname", "nodes.expected"]);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    fine(dir.path(), &["-", "--output", "c.img"], &site().replace("edge", "core"));
    assert!(bytes("a.img")[39..43] != bytes("c.img")[39..43], "other settings have another serial number");
}

#[test]
fn a_dry_run_says_the_same_and_writes_nothing() {
    let dir = folder();
    let (text, _) = fine(dir.path(), &["site.yaml", "--dry-run"], "");
    assert!(text.starts_with("would write chasi-config.img: 4MiB"), "{text}");
    let json = |args: &[&str]| serde_json::from_str::<Value>(&fine(dir.path(), args, "").0).unwrap();
    let mut dry = json(&["site.yaml", "--dry-run", "--json"]);
    assert_eq!((dry["dryRun"].take(), names(dir.path())), (json!(true), vec!["site.yaml".into()]));
    let mut done = json(&["site.yaml", "--json"]);
    assert_eq!((done["dryRun"].take(), done), (json!(false), dry));
}

#[test]
fn a3_every_mistake_is_named_with_its_place_and_no_secret_is_told() {
    let dir = folder();
    let bad = format!("hostnam: a\ncluster:\n  secret: {SECRET}x y\n  role: king\nnodes: {{expected: 0}}\n");
    fs::write(dir.path().join("bad.yaml"), &bad).unwrap();
    let (code, text, errors) = said(dir.path(), &["bad.yaml", "--json"], "");
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!((code, lines[0], lines.len()), (1, "error: checking bad.yaml: 4 problems", 5), "{errors}");
    for (line, start, part) in [
        (lines[1], "bad.yaml:1:1: hostnam: unknown key", "did you mean `hostname`?"),
        (lines[2], "bad.yaml:3:3: cluster.secret: has blanks", "openssl rand"),
        (lines[3], "bad.yaml:4:3: cluster.role: ", "unknown variant `king`"),
        (lines[4], "bad.yaml:5:9: nodes.expected: ", "from 1 to 1000"),
    ] {
        assert!(line.starts_with(start) && line.contains(part), "{line}");
    }
    let error = &serde_json::from_str::<Value>(&text).unwrap()["error"];
    assert_eq!((&error["exitCode"], &error["diagnostics"][1]["line"]), (&json!(1), &json!(3)));
    assert!(!errors.contains("0123456789") && !text.contains("0123456789"));
    let (code, _, errors) = said(dir.path(), &["-"], "hostname: a\ntime: {zo");
    assert!(code == 1 && errors.contains("\nstandard input:2:"), "{errors}");
    assert_eq!(names(dir.path()), ["bad.yaml", "site.yaml"], "nothing was written");
}

#[test]
fn what_is_there_is_kept_unless_told_and_only_files_are_replaced() {
    let dir = folder();
    let image = dir.path().join("chasi-config.img");
    fs::write(&image, "kept").unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    for args in [&["site.yaml"][..], &["site.yaml", "--dry-run"]] {
        let (code, _, errors) = said(dir.path(), args, "");
        assert!(code == 1 && errors.contains("chasi-config.img: it exists already") && errors.contains("--force"), "{errors}");
    }
    assert_eq!(fs::read(&image).unwrap(), b"kept");
    fine(dir.path(), &["site.yaml", "--force"], "");
    let meta = fs::metadata(&image).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777, names(dir.path()).len()), (4 << 20, 0o600, 2));
    for target in [".", "/dev/null"] {
        let (code, _, errors) = said(dir.path(), &["site.yaml", "--force", "--output", target], "");
        assert!(code == 1 && errors.contains(&format!("writing {target}: ")) && errors.contains("dd if="), "{errors}");
    }
    let (code, _, errors) = said(dir.path(), &["site.yaml", "--output", "absent/x.img"], "");
    assert!(code == 1 && errors.contains("absent"), "{errors}");
}

#[test]
fn what_nodes_would_not_read_is_refused_and_what_they_would_wait_for_is_said() {
    let dir = folder();
    let long = format!("hostname: a\n#{}\n", "x".repeat(1 << 20));
    for (input, part) in [("# nothing\n", ""), ("{}\n", "no setting"), ("", "empty"), (long.as_str(), "1MiB")] {
        let (code, _, errors) = said(dir.path(), &["-"], input);
        assert!(code == 1 && errors.contains("standard input") && errors.contains(part), "{errors}");
    }
    fs::write(dir.path().join("latin1.yaml"), b"hostname: a # f\xfcr\n").unwrap();
    let (code, _, errors) = said(dir.path(), &["latin1.yaml"], "");
    assert!(code == 1 && errors.contains("not UTF-8"), "{errors}");
    for (input, waits) in [("nodes: {expected: 3}\n", true), ("nodes: {expected: 3}\ncluster: {role: founder}\n", false), ("hostname: a\n", false)] {
        let (text, errors) = fine(dir.path(), &["-", "--force"], input);
        assert_eq!(errors.contains("waits for one"), waits, "{errors}");
        assert!(!text.contains("like a key"), "{text}");
    }
}
