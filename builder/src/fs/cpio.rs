//! The `newc` cpio archive that the kernel unpacks as initramfs. Format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::Write;

use layers::{Context, Error, Result};

use crate::tree::TreePath;

const MAGIC: &[u8] = b"070701";
const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// Archives are padded to this, as other tools do.
const RECORD: usize = 512;
/// Files below this are loaded by the kernel from where they lie: processors want microcode at multiples of 16 bytes.
const MICROCODE: &[u8] = b"kernel/x86/microcode/";
/// Longest name with its NUL (`PATH_MAX`).
const NAME_MAX: usize = 4096;

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path; parents must come first.
    pub path: TreePath,
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// What it is.
    pub what: What,
}

/// What an entry is, with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Directory.
    Directory,
    /// Regular file with its content, under 4 GiB.
    File(Vec<u8>),
    /// Symbolic link with its target.
    Symlink(Vec<u8>),
    /// Character device, major and minor.
    CharDevice(u32, u32),
    /// Block device, major and minor.
    BlockDevice(u32, u32),
    /// Named pipe.
    Fifo,
}

impl Entry {
    /// An entry of root:root.
    pub fn new(path: TreePath, mode: u16, mtime: u32, what: What) -> Self {
        Self { path, mode, uid: 0, gid: 0, mtime, what }
    }
}

impl What {
    fn type_bits(&self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice(..) => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice(..) => 0o060_000,
            Self::File(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::File(bytes) | Self::Symlink(bytes) => bytes,
            _ => &[],
        }
    }
}

/// Writes an archive; inode numbers are the entries' positions, so equal lists give equal bytes. The root directory has no place in it.
pub fn write(entries: &[Entry], out: &mut dyn Write) -> Result<()> {
    let mut at = 0;
    for (index, entry) in entries.iter().enumerate() {
        let size = u32::try_from(entry.what.bytes().len());
        let size = size.map_err(|_| Error::input(format!("writing {} to the cpio archive: it has 4 GiB or more", entry.path)))?;
        if entry.path.is_root() || entry.path.as_bytes().len() >= NAME_MAX || entry.path.as_bytes() == TRAILER {
            return Err(Error::input(format!("writing {} to the cpio archive: its path cannot be kept", entry.path)));
        }
        let (major, minor) = match entry.what {
            What::CharDevice(major, minor) | What::BlockDevice(major, minor) => (major, minor),
            _ => (0, 0),
        };
        let links = if entry.what == What::Directory { 2 } else { 1 };
        let mode = entry.what.type_bits() | u32::from(entry.mode & 0o7777);
        let fields = [index as u32 + 1, mode, entry.uid, entry.gid, links, entry.mtime, size, 0, 0, major, minor];
        record(fields, entry.path.as_bytes(), entry.what.bytes(), &mut at, out).context(|| format!("writing {} to the cpio archive", entry.path))?;
    }
    let end = || "writing the end of the cpio archive".into();
    record([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], TRAILER, &[], &mut at, out).context(end)?;
    pad(RECORD, &mut at, out).context(end)
}

/// One header with name and data; `fields` are all of the header's numbers before the length of the name.
fn record(fields: [u32; 11], name: &[u8], data: &[u8], at: &mut usize, out: &mut dyn Write) -> std::io::Result<()> {
    let ends = if name.starts_with(MICROCODE) { (*at + HEADER + name.len() + 1).next_multiple_of(16) - *at - HEADER - name.len() } else { 1 };
    let mut head = MAGIC.to_vec();
    for field in fields.into_iter().chain([(name.len() + ends) as u32, 0]) {
        write!(head, "{field:08x}")?;
    }
    head.extend_from_slice(name);
    head.resize(head.len() + ends, 0);
    for part in [&head, data] {
        out.write_all(part)?;
        *at += part.len();
        pad(4, at, out)?;
    }
    Ok(())
}

fn pad(unit: usize, at: &mut usize, out: &mut dyn Write) -> std::io::Result<()> {
    let missing = at.next_multiple_of(unit) - *at;
    *at += missing;
    out.write_all(&[0; RECORD][..missing])
}

/// Reads one archive up to its trailer, uncompressed; anything malformed is an input error that names the offset.
pub fn read(archive: &[u8]) -> Result<Vec<Entry>> {
    let (mut out, mut at) = (Vec::new(), 0);
    loop {
        let bad = |what: &str| Error::input(format!("reading cpio archive at byte {at}: {what}"));
        let head = archive.get(at..).and_then(|rest| rest.get(..HEADER)).ok_or_else(|| bad("it ends without a trailer"))?;
        let fields = fields(head).ok_or_else(|| bad("no newc header"))?;
        let [_, mode, uid, gid, _, mtime, size, _, _, major, minor, name_len, _] = fields;
        let name_at = at + HEADER;
        let data_at = (name_at + name_len as usize).next_multiple_of(4);
        // More than one NUL ends the names of what is aligned.
        let name = archive.get(name_at..name_at + name_len as usize).filter(|name| name.ends_with(&[0]));
        let name = name.and_then(|name| name.split(|byte| *byte == 0).next()).filter(|name| !name.is_empty() && name.len() < NAME_MAX);
        let name = name.ok_or_else(|| bad("malformed name"))?;
        let data = archive.get(data_at..).and_then(|rest| rest.get(..size as usize)).ok_or_else(|| bad("its data is cut off"))?;
        if name == TRAILER {
            return Ok(out);
        }
        let path = TreePath::new(name).map_err(|e| bad(&e))?;
        let what = match mode & 0o170_000 {
            0o010_000 => What::Fifo,
            0o020_000 => What::CharDevice(major, minor),
            0o040_000 => What::Directory,
            0o060_000 => What::BlockDevice(major, minor),
            0o100_000 => What::File(data.to_vec()),
            0o120_000 => What::Symlink(data.to_vec()),
            _ => return Err(bad("unknown file type")),
        };
        at = (data_at + data.len()).next_multiple_of(4);
        // Other tools list the root as `.`; it carries nothing.
        if !path.is_root() {
            out.push(Entry { path, mode: (mode & 0o7777) as u16, uid, gid, mtime, what });
        }
    }
}

/// The 13 numbers of a header.
fn fields(head: &[u8]) -> Option<[u32; 13]> {
    let digits = head.strip_prefix(MAGIC).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
    let mut out = [0; 13];
    for (field, digits) in out.iter_mut().zip(digits.chunks_exact(8)) {
        *field = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::exec;

    fn bytes_of(entries: &[Entry]) -> Vec<u8> {
        let mut out = Vec::new();
        write(entries, &mut out).unwrap();
        out
    }

    fn sample() -> Vec<Entry> {
        let entry = |path: &str, mode, what| Entry::new(TreePath::new(path).unwrap(), mode, 1_700_000_000, what);
        vec![
            entry("init", 0o755, What::File(b"#!/bin/sh\n".repeat(77))),
            entry("dev", 0o755, What::Directory),
            entry("dev/console", 0o600, What::CharDevice(5, 1)),
            entry("dev/loop0", 0o660, What::BlockDevice(7, 0)),
            entry("usr", 0o1777, What::Directory),
            entry("bin", 0o777, What::Symlink(b"usr/bin".to_vec())),
            entry("empty", 0o4644, What::File(vec![])),
            entry("pipe", 0o600, What::Fifo),
        ]
    }

    #[test]
    fn other_tools_list_and_unpack_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.cpio");
        fs::write(&archive, bytes_of(&sample())).unwrap();
        let script = "if command -v cpio >/dev/null; then cpio -itv --quiet <a.cpio; else echo absent; fi";
        let told = exec::run(Command::new("sh").args(["-c", script]).current_dir(dir.path()).env("TZ", "UTC").env("LC_ALL", "C")).unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        if told.trim() == "absent" {
            println!("skipped: cpio is not installed");
            return;
        }
        for line in
            ["-rwxr-xr-x   1 root", "crw-------   1 root     root       5,   1", "drwxrwxrwt   2", "bin -> usr/bin", "-rwSr--r--", "prw-------"]
        {
            assert!(told.contains(line), "{line} in\n{told}");
        }
        assert_eq!(told.lines().count(), sample().len());
        exec::run(Command::new("sh").args(["-c", "cpio -i --quiet init usr <a.cpio"]).current_dir(dir.path())).unwrap();
        assert_eq!(fs::read(dir.path().join("init")).unwrap(), sample()[0].what.bytes());
    }

    #[test]
    fn archives_of_cpio_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), b"hello").unwrap();
        let script = "command -v cpio >/dev/null || exit 0; find . | cpio -o -H newc --quiet";
        let made = exec::run(Command::new("sh").args(["-c", script]).current_dir(dir.path())).unwrap().stdout;
        if made.is_empty() {
            println!("skipped: cpio is not installed");
            return;
        }
        let read = read(&made).unwrap();
        assert_eq!(read.iter().map(|e| e.path.to_string()).collect::<Vec<_>>(), ["/d", "/d/f"]);
        assert_eq!(read[1].what, What::File(b"hello".to_vec()));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let root = Entry::new(TreePath::root(), 0o755, 0, What::Directory);
        assert!(write(&[root], &mut Vec::new()).is_err());
        let whole = bytes_of(&sample());
        for cut in [0, 5, 109, 130, whole.len() - 600] {
            assert!(read(&whole[..cut]).is_err(), "{cut}");
        }
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..600);
        let what = prop_oneof![
            Just(What::Directory),
            bytes().prop_map(What::File),
            bytes().prop_map(What::Symlink),
            (any::<u32>(), any::<u32>()).prop_map(|(a, b)| What::CharDevice(a, b)),
            (any::<u32>(), any::<u32>()).prop_map(|(a, b)| What::BlockDevice(a, b)),
            Just(What::Fifo),
        ];
        let path = proptest::collection::vec(1u8.., 1..300).prop_filter_map("a path", |p| TreePath::new(p).ok().filter(|p| !p.is_root()));
        (path, 0u16..0o10000, any::<[u32; 3]>(), what).prop_map(|(path, mode, [uid, gid, mtime], what)| Entry { path, mode, uid, gid, mtime, what })
    }

    proptest! {
        #[test]
        fn random_archives_come_back_unchanged(entries in proptest::collection::vec(any_entry(), 0..20)) {
            let bytes = bytes_of(&entries);
            prop_assert_eq!(bytes.len() % RECORD, 0);
            prop_assert_eq!(read(&bytes).unwrap(), entries);
        }

        #[test]
        fn damaged_archives_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = bytes_of(&sample());
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = read(&bytes);
        }
    }
}
