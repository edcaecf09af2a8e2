//! The installer on files that look like disks; sgdisk, fdisk, mke2fs, wipefs, fsck.fat and mtools of this machine are judges.

use std::os::unix::fs::FileExt as _;

use layers::units::Bytes;

use super::*;
use crate::exec;
use crate::init::state::Rules;
use crate::init::table::{self, LARGE_SECTOR, SECTOR};

const MIB: u64 = 1 << 20;

struct Site {
    _folder: tempfile::TempDir,
    host: Host,
    source: Source,
    target: std::path::PathBuf,
}

fn noise(length: u64, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sgdisk(args: &[&str], path: &std::path::Path) -> String {
    let said = exec::run(std::process::Command::new("sgdisk").args(args).arg(path)).unwrap();
    String::from_utf8(said.stdout).unwrap()
}

/// An image of six partitions (and the state that a start from memory made), and an empty disk of 128 MiB.
fn site() -> Site {
    site_of(4)
}

/// The same with so many MiB of EFI system partition, both larger by what that has more.
fn site_of(esp: u64) -> Site {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new(folder.path());
    let path = folder.path().join("image");
    let disk = std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    disk.set_len((60 + esp) * MIB).unwrap();
    let parts =
        [("esp", esp, "ef00"), ("bios", 1, "ef02"), ("root-a", 8, "8304"), ("verity-a", 1, "8300"), ("root-b", 8, "8304"), ("verity-b", 1, "8300")];
    let mut args = Vec::new();
    for (number, (name, size, kind)) in parts.iter().chain(&[("state", 8, "8310")]).enumerate() {
        let number = number + 1;
        args.extend([format!("--new={number}:0:+{size}M"), format!("--change-name={number}:{name}"), format!("--typecode={number}:{kind}")]);
    }
    sgdisk(&args.iter().map(String::as_str).collect::<Vec<_>>(), &path);
    disk.write_all_at(&noise(440, 1), 0).unwrap();
    disk.write_all_at(&noise(3 * MIB, 2), 2 * MIB).unwrap();
    disk.write_all_at(&noise(MIB, 3), (10 + esp) * MIB).unwrap();
    let root = tempfile::tempfile_in(folder.path()).unwrap();
    root.write_all_at(&noise(6 * MIB, 4), 0).unwrap();
    let entries: Vec<_> = table::read(&path, SECTOR).unwrap().into_iter().filter(|entry| entry.name != "state").collect();
    let rules = Rules { state_size: Bytes(16 * MIB), state_limit: Some(Bytes(32 * MIB)) };
    let source = Source { disk, entries, rules, root };
    host.link("usr/bin", "/usr/sbin").unwrap();
    let target = disk_of(&host, "sda", (124 + esp) * MIB);
    Site { _folder: folder, host, source, target }
}

fn disk_of(host: &Host, name: &str, size: u64) -> std::path::PathBuf {
    host.write(&format!("sys/class/block/{name}/size"), (size / 512).to_string().as_bytes(), 0o444).unwrap();
    host.write(&format!("sys/class/block/{name}/serial"), name.as_bytes(), 0o444).unwrap();
    host.write(&format!("dev/{name}"), b"", 0o600).unwrap();
    let path = host.path(&format!("dev/{name}"));
    std::fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    path
}

impl Site {
    fn open(&self, consent: Consent) -> Result<Target> {
        let all = candidates(&self.host);
        Target::open(&self.host, &self.source, all.iter().find(|disk| disk.name == "sda").unwrap(), consent)
    }

    fn install(&self, consent: Consent) {
        self.install_with(consent, &[]);
    }

    fn install_with(&self, consent: Consent, said: &[(String, Vec<u8>)]) {
        let variables = || -> Box<dyn efivar::VarManager> { Box::new(efivar::store::MemoryStore::new()) };
        install(&self.host, variables, &self.source, &mut self.open(consent).unwrap(), "x 1.0.0", said).unwrap();
    }

    /// The disk says that its sectors have so many bytes.
    fn sectors_of(&self, bytes: &str) {
        self.host.write("sys/class/block/sda/queue/logical_block_size", bytes.as_bytes(), 0o444).unwrap();
    }

    /// The machine was started by UEFI.
    fn by_uefi(&self) {
        self.host.write("sys/firmware/efi/efivars/BootOrder", b"", 0o644).unwrap();
    }

    fn at(&self, at: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        std::fs::File::open(&self.target).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn refused(&self) -> String {
        let before = std::fs::read(&self.target).unwrap();
        let error = self.open(Consent::Empty).unwrap_err().to_string();
        assert!(std::fs::read(&self.target).unwrap() == before, "the disk was written to");
        error
    }
}

#[test]
fn an_image_is_carried_whole_to_a_larger_disk_that_had_a_file_system() {
    let site = site();
    exec::run(std::process::Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-L", "old"]).arg(&site.target)).unwrap();
    site.install(Consent::Erase);
    assert!(sgdisk(&["--verify"], &site.target).contains("No problems found"));
    let names: Vec<_> = table::read(&site.target, SECTOR).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b"]);
    assert_eq!(table::guid(&site.target, SECTOR, 1).unwrap(), table::guid(&site.host.path("image"), SECTOR, 1).unwrap());
    assert_eq!((site.at(0, 440), site.at(458, 4)), (noise(440, 1), (128 * 2048 - 1_u32).to_le_bytes().to_vec()));
    assert!(site.at(2 * MIB, 3 * MIB) == noise(3 * MIB, 2) && site.at(14 * MIB, MIB) == noise(MIB, 3));
    assert!(site.at(6 * MIB, 6 * MIB) == noise(6 * MIB, 4), "the root comes through its verified device");
    assert!(site.at(15 * MIB, MIB).iter().all(|byte| *byte == 0), "slot B is empty");
    assert_eq!(disks::contents(&site.host, "sda").unwrap(), ["sda: gpt", "sda: PMBR"]);
    assert!(site.refused().contains("it is not empty: it holds sda: gpt"));
}

#[test]
fn what_was_said_to_the_medium_is_in_the_state_of_the_installed_disk() {
    let site = site();
    let text = noise(100_000, 7);
    site.install_with(Consent::Empty, &[("var/lib/chasi-bod/config.json".into(), text.clone()), ("var/lib/chasi-bod/console.json".into(), vec![1])]);
    assert!(sgdisk(&["--verify"], &site.target).contains("No problems found"));
    let entries = table::read(&site.target, SECTOR).unwrap();
    let state = entries.last().unwrap();
    assert_eq!((state.name.as_str(), state.number, state.sectors() * SECTOR), ("state", 7, 32 * MIB));
    assert!(site.at(2 * MIB, 3 * MIB) == noise(3 * MIB, 2), "nothing else was written over");
    let alone = site.host.path("state");
    std::fs::write(&alone, site.at(state.first * SECTOR, state.sectors() * SECTOR)).unwrap();
    exec::run(std::process::Command::new("e2fsck").args(["-f", "-n"]).arg(&alone)).unwrap();
    let debugfs = |request: &str| exec::run(std::process::Command::new("debugfs").args(["-R", request]).arg(&alone)).unwrap().stdout;
    assert!(debugfs("cat var/lib/chasi-bod/config.json") == text);
    let said = String::from_utf8(debugfs("stat var/lib/chasi-bod/console.json")).unwrap();
    assert!(said.contains("Mode:  0600") && said.contains("Size: 1"), "{said}");
    // The first start takes it as it is.
    let scratch = site.host.path("scratch");
    let tools = std::path::Path::new("/");
    let first =
        crate::init::state::Site { disk: &site.target, sectors: 128 * 2048, sector: SECTOR, rules: &site.source.rules, tools, scratch: &scratch };
    let done = crate::init::state::ensure(&first, |_| Ok(alone.clone())).unwrap();
    assert_eq!(done, (alone.clone(), crate::init::state::Done::Kept));
}

#[test]
fn d5_a_disk_where_something_would_be_lost_or_that_cannot_be_used_is_refused_by_name() {
    let site = site();
    let file = std::fs::File::options().write(true).open(&site.target).unwrap();
    file.write_all_at(&[7], 128 * MIB - 1).unwrap();
    assert!(site.refused().contains("/dev/sda (128MiB, , serial `sda`): it is not empty: it holds unknown data"));
    exec::run(std::process::Command::new("mkswap").args(["-q", "-L", "mine"]).arg(&site.target)).unwrap();
    assert!(site.refused().contains("it holds sda: swap `mine`"));
    assert!(site.open(Consent::Erase).is_ok());
    site.host.write("sys/class/block/sda/ro", b"1\n", 0o444).unwrap();
    assert!(site.refused().contains("it cannot be written"));
    site.sectors_of("4096\n");
    assert!(site.refused().contains("`sda`): its sectors have 4096 bytes, and BIOS starts from sectors of 512 only"));
    site.by_uefi();
    assert!(site.refused().contains("`sda`): laying out the EFI system partition for sectors of 4096 bytes: it is no FAT32"), "{}", site.refused());
    site.sectors_of("2048\n");
    assert!(site.refused().contains("its sectors have 2048 bytes, neither 512 nor 4096"));
    disk_of(&site.host, "sda", 40 * MIB);
    site.sectors_of("512\n");
    assert!(site.refused().contains("it has 40MiB, 42MiB are needed"), "{}", site.refused());
}

/// An EFI system partition as the builder makes it, with a file in it, into the image.
fn esp_with_a_file(site: &Site, esp: u64, file: &[u8], cluster: &str) {
    let [path, file_path] = ["esp", "file"].map(|name| site.host.path(name));
    std::fs::File::create(&path).unwrap().set_len(esp * MIB).unwrap();
    // All that is in front of the clusters is aligned to them, the end to a track; 2048 sectors are in front of the partition.
    exec::run(std::process::Command::new("mkfs.fat").args(["-F", "32", "-g", "64/32", "-h", "2048", "-n", "ESP", "-s", cluster]).arg(&path)).unwrap();
    std::fs::write(&file_path, file).unwrap();
    mtools("mmd", &path, &["::/EFI"]);
    mtools("mcopy", &path, &[file_path.to_str().unwrap(), "::/EFI/a longer name.txt"]);
    let made = std::fs::read(&path).unwrap();
    site.source.disk.write_all_at(&made, MIB).unwrap();
}

fn mtools(program: &str, image: &std::path::Path, args: &[&str]) -> Vec<u8> {
    exec::run(std::process::Command::new(program).arg("-i").arg(image).args(args)).unwrap().stdout
}

#[test]
fn a_disk_with_sectors_of_4096_bytes_gets_a_table_and_a_fat_in_its_own_sectors() {
    const ESP: u64 = 260;
    let site = site_of(ESP);
    let text = noise(100_000, 5);
    esp_with_a_file(&site, ESP, &text, "8");
    site.sectors_of("4096\n");
    site.by_uefi();
    site.install(Consent::Empty);

    let fdisk = exec::run(std::process::Command::new("fdisk").args(["-b", "4096", "-o", "Start,End,Sectors,Name", "-l"]).arg(&site.target)).unwrap();
    let (said, warned) = [fdisk.stdout, fdisk.stderr].map(|text| String::from_utf8(text).unwrap()).into();
    assert!(said.contains("Disklabel type: gpt") && said.contains("Sector size (logical/physical): 4096 bytes / 4096 bytes"), "{said}");
    let rows: Vec<String> =
        said.lines().skip_while(|line| !line.contains("Start")).skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let in_mib = [("esp", 1, ESP), ("bios", 261, 1), ("root-a", 262, 8), ("verity-a", 270, 1), ("root-b", 271, 8), ("verity-b", 279, 1)];
    let wanted: Vec<_> = in_mib.iter().map(|(name, at, size)| format!("{} {} {} {name}", at * 256, (at + size) * 256 - 1, size * 256)).collect();
    assert_eq!((rows, warned.as_str()), (wanted, ""));
    let entries = table::read(&site.target, LARGE_SECTOR).unwrap();
    assert_eq!(entries, site.source.entries);
    assert_eq!(table::damaged(&site.target, LARGE_SECTOR).unwrap(), None);
    assert!(table::read(&site.target, SECTOR).is_err(), "there is no other table");
    assert_eq!(site.at(458, 4), ((124 + ESP as u32) * 256 - 1).to_le_bytes());
    assert!(site.at((10 + ESP) * MIB, MIB) == noise(MIB, 3) && site.at((2 + ESP) * MIB, 6 * MIB) == noise(6 * MIB, 4));
    let drive = firmware::drive(&site.target, LARGE_SECTOR).unwrap();
    assert_eq!((drive.partition_number, drive.partition_start, drive.partition_size), (1, 256, ESP * 256));

    let esp = site.host.path("found");
    std::fs::write(&esp, site.at(MIB, ESP * MIB)).unwrap();
    let said = String::from_utf8(exec::run(std::process::Command::new("fsck.fat").args(["-n", "-v"]).arg(&esp)).unwrap().stdout).unwrap();
    let of = |what: &str| said.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") == what);
    assert!(of("4096 bytes per logical sector") && of("4096 bytes per cluster") && of("256 hidden sectors"), "{said}");
    for trouble in ["Warning", "differences", "differ", "wrong", "Unused", "Leaving"] {
        assert!(!said.contains(trouble), "{said}");
    }
    assert!(String::from_utf8(mtools("mdir", &esp, &["::/EFI"])).unwrap().contains("a longer name.txt"));
    assert!(mtools("mcopy", &esp, &["::/EFI/a longer name.txt", "-"]) == text);
}

#[test]
fn d5_an_efi_system_partition_that_sectors_of_4096_bytes_cannot_have_is_told_before_the_disk_is_touched() {
    let site = site_of(64);
    esp_with_a_file(&site, 64, b"text", "1");
    site.sectors_of("4096\n");
    site.by_uefi();
    assert!(site.refused().contains("`sda`): laying out the EFI system partition for sectors of 4096 bytes: a cluster has 1 sectors of 512 bytes"));
    assert!(site.open(Consent::Erase).unwrap_err().hint().unwrap().contains("disk.espSize"));
    site.sectors_of("512\n");
    assert!(site.open(Consent::Empty).is_ok());
}

#[test]
fn d5_a_medium_is_no_target_and_a_choice_that_is_not_one_names_all() {
    let site = site();
    let medium = disk_of(&site.host, "sdb", 64 * MIB);
    disk_of(&site.host, "sdc", 128 * MIB);
    let file = std::fs::File::options().write(true).open(medium).unwrap();
    file.write_all_at(b"CD001", 32769).unwrap();
    let wanted = |text: &str| Selector::try_from(text.to_string()).unwrap();
    let error = prepare(&site.host, &site.source, &wanted("size > 1 * MiB"), Consent::Empty).unwrap_err().to_string();
    assert!(error.contains("more than one disk answers `size > 1 * MiB`: /dev/sda (") && error.contains("/dev/sdc (") && !error.contains("sdb"));
    let chosen = prepare(&site.host, &site.source, &wanted("serial == 'sdc'"), Consent::Empty).unwrap();
    assert_eq!(chosen.disk.path, "/dev/sdc");
}

#[test]
fn d5_a_disk_that_cannot_be_read_does_not_hide_the_others() {
    let site = site();
    std::fs::remove_file(disk_of(&site.host, "sdb", 64 * MIB)).unwrap();
    let rows = disks::rows(&site.host, None).unwrap();
    let said = disks::table(&rows, None);
    assert!(said.contains("holds nothing known") && said.contains("holds what cannot be read: ") && said.contains("dev/sdb"), "{said}");
    let json = serde_json::to_value(&rows).unwrap();
    assert_eq!((&json[0]["contents"], &json[1]["contents"]), (&serde_json::json!([]), &serde_json::Value::Null));
}

#[test]
fn a_power_cut_leaves_a_mark_that_the_next_installation_takes_as_consent() {
    let site = site();
    exec::run(std::process::Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&site.target)).unwrap();
    let target = site.open(Consent::Erase).unwrap();
    target.clear(&site.host, "x 1.0.0").unwrap();
    assert_eq!(disks::contents(&site.host, "sda").unwrap(), Vec::<String>::new());
    drop(target);
    let target = site.open(Consent::Empty).unwrap();
    target.write(&site.source).unwrap();
    drop(target);
    assert!(table::read(&site.target, SECTOR).is_err(), "nothing starts before it was read again");
    site.install(Consent::Empty);
    assert!(sgdisk(&["--verify"], &site.target).contains("No problems found"));
}

#[test]
fn a_disk_that_does_not_keep_what_is_written_is_named_with_the_place() {
    let site = site();
    let target = site.open(Consent::Empty).unwrap();
    target.write(&site.source).unwrap();
    let file = std::fs::File::options().write(true).open(&site.target).unwrap();
    file.write_all_at(&[site.at(7 * MIB, 1)[0] ^ 1], 7 * MIB).unwrap();
    let error = target.compare(&site.source).unwrap_err().to_string();
    assert!(error.contains(&format!("dev/sda: byte {} is not as it was written", 7 * MIB)), "{error}");
}
