//! The boot files: kernel and initramfs out of the root tree, the ESP with both firmware's loaders, slots and boot state.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::node::{Slot, partition};
use layers::profile::Profile;
use layers::units::{Bytes, Digest, Seed};
use layers::{Error, Result, bootstate, medium};

use super::Image;
use super::grub::{self, Grub};
use crate::assemble::editor::Editor;
use crate::disk::file::{FileAt, Window};
use crate::disk::layout::Partition;
use crate::disk::{Disk, ReadAt};
use crate::emit::iso::{Place, Start};
use crate::fs::initramfs::Contents;
use crate::fs::{cpio, fat, initramfs};
use crate::store::Store;
use crate::tree::{Kind, Tree, TreePath};

/// Folder of the root that holds kernel and initramfs once more, so that one delta covers them.
const BOOT_DIR: &str = "usr/lib/chasi-bod/boot";
const GRUB_CFG: &str = include_str!("../../../layers/defs/boot/grub.cfg");
const MEDIUM_CFG: &str = include_str!("../../../layers/defs/boot/grub-medium.cfg");

/// Kernel and initramfs of an image.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// Kernel release, as in /usr/lib/modules.
    pub release: String,
    /// The kernel image.
    pub kernel: Arc<Vec<u8>>,
    /// The initramfs, an uncompressed cpio archive.
    pub initrd: Arc<Vec<u8>>,
}

/// Takes the kernel out of the tree, makes the initramfs, and puts both into the root.
pub fn files(editor: &mut Editor<'_, '_>, modules: &[String], init: &[u8]) -> Result<BootFiles> {
    let (path, release) = kernel(editor.tree)?;
    let kernel = editor.read(&path)?.unwrap_or_default();
    let mtime = u32::try_from(editor.epoch).unwrap_or_default();
    let contents = Contents { init: init.to_vec(), kernel_version: &release, modules, mtime };
    let mut initrd = Vec::new();
    cpio::write(&initramfs::entries(editor.tree, editor.store, &contents)?, &mut initrd)?;
    // The package's own copies below /boot would only take space: GRUB reads the ESP.
    let boot = TreePath::new("boot").map_err(Error::internal)?;
    editor.tree.remove_below(&boot);
    editor.directory("boot", 0o755)?;
    for (name, bytes) in [("vmlinuz", &kernel), ("initrd", &initrd)] {
        editor.put(TreePath::new(format!("{BOOT_DIR}/{name}")).map_err(Error::internal)?, bytes, 0o644, (0, 0))?;
    }
    Ok(BootFiles { release, kernel: Arc::new(kernel), initrd: Arc::new(initrd) })
}

/// The one kernel below /boot; none or several is the profile's fault.
fn kernel(tree: &Tree) -> Result<(TreePath, String)> {
    let boot = TreePath::new("boot").map_err(Error::internal)?;
    let found: Vec<_> = tree
        .below(&boot)
        .filter_map(|(path, node)| {
            let release = path.name().strip_prefix(b"vmlinuz-").filter(|_| matches!(node.kind, Kind::File(_)))?;
            Some((path.clone(), String::from_utf8_lossy(release).into_owned()))
        })
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::input("looking for the kernel: no package puts one below /boot").with_hint("use the layer `boot`")),
        many => {
            let names: Vec<_> = many.iter().map(|(_, release)| release.as_str()).collect();
            Err(Error::input(format!("looking for the kernel: there are {}", names.join(" and "))).with_hint("keep one kernel package"))
        }
    }
}

/// The kernel command line of a slot, without the words that GRUB adds.
pub fn command_line(profile: &Profile, root_hash: &Digest) -> String {
    let consoles = profile.boot.console.iter().map(|c| format!("console={c}"));
    // A kernel that panics restarts, so that GRUB can fall back from a trial. `gpt` has it read the table's copy at the end when the first one is damaged.
    let fixed = [format!("roothash={}", root_hash.hex()), "panic=10".into(), "gpt".into(), "quiet".into()];
    fixed.into_iter().chain(consoles).chain(profile.boot.command_line.clone()).collect::<Vec<_>>().join(" ")
}

/// Where the disk has kernel and initramfs: those of slot A, in the ESP.
fn places(files: &BootFiles, disk: &Disk, partition: &Partition) -> Result<Vec<Place>> {
    let esp = Window::new(disk, partition.offset, partition.size);
    let place = |name: &str, path: &'static str, content: &Arc<Vec<u8>>| {
        let found = fat::place(&esp, &format!("slot-a/{name}"))?;
        Ok::<_, Error>(Place { offset: partition.offset + found.start, path, content: content.clone() })
    };
    let mut places = vec![place("vmlinuz", medium::KERNEL, &files.kernel)?, place("initrd", medium::INITRD, &files.initrd)?];
    places.sort_by_key(|place| place.offset);
    Ok(places)
}

/// What a medium starts with.
pub fn start(profile: &Profile, seed: &Seed, image: &Image, grub: &grub::Medium, store: &Store) -> Result<Start> {
    let Image { boot: files, root_hash, .. } = image;
    let command_line = command_line(profile, root_hash);
    // A profile that names the disk wants it installed to.
    let default = if profile.disk.target.is_some() { "install" } else { "live" };
    let values = [
        ("default", default.into()),
        ("espSerial", grub::serial_words(grub::esp_serial(seed))),
        ("timeout", profile.boot.timeout.to_string()),
        ("id", root_hash.hex()),
        ("name", profile.name.clone()),
        ("version", profile.version.clone()),
        ("commandLine", command_line.clone()),
    ];
    Ok(Start {
        kernel: files.kernel.clone(),
        initrd: files.initrd.clone(),
        places: places(files, &image.disk, image.layout.partition(partition::ESP)?)?,
        command_line,
        menu: values.iter().fold(MEDIUM_CFG.to_string(), |menu, (key, value)| menu.replace(&format!("{{{{{key}}}}}"), value)),
        root_hash: *root_hash,
        boot_img: grub.boot_img.clone(),
        bios: grub.bios.clone(),
        efi: grub.efi.clone(),
        scratch: store.root().join("tmp"),
        made: Arc::default(),
    })
}

/// What goes into an ESP.
#[derive(Debug)]
pub struct Esp<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// Where the serial number comes from.
    pub seed: &'a Seed,
    /// Loaders.
    pub grub: &'a Grub,
    /// Kernel and initramfs of slot A.
    pub files: &'a BootFiles,
    /// dm-verity root hash of slot A.
    pub root_hash: &'a Digest,
    /// Where it will lie.
    pub partition: &'a Partition,
    /// Time of all files in seconds since 1970.
    pub epoch: i64,
}

/// The ESP as it lies on a fresh disk: loader, menu, boot state, slot A.
pub fn esp(parts: &Esp<'_>, store: &Store) -> Result<FileAt> {
    let Esp { profile, seed, grub, files: boot, root_hash, partition, epoch } = *parts;
    let command_line = command_line(profile, root_hash);
    if command_line.contains(['"', '\'', '\\', '$', '\n']) {
        return Err(Error::input(format!("writing boot.cfg: the kernel command line `{command_line}` holds a character that GRUB would interpret"))
            .with_hint("leave quotes, backslashes and `$` out of boot.commandLine"));
    }
    let menu = GRUB_CFG.replace("{{timeout}}", &profile.boot.timeout.to_string());
    let mut files: fat::Files = BTreeMap::new();
    files.insert("EFI/BOOT/BOOTX64.EFI".into(), Arc::new(grub.efi.clone()));
    files.insert("chasi/grub.cfg".into(), Arc::new(menu.into_bytes()));
    for (path, block) in bootstate::PATHS.iter().zip(bootstate::BootState::initial(Slot::A)) {
        files.insert((*path).into(), Arc::new(block.to_vec()));
    }
    for (name, bytes) in slot_files(boot, &command_line) {
        files.insert(format!("slot-a/{name}"), bytes);
    }
    let options = fat::Options {
        kind: fat::FatKind::Fat32,
        size: Bytes(partition.size),
        label: "ESP".into(),
        serial: grub::esp_serial(seed),
        epoch,
        offset: partition.offset,
    };
    fat::build(&options, &files, &store.root().join("tmp"))
}

fn slot_files(boot: &BootFiles, command_line: &str) -> [(&'static str, Arc<dyn ReadAt>); 3] {
    let cfg = format!("set chasi_cmdline=\"{command_line}\"\n");
    [("vmlinuz", boot.kernel.clone()), ("initrd", boot.initrd.clone()), ("boot.cfg", Arc::new(cfg.into_bytes()))]
}
