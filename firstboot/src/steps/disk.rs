//! Step `disk`: further disks of the profile, each found by its selector, formatted when it is empty, mounted on every boot.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use layers::profile::Mount;
use layers::selector::{Selector, Traits};
use layers::units::Digest;
use layers::{Context, Error, Result};

use super::{Outcome, Site, Step, json, systemctl};
use crate::host::{Change, Host, STATE};
use crate::{disks, exec};

const UNITS: &str = "etc/systemd/system";

/// Further disks.
pub struct DiskStep;

impl Step for DiskStep {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn inputs(&self, site: &Site) -> String {
        json(&site.settings.mounts.value)
    }

    fn is_done(&self, _: &Site) -> bool {
        true
    }

    fn run(&self, site: &Site) -> Result<Outcome> {
        let (host, mut files) = (site.host, Vec::new());
        for mount in &site.settings.mounts.value {
            let name = unit_name(&mount.path)?;
            let uuid = ensure_formatted(host, mount)?;
            let text = format!(
                "# Written by chasi-bod.\n[Unit]\nDescription=Disk at {0}\n\n[Mount]\nWhat=/dev/disk/by-uuid/{uuid}\nWhere={0}\nType=ext4\nOptions=nofail\n",
                mount.path
            );
            let (unit, wants) = (format!("{UNITS}/{name}"), format!("{UNITS}/multi-user.target.wants/{name}"));
            let change = host.write(&unit, text.as_bytes(), 0o644)?;
            host.link(&wants, &format!("../{name}"))?;
            if change == Change::Made {
                systemctl(host, &["daemon-reload"])?;
            }
            systemctl(host, &["start", "--no-block", &name])?;
            files.extend([unit, wants]);
        }
        let detail = match site.settings.mounts.value.as_slice() {
            [] => "no further disks".into(),
            mounts => mounts.iter().map(|mount| mount.path.as_str()).collect::<Vec<_>>().join(" "),
        };
        Ok(Outcome { detail, files })
    }
}

/// Name of a mount unit (systemd.unit(5), string escaping for paths).
fn unit_name(path: &str) -> Result<String> {
    let below = ["/var/", "/srv/"].iter().any(|start| path.starts_with(start));
    if !below || path.split('/').any(|part| part == "..") || path.chars().any(char::is_control) {
        return Err(Error::input(format!("mounting a disk at `{path}`: the path is not below /var or /srv")));
    }
    let escape = |b: u8| match b {
        b'/' => "-".to_string(),
        b if b.is_ascii_alphanumeric() || b == b'_' || b == b'.' => char::from(b).to_string(),
        b => format!("\\x{b:02x}"),
    };
    Ok(format!("{}.mount", path.trim_matches('/').bytes().map(escape).collect::<String>()))
}

/// The UUID of the file system for this mount; derived, so that a second run knows what the first one made.
fn uuid_of(host: &Host, mount: &Mount) -> String {
    let bytes = Digest::of_parts([b"chasi-bod mount".as_slice(), host.line("etc/machine-id").as_bytes(), mount.path.as_bytes()]).0;
    let mut short = [0; 16];
    short.copy_from_slice(&bytes[..16]);
    uuid::Builder::from_random_bytes(short).into_uuid().to_string()
}

fn ensure_formatted(host: &Host, mount: &Mount) -> Result<String> {
    let doing = || format!("choosing the disk for {}", mount.path);
    let found = select(host, &mount.disk).context(doing)?;
    let disk = &found.name;
    let (uuid, device) = (uuid_of(host, mount), host.path("dev").join(disk));
    let begun = format!("{STATE}/formatting-{disk}");
    let file = File::open(&device).context(|| format!("opening /dev/{disk}"))?;
    if host.line(&begun) != uuid {
        match content(host, &found, &file).context(|| format!("reading /dev/{disk}"))? {
            Content::Ext4(found) if found == uuid => return Ok(uuid),
            Content::Empty => {}
            other => {
                let error = Error::environment(format!("formatting /dev/{disk} for {}: it is not empty: {}", mount.path, other.words()));
                return Err(error.with_hint(format!("if nothing on it is needed: `blkdiscard -fz /dev/{disk}`, then restart the agent")));
            }
        }
        // Said before mke2fs starts: a disk that a power cut left half formatted is known to be ours.
        host.write(&begun, format!("{uuid}\n").as_bytes(), 0o600)?;
        host.sync();
    }
    exec::run(host.program("mke2fs").args(["-q", "-F", "-t", "ext4", "-U", &uuid]).arg(&device))?;
    host.sync();
    host.remove(&begun)?;
    Ok(uuid)
}

enum Content {
    Empty,
    Ext4(String),
    Partitions,
    Unknown,
}

impl Content {
    fn words(&self) -> String {
        match self {
            Self::Empty => "nothing".into(),
            Self::Ext4(uuid) => format!("an ext4 file system {uuid}"),
            Self::Partitions => "partitions".into(),
            Self::Unknown => "data or a file system in its first or last MiB".into(),
        }
    }
}

fn content(host: &Host, disk: &Traits, file: &File) -> std::io::Result<Content> {
    if !disks::partitions(host, &disk.name).is_empty() {
        return Ok(Content::Partitions);
    }
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, 1024)?;
    if superblock[56..58] == [0x53, 0xef] {
        let id = uuid::Uuid::from_slice(&superblock[104..120]).unwrap_or_default();
        return Ok(Content::Ext4(id.to_string()));
    }
    Ok(if disks::is_blank(disk, file)? { Content::Empty } else { Content::Unknown })
}

/// The one disk that is meant; the node's own disk never is.
fn select(host: &Host, wanted: &Selector) -> Result<Traits> {
    let others: Vec<_> = disks::all(host).into_iter().filter(|disk| !is_own(host, &disk.name)).collect();
    disks::select(&others, wanted).cloned()
}

fn is_own(host: &Host, disk: &str) -> bool {
    let parts = host.names(&format!("sys/class/block/{disk}")).into_iter().filter(|name| name.starts_with(disk));
    let labels = parts.map(|part| host.read(&format!("sys/class/block/{disk}/{part}/uevent")).ok().flatten().unwrap_or_default());
    labels.into_iter().any(|text| text.lines().any(|line| line == "PARTNAME=root-a" || line == "PARTNAME=state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(disks: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        for (name, serial) in disks {
            host.write(&format!("sys/class/block/{name}/size"), b"32768\n", 0o444).unwrap();
            host.write(&format!("sys/class/block/{name}/serial"), serial.as_bytes(), 0o444).unwrap();
            host.write(&format!("dev/{name}"), b"", 0o600).unwrap();
            File::options().write(true).open(host.path(&format!("dev/{name}"))).unwrap().set_len(16 << 20).unwrap();
        }
        host.write("sys/class/block/vda/vda4/uevent", b"PARTNAME=state\n", 0o444).unwrap();
        host.link("usr/bin", "/usr/sbin").unwrap();
        (dir, host)
    }

    fn mount(serial: &str) -> Mount {
        Mount { path: "/srv/a-b".into(), disk: Selector::try_from(format!("serial == '{serial}'")).unwrap() }
    }

    #[test]
    fn an_empty_disk_is_formatted_once_and_an_interrupted_one_again() {
        let (_dir, host) = fake(&[("vda", "s"), ("vdb", "data")]);
        let uuid = ensure_formatted(&host, &mount("data")).unwrap();
        let device = host.path("dev/vdb");
        let label = exec::run(host.program("dumpe2fs").arg("-h").arg(&device)).unwrap();
        assert!(String::from_utf8_lossy(&label.stdout).contains(&uuid));
        let before = std::fs::read(&device).unwrap();
        assert_eq!(ensure_formatted(&host, &mount("data")).unwrap(), uuid);
        assert_eq!(std::fs::read(&device).unwrap(), before);
        host.write("var/lib/chasi-bod/formatting-vdb", format!("{uuid}\n").as_bytes(), 0o600).unwrap();
        File::options().write(true).open(&device).unwrap().write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(ensure_formatted(&host, &mount("data")).unwrap(), uuid);
    }

    #[test]
    fn a_way_to_a_disk_is_no_disk_of_the_same_serial() {
        let (_dir, host) = fake(&[("vda", "s"), ("nvme0c0n1", "data"), ("nvme0n1", "data")]);
        host.write("sys/class/block/nvme0c0n1/hidden", b"1\n", 0o444).unwrap();
        host.write("sys/class/block/nvme0n1/hidden", b"0\n", 0o444).unwrap();
        ensure_formatted(&host, &mount("data")).unwrap();
        let found = crate::init::disk::disks(&host.path("sys/class"), &host.path("dev"), crate::init::disk::Among::Machine);
        assert_eq!(found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["nvme0n1", "vda"]);
    }

    #[test]
    fn a_disk_that_is_ambiguous_full_or_our_own_is_refused_by_name() {
        let (_dir, host) = fake(&[("vda", "s"), ("vdb", "x"), ("vdc", "x"), ("vdd", "full")]);
        let error = |serial: &str| ensure_formatted(&host, &mount(serial)).unwrap_err().to_string();
        assert!(error("x").contains("/dev/vdb") && error("x").contains("/dev/vdc"));
        assert!(error("s").contains("no disk answers"));
        File::options().write(true).open(host.path("dev/vdd")).unwrap().write_all_at(b"x", 4096).unwrap();
        assert!(error("full").contains("/dev/vdd for /srv/a-b: it is not empty"));
    }

    #[test]
    fn unit_names_follow_systemd() {
        assert_eq!(unit_name("/srv/a-b/c d").unwrap(), "srv-a\\x2db-c\\x20d.mount");
        assert!(unit_name("/etc/x").is_err() && unit_name("/var/../etc").is_err());
    }
}
