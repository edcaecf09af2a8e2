//! The state partition on disks that are files: sgdisk, fdisk, e2fsck and debugfs are the judges.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use firstboot::exec::in_root;
use firstboot::init::state::{self, Done, Rules, Site};
use firstboot::init::table::{self, Entry, LARGE_SECTOR, SECTOR, StatePlan, UNFINISHED};
use layers::node::partition;
use layers::units::Bytes;

const MIB: u64 = 1 << 20;

struct Disk {
    folder: tempfile::TempDir,
    path: PathBuf,
    sector: u64,
}

fn tool(program: &str, args: &[&str]) -> String {
    let ended = in_root(Path::new("/"), program, args).unwrap();
    assert_eq!(ended.code, 0, "{program}: {}", ended.text);
    ended.text
}

impl Disk {
    /// A disk of 64 MiB as the builder makes it, then grown.
    fn new(grown: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(64 * MIB).unwrap();
        let names = ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b"];
        for (index, name) in names.iter().enumerate() {
            let (n, start) = (index + 1, 2048 * (1 + 4 * index));
            tool("sgdisk", &["-n", &format!("{n}:{start}:+8191"), "-c", &format!("{n}:{name}"), path.to_str().unwrap()]);
        }
        let disk = Self { folder, path, sector: SECTOR };
        disk.resize(grown);
        disk
    }

    /// The same with sectors of 4096 bytes, as the installer writes its table.
    fn large(grown: u64) -> Self {
        let (image, disk) = (Self::new(64 * MIB), tempfile::tempdir().unwrap());
        let path = disk.path().join("disk");
        let [from, to] = [&image.path, &path].map(|path| File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap());
        to.set_len(grown).unwrap();
        table::copy(&from, &to, LARGE_SECTOR).unwrap();
        Self { folder: disk, path, sector: LARGE_SECTOR }
    }

    fn resize(&self, bytes: u64) {
        File::options().write(true).open(&self.path).unwrap().set_len(bytes).unwrap();
    }

    fn sectors(&self) -> u64 {
        fs::metadata(&self.path).unwrap().len() / SECTOR
    }

    fn verify(&self) {
        let said = tool("sgdisk", &["-v", self.path.to_str().unwrap()]);
        assert!(said.contains("No problems found"), "{said}");
    }

    fn plan(&self, rules: &Rules) -> layers::Result<StatePlan> {
        table::plan(&table::read(&self.path, self.sector).unwrap(), self.sectors(), rules.state_size, rules.state_limit)
    }

    /// The file that stands for the state partition's device.
    fn device(&self, entry: &Entry) -> PathBuf {
        let path = self.folder.path().join("state");
        let file = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        file.set_len(entry.sectors() * SECTOR).unwrap();
        path
    }

    fn ensure(&self, rules: &Rules) -> (PathBuf, Done) {
        let scratch = self.folder.path().join("scratch");
        let site = Site { disk: &self.path, sectors: self.sectors(), sector: self.sector, rules, tools: Path::new("/"), scratch: &scratch };
        state::ensure(&site, |entry| Ok(self.device(entry))).unwrap()
    }
}

fn rules() -> Rules {
    Rules { state_size: Bytes::mib(32), ..Rules::default() }
}

fn check_state(device: &Path) {
    let device = device.to_str().unwrap();
    tool("e2fsck", &["-fn", device]);
    let listing = tool("debugfs", &["-R", "ls -p /", device]);
    for (name, mode) in [("etc", "040755"), ("var", "040755"), ("home", "040755"), ("root", "040700"), ("srv", "040755")] {
        assert!(listing.lines().any(|l| l.contains(&format!("/{mode}/")) && l.contains(&format!("/{name}/"))), "{name}: {listing}");
    }
}

#[test]
fn a_new_disk_gets_a_state_that_fills_it_and_keeps_it() {
    let disk = Disk::new(200 * MIB);
    let (device, done) = disk.ensure(&rules());
    assert_eq!(done, Done::Made);
    disk.verify();
    check_state(&device);
    let entries = table::read(&disk.path, SECTOR).unwrap();
    assert_eq!(entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b", "state"]);
    assert_eq!((entries[6].first, entries[6].last + 1), (2048 * 25, 2048 * 199));
    let info = tool("sgdisk", &["-i", "7", disk.path.to_str().unwrap()]);
    assert!(info.contains(partition::STATE_TYPE), "{info}");
    let before = fs::read(&device).unwrap();
    assert_eq!(disk.ensure(&rules()).1, Done::Kept);
    assert!(before == fs::read(&device).unwrap(), "a state that is complete is not touched");
}

#[test]
fn a_grown_disk_grows_the_partition_up_to_its_limit() {
    let disk = Disk::new(200 * MIB);
    disk.ensure(&rules());
    let identity = |d: &Disk| tool("sgdisk", &["-i", "7", d.path.to_str().unwrap()]).lines().nth(1).unwrap().to_string();
    let id = identity(&disk);
    disk.resize(400 * MIB);
    assert_eq!(disk.ensure(&rules()).1, Done::Grown);
    disk.verify();
    assert_eq!(table::read(&disk.path, SECTOR).unwrap()[6].last + 1, 2048 * 399);
    assert_eq!(identity(&disk), id);
    let limited = Rules { state_limit: Some(Bytes::mib(100)), ..rules() };
    assert_eq!(disk.ensure(&limited).1, Done::Kept, "a limit never shrinks a state");
    let small = Disk::new(400 * MIB);
    small.ensure(&limited);
    assert_eq!(table::read(&small.path, SECTOR).unwrap()[6].sectors() * SECTOR, 100 * MIB);
}

#[test]
fn a_disk_without_room_is_refused_with_both_sizes() {
    let disk = Disk::new(64 * MIB);
    let error = disk.plan(&Rules { state_size: Bytes(2 << 30), ..Rules::default() }).unwrap_err();
    assert!(error.to_string().contains("needs 2GiB, the disk has 38MiB left"), "{error}");
    assert_eq!(error.hint(), Some("enlarge the disk, then start again"));
}

/// F1: killed before any step, the next run makes the same state.
#[test]
fn f1_a_state_that_was_not_finished_is_made_anew() {
    let disk = Disk::new(200 * MIB);
    let Ok(StatePlan::Make(entry)) = disk.plan(&rules()) else { panic!("nothing to make") };
    table::write(&disk.path, SECTOR, &entry).unwrap();
    assert_eq!(disk.plan(&rules()).unwrap(), StatePlan::Make(entry.clone()), "after the entry");
    let device = disk.device(&entry);
    let half = vec![0x5a; 8 << 20];
    File::options().write(true).open(&device).unwrap().write_all_at(&half, 0).unwrap();
    disk.resize(300 * MIB);
    let (device, done) = disk.ensure(&rules());
    assert_eq!(done, Done::Made, "in the middle of formatting, and the disk grew meanwhile");
    disk.verify();
    check_state(&device);
    assert!(table::read(&disk.path, SECTOR).unwrap().iter().all(|e| e.name != UNFINISHED));
}

/// F1: a damaged file system in a state that was complete is never formatted.
#[test]
fn f1_a_complete_state_is_never_formatted_however_damaged() {
    let disk = Disk::new(200 * MIB);
    let (device, _) = disk.ensure(&rules());
    let file = File::options().write(true).open(&device).unwrap();
    file.write_all_at(&vec![0; 150 << 20], 0).unwrap();
    assert_eq!(disk.ensure(&rules()).1, Done::Kept);
    let error = state::check(Path::new("/"), &device).unwrap_err();
    assert!(error.to_string().contains("e2fsck ended with 8") && error.hint().unwrap().contains("not touched"), "{error}");
}

/// D3: either copy of the table is enough, and the next write repairs the other one.
#[test]
fn d3_either_copy_of_the_table_is_enough() {
    for (from, length) in [(0x200, 0x4200), (0x400, 0x4000), (64 * MIB - 0x4200, 0x4200)] {
        let disk = Disk::new(64 * MIB);
        let file = File::options().write(true).open(&disk.path).unwrap();
        file.write_all_at(&vec![0; length as usize], from).unwrap();
        disk.ensure(&rules());
        disk.verify();
        assert_eq!(table::read(&disk.path, SECTOR).unwrap().len(), 7, "{from}");
    }
}

/// D3: a copy that is damaged later is written anew from the other one, byte by byte.
#[test]
fn d3_a_damaged_copy_of_the_table_is_repaired_at_the_next_boot() {
    let disk = Disk::new(64 * MIB);
    disk.ensure(&rules());
    let whole = fs::read(&disk.path).unwrap();
    assert_eq!(table::damaged(&disk.path, SECTOR).unwrap(), None);
    let end = 64 * MIB;
    for (from, copy) in [(0x200, "first"), (0x210, "first"), (0x400, "first"), (end - 0x200, "last"), (end - 0x4200, "last")] {
        let file = File::options().write(true).open(&disk.path).unwrap();
        file.write_all_at(&[0x55; 16], from).unwrap();
        assert_eq!(table::damaged(&disk.path, SECTOR).unwrap(), Some(copy), "{from}");
        disk.ensure(&rules());
        assert!(fs::read(&disk.path).unwrap() == whole, "{from}");
    }
}

/// What fdisk reads of a disk with sectors of 4096 bytes: its last partition; complaints come behind it.
fn last_by_fdisk(disk: &Disk) -> String {
    let ended = in_root(Path::new("/"), "fdisk", &["-b", "4096", "-o", "Start,End,Type-UUID,Name", "-l", disk.path.to_str().unwrap()]).unwrap();
    assert!(ended.code == 0 && ended.text.contains("Disklabel type: gpt"), "{}", ended.text);
    // The protective MBR keeps its size when a disk grows, as with small sectors.
    let mut lines = ended.text.lines().filter(|line| !line.starts_with("GPT PMBR size mismatch"));
    lines.next_back().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn d3_a_disk_with_sectors_of_4096_bytes_gets_a_state_that_grows_and_its_table_is_repaired() {
    let disk = Disk::large(200 * MIB);
    let wanted = |end: u64| format!("{} {} {} state", 25 * 256, end * 256 - 1, partition::STATE_TYPE.to_uppercase());
    let (device, done) = disk.ensure(&rules());
    assert_eq!((done, last_by_fdisk(&disk)), (Done::Made, wanted(199)));
    check_state(&device);
    assert_eq!(disk.ensure(&rules()).1, Done::Kept);
    disk.resize(400 * MIB);
    assert_eq!((disk.ensure(&rules()).1, last_by_fdisk(&disk)), (Done::Grown, wanted(399)));
    let entries = table::read(&disk.path, LARGE_SECTOR).unwrap();
    assert_eq!((entries.len(), entries[6].first, entries[6].last + 1), (7, 2048 * 25, 2048 * 399));
    let whole = fs::read(&disk.path).unwrap();
    let end = 400 * MIB;
    for (from, copy) in [(0x1000, "first"), (0x1010, "first"), (0x2000, "first"), (end - 0x1000, "last"), (end - 0x5000, "last")] {
        let file = File::options().write(true).open(&disk.path).unwrap();
        file.write_all_at(&[0x55; 16], from).unwrap();
        assert_eq!(table::damaged(&disk.path, LARGE_SECTOR).unwrap(), Some(copy), "{from}");
        assert_eq!(disk.ensure(&rules()).1, Done::Kept);
        assert!(fs::read(&disk.path).unwrap() == whole, "{from}");
    }
}

/// F1: the power goes after any write of the table: a whole copy is always there, with the old entries or the new ones.
#[test]
fn f1_a_power_cut_while_the_table_is_written_leaves_a_whole_copy() {
    let disk = Disk::new(64 * MIB);
    let old = fs::read(&disk.path).unwrap();
    let Ok(StatePlan::Make(entry)) = disk.plan(&rules()) else { panic!("nothing to make") };
    table::write(&disk.path, SECTOR, &entry).unwrap();
    let new = fs::read(&disk.path).unwrap();
    let changed: Vec<usize> = (0..new.len() / 512).filter(|s| old[s * 512..][..512] != new[s * 512..][..512]).collect();
    let (start, end): (Vec<usize>, Vec<usize>) = changed.iter().partition(|s| **s < 1000);
    assert!(start.len() >= 2 && end.len() >= 2, "{changed:?}");
    let cut = disk.folder.path().join("cut");
    for written in 0..=changed.len() {
        let mut bytes = old.clone();
        for sector in end.iter().chain(&start).take(written) {
            bytes[*sector * 512..][..512].copy_from_slice(&new[*sector * 512..][..512]);
        }
        fs::write(&cut, bytes).unwrap();
        let names: Vec<_> = table::read(&cut, SECTOR).unwrap().into_iter().map(|e| e.name).collect();
        assert!(names[..6] == ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b"] && names.len() <= 7, "{written}: {names:?}");
    }
}

#[test]
fn the_machine_id_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    state::machine_id(folder.path()).unwrap();
    let first = fs::read_to_string(folder.path().join("machine-id")).unwrap();
    assert!(first.trim().len() == 32 && first.trim().chars().all(|c| c.is_ascii_hexdigit()));
    state::machine_id(folder.path()).unwrap();
    assert_eq!(first, fs::read_to_string(folder.path().join("machine-id")).unwrap());
    fs::remove_file(folder.path().join("machine-id")).unwrap();
    fs::write(folder.path().join("machine-id"), "").unwrap();
    state::machine_id(folder.path()).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("machine-id")).unwrap().len(), 33);
}

#[test]
fn the_size_of_an_ext4_is_read_from_its_superblock() {
    let disk = Disk::new(200 * MIB);
    let (device, _) = disk.ensure(&rules());
    assert_eq!(state::size(&File::open(&device).unwrap()).unwrap(), (174 * MIB, 4096));
    fs::write(&device, vec![0; 4096]).unwrap();
    assert!(state::size(&File::open(&device).unwrap()).is_err());
}
