//! Packed raw disks against the zstd command and bmaptool.

use std::process::Command;
use std::sync::Arc;

use builder::disk::Disk;
use builder::emit::{OutputFormat, bmap, open};

use super::{disk, noise, run, same, write};

#[test]
fn zstd_finds_no_fault_and_the_same_bytes_and_bmaptool_copies_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let (packed, raw) = (write(&disk, dir.path(), OutputFormat::RawZst), write(&disk, dir.path(), OutputFormat::Raw));
    run(Command::new("zstd").args(["--test", "--quiet"]).arg(&packed));
    run(Command::new("sh").args(["-c", "zstd -dcq \"$0\" | cmp - \"$1\""]).args([&packed, &raw]));
    std::fs::write(dir.path().join("disk.raw.zst.bmap"), bmap::write(&disk).unwrap()).unwrap();
    let copy = dir.path().join("copy");
    run(Command::new("bmaptool").arg("copy").args([&packed, &copy]));
    run(Command::new("cmp").args([&copy, &raw]));
    let (format, back) = open(&packed).unwrap();
    assert!(format == OutputFormat::RawZst && same(&disk, back.as_ref()));
    let data: u64 = back.data().unwrap().iter().map(|range| range.end - range.start).sum();
    assert!(data <= 32 << 20, "frames of zeros are holes: {data}");
}

#[test]
fn an_odd_seek_table_is_refused_and_a_foreign_file_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(9 << 20);
    disk.put(0, Arc::new(noise(1000, 5))).unwrap();
    let path = write(&disk, dir.path(), OutputFormat::RawZst);
    let good = std::fs::read(&path).unwrap();
    let error = |at: usize, value: u8| {
        let mut bad = good.clone();
        let at = bad.len() - at;
        bad[at] = value;
        OutputFormat::RawZst.format().inspect(Arc::new(bad)).unwrap_err().to_string()
    };
    assert!(error(5, 3).contains("flags 0x3 are not known"));
    assert!(error(9, 2).contains("its frame is not one of a table"));
    assert!(error(6, 0x70).contains("do not fit into the file"));
    assert!(error(10, 0xff).contains("frame 2 has 42"));
    assert!(error(9 + 8, 1).contains("its frames do not end where it begins"));
    let foreign = dir.path().join("foreign.zst");
    run(Command::new("sh").args(["-c", "head -c 9000 /dev/zero | zstd -q > \"$0\""]).arg(&foreign));
    let error = open(&foreign).unwrap_err();
    assert!(error.to_string().contains("reading the seek table: there is none") && error.hint().unwrap().contains("zstd -d"), "{error}");
}
