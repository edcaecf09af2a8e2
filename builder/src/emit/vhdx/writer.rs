//! Writes VHDX. Blocks lie in the order of the disk; each has its place before any is written, so that all cores write at once.

use std::fs::File;

use layers::{Context, Fault, Result};
use rayon::prelude::*;
use uuid::Uuid;

use super::format::{
    BLOCK, DISK_SIZE, FILE_PARAMETERS, HEADER, LOGICAL_SECTOR, MAGIC, MAGIC_END, METADATA, MIB, PAGE_83, PART, PHYSICAL_SECTOR, PRESENT, Parameters,
    TABLE, sealed,
};
use crate::disk::{ReadAt, blocks, read_block};
use crate::emit::{Machine, put, raw};

const SECTOR: u64 = 512;
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const TABLE_AT: u64 = 3 * MIB;
/// Version of the format.
const VERSION: u16 = 1;

/// What the file of a disk looks like.
pub fn parameters(disk: &dyn ReadAt) -> Parameters {
    Parameters { block: BLOCK, size: disk.len().next_multiple_of(SECTOR), sector: SECTOR }
}

/// Bytes of all that is before the blocks.
pub fn before_blocks(parameters: &Parameters) -> u64 {
    TABLE_AT + (parameters.entries() * 8).next_multiple_of(MIB).max(MIB)
}

/// Writes a disk to an empty file.
pub fn write(disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
    let parameters = parameters(disk);
    let (first, numbers) = (before_blocks(&parameters), blocks(disk, BLOCK)?);
    let size = first + numbers.len() as u64 * BLOCK;
    out.set_len(size).fault(Fault::Environment, || format!("making room for {size} bytes"))?;
    put(out, &[&MAGIC[..], &MAGIC_END, &"chasi-bod".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()].concat(), 0)?;
    for (at, sequence) in [(PART, 1), (2 * PART, 2)] {
        put(out, &header(sequence, &machine.uuid), at)?;
    }
    let regions = region_table(first - TABLE_AT);
    put(out, &regions, 3 * PART)?;
    put(out, &regions, 4 * PART)?;
    put(out, &metadata(&parameters, &machine.uuid), METADATA_AT)?;
    let mut table = vec![0; parameters.entries() as usize * 8];
    for (place, number) in (first..).step_by(BLOCK as usize).zip(&numbers) {
        let at = parameters.entry(*number) as usize * 8;
        table[at..at + 8].copy_from_slice(&(place | PRESENT).to_le_bytes());
    }
    put(out, &table, TABLE_AT)?;
    let copy = |buffer: &mut Vec<u8>, (index, number): (usize, &u64)| {
        let bytes = read_block(disk, *number, buffer)?;
        let place = first + index as u64 * BLOCK;
        raw::runs(bytes).into_iter().try_for_each(|run| put(out, &bytes[run.clone()], place + run.start as u64))
    };
    numbers.par_iter().enumerate().try_for_each_init(|| vec![0; BLOCK as usize], copy)
}

fn header(sequence: u64, id: &Uuid) -> Vec<u8> {
    let mut out = [b"head".as_slice(), &[0; 4], &sequence.to_le_bytes()].concat();
    // Identifiers of what the file and the disk have in them; none of the log, which is empty.
    out.extend([id.to_bytes_le(), id.to_bytes_le(), [0; 16]].concat());
    out.extend([0_u16.to_le_bytes(), VERSION.to_le_bytes()].concat());
    out.extend((MIB as u32).to_le_bytes());
    out.extend(LOG_AT.to_le_bytes());
    out.resize(HEADER, 0);
    sealed(out)
}

fn region_table(table: u64) -> Vec<u8> {
    let mut out = [b"regi".as_slice(), &[0; 4], &2_u64.to_le_bytes()].concat();
    for (id, at, length) in [(TABLE, TABLE_AT, table), (METADATA, METADATA_AT, MIB)] {
        out.extend(id.to_bytes_le());
        out.extend(at.to_le_bytes());
        // Whoever does not know this region must not open the file.
        out.extend([(length as u32).to_le_bytes(), 1_u32.to_le_bytes()].concat());
    }
    out.resize(PART as usize, 0);
    sealed(out)
}

fn metadata(parameters: &Parameters, id: &Uuid) -> Vec<u8> {
    // Flags: 2 is of the disk, 4 must be known.
    let items: [(Uuid, u32, Vec<u8>); 5] = [
        (FILE_PARAMETERS, 4, parameters.block.to_le_bytes().to_vec()),
        (DISK_SIZE, 6, parameters.size.to_le_bytes().to_vec()),
        (PAGE_83, 6, id.to_bytes_le().to_vec()),
        (LOGICAL_SECTOR, 6, (SECTOR as u32).to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR, 6, 4096_u32.to_le_bytes().to_vec()),
    ];
    let mut out = [b"metadata".as_slice(), &[0, 0], &(items.len() as u16).to_le_bytes(), &[0; 20]].concat();
    let mut at = PART as u32;
    for (id, flags, value) in &items {
        out.extend(id.to_bytes_le());
        out.extend([at, value.len() as u32, *flags, 0].map(u32::to_le_bytes).concat());
        at += value.len() as u32;
    }
    out.resize(PART as usize, 0);
    out.extend(items.into_iter().flat_map(|(_, _, value)| value));
    out
}
