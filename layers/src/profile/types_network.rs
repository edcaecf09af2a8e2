//! The network part of the valid profile: interfaces and the planes they carry.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Network interfaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Network {
    /// Interfaces; one that takes every wired card and asks DHCP when absent.
    pub interfaces: Vec<Interface>,
    /// DNS servers for all interfaces.
    pub dns: Vec<String>,
}

impl Default for Network {
    fn default() -> Self {
        let any = Interface {
            name: "lan".into(),
            matches: Some(Match { name: Some("e*".into()), ..Match::default() }),
            dhcp: true,
            ..Interface::default()
        };
        Self { interfaces: vec![any], dns: Vec::new() }
    }
}

/// One interface: a physical card (`match`), or a VLAN, bond or bridge on top of others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Interface {
    /// Name by which other interfaces refer to this one; also the device name of a VLAN, bond or bridge.
    pub name: String,
    /// Which card this is.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// Plane that this interface carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plane: Option<Plane>,
    /// Ask DHCP (IPv4) and accept router advertisements (IPv6).
    pub dhcp: bool,
    /// Static addresses in CIDR notation.
    pub addresses: Vec<String>,
    /// Default gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// DNS servers of this interface.
    pub dns: Vec<String>,
    /// Maximum transmission unit in bytes, 576 to 9216.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 9216))]
    pub mtu: Option<u16>,
    /// This interface is a VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// This interface is a bond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    /// This interface is a bridge of these interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
}

/// Which network card an interface is; all given conditions must hold. `name` and `driver` take `*` patterns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Match {
    /// Hardware address, `52:54:00:12:34:56`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Kernel driver, such as `virtio_net`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Kernel name, such as `ens*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A network plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// Cluster control, ssh, updates.
    Management,
    /// Business systems.
    Business,
    /// Storage.
    Storage,
}

/// A VLAN (IEEE 802.1Q).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vlan {
    /// VLAN id, 1 to 4094.
    #[schemars(range(min = 1, max = 4094))]
    pub id: u16,
    /// Name of the interface below.
    pub parent: String,
}

/// A bond.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bond {
    /// Bonding mode.
    pub mode: BondMode,
    /// Names of the member interfaces.
    pub members: Vec<String>,
}

/// Bonding mode, by the kernel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BondMode {
    /// One member carries, the others wait.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// Link aggregation (LACP).
    #[serde(rename = "802.3ad")]
    Lacp,
    /// Round robin.
    #[serde(rename = "balance-rr")]
    BalanceRr,
    /// Hash over addresses.
    #[serde(rename = "balance-xor")]
    BalanceXor,
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bridge {
    /// Names of the member interfaces.
    pub members: Vec<String>,
}
