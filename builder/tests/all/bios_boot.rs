//! A disk made by us boots Debian's GRUB by BIOS in QEMU, from raw and from QCOW2; GRUB reads the EFI system partition and rewrites its
//! environment block there in place. Needs the machine's Debian mirror (through apt) and QEMU.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use builder::disk::file::Window;
use builder::disk::layout::Layout;
use builder::disk::{Disk, ReadAt, bios, gpt};
use builder::emit::{OutputFormat, emit, open};
use builder::fs::fat;
use layers::profile;
use layers::units::{Bytes, Seed};

use crate::common::machine;

const SCRIPT: &str = r#"
serial --unit=0 --speed=115200
terminal_output serial
search --no-floppy --file --set=root /slot-a/boot.cfg
echo "found on $root"
cat ($root)/slot-a/boot.cfg
load_env --file ($root)/chasi/grubenv tries
echo "tries were $tries"
set tries=2
save_env --file ($root)/chasi/grubenv tries
echo "saved and done"
halt
"#;

fn run(command: &mut Command) -> Vec<u8> {
    builder::exec::run(command).unwrap().stdout
}

/// Boot image and core image of Debian's GRUB.
fn grub(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    run(Command::new("apt-get").args(["download", "grub-pc-bin", "grub-common", "libdevmapper1.02.1"]).current_dir(dir));
    for deb in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "deb")).collect::<Vec<_>>() {
        run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir));
    }
    let (modules, script, core) = (dir.join("usr/lib/grub/i386-pc"), dir.join("early.cfg"), dir.join("core.img"));
    std::fs::write(&script, SCRIPT).unwrap();
    let mut make = Command::new(dir.join("usr/bin/grub-mkimage"));
    let libraries = [dir.join("lib/x86_64-linux-gnu"), dir.join("usr/lib/x86_64-linux-gnu")].map(|p| p.display().to_string()).join(":");
    make.env("LD_LIBRARY_PATH", libraries).args(["-O", "i386-pc", "-p", "/grub", "-d"]).arg(&modules).arg("-c").arg(&script).arg("-o").arg(&core);
    run(make.args(["biosdisk", "part_gpt", "fat", "search", "search_fs_file", "serial", "terminal", "echo", "cat", "loadenv", "halt", "normal"]));
    (std::fs::read(modules.join("boot.img")).unwrap(), std::fs::read(core).unwrap())
}

fn disk(dir: &Path) -> (Layout, Disk) {
    let (boot, core) = grub(dir);
    let layout = Layout::new(&profile::Disk::default(), Bytes(0), Bytes(0), &Seed::new("bios")).unwrap();
    let mut disk = Disk::new(layout.size);
    let code = bios::put(&layout, &boot, core, &mut disk).unwrap();
    gpt::put(&layout, Some(&code), &mut disk).unwrap();
    let environment = format!("{:#<1024}", "# GRUB Environment Block\ntries=3\n");
    let files = [("slot-a/boot.cfg", "the configuration of slot a\n".to_string()), ("chasi/grubenv", environment)];
    let files = files.into_iter().map(|(name, text)| (name.to_string(), Arc::new(text.into_bytes()) as Arc<dyn ReadAt>)).collect();
    let esp = layout.partition("esp").unwrap();
    let options =
        fat::Options { kind: fat::FatKind::Fat32, size: Bytes(esp.size), label: "CHASI".into(), serial: 7, epoch: 1_700_000_000, offset: esp.offset };
    disk.put(esp.offset, Arc::new(fat::build(&options, &files, dir).unwrap())).unwrap();
    (layout, disk)
}

#[test]
fn grub_boots_by_bios_and_writes_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, disk) = disk(dir.path());
    // QEMU has no driver for raw.zst, and a stream-optimized VMDK takes no writes: they go to an overlay that is thrown away.
    for (format, snapshot, tries) in [(OutputFormat::Raw, "off", 2), (OutputFormat::Qcow2, "off", 2), (OutputFormat::Vmdk, "on", 3)] {
        let (image, serial) = (dir.path().join(format.extension()), dir.path().join("serial"));
        emit(format, &disk, &machine(), &image).unwrap();
        let mut qemu = Command::new("timeout");
        qemu.args([
            "120",
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-m",
            "256",
            "-display",
            "none",
            "-nic",
            "none",
            "-no-reboot",
            "-boot",
            "c",
            "-serial",
        ]);
        qemu.arg(format!("file:{}", serial.display())).arg("-drive");
        run(qemu.arg(format!("file={},format={},if=virtio,snapshot={snapshot}", image.display(), format.extension())));
        let said = String::from_utf8_lossy(&std::fs::read(&serial).unwrap()).into_owned();
        for line in ["found on hd0,gpt1", "the configuration of slot a", "tries were 3", "saved and done"] {
            assert!(said.contains(line), "{format:?}: {line}: {said}");
        }
        let esp = layout.partition("esp").unwrap();
        let after = fat::read(&Window::new(open(&image).unwrap().1.as_ref(), esp.offset, esp.size), "chasi/grubenv").unwrap();
        let after = String::from_utf8(after).unwrap();
        assert!(after.len() == 1024 && after.contains(&format!("\ntries={tries}\n")), "{format:?}: {after}");
    }
}
