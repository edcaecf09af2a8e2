//! The disks of the machine: what each says of itself, what is on it, and which one a selector means.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use layers::selector::{Selector, Traits};
use layers::units::Bytes;
use layers::{Error, Result};
use serde::{Deserialize, Serialize, Serializer};

use crate::exec;
use crate::host::Host;
use crate::init::disk::{HIDDEN, NOT_DISKS};

const CLASS: &str = "sys/class/block";
/// Smaller ones are eMMC boot areas and the like.
const LEAST: Bytes = Bytes::mib(4);
const LINKS: &str = "dev/disk";

/// The disks of the machine, by name.
pub fn all(host: &Host) -> Vec<Traits> {
    let is_disk = |name: &String| {
        let folder = format!("{CLASS}/{name}");
        let is_partition = || host.path(&folder).join("partition").exists();
        let is_hidden = || host.line(&format!("{folder}/{HIDDEN}")) == "1";
        !NOT_DISKS.iter().any(|start| name.starts_with(start)) && !is_partition() && !is_hidden() && size(host, name) >= LEAST
    };
    host.names(CLASS).into_iter().filter(is_disk).map(|name| traits(host, name)).collect()
}

fn size(host: &Host, name: &str) -> Bytes {
    // sysfs counts in 512 bytes, whatever the disk's sectors are.
    Bytes(host.line(&format!("{CLASS}/{name}/size")).parse::<u64>().unwrap_or(0) * 512)
}

fn traits(host: &Host, name: String) -> Traits {
    let line = |file: &str| host.line(&format!("{CLASS}/{name}/{file}"));
    let first = |files: &[&str]| files.iter().map(|file| line(file)).find(|text| !text.is_empty()).unwrap_or_default();
    // SCSI page 0x80 begins with four bytes that are no text.
    let page = || line("device/vpd_pg80").trim_start_matches(|c: char| c.is_control() || c == '\u{fffd}').trim().to_string();
    let serial = first(&["serial", "device/serial"]);
    let path = format!("/dev/{name}");
    Traits {
        paths: std::iter::once(path.clone()).chain(links(host, &name)).collect(),
        path,
        size: i64::try_from(size(host, &name).0).unwrap_or(i64::MAX),
        sector: line("queue/logical_block_size").parse().unwrap_or(512),
        rotational: line("queue/rotational") == "1",
        removable: line("removable") == "1",
        bus: bus(host, &name).into(),
        model: line("device/model"),
        serial: if serial.is_empty() { page() } else { serial },
        wwid: first(&["wwid", "device/wwid"]),
        name,
    }
}

/// The nearest bus above the disk that a person would name.
fn bus(host: &Host, name: &str) -> &'static str {
    let place = fs::canonicalize(host.path(&format!("{CLASS}/{name}"))).unwrap_or_default();
    let parts: Vec<_> = place.iter().map(|part| part.to_string_lossy()).collect();
    let known = |part: &str| match part {
        part if part.starts_with("nvme") => Some("nvme"),
        part if part.starts_with("usb") => Some("usb"),
        part if part.starts_with("ata") => Some("sata"),
        part if part.starts_with("mmc") => Some("mmc"),
        part if part.starts_with("virtio") => Some("virtio"),
        _ => None,
    };
    let found = parts.iter().rev().find_map(|part| known(part));
    // A SCSI host hangs below an ATA port, a USB device or a virtio controller; only where it hangs below none it is the bus itself.
    found.or_else(|| parts.iter().any(|part| part.starts_with("host")).then_some("scsi")).unwrap_or_default()
}

/// Links below /dev/disk/ that lead to the device.
fn links(host: &Host, name: &str) -> Vec<String> {
    let mut out = Vec::new();
    for folder in host.names(LINKS) {
        for link in host.names(&format!("{LINKS}/{folder}")) {
            let path = format!("{LINKS}/{folder}/{link}");
            let target = fs::canonicalize(host.path(&path)).unwrap_or_default();
            if target.file_name().is_some_and(|file| file == name) {
                out.push(format!("/{path}"));
            }
        }
    }
    out
}

/// A disk in a few words.
pub fn describe(disk: &Traits) -> String {
    let model = if disk.model.is_empty() { &disk.bus } else { &disk.model };
    format!("{} ({}, {model}, serial `{}`)", disk.path, Bytes(disk.size.unsigned_abs()), disk.serial)
}

/// The one disk of `disks` that the selector means; with none or several, an error names each disk and why.
pub fn select<'a>(disks: &'a [Traits], wanted: &Selector) -> Result<&'a Traits> {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for disk in disks {
        match wanted.unmet(disk).map_err(Error::input)? {
            None => found.push(disk),
            Some(unmet) => others.push(format!("{}: not {unmet}", describe(disk))),
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            let there = if others.is_empty() { "none is attached".into() } else { format!("there are {}", others.join(", ")) };
            Err(Error::environment(format!("no disk answers `{wanted}`; {there}")).with_hint("attach the disk, or change the expression"))
        }
        many => {
            let all = many.iter().map(|disk| describe(disk)).collect::<Vec<_>>().join(", ");
            Err(Error::environment(format!("more than one disk answers `{wanted}`: {all}")).with_hint("add the serial number to the expression"))
        }
    }
}

/// The partitions that the kernel knows of a disk.
pub fn partitions(host: &Host, disk: &str) -> Vec<String> {
    let is_one = |name: &String| host.path(&format!("{CLASS}/{disk}/{name}/partition")).exists();
    host.names(&format!("{CLASS}/{disk}")).into_iter().filter(is_one).collect()
}

/// Whether there is nothing but zeros in the first and last MiB, where every signature lies.
pub fn is_blank(disk: &Traits, file: &File) -> std::io::Result<bool> {
    const MIB: u64 = 1 << 20;
    let (mut first, mut last) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    file.read_exact_at(&mut first, 0)?;
    file.read_exact_at(&mut last, disk.size.unsigned_abs().saturating_sub(MIB))?;
    Ok(first.iter().chain(&last).all(|byte| *byte == 0))
}

/// Something that wipefs(8) found on a device.
#[derive(Debug, Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    label: Option<String>,
}

/// What is on a disk and its partitions, a word or two each; empty when nothing is known to be.
pub fn contents(host: &Host, disk: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for name in std::iter::once(disk.to_string()).chain(partitions(host, disk)) {
        for found in signatures(host, &host.path("dev").join(&name))? {
            let label = found.label.filter(|label| !label.is_empty()).map(|label| format!(" `{label}`")).unwrap_or_default();
            // A table has two copies; one is enough to tell.
            let words = format!("{name}: {}{label}", found.kind);
            if !out.contains(&words) {
                out.push(words);
            }
        }
    }
    Ok(out)
}

fn signatures(host: &Host, device: &Path) -> Result<Vec<Signature>> {
    #[derive(Deserialize)]
    struct Found {
        signatures: Vec<Signature>,
    }
    let said = exec::run(host.program("wipefs").args(["--no-act", "--json"]).arg(device))?;
    if said.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let found: Found =
        serde_json::from_slice(&said.stdout).map_err(|e| Error::environment(format!("reading what wipefs says of {}: {e}", device.display())))?;
    Ok(found.signatures)
}

/// What is on a disk, for people. One that cannot be read is no reason to be silent about the others.
pub fn listed(contents: &Result<Vec<String>>) -> String {
    match contents {
        Ok(contents) if contents.is_empty() => "nothing known".into(),
        Ok(contents) => contents.join(", "),
        Err(error) => format!("what cannot be read: {}", error.to_string().lines().last().unwrap_or_default().trim()),
    }
}

/// A row of `chasi-bod disks`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// What the disk says of itself.
    #[serde(flatten)]
    pub traits: Traits,
    /// What is on it; none where it cannot be read.
    #[serde(serialize_with = "known")]
    pub contents: Result<Vec<String>>,
    /// The condition that it does not meet, when a selector was given and does not mean it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmet: Option<String>,
}

fn known<S: Serializer>(contents: &Result<Vec<String>>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    contents.as_ref().ok().serialize(serializer)
}

/// All disks, and what a selector says of each.
pub fn rows(host: &Host, wanted: Option<&Selector>) -> Result<Vec<Row>> {
    let row = |traits: Traits| {
        let contents = contents(host, &traits.name);
        let unmet = wanted.map(|wanted| wanted.unmet(&traits)).transpose().map_err(Error::input)?.flatten();
        Ok(Row { traits, contents, unmet })
    };
    all(host).into_iter().map(row).collect()
}

/// The rows as a table for people.
pub fn table(rows: &[Row], wanted: Option<&Selector>) -> String {
    let mut out = String::new();
    for Row { traits, contents, unmet } in rows {
        let turns = if traits.rotational { "rotational" } else { "solid" };
        let removable = if traits.removable { ", removable" } else { "" };
        out += &format!("{}\n  {}, {turns}{removable}, {} byte sectors, wwid `{}`\n", describe(traits), traits.bus, traits.sector, traits.wwid);
        out += &format!("  holds {}\n", listed(contents));
        match (wanted, unmet) {
            (Some(_), Some(unmet)) => out += &format!("  not picked: not {unmet}\n"),
            (Some(wanted), None) => out += &format!("  picked by {wanted}\n"),
            (None, _) => {}
        }
    }
    out
}
