//! The block map of a sparse raw image (bmap format 2.0, as bmap-tools writes and reads it): which blocks hold data, each range with its
//! SHA-256. It checks a 16 GiB disk by the few hundred MiB that are in it, and `bmaptool copy` writes only those.

use std::fmt::Write;

use layers::Result;
use layers::units::Digest;
use rayon::prelude::*;

use super::raw::runs;
use crate::disk::{ReadAt, blocks, read_block};

const BLOCK: u64 = 4096;
/// Ranges end at multiples of this, so that they are hashed side by side.
const PIECE: usize = 4 << 20;
const NO_SUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The block map of a disk, as XML; the same for the same bytes, wherever holes of its file lie.
pub fn write(disk: &dyn ReadAt) -> Result<String> {
    let numbers = blocks(disk, PIECE as u64)?;
    let pieces = numbers.into_par_iter().map_init(|| vec![0; PIECE], |buffer, number| ranges(disk, number, buffer));
    let ranges = pieces.collect::<Result<Vec<_>>>()?.concat();
    let mapped: u64 = ranges.iter().map(|(first, last, _)| last - first + 1).sum();
    let (size, count) = (disk.len(), disk.len().div_ceil(BLOCK));
    let mut text = String::from("<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n");
    let fields = [("ImageSize", size), ("BlockSize", BLOCK), ("BlocksCount", count), ("MappedBlocksCount", mapped)];
    fields.iter().for_each(|(name, value)| put(&mut text, format_args!("  <{name}>{value}</{name}>\n")));
    put(&mut text, format_args!("  <ChecksumType>sha256</ChecksumType>\n  <BmapFileChecksum>{NO_SUM}</BmapFileChecksum>\n  <BlockMap>\n"));
    for (first, last, digest) in ranges {
        let blocks = if first == last { first.to_string() } else { format!("{first}-{last}") };
        put(&mut text, format_args!("    <Range chksum=\"{}\">{blocks}</Range>\n", digest.hex()));
    }
    text.push_str("  </BlockMap>\n</bmap>\n");
    // The map's own digest is taken with zeros in its place.
    let digest = Digest::of(text.as_bytes()).hex();
    Ok(text.replacen(NO_SUM, &digest, 1))
}

fn put(text: &mut String, line: std::fmt::Arguments) {
    // Writing to memory cannot fail.
    let _ = text.write_fmt(line);
}

/// First block, last block and digest of each run of data in a piece.
fn ranges(disk: &dyn ReadAt, number: u64, buffer: &mut [u8]) -> Result<Vec<(u64, u64, Digest)>> {
    let start = number * PIECE as u64 / BLOCK;
    let bytes = read_block(disk, number, buffer)?;
    let place = |run: std::ops::Range<usize>| (start + run.start as u64 / BLOCK, start + (run.end as u64 - 1) / BLOCK, Digest::of(&bytes[run]));
    Ok(runs(bytes).into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::disk::Disk;

    #[test]
    fn bmaptool_copies_by_the_map_and_finds_a_flipped_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (image, map, copy) = (dir.path().join("d.raw"), dir.path().join("d.raw.bmap"), dir.path().join("copy"));
        let mut disk = Disk::new((64 << 20) + 4096);
        let noise: Vec<u8> = (0..9_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        disk.put(3 << 20, Arc::new(noise)).unwrap();
        disk.put(64 << 20, Arc::new(vec![7; 4096])).unwrap();
        crate::emit::raw::write(&disk, &image).unwrap();
        let text = write(&disk).unwrap();
        // A file of the same bytes has the same map, whatever its holes are.
        assert_eq!(write(&crate::disk::file::FileAt::open(&image).unwrap()).unwrap(), text);
        fs::write(&map, text).unwrap();
        let tool = || {
            let said = Command::new("bmaptool").arg("copy").arg("--bmap").args([&map, &image, &copy]).output().unwrap();
            (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
        };
        let (well, said) = tool();
        assert!(well, "{said}");
        assert!(fs::read(&copy).unwrap() == fs::read(&image).unwrap(), "the copy differs");
        fs::File::options().write(true).open(&image).unwrap().write_all_at(&[1], (5 << 20) + 1).unwrap();
        let (well, said) = tool();
        assert!(!well && said.contains("checksum"), "{said}");
    }
}
