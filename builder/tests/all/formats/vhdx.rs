//! VHDX against `qemu-img`.

use std::process::Command;
use std::sync::Arc;

use builder::disk::{Disk, ReadAt as _};
use builder::emit::vhdx::reader::Reader;
use builder::emit::{OutputFormat, emit, open};

use super::{qemu_agrees, reads_qemus_own, run, same, small, write};
use crate::common::machine;

#[test]
fn d9_qemu_img_finds_no_fault_and_the_same_bytes() {
    qemu_agrees(tempfile::tempdir().unwrap().path(), OutputFormat::Vhdx);
}

#[test]
fn qemus_own_files_read_back() {
    reads_qemus_own(tempfile::tempdir().unwrap().path(), OutputFormat::Vhdx, ["dynamic", "fixed"]);
}

/// More blocks than go between two entries of the table for sectors' states, and than are read of it at once.
#[test]
fn a_disk_of_terabytes_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(3 << 40);
    for at in [0, (4 << 30) - 5, (8 << 30) + 1, (3 << 40) - 100] {
        disk.put(at, Arc::new(vec![7; 100])).unwrap();
    }
    let path = dir.path().join("large.vhdx");
    emit(OutputFormat::Vhdx, &disk, &machine(), &path).unwrap();
    let back = open(&path).unwrap().1;
    for range in disk.data().unwrap() {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        back.read_at(&mut bytes, range.start).unwrap();
        assert!(bytes == vec![7; bytes.len()]);
    }
    run(Command::new("qemu-img").args(["check", "-f", "vhdx"]).arg(&path));
}

#[test]
fn d2_what_is_wrong_with_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(write(&small(), dir.path(), OutputFormat::Vhdx)).unwrap();
    let refused = |changes: &[(usize, u8)]| {
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, byte)| bytes[*at] ^= byte);
        Reader::open(Arc::new(bytes)).unwrap_err().to_string()
    };
    const KIB: usize = 1024;
    let metadata = 2048 * KIB;
    for (changes, wanted) in [
        (&[(64 * KIB + 9, 1), (128 * KIB + 9, 1)][..], "neither of its headers is whole"),
        (&[(192 * KIB + 9, 1), (256 * KIB + 9, 1)], "neither of its region tables is whole"),
        (&[(metadata, 1)], "it has not its signature"),
        (&[(metadata + 33, 1)], "there is no size of blocks"),
        (&[(metadata + 64 * KIB + 4, 2)], "it has only what differs from another file"),
        (&[(metadata + 64 * KIB + 1, 1)], "blocks of 1048832 bytes"),
        (&[(metadata + 64 * KIB + 8 + 5, 1)], "is too small for a disk of"),
    ] {
        let error = refused(changes);
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    // One whole copy of each is enough.
    let mut bytes = good.clone();
    (bytes[128 * KIB + 9], bytes[192 * KIB + 9]) = (1, 1);
    assert!(same(&small(), &Reader::open(Arc::new(bytes)).unwrap()));
}

#[test]
fn d2_flipped_bits_of_headers_and_tables_give_errors_not_panics() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Arc::new(std::fs::read(write(&small(), dir.path(), OutputFormat::Vhdx)).unwrap());
    let parts = [0, 64, 128, 192, 256, 2048, 2112, 3072].map(|kib| kib << 10);
    for at in parts.into_iter().flat_map(|start| start..start + 200) {
        for bit in 0..8 {
            Arc::get_mut(&mut file).unwrap()[at] ^= 1 << bit;
            if let Ok(disk) = Reader::open(file.clone()) {
                let _ = disk.read_at(&mut [0; 100_000], 0);
            }
            Arc::get_mut(&mut file).unwrap()[at] ^= 1 << bit;
        }
    }
}
