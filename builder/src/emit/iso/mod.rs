//! A medium that starts from a disc and from a USB stick, under BIOS and UEFI: ISO 9660 with Rock Ridge, El Torito, GPT and MBR (ECMA-119, El Torito
//! 1.0, UEFI 2.10), on crate `hadris-iso`.
//!
//! | file | what |
//! |---|---|
//! | `boot/vmlinuz`, `boot/initrd` | what GRUB starts |
//! | `boot/grub/grub.cfg` | the menu; in the EFI system partition a short one that leads to it |
//! | `chasi/disk.zst` | the image's disk as in `raw.zst`, without kernel and initramfs |
//! | `chasi/PLACES` | where those belong on it |
//! | `chasi/SHA256SUMS` | digests of the files above |
//! | `chasi/ID` | empty; named by the content id, by which GRUB and `init` know the medium |

mod reader;
mod writer;

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use layers::units::{Bytes, Digest};
use layers::{Context, Fault, Result};

use super::raw_zst::{self, RawZst};
use super::{Format, Machine};
use crate::disk::ReadAt;
use crate::disk::file::FileAt;

/// First bytes of the volume descriptors, and where they are.
const DESCRIPTOR: (u64, [u8; 5]) = (32769, *b"CD001");
/// Size of the EFI system partition.
const ESP: Bytes = Bytes::mib(4);

/// What a medium starts with, beside the disk that it carries.
#[derive(Clone, Debug)]
pub struct Start {
    /// The kernel.
    pub kernel: Arc<Vec<u8>>,
    /// The initramfs.
    pub initrd: Arc<Vec<u8>>,
    /// Where these two lie on the disk too, in the order of the disk.
    pub places: Vec<Place>,
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
    /// GRUB for UEFI.
    pub efi: Vec<u8>,
    /// Folder for files under way.
    pub scratch: PathBuf,
    /// The packed disk, once it was asked for.
    pub made: Arc<Mutex<Option<Arc<FileAt>>>>,
}

/// A file of the medium that lies on the disk too.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where, in bytes.
    pub offset: u64,
    /// Its path on the medium.
    pub path: &'static str,
    /// What is in it.
    pub content: Arc<Vec<u8>>,
}

impl Start {
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
