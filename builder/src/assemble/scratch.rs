//! A scratch root: a tree written to the build machine's memory or disk for as long as scripts or tools run in it. Owners exist through the
//! caller's range of subordinate ids; everything that needs them is done inside the sandbox.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use layers::{Context, Error, Fault, Result};
use rustix::fs::{Timespec, Timestamps};

use super::readback::{self, Fate, Stamp};
use super::sandbox::{FAILED, Job, Order};
use super::unpack::in_parallel;
use crate::exec;
use crate::store::{PackWriter, Store};
use crate::tree::{Content, Kind, Node, Tree, TreePath};
use crate::workspace::{self, Scratch};

/// How a command runs in a root.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time after which everything in the sandbox is killed.
    pub limit: Duration,
    /// Value of `SOURCE_DATE_EPOCH`, seconds since 1970.
    pub epoch: i64,
    /// Variables beside the fixed ones.
    pub env: BTreeMap<String, String>,
}

impl Options {
    /// Half an hour and no further variables.
    pub fn new(epoch: i64) -> Self {
        Self { limit: Duration::from_secs(1800), epoch, env: BTreeMap::new() }
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let epoch = self.epoch.to_string();
        let fixed = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("LC_ALL", "C.UTF-8"),
            ("TZ", "UTC"),
            ("HOME", "/root"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
            ("SYSTEMD_OFFLINE", "1"),
            ("SOURCE_DATE_EPOCH", &epoch),
        ];
        let fixed = fixed.into_iter().map(|(k, v)| (k.to_string(), v.to_string()));
        fixed.chain(self.env.clone()).collect()
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 + signal for a killed one.
    pub status: i32,
    /// What it printed on stdout and stderr, in order.
    pub log: String,
}

/// A tree on disk; removed when dropped.
#[derive(Debug)]
pub struct Root {
    dir: Scratch,
    stamps: BTreeMap<TreePath, Stamp>,
}

static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();

/// Names the chasi-bod binary that sandboxes are started from; without it `CHASI_BOD_EXE`, else the running program.
pub fn use_executable(path: &Path) {
    let _ = EXECUTABLE.set(path.to_path_buf());
}

impl Root {
    /// Writes a tree to a scratch folder: in memory where there is plenty, else in the store. Mount points of the sandbox are added where the tree has none.
    pub fn materialize(store: &Store, tree: &Tree) -> Result<Self> {
        let dir = match workspace::roomy_memory(room(tree)) {
            Some(memory) => Scratch::new_in(memory),
            None => store.scratch(),
        };
        let mut root = Self { dir: dir?, stamps: BTreeMap::new() };
        let mut tree = tree.clone();
        for dir in ["", "proc", "dev", "run", "tmp", "sys", "work"] {
            let path = TreePath::new(dir).map_err(Error::internal)?;
            tree.entries.entry(path).or_insert_with(|| Node::new(Kind::Directory, 0o755, 0));
        }
        fs::create_dir(root.work()).context(|| "making the scratch root's work folder".into())?;
        write_tree(store, &tree, &root.path()).context(|| "writing the scratch root".into())?;
        let special: Vec<_> = tree
            .entries
            .iter()
            .filter(|(_, n)| !is_plain(n) && !matches!(n.kind, Kind::CharDevice(..) | Kind::BlockDevice(..)))
            .map(|(p, n)| (p.clone(), n.clone()))
            .collect();
        root.stamps = root.job(Job::Apply, &special, |input| {
            let mut stamps = BTreeMap::new();
            while let Some(record) = readback::next(input)? {
                if matches!(record.node.kind, Kind::File(_)) {
                    stamps.insert(record.path, record.stamp);
                }
            }
            Ok(stamps)
        })?;
        Ok(root)
    }

    /// Runs a command in the root; a status other than 0 is not an error here.
    pub fn run(&self, argv: &[&str], options: &Options) -> Result<Output> {
        self.start(argv, None, options)
    }

    /// Runs a command with `work` shown at /work, where it may read and write. Under the root user another id owns that folder meanwhile, so
    /// it is never a scratch folder itself: of those only its own are a killed command's.
    pub fn run_with_work(&self, argv: &[&str], work: &Path, options: &Options) -> Result<Output> {
        let base = ids()?.root_as;
        own_below(work, base)?;
        let output = self.start(argv, Some(work), options);
        own_below(work, base.map(|_| 0))?;
        output
    }

    /// The tree as it stands now; new contents go to `pack`, new times become `epoch`. `before` is what was materialised; `fate` is
    /// asked for every path, with a file's size.
    pub fn read_back(&self, before: &Tree, epoch: i64, fate: &dyn Fn(&TreePath, Option<u64>) -> Fate, pack: &mut PackWriter<'_>) -> Result<Tree> {
        let rules = readback::Rules { before, epoch, fate };
        let mut tree = self.job(Job::Walk, &self.stamps, |input| readback::collect(input, &rules, pack))?;
        for dir in ["proc", "dev", "run", "tmp", "sys", "work"] {
            if before.at(dir).is_none() {
                tree.remove_below(&TreePath::new(dir).map_err(Error::internal)?);
            }
        }
        if let Some(old) = before.at("")
            && let Some(node) = tree.entries.get_mut(&TreePath::root())
        {
            *node = old.clone();
        }
        Ok(tree)
    }

    /// A small text file of the root that its root user owns; empty when there is none.
    pub(super) fn read_text(&self, path: &str) -> Result<String> {
        match fs::read_to_string(self.path().join(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other.context(|| format!("reading /{path}")),
        }
    }

    /// A folder for what goes into the sandbox and comes out of it, empty at first.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Runs a job that takes a table and answers with a stream.
    fn job<T>(
        &self,
        job: Job,
        table: &impl serde::Serialize,
        read: impl FnOnce(&mut BufReader<&mut std::process::ChildStdout>) -> Result<T>,
    ) -> Result<T> {
        let (mut child, log) = self.enter(&Order { root: self.path(), work: None, job })?;
        let bytes = postcard::to_stdvec(table).map_err(|e| Error::internal(format!("encoding a sandbox table: {e}")))?;
        let sent = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(&bytes));
        let mut output = child.stdout.take().ok_or_else(|| Error::internal("starting the sandbox without stdout"))?;
        let answer = read(&mut BufReader::with_capacity(1 << 20, &mut output));
        drop(output);
        let status = child.wait().context(|| "waiting for the sandbox".into())?;
        if status.success() {
            sent.context(|| "sending a table to the sandbox".into())?;
            return answer;
        }
        Err(Error::environment(format!("working in the sandbox: {}{}", exec::status(status), exec::tail(&read_log(&log)))))
    }

    fn start(&self, argv: &[&str], work: Option<&Path>, options: &Options) -> Result<Output> {
        let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        let line = argv.join(" ").chars().take(120).collect::<String>();
        let job = Job::Run { argv, env: options.environment() };
        let (mut child, log) = self.enter(&Order { root: self.path(), work: work.map(Path::to_path_buf), job })?;
        drop(child.stdin.take());
        let status = exec::wait(&mut child, options.limit)?;
        let log = String::from_utf8_lossy(&read_log(&log)).into_owned();
        let Some(status) = status else {
            return Err(Error::input(format!("running `{line}`: no end after {} s{}", options.limit.as_secs(), exec::tail(log.as_bytes()))));
        };
        let status = status.code().unwrap_or(-1);
        if status == i32::from(FAILED) && log.contains("sandbox: ") {
            return Err(Error::environment(format!("running `{line}`: {}", exec::tail(log.as_bytes()).trim())));
        }
        Ok(Output { status, log })
    }

    /// Starts the sandbox and maps its ids; its stderr goes to a file.
    fn enter(&self, order: &Order) -> Result<(Child, File)> {
        let order = serde_json::to_string(order).map_err(|e| Error::internal(format!("encoding sandbox order: {e}")))?;
        let log = tempfile::tempfile_in(self.dir.path()).context(|| "creating a log".into())?;
        let stderr = log.try_clone().context(|| "creating a log".into())?;
        let program = EXECUTABLE.get().cloned().or_else(|| std::env::var_os("CHASI_BOD_EXE").map(Into::into));
        let mut command = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
        command.args(["sandbox", "enter", &order]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = exec::spawn(&mut command)?;
        if let Err(error) = admit(&mut child) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(match exec::tail(&read_log(&log)) {
                said if said.is_empty() => error,
                said => Error::environment(format!("entering the sandbox: {}", said.trim()))
                    .with_hint("user namespaces must be allowed for this user (kernel.unprivileged_userns_clone, user.max_user_namespaces)"),
            });
        }
        Ok((child, log))
    }
}

/// Scratch folders that dead processes of this user left.
pub fn stale(store: &Store) -> Vec<PathBuf> {
    abandoned(store).map(Scratch::leave).collect()
}

/// Removes the scratch folders that dead processes of this user left, with what other ids own in them; returns which.
pub fn remove_stale(store: &Store) -> Vec<PathBuf> {
    let roots = abandoned(store).map(|dir| Root { dir, stamps: BTreeMap::new() });
    roots.map(|root| root.dir.path().to_path_buf()).collect()
}

fn abandoned(store: &Store) -> impl Iterator<Item = Scratch> {
    [store.root().join("tmp"), workspace::memory().to_path_buf()].into_iter().flat_map(|parent| Scratch::abandoned(&parent))
}

/// Bytes that a tree takes as files, rounded up to pages, with an estimate of the file system's own records.
fn room(tree: &Tree) -> u64 {
    let one = |node: &Node| match &node.kind {
        Kind::File(content) => content.size.next_multiple_of(4096),
        _ => 0,
    };
    tree.entries.values().map(|node| one(node) + 1024).sum()
}

impl Drop for Root {
    fn drop(&mut self) {
        // Files of subordinate ids can only be removed inside; what is left over is found by the next build or `cache prune`.
        let _ = self.job(Job::Remove, &(), |_| Ok(()));
    }
}

fn read_log(mut log: &File) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = io::Seek::seek(&mut log, io::SeekFrom::Start(0)).and_then(|_| log.read_to_end(&mut out));
    out
}

/// Waits until the child has left its namespaces, writes its id maps and lets it go on.
fn admit(child: &mut Child) -> Result<()> {
    let failed = || "entering the sandbox".to_string();
    let mut byte = [0; 1];
    child.stdout.as_mut().map_or(Ok(()), |o| o.read_exact(&mut byte)).fault(Fault::Environment, failed)?;
    map_ids(child.id())?;
    child.stdin.as_mut().map_or(Ok(()), |i| i.write_all(b"g")).fault(Fault::Environment, failed)
}

/// Which ids of the machine stand for those of the image.
struct Ids {
    /// Set for root: the id that stands for the image's root. Root itself is never mapped, so that no script can reach the machine.
    root_as: Option<u32>,
    uids: u32,
    gids: u32,
}

/// First id of the range that root uses when /etc/subuid grants it none.
const ROOT_RANGE: u32 = 100_000;

fn ids() -> Result<Ids> {
    let uid = rustix::process::getuid().as_raw();
    let name = user_name(uid);
    let range = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().find_map(|line| {
            let mut parts = line.split(':');
            let owner = parts.next()?;
            let (start, count) = (parts.next()?.parse().ok()?, parts.next()?.trim().parse::<u32>().ok()?);
            (count >= 65536 && (owner == uid.to_string() || Some(owner) == name.as_deref())).then_some(start)
        })
    };
    let (uids, gids) = (range("/etc/subuid"), range("/etc/subgid"));
    if uid == 0 {
        let start = uids.filter(|s| gids == Some(*s)).unwrap_or(ROOT_RANGE);
        if !(owns("/proc/self/uid_map", start) && owns("/proc/self/gid_map", start)) {
            return Err(Error::environment(format!("entering the sandbox: this root user lacks the ids {start} to {}", start + 65535))
                .with_hint("give the container 65536 more ids, or name a range it has in /etc/subuid and /etc/subgid (root:<first>:65536)"));
        }
        return Ok(Ids { root_as: Some(start), uids: start, gids: start });
    }
    match (uids, gids) {
        (Some(uids), Some(gids)) => Ok(Ids { root_as: None, uids, gids }),
        _ => Err(Error::environment("entering the sandbox: this user has no range of 65536 subordinate ids in /etc/subuid and /etc/subgid")
            .with_hint("as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 <user>")),
    }
}

/// True when the map of this user namespace (user_namespaces(7)) covers 65536 ids from `start`.
fn owns(map: &str, start: u32) -> bool {
    let text = fs::read_to_string(map).unwrap_or_default();
    text.lines().any(|line| match line.split_whitespace().map(str::parse::<u64>).collect::<Vec<_>>()[..] {
        [Ok(first), _, Ok(count)] => first <= u64::from(start) && u64::from(start) + 65536 <= first + count,
        _ => false,
    })
}

fn user_name(uid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find(|l| l.split(':').nth(2) == Some(&uid.to_string())).and_then(|l| l.split(':').next()).map(Into::into)
}

fn map_ids(pid: u32) -> Result<()> {
    let ids = ids()?;
    if let Some(start) = ids.root_as {
        for file in ["uid_map", "gid_map"] {
            let path = format!("/proc/{pid}/{file}");
            fs::write(&path, format!("0 {start} 65536\n")).fault(Fault::Environment, || format!("writing {path}"))?;
        }
        return Ok(());
    }
    let own = [rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()];
    for (tool, own, start) in [("newuidmap", own[0], ids.uids), ("newgidmap", own[1], ids.gids)] {
        let args = [pid, 0, own, 1, 1, start, 65535].map(|n| n.to_string());
        exec::run(Command::new(tool).args(args)).map_err(|e| e.with_hint("install the package uidmap"))?;
    }
    Ok(())
}

/// As root, gives a folder and what lies in it to an id; as another user there is nothing to do.
fn own_below(path: &Path, id: Option<u32>) -> Result<()> {
    let Some(id) = id else { return Ok(()) };
    let naming = || format!("changing the owner of {}", path.display());
    std::os::unix::fs::lchown(path, Some(id), Some(id)).context(naming)?;
    if path.symlink_metadata().context(naming)?.is_dir() {
        for entry in fs::read_dir(path).context(naming)? {
            own_below(&entry.context(naming)?.path(), Some(id))?;
        }
    }
    Ok(())
}

/// True for a file that needs nothing from inside: root's, without xattrs. Hard links share their file's metadata.
fn is_plain(node: &Node) -> bool {
    match node.kind {
        Kind::HardLink(_) => true,
        Kind::File(_) => node.uid == 0 && node.gid == 0 && node.xattrs.is_empty(),
        _ => false,
    }
}

fn write_tree(store: &Store, tree: &Tree, root: &Path) -> Result<()> {
    let owner = ids()?.root_as;
    let place = |path: &TreePath| root.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
    let own = |path: &Path| owner.map_or(Ok(()), |id| std::os::unix::fs::lchown(path, Some(id), Some(id)));
    for (path, _) in tree.entries.iter().filter(|(_, n)| n.is_dir()) {
        fs::create_dir(place(path)).and_then(|()| own(&place(path))).context(|| format!("creating {path}"))?;
    }
    let files: Vec<_> = tree.entries.iter().filter(|(_, n)| !n.is_dir() && !matches!(n.kind, Kind::HardLink(_))).collect();
    let chunks: Vec<_> = files.chunks(256).collect();
    in_parallel(chunks.len(), |turn| {
        chunks[turn].iter().try_for_each(|(path, node)| write_entry(store, node, &place(path), owner).context(|| format!("writing {path}")))
    })?;
    for (path, node) in &tree.entries {
        if let Kind::HardLink(target) = &node.kind {
            fs::hard_link(place(target), place(path)).context(|| format!("linking {path}"))?;
        }
    }
    Ok(())
}

fn write_entry(store: &Store, node: &Node, path: &Path, owner: Option<u32>) -> Result<()> {
    let naming = || "creating it".to_string();
    match &node.kind {
        Kind::File(content) => return write_file(store, node, content, path, owner),
        Kind::Symlink(target) => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path).context(naming)?,
        Kind::Fifo => rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).context(naming)?,
        // Devices exist in trees only: a user namespace cannot make them, and nothing in a sandbox needs them.
        _ => return Ok(()),
    }
    owner.map_or(Ok(()), |id| std::os::unix::fs::lchown(path, Some(id), Some(id))).context(naming)
}

fn write_file(store: &Store, node: &Node, content: &Content, path: &Path, owner: Option<u32>) -> Result<()> {
    let naming = || "creating it".to_string();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).context(naming)?;
    let mut buffer = vec![0; content.size.min(1 << 20) as usize];
    let mut done = 0;
    while done < content.size {
        let n = (content.size - done).min(1 << 20) as usize;
        store.read_at(content, &mut buffer[..n], done)?;
        (&file).write_all(&buffer[..n]).context(naming)?;
        done += n as u64;
    }
    owner.map_or(Ok(()), |id| std::os::unix::fs::fchown(&file, Some(id), Some(id))).context(naming)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(u32::from(node.mode))).context(naming)?;
    let time = Timespec { tv_sec: node.mtime, tv_nsec: 0 };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).context(naming)?;
    debug_assert!(file.metadata().is_ok_and(|m| m.size() == content.size));
    Ok(())
}
