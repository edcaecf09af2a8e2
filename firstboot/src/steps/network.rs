//! Step `network`: the profile's interfaces as systemd.network(5) and systemd.netdev(5) files. The generator is pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use layers::Result;
use layers::profile::{BondMode, Interface, Network, Plane};
use layers::settings::below;

use super::{Outcome, Site, Step, json, systemctl};
use crate::host::Change;

const DIR: &str = "etc/systemd/network";
const PREFIX: &str = "50-chasi-bod-";

/// Network units.
pub struct NetworkStep;

impl Step for NetworkStep {
    fn name(&self) -> &'static str {
        "network"
    }

    fn inputs(&self, site: &Site) -> String {
        json(&site.settings.network.value)
    }

    fn is_done(&self, _: &Site) -> bool {
        true
    }

    fn run(&self, site: &Site) -> Result<Outcome> {
        let units = units(&site.settings.network.value);
        let mut change = Change::None;
        for stale in site.host.names(DIR).iter().filter(|name| name.starts_with(PREFIX) && !units.contains_key(*name)) {
            site.host.remove(&format!("{DIR}/{stale}"))?;
            change = Change::Made;
        }
        for (name, text) in &units {
            if site.host.write(&format!("{DIR}/{name}"), text.as_bytes(), 0o644)? == Change::Made {
                change = Change::Made;
            }
        }
        // networkd makes this folder when it starts: before that it will read the units by itself.
        if change == Change::Made && site.host.path("run/systemd/netif/links").is_dir() {
            systemctl(site.host, &["try-reload-or-restart", "--no-block", "systemd-networkd.service"])?;
        }
        let names: Vec<_> = site.settings.network.value.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let files = units.keys().map(|name| format!("{DIR}/{name}")).collect();
        Ok(Outcome { detail: format!("interfaces {}", names.join(" ")), files })
    }
}

/// File name to text of every unit. The number keeps the profile's order: networkd takes the first file that matches a card.
fn units(network: &Network) -> BTreeMap<String, String> {
    let mut units = BTreeMap::new();
    for (n, interface) in network.interfaces.iter().enumerate() {
        let base = format!("{PREFIX}{n:02}-{}", interface.name);
        if interface.matches.is_none() {
            units.insert(format!("{base}.netdev"), netdev(interface));
        }
        units.insert(format!("{base}.network"), network_unit(interface, network));
    }
    units
}

fn netdev(interface: &Interface) -> String {
    let (kind, section) = match (&interface.vlan, &interface.bond) {
        (Some(vlan), _) => ("vlan", format!("\n[VLAN]\nId={}\n", vlan.id)),
        (_, Some(bond)) => ("bond", format!("\n[Bond]\nMode={}\nMIIMonitorSec=100ms\n", bond_mode(bond.mode))),
        _ => ("bridge", String::new()),
    };
    let mtu = interface.mtu.map(|mtu| format!("MTUBytes={mtu}\n")).unwrap_or_default();
    format!("# Written by chasi-bod.\n[NetDev]\nName={}\nKind={kind}\n{mtu}{section}", interface.name)
}

fn bond_mode(mode: BondMode) -> &'static str {
    match mode {
        BondMode::ActiveBackup => "active-backup",
        BondMode::Lacp => "802.3ad",
        BondMode::BalanceRr => "balance-rr",
        BondMode::BalanceXor => "balance-xor",
    }
}

/// Sections in the order of the manual; a `Vec` of lines would not be shorter.
fn network_unit(interface: &Interface, network: &Network) -> String {
    let mut out = String::from("# Written by chasi-bod.\n");
    if let Some(plane) = interface.plane {
        let _ = writeln!(out, "# Plane: {}.", json(&plane).trim_matches('"'));
    }
    out.push_str(&match_section(interface));
    let serves = is_below(interface, network);
    out.push_str("\n[Link]\n");
    if let Some(mtu) = interface.mtu {
        let _ = writeln!(out, "MTUBytes={mtu}");
    }
    // Only management decides whether the node counts as online.
    let needed = !serves && matches!(interface.plane, None | Some(Plane::Management));
    let _ = writeln!(out, "RequiredForOnline={}", if needed { "yes" } else { "no" });
    out.push_str(&network_section(interface, network));
    if interface.dhcp {
        let _ = write!(out, "\n[DHCPv4]\nRouteMetric={}\n\n[IPv6AcceptRA]\nRouteMetric={0}\n", metric(interface));
    }
    if let Some(gateway) = &interface.gateway {
        let _ = write!(out, "\n[Route]\nGateway={gateway}\nMetric={}\n", metric(interface));
    }
    out
}

fn match_section(interface: &Interface) -> String {
    let Some(matches) = &interface.matches else { return format!("[Match]\nName={}\n", interface.name) };
    let mut out = String::from("[Match]\n");
    for (key, value) in [("MACAddress", &matches.mac), ("Driver", &matches.driver), ("Name", &matches.name)] {
        if let Some(value) = value {
            let _ = writeln!(out, "{key}={value}");
        }
    }
    // Cards only: VLANs and bridges inherit addresses and names from their cards.
    out.push_str("Type=ether\nKind=!*\n");
    out
}

fn network_section(interface: &Interface, network: &Network) -> String {
    let mut out = String::from("\n[Network]\n");
    for other in &network.interfaces {
        if below(other).contains(&interface.name.as_str()) {
            let key = if other.vlan.is_some() {
                "VLAN"
            } else if other.bond.is_some() {
                "Bond"
            } else {
                "Bridge"
            };
            let _ = writeln!(out, "{key}={}", other.name);
        }
    }
    let configured = interface.dhcp || !interface.addresses.is_empty();
    let dhcp = if interface.dhcp { "DHCP=ipv4\nIPv6AcceptRA=yes\n" } else { "DHCP=no\nIPv6AcceptRA=no\n" };
    out.push_str(dhcp);
    if !configured {
        out.push_str("LinkLocalAddressing=no\n");
    }
    interface.addresses.iter().for_each(|address| _ = writeln!(out, "Address={address}"));
    if configured {
        interface.dns.iter().chain(&network.dns).for_each(|dns| _ = writeln!(out, "DNS={dns}"));
    }
    out
}

fn is_below(interface: &Interface, network: &Network) -> bool {
    network.interfaces.iter().any(|other| below(other).contains(&interface.name.as_str()))
}

/// The default route of the management plane wins.
fn metric(interface: &Interface) -> u32 {
    match interface.plane {
        None | Some(Plane::Management) => 100,
        Some(Plane::Business) => 200,
        Some(Plane::Storage) => 300,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(yaml: &str) -> BTreeMap<String, String> {
        let network: Network = serde_saphyr::from_str(yaml).unwrap();
        layers::profile::check_network(&network).unwrap();
        units(&network)
    }

    #[test]
    fn the_default_asks_dhcp_on_every_card() {
        let units = units(&Network::default());
        assert_eq!(
            units["50-chasi-bod-00-lan.network"],
            "# Written by chasi-bod.\n[Match]\nName=e*\nType=ether\nKind=!*\n\n[Link]\nRequiredForOnline=yes\n\n[Network]\nDHCP=ipv4\n\
             IPv6AcceptRA=yes\n\n[DHCPv4]\nRouteMetric=100\n\n[IPv6AcceptRA]\nRouteMetric=100\n"
        );
        assert_eq!(units.len(), 1);
    }

    #[test]
    fn vlan_on_bond_with_bridge_is_generated_whole() {
        let units = of("interfaces:\n- {name: a, match: {mac: \"52:54:00:00:00:01\"}}\n- {name: b, match: {driver: virtio_net}}\n\
            - {name: bond0, bond: {mode: 802.3ad, members: [a, b]}, mtu: 9000}\n\
            - {name: v5, plane: storage, vlan: {id: 5, parent: bond0}, addresses: [10.0.0.2/24], gateway: 10.0.0.1}\n\
            - {name: br0, bridge: {members: [bond0]}, dhcp: true}\ndns: [10.0.0.9]\n");
        let expected = [
            ("00-a.network", "Bond=bond0\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n"),
            ("01-b.network", "[Match]\nDriver=virtio_net\n"),
            ("02-bond0.netdev", "[NetDev]\nName=bond0\nKind=bond\nMTUBytes=9000\n\n[Bond]\nMode=802.3ad\n"),
            ("02-bond0.network", "[Network]\nVLAN=v5\nBridge=br0\n"),
            ("03-v5.netdev", "Kind=vlan\n\n[VLAN]\nId=5\n"),
            ("03-v5.network", "# Plane: storage.\n[Match]\nName=v5\n\n[Link]\nRequiredForOnline=no\n"),
            ("03-v5.network", "Address=10.0.0.2/24\nDNS=10.0.0.9\n\n[Route]\nGateway=10.0.0.1\nMetric=300\n"),
            ("04-br0.netdev", "Kind=bridge\n"),
        ];
        for (name, part) in expected {
            assert!(units[&format!("{PREFIX}{name}")].contains(part), "{name}: {}", units[&format!("{PREFIX}{name}")]);
        }
        assert_eq!(units.len(), 8);
    }
}
