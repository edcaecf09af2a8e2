//! Builds the shipped profile through the command line, from the packages of the store that `make image` fills.

pub mod oci;
pub mod registry;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use builder::emit::Machine;
use builder::emit::iso::{BootFile, Start};
use builder::progress::Progress;
use builder::source::deb::{Archive, Mirrors, Offline};
use builder::source::http::{Client, Limits};
use builder::store::Store;
use layers::medium;
use layers::units::{Bytes, Digest, Seed};

/// What artifacts say beside the disk. A medium of it has all that it needs, but nothing on it would start.
pub fn machine() -> Machine {
    let bytes = |seed: u8, len: usize| (0..len).map(|n| (n as u8).wrapping_mul(seed)).collect::<Vec<u8>>();
    let file = |path, content| BootFile { path, content: Arc::new(content), on_disk: None };
    let start = Start {
        command_line: "roothash=abab quiet".into(),
        menu: "menuentry live { true }\n".into(),
        root_hash: Digest([0xab; 32]),
        boot_img: bytes(7, 512),
        bios: bytes(11, 40_000),
        efi: vec![("EFI/BOOT/BOOTX64.EFI".into(), bytes(13, 600_000))],
        id_signature: None,
        scratch: std::env::temp_dir(),
        files: vec![file(medium::KERNEL, bytes(3, 300_000)), file(medium::INITRD, bytes(5, 70_001))],
        made: Arc::default(),
    };
    Machine {
        name: "site".into(),
        version: "1.2.3".into(),
        uuid: Seed::new("site").uuid("machine"),
        epoch: 1_700_000_000,
        processors: 2,
        memory: Bytes(4 << 30),
        has_cluster: true,
        start: Some(start),
        signer: None,
    }
}

/// A file with a new key and its certificate.
pub fn identity(dir: &Path, name: &str, algorithm: &str) -> PathBuf {
    let (key, certificate, both) = (dir.join("key"), dir.join("crt"), dir.join(name));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-subj", "/CN=Example Publisher", "-days", "30", "-newkey"]).args(algorithm.split(' '));
    builder::exec::run(command.arg("-keyout").arg(&key).arg("-out").arg(&certificate)).unwrap();
    std::fs::write(&both, [std::fs::read(key).unwrap(), std::fs::read(certificate).unwrap()].concat()).unwrap();
    both
}

pub const BIN: &str = env!("CARGO_BIN_EXE_chasi-bod");

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

pub fn node() -> PathBuf {
    std::env::var_os("CHASI_BOD_NODE").map_or_else(|| workspace().join("target/node/x86_64-unknown-linux-gnu/node/chasi-bod-node"), PathBuf::from)
}

pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/chasi-bod");
    std::env::var_os("CHASI_BOD_CACHE").map_or_else(home, PathBuf::from)
}

/// A folder with the shipped minimal profile and its lock.
pub fn site(dir: &Path) -> PathBuf {
    for name in ["minimal.yaml", "minimal.lock"] {
        fs::copy(workspace().join("profiles").join(name), dir.join(name)).unwrap();
    }
    dir.join("minimal.yaml")
}

pub fn chasi_bod(args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    command.args(args).env("CHASI_BOD_CACHE", cache()).env("CHASI_BOD_NODE", node());
    command
}

pub fn good(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

/// The image built once with the shared store; its folder.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<(fs::File, PathBuf)> = OnceLock::new();
    let (_, folder) = BUILT.get_or_init(|| {
        remove_former();
        // Statics are never dropped: the next run removes the folder, which is locked while this one lives.
        let dir = tempfile::Builder::new().prefix("image-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
        let lock = fs::File::open(&dir).unwrap();
        lock.lock().unwrap();
        let profile = site(&dir);
        good(chasi_bod(&["build", profile.to_str().unwrap(), "--format", "raw,qcow2", "--output"]).arg(dir.join("out")));
        (lock, only_child(&dir.join("out/minimal")))
    });
    folder
}

fn remove_former() {
    let former = fs::read_dir(env!("CARGO_TARGET_TMPDIR")).unwrap().map(|e| e.unwrap().path());
    for dir in former.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("image-")) {
        if fs::File::open(&dir).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

pub fn only_child(dir: &Path) -> PathBuf {
    let found: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

pub fn artifact(folder: &Path, extension: &str) -> PathBuf {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == extension)).unwrap()
}

pub fn sums(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    text.lines().map(|l| l.split_once("  ").unwrap()).map(|(digest, name)| (name.to_string(), digest.to_string())).collect()
}

/// First byte and length of a partition, as sgdisk sees it.
pub fn partition(raw: &Path, name: &str) -> (u64, u64) {
    let table = String::from_utf8(good(Command::new("sgdisk").arg("--print").arg(raw)).stdout).unwrap();
    let words = table
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>())
        .find(|w| w.last() == Some(&name))
        .unwrap_or_else(|| panic!("{name}: {table}"));
    let (first, last): (u64, u64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    (first * 512, (last - first + 1) * 512)
}

/// A copy of one partition's first `length` bytes, sparse.
pub fn cut(raw: &Path, offset: u64, length: u64, to: &Path) {
    let skip = offset.to_string();
    let args = ["iflag=skip_bytes,count_bytes", "conv=sparse", "bs=1M", "status=none"];
    good(
        Command::new("dd")
            .args(args)
            .arg(format!("if={}", raw.display()))
            .arg(format!("of={}", to.display()))
            .arg(format!("skip={skip}"))
            .arg(format!("count={length}")),
    );
}

/// A store with the downloads alone, readable for anyone.
pub fn downloads_only(dir: &Path) -> PathBuf {
    let store = dir.join("store");
    fs::create_dir_all(store.join("blobs")).unwrap();
    for blob in fs::read_dir(cache().join("blobs")).unwrap() {
        let blob = blob.unwrap().path();
        fs::copy(&blob, store.join("blobs").join(blob.file_name().unwrap())).unwrap();
    }
    store
}

pub fn flip(path: &Path, at: u64) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

/// Sources without a Debian archive, asked over the machine's network or loopback.
pub fn archive<'a>(store: &'a Store, progress: &'a Progress) -> Archive<'a> {
    Archive {
        store,
        mirrors: Mirrors::default(),
        keyring: PathBuf::new(),
        http: Client::new(Limits::default()),
        offline: Offline::Allowed,
        progress,
        now: SystemTime::now(),
    }
}
