//! A medium that starts from a disc and from a USB stick, under BIOS and UEFI: ISO 9660 with Rock Ridge, El Torito, GPT and MBR (ECMA-119, El Torito
//! 1.0, UEFI 2.10), on crate `hadris-iso`.
//!
//! | file | what |
//! |---|---|
//! | `boot/vmlinuz`, `boot/initrd` | what GRUB starts |
//! | `boot/grub/grub.cfg` | the menu; in the EFI system partition a short one that leads to it |
//! | `chasi/disk.zst` | the image's disk as in `raw.zst` |
//! | `chasi/SHA256SUMS` | digests of the files above |
//! | `chasi/ID` | empty; named by the content id, by which GRUB and `init` know the medium |

mod reader;
mod writer;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use layers::units::{Bytes, Digest};
use layers::{Context, Fault, Result};
use tempfile::NamedTempFile;

use super::raw_zst::RawZst;
use super::{Format, Machine};
use crate::disk::ReadAt;
use crate::disk::file::FileAt;

/// Where the disk is in the medium.
const DISK: &str = "chasi/disk.zst";
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
}

impl Start {
    /// The most space that the packed disk takes, with kernel, initramfs and loaders, which are far smaller.
    pub fn room(disk: &dyn ReadAt) -> Result<Bytes> {
        Ok(Bytes(RawZst.layout(disk)?.0 + (256 << 20)))
    }

    /// The packed disk, as a file under way and to be read.
    pub fn pack(&self, disk: &dyn ReadAt, machine: &Machine) -> Result<(NamedTempFile, FileAt)> {
        let file = NamedTempFile::new_in(&self.scratch).fault(Fault::Environment, || format!("creating a file in {}", self.scratch.display()))?;
        RawZst.emit(disk, machine, file.as_file())?;
        let again = file.reopen().fault(Fault::Environment, || "reading the packed disk".into())?;
        Ok((file, FileAt::new(again, "the packed disk".into())?))
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
