//! The machine as the agent sees it: every path hangs below one root, so that tests run the same code on a folder.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use layers::node::{IMAGE_RECORD, ImageRecord};
use layers::{Context, Error, Fault, Result};

/// Where the node keeps what outlives a boot.
pub const STATE: &str = "var/lib/chasi-bod";
/// Where the node keeps what ends with a boot.
pub const RUN: &str = "run/chasi-bod";

/// Whether a file had to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not as wanted and is now.
    Made,
    /// It was as wanted.
    None,
}

/// A machine, or a folder that looks like one.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    /// Changes left until the process ends itself: the fault tests' way to cut the power at every point.
    fuse: Option<Arc<AtomicU32>>,
}

impl Host {
    /// The machine whose root directory this is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), fuse: None }
    }

    /// Ends the process, as a power cut would, at the change with this number.
    pub fn with_fuse(mut self, changes: Option<u32>) -> Self {
        self.fuse = changes.map(|changes| Arc::new(AtomicU32::new(changes)));
        self
    }

    /// Whether this is the running machine, with a kernel to talk to.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// A path below the root; a leading `/` means the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A program of the machine.
    pub fn program(&self, name: &str) -> Command {
        let found = ["usr/bin", "usr/sbin"].map(|dir| self.path(dir).join(name)).into_iter().find(|path| path.exists());
        Command::new(found.unwrap_or_else(|| self.path("usr/bin").join(name)))
    }

    /// Text of a file; `None` when there is none. Bytes that are not UTF-8 are replaced.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        Ok(self.read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Bytes of a file; `None` when there is none.
    pub fn read_bytes(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e).context(|| format!("reading /{path}")),
        }
    }

    /// The first `count` bytes of a file, fewer when it is shorter; `None` when there is none.
    pub fn read_start(&self, path: &str, count: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match File::open(self.path(path)).and_then(|file| file.take(count).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context(|| format!("reading /{path}")),
        }
    }

    /// First line of a small kernel file, trimmed; empty when it cannot be read.
    pub fn line(&self, path: &str) -> String {
        let text = fs::read(self.path(path)).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_string()
    }

    /// Names in a directory, sorted; empty when there is none.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Names of the network cards: links that have a device, sorted.
    pub fn cards(&self) -> Vec<String> {
        let is_card = |name: &String| self.path(&format!("sys/class/net/{name}/device")).exists();
        self.names("sys/class/net").into_iter().filter(is_card).collect()
    }

    /// What the firmware says of the machine (SMBIOS), such as `product_serial`; empty when it says nothing.
    pub fn firmware(&self, name: &str) -> String {
        self.line(&format!("sys/class/dmi/id/{name}"))
    }

    /// Whether udev is at work, as it is while drivers load: udevadm(8) `settle` looks at the same file.
    pub fn is_probing(&self) -> bool {
        self.path("run/udev/queue").exists()
    }

    /// Makes the file hold these bytes with this mode: written beside it, then renamed over it.
    pub fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<Change> {
        let target = self.path(path);
        let same_mode = fs::metadata(&target).is_ok_and(|m| m.permissions().mode() & 0o7777 == mode);
        if same_mode && fs::read(&target).is_ok_and(|old| old == bytes) {
            return Ok(Change::None);
        }
        self.replace(&target, bytes, mode).context(|| format!("writing /{path}"))?;
        Ok(Change::Made)
    }

    fn replace(&self, target: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
        let temporary = beside(target)?;
        self.burn();
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        self.burn();
        fs::rename(&temporary, target)?;
        self.burn();
        Ok(())
    }

    /// Makes the path a symbolic link to `to`.
    pub fn link(&self, path: &str, to: &str) -> Result<Change> {
        let target = self.path(path);
        if fs::read_link(&target).is_ok_and(|old| old == Path::new(to)) {
            return Ok(Change::None);
        }
        let make = || {
            let temporary = beside(&target)?;
            let _ = fs::remove_file(&temporary);
            self.burn();
            symlink(to, &temporary)?;
            self.burn();
            fs::rename(&temporary, &target)
        };
        make().context(|| format!("linking /{path}"))?;
        Ok(Change::Made)
    }

    /// Removes a file; it may be gone already.
    pub fn remove(&self, path: &str) -> Result<Change> {
        self.burn();
        match fs::remove_file(self.path(path)) {
            Ok(()) => Ok(Change::Made),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Change::None),
            Err(e) => Err(e).context(|| format!("removing /{path}")),
        }
    }

    /// Puts everything written so far on the disk; on a folder there is no power to lose.
    pub fn sync(&self) {
        self.burn();
        if self.is_live() {
            rustix::fs::sync();
        }
    }

    /// Random bytes of the kernel.
    pub fn random<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        read.fault(Fault::Environment, || "reading /dev/urandom".into())?;
        Ok(bytes)
    }

    /// What the builder wrote about the image.
    pub fn image(&self) -> Result<ImageRecord> {
        let text = self.read(IMAGE_RECORD)?.ok_or_else(|| Error::environment(format!("reading /{IMAGE_RECORD}: no such file")))?;
        serde_json::from_str(&text).fault(Fault::Internal, || format!("reading /{IMAGE_RECORD}"))
    }

    /// Words of the kernel command line; double quotes hold blanks together, as the kernel reads them.
    pub fn command_line(&self) -> Vec<String> {
        split_words(&self.line("proc/cmdline"))
    }

    /// The value of `key=` on the kernel command line; the last one wins.
    pub fn word(&self, key: &str) -> Option<String> {
        self.command_line().iter().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('=').map(Into::into))
    }

    /// Seconds since the kernel started.
    pub fn uptime(&self) -> f64 {
        self.line("proc/uptime").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
    }

    fn burn(&self) {
        if let Some(left) = &self.fuse
            && left.fetch_sub(1, Ordering::Relaxed) == 0
        {
            std::process::abort();
        }
    }
}

fn beside(target: &Path) -> std::io::Result<PathBuf> {
    let dir = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    Ok(dir.join(format!(".{name}.chasi-bod-new")))
}

fn split_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty())),
            c => word.push(c),
        }
    }
    words.extend(Some(word).filter(|w| !w.is_empty()));
    words
}

/// Removes a folder with all that is in it; it may be gone already.
pub fn remove_tree(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context(|| format!("removing {}", folder.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(host.write("etc/a", b"x", 0o600).unwrap(), Change::Made);
        assert_eq!(host.write("etc/a", b"x", 0o600).unwrap(), Change::None);
        assert_eq!(host.write("/etc/a", b"x", 0o644).unwrap(), Change::Made);
        assert_eq!(fs::metadata(dir.path().join("etc/a")).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(host.names("etc"), ["a"]);
    }

    #[test]
    fn the_command_line_is_split_as_the_kernel_does() {
        assert_eq!(split_words("a  b=\"c d\" \"e f\"=g\n"), ["a", "b=c d", "e f=g"]);
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.write("proc/cmdline", b"roothash=1 chasi.slot=a roothash=2", 0o444).unwrap();
        assert_eq!((host.word("roothash").as_deref(), host.word("root")), (Some("2"), None));
    }
}
