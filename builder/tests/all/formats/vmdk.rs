//! VMDK against `qemu-img`.

use std::process::Command;
use std::sync::Arc;

use builder::disk::Disk;
use builder::emit::vmdk::format::{AT_END, Header, SECTOR};
use builder::emit::vmdk::reader::Reader;
use builder::emit::{Machine, OutputFormat, emit};

use super::{disk, qemu_agrees, reads_qemus_own, run, write};

#[test]
fn d9_qemu_img_finds_no_fault_and_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let vmdk = qemu_agrees(dir.path(), OutputFormat::Vmdk);
    let told: serde_json::Value = serde_json::from_str(&run(Command::new("qemu-img").args(["info", "--output=json"]).arg(&vmdk))).unwrap();
    let data = &told["format-specific"]["data"];
    assert_eq!((&told["format"], &data["create-type"], &data["parent-cid"]), (&"vmdk".into(), &"streamOptimized".into(), &u32::MAX.into()), "{told}");
    assert_eq!(data["extents"].as_array().map(Vec::len), Some(1), "{told}");
}

/// Whoever reads from front to back needs neither directory nor tables: markers tell all.
#[test]
fn a_stream_of_markers_tells_the_whole_disk() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(write(&disk(), dir.path(), OutputFormat::Vmdk)).unwrap();
    let number = |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let (mut at, mut next, mut kinds) = (number(64, 8) as usize * 512, 0, Vec::new());
    while at < bytes.len() {
        let (value, size, kind) = (number(at, 8), number(at + 8, 4) as usize, number(at + 12, 4));
        if size > 0 {
            assert!(value >= next && value % 128 == 0, "grains come in the order of the disk");
            (next, at) = (value + 128, (at + 12 + size).next_multiple_of(512));
            continue;
        }
        if kinds.last() != Some(&kind) {
            kinds.push(kind);
        }
        at += 512 * (1 + value as usize);
    }
    assert_eq!((at, &kinds[..]), (bytes.len(), &[1, 2, 3, 0][..]), "tables, directory, footer, end");
}

#[test]
fn qemus_own_files_read_back() {
    reads_qemus_own(tempfile::tempdir().unwrap().path(), OutputFormat::Vmdk, ["streamOptimized", "monolithicSparse"]);
}

#[test]
fn what_cannot_be_is_refused() {
    let error = |bytes: Vec<u8>| Reader::open(Arc::new(bytes)).unwrap_err().to_string();
    let header = Header { version: 3, flags: 1, capacity: 1 << 50, grain: 128, descriptor: (1, 20), table_entries: 512, directory: 1, overhead: 128 };
    let with = |header: &Header| [header.to_bytes().to_vec(), vec![0xff; 8192]].concat();
    assert!(error(with(&header)).contains("reading the grain directory: 17179869184 entries at sector 1 are outside"));
    assert!(error(with(&Header { capacity: 128 * 512 * 2000, ..header.clone() })).contains("2000 tables do not fit"));
    assert!(error(with(&Header { grain: 12, ..header.clone() })).contains("in grains of 12"));
    assert!(error(with(&Header { version: 4, ..header.clone() })).contains("version 4"));
    assert!(error(with(&Header { directory: AT_END, ..header.clone() })).contains("reading the footer"));
    let mut text = with(&header);
    text[75] = b'\n';
    assert!(error(text).contains("transferred as text"));
    assert!(error(header.to_bytes()[..100].to_vec()).contains("100 bytes are less than one"));
    let dir = tempfile::tempdir().unwrap();
    let too_large = Disk::new((u64::from(u32::MAX) + 1) * SECTOR);
    let error = emit(OutputFormat::Vmdk, &too_large, &Machine::default(), &dir.path().join("d.vmdk")).unwrap_err().to_string();
    assert!(error.contains("2 TiB is the most"), "{error}");
}
