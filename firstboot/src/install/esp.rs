//! The EFI system partition on a disk with sectors of 4096 bytes: Linux and firmware want a FAT whose sectors are not smaller than the disk's
//! (Microsoft: FAT32 File System Specification 1.03). The image's has sectors of 512 and all its regions at multiples of 4096, so only what
//! stands before the first table of clusters is told anew.

use layers::{Error, Result};

use crate::init::table::{LARGE_SECTOR, SECTOR};

/// Small sectors in a large one.
const EACH: u32 = (LARGE_SECTOR / SECTOR) as u32;
/// Places of the fields that count in sectors, or are about them.
const BYTES_PER_SECTOR: usize = 11;
const RESERVED: usize = 14;
const INFO: usize = 48;
const BACKUP: usize = 50;
/// What counts in sectors, with the place and size of its field.
const COUNTS: [(&str, usize, usize); 5] = [
    ("a cluster has", 13, 1),
    ("in front of its tables are", RESERVED, 2),
    ("in front of it are", 28, 4),
    ("it has", 32, 4),
    ("a table of clusters has", 36, 4),
];

/// The reserved sectors of a FAT32 whose first sector is `boot` and whose second, about free space, is `info`, in sectors of 4096 bytes.
pub fn reserved(boot: &[u8; SECTOR as usize], info: &[u8; SECTOR as usize]) -> Result<Vec<u8>> {
    let number = |at: usize, size: usize| boot[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
    let is_ours = number(BYTES_PER_SECTOR, 2) == SECTOR as u32 && &boot[82..87] == b"FAT32" && number(INFO, 2) == 1 && info.starts_with(b"RRaA");
    // A copy of the first two is kept behind them.
    if !is_ours || number(RESERVED, 2) < 4 * EACH {
        return Err(refuse("it is no FAT32 as images have it"));
    }
    let mut large = vec![0; LARGE_SECTOR as usize];
    large[..boot.len()].copy_from_slice(boot);
    let mut tell = |at: usize, size: usize, value: u32| large[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    for (what, at, size) in COUNTS {
        let small = number(at, size);
        if small % EACH != 0 {
            return Err(refuse(&format!("{what} {small} sectors of 512 bytes, no multiple of {EACH}")));
        }
        tell(at, size, small / EACH);
    }
    tell(BYTES_PER_SECTOR, 2, LARGE_SECTOR as u32);
    tell(BACKUP, 2, 2);
    large.extend(info);
    large.resize(2 * LARGE_SECTOR as usize, 0);
    large.extend_from_within(..);
    large.resize((number(RESERVED, 2) * SECTOR as u32) as usize, 0);
    Ok(large)
}

fn refuse(why: &str) -> Error {
    // Smaller ones are FAT32 by having smaller clusters, and others have tables that end within a large sector.
    Error::environment(format!("laying out the EFI system partition for sectors of 4096 bytes: {why}"))
        .with_hint("make the image with a `disk.espSize` that is a multiple of 4MiB and more than 256MiB")
}
