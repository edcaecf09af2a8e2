//! `chasi-bod diag` on a folder that looks like a node of a cluster, whose programs are scripts: what is in the bundle, and that no secret is.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// One for each place that is read or could be read; none is a substring of another.
const CANARIES: [&str; 12] = [
    "canary-cluster-secret-0123456789",
    "canary-own-secret-abcdefghij0123",
    "Y2FuYXJ5LWVuY3J5cHRpb24ta2V5LTAwMDA=",
    "$6$canarysalt$canaryhashcanaryhash",
    "canary-url-password",
    "canary-url-query",
    "canary-kubeconfig-key",
    "canary-helm-value",
    "canary-of-a-component",
    "canary-pem-line",
    "canary-audit-line",
    "c4n4ry.0123456789abcdef",
];

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn script(root: &Path, name: &str, body: &str) {
    put(root, &format!("usr/bin/{name}"), &format!("#!/bin/sh\n{body}\n"));
    std::fs::set_permissions(root.join("usr/bin").join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn files(root: &Path) {
    let [secret, own, encryption, hash, password, query, key, ..] = CANARIES;
    put(root, "usr/lib/chasi-bod/kubernetes/kubeadm.yaml", "");
    put(
        root,
        "usr/lib/chasi-bod/image.json",
        r#"{"name":"m","version":"1.2.3","epoch":0,"hostname":"n","network":{},"disk":{},"time":{},"console":{}}"#,
    );
    put(root, "etc/hostname", "node-1\n");
    put(root, "etc/os-release", "NAME=test\n");
    put(root, "etc/shadow", &format!("root:{hash}:1::::::\n"));
    put(root, "etc/kubernetes/admin.conf", &format!("users:\n- user: {{client-key-data: {key}}}\n"));
    put(root, "etc/kubernetes/pki/ca.key", "-----BEGIN PRIVATE KEY-----\ncanary-pem-line\n-----END PRIVATE KEY-----\n");
    put(
        root,
        "etc/kubernetes/chasi-bod/encryption.yaml",
        &format!(r#"{{"resources":[{{"providers":[{{"secretbox":{{"keys":[{{"secret":"{encryption}"}}]}}}}]}}]}}"#),
    );
    put(root, "var/log/kubernetes/audit.log", "canary-audit-line\n");
    put(root, "var/lib/chasi-bod/cluster-secret", &format!("{own}\n"));
    let url = format!("https://me:{password}@host/x?{query}");
    let items = format!(r#"[{{"key":"cluster.secret","value":"{secret}","source":"d"}},{{"key":"url","value":"{url}","source":"d"}}]"#);
    put(root, "var/lib/chasi-bod/config.json", &format!(r#"{{"sources":{{"disk CHASI":{items}}}}}"#));
    let status = r#"{"name":"m","version":"1.2.3","contentId":"","slot":"a","hostname":"node-1","addresses":[],"ready":true,"steps":[STEP]}"#;
    let step =
        format!(r#"{{"name":"config","state":"failed","since":1.0,"detail":"for {url} with {secret} and c4n4ry.0123456789abcdef","hint":null}}"#);
    put(root, "run/chasi-bod/status.json", &status.replace("STEP", &step));
    put(root, "run/chasi-bod/metrics/node.prom", "chasi_bod_node_ready 1\n");
    for file in ["meminfo", "loadavg", "pressure/cpu", "pressure/memory", "pressure/io", "self/mounts"] {
        put(root, &format!("proc/{file}"), &format!("{file}\n"));
    }
}

/// Programs that say as many secrets as they can.
fn programs(root: &Path) {
    let all = CANARIES[..6].join(" ");
    for name in ["uname", "uptime", "df", "free", "ps", "systemctl", "ip", "ss", "timedatectl", "nft"] {
        script(root, name, &format!("echo '{name}' \"$@\"; echo '{all}'"));
    }
    let journal = "Jan 1 n a[1]: -----BEGIN EC PRIVATE KEY-----\nJan 1 n a[1]: canary-pem-line\nJan 1 n a[1]: -----END EC PRIVATE KEY-----\n\
                   Jan 1 n a[1]: helm: got canary-of-a-component, password=canary-helm-value\nJan 1 n a[1]: the end";
    script(
        root,
        "journalctl",
        &format!("case \"$*\" in *kubelet*) echo 'no journal: token=canary-url-password' >&2; exit 3;; esac\ncat <<'E'\n{journal} {all}\nE"),
    );
    script(root, "crictl", "echo first; sleep 60");
    // `get secrets` is asked for only to know what to take out; a bundle with its output has the canary in base64.
    let secrets = r#"{"items":[{"metadata":{"name":"db"},"data":{"values.yaml":"ZGI6CiAgcGFzc3dvcmQ6IGNhbmFyeS1vZi1hLWNvbXBvbmVudAo="}}]}"#;
    let objects = r#"{"items":[{"metadata":{"name":"web","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"canary-helm-value"}},
        "spec":{"values":{"words":["canary-helm-value"]},"valuesFrom":[{"secret":"db"}]},"status":{"phase":"ERROR","failure":{"message":"got canary-of-a-component"}}}]}"#;
    let body = format!(
        "[ -e \"$KUBECONFIG\" ] || exit 9\ncase \"$*\" in\n*secrets*) echo '{secrets}';;\n*'-o json') cat <<'E'\n{objects}\nE\n;;\n*) echo kubectl \"$@\"; cat \"$KUBECONFIG\";;\nesac"
    );
    script(root, "kubectl", &body);
}

fn diag(root: &Path, here: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chasi-bod-node")).current_dir(here).arg("--root").arg(root).arg("diag").args(args).output().unwrap()
}

/// Names and texts of a bundle in their order, without the folder that they are in.
fn read(bundle: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bundle));
    let entry = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry: tar::Entry<'_, flate2::read::GzDecoder<&[u8]>> = entry.unwrap();
        let (name, mut text) = (entry.path().unwrap().to_string_lossy().into_owned(), String::new());
        assert_eq!(entry.header().mode().unwrap(), 0o600);
        entry.read_to_string(&mut text).unwrap();
        (name.split_once('/').unwrap().1.to_string(), text)
    };
    archive.entries().unwrap().map(entry).collect()
}

#[test]
fn f6_a_bundle_has_everything_but_secrets_and_names_what_is_missing() {
    let (node, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    files(node.path());
    programs(node.path());
    let begun = Instant::now();
    let said = diag(node.path(), here.path(), &["--limit", "8"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(begun.elapsed() < Duration::from_secs(16), "a program that never ends is asked once, not three times");
    let path = String::from_utf8(said.stdout).unwrap();
    assert!(path.starts_with("diag-node-1-2") && path.ends_with("Z.tar.gz\n"), "{path}");
    let path = here.path().join(path.trim());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let entries = read(&std::fs::read(&path).unwrap());
    let text = |name: &str| entries.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1.as_str();
    for (name, text) in &entries {
        for canary in CANARIES {
            assert!(!text.contains(canary), "{name} has {canary}:\n{text}");
        }
        assert!(!text.contains("ZGI6CiAg"), "{name} has a Secret:\n{text}");
    }
    assert!(text("versions").contains("image m 1.2.3") && text("node/metrics").contains("chasi_bod_node_ready 1"));
    assert!(
        text("node/status.json").contains("\"for https://(redacted)host/x?(redacted) with (redacted) and (redacted)\""),
        "{}",
        text("node/status.json")
    );
    assert!(text("logs/containerd").contains("the end") && text("network/nft").starts_with("nft list ruleset\n"));
    assert!(text("cluster/pods").starts_with("kubectl get pods -A -o wide\n"));
    assert!(text("platform/components.chasi-bod.io.yaml").contains("got (redacted)"), "{}", text("platform/components.chasi-bod.io.yaml"));
    // What there was before the time was over is there, and the next ones are left out.
    assert_eq!((text("runtime/pods"), entries.iter().any(|(name, _)| name == "runtime/images")), ("first\n", false));
    let errors = text("errors.txt");
    for line in [
        "node/settings: the agent has not published any",
        "runtime/pods: `crictl pods` did not end within 8 s",
        "runtime/images: left out: crictl did not answer before",
        "cluster/releases: starting `",
        "no journal: token=(redacted)",
    ] {
        assert!(errors.contains(line), "{line}\n{errors}");
    }
    assert_eq!(entries.last().unwrap().0, "errors.txt");

    let listed = String::from_utf8(diag(node.path(), here.path(), &["--dry-run"]).stdout).unwrap();
    let listed: Vec<_> = listed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let found: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let missing = ["node/settings", "runtime/containers", "runtime/images", "cluster/releases", "errors.txt"];
    let common =
        |names: &[&'static str], list: &[&str]| list.iter().filter(|name| !names.contains(name)).map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(common(&missing, &found), common(&missing, &listed), "the order is the list's");
    assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 1, "--dry-run writes nothing");
}

#[test]
fn a_node_that_has_nothing_gives_a_bundle_too_on_standard_output_and_no_file_is_written_over() {
    let (node, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let said = diag(node.path(), here.path(), &["-"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let entries = read(&said.stdout);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert!(entries[0].1.contains("node/status.json: reading /run/chasi-bod/status.json: no such file"), "{}", entries[0].1);
    assert!(!entries[0].1.contains("cluster/"), "this image has no cluster: {}", entries[0].1);
    put(here.path(), "there", "mine");
    let refused = diag(node.path(), here.path(), &["there"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("writing there: "));
    assert_eq!(std::fs::read_to_string(here.path().join("there")).unwrap(), "mine");
}
