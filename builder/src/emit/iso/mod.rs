//! A medium that starts from a disc and from a USB stick, under BIOS and UEFI: ISO 9660 with Rock Ridge, El Torito, GPT and MBR (ECMA-119, El Torito
//! 1.0, UEFI 2.10), on crate `hadris-iso`.
//!
//! | file | what |
//! |---|---|
//! | `boot/vmlinuz`, `boot/initrd` | what GRUB starts; under own keys `boot/uki.efi` with `boot/uki.efi.sig` |
//! | `boot/grub/grub.cfg` | the menu; in the EFI system partition a short one that leads to it |
//! | `boot/grub/loopback.cfg` | leads to it, too, from a boot loader that has the medium as a file |
//! | `chasi/disk.zst` | the image's disk as in `raw.zst`, without kernel and initramfs |
//! | `chasi/PLACES` | where those belong on it |
//! | `chasi/SHA256SUMS` | digests of the files above |
//! | `chasi/ID` | empty; named by the content id, by which GRUB and `init` know the medium; under own keys with `chasi/ID.sig` |

mod reader;
mod writer;

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};

use super::raw_zst::{self, RawZst};
use super::{Format, Machine};
use crate::disk::ReadAt;
use crate::disk::file::FileAt;

/// First bytes of the volume descriptors, and where they are.
const DESCRIPTOR: (u64, [u8; 5]) = (32769, *b"CD001");
/// The least size of the EFI system partition.
const ESP: Bytes = Bytes::mib(4);

/// What a medium starts with, beside the disk that it carries.
#[derive(Clone, Debug)]
pub struct Start {
    /// Kernel and initramfs, or the unified kernel image.
    pub files: Vec<BootFile>,
    /// The kernel's command line, without the words of the medium's menu.
    pub command_line: String,
    /// GRUB's menu.
    pub menu: String,
    /// Content id.
    pub root_hash: Digest,
    /// Boot sector.
    pub boot_img: Vec<u8>,
    /// GRUB for BIOS.
    pub bios: Vec<u8>,
    /// Files of the EFI system partition.
    pub efi: Vec<(String, Vec<u8>)>,
    /// GRUB's signature of the file that is named by the content id.
    pub id_signature: Option<Vec<u8>>,
    /// Folder for files under way.
    pub scratch: PathBuf,
    /// The packed disk, once it was asked for.
    pub made: Arc<Mutex<Option<Arc<FileAt>>>>,
}

/// A file that GRUB starts.
#[derive(Clone, Debug)]
pub struct BootFile {
    /// Its path on the medium.
    pub path: &'static str,
    /// What is in it.
    pub content: Arc<Vec<u8>>,
    /// Where the disk has it too, in bytes.
    pub on_disk: Option<u64>,
}

impl Start {
    /// What is in a file that GRUB starts.
    pub fn file(&self, path: &str) -> Result<Arc<Vec<u8>>> {
        let found = self.files.iter().find(|file| file.path == path);
        found.map(|file| file.content.clone()).ok_or_else(|| Error::internal(format!("starting without a disk: there is no {path}")))
    }

    /// The most space that the packed disk takes, with kernel, initramfs and loaders, which are far smaller.
    pub fn room(disk: &dyn ReadAt) -> Result<Bytes> {
        Ok(Bytes(RawZst.layout(disk)?.0 + (256 << 20)))
    }

    /// The packed disk: the first format that wants it makes it, the others wait.
    pub fn packed(&self, disk: &dyn ReadAt) -> Result<Arc<FileAt>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = made.as_ref() {
            return Ok(packed.clone());
        }
        let making = || format!("packing the disk in {}", self.scratch.display());
        let file = tempfile::tempfile_in(&self.scratch).fault(Fault::Environment, making)?;
        raw_zst::write(disk, &file).context(making)?;
        let packed = Arc::new(FileAt::new(file, "the packed disk".into())?);
        *made = Some(packed.clone());
        Ok(packed)
    }
}

/// The ISO format.
#[derive(Debug)]
pub struct Iso;

impl Format for Iso {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        Start::room(disk)
    }

    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
        writer::write(disk, machine, out)
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        reader::open(file)
    }
}

/// Whether a file is a medium of ours or any other ISO 9660.
pub fn is_medium(file: &dyn ReadAt) -> Result<bool> {
    let (at, wanted) = DESCRIPTOR;
    let mut found = [0; 5];
    if file.len() < at + 5 {
        return Ok(false);
    }
    file.read_at(&mut found, at)?;
    Ok(found == wanted)
}
