//! Starts the ISO of `minimal` from memory and prints, as JSON, the seconds of `chasi-bod install` on an empty disk beside those of `zstd -d` of the
//! same root to that disk and `sha256sum` of what is there then, in the same machine, and their ratio. `make bench-install` runs it.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::ExitCode;

use layers::node::partition;
use layers::{Context, Result};
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::vm::{Drive, Firmware};
use qemu_tests::{debs, exec, slots};
use serde_json::{Value, json};

/// What the image lacks of the peer's tools.
const PACKAGES: [&str; 4] = ["zstd", "liblz4-1", "liblzma5", "zlib1g"];
const ROOM: u64 = 16 << 30;
/// Each way is taken so often; the least counts.
const TURNS: usize = 3;

fn main() -> ExitCode {
    match measure() {
        Ok(rows) => {
            println!("{rows}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.fault() as u8)
        }
    }
}

fn measure() -> Result<Value> {
    let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    let path = |name: &str| scratch.path().join(name);
    let built = artifacts("minimal")?;
    let own = path("own.raw");
    File::create(&own).and_then(|file| file.set_len(ROOM)).context(|| format!("making {}", own.display()))?;
    let mut node = Node::of_disk(scratch.path(), Drive::raw(&own))?;
    node.memory = 3072;
    let iso = artifact(&built, "iso")?;
    let medium = format!(
        "id=medium,if=none,media=cdrom,format=raw,readonly=on,file={}",
        fs::canonicalize(&iso).context(|| "finding the ISO".into())?.display()
    );
    node.arguments.extend(["-drive", &medium, "-device", "ide-cd,drive=medium,bootindex=9"].map(String::from));
    tools(&path("tools.tar"))?;
    let (packed, size) = root(&artifact(&built, "raw")?, scratch.path())?;
    node.further = vec![Drive::raw(&path("root.zst")), Drive::raw(&path("tools.tar"))];

    let (vm, _) = node.boot(Firmware::Bios)?;
    node.ssh("mkdir /run/peer && tar -xf /dev/vdc -C /run/peer")?;
    let peer = format!(
        "export LD_LIBRARY_PATH=/run/peer/usr/lib/x86_64-linux-gnu; head -c {packed} /dev/vdb | /run/peer/usr/bin/zstd -dcq | dd of=/dev/vda bs=1M conv=fsync status=none; \
         echo 1 > /proc/sys/vm/drop_caches; head -c {size} /dev/vda | sha256sum > /dev/null"
    );
    let ours = "chasi-bod install --disk 'serial == \"disk0\"' --erase --yes > /run/install.log";
    let (mut install, mut usual) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        usual.push(seconds(&node, &peer)?);
        install.push(seconds(&node, ours)?);
    }
    node.shut_down(vm)?;
    let least = |list: &[f64]| list.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(json!({"install": install, "zstd and sha256sum": usual, "ratio": least(&install) / least(&usual), "root bytes": size}))
}

/// How long a command of the node takes by the node's clock.
fn seconds(node: &Node, command: &str) -> Result<f64> {
    let said = node.ssh(&format!("set -e; a=$(date +%s%N); {command}; b=$(date +%s%N); echo $((b - a))"))?;
    let nanoseconds: f64 = said.trim().parse().map_err(|_| layers::Error::environment(format!("reading a time from `{said}`")))?;
    Ok(nanoseconds / 1e9)
}

/// The packages' program and libraries as a disk that is a tar archive.
fn tools(to: &Path) -> Result<()> {
    let root = debs::unpacked(&PACKAGES)?;
    let pattern = "cd \"$0\" && tar -chf \"$1\" usr/bin/zstd usr/lib/x86_64-linux-gnu/lib{lz4,lzma,z}.so.?";
    exec::run("bash", &["-c", pattern, &root.display().to_string(), &to.display().to_string()])?;
    Ok(())
}

/// The root of slot A, packed as a disk; its bytes packed and unpacked.
fn root(raw: &Path, scratch: &Path) -> Result<(u64, u64)> {
    let (at, _) = slots::place(raw, partition::ROOT_A)?;
    let mut disk = File::open(raw).context(|| format!("opening {}", raw.display()))?;
    let mut superblock = [0; 128];
    disk.seek(SeekFrom::Start(at + 1024)).and_then(|_| disk.read_exact(&mut superblock)).context(|| "reading the root's superblock".into())?;
    // EROFS: `blocks` at 36, the logarithm of a block's size at 12 (kernel: fs/erofs/erofs_fs.h).
    let blocks = u64::from(u32::from_le_bytes([superblock[36], superblock[37], superblock[38], superblock[39]]));
    let size = blocks << superblock[12];
    let packed = scratch.join("root.zst");
    let pack = "dd if=\"$0\" iflag=skip_bytes,count_bytes skip=$1 count=$2 bs=1M status=none | zstd -q -T0 -6 -o \"$3\"";
    exec::run("sh", &["-c", pack, &raw.display().to_string(), &at.to_string(), &size.to_string(), &packed.display().to_string()])?;
    let length = fs::metadata(&packed).context(|| "packing the root".into())?.len();
    // A disk has whole sectors.
    File::options().write(true).open(&packed).and_then(|file| file.set_len(length.next_multiple_of(512))).context(|| "packing the root".into())?;
    Ok((length, size))
}
