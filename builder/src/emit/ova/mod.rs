//! A virtual appliance (DMTF DSP0243 1.1, OVF, as one file): VMware's and VirtualBox' importers make a virtual machine of it.

pub mod certificate;
pub mod descriptor;
pub mod reader;
pub mod writer;

use std::fs::File;
use std::sync::Arc;

use layers::Result;
use layers::units::Bytes;

use super::vmdk::Vmdk;
use super::{Format, Machine};
use crate::disk::ReadAt;

/// The OVA format.
#[derive(Debug)]
pub struct Ova;

impl Format for Ova {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        Ok(Bytes(Vmdk.layout(disk)?.0 + writer::LARGEST_REST))
    }

    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
        writer::write(disk, machine, out)
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        reader::open(file)
    }
}

/// Whether a file is a tar archive that begins with an OVF descriptor.
pub fn is_appliance(file: &dyn ReadAt) -> Result<bool> {
    let mut head = [0; 512];
    if file.len() < 512 {
        return Ok(false);
    }
    file.read_at(&mut head, 0)?;
    let header = tar::Header::from_byte_slice(&head);
    Ok(header.as_ustar().is_some() && header.path_bytes().to_ascii_lowercase().ends_with(b".ovf"))
}

/// A line of a manifest or of its certificate file (DSP0243 1.1.0, 5.1): the digest or the signature of a file, in hexadecimal.
fn line(file: &str, value: &str) -> String {
    format!("SHA256({file})= {value}\n")
}

/// The file and the value of such a line; others, of digests that are not known, have none.
fn parse_line(line: &str) -> Option<(&str, &str)> {
    let (file, value) = line.strip_prefix("SHA256")?.trim_start().strip_prefix('(')?.split_once(")=")?;
    Some((file, value.trim()))
}
