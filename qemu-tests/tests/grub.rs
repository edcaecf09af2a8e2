//! GRUB's menu (layers/defs/boot) on a real disk under SeaBIOS and OVMF: which slot is started, and what it leaves on the disk.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use layers::bootstate::{BLOCK, BootState, PATHS};
use layers::node::Slot;
use qemu_tests::vm::{Firmware, Machine};
use qemu_tests::{debs, exec, grub};

const ESP_START: u64 = 2 << 20;
const ESP_SIZE: u64 = 64 << 20;
const DISK: u64 = ESP_START + ESP_SIZE + (1 << 20);

struct Disk {
    folder: tempfile::TempDir,
    path: PathBuf,
}

/// What lies on the disk.
struct Setup {
    blocks: [Vec<u8>; 2],
    slots: &'static [char],
}

fn menu() -> String {
    let text = include_str!("../../layers/defs/boot/grub.cfg").replace("{{timeout}}", "0");
    text.replace("{{start}}", include_str!("../../layers/defs/boot/start.cfg"))
}

/// The boot sector and core image as grub-bios-setup would place them: the core image's first sector holds the list of its own sectors.
fn install_bios(disk: &fs::File, core: &[u8], start: u64) {
    let root = debs::unpacked(&[]).unwrap();
    let mut boot = fs::read(root.join("usr/lib/grub/i386-pc/boot.img")).unwrap();
    let sector = start / 512;
    boot[0x5c..0x64].copy_from_slice(&sector.to_le_bytes());
    boot[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    disk.write_all_at(&boot[..440], 0).unwrap();
    let mut core = core.to_vec();
    core[0x1f4..0x1fc].copy_from_slice(&(sector + 1).to_le_bytes());
    disk.write_all_at(&core, start).unwrap();
}

fn make(setup: &Setup) -> Disk {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let file = fs::File::create(&path).unwrap();
    file.set_len(DISK).unwrap();
    let disk = path.display().to_string();
    let esp = format!("1:{}:+{}M", ESP_START / 512, ESP_SIZE >> 20);
    exec::run("sgdisk", &["-n", &esp, "-t", "1:ef00", "-n", "2:2048:4095", "-t", "2:ef02", "-a", "1", &disk]).unwrap();
    let core = fs::read(grub::core_image(folder.path(), "i386-pc", "(,gpt1)/chasi", &[]).unwrap()).unwrap();
    assert!(core.len() < 1 << 20, "GRUB's core image has {} bytes: more than the BIOS partition", core.len());
    install_bios(&file, &core, 1 << 20);
    fill_esp(folder.path(), &path, setup);
    Disk { folder, path }
}

fn fill_esp(folder: &Path, disk: &Path, setup: &Setup) {
    let image = format!("{}@@{ESP_START}", disk.display());
    let offset = (ESP_START / 512).to_string();
    exec::run("mkfs.vfat", &["--offset", &offset, "-F", "32", &disk.display().to_string(), &(ESP_SIZE >> 10).to_string()]).unwrap();
    let efi = grub::core_image(folder, "x86_64-efi", "/chasi", &[]).unwrap();
    let config = folder.join("grub.cfg");
    fs::write(&config, menu()).unwrap();
    for dir in ["EFI", "EFI/BOOT", "chasi"] {
        exec::run("mmd", &["-i", &image, &format!("::{dir}")]).unwrap();
    }
    let copy = |from: &Path, to: &str| exec::run("mcopy", &["-i", &image, &from.display().to_string(), &format!("::{to}")]).unwrap();
    copy(&efi, "EFI/BOOT/BOOTX64.EFI");
    copy(&config, "chasi/grub.cfg");
    for (block, path) in setup.blocks.iter().zip(PATHS) {
        let from = folder.join("block");
        fs::write(&from, block).unwrap();
        copy(&from, path);
    }
    let kernel = kernel();
    let (initrd, config) = (folder.join("initrd"), folder.join("boot.cfg"));
    fs::write(&initrd, [0; 512]).unwrap();
    fs::write(&config, "set chasi_cmdline=\"console=ttyS0,115200 earlyprintk=ttyS0,115200 panic=-1 nokaslr\"\n").unwrap();
    for slot in setup.slots {
        exec::run("mmd", &["-i", &image, &format!("::slot-{slot}")]).unwrap();
        copy(&kernel, &format!("slot-{slot}/vmlinuz"));
        copy(&initrd, &format!("slot-{slot}/initrd"));
        copy(&config, &format!("slot-{slot}/boot.cfg"));
    }
}

fn kernel() -> PathBuf {
    let package = debs::kernel_package().unwrap();
    let root = debs::unpacked(&[&package]).unwrap();
    root.join(format!("boot/{}", package.replace("linux-image", "vmlinuz")))
}

impl Disk {
    fn block(&self, index: usize) -> Vec<u8> {
        let to = self.folder.path().join("read");
        let image = format!("{}@@{ESP_START}", self.path.display());
        exec::run("mcopy", &["-n", "-o", "-i", &image, &format!("::{}", PATHS[index]), &to.display().to_string()]).unwrap();
        fs::read(to).unwrap()
    }

    fn state(&self) -> BootState {
        BootState::newest(&self.block(0), &self.block(1)).unwrap().1
    }

    /// Boots under a firmware; returns the kernel's command line.
    fn boot(&self, firmware: Firmware) -> String {
        let mut vm = Machine { memory: 512, ..Machine::new(firmware, &[&self.path]) }.start(self.folder.path()).unwrap();
        vm.wait("Command line:", 120).unwrap()
    }
}

fn check(line: &str, slot: char, trial: bool) {
    assert!(line.contains(&format!("chasi.slot={slot}")), "{line}");
    assert_eq!(line.contains("chasi.trial=1"), trial, "{line}");
}

fn blocks(state: BootState) -> [Vec<u8>; 2] {
    let older = BootState { good: state.good, ..BootState::new(state.good) };
    [older.encode().to_vec(), BootState { sequence: 2, ..state }.encode().to_vec()]
}

fn trial(tries: u8) -> BootState {
    BootState { sequence: 2, good: Slot::A, trial: Some(Slot::B), tries }
}

/// A fresh image starts slot A; a trial is started while tries are left, counted on the disk, then the good slot is started again.
fn walk(firmware: &Firmware) {
    let fresh = make(&Setup { blocks: BootState::initial(Slot::A).map(|b| b.to_vec()), slots: &['a'] });
    check(&fresh.boot(firmware.clone()), 'a', false);
    let disk = make(&Setup { blocks: blocks(trial(2)), slots: &['a', 'b'] });
    check(&disk.boot(firmware.clone()), 'b', true);
    assert_eq!(disk.state(), trial(1));
    check(&disk.boot(firmware.clone()), 'b', true);
    assert_eq!(disk.state(), trial(0));
    check(&disk.boot(firmware.clone()), 'a', false);
    assert_eq!(disk.state(), trial(0));
    assert_eq!(disk.block(0), blocks(trial(2))[0], "only the newest block is written");
    exec::run("fsck.fat", &["-n", &esp_copy(&disk)]).unwrap();
}

fn esp_copy(disk: &Disk) -> String {
    let whole = fs::read(&disk.path).unwrap();
    let to = disk.folder.path().join("esp");
    fs::write(&to, &whole[ESP_START as usize..(ESP_START + ESP_SIZE) as usize]).unwrap();
    to.display().to_string()
}

#[test]
fn bios_starts_the_slot_that_the_boot_state_names_and_counts_tries() {
    walk(&Firmware::Bios);
}

#[test]
#[ignore = "soak: CI boots the slots of a whole image under UEFI"]
fn soak_uefi_starts_the_slot_that_the_boot_state_names_and_counts_tries() {
    walk(&Firmware::Uefi);
}

#[test]
fn a_torn_block_does_not_count() {
    let [_, mut new] = blocks(BootState { good: Slot::B, trial: None, ..trial(0) });
    let old = BootState::new(Slot::A).encode().to_vec();
    let end = new.windows(5).position(|w| w == b"end=2").unwrap();
    new[end + 4] = b'1';
    let disk = make(&Setup { blocks: [old.clone(), new], slots: &['a', 'b'] });
    check(&disk.boot(Firmware::Bios), 'a', false);
    let disk = make(&Setup { blocks: [vec![0; BLOCK], BootState::new(Slot::B).encode().to_vec()], slots: &['a', 'b'] });
    check(&disk.boot(Firmware::Uefi), 'b', false);
    let disk = make(&Setup { blocks: [vec![0; BLOCK], vec![0; BLOCK]], slots: &['b'] });
    check(&disk.boot(Firmware::Bios), 'b', false);
}

#[test]
fn a_slot_without_files_gives_way_to_the_other() {
    let disk = make(&Setup { blocks: BootState::initial(Slot::A).map(|b| b.to_vec()), slots: &['b'] });
    check(&disk.boot(Firmware::Bios), 'b', false);
    let disk = make(&Setup { blocks: blocks(trial(2)), slots: &['a'] });
    check(&disk.boot(Firmware::Uefi), 'a', false);
}

/// E16 for the loader: with nothing to start it says so and stays.
#[test]
fn e16_no_slot_at_all_is_said_and_not_rebooted() {
    let disk = make(&Setup { blocks: BootState::initial(Slot::A).map(|b| b.to_vec()), slots: &[] });
    let mut vm = Machine { memory: 512, ..Machine::new(Firmware::Bios, &[&disk.path]) }.start(disk.folder.path()).unwrap();
    vm.wait("no slot can be started", 60).unwrap();
    assert!(vm.wait_end(3).is_err(), "the machine ended");
}
