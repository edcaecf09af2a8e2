//! VMA against an independent reader (dissect.archive), against bytes worked out by hand from the format's description, and odd archives.

use std::process::Command;
use std::sync::Arc;

use builder::disk::Disk;
use builder::emit::{Format, OutputFormat, open, vma::Vma};

use super::{disk, run, same, small, write};
use crate::common::{cache, machine};

/// The archive without zstd around it.
fn unpacked(disk: &Disk) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(disk, dir.path(), OutputFormat::Vma);
    run(Command::new("zstd").args(["--test", "--quiet"]).arg(&path));
    run(Command::new("zstd").args(["-dq"]).arg(&path).arg("-o").arg(dir.path().join("disk.vma")));
    std::fs::read(dir.path().join("disk.vma")).unwrap()
}

#[test]
fn d9_a_foreign_reader_finds_the_configuration_and_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let (path, raw) = (write(&disk, dir.path(), OutputFormat::Vma), write(&disk, dir.path(), OutputFormat::Raw));
    let (format, back) = open(&path).unwrap();
    assert!(format == OutputFormat::Vma && same(&disk, back.as_ref()));
    let script = r#"
import hashlib, sys
from dissect.archive.vma import VMA
vma = VMA(open(sys.argv[1], "rb"))
(device,) = vma.devices()
hasher, disk = hashlib.sha256(), device.open()
while part := disk.read(1 << 20):
    hasher.update(part)
print(vma.version, vma.uuid, int(vma.creation_time.timestamp()), device.name, device.size, hasher.hexdigest())
print(vma.config("qemu-server.conf").decode())"#;
    run(Command::new("zstd").args(["-dq"]).arg(&path).arg("-o").arg(dir.path().join("disk.vma")));
    let said = run(Command::new(cache().join("judges/bin/python3")).args(["-c", script]).arg(dir.path().join("disk.vma")));
    let sum = run(Command::new("sha256sum").arg(&raw));
    let size = std::fs::metadata(&raw).unwrap().len();
    let first = format!("1 {} 1700000000 drive-scsi0 {size} {}", machine().uuid, sum.split(' ').next().unwrap());
    assert_eq!(said.lines().next(), Some(first.as_str()));
    for line in ["name: site", "cores: 2", "memory: 4096", "boot: order=scsi0", "#qmdump#map:scsi0:drive-scsi0::raw:"] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    assert!(said.contains("scsi0: local:vm-100-disk-0,discard=on,iothread=1,size=701M\n"), "{said}");
}

/// vma_spec.txt, followed by hand for a disk of three clusters and a bit, of which two blocks are not zero.
#[test]
fn golden_bytes_of_a_small_archive() {
    let mut disk = Disk::new((3 << 16) + 512);
    disk.put((1 << 16) + 4096, Arc::new(vec![7; 4096])).unwrap();
    disk.put(3 << 16, Arc::new(vec![9; 512])).unwrap();
    let bytes = unpacked(&disk);
    let number = |at: usize, len: usize| bytes[at..at + len].iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    assert_eq!((&bytes[..4], number(4, 4), number(24, 8)), (&b"VMA\0"[..], 1, 1_700_000_000));
    assert_eq!(&bytes[8..24], machine().uuid.as_bytes());
    let (blobs, room, end) = (number(48, 4) as usize, number(52, 4) as usize, number(56, 4) as usize);
    assert_eq!((blobs, room % 512, end), (12288, 0, 12288 + room));
    let blob = |at: usize| {
        let at = blobs + number(at, 4) as usize;
        &bytes[at + 2..][..usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))]
    };
    assert_eq!((blob(2044), blob(4096 + 32)), (&b"qemu-server.conf\0"[..], &b"drive-scsi0\0"[..]));
    assert!(blob(3068).starts_with(b"#site 1.2.3\n"));
    assert_eq!((number(4096 + 32 + 8, 8), number(2048, 4), number(4096 + 64, 4)), (3 * 65536 + 512, 0, 0), "one device, one file");
    // The extent: magic, reserved, 2 blocks, identifier, checksum, and four clusters of device 1.
    assert_eq!((&bytes[end..end + 4], number(end + 4, 4)), (&b"VMAE"[..], 2));
    assert_eq!(&bytes[end + 8..end + 24], machine().uuid.as_bytes());
    let entries: Vec<u64> = (0..5).map(|n| number(end + 40 + n * 8, 8)).collect();
    assert_eq!(entries, [0x0000_0001_0000_0000, 0x0002_0001_0000_0001, 0x0000_0001_0000_0002, 0x0001_0001_0000_0003, 0]);
    let data = end + 512;
    assert!(bytes[data..data + 4096] == [7; 4096] && bytes[data + 4096..data + 4608] == [9; 512] && bytes[data + 4608..] == [0; 4096 - 512]);
    for (from, to, at) in [(0, end, 32), (end, end + 512, 24)] {
        let mut header = bytes[from..to].to_vec();
        let sum: [u8; 16] = header[at..at + 16].try_into().unwrap();
        header[at..at + 16].fill(0);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &header).unwrap();
        assert!(run(Command::new("md5sum").arg(file.path())).starts_with(&sum.map(|b| format!("{b:02x}")).concat()));
    }
}

#[test]
fn odd_archives_are_refused() {
    let good = unpacked(&small());
    let error = |bytes: Vec<u8>| Vma.inspect(Arc::new(bytes)).unwrap_err().to_string();
    assert!(same(&small(), Vma.inspect(Arc::new(good.clone())).unwrap().as_ref()), "one that is not packed");
    let flip = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 4;
        error(bad)
    };
    let end = u32::from_be_bytes(good[56..60].try_into().unwrap()) as usize;
    assert!(flip(7).contains("reading the VMA header: version 5 is not known"));
    assert!(flip(30).contains("reading the VMA header: its checksum is wrong"));
    assert!(flip(end).contains(&format!("reading the VMA extent at {end}: reading an extent: it does not begin like one")));
    assert!(flip(end + 50).contains("reading an extent: its checksum is wrong"));
    assert!(error(good[..end].to_vec()).contains("cluster 0 is missing, the archive is cut"));
    assert!(error(good[..good.len() - 1].to_vec()).contains("it is cut"));
    // A header that tells of the largest disk there can be costs no memory.
    let mut large = good[..end].to_vec();
    large[4096 + 32 + 8..][..8].copy_from_slice(&(1_u64 << 62).to_be_bytes());
    large[32..48].fill(0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &large).unwrap();
    let sum = run(Command::new("md5sum").arg(file.path()));
    (0..16).for_each(|n| large[32 + n] = u8::from_str_radix(&sum[2 * n..2 * n + 2], 16).unwrap());
    assert!(error(large).contains("cluster 0 is missing"));
    assert!(error(good[..1000].to_vec()).contains("1000 bytes are less than one"));
}
