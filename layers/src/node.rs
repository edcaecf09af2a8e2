//! What the builder writes into the image for the node: `/usr/lib/chasi-bod/image.json`.

use serde::{Deserialize, Serialize};

use crate::profile::{Console, Disk, Network, Profile, Time};

/// Path of the image record inside the root.
pub const IMAGE_RECORD: &str = "usr/lib/chasi-bod/image.json";

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
    /// The Kubernetes that the image carries; none in an image without the runtime and orchestration layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
}

/// The cluster that an image's nodes form (names as in kubeadm's `ClusterConfiguration`, v1beta4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kubernetes {
    /// Version of the bundled programs and images, `v1.36.3`; empty is not valid.
    pub version: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Range that the nodes' pod ranges are cut from.
    pub pod_cidr: String,
    /// Range of Service addresses.
    pub service_cidr: String,
    /// DNS domain of Services.
    pub dns_domain: String,
    /// The node founds a cluster of its own without being told.
    pub standalone: bool,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            version: String::new(),
            cluster_name: "chasi-bod".into(),
            pod_cidr: "10.244.0.0/16".into(),
            service_cidr: "10.96.0.0/12".into(),
            dns_domain: "cluster.local".into(),
            standalone: false,
        }
    }
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
            kubernetes: None,
        }
    }
}
