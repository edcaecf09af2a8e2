//! `pictures FOLDER`: the medium's menu, the installer and the status screen as a person sees them, taken from QEMU's display.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use layers::{Context, Error, Result};
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::vm::{Drive, Firmware};
use serde_json::{Value, json};

/// Longest time for one screen, in seconds.
const SCREEN: u64 = 240;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("error: name a folder for the pictures");
        return ExitCode::from(2);
    };
    match std::fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display())).and_then(|()| take(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.fault() as u8)
        }
    }
}

fn take(pictures: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    let images = artifacts("minimal")?;
    let (medium, own) = (scratch.path().join("medium.iso"), scratch.path().join("own.raw"));
    std::fs::copy(artifact(&images, "iso")?, &medium).context(|| "copying the medium".into())?;
    std::fs::File::create(&own).and_then(|file| file.set_len(16 << 30)).context(|| "making a disk".into())?;
    let mut node = Node::of_disk(scratch.path(), Drive::raw(&medium))?;
    node.further.push(Drive::raw(&own));
    node.memory = 3072;
    let screen = Screen::of(&mut node, scratch.path());
    let mut vm = node.start(Firmware::Bios)?;
    vm.wait("GNU GRUB", SCREEN)?;
    screen.save(&pictures.join("menu.png"))?;
    // The installer on the monitor; its console on the serial port says when it is there.
    vm.serial.send("i").context(|| "choosing from the menu".into())?;
    vm.wait("Number of the disk", SCREEN)?;
    screen.save(&pictures.join("installer.png"))?;
    drop(vm);

    let folder = scratch.path().join("node");
    std::fs::create_dir(&folder).context(|| "creating a scratch folder".into())?;
    let mut node = Node::of_artifact(&folder, &artifact(&images, "qcow2")?)?;
    let screen = Screen::of(&mut node, &folder);
    let (vm, _) = node.boot(Firmware::Bios)?;
    screen.save(&pictures.join("status.png"))?;
    node.shut_down(vm)
}

/// A machine's display, by QEMU's machine protocol (QMP).
struct Screen(PathBuf);

impl Screen {
    fn of(node: &mut Node, folder: &Path) -> Self {
        let socket = folder.join("qmp");
        node.arguments.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display())]);
        Self(socket)
    }

    /// The picture once it no longer changes: what the machine says on a serial port may be there before the screen is drawn.
    fn save(&self, path: &Path) -> Result<()> {
        let mut before = Vec::new();
        for _ in 0..30 {
            self.dump(path)?;
            let now = std::fs::read(path).context(|| format!("reading {}", path.display()))?;
            if now == before {
                println!("{}", path.display());
                return Ok(());
            }
            before = now;
            std::thread::sleep(Duration::from_secs(2));
        }
        Err(Error::environment(format!("taking {}: the screen does not come to rest", path.display())))
    }

    fn dump(&self, path: &Path) -> Result<()> {
        let path = std::path::absolute(path).context(|| format!("naming {}", path.display()))?;
        let doing = || format!("taking {}", path.display());
        let mut socket = UnixStream::connect(&self.0).context(doing)?;
        let mut answers = BufReader::new(socket.try_clone().context(doing)?).lines();
        for command in [json!({"execute": "qmp_capabilities"}), json!({"execute": "screendump", "arguments": {"filename": path, "format": "png"}})] {
            writeln!(socket, "{command}").context(doing)?;
            // Greetings and events come between.
            loop {
                let line = answers.next().ok_or_else(|| Error::environment(format!("{}: QEMU has ended", doing())))?.context(doing)?;
                let answer: Value = serde_json::from_str(&line).context(doing)?;
                if let Some(error) = answer.get("error") {
                    return Err(Error::environment(format!("{}: {error}", doing())));
                }
                if answer.get("return").is_some() {
                    break;
                }
            }
        }
        Ok(())
    }
}
