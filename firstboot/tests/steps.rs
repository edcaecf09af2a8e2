//! The agent as a process of its own on a folder that looks like a machine: what it makes, that a second run changes nothing, and that a
//! kill at any point converges (FAULTS F1).

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8e1RkDLYBSVWxcLqJbPKB8YI9cI5WxdgVFYkA0kD0n me";
const IMAGE: &str = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"node-{mac}","network":{},"time":{"zone":"Europe/Berlin"},"console":{},
    "disk":{"mounts":[{"path":"/srv/data","disk":"serial == 'data'"}]}}"#;

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A machine with one card, an empty second disk, a CHASI medium and the real ssh-keygen and mke2fs.
fn machine() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    put(root, "usr/lib/chasi-bod/image.json", IMAGE);
    put(root, "usr/share/zoneinfo/Europe/Berlin", "x");
    put(root, "proc/cmdline", "roothash=abcdef0123456789 chasi.slot=a");
    put(root, "proc/uptime", "3.21 1.00\n");
    put(root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    put(root, "etc/shadow", "root::1::::::\n");
    put(root, "sys/class/net/ens3/address", "52:54:00:12:34:56\n");
    put(root, "sys/class/net/ens3/device/x", "");
    put(root, "sys/class/block/vdb/size", "32768\n");
    put(root, "sys/class/block/vdb/serial", "data\n");
    put(root, "dev/vdb", "");
    std::fs::File::options().write(true).open(root.join("dev/vdb")).unwrap().set_len(16 << 20).unwrap();
    put(root, "volumes/CHASI/chasi-bod.yaml", &format!("sshKeys: [{KEY}]\ntime: {{servers: [ntp.example]}}\n"));
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    symlink("/usr/bin/ssh-keygen", root.join("usr/bin/ssh-keygen")).unwrap();
    let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    symlink(mke2fs, root.join("usr/bin/mke2fs")).unwrap();
    dir
}

fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chasi-bod-node"));
    command.arg("--root").arg(root).args(args).stdin(Stdio::null());
    command
}

fn agent(root: &Path, fuse: Option<u32>) -> Output {
    let mut command = command(root, &["agent", "--once"]);
    command.args(fuse.map(|n| format!("--fuse={n}")));
    command.output().unwrap()
}

/// Everything the agent makes, but for what is random: of keys only that they are whole.
fn result(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("etc"), root.join("var")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                found.insert(name, (0, std::fs::read_link(&path).unwrap().to_string_lossy().into_owned().into_bytes()));
            } else {
                let bytes = std::fs::read(&path).unwrap();
                let bytes = if name.contains("ssh_host_") { bytes[..10].to_vec() } else { bytes };
                found.insert(name, (entry.metadata().unwrap().permissions().mode() & 0o7777, bytes));
            }
        }
    }
    found
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_first_run_makes_everything_and_a_second_changes_nothing() {
    let dir = machine();
    let first = text(&agent(dir.path(), None));
    let lines: Vec<_> = first.lines().collect();
    assert_eq!(lines.last(), Some(&"chasi-bod: 3.2 ready"), "{first}");
    assert!(lines.contains(&"chasi-bod: 3.2 identity done node-525400123456"), "{first}");
    let made = result(dir.path());
    assert_eq!(made["etc/hostname"].1, b"node-525400123456\n");
    assert_eq!(made["etc/shadow"].1, b"root:!*:1::::::\n");
    assert_eq!(made["etc/localtime"].1, b"/usr/share/zoneinfo/Europe/Berlin");
    assert_eq!(made["etc/ssh/authorized_keys.d/root"], (0o644, format!("{KEY}\n").into_bytes()));
    assert_eq!((made["etc/ssh/ssh_host_ed25519_key"].0, made["etc/ssh/ssh_host_ecdsa_key"].0), (0o600, 0o600));
    assert!(made.contains_key("etc/systemd/network/50-chasi-bod-00-lan.network") && made.contains_key("etc/systemd/system/srv-data.mount"));
    assert!(String::from_utf8_lossy(&made["etc/systemd/timesyncd.conf.d/50-chasi-bod.conf"].1).contains("NTP=ntp.example\n"));

    let keys = std::fs::read(dir.path().join("etc/ssh/ssh_host_ed25519_key")).unwrap();
    let second = text(&agent(dir.path(), None));
    assert_eq!(second.matches(" unchanged").count(), 5, "{second}");
    assert_eq!(result(dir.path()), made);
    assert_eq!(std::fs::read(dir.path().join("etc/ssh/ssh_host_ed25519_key")).unwrap(), keys);

    let status = command(dir.path(), &["status", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&json["contentId"], &json["slot"], &json["ready"]), (&"abcdef0123456789".into(), &"a".into(), &true.into()));
    let shown = text(&command(dir.path(), &["config", "show"]).output().unwrap());
    assert!(shown.contains("ntp.example") && shown.contains("(disk CHASI: chasi-bod.yaml:2)"), "{shown}");
}

#[test]
fn two_machines_of_one_image_differ_in_host_keys_d8() {
    let keys = [machine(), machine()].map(|dir| {
        agent(dir.path(), None);
        std::fs::read(dir.path().join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap()
    });
    assert!(!keys[0].is_empty() && keys[0] != keys[1]);
}

#[test]
fn f1_a_power_cut_at_every_change_converges() {
    let whole = machine();
    agent(whole.path(), None);
    let wanted = result(whole.path());
    let mut cuts = 0;
    for fuse in 0.. {
        let dir = machine();
        if agent(dir.path(), Some(fuse)).status.success() {
            break;
        }
        cuts += 1;
        let again = agent(dir.path(), None);
        assert!(text(&again).ends_with(" ready\n"), "after {fuse} changes: {}", text(&again));
        let got = result(dir.path());
        let differs: Vec<_> = got.keys().chain(wanted.keys()).filter(|path| got.get(*path) != wanted.get(*path)).collect();
        assert!(differs.is_empty(), "after {fuse} changes: {differs:?}");
    }
    assert!(cuts >= 33, "only {cuts} points");
}

#[test]
fn f1_kills_at_any_time_converge() {
    let whole = machine();
    agent(whole.path(), None);
    let wanted = result(whole.path());
    let dir = machine();
    for delay in 0..30 {
        let mut child = command(dir.path(), &["agent", "--once"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(text(&agent(dir.path(), None)).ends_with(" ready\n"));
    assert_eq!(result(dir.path()), wanted);
}

#[test]
fn f3_a_bad_field_is_shown_and_everything_else_is_done() {
    let dir = machine();
    put(dir.path(), "volumes/CHASI/chasi-bod.yaml", "hostname: a_b\nconsole: {passwordHash: hunter2}\ntime: {servers: [ntp.example]}\n");
    let output = text(&agent(dir.path(), None));
    assert!(output.contains("config failed disk CHASI: chasi-bod.yaml:2: console.passwordHash:"), "{output}");
    assert!(output.contains("disk CHASI: chasi-bod.yaml:1: hostname:") && !output.contains("hunter2") && !output.contains(" ready"), "{output}");
    assert_eq!(result(dir.path())["etc/shadow"].1, b"root:!*:1::::::\n");
    assert_eq!(command(dir.path(), &["status"]).output().unwrap().status.code(), Some(3));
}

#[test]
fn a_setting_that_is_taken_back_takes_its_files_with_it() {
    let dir = machine();
    agent(dir.path(), None);
    put(dir.path(), "volumes/CHASI/chasi-bod.yaml", "network: {interfaces: [{name: a, match: {name: ens3}, addresses: [10.0.0.2/24]}]}\n");
    agent(dir.path(), None);
    let made = result(dir.path());
    assert!(!made.contains_key("etc/ssh/authorized_keys.d/root") && !made.contains_key("etc/systemd/network/50-chasi-bod-00-lan.network"));
    assert!(made.contains_key("etc/systemd/network/50-chasi-bod-00-a.network"));
}
