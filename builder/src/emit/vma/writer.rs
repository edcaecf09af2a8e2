//! Writes VMA in zstd frames, an extent in each.
//!
//! ```text
//! header: configuration, devices | extent: entries of 59 clusters, blocks that are not zero | …
//! ```

use std::fs::File;

use layers::{Error, Result};
use zstd::bulk::Compressor;

use super::format::{BLOBS, BLOCK, CLUSTER, CONFIG_DATA, CONFIG_NAMES, DEVICES, ENTRIES, Entry, Extent, HEADER_SIZE, MAGIC, PIECE, seal};
use crate::disk::{ReadAt, is_zero};
use crate::emit::Machine;
use crate::emit::frames::{Writer, compress, packer};
use crate::emit::ordered::{self, Packed};

/// The header is not longer than this, as long as names are.
pub const LARGEST_HEADER: u64 = 16384;
/// Number of the one device.
const DEVICE: u8 = 1;
/// Its name: that of the virtual machine's first SCSI disk.
const DRIVE: &str = "drive-scsi0";

/// Writes a disk to an empty file, with a configuration that makes it a virtual machine.
pub fn write(disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
    if disk.len().div_ceil(CLUSTER) > u64::from(u32::MAX) {
        return Err(Error::input(format!("writing VMA: a disk of {} bytes is too large for it, 256 TiB is the most", disk.len())));
    }
    let one = |packer: &mut Compressor, number: u64, bytes: &[u8]| Frame::of(packer, &extent(disk.len(), machine, number, bytes));
    ordered::pack(disk, PIECE, packer, one, |frames| place_all(disk.len(), machine, out, frames))
}

/// Packed bytes, and how many they are unpacked.
struct Frame {
    bytes: Vec<u8>,
    size: u64,
}

impl Frame {
    fn of(packer: &mut Compressor, bytes: &[u8]) -> Result<Self> {
        Ok(Self { bytes: compress(packer, bytes)?, size: bytes.len() as u64 })
    }
}

/// Writes header and extents. A reader wants each cluster to be named: also pieces of zeros have their extents.
fn place_all(size: u64, machine: &Machine, out: &File, frames: Packed<Frame>) -> Result<()> {
    let (mut writer, mut packer, mut next) = (Writer::new(out), packer()?, 0);
    let mut append = |frame: &Frame| writer.append(&frame.bytes, frame.size);
    append(&Frame::of(&mut packer, &header(size, machine))?)?;
    let zeros = vec![0; PIECE as usize];
    let mut empty = |number| Frame::of(&mut packer, &extent(size, machine, number, &zeros));
    for (number, frame) in frames.into_iter().flatten() {
        (next..number).try_for_each(|number| append(&empty(number)?))?;
        append(&frame)?;
        next = number + 1;
    }
    (next..size.div_ceil(PIECE)).try_for_each(|number| append(&empty(number)?))?;
    writer.finish()
}

/// The extent of one piece of the disk, filled up with zeros behind the disk's end.
fn extent(size: u64, machine: &Machine, number: u64, bytes: &[u8]) -> Vec<u8> {
    let clusters = (size.div_ceil(CLUSTER) - number * ENTRIES).min(ENTRIES);
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (cluster, bytes) in (number * ENTRIES..).zip(bytes.chunks(CLUSTER as usize).take(clusters as usize)) {
        let mut mask = 0;
        for (bit, block) in bytes.chunks(BLOCK as usize).enumerate().filter(|(_, block)| !is_zero(block)) {
            mask |= 1 << bit;
            data.extend(block);
        }
        entries.push(Entry { mask, device: DEVICE, cluster: cluster as u32 });
    }
    let header = Extent { uuid: *machine.uuid.as_bytes(), entries }.to_bytes();
    [&header[..], &data].concat()
}

/// The archive's header.
fn header(size: u64, machine: &Machine) -> Vec<u8> {
    // An offset of 0 means none.
    let mut blobs = vec![0];
    let mut blob = |bytes: &[u8]| {
        let at = blobs.len() as u32;
        blobs.extend((bytes.len() as u16).to_le_bytes());
        blobs.extend(bytes);
        at.to_be_bytes()
    };
    let mut out = vec![0; BLOBS];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(4, &1_u32.to_be_bytes());
    put(8, machine.uuid.as_bytes());
    put(24, &machine.epoch.to_be_bytes());
    put(CONFIG_NAMES, &blob(b"qemu-server.conf\0"));
    put(CONFIG_DATA, &blob(configuration(size, machine).as_bytes()));
    let device = DEVICES + usize::from(DEVICE) * 32;
    put(device, &blob(format!("{DRIVE}\0").as_bytes()));
    put(device + 8, &size.to_be_bytes());
    let room = (blobs.len() as u64).next_multiple_of(HEADER_SIZE) as usize;
    blobs.resize(room, 0);
    put(48, &(BLOBS as u32).to_be_bytes());
    put(52, &(room as u32).to_be_bytes());
    put(56, &((BLOBS + room) as u32).to_be_bytes());
    out.extend(blobs);
    seal(&mut out, 32);
    out
}

/// What Proxmox keeps of a virtual machine (qm.conf(5)). Where its disk goes is decided when it is restored; so is its hardware address, by `--unique`.
fn configuration(size: u64, machine: &Machine) -> String {
    let Machine { name, version, processors, memory, .. } = machine;
    let (memory, size) = (memory.0 >> 20, size.div_ceil(1 << 20));
    format!(
        "#{name} {version}\nagent: 0\nboot: order=scsi0\ncores: {processors}\ncpu: x86-64-v2-AES\nmemory: {memory}\nname: {name}\n\
         net0: virtio,bridge=vmbr0\nostype: l26\nscsi0: local:vm-100-disk-0,discard=on,iothread=1,size={size}M\nscsihw: virtio-scsi-single\nserial0: socket\n\
         sockets: 1\n#qmdump#map:scsi0:{DRIVE}::raw:\n"
    )
}
