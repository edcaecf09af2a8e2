//! Disk formats against outside tools, against their own readers, and against hostile files.

mod iso;
mod ova;
mod pxe;
mod qcow2;
mod raw_zst;
mod vhdx;
mod vma;
mod vmdk;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use builder::disk::file::FileAt;
use builder::disk::{Disk, ReadAt};
use builder::emit::{OutputFormat, emit, open, side_by_side};
use layers::units::Digest;
use proptest::prelude::*;

use crate::common::machine;

/// Formats that pack what they carry.
const PACKED: [OutputFormat; 7] =
    [OutputFormat::RawZst, OutputFormat::Qcow2, OutputFormat::Vmdk, OutputFormat::Ova, OutputFormat::Vma, OutputFormat::Iso, OutputFormat::Pxe];
const MIB: usize = 1 << 20;

fn noise(len: usize, mut state: u64) -> Vec<u8> {
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Text that packs well, noise that does not pack, zeros, and edges inside of clusters.
fn disk() -> Disk {
    let mut disk = Disk::new((700 << 20) + 512);
    let text: Vec<u8> = (0..300_000).flat_map(|n: u32| format!("line {n}\n").into_bytes()).collect();
    disk.put(512, Arc::new(text.clone())).unwrap();
    disk.put(10 * MIB as u64, Arc::new(noise(MIB + 100, 1))).unwrap();
    disk.put(12 * MIB as u64, Arc::new([text.clone(), noise(100_000, 2), vec![0; 300_000], text].concat())).unwrap();
    disk.put(600 << 20, Arc::new(vec![0; 3 * MIB])).unwrap();
    disk.put(700 << 20, Arc::new(vec![5; 512])).unwrap();
    disk
}

fn write(disk: &dyn ReadAt, dir: &Path, format: OutputFormat) -> PathBuf {
    let path = dir.join(format!("disk.{}", format.extension()));
    emit(format, disk, &machine(), &path).unwrap();
    path
}

fn run(command: &mut Command) -> String {
    String::from_utf8(builder::exec::run(command).unwrap().stdout).unwrap()
}

fn same(a: &dyn ReadAt, b: &dyn ReadAt) -> bool {
    let (mut x, mut y) = (vec![0; MIB], vec![0; MIB]);
    a.len() == b.len()
        && (0..a.len()).step_by(MIB).all(|at| {
            let len = (a.len() - at).min(MIB as u64) as usize;
            a.read_at(&mut x[..len], at).unwrap();
            b.read_at(&mut y[..len], at).unwrap();
            x[..len] == y[..len]
        })
}

/// qemu-img finds no fault in a file of ours, and our reader and it the same bytes.
fn qemu_agrees(dir: &Path, format: OutputFormat) -> PathBuf {
    let (disk, name) = (disk(), format.extension());
    let (ours, raw) = (write(&disk, dir, format), write(&disk, dir, OutputFormat::Raw));
    run(Command::new("qemu-img").args(["check", "-f", name]).arg(&ours));
    let said = run(Command::new("qemu-img").args(["compare", "-f", name, "-F", "raw"]).args([&ours, &raw]));
    assert!(said.contains("identical"), "{said}");
    let (told, back) = open(&ours).unwrap();
    assert!(told == format && same(&disk, back.as_ref()));
    ours
}

/// Files that qemu-img makes in some subformats read back.
fn reads_qemus_own(dir: &Path, format: OutputFormat, subformats: [&str; 2]) {
    let (disk, name) = (disk(), format.extension());
    let raw = write(&disk, dir, OutputFormat::Raw);
    for form in subformats {
        let path = dir.join(format!("theirs.{name}"));
        run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", name, "-o", &format!("subformat={form}")]).args([&raw, &path]));
        assert!(same(&disk, open(&path).unwrap().1.as_ref()), "{form}");
    }
}

/// A disk that fits into 3 MiB.
fn small() -> Disk {
    let mut small = Disk::new(3 * MIB as u64);
    small.put(70_000, Arc::new(b"chasi-bod ".repeat(20_000))).unwrap();
    small.put(MIB as u64, Arc::new(noise(70_000, 3))).unwrap();
    small
}

#[test]
fn b9_bytes_do_not_depend_on_the_number_of_cores() {
    let dir = tempfile::tempdir().unwrap();
    for format in OutputFormat::ALL {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let path = pool.install(|| write(&disk(), dir.path(), format));
            Digest::of(&std::fs::read(path).unwrap())
        };
        let one = with(1);
        assert_eq!((with(2), with(7)), (one, one), "{format:?}");
    }
}

#[test]
fn golden_digests_of_a_small_image() {
    let dir = tempfile::tempdir().unwrap();
    let digests = OutputFormat::ALL.map(|format| Digest::of(&std::fs::read(write(&small(), dir.path(), format)).unwrap()).hex());
    // A new zstd or zlib may change these bytes without a fault of ours: check with qemu-img, then pin the new digest and bump the builder's version.
    assert_eq!(
        digests,
        [
            "bea45c430c79b690b3d9f91147b686522010864818ad5508c9368fe34fc295ba",
            "cf3cce1f4311b66b32fd36aa3fb53b2b50bd109da686d8e9fe10cd0aa59a211f",
            "e8452c554cfb2865cdedd0bce0a8b72bbf27cc99e36645bc2f4b4889c9f1393c",
            "ef81ab8dfe8a150263ac3ccef300190a8ccb2293c0a6da5290f1edf129b4e2c5",
            "3efb49c1d8603b2edc9f86edcf4db3993965620d647d3fb253a831f80036f218",
            "ec014e70817344f66c6d1ea86203c427504616366fa08e06e9b9167d585aba39",
            "92047d500e0b36929cda569df3d8df283210ab68c6f8e6a2bd6d90656ba790bf",
            "d9039b18bc98b2b5f7ac675694c9f0b4a9a4cc76b28837e8177a89e9bc73bfa1",
            "acb041d600a98b0cb37a38762a6710850fa0b9f9dc033048eb6cb46e82ae4005"
        ]
    );
}

fn read_all(disk: &dyn ReadAt, unit: usize) {
    let mut buffer = vec![0; unit];
    for block in builder::disk::blocks(disk, buffer.len() as u64).into_iter().flatten().take(64) {
        let _ = builder::disk::read_block(disk, block, &mut buffer);
    }
}

/// Bytes at a file's beginning and end, with headers and footers, of which each is flipped.
const EDGES: usize = 1536;

#[test]
fn d2_flipped_and_cut_files_give_errors_not_panics() {
    let dir = tempfile::tempdir().unwrap();
    for format in PACKED {
        // A broken frame of raw.zst is unpacked again for each part that is read of it.
        let unit = if matches!(format, OutputFormat::RawZst | OutputFormat::Vma | OutputFormat::Iso | OutputFormat::Pxe) { MIB } else { 64 << 10 };
        let good = std::fs::read(write(&small(), dir.path(), format)).unwrap();
        let read = |bytes: Vec<u8>| {
            if let Ok(disk) = format.format().inspect(Arc::new(bytes)) {
                read_all(disk.as_ref(), unit);
            }
        };
        for at in (0..EDGES).chain((0..good.len()).step_by(97)).chain(good.len() - EDGES..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            read(bad);
        }
        (0..good.len()).step_by(1009).for_each(|len| read(good[..len].to_vec()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_reads_back(size in 1_u64..5_000_000, parts in proptest::collection::vec((0.0..1.0, 1_usize..400_000, 0_u8..3), 0..6)) {
        let mut disk = Disk::new(size);
        for (place, len, kind) in parts {
            let at = (place * size as f64) as u64;
            let len = len.min((size - at) as usize);
            let bytes = match kind { 0 => vec![0; len], 1 => noise(len, at), _ => vec![kind; len] };
            // Parts that overlap are refused; what was taken is what counts.
            let _ = disk.put(at, Arc::new(bytes));
        }
        let dir = tempfile::tempdir().unwrap();
        for format in OutputFormat::ALL {
            let (told, reader) = open(&write(&disk, dir.path(), format)).unwrap();
            // These count sectors: the rest of the last one is zeros.
            let unit = if matches!(format, OutputFormat::Vmdk | OutputFormat::Vhdx | OutputFormat::Ova) { 512 } else { 1 };
            let mut whole = Disk::new(size.next_multiple_of(unit));
            whole.put(0, Arc::new(disk.clone())).unwrap();
            prop_assert!(told == format && same(&whole, reader.as_ref()));
            let mut odd = vec![0; (size / 3) as usize];
            let mut expected = odd.clone();
            reader.read_at(&mut odd, size / 2).unwrap();
            disk.read_at(&mut expected, size / 2).unwrap();
            prop_assert_eq!(odd, expected);
        }
    }
}

/// Figures, not a test: `scripts/bench-formats` runs it. Writes the disk in some formats side by side and prints the seconds that they took.
#[test]
#[ignore = "prints figures"]
fn figures() {
    let given = |name: &str| std::env::var(format!("CHASI_BOD_FIGURES_{name}")).unwrap();
    let (source, folder) = (FileAt::open(Path::new(&given("DISK"))).unwrap(), PathBuf::from(given("FOLDER")));
    let formats = given("FORMATS").split(',').map(|name| name.parse().unwrap()).collect();
    let mut machine = machine();
    let start = machine.start.as_mut().unwrap();
    start.scratch.clone_from(&folder);
    if given("PACKED") == "1" {
        start.packed(&source).unwrap();
    }
    let begun = std::time::Instant::now();
    side_by_side(formats, |format| emit(format, &source, &machine, &folder.join(format!("disk.{}", format.extension())))).unwrap();
    println!("seconds={}", begun.elapsed().as_secs_f64());
}
