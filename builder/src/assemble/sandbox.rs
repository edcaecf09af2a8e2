//! The inside of the sandbox: this program starts itself again as `chasi-bod sandbox …`, leaves its namespaces while it has one thread,
//! waits until its parent has mapped the ids, and starts itself once more as process 1 of the new process namespace. That one does the
//! job in the scratch root, which is its working directory: set owners, list, remove, or run a command behind a changed root.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use layers::{Context, Error, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use super::readback;
use crate::{exec, sys};

/// Exit status of a job that failed in the sandbox itself; its reason is on stderr.
pub(super) const FAILED: u8 = 125;
/// Devices that a script may see.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What to do in a scratch root.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The scratch root.
    pub root: PathBuf,
    /// A folder to show at /work.
    pub work: Option<PathBuf>,
    /// The job.
    pub job: Job,
}

/// The jobs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Job {
    /// Set owners, modes, times and xattrs from stdin, then list.
    Apply,
    /// List everything; contents of files unknown to the table on stdin follow their record.
    Walk,
    /// Empty the root.
    Remove,
    /// Run a command behind the changed root.
    Run { argv: Vec<String>, env: BTreeMap<String, String> },
}

/// Entry of the hidden subcommand; called first in `main`, before any thread exists.
pub fn main(args: &[String]) -> ExitCode {
    let done = match args {
        [stage, order] if stage == "enter" => decode(order).and_then(|o| enter(&o, order)),
        [stage, order] if stage == "inside" => decode(order).and_then(inside),
        _ => Err(Error::internal("calling the sandbox with unknown arguments")),
    };
    done.unwrap_or_else(|e| {
        eprintln!("sandbox: {e}");
        ExitCode::from(FAILED)
    })
}

fn decode(order: &str) -> Result<Order> {
    serde_json::from_str(order).map_err(|e| Error::internal(format!("decoding sandbox order: {e}")))
}

/// Leaves the namespaces, waits for the id maps, becomes their root and starts process 1.
fn enter(order: &Order, text: &str) -> Result<ExitCode> {
    std::env::set_current_dir(&order.root).context(|| format!("entering {}", order.root.display()))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::unshare().context(|| "creating namespaces".into())?;
    // Now, because the mapped root user may not be able to reach it by path; later it is attached by its number, so without CLOEXEC.
    let work = order.work.as_ref().map(|p| detached(p)).transpose()?;
    let failed = || "waiting for id maps".to_string();
    rustix::io::write(io::stdout(), b"U").context(failed)?;
    let mut answer = [0; 1];
    if rustix::io::read(io::stdin(), &mut answer).context(failed)? != 1 {
        return Err(Error::internal("waiting for id maps: the parent ended"));
    }
    become_root().context(|| "becoming root of the user namespace".into())?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["sandbox", "inside", text]);
    if let Some(work) = &work {
        command.env("CHASI_BOD_WORK", work.as_raw_fd().to_string());
    }
    let status = exec::spawn(&mut command)?.wait().context(|| "waiting for process 1".into())?;
    Ok(ExitCode::from(code(status)))
}

fn detached(path: &Path) -> Result<OwnedFd> {
    rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE).context(|| format!("opening {}", path.display()))
}

fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_gid(rustix::fs::Gid::ROOT)?;
    rustix::thread::set_thread_uid(rustix::fs::Uid::ROOT)?;
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

fn code(status: std::process::ExitStatus) -> u8 {
    status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or_else(|| 128 + u8::try_from(status.signal().unwrap_or(0)).unwrap_or(0))
}

/// Process 1: when it ends the kernel kills whatever a script left running.
fn inside(order: Order) -> Result<ExitCode> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context(|| "binding to the parent's life".into())?;
    match order.job {
        Job::Run { argv, env } => return run(&argv, &env),
        Job::Remove => remove()?,
        Job::Apply => {
            readback::apply(&read_stdin::<Vec<_>>()?)?;
            readback::emit(&BTreeMap::new(), readback::Contents::Leave, &mut BufWriter::with_capacity(1 << 20, io::stdout().lock()))?;
        }
        Job::Walk => readback::emit(&read_stdin()?, readback::Contents::Send, &mut BufWriter::with_capacity(1 << 20, io::stdout().lock()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn read_stdin<T: serde::de::DeserializeOwned>() -> Result<T> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context(|| "reading the job's table".into())?;
    postcard::from_bytes(&bytes).map_err(|e| Error::internal(format!("decoding the job's table: {e}")))
}

fn remove() -> Result<()> {
    for entry in std::fs::read_dir(".").context(|| "listing the scratch root".into())? {
        let path = entry.context(|| "listing the scratch root".into())?.path();
        let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn run(argv: &[String], env: &BTreeMap<String, String>) -> Result<ExitCode> {
    change_root()?;
    rustix::system::sethostname(b"chasi-bod").context(|| "setting the host name".into())?;
    sys::ignore_flushes().context(|| "installing the flush filter".into())?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, 1024)?;
    let (program, args) = argv.split_first().ok_or_else(|| Error::internal("running nothing"))?;
    let both = io::stderr();
    let output = rustix::io::dup(&both).context(|| "duplicating stderr".into())?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env).stdin(Stdio::null()).stdout(output).process_group(0);
    let status = exec::spawn(&mut command)?.wait().context(|| format!("waiting for {program}"))?;
    Ok(ExitCode::from(code(status)))
}

fn limit(resource: Resource, value: u64) -> Result<()> {
    rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) }).context(|| "setting a resource limit".into())
}

/// Makes the working directory the root, with its own /proc, /dev, /run and /tmp.
fn change_root() -> Result<()> {
    let step = |what: &'static str| move || format!("mounting {what}");
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context(step("all privately"))?;
    let root = rustix::mount::open_tree(CWD, ".", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).context(step("the root"))?;
    rustix::mount::move_mount(&root, "", CWD, "/tmp", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(step("the root"))?;
    rustix::process::fchdir(&root).context(step("the root"))?;
    for dir in ["proc", "dev", "run", "tmp"] {
        if !Path::new(dir).symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Error::input(format!("mounting /{dir}: it is no directory in this root")));
        }
    }
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("proc", "proc", "proc", safe | MountFlags::NOEXEC, None).context(step("/proc"))?;
    rustix::mount::mount("tmpfs", "run", "tmpfs", safe, c"mode=755").context(step("/run"))?;
    rustix::mount::mount("tmpfs", "tmp", "tmpfs", safe, c"mode=1777").context(step("/tmp"))?;
    rustix::mount::mount("tmpfs", "dev", "tmpfs", MountFlags::NOSUID, c"mode=755").context(step("/dev"))?;
    devices().context(step("/dev"))?;
    if let Ok(number) = std::env::var("CHASI_BOD_WORK") {
        let work = rustix::fs::open(format!("/proc/self/fd/{number}"), OFlags::PATH, Mode::empty()).context(step("/work"))?;
        rustix::mount::move_mount(&work, "", CWD, "work", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(step("/work"))?;
    }
    rustix::process::pivot_root(".", ".").context(step("the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context(step("the root"))?;
    std::env::set_current_dir("/").context(step("the root"))
}

fn devices() -> io::Result<()> {
    for name in DEVICES {
        let (host, here) = (format!("/dev/{name}"), format!("dev/{name}"));
        if Path::new(&host).exists() {
            std::fs::write(&here, "")?;
            rustix::mount::mount_bind(host, here)?;
        }
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        std::os::unix::fs::symlink(target, format!("dev/{name}"))?;
    }
    std::fs::create_dir("dev/shm")?;
    rustix::fs::chmod("dev/shm", Mode::from_raw_mode(0o1777))?;
    io::stdout().flush()
}
