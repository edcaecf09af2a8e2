//! The OVF descriptor (DMTF DSP0243 1.1), written and read.

use handlebars::Handlebars;
use layers::{Error, Result};
use roxmltree::{Document, Node};
use serde::Serialize;

use crate::emit::Machine;

/// Namespace of OVF's elements and attributes.
const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";
/// What formats of virtual disks are called that are a VMDK.
const VMDK: &str = "vmdk.html";

/// What the descriptor says of its disk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name of its file.
    pub file: String,
    /// Bytes of that.
    pub file_size: u64,
    /// Bytes of the disk.
    pub capacity: u64,
    /// How many of them may be other than zero.
    pub populated: u64,
}

/// A setting of the node that a person is asked for when the appliance is imported.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Property {
    /// The setting's key (`docs/node-config.md`).
    pub key: &'static str,
    /// Heading that it begins; none when it stands under the one before.
    category: Option<&'static str>,
    /// What the field is called.
    label: &'static str,
    /// What it wants.
    description: &'static str,
    /// The only values that it takes.
    values: Option<&'static str>,
    /// Whether what is typed is hidden.
    secret: bool,
}

const fn property(key: &'static str, label: &'static str, description: &'static str) -> Property {
    Property { key, category: None, label, description, values: None, secret: false }
}

/// What every image asks for.
pub const NODE: [Property; 7] = [
    Property {
        category: Some("Machine"),
        ..property("hostname", "Host name", "Text with {mac}, {serial} or {id} for what differs between machines.")
    },
    property("sshKeys", "SSH key", "A public key that may log in as root."),
    Property {
        category: Some("Network"),
        ..property("network.address", "Address", "Address with prefix length, such as 192.0.2.10/24. DHCP when empty.")
    },
    property("network.gateway", "Gateway", "Address of the default gateway."),
    property("network.dns", "DNS servers", "Addresses, separated by commas."),
    property("time.servers", "Time servers", "Names or addresses of NTP servers, separated by commas."),
    property("url", "Configuration URL", "Address of a document with further settings: https, or http with #sha256=DIGEST."),
];

/// What images with Kubernetes ask for, too.
pub const CLUSTER: [Property; 3] = [
    Property {
        category: Some("Cluster"),
        values: Some("\"founder\", \"member\""),
        ..property("cluster.role", "Role", "Whether this machine makes a cluster of its own (founder) or joins one (member).")
    },
    property("cluster.endpoint", "Endpoint", "Address of a control plane that a member joins, HOST or HOST:PORT."),
    Property { secret: true, ..property("cluster.secret", "Secret", "What the nodes of a cluster know each other by, 26 characters or more.") },
];

/// The descriptor's text.
pub fn write(machine: &Machine, disk: &Disk) -> Result<String> {
    #[derive(Serialize)]
    struct Data<'a> {
        name: &'a str,
        version: &'a str,
        processors: u16,
        memory: u64,
        disk: &'a Disk,
        properties: Vec<Property>,
    }
    let cluster = if machine.has_cluster { &CLUSTER[..] } else { &[] };
    let data = Data {
        name: &machine.name,
        version: &machine.version,
        processors: machine.processors,
        memory: machine.memory.0 >> 20,
        disk,
        properties: NODE.iter().chain(cluster).copied().collect(),
    };
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine.render_template(include_str!("machine.ovf"), &data).map_err(|e| Error::internal(format!("writing the OVF descriptor: {e}")))
}

/// The file that has the first disk.
pub fn disk_file(text: &str) -> Result<String> {
    let refused = |why: String| Error::input(format!("reading the OVF descriptor: {why}"));
    let document = Document::parse(text).map_err(|e| refused(e.to_string()))?;
    let find = |name: &str| document.descendants().find(move |node| node.has_tag_name((OVF, name)));
    let disk = find("Disk").ok_or_else(|| refused("it has no disk".into()))?;
    let attribute = |node: Node<'_, '_>, name: &str| node.attribute((OVF, name)).map(str::to_string);
    let wanted = attribute(disk, "fileRef").ok_or_else(|| refused("its disk has no file".into()))?;
    let mut files = document.descendants().filter(|node| node.has_tag_name((OVF, "File")));
    let file = files.find(|file| file.attribute((OVF, "id")) == Some(&wanted));
    let file = file.ok_or_else(|| refused(format!("its disk is in the file `{wanted}`, which `References` does not list")))?;
    let href = attribute(file, "href").ok_or_else(|| refused(format!("the file `{wanted}` has no name")))?;
    if let Some(packed) = attribute(file, "compression").filter(|packed| packed != "identity") {
        return Err(refused(format!("`{href}` is packed by {packed}, which is not known")));
    }
    if attribute(file, "chunkSize").is_some() {
        return Err(refused(format!("`{href}` is in several parts, which is not known")));
    }
    match attribute(disk, "format") {
        Some(format) if !format.contains(VMDK) => Err(refused(format!("the disk in `{href}` is no VMDK but {format}"))),
        _ => Ok(href),
    }
}
