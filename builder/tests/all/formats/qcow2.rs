//! QCOW2 against `qemu-img`.

use std::process::Command;
use std::sync::Arc;

use builder::emit::qcow2::format::{Compression, Header};
use builder::emit::qcow2::reader::Reader;
use builder::emit::{OutputFormat, open};

use super::{disk, run, same, write};

#[test]
fn d9_qemu_img_finds_no_fault_and_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let (qcow2, raw) = (write(&disk, dir.path(), OutputFormat::Qcow2), write(&disk, dir.path(), OutputFormat::Raw));
    let check = run(Command::new("qemu-img").args(["check", "--output=json"]).arg(&qcow2));
    let check: serde_json::Value = serde_json::from_str(&check).unwrap();
    for fault in ["corruptions", "leaks", "check-errors"] {
        assert!(check[fault].is_null() || check[fault] == 0, "{check}");
    }
    assert_eq!(check["compressed-clusters"].as_u64().unwrap() + 8, check["allocated-clusters"].as_u64().unwrap(), "{check}");
    let said = run(Command::new("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw"]).args([&qcow2, &raw]));
    assert!(said.contains("identical"), "{said}");
    let (format, back) = open(&qcow2).unwrap();
    assert!(format == OutputFormat::Qcow2 && same(&disk, back.as_ref()));
    assert_eq!(open(&raw).unwrap().0, OutputFormat::Raw);
}

#[test]
fn qemus_own_files_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let raw = write(&disk, dir.path(), OutputFormat::Raw);
    let forms = [
        ("plain", "compat=1.1"),
        ("old", "compat=0.10"),
        ("-c", "compression_type=zlib"),
        ("-c", "compression_type=zstd"),
        ("-c", "cluster_size=4096"),
        ("-c", "cluster_size=2M"),
    ];
    for (compressed, option) in forms {
        let path = dir.path().join("theirs.qcow2");
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "qcow2", "-o", option]);
        if compressed == "-c" {
            command.arg("-c");
        }
        run(command.arg(&raw).arg(&path));
        assert!(same(&disk, open(&path).unwrap().1.as_ref()), "{compressed} {option}");
    }
    let path = dir.path().join("child.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&raw, &path]));
    assert!(open(&path).unwrap_err().to_string().contains("backing file"));
}

#[test]
fn many_tables_in_a_small_file_are_refused() {
    let mut file = vec![0; 4 << 20];
    let header = Header {
        cluster_bits: 21,
        size: 1 << 56,
        l1_size: 1 << 18,
        l1_offset: 2 << 20,
        refcount_offset: 0,
        refcount_clusters: 0,
        compression: Compression::Zstd,
    };
    file[..112].copy_from_slice(&header.to_bytes());
    file[2 << 20..].chunks_exact_mut(8).for_each(|entry| entry.copy_from_slice(&(2_u64 << 20).to_be_bytes()));
    assert!(Reader::open(Arc::new(file.clone())).unwrap_err().to_string().contains("262144 L2 tables do not fit"));
    file[..112].copy_from_slice(&Header { size: u64::MAX, ..header }.to_bytes());
    assert!(Reader::open(Arc::new(file)).is_err());
}
