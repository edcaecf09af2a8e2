//! Row D1 of the fault list: whatever ends the writing of an artifact, no file with a final name is left, and the next try succeeds. The
//! victim is this test program itself, started again for the test `victim`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use builder::disk::{Disk, ReadAt};
use builder::emit::{OutputFormat, emit, open};
use builder::fs::fat;
use layers::units::Bytes;

use crate::common::machine;

const SIZE: usize = 24 << 20;
const DIR: &str = "CHASI_BOD_TEST_DIR";
const FORMAT: &str = "CHASI_BOD_TEST_FORMAT";

fn disk() -> Disk {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut disk = Disk::new(1 << 30);
    disk.put(1 << 20, Arc::new((0..SIZE).map(|_| next()).collect::<Vec<u8>>())).unwrap();
    disk
}

/// Not a test of its own: writes the disk where the environment says.
#[test]
#[ignore = "started by the other tests"]
fn victim() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let path = Path::new(&dir).join("artifact");
    let result = match std::env::var(FORMAT).unwrap().as_str() {
        "fat" => make_fat(Path::new(&dir)),
        format => emit(format.parse().unwrap(), &disk(), &machine(), &path),
    };
    if let Err(error) = result {
        println!("said: {error}; fault {:?}; left {}", error.fault(), std::fs::read_dir(&dir).unwrap().count());
        std::process::exit(3);
    }
}

fn make_fat(dir: &Path) -> layers::Result<()> {
    let options = fat::Options { kind: fat::FatKind::Fat32, size: Bytes::mib(64), label: "CHASI".into(), serial: 7, epoch: 0, offset: 0 };
    let files = [("slot-a/vmlinuz".to_string(), Arc::new(vec![1_u8; SIZE]) as Arc<dyn ReadAt>)].into();
    fat::build(&options, &files, dir).map(|_| ())
}

fn victim_command(program: &str, dir: &Path, format: &str) -> Command {
    let mut command = Command::new(program);
    command.env(DIR, dir).env(FORMAT, format).stderr(Stdio::null());
    command
}

const VICTIM: [&str; 5] = ["--ignored", "--exact", "emit_faults::victim", "--nocapture", "--test-threads=1"];

fn is_whole(path: &Path) -> bool {
    let (disk, back) = (disk(), open(path).unwrap().1);
    let (mut ours, mut theirs) = (vec![0; SIZE + (2 << 20)], vec![0; SIZE + (2 << 20)]);
    disk.read_at(&mut ours, 0).unwrap();
    back.read_at(&mut theirs, 0).unwrap();
    back.len() == disk.len() && ours == theirs
}

#[test]
fn d1_killed_at_any_time_leaves_a_whole_file_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifact");
    let program = std::env::current_exe().unwrap().display().to_string();
    let start = |round: u32| {
        victim_command(&program, dir.path(), ["raw", "raw.zst", "qcow2", "vmdk", "ova", "vma.zst", "iso"][round as usize % 7])
            .args(VICTIM)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let begun = Instant::now();
    assert!(start(0).wait().unwrap().success());
    let whole = begun.elapsed();
    std::fs::remove_file(&path).unwrap();
    let mut killed = 0;
    for round in 0..150 {
        let mut child = start(round);
        std::thread::sleep(whole * round / 150);
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if path.exists() {
            assert!(is_whole(&path), "round {round}");
            std::fs::remove_file(&path).unwrap();
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().count() <= 1, "unfinished files pile up");
    }
    assert!(killed >= 20, "only {killed} were killed before they were done");
    for format in OutputFormat::ALL {
        emit(format, &disk(), &machine(), &path).unwrap();
        assert!(is_whole(&path) && std::fs::read_dir(dir.path()).unwrap().count() == 1);
    }
}

#[test]
fn d1_a_full_disk_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap().display().to_string();
    for round in 0..56 {
        let format = ["raw", "raw.zst", "qcow2", "vmdk", "ova", "vma.zst", "iso", "fat"][round % 8];
        let kib = 64 + round * 424;
        let script = format!("mount -t tmpfs -o size={kib}k none \"${DIR}\" && exec \"$0\" \"$@\"");
        let mut command = victim_command("unshare", dir.path(), format);
        let output = command.args(["-Urm", "sh", "-c", &script, &program]).args(VICTIM).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == Some(3), "{kib} KiB: {said}");
        let named = if format == "fat" { "writing the 64MiB FAT file system (1 files of 24MiB)" } else { "/artifact (it may take up to 2" };
        for part in ["writing ", named, "No space left on device", "fault Environment; left 0"] {
            assert!(said.contains(part), "{kib} KiB: {part}: {said}");
        }
    }
}

#[test]
fn d1_two_builds_of_one_file_do_not_mix() {
    #[derive(Debug)]
    struct Nested(std::path::PathBuf);
    impl ReadAt for Nested {
        fn len(&self) -> u64 {
            100
        }
        fn read_at(&self, buffer: &mut [u8], _: u64) -> layers::Result<()> {
            let error = emit(OutputFormat::Raw, &disk(), &machine(), &self.0).unwrap_err().to_string();
            assert!(error.contains("another build is writing it"), "{error}");
            buffer.fill(1);
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifact");
    emit(OutputFormat::Raw, &Nested(path.clone()), &machine(), &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [1; 100]);
}
