//! The installer on files that look like disks; sgdisk, mke2fs and wipefs of this machine are judges.

use std::os::unix::fs::FileExt as _;

use layers::units::Bytes;

use super::*;
use crate::exec;
use crate::init::table;

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
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new(folder.path());
    let path = folder.path().join("image");
    let disk = std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    disk.set_len(64 * MIB).unwrap();
    let parts =
        [("esp", 4, "ef00"), ("bios", 1, "ef02"), ("root-a", 8, "8304"), ("verity-a", 1, "8300"), ("root-b", 8, "8304"), ("verity-b", 1, "8300")];
    let mut args = Vec::new();
    for (number, (name, size, kind)) in parts.iter().chain(&[("state", 8, "8310")]).enumerate() {
        let number = number + 1;
        args.extend([format!("--new={number}:0:+{size}M"), format!("--change-name={number}:{name}"), format!("--typecode={number}:{kind}")]);
    }
    sgdisk(&args.iter().map(String::as_str).collect::<Vec<_>>(), &path);
    disk.write_all_at(&noise(440, 1), 0).unwrap();
    disk.write_all_at(&noise(3 * MIB, 2), 2 * MIB).unwrap();
    disk.write_all_at(&noise(MIB, 3), 14 * MIB).unwrap();
    let root = tempfile::tempfile_in(folder.path()).unwrap();
    root.write_all_at(&noise(6 * MIB, 4), 0).unwrap();
    let entries: Vec<_> = table::read(&path).unwrap().into_iter().filter(|entry| entry.name != "state").collect();
    let source = Source { disk, entries, state: Bytes(16 * MIB), root };
    host.link("usr/bin", "/usr/sbin").unwrap();
    let target = disk_of(&host, "sda", 128 * MIB);
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
    install(&site.host, &site.source, &site.open(Consent::Erase).unwrap(), "x 1.0.0").unwrap();
    assert!(sgdisk(&["--verify"], &site.target).contains("No problems found"));
    let names: Vec<_> = table::read(&site.target).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b"]);
    assert_eq!(table::guid(&site.target, 1).unwrap(), table::guid(&site.host.path("image"), 1).unwrap());
    assert_eq!((site.at(0, 440), site.at(458, 4)), (noise(440, 1), (128 * 2048 - 1_u32).to_le_bytes().to_vec()));
    assert!(site.at(2 * MIB, 3 * MIB) == noise(3 * MIB, 2) && site.at(14 * MIB, MIB) == noise(MIB, 3));
    assert!(site.at(6 * MIB, 6 * MIB) == noise(6 * MIB, 4), "the root comes through its verified device");
    assert!(site.at(15 * MIB, MIB).iter().all(|byte| *byte == 0), "slot B is empty");
    assert_eq!(disks::contents(&site.host, "sda").unwrap(), ["sda: gpt", "sda: PMBR"]);
    assert!(site.refused().contains("it is not empty: it holds sda: gpt"));
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
    site.host.write("sys/class/block/sda/queue/logical_block_size", b"4096\n", 0o444).unwrap();
    assert!(site.refused().contains("its sectors have 4096 bytes, the image is made for 512"));
    disk_of(&site.host, "sda", 40 * MIB);
    site.host.write("sys/class/block/sda/queue/logical_block_size", b"512\n", 0o444).unwrap();
    assert!(site.refused().contains("it has 40MiB, 42MiB are needed"), "{}", site.refused());
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
    assert!(table::read(&site.target).is_err(), "nothing starts before it was read again");
    install(&site.host, &site.source, &site.open(Consent::Empty).unwrap(), "x 1.0.0").unwrap();
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
