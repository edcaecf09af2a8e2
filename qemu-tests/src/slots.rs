//! The slots of an image's raw disk, seen from outside with outside tools: sgdisk for places, mtools for files of the ESP.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use layers::bootstate::{BootState, PATHS};
use layers::node::{Slot, partition};
use layers::{Context, Error, Result};

use crate::exec;
use crate::vm::Firmware;

const SECTOR: u64 = 512;
const PIECE: usize = 1 << 20;

/// First byte and length of a partition by name.
pub fn place(disk: &Path, name: &str) -> Result<(u64, u64)> {
    let table = exec::run("sgdisk", &["--print", &disk.display().to_string()])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let line = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).find(|w| w.last() == Some(&name));
    let numbers = line.and_then(|w| Some((w.get(1)?.parse::<u64>().ok()?, w.get(2)?.parse::<u64>().ok()?)));
    let (first, last) = numbers.ok_or_else(|| Error::input(format!("looking for partition {name}: sgdisk shows\n{table}")))?;
    Ok((first * SECTOR, (last - first + 1) * SECTOR))
}

/// Makes slot B equal to slot A: root, verity tree and files of the ESP.
pub fn copy_a_to_b(disk: &Path, scratch: &Path) -> Result<()> {
    copy(disk, partition::ROOT_A, partition::ROOT_B)?;
    copy(disk, partition::VERITY_A, partition::VERITY_B)?;
    let esp = esp(disk)?;
    exec::run("mmd", &["-i", &esp, "::/slot-b"])?;
    for name in ["vmlinuz", "initrd", "boot.cfg"] {
        let local = scratch.join(name).display().to_string();
        exec::run("mcopy", &["-n", "-i", &esp, &format!("::/slot-a/{name}"), &local])?;
        exec::run("mcopy", &["-i", &esp, &local, &format!("::/slot-b/{name}")])?;
    }
    Ok(())
}

fn copy(disk: &Path, from: &str, to: &str) -> Result<()> {
    let ((from, length), (to, _)) = (place(disk, from)?, place(disk, to)?);
    let file = OpenOptions::new().read(true).write(true).open(disk).context(|| format!("opening {}", disk.display()))?;
    let mut piece = vec![0; PIECE];
    for offset in (0..length).step_by(PIECE) {
        file.read_exact_at(&mut piece, from + offset).context(|| format!("reading {}", disk.display()))?;
        if piece.iter().any(|b| *b != 0) {
            file.write_all_at(&piece, to + offset).context(|| format!("writing {}", disk.display()))?;
        }
    }
    Ok(())
}

/// Kernel, initramfs and command line of slot A, as GRUB would start them.
pub fn direct(disk: &Path, scratch: &Path) -> Result<Firmware> {
    let esp = esp(disk)?;
    let fetch = |name: &str| {
        let local = scratch.join(name);
        exec::run("mcopy", &["-n", "-o", "-i", &esp, &format!("::/slot-a/{name}"), &local.display().to_string()]).map(|_| local)
    };
    let (kernel, initrd, cfg) = (fetch("vmlinuz")?, fetch("initrd")?, fetch("boot.cfg")?);
    let cfg = fs::read_to_string(&cfg).context(|| "reading boot.cfg".into())?;
    let line = cfg.split('"').nth(1).ok_or_else(|| Error::input(format!("reading the command line from `{cfg}`")))?;
    Ok(Firmware::Direct { kernel, initrd, command_line: format!("{line} chasi.slot=a") })
}

/// The boot state that counts.
pub fn state(disk: &Path, scratch: &Path) -> Result<BootState> {
    let [zero, one] = blocks(disk, scratch)?;
    BootState::newest(&zero, &one).map(|(_, state)| state).ok_or_else(|| Error::input("reading the boot state: no block is whole"))
}

/// Puts a slot on trial, as the agent would: one block, then the other.
pub fn arm(disk: &Path, scratch: &Path, trial: Slot, tries: u8) -> Result<()> {
    let [zero, one] = blocks(disk, scratch)?;
    let state = BootState { trial: Some(trial), tries, ..state(disk, scratch)? };
    let esp = esp(disk)?;
    for (block, bytes) in state.replace(&zero, &one) {
        let local = scratch.join("block");
        fs::write(&local, bytes).context(|| "writing a block".into())?;
        exec::run("mcopy", &["-o", "-i", &esp, &local.display().to_string(), &format!("::/{}", block.path())])?;
    }
    Ok(())
}

fn blocks(disk: &Path, scratch: &Path) -> Result<[Vec<u8>; 2]> {
    let esp = esp(disk)?;
    let read = |path: &str| {
        let local = scratch.join("block");
        exec::run("mcopy", &["-n", "-o", "-i", &esp, &format!("::/{path}"), &local.display().to_string()])?;
        fs::read(&local).context(|| format!("reading {path}"))
    };
    Ok([read(PATHS[0])?, read(PATHS[1])?])
}

/// The ESP as mtools names it.
fn esp(disk: &Path) -> Result<String> {
    Ok(format!("{}@@{}", disk.display(), place(disk, partition::ESP)?.0))
}
