//! User-Mode Linux: the image's own initramfs and root on a kernel that is a process. Nodes sit on one bridge in a network namespace of
//! the test's own; it goes away with the process that holds it, which ends when the test does.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};

use layers::{Context, Error, Result};

use crate::exec;

/// The kernel: CHASI_BOD_UML, else what `scripts/uml-kernel` has built or builds.
pub fn kernel() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CHASI_BOD_UML") {
        return Ok(named.into());
    }
    let said = exec::run(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/uml-kernel"), &[])?;
    Ok(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim()))
}

/// A bridge in a user and network namespace of its own; the harness is 10.77.0.1 there.
#[derive(Debug)]
pub struct Net {
    holder: Child,
}

/// A node's place on a [`Net`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    holder: u32,
    number: u8,
}

impl Net {
    /// A bridge with places for nodes 1 to `nodes`; needs user namespaces or root.
    pub fn new(nodes: u8) -> Result<Self> {
        // A node's card takes single frames: of what the host would cut up later it loses a part.
        const FRAMES: &str = "gso_max_segs 1 gso_max_size 1514";
        let links = (1..=nodes).map(|n| {
            format!("ip link add vn{n} type veth peer name vb{n}; ip link set vb{n} master br0 {FRAMES} up; ip link set vn{n} {FRAMES} up; ")
        });
        let links: String = links.collect();
        let script = format!(
            "set -e; ip link set lo up; ip link add br0 type bridge; ip link set br0 {FRAMES}; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up; {links}echo made; exec cat"
        );
        let mut holder = exec::start("unshare", &["--user", "--map-root-user", "--net", "sh", "-c", &script].map(String::from))?;
        let mut line = String::new();
        if let Some(output) = holder.stdout.take() {
            BufReader::new(output).read_line(&mut line).context(|| "making a network namespace".into())?;
        }
        let net = Self { holder };
        if line.trim() == "made" {
            return Ok(net);
        }
        Err(Error::environment("making a network namespace: refused; see above").with_hint("run as root or allow user namespaces"))
    }

    /// The place of a node by its number, from 1.
    pub fn link(&self, number: u8) -> Link {
        Link { holder: self.holder.id(), number }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Link {
    /// The node's address.
    pub fn address(&self) -> String {
        format!("10.77.0.{}", 10 + self.number)
    }

    /// A program and its arguments, to be run with `nsenter` inside the namespace.
    pub fn inside(&self, command: &[&str]) -> Vec<String> {
        let fixed = ["--target".into(), self.holder.to_string(), "--user".into(), "--net".into(), "--preserve-credentials".into(), "--".into()];
        fixed.into_iter().chain(command.iter().map(|word| (*word).to_string())).collect()
    }

    /// Words for the kernel's command line that give the node this place.
    fn words(&self) -> [String; 2] {
        let (n, address) = (self.number, self.address());
        let network = format!("{{interfaces: [{{name: lan, match: {{name: vec0}}, addresses: [\"{address}/24\"]}}]}}");
        let coded = network.replace(' ', "%20").replace('"', "%22");
        [format!("vec0:transport=raw,ifname=vn{n},depth=64,mac=52:54:00:77:00:{n:02x}"), format!("chasi.set=network={coded}")]
    }
}

/// How many nodes this process has started: they take the cores in turn.
static START: AtomicUsize = AtomicUsize::new(0);

/// Arguments for `nsenter` that start a node in its namespace: serial line on standard input and output, memory in /dev/shm.
pub fn arguments(kernel: &Path, initrd: &Path, disks: &[&Path], memory: u32, folder: &Path, link: &Link, line: &str) -> Vec<String> {
    let (kernel, folder) = (kernel.display().to_string(), folder.display());
    // A system call of the guest is a switch between two processes of the host, five times as fast when both share a core.
    let core = START.fetch_add(1, Ordering::Relaxed) % std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = link.inside(&["env", "TMPDIR=/dev/shm", "taskset", "--cpu-list", &core.to_string(), &kernel]);
    args.extend([format!("mem={memory}M"), format!("initrd={}", initrd.display())]);
    args.extend(disks.iter().enumerate().map(|(number, disk)| format!("ubd{number}={}", disk.display())));
    args.extend([format!("uml_dir={folder}/"), "umid=uml".into()]);
    args.extend(["seccomp=on", "noreboot", "con=null", "con0=null", "ssl=null", "ssl0=fd:0,fd:1"].map(String::from));
    args.extend(link.words());
    args.extend(line.split_whitespace().map(String::from));
    args
}
