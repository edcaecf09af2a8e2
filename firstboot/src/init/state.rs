//! The state partition: made when it is missing, made anew when it was not finished, checked and grown on every boot, never formatted
//! once it was complete. Its file system is ext4, made by mke2fs of the verified root.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use layers::node::partition;
use layers::profile::Disk;
use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};

use super::report::say;
use super::table::{self, Entry, SECTOR, StatePlan};
use crate::{exec, sys};

/// Folders of a new state with their modes.
const LAYOUT: [(&str, u32); 7] =
    [("etc", 0o755), ("etc/upper", 0o755), ("etc/work", 0o755), ("var", 0o755), ("home", 0o755), ("root", 0o700), ("srv", 0o755)];

/// Bytes of a block of the file system.
const BLOCK: u64 = 4096;

/// What was done about the state partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was there.
    Kept,
    /// It was there and became larger.
    Grown,
    /// It was made.
    Made,
}

/// What `init` needs of the profile's disk rules. It has no code for the others: firmware loads it whole.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rules {
    /// Least size of the state partition.
    pub state_size: Bytes,
    /// Most that it takes.
    pub state_limit: Option<Bytes>,
}

impl Default for Rules {
    fn default() -> Self {
        let Disk { state_size, state_limit, .. } = Disk::default();
        Self { state_size, state_limit }
    }
}

/// What a disk's state needs to be made: the disk, its size and rules, the root with the tools, a folder to work in.
#[derive(Debug)]
pub struct Site<'a> {
    /// The disk.
    pub disk: &'a Path,
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes of its own sectors.
    pub sector: u64,
    /// The image's disk rules.
    pub rules: &'a Rules,
    /// Root whose mke2fs and e2fsck are used.
    pub tools: &'a Path,
    /// An empty folder for the layout, outside the disk; same path seen from the tools' root.
    pub scratch: &'a Path,
}

/// Brings the state partition into being; `tell` makes the kernel know an entry and returns its device. Killed at any point, the next
/// call goes on.
pub fn ensure(site: &Site<'_>, mut tell: impl FnMut(&Entry) -> Result<PathBuf>) -> Result<(PathBuf, Done)> {
    let entries = table::read(site.disk, site.sector)?;
    match table::plan(&entries, site.sectors, site.rules.state_size, site.rules.state_limit)? {
        StatePlan::Keep(entry) => {
            if let Some(copy) = table::damaged(site.disk, site.sector)? {
                table::write(site.disk, site.sector, &entry)?;
                say("disk", &format!("repaired: the {copy} copy of the partition table of {} was damaged", site.disk.display()));
            }
            Ok((tell(&entry)?, Done::Kept))
        }
        StatePlan::Grow(entry) => {
            table::write(site.disk, site.sector, &entry)?;
            Ok((tell(&entry)?, Done::Grown))
        }
        StatePlan::Make(entry) => {
            table::write(site.disk, site.sector, &entry)?;
            let device = tell(&entry)?;
            format(site, &device, None, &[])?;
            table::write(site.disk, site.sector, &Entry { name: partition::STATE.into(), ..entry })?;
            Ok((device, Done::Made))
        }
    }
}

/// Makes the state of a disk before its first start, in the place that the table has yet to name, with files in it; returns that entry.
pub fn make_ahead(site: &Site<'_>, entries: &[Entry], files: &[(String, Vec<u8>)]) -> Result<Entry> {
    let StatePlan::Make(entry) = table::plan(entries, site.sectors, site.rules.state_size, site.rules.state_limit)? else {
        return Err(Error::internal("planning the state partition: there is one"));
    };
    format(site, site.disk, Some(&entry), files)?;
    Ok(Entry { name: partition::STATE.into(), ..entry })
}

/// Makes the file system on a device, or `inside` a disk.
fn format(site: &Site<'_>, device: &Path, inside: Option<&Entry>, files: &[(String, Vec<u8>)]) -> Result<()> {
    let layout = site.scratch.join("layout");
    for (folder, mode) in LAYOUT {
        let path = layout.join(folder);
        fs::create_dir_all(&path).context(|| format!("creating {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context(|| format!("setting the mode of {}", path.display()))?;
    }
    for (path, bytes) in files {
        let path = layout.join(path);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&layout))?;
            fs::write(&path, bytes)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        };
        write().context(|| format!("writing {}", path.display()))?;
    }
    let (layout, target) = (layout.display().to_string(), device.display().to_string());
    let offset = inside.map(|entry| format!(",offset={}", entry.first * SECTOR)).unwrap_or_default();
    let extended = format!("lazy_itable_init=1,lazy_journal_init=1,nodiscard{offset}");
    let blocks = inside.map(|entry| (entry.sectors() * SECTOR / BLOCK).to_string());
    let mut options = vec!["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "state", "-m", "1", "-E", &extended, "-d", &layout, &target];
    options.extend(blocks.as_deref());
    exec::in_root_ok(site.tools, "mke2fs", &options).context(|| format!("formatting the state partition {target}"))?;
    let device = File::open(device).context(|| format!("opening {target}"))?;
    device.sync_all().context(|| format!("flushing {target}"))
}

/// Name of the check's record below the node's run folder.
pub const CHECKED: &str = "state-checked.json";

/// What e2fsck(8) said of the state.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Checked {
    /// Its exit code: 0 clean, 1 and 2 repaired.
    pub code: i32,
    /// Its words, without the file system's name.
    pub said: String,
}

impl Checked {
    /// Whether there was anything to repair.
    pub fn is_repaired(&self) -> bool {
        self.code != 0
    }
}

/// Checks the file system and repairs what can be repaired without loss.
pub fn check(tools: &Path, device: &Path) -> Result<Checked> {
    let name = device.display().to_string();
    let ended = exec::in_root(tools, "e2fsck", &["-p", &name])?;
    let said: Vec<_> = ended.text.lines().map(|line| line.trim_start_matches("state: ").trim()).collect();
    match ended.code {
        0..=2 => Ok(Checked { code: ended.code, said: said.join("; ").chars().take(400).collect() }),
        code => Err(Error::environment(format!(
            "checking the state partition {name}: e2fsck ended with {code}: {}",
            said.last().unwrap_or(&"nothing said")
        ))
        .with_hint("it was not touched: save the disk, then repair it with e2fsck from an installation medium")),
    }
}

/// Size of an ext4 in bytes and of its blocks, from its superblock (kernel: filesystems/ext4, "The Super Block").
pub fn size(device: &File) -> Result<(u64, u64)> {
    let mut sb = [0; 1024];
    device.read_exact_at(&mut sb, 1024).context(|| "reading the state's superblock".into())?;
    let u32_at = |at: usize| u32::from_le_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]);
    let log = u32_at(24);
    if sb[56..58] != [0x53, 0xef] || log > 6 {
        return Err(Error::environment("reading the state's superblock: it is not an ext4"));
    }
    let high = if u32_at(0x60) & 0x80 == 0 { 0 } else { u64::from(u32_at(0x150)) };
    let block = 1024 << log;
    Ok((((high << 32) | u64::from(u32_at(4))).saturating_mul(block), block))
}

/// Grows the mounted file system when its partition of `have` bytes is at least 1 MiB larger; true when it did.
pub fn grow(device: &Path, mounted: &Path, have: u64) -> Result<bool> {
    let (bytes, block) = size(&File::open(device).context(|| format!("opening {}", device.display()))?)?;
    if have < bytes + (1 << 20) {
        return Ok(false);
    }
    let folder = File::open(mounted).context(|| format!("opening {}", mounted.display()))?;
    sys::resize_ext4(&folder, have / block).fault(Fault::Environment, || format!("growing the state from {bytes} to {have} bytes"))?;
    Ok(true)
}

/// Gives the machine its identity, once: without it systemd would take every boot for the first one.
pub fn machine_id(upper: &Path) -> Result<()> {
    let path = upper.join("machine-id");
    if fs::read_to_string(&path).is_ok_and(|text| text.trim().len() == 32) {
        return Ok(());
    }
    let draft = upper.join(".machine-id.new");
    let text = format!("{}\n", uuid::Uuid::new_v4().simple());
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(upper)?.sync_all()
    };
    write().context(|| format!("writing {}", path.display()))
}
