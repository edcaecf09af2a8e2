//! Step `disk`: further disks of the profile, each found by its selector, formatted when it is empty, mounted on every boot.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use layers::profile::{DiskSelector, Mount};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

use super::{Outcome, Site, Step, json, systemctl};
use crate::exec;
use crate::host::{Change, Host, STATE};

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
    let disk = select(host, &mount.disk).context(doing)?;
    let (uuid, device) = (uuid_of(host, mount), host.path("dev").join(&disk));
    let begun = format!("{STATE}/formatting-{disk}");
    let file = File::open(&device).context(|| format!("opening /dev/{disk}"))?;
    if host.line(&begun) != uuid {
        match content(host, &disk, &file).context(|| format!("reading /dev/{disk}"))? {
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

/// Empty means: no partitions, and nothing but zeros in the first and last MiB, where every signature lies.
fn content(host: &Host, disk: &str, file: &File) -> std::io::Result<Content> {
    if host.names(&format!("sys/class/block/{disk}")).iter().any(|name| name.starts_with(disk)) {
        return Ok(Content::Partitions);
    }
    const MIB: u64 = 1 << 20;
    let end = size(host, disk).0.saturating_sub(MIB);
    let (mut first, mut last) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    file.read_exact_at(&mut first, 0)?;
    file.read_exact_at(&mut last, end)?;
    if first[1080..1082] == [0x53, 0xef] {
        let id = uuid::Uuid::from_slice(&first[1128..1144]).unwrap_or_default();
        return Ok(Content::Ext4(id.to_string()));
    }
    Ok(if first.iter().chain(&last).all(|b| *b == 0) { Content::Empty } else { Content::Unknown })
}

fn size(host: &Host, disk: &str) -> Bytes {
    Bytes(host.line(&format!("sys/class/block/{disk}/size")).parse::<u64>().unwrap_or(0) * 512)
}

fn serial(host: &Host, disk: &str) -> String {
    let plain = ["serial", "device/serial"].map(|name| host.line(&format!("sys/class/block/{disk}/{name}")));
    let page = || host.line(&format!("sys/class/block/{disk}/device/vpd_pg80"));
    plain
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| page().trim_start_matches(|c: char| c.is_control() || c == '\u{fffd}').to_string())
}

/// The one disk that answers; the node's own disk never does.
fn select(host: &Host, wanted: &DiskSelector) -> Result<String> {
    let skip = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];
    let is_disk = |name: &String| {
        let dir = format!("sys/class/block/{name}");
        !skip.iter().any(|start| name.starts_with(start)) && !host.path(&dir).join("partition").exists() && size(host, name).0 >= 4 << 20
    };
    let disks: Vec<_> = host.names("sys/class/block").into_iter().filter(is_disk).filter(|name| !is_own(host, name)).collect();
    let found: Vec<_> = disks.iter().filter(|name| answers(host, name, wanted)).collect();
    let show = |name: &String| format!("/dev/{name} ({}, serial `{}`)", size(host, name), serial(host, name));
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let all = disks.iter().map(show).collect::<Vec<_>>().join(", ");
            let there = if all.is_empty() { "none is attached".into() } else { format!("there are {all}") };
            Err(Error::environment(format!("no disk answers {}; {there}", json(wanted))).with_hint("attach the disk, then restart the agent"))
        }
        many => {
            let all = many.iter().map(|name| show(name)).collect::<Vec<_>>().join(", ");
            Err(Error::environment(format!("more than one disk answers {}: {all}", json(wanted))).with_hint("add the serial to the selector"))
        }
    }
}

fn is_own(host: &Host, disk: &str) -> bool {
    let parts = host.names(&format!("sys/class/block/{disk}")).into_iter().filter(|name| name.starts_with(disk));
    let labels = parts.map(|part| host.read(&format!("sys/class/block/{disk}/{part}/uevent")).ok().flatten().unwrap_or_default());
    labels.into_iter().any(|text| text.lines().any(|line| line == "PARTNAME=root-a" || line == "PARTNAME=state"))
}

fn answers(host: &Host, disk: &str, wanted: &DiskSelector) -> bool {
    let same = |path: &String| std::fs::canonicalize(host.path(path)).is_ok_and(|real| real.file_name().is_some_and(|name| name == disk));
    let size = size(host, disk);
    wanted.path.as_ref().is_none_or(same)
        && wanted.serial.as_ref().is_none_or(|text| *text == serial(host, disk))
        && wanted.model.as_ref().is_none_or(|pattern| matches(pattern, &host.line(&format!("sys/class/block/{disk}/device/model"))))
        && wanted.min_size.is_none_or(|least| size >= least)
        && wanted.max_size.is_none_or(|most| size <= most)
}

/// Shell-like pattern with `*` only.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => {
            text.strip_prefix(start).is_some_and(|text| (0..=text.len()).filter(|n| text.is_char_boundary(*n)).any(|n| matches(rest, &text[n..])))
        }
    }
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
        Mount { path: "/srv/a-b".into(), disk: DiskSelector { serial: Some(serial.into()), ..DiskSelector::default() } }
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
    fn a_disk_that_is_ambiguous_full_or_our_own_is_refused_by_name() {
        let (_dir, host) = fake(&[("vda", "s"), ("vdb", "x"), ("vdc", "x"), ("vdd", "full")]);
        let error = |serial: &str| ensure_formatted(&host, &mount(serial)).unwrap_err().to_string();
        assert!(error("x").contains("/dev/vdb") && error("x").contains("/dev/vdc"));
        assert!(error("s").contains("no disk answers"));
        File::options().write(true).open(host.path("dev/vdd")).unwrap().write_all_at(b"x", 4096).unwrap();
        assert!(error("full").contains("/dev/vdd for /srv/a-b: it is not empty"));
    }

    #[test]
    fn unit_names_and_patterns_follow_systemd_and_the_shell() {
        assert_eq!(unit_name("/srv/a-b/c d").unwrap(), "srv-a\\x2db-c\\x20d.mount");
        assert!(unit_name("/etc/x").is_err() && unit_name("/var/../etc").is_err());
        assert!(matches("QEMU*DISK", "QEMU HARDDISK") && !matches("QEMU*X", "QEMU HARDDISK"));
    }
}
