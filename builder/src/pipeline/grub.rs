//! GRUB for BIOS and UEFI: core images with everything built in, made by the locked grub-mkimage in a tool root of locked packages, or under Debian's
//! keys the images that Debian has signed.

use std::fs;

use layers::lock::Lock;
use layers::profile::SecureBoot;
use layers::units::{Digest, Seed};
use layers::{Context, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::assemble::merge;
use crate::assemble::scratch::{Options, Root};
use crate::assemble::unpack;
use crate::efi::Pe;
use crate::signing::{Signer, authenticode, openpgp};
use crate::store::Store;
use crate::tree::{Kind, Node, Tree, TreePath};

/// Packages of the tool root.
const TOOLS: [&str; 3] = ["grub-common", "grub-efi-amd64-bin", "grub-pc-bin"];
/// Modules to embed, by platform.
const MODULES: &str = include_str!("../../../layers/defs/boot/grub-modules.txt");
const BOOT_IMG: &str = "usr/lib/grub/i386-pc/boot.img";
/// Boot sector of a medium that is a disc and a disk at once.
const HYBRID_IMG: &str = "usr/lib/grub/i386-pc/boot_hybrid.img";
/// What the firmware starts.
const LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const SHIM: &str = "usr/lib/shim";
const SIGNED: &str = "usr/lib/grub/x86_64-efi-signed";

/// Menu of Debian's image: it leads to ours.
const LEAD: &str = "set prefix=($root)/chasi\nconfigfile $prefix/grub.cfg\n";

/// Whose signatures the firmware asks for.
#[derive(Clone, Copy, Debug)]
pub enum Signing<'a> {
    /// Nobody's.
    None,
    /// Our own.
    Own(&'a Signer),
    /// Microsoft's, by shim, and Debian's.
    Debian,
}

impl Signing<'_> {
    /// Part of the keys under which results are kept.
    pub fn key(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Own(signer) => signer.fingerprint().0.to_vec(),
            Self::Debian => b"debian".to_vec(),
        }
    }
}

/// Packages of the tool root for a profile.
pub fn tools(secure_boot: SecureBoot) -> Vec<String> {
    let more: &[&str] = match secure_boot {
        SecureBoot::None => &[],
        SecureBoot::OwnKeys => &["systemd-boot-efi"],
        SecureBoot::DebianKeys => &["grub-efi-amd64-signed", "shim-helpers-amd64-signed", "shim-signed"],
    };
    TOOLS.iter().chain(more).map(|name| (*name).to_string()).collect()
}

/// What GRUB needs on the disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Grub {
    /// Boot sector for the MBR.
    pub boot_img: Vec<u8>,
    /// Core image for the BIOS boot partition.
    pub core_img: Vec<u8>,
    /// Files of the EFI system partition.
    pub efi: Vec<(String, Vec<u8>)>,
    /// The stub of unified kernel images, where our key signs them.
    pub stub: Option<Vec<u8>>,
}

/// What GRUB needs on a medium, where it reads its menu from `/boot/grub`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Medium {
    /// Boot sector for the MBR.
    pub boot_img: Vec<u8>,
    /// Image that El Torito starts under BIOS.
    pub bios: Vec<u8>,
    /// Files of its EFI system partition.
    pub efi: Vec<(String, Vec<u8>)>,
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

/// Makes the images, or takes them from the store when nothing that goes in changed. `menu` is what a GRUB with our signature carries inside it.
pub fn images(store: &Store, lock: &Lock, seed: &Seed, signing: Signing<'_>, menu: &str) -> Result<Grub> {
    // With a menu inside, GRUB takes that for the place where all files are.
    let early = format!("search.fs_uuid {} root\n", serial_words(esp_serial(seed)));
    kept(store, lock, "grub v4", signing, [&early, menu], |tools| {
        // Under BIOS the ESP is the first partition of the disk that GRUB came from; under UEFI it is where GRUB itself lies.
        let core_img = tools.image("i386-pc", &Image { prefix: "(,gpt1)/chasi", ..Image::of("i386-pc") })?;
        let image = Image { prefix: "/chasi", ..Image::of("x86_64-efi") };
        let efi = match signing {
            Signing::None => vec![(LOADER.into(), tools.image("x86_64-efi", &image)?)],
            Signing::Own(signer) => tools.signed(image, &early, menu, signer)?,
            // Debian's image looks for its menu there.
            Signing::Debian => [tools.debian("grubx64.efi.signed")?, vec![("EFI/debian/grub.cfg".into(), LEAD.into())]].concat(),
        };
        let stub = matches!(signing, Signing::Own(_)).then(|| tools.read(STUB)).transpose()?;
        Ok(Grub { boot_img: tools.read(BOOT_IMG)?, core_img, efi, stub })
    })
}

/// Makes the images of a medium, or takes them from the store.
pub fn medium(store: &Store, lock: &Lock, signing: Signing<'_>, menu: &str) -> Result<Medium> {
    kept(store, lock, "grub medium v3", signing, ["", menu], |tools| {
        // The disc or disk that GRUB came from, and the EFI system partition that it lies in.
        let image = |target| Image { prefix: "/boot/grub", more: &["iso9660"], ..Image::of(target) };
        let bios = tools.image("i386-pc", &image("i386-pc-eltorito"))?;
        let efi = match signing {
            Signing::None => vec![(LOADER.into(), tools.image("x86_64-efi", &image("x86_64-efi"))?)],
            Signing::Own(signer) => tools.signed(image("x86_64-efi"), "", menu, signer)?,
            Signing::Debian => tools.debian("gcdx64.efi.signed")?,
        };
        Ok(Medium { boot_img: tools.read(HYBRID_IMG)?, bios, efi })
    })
}

/// What was made from the same tools before, or made now. `inside` is what only a GRUB with our signature carries: others do not depend on it.
fn kept<T: Serialize + DeserializeOwned>(
    store: &Store,
    lock: &Lock,
    name: &str,
    signing: Signing<'_>,
    inside: [&str; 2],
    make: impl FnOnce(&Tools<'_>) -> Result<T>,
) -> Result<T> {
    let tools = lock.tools.iter().map(|p| p.sha256.0.as_slice());
    let inside = if matches!(signing, Signing::Own(_)) { inside } else { [""; 2] };
    let own = signing.key();
    let parts = [name.as_bytes(), &own, inside[0].as_bytes(), inside[1].as_bytes(), MODULES.as_bytes()];
    let key = Digest::of_parts(parts.into_iter().chain(tools));
    if let Some(made) = store.load("grub", &key)? {
        return Ok(made);
    }
    let made = make(&Tools::new(store, lock)?)?;
    store.save("grub", &key, &made)?;
    Ok(made)
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
    /// Modules beside those of the list.
    more: &'a [&'a str],
    /// What one with our signature carries inside.
    own: Option<Own<'a>>,
}

struct Own<'a> {
    /// Our public key, as a packet of OpenPGP.
    key: Vec<u8>,
    /// Commands before the menu; GRUB's rescue parser takes no comments.
    early: String,
    menu: &'a str,
}

impl<'a> Image<'a> {
    fn of(target: &'a str) -> Self {
        Self { target, prefix: "", more: &[], own: None }
    }
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
            _ => Err(Error::internal(format!("making the loaders: the tool root has no /{path}"))),
        }
    }

    /// GRUB with our signature. It carries its menu inside, where nobody can change it, and asks for our signature on whatever else it reads.
    fn signed(&self, image: Image<'_>, early: &str, menu: &str, signer: &Signer) -> Result<Vec<(String, Vec<u8>)>> {
        let own = Some(Own { key: openpgp::public_key(signer, self.epoch)?, early: format!("{early}set prefix=(memdisk)\n"), menu });
        let more = &["chain", "gcry_rsa", "gcry_sha256", "iso9660", "memdisk", "pgp", "tar", "tpm"];
        let image = self.image("x86_64-efi", &Image { more, own, ..image })?;
        let loader = authenticode::sign(Pe::read(image)?, signer)?;
        // For a medium's GRUB, which leads to the loader of an installed disk.
        let signature = openpgp::detached(&loader, signer, self.epoch)?;
        Ok(vec![(LOADER.into(), loader), (format!("{LOADER}.sig"), signature)])
    }

    /// Shim, which the firmware knows, and what shim knows.
    fn debian(&self, grub: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let files = [
            (LOADER, format!("{SHIM}/shimx64.efi.signed")),
            ("EFI/BOOT/grubx64.efi", format!("{SIGNED}/{grub}")),
            ("EFI/BOOT/mmx64.efi", format!("{SHIM}/mmx64.efi.signed")),
        ];
        files.into_iter().map(|(path, from)| Ok((path.to_string(), self.read(&from)?))).collect()
    }

    fn image(&self, platform: &str, image: &Image<'_>) -> Result<Vec<u8>> {
        let work = self.root.work();
        let put = |name: &str, bytes: &[u8]| fs::write(work.join(name), bytes).context(|| format!("writing {name} for GRUB's image"));
        let mut argv = vec!["grub-mkimage", "-O", image.target, "-o", "/work/grub.img", "-p", image.prefix];
        if let Some(Own { key, early, menu }) = &image.own {
            put("key", key)?;
            put("menu.tar", &archive(menu, self.epoch)?)?;
            put("early.cfg", early.as_bytes())?;
            argv.extend(["-k", "/work/key", "-m", "/work/menu.tar", "-c", "/work/early.cfg", "--disable-shim-lock"]);
        }
        argv.extend(modules(platform).into_iter().filter(|module| image.own.is_none() || *module != "linux"));
        argv.extend(image.more);
        let done = self.root.run_with_work(&argv, &work, &Options::new(self.epoch))?;
        if done.status != 0 {
            return Err(Error::internal(format!("making GRUB's {} image: exit status {}\n{}", image.target, done.status, done.log)));
        }
        let path = work.join("grub.img");
        fs::read(&path).context(|| format!("reading {}", path.display()))
    }
}

/// A tar archive with the menu.
fn archive(menu: &str, epoch: i64) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(menu.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(u64::try_from(epoch).unwrap_or_default());
    let mut out = tar::Builder::new(Vec::new());
    let written = out.append_data(&mut header, "grub.cfg", menu.as_bytes()).and_then(|()| out.into_inner());
    written.context(|| "archiving GRUB's menu".into())
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
