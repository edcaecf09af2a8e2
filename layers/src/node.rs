//! What the builder writes into the image for the node: `/usr/lib/chasi-bod/image.json`.

use serde::{Deserialize, Serialize};

use crate::profile::{Console, Disk, Network, Profile, Time};

/// Path of the image record inside the root.
pub const IMAGE_RECORD: &str = "usr/lib/chasi-bod/image.json";
/// Path of the settings that the image's layers give every node, a document as on a `CHASI` disk; may be absent.
pub const IMAGE_SETTINGS: &str = "usr/lib/chasi-bod/settings.yaml";
/// Folder of what the agent forms a cluster with; an image without it forms none.
pub const KUBERNETES: &str = "usr/lib/chasi-bod/kubernetes";

/// GPT type GUIDs (Discoverable Partitions Specification; BIOS boot: GRUB manual) and partition names of an image's disk.
pub mod partition {
    /// EFI system partition.
    pub const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
    /// BIOS boot partition, holds GRUB's core image.
    pub const BIOS_TYPE: &str = "21686148-6449-6E6F-744E-656564454649";
    /// Root, x86-64.
    pub const ROOT_TYPE: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
    /// Root verity data, x86-64.
    pub const VERITY_TYPE: &str = "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5";
    /// Variable data, here the state partition.
    pub const STATE_TYPE: &str = "4D21B016-B534-45C2-A9FB-5C16E091FD2D";
    /// Partition names, in disk order. `STATE` is made on first boot.
    pub const ESP: &str = "esp";
    /// BIOS boot partition.
    pub const BIOS: &str = "bios";
    /// Root of slot A.
    pub const ROOT_A: &str = "root-a";
    /// Verity tree of slot A.
    pub const VERITY_A: &str = "verity-a";
    /// Root of slot B.
    pub const ROOT_B: &str = "root-b";
    /// Verity tree of slot B.
    pub const VERITY_B: &str = "verity-b";
    /// The node's own data.
    pub const STATE: &str = "state";
}

/// One of the two root slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Slot A.
    A,
    /// Slot B.
    B,
}

impl Slot {
    /// The other slot.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `a` or `b`, as in partition names and on the kernel command line.
    pub fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    /// The slot of a letter.
    pub fn from_letter(text: &str) -> Option<Self> {
        match text {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            _ => None,
        }
    }
}

/// What the node must know of its image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// Profile name.
    pub name: String,
    /// Image version.
    pub version: String,
    /// Build time floor in seconds since 1970: no clock may be behind it.
    pub epoch: i64,
    /// Host name rule of the profile.
    pub hostname: String,
    /// Network of the profile.
    pub network: Network,
    /// Disk rules of the profile.
    pub disk: Disk,
    /// Time of the profile.
    pub time: Time,
    /// Console rules of the profile.
    pub console: Console,
}

impl ImageRecord {
    /// The record of a profile's image.
    pub fn of(profile: &Profile, epoch: i64) -> Self {
        Self {
            name: profile.name.clone(),
            version: profile.version.clone(),
            epoch,
            hostname: profile.hostname.clone(),
            network: profile.network.clone(),
            disk: profile.disk.clone(),
            time: profile.time.clone(),
            console: profile.console.clone(),
        }
    }
}
