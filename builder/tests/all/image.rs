//! Whole images through the command line, from the shipped profile: outside tools find nothing, equal locks give equal bytes, a killed build
//! leaves nothing that looks finished, a flipped byte is named. The packages come from the store that `make image` fills.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{BIN, artifact, built, chasi_bod, cut, downloads_only, flip, good, node, only_child, partition, site, sums};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn outside_tools_find_nothing_wrong() {
    let folder = built();
    let (raw, qcow2) = (artifact(folder, "raw"), artifact(folder, "qcow2"));
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    good(Command::new("qemu-img").arg("check").arg(&qcow2));
    good(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]).args([&raw, &qcow2]));
    let verdict = String::from_utf8(good(Command::new("sgdisk").arg("-v").arg(&raw)).stdout).unwrap();
    assert!(verdict.contains("No problems found"), "{verdict}");

    let record: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("build.json")).unwrap()).unwrap();
    let root_hash = record["root"]["rootHash"].as_str().unwrap().trim_start_matches("sha256:").to_string();
    let part = |name: &str, length: Option<u64>| {
        let (offset, size) = partition(&raw, name);
        let path = scratch.path().join(name);
        cut(&raw, offset, length.unwrap_or(size), &path);
        path
    };
    let copied = scratch.path().join("copied");
    good(Command::new("bmaptool").args(["-q", "copy", "--bmap"]).arg(raw.with_extension("raw.bmap")).args([&raw, &copied]));
    good(Command::new("sgdisk").arg("--verify").arg(&copied));
    good(Command::new("fsck.fat").arg("-n").arg(part("esp", None)));
    let root = part("root-a", Some(record["root"]["size"].as_u64().unwrap()));
    good(Command::new("fsck.erofs").arg(&root));
    let tree = part("verity-a", None);
    good(Command::new("veritysetup").arg("verify").arg(&root).arg(&tree).arg(&root_hash));
    // The same tree by the outside tool, byte for byte.
    let dump = String::from_utf8(good(Command::new("veritysetup").arg("dump").arg(&tree)).stdout).unwrap();
    let field = |name: &str| dump.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_string();
    let again = scratch.path().join("again");
    let made = good(Command::new("veritysetup").arg("format").args(["--salt", &field("Salt:"), "--uuid", &field("UUID:")]).arg(&root).arg(&again));
    assert!(String::from_utf8(made.stdout).unwrap().contains(&root_hash));
    let theirs = fs::read(&again).unwrap();
    assert!(fs::read(&tree).unwrap().starts_with(&theirs), "the verity partition is not veritysetup's tree");
}

#[test]
fn records_name_every_input_and_sums_agree() {
    let folder = built();
    good(Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(folder));
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let record: serde_json::Value = serde_json::from_str(&read("build.json")).unwrap();
    let sbom: serde_json::Value = serde_json::from_str(&read("sbom.spdx.json")).unwrap();
    let packages = record["inputs"]["packages"].as_array().unwrap();
    assert!(packages.len() > 50 && packages.iter().all(|p| p["sha256"].as_str().is_some_and(|d| d.len() == 71)));
    let listed: Vec<_> = sbom["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(packages.iter().all(|p| listed.contains(&p["name"].as_str().unwrap())));
    let names: Vec<_> = sums(folder).into_iter().map(|(name, _)| name).collect();
    for name in ["build.json", "lock", "profile.resolved.yaml", "sbom.spdx.json", ".raw.bmap", ".qcow2"] {
        assert!(names.iter().any(|n| n.ends_with(name)), "{name} is not in SHA256SUMS");
    }
}

#[test]
fn nothing_changed_means_nothing_is_written() {
    let folder = built();
    let out = folder.parent().unwrap().parent().unwrap();
    let profile = out.parent().unwrap().join("minimal.yaml");
    let before = fs::metadata(artifact(folder, "raw")).unwrap();
    let said = good(chasi_bod(&["build", profile.to_str().unwrap(), "--format", "raw,qcow2", "--output"]).arg(out));
    assert!(String::from_utf8(said.stdout).unwrap().contains("unchanged"));
    let after = fs::metadata(artifact(folder, "raw")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn what_was_changed_in_a_finished_folder_is_made_again() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let profile = site(scratch.path());
    let build = || {
        let said = good(chasi_bod(&["build", profile.to_str().unwrap(), "--format", "qcow2", "--output"]).arg(scratch.path().join("out")));
        String::from_utf8(said.stdout).unwrap()
    };
    build();
    let folder = only_child(&scratch.path().join("out/minimal"));
    let before = sums(&folder);
    flip(&artifact(&folder, "qcow2"), 9_000_000);
    fs::remove_file(folder.join("sbom.spdx.json")).unwrap();
    assert!(build().contains("built"));
    assert_eq!(sums(&folder), before);
    good(&mut chasi_bod(&["verify", folder.to_str().unwrap()]));
    assert!(build().contains("unchanged"));
}

/// Runs as an ordinary user when the tests run as root; that user has a range of subordinate ids.
fn as_ordinary_user(dir: &Path, command: &[&str]) -> Command {
    if !rustix_is_root() {
        let mut own = Command::new(command[0]);
        own.args(&command[1..]);
        return own;
    }
    let user = "chasi-test";
    if !Command::new("id").arg(user).output().unwrap().status.success() {
        good(Command::new("useradd").args(["--create-home", user]));
    }
    good(Command::new("chown").args(["-R", user]).arg(dir));
    let mut other = Command::new("runuser");
    other.args(["-u", user, "--"]).args(command);
    other
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn b9_another_user_zone_locale_umask_folder_date_and_one_core_give_the_same_bytes() {
    let dir = tempfile::Builder::new().prefix("chasi-b9-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    site(dir.path());
    downloads_only(dir.path());
    // The user may not see the folder this test was built in.
    for (from, to) in [(PathBuf::from(BIN), "chasi-bod"), (node(), "chasi-bod-node"), (node().with_file_name("chasi-bod-init"), "chasi-bod-init")] {
        fs::copy(from, dir.path().join(to)).unwrap();
    }
    let script = "umask 077; cd \"$0\" && mkdir -p deep/er && cd deep/er && exec faketime -f +365d taskset -c 0 ../../chasi-bod build ../../minimal.yaml \
                  --locked --offline --format raw,qcow2 --output out --cache ../../store --node-binary ../../chasi-bod-node";
    let mut command = as_ordinary_user(dir.path(), &["sh", "-c", script, dir.path().to_str().unwrap()]);
    good(command.env("TZ", "Pacific/Kiritimati").env("LANG", "tr_TR.UTF-8").env("LC_ALL", "C").env_remove("CHASI_BOD_CACHE"));
    let folder = only_child(&dir.path().join("deep/er/out/minimal"));
    let artifacts = |folder: &Path| sums(folder).into_iter().filter(|(name, _)| name.starts_with("minimal-")).collect::<Vec<_>>();
    // The QCOW2 and the raw image's block map, which has a digest of every range of data; what is no data is length.
    assert_eq!(artifacts(&folder).len(), 2);
    assert_eq!(artifacts(&folder), artifacts(built()));
    assert_eq!(fs::metadata(artifact(&folder, "raw")).unwrap().len(), fs::metadata(artifact(built(), "raw")).unwrap().len());
}

/// Row D2 on whole artifacts: `verify` exits with 1 and names the partition.
#[test]
fn d2_a_flipped_byte_in_each_partition_is_named() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = built();
    let raw = artifact(folder, "raw");
    let copy = scratch.path().join(raw.file_name().unwrap());
    good(Command::new("cp").arg("--sparse=always").args([&raw, &copy]));
    fs::copy(folder.join("build.json"), scratch.path().join("build.json")).unwrap();
    good(chasi_bod(&["verify", copy.to_str().unwrap()]).env("LC_ALL", "C"));
    for name in ["esp", "bios", "root-a", "verity-a"] {
        let (offset, _) = partition(&copy, name);
        let at = offset + 5000;
        flip(&copy, at);
        let said = chasi_bod(&["verify", copy.to_str().unwrap()]).output().unwrap();
        flip(&copy, at);
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(name), "{name}: {text}");
    }
}

/// Row D1: ends a build at `times` moments spread over its duration, by Ctrl-C, politely or at once; what has a final name is whole, and a
/// rerun succeeds and leaves nothing beside it.
fn kill_builds(times: u32) {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let profile = site(scratch.path());
    let out = scratch.path().join("out");
    let store = downloads_only(scratch.path());
    let command = || {
        let mut command = chasi_bod(&["build", profile.to_str().unwrap(), "--format", "raw,qcow2", "--quiet", "--output"]);
        command.env("CHASI_BOD_CACHE", &store).arg(&out);
        command
    };
    // One that ends while packages are unpacked and configured; the next goes on from what it has put into the store.
    let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let _ = kill_process(Pid::from_child(&child), Signal::TERM);
    child.wait().unwrap();
    good(&mut command());
    let _ = fs::remove_dir_all(&out);
    let started = std::time::Instant::now();
    good(&mut command());
    let whole = started.elapsed();
    for turn in 0..times {
        let _ = fs::remove_dir_all(&out);
        let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(f64::from(turn + 1) / f64::from(times + 1)) + Duration::from_millis(u64::from(turn % 7)));
        let signal = [Signal::KILL, Signal::TERM, Signal::INT][turn as usize % 3];
        // One that has ended by itself has left nothing to kill.
        let _ = kill_process(Pid::from_child(&child), signal);
        let finished = child.wait().unwrap().success();
        let shown =
            fs::read_dir(out.join("minimal")).into_iter().flatten().flatten().filter(|e| !e.file_name().to_string_lossy().starts_with('.')).count();
        // A build that got to its end before the kill has its folder, whole; any other has none.
        assert_eq!(shown > 0, finished || out.join("minimal").join("0.1.0/build.json").exists(), "turn {turn}: a folder that looks finished");
        if shown > 0 {
            good(&mut chasi_bod(&["verify", out.join("minimal/0.1.0").to_str().unwrap()]));
        }
    }
    fs::create_dir_all(out.join("minimal/.0.0.9.partial")).unwrap();
    fs::write(store.join("tmp/left"), b"x").unwrap();
    let _ = fs::remove_dir_all(out.join("minimal/0.1.0"));
    // Scratch goes with the next command once nobody holds it: a sandbox of the killed build may end a moment after it.
    File::open(&store).unwrap().lock().unwrap();
    fs::read_dir(store.join("tmp")).unwrap().for_each(|scratch| File::open(scratch.unwrap().path()).unwrap().lock().unwrap());
    good(&mut command());
    assert_eq!(only_child(&out.join("minimal")), out.join("minimal/0.1.0"));
    let left: Vec<_> = fs::read_dir(store.join("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "scratch of killed builds is left: {left:?}");
    good(&mut chasi_bod(&["verify", out.join("minimal/0.1.0").to_str().unwrap()]));
}

#[test]
fn d1_three_killed_builds_leave_nothing_that_looks_finished() {
    kill_builds(3);
}

#[test]
#[ignore = "soak: fifty kills"]
fn soak_d1_fifty_killed_builds_leave_nothing_that_looks_finished() {
    kill_builds(50);
}

/// Row A8: sizes that cannot work are said before anything is fetched or written.
#[test]
fn a8_a_disk_too_small_is_refused_before_any_download() {
    let scratch = tempfile::tempdir().unwrap();
    let profile = scratch.path().join("small.yaml");
    fs::write(&profile, "name: small\nversion: 1.0.0\nlayers: [boot, os, toolchain]\ndisk:\n  size: 4GiB\n").unwrap();
    let said = chasi_bod(&["build", profile.to_str().unwrap(), "--output"]).arg(scratch.path().join("out")).output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("4GiB") && text.contains("disk"), "{text}");
    assert!(!scratch.path().join("out").exists() && !scratch.path().join("small.lock").exists());
}

/// Row A1 on the command line: a misspelt layer is named at its place, and nothing is written.
#[test]
fn a1_a_misspelt_layer_is_named_at_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let profile = scratch.path().join("site.yaml");
    fs::write(&profile, "name: site\nversion: 1.0.0\nlayers: [boot, oss]\n").unwrap();
    let said = chasi_bod(&["build", profile.to_str().unwrap(), "--output"]).arg(scratch.path().join("out")).output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("site.yaml:3:16: there is no layer `oss`") && text.contains("did you mean `os`?"), "{text}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}
