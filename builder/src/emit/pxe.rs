//! Starting from the network: a tar archive of what a web server hands to iPXE (ipxe.org). The image's disk comes as a further part of the
//! initramfs, under the name that `init` looks for.
//!
//! | file | what |
//! |---|---|
//! | `boot.ipxe` | the script; addresses are relative to its own |
//! | `vmlinuz`, `initrd` | kernel and initramfs |
//! | `disk.zst` | the image's disk as in `raw.zst` |

use std::fs::File;
use std::sync::Arc;

use layers::units::Bytes;
use layers::{Context, Error, Fault, Result, medium};

use super::archive::{self, BLOCK, header};
use super::iso::Start;
use super::{Format, Machine, copy, frames, put};
use crate::disk::ReadAt;
use crate::disk::file::Window;

const SCRIPT: &str = "boot.ipxe";
const DISK: &str = "disk.zst";
/// iPXE puts files into a cpio archive, whose sizes have 32 bits (newc).
const LARGEST: u64 = u32::MAX as u64;

/// The archive for network boots.
#[derive(Debug)]
pub struct Pxe;

impl Format for Pxe {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        Start::room(disk)
    }

    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
        let start = machine.start.as_ref().ok_or_else(|| Error::internal("writing the files of a network boot: there is nothing to start"))?;
        let packed = start.packed(disk)?;
        if packed.len() > LARGEST {
            return Err(Error::input(format!("the packed disk has {}, iPXE carries at most 4GiB", Bytes(packed.len())))
                .with_hint("put fewer images into the profile, or start from a medium"));
        }
        let text = script(machine, &start.command_line);
        let (kernel, initrd) = (start.file(medium::KERNEL)?, start.file(medium::INITRD)?);
        let files: [(&str, Arc<dyn ReadAt>); 4] = [(SCRIPT, Arc::new(text.into_bytes())), ("vmlinuz", kernel), ("initrd", initrd), (DISK, packed)];
        let mut at = 0;
        for (name, file) in files {
            put(out, &header(name, file.len(), machine.epoch)?, at)?;
            copy(file.as_ref(), out, at + BLOCK)?;
            at = (at + BLOCK + file.len()).next_multiple_of(BLOCK);
        }
        // An archive ends with two blocks of zeros.
        let length = at + 2 * BLOCK;
        out.set_len(length).fault(Fault::Environment, || format!("making room for {length} bytes"))
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        let files = archive::files(&file).context(|| "reading the files of a network boot".into())?;
        let place = files.get(DISK).ok_or_else(|| Error::input(format!("reading the files of a network boot: `{DISK}` is missing")))?;
        Ok(Arc::new(frames::Reader::open(Arc::new(Window::new(file, place.start, place.end - place.start)))?))
    }
}

/// Whether an archive begins with our script.
pub fn is_archive(file: &dyn ReadAt) -> Result<bool> {
    let mut name = [0; SCRIPT.len() + 1];
    if file.len() < BLOCK {
        return Ok(false);
    }
    file.read_at(&mut name, 0)?;
    Ok(name.strip_suffix(b"\0") == Some(SCRIPT.as_bytes()))
}

/// Under UEFI the kernel asks iPXE for `initrd.magic`, all parts in one; under BIOS the word means nothing.
fn script(machine: &Machine, command_line: &str) -> String {
    let (name, version) = (&machine.name, &machine.version);
    format!(
        "#!ipxe\n\
         # {name} {version}: runs from memory. To install: systemd.unit=chasi-bod-install.target behind chasi.live.\n\
         echo chasi-bod: ipxe: loading {name} {version}\n\
         kernel vmlinuz initrd=initrd.magic {command_line} chasi.live ${{chasi}}\n\
         initrd initrd\n\
         initrd {DISK} /{DISK}\n\
         boot\n"
    )
}
