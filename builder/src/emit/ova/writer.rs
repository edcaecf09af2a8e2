//! Writes OVA.
//!
//! ```text
//! tar: descriptor | disk | manifest | certificate, when signed
//! ```

use std::fs::File;

use layers::units::Digest;
use layers::{Context, Fault, Result};

use super::descriptor::{self, Disk};
use super::{certificate, line};
use crate::disk::file::{FileAt, Window};
use crate::disk::{ReadAt, sha256};
use crate::emit::archive::{BLOCK, header};
use crate::emit::vmdk::writer as vmdk;
use crate::emit::{Machine, put};

/// What is beside the disk is not larger than this.
pub const LARGEST_REST: u64 = 64 << 10;

/// Writes a disk to an empty file, described as a virtual machine. The descriptor stands before the disk and tells its packed size: it gets room for
/// the largest one first and is filled up with line ends.
pub fn write(disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
    let name = format!("{}-{}", machine.name, machine.version);
    let populated = disk.data()?.iter().map(|range| range.end - range.start).sum();
    let capacity = disk.len().next_multiple_of(BLOCK);
    let mut told = Disk { file: format!("{name}-disk1.vmdk"), file_size: u64::MAX, capacity, populated };
    let room = (descriptor::write(machine, &told)?.len() as u64).next_multiple_of(BLOCK);

    let begin = BLOCK + room + BLOCK;
    let end = vmdk::write_at(disk, out, begin)?;
    told.file_size = end - begin;
    let mut text = descriptor::write(machine, &told)?;
    text.extend(std::iter::repeat_n('\n', room as usize - text.len()));

    let file = FileAt::new(out.try_clone().fault(Fault::Environment, || "reading what was written".into())?, told.file.clone())?;
    let digest = sha256(&Window::new(&file as &dyn ReadAt, begin, told.file_size))?;
    let manifest: String =
        [(format!("{name}.ovf"), Digest::of(text.as_bytes())), (told.file.clone(), digest)].map(|(file, digest)| line(&file, &digest.hex())).concat();
    put(out, &header(&format!("{name}.ovf"), room, machine.epoch)?, 0)?;
    put(out, text.as_bytes(), BLOCK)?;
    put(out, &header(&told.file, told.file_size, machine.epoch)?, BLOCK + room)?;
    let mut texts = vec![(format!("{name}.mf"), manifest)];
    if let Some(signer) = &machine.signer {
        let (file, manifest) = &texts[0];
        texts.push((format!("{name}.cert"), certificate::write(signer, file, manifest)?));
    }
    let mut at = end;
    for (file, text) in texts {
        put(out, &header(&file, text.len() as u64, machine.epoch)?, at)?;
        put(out, text.as_bytes(), at + BLOCK)?;
        at = (at + BLOCK + text.len() as u64).next_multiple_of(BLOCK);
    }
    // An archive ends with two blocks of zeros.
    let length = at + 2 * BLOCK;
    out.set_len(length).fault(Fault::Environment, || format!("making room for {length} bytes"))
}
