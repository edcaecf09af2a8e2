//! A built image as a machine that can be asked: artifact → disk of its own → boot → ssh.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use layers::settings::decode_base64;
use layers::{Context, Error, Result};
use serde_json::Value;

use crate::exec;
use crate::uml::{self, Net};
use crate::vm::{Drive, Firmware, Machine, Vm};
use crate::{serial, slots};

/// Longest time from power-on to `ready`, in seconds; emulation on a busy machine is slow.
pub const READY: u64 = 180;
/// Longest time for a shutdown, in seconds.
pub const DOWN: u64 = 180;

/// The folder of a built profile's artifacts, newest version; `make image` has put them there.
pub fn artifacts(profile: &str) -> Result<PathBuf> {
    let base = std::env::var_os("CHASI_BOD_IMAGE_DIR").map_or_else(|| PathBuf::from("../output"), PathBuf::from).join(profile);
    let versions = fs::read_dir(&base).context(|| format!("looking for a built image in {}", base.display()))?;
    let mut found: Vec<_> = versions.flatten().map(|e| e.path()).filter(|p| p.join("build.json").exists()).collect();
    found.sort();
    found.pop().ok_or_else(|| Error::environment(format!("looking for a built image in {}: none", base.display())).with_hint("run `make image`"))
}

/// The artifact of a format in such a folder.
pub fn artifact(folder: &Path, extension: &str) -> Result<PathBuf> {
    let files = fs::read_dir(folder).context(|| format!("listing {}", folder.display()))?;
    let found = files.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == extension));
    found.ok_or_else(|| Error::environment(format!("looking for a .{extension} in {}: none", folder.display())))
}

/// The seconds that the node had counted when it said a line.
pub fn uptime(line: &str) -> Result<f64> {
    let found = line.split("chasi-bod: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    found.ok_or_else(|| Error::environment(format!("reading the uptime from `{line}`")))
}

/// A machine's disk, ssh key and forwarded port; it can be booted again and again.
pub struct Node {
    /// Where its files lie.
    pub folder: PathBuf,
    /// The disk that it starts from.
    pub disk: Drive,
    port: u16,
    link: Option<uml::Link>,
    /// Memory in MiB.
    pub memory: u32,
    /// Further disks.
    pub further: Vec<Drive>,
    /// More arguments for QEMU.
    pub arguments: Vec<String>,
    /// More options for its user network, each with a comma before it.
    pub forwards: String,
    /// QEMU's name of its network card.
    pub card: &'static str,
    /// The public half of the key that `ssh` uses.
    pub public_key: String,
}

impl Node {
    /// A machine whose disk starts as an artifact that stays as it is.
    pub fn of_artifact(folder: &Path, artifact: &Path) -> Result<Self> {
        let disk = folder.join("disk.qcow2");
        let artifact = fs::canonicalize(artifact).context(|| format!("finding {}", artifact.display()))?;
        let format = artifact.extension().map_or_else(|| "raw".into(), |extension| extension.display().to_string());
        exec::run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", &format, "-b", &text(&artifact), &text(&disk)])?;
        Self::of_disk(folder, Drive { format: "qcow2", ..Drive::raw(&disk) })
    }

    /// A machine with a disk of its own.
    pub fn of_disk(folder: &Path, disk: Drive) -> Result<Self> {
        let key = folder.join("key");
        exec::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", &text(&key)])?;
        let public_key = fs::read_to_string(folder.join("key.pub")).context(|| "reading the test key".into())?.trim().to_string();
        let port = free_port()?;
        let arguments = vec!["-smbios".into(), format!("type=11,value=chasi-bod:sshKeys={public_key}")];
        Ok(Self {
            folder: folder.to_path_buf(),
            disk,
            port,
            link: None,
            memory: 2048,
            further: Vec::new(),
            arguments,
            forwards: String::new(),
            card: "virtio-net-pci",
            public_key,
        })
    }

    /// A node of the UML lane: a sparse copy of a raw artifact as its disk, a place on a network, and what starts its slot A.
    pub fn in_uml(folder: &Path, artifact: &Path, net: &Net, number: u8) -> Result<(Self, Firmware)> {
        let disk = folder.join("disk.raw");
        exec::run("cp", &["--sparse=always", &text(artifact), &text(&disk)])?;
        let mut node = Self::of_disk(folder, Drive::raw(&disk))?;
        let link = net.link(number);
        node.link = Some(link.clone());
        let Firmware::Direct { initrd, command_line, .. } = slots::direct(&disk, folder)? else {
            return Err(Error::internal("reading slot A: not a direct boot"));
        };
        let key = node.public_key.replace(' ', "%20");
        let command_line = format!("{command_line} chasi.ssh-key={key}");
        Ok((node, Firmware::Uml { kernel: uml::kernel()?, initrd, command_line, link }))
    }

    /// Plugs in a disk labelled `CHASI` whose `chasi-bod.yaml` this is.
    pub fn configure(&mut self, yaml: &str) -> Result<()> {
        let (files, path) = (self.folder.join("chasi"), self.folder.join("chasi.ext4"));
        fs::create_dir_all(&files).context(|| "making a folder for the configuration".into())?;
        fs::write(files.join("chasi-bod.yaml"), yaml).context(|| "writing chasi-bod.yaml".into())?;
        exec::run("mke2fs", &["-q", "-t", "ext4", "-L", "CHASI", "-d", &text(&files), &text(&path), "8M"])?;
        self.further.push(Drive::raw(&path));
        Ok(())
    }

    /// Powers the machine on.
    pub fn start(&self, firmware: Firmware) -> Result<Vm> {
        let mut machine = Machine::new(firmware, &[]);
        machine.memory = self.memory;
        machine.drives = [std::slice::from_ref(&self.disk), &self.further].concat();
        machine.arguments = self.arguments.clone();
        let net = format!("user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{}-:22{}", self.port, self.forwards);
        machine.arguments.extend(["-netdev".into(), net, "-device".into(), format!("{},netdev=n0", self.card)]);
        machine.start(&self.folder)
    }

    /// Powers the machine on and waits until the agent says that it is ready; returns the seconds that the node itself counted.
    pub fn boot(&self, firmware: Firmware) -> Result<(Vm, f64)> {
        let mut vm = self.start(firmware)?;
        let line = vm.wait(" ready", READY)?;
        Ok((vm, uptime(&line)?))
    }

    /// Runs a program of this machine where the node can be reached.
    pub fn beside(&self, program: &str, args: &[&str]) -> Result<Output> {
        let Some(link) = &self.link else { return exec::run(program, args) };
        let words = link.inside(&[&[program][..], args].concat());
        exec::run("nsenter", &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same for a command whose output is no text.
    pub fn bytes(&self, command: &str) -> Result<Vec<u8>> {
        let told = self.ssh(&format!("{command} | base64 -w0"))?;
        decode_base64(&told).ok_or_else(|| Error::environment(format!("reading the output of `{command}`: it is cut off")))
    }

    /// Runs a command on the node as root; it must succeed.
    pub fn ssh(&self, command: &str) -> Result<String> {
        let key = self.folder.join("key");
        let (key, port) = (text(&key), if self.link.is_some() { "22".into() } else { self.port.to_string() });
        let fixed = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=30 \
                     -o ServerAliveInterval=20";
        let mut args: Vec<&str> = vec!["-i", &key, "-p", &port];
        args.extend(fixed.split_whitespace());
        let host = self.link.as_ref().map_or("127.0.0.1".into(), uml::Link::address);
        let host = format!("root@{host}");
        args.extend([host.as_str(), command]);
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            match self.beside("ssh", &args) {
                Ok(output) => return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
                // sshd may start a moment after the agent is ready; 255 is ssh's own failure to connect.
                Err(e) if e.to_string().contains("exit status: 255") && Instant::now() < end => std::thread::sleep(Duration::from_millis(500)),
                Err(e) => return Err(Error::environment(format!("{e}\nthe node's console said last:\n{}", self.console()))),
            }
        }
    }

    /// The end of what the node's serial line has said in this boot.
    fn console(&self) -> String {
        let said = fs::read(self.folder.join("serial.log")).unwrap_or_default();
        serial::tail(&String::from_utf8_lossy(&said))
    }

    /// The node's own account of itself.
    pub fn status(&self) -> Result<Value> {
        let text = self.ssh("chasi-bod status --json")?;
        serde_json::from_str(&text).context(|| format!("reading the node's status `{text}`"))
    }

    /// Shuts the machine down in order.
    pub fn shut_down(&self, mut vm: Vm) -> Result<()> {
        // The connection must end before the machine does: a machine that is gone says nothing, and ssh would wait for it.
        self.ssh("systemd-run --quiet sh -c 'sleep 1; systemctl poweroff'")?;
        vm.wait_end(DOWN).map(drop)
    }
}

/// A TCP port of loopback that is free now.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context(|| "looking for a free port".into())?;
    Ok(listener.local_addr().context(|| "looking for a free port".into())?.port())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
