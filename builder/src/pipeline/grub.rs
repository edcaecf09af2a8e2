//! GRUB for BIOS and UEFI: core images with everything built in, made by the locked grub-mkimage in a tool root of locked packages.

use std::fs;
use std::path::Path;

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

/// Serial number of the ESP, by which GRUB finds it.
pub fn esp_serial(seed: &Seed) -> u32 {
    let bytes = seed.bytes("esp serial");
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Makes the images, or takes them from the store when nothing that goes in changed.
pub fn images(store: &Store, lock: &Lock, seed: &Seed) -> Result<Grub> {
    let serial = esp_serial(seed);
    let early = EARLY.replace("{{espSerial}}", &format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
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
    let tree = tool_tree(store, lock)?;
    let root = Root::materialize(store, &tree).context(|| "laying out the tool root".into())?;
    let work = store.scratch()?;
    fs::write(work.path().join("early.cfg"), early).context(|| "writing GRUB's early configuration".into())?;
    let core_img = mkimage(&root, work.path(), "i386-pc", lock.epoch)?;
    let efi = mkimage(&root, work.path(), "x86_64-efi", lock.epoch)?;
    let boot_img = match tree.at(BOOT_IMG).map(|n| &n.kind) {
        Some(Kind::File(content)) => store.read(content)?,
        _ => return Err(Error::internal(format!("making GRUB's images: the tool root has no /{BOOT_IMG}"))),
    };
    Ok(Grub { boot_img, core_img, efi })
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

fn mkimage(root: &Root, work: &Path, platform: &str, epoch: i64) -> Result<Vec<u8>> {
    let out = format!("/work/{platform}.img");
    // Under BIOS the ESP is the first partition of the disk that GRUB came from; under UEFI it is where GRUB itself lies.
    let prefix = if platform == "i386-pc" { "(,gpt1)/chasi" } else { "/chasi" };
    let mut argv = vec!["grub-mkimage", "-O", platform, "-o", &out, "-c", "/work/early.cfg", "-p", prefix];
    argv.extend(modules(platform));
    let done = root.run_with_work(&argv, work, &Options::new(epoch))?;
    if done.status != 0 {
        return Err(Error::internal(format!("making GRUB's {platform} image: exit status {}\n{}", done.status, done.log)));
    }
    let path = work.join(format!("{platform}.img"));
    fs::read(&path).context(|| format!("reading {}", path.display()))
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
