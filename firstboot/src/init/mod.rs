//! `init` of the initramfs: from the kernel's first process to systemd in a verified root. Its input is the kernel command line
//! ([`cmdline`]); every step says one line on the consoles ([`report`]). It never formats a state that was complete, never reboots
//! except out of a trial, and opens no shell.

pub mod cmdline;
pub mod disk;
pub mod live;
pub mod modules;
pub mod report;
mod root;
pub mod state;
pub mod table;
pub mod verity;

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use layers::node::{IMAGE_RECORD, partition};
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};

use crate::sys::{self, PartitionChange};
use cmdline::{CommandLine, From};
use disk::{Among, Disk, Found, Look};
use modules::{Loader, Modules};
use report::say;
use table::{Entry, SECTOR};

const SYS: &str = "/sys";
const DEV: &str = "/dev";

/// How long a failed trial stays on the screen before the reboot.
const TRIAL_PAUSE: Duration = Duration::from_secs(10);

/// Runs as the kernel's first process; never returns.
pub fn main() -> ! {
    std::panic::set_hook(Box::new(|info| give_up(&Error::internal(format!("running init: {info}")))));
    let Err(error) = run();
    give_up(&error)
}

fn run() -> Result<Infallible> {
    root::kernel_mounts()?;
    let line = fs::read_to_string("/proc/cmdline").context(|| "reading the kernel command line".into())?;
    say("start", env!("CARGO_PKG_VERSION"));
    let line = CommandLine::parse(&line)?;
    let modules = Modules::read(&modules_folder()?);
    // Drivers beside file systems and hashes, then late drivers (of a drive behind a controller just found) beside the state: seconds on slow machines.
    std::thread::scope(|scope| {
        let fixed = scope.spawn(|| note(&line, Loader::new(&modules).load(modules::FIXED)));
        let mut loader = Loader::new(&modules);
        let memory = medium(&line, &mut loader)?;
        let found = wait(&line, &mut loader, memory.map_or(Among::Machine, |_| Among::Only(live::DISK)))?;
        let _ = fixed.join();
        let device = verity::open(&found.superblock, &found.root, &found.hashes, &line.roothash)?;
        root::mount_root(&device)?;
        let line = &line;
        scope.spawn(move || note(line, loader.plug(Path::new(SYS))));
        say("root", &format!("slot {} verified by {}", line.slot.letter(), line.roothash.short()));
        lay_state(&found, memory)
    })?;
    say("switch", "starting the system");
    root::switch()
}

fn modules_folder() -> Result<PathBuf> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context(|| "reading the kernel's release".into())?;
    Ok(Path::new("/usr/lib/modules").join(release.trim()))
}

/// Unpacks the disk of a medium when the image comes from one; how much memory its state may take.
fn medium(line: &CommandLine, loader: &mut Loader) -> Result<Option<Bytes>> {
    if line.from == From::Disk {
        return Ok(None);
    }
    let medium = live::find(line, loader)?;
    if line.from == From::Check {
        let files = medium.check()?;
        report::done(&format!("The medium is good: {files} files are as they were written."), "restart (Ctrl-Alt-Del)");
        say("checked", &format!("{files} files are good"));
        stay();
    }
    medium.unpack().map(Some)
}

/// Loads drivers until the disk is there.
fn wait(line: &CommandLine, loader: &mut Loader, among: Among<'_>) -> Result<Found> {
    let start = Instant::now();
    loop {
        note(line, loader.plug(Path::new(SYS)));
        match disk::look(Path::new(SYS), Path::new(DEV), among, line.slot, &line.roothash) {
            Look::Found(found, others) => {
                let size = Bytes(found.disk.sectors.saturating_mul(SECTOR));
                say("disk", &format!("{} {size}", found.disk.name));
                if !others.is_empty() {
                    say("disk", &format!("warning: {} carries the same image; remove one of the two", others.join(", ")));
                }
                return Ok(*found);
            }
            Look::None(seen) if start.elapsed() >= line.wait => {
                return Err(disk::missing(line.slot, &line.roothash, line.wait.as_secs(), &seen));
            }
            Look::None(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A driver that cannot be loaded is no reason to stop: if the disk needs it, the wait will say so.
fn note(line: &CommandLine, (loaded, failed): (Vec<PathBuf>, Vec<String>)) {
    failed.iter().for_each(|why| say("modules", why));
    if line.debug && !loaded.is_empty() {
        let names: Vec<_> = loaded.iter().filter_map(|p| p.file_stem()?.to_str()).collect();
        say("modules", &names.join(" "));
    }
}

/// Makes, checks, grows and mounts the state, and lays it over the root. On a disk in memory it takes this much of that at most.
fn lay_state(found: &Found, memory: Option<Bytes>) -> Result<()> {
    let mut rules = rules()?;
    if let Some(most) = memory {
        (rules.state_size, rules.state_limit) = (rules.state_size.min(most), Some(most));
    }
    let (tools, scratch) = (Path::new(root::ROOT), Path::new("/run/chasi-bod"));
    let Disk { path, sectors, sector, .. } = &found.disk;
    let site = state::Site { disk: path, sectors: *sectors, sector: *sector, rules: &rules, tools, scratch };
    let mut length = 0;
    let (device, done) = state::ensure(&site, |entry| {
        length = entry.sectors() * SECTOR;
        tell_kernel(found, entry)
    })?;
    if done != state::Done::Made {
        report_check(&state::check(tools, &device)?);
    }
    root::mount_state(&device)?;
    let grown = state::grow(&device, Path::new(root::STATE), length)?;
    let word = match (done, grown) {
        (state::Done::Made, _) => "made",
        (_, true) => "grown",
        (_, false) => "kept",
    };
    say("state", &format!("{word} {} {}", device.display(), Bytes(length)));
    state::machine_id(&Path::new(root::STATE).join("etc/upper"))?;
    root::lay_state()
}

/// Says what was repaired, and leaves the whole for the agent.
fn report_check(checked: &state::Checked) {
    if checked.is_repaired() {
        say("state", &format!("repaired: {}", checked.said));
    }
    let folder = Path::new("/run/chasi-bod");
    // Only the report would be missing.
    let _ = fs::create_dir_all(folder).and_then(|()| fs::write(folder.join(state::CHECKED), serde_json::to_string(checked).unwrap_or_default()));
}

/// The image's disk rules, from its record in the verified root.
fn rules() -> Result<state::Rules> {
    #[derive(serde::Deserialize)]
    struct Record {
        disk: state::Rules,
    }
    let path = Path::new(root::ROOT).join(IMAGE_RECORD);
    let text = fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
    serde_json::from_str::<Record>(&text).fault(Fault::Internal, || format!("reading {}", path.display())).map(|r| r.disk)
}

/// Makes the kernel know an entry of the table; returns the partition's device.
fn tell_kernel(found: &Found, entry: &Entry) -> Result<PathBuf> {
    let name = partition::STATE;
    let node = || found.disk.node(Path::new(SYS), Path::new(DEV), entry.number);
    let known = node();
    let change = if known.is_some() { PartitionChange::Resize } else { PartitionChange::Add };
    let disk = File::open(&found.disk.path).context(|| format!("opening {}", found.disk.path.display()))?;
    let told = sys::partition(&disk, change, entry.number, entry.first * SECTOR, entry.sectors() * SECTOR);
    told.fault(Fault::Environment, || format!("telling the kernel of partition {} ({name})", entry.number))?;
    node().ok_or_else(|| Error::environment(format!("waiting for partition {} ({name}): the kernel did not make it", entry.number)))
}

/// Shows the cause. Out of a trial the machine reboots, and GRUB falls back; else it waits for a person: never an endless reboot.
fn give_up(error: &Error) -> ! {
    let trial = cmdline::is_trial(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if trial {
        report::fail(error, "this was a trial; the machine restarts with the good version");
        std::thread::sleep(TRIAL_PAUSE);
        rustix::fs::sync();
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    } else {
        report::fail(error, "restart (Ctrl-Alt-Del) and choose the other slot in the boot menu, or repair from an installation medium");
    }
    stay()
}

/// Leaves the screen as it is until a person restarts the machine.
fn stay() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
