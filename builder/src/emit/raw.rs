//! The disk byte by byte, as a sparse file: blocks of zeros become holes.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use layers::units::Bytes;
use layers::{Context, Fault, Result};
use rayon::prelude::*;

use super::{Format, Machine, OutputFormat, put};
use crate::disk::{ReadAt, blocks, is_zero, read_block};

const COPY: usize = 1 << 20;
const HOLE: usize = 64 << 10;

/// The raw format.
#[derive(Debug)]
pub struct Raw;

impl Format for Raw {
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes> {
        Ok(Bytes(blocks(disk, HOLE as u64)?.len() as u64 * HOLE as u64))
    }

    fn emit(&self, disk: &dyn ReadAt, _: &Machine, out: &File) -> Result<()> {
        out.set_len(disk.len()).fault(Fault::Environment, || format!("making room for {} bytes", disk.len()))?;
        blocks(disk, COPY as u64)?.into_par_iter().try_for_each_init(|| vec![0; COPY], |buffer, number| copy(disk, out, number, buffer))
    }

    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        Ok(file)
    }
}

/// Writes a disk to a raw file.
pub fn write(disk: &dyn ReadAt, path: &Path) -> Result<()> {
    super::emit(OutputFormat::Raw, disk, &Machine::default(), path)
}

fn copy(disk: &dyn ReadAt, out: &File, number: u64, buffer: &mut [u8]) -> Result<()> {
    let start = number * COPY as u64;
    let bytes = read_block(disk, number, buffer)?;
    for run in runs(bytes) {
        put(out, &bytes[run.clone()], start + run.start as u64)?;
    }
    Ok(())
}

/// The parts between holes.
pub(super) fn runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for (index, block) in bytes.chunks(HOLE).enumerate().filter(|(_, block)| !is_zero(block)) {
        let start = index * HOLE;
        match out.last_mut() {
            Some(last) if last.end == start => last.end += block.len(),
            _ => out.push(start..start + block.len()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_stay_holes_and_bytes_stay_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let mut disk = Disk::new((64 << 20) + 5);
        let mut part = vec![0; 3 << 20];
        part[100_000] = 1;
        disk.put(777, Arc::new(part.clone())).unwrap();
        disk.put(64 << 20, Arc::new(b"edges".to_vec())).unwrap();
        write(&disk, &path).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert!(meta.len() == disk.len() && meta.blocks() * 512 <= 4 * HOLE as u64, "{} blocks", meta.blocks());
        let all = std::fs::read(&path).unwrap();
        assert!(all[777..][..part.len()] == part && &all[64 << 20..] == b"edges");
        assert_eq!(all.iter().filter(|b| **b != 0).count(), 6);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn d1_a_failed_source_leaves_no_file() {
        #[derive(Debug)]
        struct Broken;
        impl ReadAt for Broken {
            fn len(&self) -> u64 {
                8 << 20
            }
            fn read_at(&self, _: &mut [u8], offset: u64) -> Result<()> {
                if offset >= 4 << 20 { Err(layers::Error::environment("reading the source: gone")) } else { Ok(()) }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        // What starts from a medium or the network reads the disk as raw.zst does.
        for format in OutputFormat::ALL.into_iter().filter(|format| ![OutputFormat::Iso, OutputFormat::Pxe].contains(format)) {
            let error = crate::emit::emit(format, &Broken, &Machine::default(), &dir.path().join("disk")).unwrap_err().to_string();
            assert!(error.contains("disk (it may take up to ") && error.ends_with("reading the source: gone"), "{error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
