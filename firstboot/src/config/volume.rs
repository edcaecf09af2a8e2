//! Volumes by label, found by reading superblocks ourselves: FAT (boot sector), ISO 9660 (volume descriptor), ext2-4.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::host::{Host, RUN};

/// Largest document that is read from a medium, in bytes.
const LIMIT: u64 = 1 << 20;

/// Runs `reader` on the folder of the volume with this label; `None` when there is no such volume.
/// On a folder instead of a machine the volume is `volumes/<label>`.
pub fn read<T>(host: &Host, label: &str, reader: impl Fn(&Path) -> Result<Vec<T>, String>) -> Option<Result<Vec<T>, Vec<String>>> {
    if !host.is_live() {
        let folder = host.path("volumes").join(label);
        return folder.is_dir().then(|| reader(&folder).map_err(|why| vec![why]));
    }
    let (device, kind) = find(host, label)?;
    let dir = host.path(RUN).join("volume");
    if let Err(why) = attach(&dir, &device, kind) {
        return Some(Err(vec![format!("disk {label}: {why}")]));
    }
    let said = reader(&dir).map_err(|why| vec![why]);
    let _ = unmount(&dir, UnmountFlags::DETACH);
    Some(said)
}

fn attach(dir: &Path, device: &Path, kind: &str) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("making {}: {e}", dir.display()))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = if kind == "ext4" { c"noload" } else { c"" };
    mount(device, dir, kind, flags, options).map_err(|e| format!("mounting {} as {kind}: {e}", device.display()))
}

/// A text file of a volume, whatever the case of its name.
pub fn file(dir: &Path, name: &str) -> Result<String, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| e.to_string())?.flatten();
    let path = entries.map(|entry| entry.path()).find(|path| path.file_name().is_some_and(|n| n.eq_ignore_ascii_case(name)));
    let path = path.ok_or("no such file")?;
    let size = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
    if size > LIMIT {
        return Err(format!("is {size} bytes long, {LIMIT} are allowed"));
    }
    let bytes = std::fs::read(&path).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".into())
}

fn find(host: &Host, label: &str) -> Option<(PathBuf, &'static str)> {
    let skip = |name: &&String| !["loop", "ram", "zram", "dm-", "md"].iter().any(|start| name.starts_with(start));
    host.names("sys/class/block").iter().filter(skip).find_map(|name| {
        let path = host.path("dev").join(name);
        let (found, kind) = probe(&File::open(&path).ok()?)?;
        found.eq_ignore_ascii_case(label).then_some((path, kind))
    })
}

/// Label and kernel file system name of a volume.
pub fn probe(device: &File) -> Option<(String, &'static str)> {
    let mut boot = [0; 2048];
    device.read_exact_at(&mut boot, 0).ok()?;
    if boot[510..512] == [0x55, 0xaa] {
        // FAT12/16 keep type and label at 54 and 43, FAT32 at 82 and 71 (Microsoft FAT specification 1.03).
        for (kind, label) in [(54..57, 43..54), (82..85, 71..82)] {
            if &boot[kind] == b"FAT" {
                return Some((text(&boot[label]), "vfat"));
            }
        }
    }
    if boot[1080..1082] == [0x53, 0xef] {
        return Some((text(&boot[1144..1160]), "ext4"));
    }
    let mut descriptor = [0; 72];
    device.read_exact_at(&mut descriptor, 16 * 2048).ok()?;
    (&descriptor[1..6] == b"CD001").then(|| (text(&descriptor[40..72]), "iso9660"))
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim().to_string()
}

/// Names of all block devices: when they change, a labelled disk may have come.
pub fn devices(host: &Host) -> Vec<String> {
    host.names("sys/class/block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn labels_of_real_file_systems_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let table: [(&str, &[&str], &str); 4] = [
            ("mkfs.vfat", &["-n", "CHASI"], "vfat"),
            ("mkfs.vfat", &["-F", "32", "-n", "CHASI"], "vfat"),
            ("mke2fs", &["-q", "-t", "ext4", "-L", "CHASI"], "ext4"),
            ("xorriso", &["-as", "mkisofs", "-V", "CHASI", "-o"], "iso9660"),
        ];
        for (tool, args, kind) in table {
            let image = dir.path().join(format!("{kind}{}", args.len()));
            let mut command = Command::new(tool);
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(args).arg(&image);
            match tool {
                "xorriso" => _ = command.arg("/etc/default"),
                _ => File::create(&image).unwrap().set_len(64 << 20).unwrap(),
            }
            match command.output() {
                Ok(output) => assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr)),
                Err(_) => continue, // The tool is not on this machine.
            }
            assert_eq!(probe(&File::open(&image).unwrap()), Some(("CHASI".into(), kind)), "{tool}");
        }
    }
}
