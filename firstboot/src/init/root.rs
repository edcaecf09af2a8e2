//! The root that systemd will see: mounts, the overlay on /etc, and the step over into it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use layers::{Context, Error, Fault, Result};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use super::modules::list;
use crate::exec;

/// Where the new root is put together.
pub const ROOT: &str = "/sysroot";

/// Where the state is mounted, before and after the step.
pub const STATE: &str = "/run/chasi-bod/state";

/// The kernel's file systems, which move over to the new root: source, folder, options.
const KERNEL: [(&str, &str, &std::ffi::CStr); 4] =
    [("proc", "proc", c""), ("sysfs", "sys", c""), ("devtmpfs", "dev", c"mode=0755"), ("tmpfs", "run", c"mode=0755")];

/// Folders of the state that lie over the root's.
const BINDS: [&str; 4] = ["var", "home", "root", "srv"];

fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("creating {}", path.display()))
}

/// Mounts proc, sys, dev and run, and takes the console for standard input and output.
pub fn kernel_mounts() -> Result<()> {
    for (kind, name, options) in KERNEL {
        let target = Path::new("/").join(name);
        folder(&target)?;
        let flags = if name == "dev" { MountFlags::NOSUID } else { MountFlags::NOSUID | MountFlags::NODEV };
        match mount(kind, &target, kind, flags, options) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error).fault(Fault::Environment, || format!("mounting /{name}")),
        }
    }
    take_console();
    Ok(())
}

/// A machine without console is one that nobody looks at: no error.
fn take_console() {
    if let Ok(console) = fs::File::options().read(true).write(true).open("/dev/console") {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Mounts the verified device as the new root and moves the kernel's file systems into it; their old places become links, so that
/// paths stay as they were and tools of the new root find them too.
pub fn mount_root(device: &Path) -> Result<()> {
    let root = Path::new(ROOT);
    folder(root)?;
    mount(device, root, "erofs", MountFlags::RDONLY, None).fault(Fault::Environment, || format!("mounting the root from {}", device.display()))?;
    for (_, name, _) in KERNEL {
        let (old, new) = (Path::new("/").join(name), root.join(name));
        mount_move(&old, &new).fault(Fault::Environment, || format!("moving /{name} into the root"))?;
        // What the kernel's own initramfs has below /dev is no longer needed.
        fs::remove_dir_all(&old).and_then(|()| symlink(&new, &old)).context(|| format!("linking /{name}"))?;
    }
    Ok(())
}

/// Mounts the state.
pub fn mount_state(device: &Path) -> Result<()> {
    folder(Path::new(STATE))?;
    let flags = MountFlags::NOATIME;
    mount(device, STATE, "ext4", flags, None).fault(Fault::Environment, || format!("mounting the state from {}", device.display()))
}

/// Puts the state's folders over the root's, and its /etc as the upper layer of an overlay.
pub fn lay_state() -> Result<()> {
    let root = Path::new(ROOT);
    for name in BINDS {
        let (from, to) = (Path::new(STATE).join(name), root.join(name));
        folder(&from)?;
        mount_bind(&from, &to).fault(Fault::Environment, || format!("binding {} to {}", from.display(), to.display()))?;
    }
    let options = format!("lowerdir={ROOT}/etc,upperdir={STATE}/etc/upper,workdir={STATE}/etc/work");
    let options = std::ffi::CString::new(options).map_err(|_| Error::internal("mounting /etc: NUL in a path"))?;
    mount("overlay", root.join("etc"), "overlay", MountFlags::empty(), options.as_c_str()).fault(Fault::Environment, || "mounting /etc".into())
}

/// Leaves the initramfs for the new root and becomes its init; returns only on failure.
pub fn switch() -> Result<std::convert::Infallible> {
    let (root, program) = (Path::new(ROOT), "/sbin/init");
    fs::symlink_metadata(root.join("sbin/init")).context(|| "looking for /sbin/init in the root".into())?;
    let device = fs::symlink_metadata("/").context(|| "looking at the initramfs".into())?.dev();
    if is_memory()? {
        list(Path::new("/")).iter().for_each(|path| remove(path, device));
    }
    let step = || -> rustix::io::Result<()> {
        rustix::process::chdir(root)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    step().fault(Fault::Environment, || "stepping into the root".into())?;
    take_console();
    Err(exec::become_init(program))
}

/// Only what lies in memory is removed to give it back: never the files of a disk.
fn is_memory() -> Result<bool> {
    const RAMFS: u64 = 0x8584_58f6;
    const TMPFS: u64 = 0x0102_1994;
    let kind = rustix::fs::statfs("/").fault(Fault::Environment, || "looking at the initramfs".into())?.f_type as u64;
    Ok(kind == RAMFS || kind == TMPFS)
}

/// Removes a tree but not what is mounted in it; what cannot be removed costs memory, nothing else.
fn remove(path: &Path, device: u64) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.dev() != device {
        return;
    }
    if meta.is_dir() {
        list(path).iter().for_each(|p| remove(p, device));
        let _ = fs::remove_dir(path);
    } else {
        let _ = fs::remove_file(path);
    }
}
