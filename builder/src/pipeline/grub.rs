//! GRUB for BIOS and UEFI: core images with everything built in, made by the locked grub-mkimage in a tool root of locked packages.

use std::fs;

use layers::lock::Lock;
use layers::units::{Digest, Seed};
use layers::{Context, Error, Result};
use serde::{Deserialize, Serialize};

use crate::assemble::merge;
use crate::assemble::scratch::{Options, Root};
use crate::assemble::unpack;
use crate::store::Store;
use crate::tree::{Kind, Node, Tree, TreePath};

/// Packages of the tool root.
pub const TOOLS: [&str; 3] = ["grub-common", "grub-efi-amd64-bin", "grub-pc-bin"];
/// Commands of the embedded configuration, run before the menu.
const EARLY: &str = include_str!("../../../layers/defs/boot/grub-early.cfg");
/// Modules to embed, by platform.
const MODULES: &str = include_str!("../../../layers/defs/boot/grub-modules.txt");
const BOOT_IMG: &str = "usr/lib/grub/i386-pc/boot.img";
/// Boot sector of a medium that is a disc and a disk at once.
const HYBRID_IMG: &str = "usr/lib/grub/i386-pc/boot_hybrid.img";

/// What GRUB needs on the disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Grub {
    /// Boot sector for the MBR.
    pub boot_img: Vec<u8>,
    /// Core image for the BIOS boot partition.
    pub core_img: Vec<u8>,
    /// Application for `EFI/BOOT/BOOTX64.EFI`.
    pub efi: Vec<u8>,
}

/// What GRUB needs on a medium, where it reads its menu from `/boot/grub`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Medium {
    /// Boot sector for the MBR.
    pub boot_img: Vec<u8>,
    /// Image that El Torito starts under BIOS.
    pub bios: Vec<u8>,
    /// Application for `EFI/BOOT/BOOTX64.EFI`.
    pub efi: Vec<u8>,
}

/// Serial number of the ESP, by which GRUB finds it.
pub fn esp_serial(seed: &Seed) -> u32 {
    let bytes = seed.bytes("esp serial");
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A serial number as GRUB writes it.
pub fn serial_words(serial: u32) -> String {
    format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)
}

/// Makes the images, or takes them from the store when nothing that goes in changed.
pub fn images(store: &Store, lock: &Lock, seed: &Seed) -> Result<Grub> {
    let early = EARLY.replace("{{espSerial}}", &serial_words(esp_serial(seed)));
    let tools: Vec<&[u8]> = lock.tools.iter().map(|p| p.sha256.0.as_slice()).collect();
    let key = Digest::of_parts([b"grub v2".as_slice(), early.as_bytes(), MODULES.as_bytes()].into_iter().chain(tools));
    if let Some(grub) = store.load("grub", &key)? {
        return Ok(grub);
    }
    let grub = make(store, lock, &early)?;
    store.save("grub", &key, &grub)?;
    Ok(grub)
}

fn make(store: &Store, lock: &Lock, early: &str) -> Result<Grub> {
    let tools = Tools::new(store, lock)?;
    let early = Some(early);
    // Under BIOS the ESP is the first partition of the disk that GRUB came from; under UEFI it is where GRUB itself lies.
    let core_img = tools.image("i386-pc", &Image { target: "i386-pc", prefix: "(,gpt1)/chasi", early, more: &[] })?;
    let efi = tools.image("x86_64-efi", &Image { target: "x86_64-efi", prefix: "/chasi", early, more: &[] })?;
    Ok(Grub { boot_img: tools.read(BOOT_IMG)?, core_img, efi })
}

/// Makes the images of a medium, or takes them from the store.
pub fn medium(store: &Store, lock: &Lock) -> Result<Medium> {
    let tools: Vec<&[u8]> = lock.tools.iter().map(|p| p.sha256.0.as_slice()).collect();
    let key = Digest::of_parts([b"grub medium v1".as_slice(), MODULES.as_bytes()].into_iter().chain(tools));
    if let Some(medium) = store.load("grub", &key)? {
        return Ok(medium);
    }
    let tools = Tools::new(store, lock)?;
    // The disc or disk that GRUB came from, and the EFI system partition that it lies in.
    let image = |target| Image { target, prefix: "/boot/grub", early: None, more: &["iso9660"] };
    let bios = tools.image("i386-pc", &image("i386-pc-eltorito"))?;
    let medium = Medium { boot_img: tools.read(HYBRID_IMG)?, bios, efi: tools.image("x86_64-efi", &image("x86_64-efi"))? };
    store.save("grub", &key, &medium)?;
    Ok(medium)
}

/// The locked tools, unpacked.
struct Tools<'a> {
    store: &'a Store,
    tree: Tree,
    root: Root,
    epoch: i64,
}

/// An image to make.
struct Image<'a> {
    /// Format, as grub-mkimage calls it.
    target: &'a str,
    /// Folder of the menu.
    prefix: &'a str,
    /// Commands to run before the menu.
    early: Option<&'a str>,
    /// Modules beside those of the list.
    more: &'a [&'a str],
}

impl<'a> Tools<'a> {
    fn new(store: &'a Store, lock: &Lock) -> Result<Self> {
        let tree = tool_tree(store, lock)?;
        let root = Root::materialize(store, &tree).context(|| "laying out the tool root".into())?;
        Ok(Self { store, tree, root, epoch: lock.epoch })
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        match self.tree.at(path).map(|n| &n.kind) {
            Some(Kind::File(content)) => self.store.read(content),
            _ => Err(Error::internal(format!("making GRUB's images: the tool root has no /{path}"))),
        }
    }

    fn image(&self, platform: &str, image: &Image<'_>) -> Result<Vec<u8>> {
        let work = self.store.scratch()?;
        let mut argv = vec!["grub-mkimage", "-O", image.target, "-o", "/work/grub.img", "-p", image.prefix];
        if let Some(early) = image.early {
            fs::write(work.path().join("early.cfg"), early).context(|| "writing GRUB's early configuration".into())?;
            argv.extend(["-c", "/work/early.cfg"]);
        }
        argv.extend(modules(platform));
        argv.extend(image.more);
        let done = self.root.run_with_work(&argv, work.path(), &Options::new(self.epoch))?;
        if done.status != 0 {
            return Err(Error::internal(format!("making GRUB's {} image: exit status {}\n{}", image.target, done.status, done.log)));
        }
        let path = work.path().join("grub.img");
        fs::read(&path).context(|| format!("reading {}", path.display()))
    }
}

/// The tool root is unpacked, not configured: no script runs in it. Without base-files it lacks the links of a merged /usr.
fn tool_tree(store: &Store, lock: &Lock) -> Result<Tree> {
    let unpacked = unpack::unpack_all(store, &lock.tools, &|_| {})?;
    let packages: Vec<_> = lock.tools.iter().cloned().zip(unpacked).collect();
    let mut tree = merge::merge(&packages)?.tree;
    for name in ["bin", "lib", "lib64", "sbin"] {
        let path = TreePath::new(name).map_err(Error::internal)?;
        if tree.get(&path).is_none() {
            tree.insert(path, Node::new(Kind::Symlink(format!("usr/{name}").into_bytes()), 0o777, lock.epoch));
        }
    }
    Ok(tree)
}

fn modules(platform: &str) -> Vec<&'static str> {
    let line = |name: &str| {
        MODULES.lines().filter_map(|l| l.split_once(':')).filter(|(n, _)| *n == name).flat_map(|(_, m)| m.split_whitespace()).collect::<Vec<_>>()
    };
    [line("all"), line(platform)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_gets_the_common_modules_and_its_own() {
        assert!(modules("i386-pc").contains(&"biosdisk") && modules("i386-pc").contains(&"part_gpt"));
        assert!(!modules("x86_64-efi").contains(&"biosdisk"));
    }
}
