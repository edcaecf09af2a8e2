//! The valid profile: what one image shall be. Key names are camelCase, as in Kubernetes objects.
//!
//! The JSON schema that editors use is generated from these types, so every doc comment here is what a user reads.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types_network::Network;
use super::types_platform::Named;
use crate::chart::ChartSpec;
use crate::image::PulledUse;
use crate::platform::{ComponentSpec, VirtualClusterSpec};
use crate::selector::Selector;
use crate::source::Source;
use crate::units::Bytes;

/// A platform image, declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Name of the image; also the folder below `output/`. Lower-case letters, digits and `-`.
    pub name: String,
    /// Version of the image, as users will read it (semantic version).
    pub version: String,
    /// Machine architecture.
    #[serde(default)]
    pub architecture: Architecture,
    /// Text that all UUIDs and salts derive from; the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Where Debian packages come from.
    #[serde(default)]
    pub debian: Debian,
    /// Layers to build, in order: a name of a built-in layer, or a folder of your own.
    #[serde(default)]
    pub layers: Vec<LayerUse>,
    /// Kernel, consoles and command line.
    #[serde(default)]
    pub boot: Boot,
    /// Additional Debian packages.
    #[serde(default)]
    pub packages: Vec<String>,
    /// User accounts. Log-in is by ssh key only; no password can be given here.
    #[serde(default)]
    pub users: Vec<User>,
    /// Files to put into the image.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Sources instead of those of the same name that layers declare, and further ones for `files`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, Source>,
    /// Container images to pull, instead of those of the same name that layers declare, and further ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PulledUse>,
    /// Helm charts that the cluster gets when it is founded, after those of the layers; one of a layer's name takes that one's place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub charts: Vec<ChartSpec>,
    /// Plain manifests (YAML files, relative to this file) that the cluster gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<String>,
    /// Further Kubernetes versions for virtual clusters, such as `v1.35.4`; the node's own is always there.
    #[serde(default)]
    pub virtual_versions: Vec<String>,
    /// Virtual clusters that it gets, each with a name and the fields of a VirtualCluster's `spec`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vclusters: Vec<Named<VirtualClusterSpec>>,
    /// Applications that it gets, each with a name and the fields of a Component's `spec`. The chart is an entry of `charts` with `install: false`, its
    /// version the locked one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Named<ComponentSpec>>,
    /// Kernel parameters by their dotted name.
    #[serde(default)]
    pub sysctl: BTreeMap<String, Scalar>,
    /// Host name rule: literal text with `{mac}` (hex digits of the first network card), `{serial}` (machine serial) or `{id}`
    /// (8 digits of the machine id).
    #[serde(default = "default_hostname")]
    pub hostname: String,
    /// Network interfaces and the planes they carry.
    #[serde(default)]
    pub network: Network,
    /// Target disk, slot and state sizes, extra mounts.
    #[serde(default)]
    pub disk: Disk,
    /// The virtual machine that OVA and VMA make.
    #[serde(default)]
    pub machine: Machine,
    /// Time zone and time servers.
    #[serde(default)]
    pub time: Time,
    /// Who may log in on the console.
    #[serde(default)]
    pub console: Console,
}

fn default_hostname() -> String {
    "node-{mac}".into()
}

/// Machine architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// x86-64.
    #[default]
    Amd64,
}

impl Architecture {
    /// Debian's name.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
        }
    }
}

/// A YAML scalar that is kept as text: `1`, `true` and `"1"` are equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scalar {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(v) => write!(f, "{v}"),
            Self::Number(v) => write!(f, "{v}"),
            Self::Text(v) => f.write_str(v),
        }
    }
}

/// Where Debian packages come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Debian {
    /// Release code name.
    pub suite: String,
    /// Archive components.
    pub components: Vec<String>,
    /// Base URL of the archive; the build machine's own apt sources when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Base URL of the security archive; the build machine's own apt sources when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_mirror: Option<String>,
    /// Also take `<suite>-security` and `<suite>-updates`.
    pub updates: bool,
    /// Base URL of a snapshot archive in which packages are looked for that the mirror has dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// File with the OpenPGP certificates that may sign the archive; the shipped Debian keyring when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyring: Option<String>,
}

impl Default for Debian {
    fn default() -> Self {
        Self {
            suite: "trixie".into(),
            components: vec!["main".into()],
            mirror: None,
            security_mirror: None,
            updates: true,
            snapshot: None,
            keyring: None,
        }
    }
}

/// One layer of the image: its name alone, or name, folder and parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LayerUse {
    /// A built-in layer by name.
    Name(String),
    /// A layer with a folder of its own or with parameters.
    Full(LayerRef),
}

impl LayerUse {
    /// Name, folder and parameters, whichever way the layer was written.
    pub fn full(&self) -> LayerRef {
        match self {
            Self::Name(name) => LayerRef { name: name.clone(), path: None, parameters: BTreeMap::new() },
            Self::Full(full) => full.clone(),
        }
    }
}

/// A layer with a folder of its own or with parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LayerRef {
    /// Layer name.
    pub name: String,
    /// Folder with the layer's `layer.yaml`, relative to the profile; a built-in layer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Values for the parameters that the layer declares.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
}

/// Kernel, consoles and command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Boot {
    /// Kernel flavour: `cloud` for virtual machines, `generic` for bare metal.
    pub kernel: KernelFlavour,
    /// Consoles in kernel notation; the last one is /dev/console.
    pub console: Vec<String>,
    /// Words added to the kernel command line.
    pub command_line: Vec<String>,
    /// Seconds that the boot menu waits, 0 to 600.
    #[schemars(range(min = 0, max = 600))]
    pub timeout: u16,
    /// Whose signatures the image carries for firmware that asks for them.
    pub secure_boot: SecureBoot,
}

impl Default for Boot {
    fn default() -> Self {
        let console = vec!["tty0".into(), "ttyS0,115200".into()];
        Self { kernel: KernelFlavour::default(), console, command_line: Vec::new(), timeout: 1, secure_boot: SecureBoot::default() }
    }
}

/// Kernel flavour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KernelFlavour {
    /// Debian's cloud kernel: virtual machines only, small.
    #[default]
    Cloud,
    /// Debian's generic kernel: bare metal too.
    Generic,
}

/// Whose signatures an image carries for UEFI Secure Boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecureBoot {
    /// None: starts where Secure Boot is off, under UEFI and BIOS.
    #[default]
    None,
    /// The builder's own key, which the firmware must know: kernel, initramfs, command line and root are all anchored in it. UEFI only.
    OwnKeys,
    /// Microsoft's and Debian's: starts where Secure Boot is on, but nothing of it protects initramfs, command line and root.
    DebianKeys,
}

/// A user account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// Account name.
    pub name: String,
    /// Numeric id; given out from 1000 upwards in order of the profile when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 59999))]
    pub uid: Option<u32>,
    /// Additional groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Login shell.
    #[serde(default = "default_shell")]
    pub shell: String,
    /// Public keys in `authorized_keys` notation.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// May become root with sudo, without a password.
    #[serde(default)]
    pub sudo: bool,
}

fn default_shell() -> String {
    "/bin/bash".into()
}

/// A file of the image. Exactly one of `content`, `source`, `link` and `from` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute path in the image.
    pub path: String,
    /// The text itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A file, relative to the file this is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Target of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// A source by its name; `NAME#PATH` is one file of an archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Only when this Handlebars expression holds, such as `parameters.wifi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Render the text with Handlebars (the profile is `profile`, the layer's parameters are `parameters`).
    #[serde(default)]
    pub template: bool,
    /// Mode in octal.
    #[serde(default = "default_mode")]
    pub mode: String,
    /// Owner, by name or number.
    #[serde(default = "default_owner")]
    pub owner: String,
    /// Group, by name or number.
    #[serde(default = "default_owner")]
    pub group: String,
    /// Replace a file that a lower layer or a package owns.
    #[serde(default, rename = "override")]
    pub overrides: bool,
}

fn default_mode() -> String {
    "0644".into()
}

fn default_owner() -> String {
    "root".into()
}

/// Target disk, slot and state sizes, extra mounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Disk {
    /// Size of disk images (raw, QCOW2); sparse, so that empty parts cost nothing.
    pub size: Bytes,
    /// EFI system partition.
    pub esp_size: Bytes,
    /// One root slot; max(2 × root, 4 GiB) when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_size: Option<Bytes>,
    /// Least size of the state partition, made on first boot; it takes all space that is left unless `stateLimit` says less.
    pub state_size: Bytes,
    /// Most that the state partition takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_limit: Option<Bytes>,
    /// Further disks to mount.
    pub mounts: Vec<Mount>,
    /// Disk that an installation medium installs to without a question: an expression that holds for one disk only. Without it a person is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Selector>,
    /// Consent to lose what is on the target; without it only an empty disk is installed to without a question.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub erase: bool,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            size: Bytes(16 << 30),
            esp_size: Bytes::mib(512),
            slot_size: None,
            state_size: Bytes(2 << 30),
            state_limit: None,
            mounts: Vec::new(),
            target: None,
            erase: false,
        }
    }
}

/// A further disk, formatted with ext4 when it is empty and mounted on every boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// Absolute path below /var or /srv.
    pub path: String,
    /// Which disk: an expression that holds for one disk only, such as `serial == "S3Z9"` or `size > 1 * TiB && bus == "nvme"`.
    pub disk: Selector,
}

/// The virtual machine that OVA and VMA make; who imports them may say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Machine {
    /// Processors, 1 to 256.
    #[schemars(range(min = 1, max = 256))]
    pub processors: u16,
    /// Memory, whole MiB, at least 512MiB.
    pub memory: Bytes,
}

impl Default for Machine {
    fn default() -> Self {
        Self { processors: 2, memory: Bytes(4 << 30) }
    }
}

/// Time zone and time servers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Time {
    /// Time zone by its tz database name.
    pub zone: String,
    /// NTP servers; those that DHCP names, else none, when empty.
    pub servers: Vec<String>,
}

impl Default for Time {
    fn default() -> Self {
        Self { zone: "UTC".into(), servers: Vec::new() }
    }
}

/// Who may log in on the console.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Console {
    /// How a person at the console gets a shell.
    pub login: ConsoleLogin,
}

/// How a person at the console gets a shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleLogin {
    /// By a one-time code that the console shows, until the node is sealed.
    #[default]
    Code,
    /// Not at all.
    Off,
}
