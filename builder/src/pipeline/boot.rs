//! The boot files: kernel and initramfs out of the root tree, the ESP with both firmware's loaders, slots and boot state.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::node::{Slot, partition};
use layers::profile::Profile;
use layers::units::{Bytes, Digest};
use layers::{Error, Result, bootstate, medium};

use super::grub::{self, Grub, Signing};
use super::{Image, Key};
use crate::assemble::editor::Editor;
use crate::disk::Disk;
use crate::disk::file::{FileAt, Window};
use crate::disk::layout::Partition;
use crate::efi::uki::{self, Parts};
use crate::emit::iso::{BootFile, Start};
use crate::fs::initramfs::Contents;
use crate::fs::{cpio, fat, initramfs};
use crate::signing::{authenticode, openpgp};
use crate::store::Store;
use crate::tree::{Kind, Tree, TreePath};

/// Folder of the root that holds kernel and initramfs once more, so that one delta covers them.
const BOOT_DIR: &str = "usr/lib/chasi-bod/boot";
const GRUB_CFG: &str = include_str!("../../../layers/defs/boot/grub.cfg");
const MEDIUM_CFG: &str = include_str!("../../../layers/defs/boot/grub-medium.cfg");
/// How GRUB starts a slot and a medium: kernel and initramfs, or the unified kernel image.
const START: [&str; 2] = [include_str!("../../../layers/defs/boot/start.cfg"), include_str!("../../../layers/defs/boot/start-medium.cfg")];
const START_UKI: [&str; 2] =
    [include_str!("../../../layers/defs/boot/start-uki.cfg"), include_str!("../../../layers/defs/boot/start-medium-uki.cfg")];
/// What BIOS finds on a disk or medium that is for Secure Boot.
const ONLY_UEFI: &str = "echo \"chasi-bod: grub: this image carries own keys and starts under UEFI only\"\nsleep 600\n";
/// Words of the menus' entries for the kernel, by name; each is a profile of a unified kernel image. In the menus `{{name}}` is its number, `{{name.words}}` the words.
const PROFILES: [(&str, &str); 9] = [
    ("slot-a", "chasi.slot=a"),
    ("slot-a-trial", "chasi.slot=a chasi.trial=1"),
    ("slot-b", "chasi.slot=b"),
    ("slot-b-trial", "chasi.slot=b chasi.trial=1"),
    ("live", "chasi.live"),
    ("install", "chasi.live systemd.unit=chasi-bod-install.target"),
    ("screen", "chasi.live console=tty0 chasi.debug"),
    ("serial", "chasi.live console=ttyS0,115200 chasi.debug"),
    ("check", "chasi.check"),
];

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

/// A slot's files in the ESP.
#[derive(Clone, Debug)]
pub struct SlotFile {
    /// Name below `slot-a/` and `slot-b/`.
    name: &'static str,
    /// Where a medium has it too.
    on_medium: Option<&'static str>,
    content: Arc<Vec<u8>>,
}

/// What GRUB reads of a slot: kernel, initramfs and their command line, or all of them in one program that our key has signed.
pub fn slot(key: &Key<'_>, grub: &Grub, boot: &BootFiles, root_hash: &Digest) -> Result<Vec<SlotFile>> {
    let profile = &key.planned.profile;
    let command_line = command_line(profile, root_hash);
    let file = |name, on_medium, content| SlotFile { name, on_medium, content };
    if let (Signing::Own(signer), Some(stub)) = (key.signing, &grub.stub) {
        let parts = Parts {
            stub: stub.clone(),
            os_release: format!("ID={}\nVERSION_ID={}\n", profile.name, profile.version),
            kernel: &boot.kernel,
            initrd: &boot.initrd,
            profiles: PROFILES.iter().map(|(name, words)| ((*name).to_string(), format!("{command_line} {words}"))).collect(),
        };
        let uki = authenticode::sign(uki::compose(parts)?, signer)?;
        let signature = openpgp::detached(&uki, signer, key.lock.epoch)?;
        return Ok(vec![file("uki.efi", Some(medium::UKI), Arc::new(uki)), file("uki.efi.sig", Some(medium::UKI_SIGNATURE), Arc::new(signature))]);
    }
    if command_line.contains(['"', '\'', '\\', '$', '\n']) {
        return Err(Error::input(format!("writing boot.cfg: the kernel command line `{command_line}` holds a character that GRUB would interpret"))
            .with_hint("leave quotes, backslashes and `$` out of boot.commandLine"));
    }
    let cfg = format!("set chasi_cmdline=\"{command_line}\"\n");
    Ok(vec![
        file("vmlinuz", Some(medium::KERNEL), boot.kernel.clone()),
        file("initrd", Some(medium::INITRD), boot.initrd.clone()),
        file("boot.cfg", None, Arc::new(cfg.into_bytes())),
    ])
}

/// The files of slot A that a medium has too.
fn on_medium(slot: &[SlotFile], disk: &Disk, partition: &Partition) -> Result<Vec<BootFile>> {
    let esp = Window::new(disk, partition.offset, partition.size);
    let shared = slot.iter().filter_map(|file| Some((file, file.on_medium?)));
    let one = |(file, path): (&SlotFile, &'static str)| {
        let found = fat::place(&esp, &format!("slot-a/{}", file.name))?;
        Ok(BootFile { path, content: file.content.clone(), on_disk: Some(partition.offset + found.start) })
    };
    shared.map(one).collect()
}

/// A menu with its values in it.
fn filled(menu: &str, values: &[(&str, String)]) -> String {
    let put = |menu: String, key: &str, value: &str| menu.replace(&format!("{{{{{key}}}}}"), value);
    let menu = values.iter().fold(menu.to_string(), |menu, (key, value)| put(menu, key, value));
    PROFILES.iter().enumerate().fold(menu, |menu, (number, (name, words))| put(put(menu, name, &number.to_string()), &format!("{name}.words"), words))
}

/// GRUB's menu on a disk.
pub fn menu(key: &Key<'_>) -> String {
    let [start, _] = if key.is_signed() { START_UKI } else { START };
    filled(GRUB_CFG, &[("start", start.trim_end().into()), ("timeout", key.planned.profile.boot.timeout.to_string())])
}

/// What a medium starts with.
pub fn start(key: &Key<'_>, image: &Image, store: &Store) -> Result<Start> {
    let (profile, root_hash) = (&key.planned.profile, image.root_hash);
    let command_line = command_line(profile, &root_hash);
    // A profile that names the disk wants it installed to.
    let default = if profile.disk.target.is_some() { "install" } else { "live" };
    let [_, start] = if key.is_signed() { START_UKI } else { START };
    let values = [
        ("start", start.trim_end().into()),
        ("default", default.into()),
        ("espSerial", grub::serial_words(grub::esp_serial(&key.planned.seed()))),
        ("timeout", profile.boot.timeout.to_string()),
        ("id", root_hash.hex()),
        ("name", profile.name.clone()),
        ("version", profile.version.clone()),
        ("commandLine", command_line.clone()),
    ];
    let menu = filled(MEDIUM_CFG, &values);
    let grub = grub::medium(store, &key.lock, key.signing, &menu)?;
    let id_signature = match key.signing {
        Signing::Own(signer) => Some(openpgp::detached(b"", signer, key.lock.epoch)?),
        _ => None,
    };
    Ok(Start {
        files: on_medium(&image.slot, &image.disk, image.layout.partition(partition::ESP)?)?,
        command_line,
        menu: if key.is_signed() { ONLY_UEFI.into() } else { menu },
        root_hash,
        id_signature,
        boot_img: grub.boot_img,
        bios: grub.bios,
        efi: grub.efi,
        scratch: store.root().join("tmp"),
        made: Arc::default(),
    })
}

/// The ESP as it lies on a fresh disk: loader, menu, boot state, slot A.
pub fn esp(key: &Key<'_>, grub: &Grub, slot: &[SlotFile], partition: &Partition, store: &Store) -> Result<FileAt> {
    let menu = if key.is_signed() { ONLY_UEFI.into() } else { menu(key) };
    let mut files: fat::Files = BTreeMap::new();
    files.insert("chasi/grub.cfg".into(), Arc::new(menu.into_bytes()));
    for (path, bytes) in &grub.efi {
        files.insert(path.clone(), Arc::new(bytes.clone()));
    }
    for (path, block) in bootstate::PATHS.iter().zip(bootstate::BootState::initial(Slot::A)) {
        files.insert((*path).into(), Arc::new(block.to_vec()));
    }
    for file in slot {
        files.insert(format!("slot-a/{}", file.name), file.content.clone());
    }
    let options = fat::Options {
        kind: fat::FatKind::Fat32,
        size: Bytes(partition.size),
        label: "ESP".into(),
        serial: grub::esp_serial(&key.planned.seed()),
        epoch: key.lock.epoch,
        offset: partition.offset,
    };
    fat::build(&options, &files, &store.root().join("tmp"))
}
