//! Backups of a control plane that is etcd and an API server: made while both work, checked, and brought back by etcd's own tool. What kubeadm and the
//! kubelet have to do with it is shown on booted machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::apart::NODE;
use crate::bench::{Bench, member};
use crate::programs::{programs, run};
use crate::verbs::{chasi_bod, good};

const SECRET: &str = "0123456789abcdefghijklmnopqrstuvwxyz";
const FOLDER: &str = "root/var/lib/chasi-bod/backups";
const VOLUME: &str = "var/lib/chasi-bod/volumes/pvc-1_vcluster-biz_data-biz-0";

/// A store as a virtual cluster's, that nobody has closed: what is in it is in its log only.
const STORE: &str = "import sqlite3,sys,os
os.makedirs(sys.argv[1]+'/pki')
open(sys.argv[1]+'/pki/a','w').write('a')
c=sqlite3.connect(sys.argv[1]+'/state.db'); c.execute('pragma journal_mode=wal'); c.execute('create table t(n)')
c.execute('insert into t values(7)'); c.commit(); os._exit(0)
";

/// What a node has beside what the bench lays.
fn lay(bench: &Bench) {
    let put = |path: &str, bytes: &[u8]| {
        let path = bench.path("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for name in ["ca.crt", "ca.key", "etcd/ca.crt", "etcd/ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"] {
        put(&format!("etc/kubernetes/pki/{name}"), &fs::read(bench.path("pki").join(name)).unwrap());
    }
    put("etc/kubernetes/chasi-bod/encryption.yaml", b"keys\n");
    put("var/lib/chasi-bod/cluster-secret", SECRET.as_bytes());
    put("var/lib/chasi-bod/cluster.json", br#"{"node":"node","address":"127.0.0.1"}"#);
    run(Command::new("python3").args(["-c", STORE]).arg(bench.path("root").join(VOLUME)));
    std::os::unix::fs::symlink(programs().join("etcdutl"), bench.path("root/usr/bin/etcdutl")).unwrap();
}

fn backups(bench: &Bench) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(bench.path(FOLDER)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Copies of the backup that are wrong in one way each, and what is said of them.
async fn what_is_damaged_is_named(bench: &Bench, backup: &Path) {
    let whole = fs::read(backup).unwrap();
    let bad = bench.path("bad.age");
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    for (bytes, said) in [
        (whole[..whole.len() / 2].to_vec(), "it is damaged, or cut off"),
        (whole[..whole.len() - 1].to_vec(), "it is damaged, or cut off"),
        (whole[..60].to_vec(), "its header has no end"),
        (Vec::new(), "its header has no end"),
        (flipped(whole.len() / 2), "it is damaged, or cut off"),
        (flipped(whole.len() - 1), "it is damaged, or cut off"),
        (flipped(40), "none of the keys at hand opens it"),
        (b"hello\nworld\n".to_vec(), "it does not begin as a file of age"),
    ] {
        fs::write(&bad, bytes).unwrap();
        for verb in ["backup verify", "restore --replace"] {
            let (_, error, fine) = chasi_bod(bench, &format!("{verb} {}", bad.display())).await;
            assert!(!fine && error.contains("bad.age") && error.contains(said), "{verb}: {said}: {error}");
        }
    }
    assert!(!bench.path("root/var/lib/chasi-bod/restoring").exists(), "nothing was begun");
    fs::write(bench.path("root/var/lib/chasi-bod/cluster-secret"), "another-0123456789abcdefghijklmnopqrstuvwxyz").unwrap();
    let (_, error, fine) = chasi_bod(bench, "backup verify").await;
    assert!(!fine && error.contains("none of the keys at hand opens it") && error.contains("--identity"), "{error}");
    assert!(!error.contains("another-") && good(bench, "backup list").await.contains("cannot be read"), "{error}");
    fs::write(bench.path("root/var/lib/chasi-bod/cluster-secret"), SECRET).unwrap();
}

/// With the key that is printed, Debian's programs alone open a backup.
async fn others_open_it(bench: &Bench, backup: &Path) {
    let key = bench.path("key");
    fs::write(&key, good(bench, "backup key").await).unwrap();
    let script = "age --decrypt -i \"$1\" \"$2\" | zstd -dc | tar -xC \"$3\"";
    let to = bench.path("opened");
    fs::create_dir(&to).unwrap();
    run(Command::new("sh").args(["-c", script, "sh"]).args([&key, &backup.to_path_buf(), &to]));
    let manifest: Value = serde_json::from_slice(&fs::read(to.join("manifest.json")).unwrap()).unwrap();
    let status = run(Command::new(programs().join("etcdutl")).args(["snapshot", "status", "-w", "json"]).arg(to.join("etcd/snapshot.db")));
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["revision"], manifest["revision"], "{status} {manifest}");
    assert_eq!(fs::read(to.join("etc/kubernetes/pki/ca.key")).unwrap(), fs::read(bench.path("pki/ca.key")).unwrap());
    let read = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute('select n from t').fetchall())";
    assert_eq!(run(Command::new("python3").args(["-c", read]).arg(to.join(VOLUME).join("state.db"))), b"[(7,)]\n");
    assert!(to.join(VOLUME).join("pki/a").exists() && !to.join(VOLUME).join("state.db-shm").exists());
    // The same key in a file, where the secret is another one.
    fs::write(bench.path("root/var/lib/chasi-bod/cluster-secret"), "another-0123456789abcdefghijklmnopqrstuvwxyz").unwrap();
    good(bench, &format!("backup verify --identity {}", key.display())).await;
    fs::write(bench.path("root/var/lib/chasi-bod/cluster-secret"), SECRET).unwrap();
}

/// Killed at any moment, a run leaves the backups that there were, and the next one is whole.
async fn killed_runs_lose_nothing(bench: &Bench) {
    let before = backups(bench);
    for milliseconds in (20..=400).step_by(40) {
        let mut run = Command::new(env!("CARGO_BIN_EXE_chasi-bod-node"));
        let mut child = run.arg("--root").arg(bench.path("root")).args(["backup", "run"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        assert!(before.iter().all(|backup| backup.exists()));
    }
    for backup in backups(bench).iter().filter(|path| path.extension().is_some()) {
        good(bench, &format!("backup verify {}", backup.display())).await;
    }
}

/// A disk without room is named before anything is written; what lies there stays.
async fn a_full_disk_is_named(bench: &Bench) {
    let folder = bench.path(FOLDER);
    let aside = folder.with_extension("aside");
    fs::rename(&folder, &aside).unwrap();
    fs::create_dir(&folder).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8M", "none"]).arg(&folder));
    fs::write(folder.join("0-n-20200101T000000Z.age"), "old").unwrap();
    let (_, error, fine) = chasi_bod(bench, "backup run").await;
    assert!(!fine && error.contains("making a backup: its disk has 7 MiB left") && error.contains("nothing was changed"), "{error}");
    assert_eq!(backups(bench).len(), 1, "{:?}", backups(bench));
    run(Command::new("umount").arg(&folder));
    fs::remove_dir(&folder).unwrap();
    fs::rename(aside, folder).unwrap();
}

async fn words(bench: &Bench) -> Api<ConfigMap> {
    let maps = Api::<ConfigMap>::namespaced(bench.client.clone(), "default");
    for n in 0..50 {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": format!("n{n}")}, "data": {"n": n.to_string()}})).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    maps
}

/// Etcd of the backup in the place of the one that there was, at the same addresses.
async fn bring_back(bench: &mut Bench, backup: &Path, before: u64) {
    bench.stop_api();
    bench.stop_etcd();
    let said = good(bench, &format!("restore --replace {}", backup.display())).await;
    assert!(said.contains("the agent brings it back now"), "{said}");
    // What the agent does then, with the names of the bench.
    let staged = bench.path("root/var/lib/chasi-bod/restoring/etcd/snapshot.db");
    let args =
        ["snapshot", "restore", "--name=node", "--initial-cluster=node=http://127.0.0.1:2380", "--bump-revision=1000000000", "--mark-compacted"];
    let peers = "--initial-advertise-peer-urls=http://127.0.0.1:2380";
    let data = bench.path("etcd-back");
    run(Command::new(programs().join("etcdutl")).args(args).arg(peers).arg("--data-dir").arg(&data).arg(staged));
    let folder = bench.path("");
    let child = member(&folder, "back", 2379, &format!(",http://{NODE}:2379"), &["--name=node", "--initial-cluster=node=http://127.0.0.1:2380"]);
    bench.use_etcd(child);
    bench.start_api().await;
    let list = Api::<ConfigMap>::namespaced(bench.client.clone(), "default").list(&Default::default()).await.unwrap();
    let revision: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
    assert!(revision >= before + 1_000_000_000, "{revision} {before}");
}

pub async fn all(mut bench: Bench) {
    lay(&bench);
    let maps = words(&bench).await;
    let uid = Api::<Namespace>::all(bench.client.clone()).get("kube-system").await.unwrap().metadata.uid;
    let (made, said, fine) = chasi_bod(&bench, "backup run").await;
    assert!(fine && said.contains("its key is nowhere but on this machine"), "{said}");
    let backup = PathBuf::from(made.trim());
    let bytes = fs::read(&backup).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1\n-> X25519 "));
    let told: Value = serde_json::from_str(&good(&bench, "backup verify --json").await).unwrap();
    assert_eq!((told["uid"].as_str(), &told["virtualClusters"], told["node"].as_str()), (uid.as_deref(), &json!(["biz"]), Some("node")));
    let listed = good(&bench, "backup list").await;
    assert!(listed.contains("biz") && listed.contains(backup.file_stem().unwrap().to_str().unwrap()), "{listed}");
    what_is_damaged_is_named(&bench, &backup).await;
    others_open_it(&bench, &backup).await;
    killed_runs_lose_nothing(&bench).await;
    a_full_disk_is_named(&bench).await;

    let (_, error, fine) = chasi_bod(&bench, "restore").await;
    assert!(!fine && error.contains("a part of this very cluster, which would be given up") && error.contains("--replace"), "{error}");
    let said = good(&bench, "restore --replace --dry-run").await;
    assert!(said.contains("nothing was changed") && !bench.path("root/var/lib/chasi-bod/restoring").exists(), "{said}");
    fs::write(bench.path("root/etc/hostname"), "other\n").unwrap();
    let (_, error, fine) = chasi_bod(&bench, "restore --replace").await;
    assert!(!fine && error.contains("it is of node node, this one is other") && error.contains("hostname=node"), "{error}");
    fs::write(bench.path("root/etc/hostname"), "node\n").unwrap();

    // What comes after the backup is not in it.
    maps.delete("n7", &Default::default()).await.unwrap();
    let before: u64 = told["revision"].as_u64().unwrap();
    bring_back(&mut bench, &backup, before).await;
    let list = maps.list(&Default::default()).await.unwrap();
    let found: Vec<_> = list.items.iter().filter_map(|map| map.data.as_ref()?.get("n").cloned()).collect();
    assert_eq!(found.len(), 50, "{found:?}");
    assert_eq!(Api::<Namespace>::all(bench.client.clone()).get("kube-system").await.unwrap().metadata.uid, uid);
    bench.stop_api();
    bench.stop_etcd();
}
