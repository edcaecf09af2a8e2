//! What one node shall be: the image's defaults and what the configuration sources say over them. Each value knows its source.
//!
//! A source gives [`Item`]s (key, value, place). [`Settings::set`] takes one item or says what is wrong with it, so that one bad field
//! costs only itself.

mod backup;
mod checks;
mod listen;
pub mod rules;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_saphyr::Spanned;

use backup::check_repository;
pub use backup::{BACKUPS, Every};
use checks::masked;
use checks::{check_hash, check_server, check_url, check_user, check_zone};
pub use checks::{check_hostname_rule, check_ssh_key, decode_base64, shown_key, without_secrets};
pub use listen::Listen;
use rules::Rule;
use values::{all, checked, count, host_address, list, number, odd, peers, secret, structure, text, truth, word};

use crate::membership::{Secret, endpoint};
use crate::node::ImageRecord;
use crate::profile::{ConsoleLogin, Interface, Mount, Network, Plane, check_network, suggest};
use crate::selector::Selector;

/// A value and where it was said, such as `image` or `disk CHASI: chasi-bod.yaml:3`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it was said.
    pub source: String,
}

impl<T> Sourced<T> {
    fn image(value: T) -> Self {
        Self { value, source: "image".into() }
    }

    fn is_of_image(&self) -> bool {
        self.source.starts_with("image")
    }
}

/// One key with its value as a source gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Dotted key, such as `time.zone`.
    pub key: String,
    /// The value; text is read as YAML where the key wants a structure.
    pub value: Value,
    /// Where it was said.
    pub source: String,
}

impl Item {
    /// An item whose value is text.
    pub fn text(key: &str, value: impl Into<String>, source: impl Into<String>) -> Self {
        Self { key: key.into(), value: Value::String(value.into()), source: source.into() }
    }
}

/// Every setting of the node, effective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Host name rule: literal text with `{mac}`, `{serial}`, `{id}`.
    pub hostname: Sourced<String>,
    /// Public keys that may log in, by user; a user that is not here keeps the image's keys.
    pub ssh_keys: BTreeMap<String, Sourced<Vec<String>>>,
    /// Network interfaces.
    pub network: Sourced<Network>,
    /// Time zone.
    pub zone: Sourced<String>,
    /// Time servers.
    pub servers: Sourced<Vec<String>>,
    /// Console login by one-time code, or none.
    pub login: Sourced<ConsoleLogin>,
    /// crypt(5) hash of root's password for the console, a secret.
    pub password_hash: Option<Sourced<String>>,
    /// Further disks to mount.
    pub mounts: Sourced<Vec<Mount>>,
    /// Disk that an installation medium installs to without a question.
    #[serde(default)]
    pub target: Option<Sourced<Selector>>,
    /// Consent to lose what is on that disk.
    pub erase: Sourced<bool>,
    /// Where more configuration can be fetched.
    pub url: Option<Sourced<String>>,
    /// The same as long as nothing came from there.
    #[serde(default)]
    pub unread: Option<String>,
    /// The node's part in forming the cluster; none until it is told.
    pub role: Option<Sourced<Role>>,
    /// `host:port` where the cluster that exists is asked to take the node.
    pub endpoint: Option<Sourced<String>>,
    /// Number of machines that the cluster is formed of; a majority of them agrees on who founds it.
    #[serde(default)]
    pub expected: Option<Sourced<u16>>,
    /// Nodes that are told of this one directly, by name or address: those that multicast does not reach.
    #[serde(default)]
    pub peers: Option<Sourced<Vec<String>>>,
    /// What machines are in their cluster, by what they say of themselves.
    #[serde(default)]
    pub rules: Option<Sourced<Vec<Rule>>>,
    /// Number of control planes that the cluster grows to; nodes beyond them become workers.
    #[serde(default)]
    pub replicas: Option<Sourced<u16>>,
    /// One more address of the API, which a control plane that works has.
    #[serde(default)]
    pub virtual_address: Option<Sourced<IpAddr>>,
    /// What the nodes of the cluster know each other by.
    pub secret: Option<Sourced<Secret>>,
    /// Where the agent serves its metrics; nowhere when absent.
    #[serde(default)]
    pub metrics_listen: Option<Sourced<Listen>>,
    /// Time between two backups.
    #[serde(default)]
    pub backup_every: Option<Sourced<Every>>,
    /// Backups that stay on the node.
    #[serde(default)]
    pub backup_keep: Option<Sourced<u16>>,
    /// Repository of a registry that each backup is pushed to, too.
    #[serde(default)]
    pub backup_to: Option<Sourced<String>>,
}

/// A node's part in forming the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Makes a cluster of its own, as its first control plane.
    Founder,
    /// Joins a cluster that exists, as a control plane as long as it has too few.
    Member,
    /// Joins one, never as a control plane.
    Worker,
}

/// Key of the cluster's secret, which only sources may give that not every user of the node can read.
pub const SECRET_KEY: &str = "cluster.secret";

const KEYS: [&str; 27] = [
    "cluster.role",
    "cluster.endpoint",
    SECRET_KEY,
    "nodes.expected",
    "nodes.peers",
    "nodes.rules",
    "controlPlane.replicas",
    "controlPlane.address",
    "hostname",
    "sshKeys",
    "sshKeys.<user>",
    "network",
    "network.address",
    "network.gateway",
    "network.dns",
    "time.zone",
    "time.servers",
    "console.login",
    "console.passwordHash",
    "disk.mounts",
    "disk.target",
    "disk.erase",
    "metrics.listen",
    "backup.every",
    "backup.keep",
    "backup.to",
    "url",
];

impl Settings {
    /// What the image says.
    pub fn of_image(image: &ImageRecord) -> Self {
        Self {
            hostname: Sourced::image(image.hostname.clone()),
            ssh_keys: BTreeMap::new(),
            network: Sourced::image(image.network.clone()),
            zone: Sourced::image(image.time.zone.clone()),
            servers: Sourced::image(image.time.servers.clone()),
            login: Sourced::image(image.console.login),
            password_hash: None,
            mounts: Sourced::image(image.disk.mounts.clone()),
            target: image.disk.target.clone().map(Sourced::image),
            erase: Sourced::image(image.disk.erase),
            url: None,
            unread: None,
            role: None,
            endpoint: None,
            expected: None,
            peers: None,
            rules: None,
            replicas: None,
            virtual_address: None,
            secret: None,
            metrics_listen: None,
            backup_every: None,
            backup_keep: None,
            backup_to: None,
        }
    }

    /// The node's part: the role that it was told, or that a rule gives it. An endpoint makes a founder of the image a member, and a number of nodes that agree
    /// leaves open what it becomes.
    pub fn part_by(&self, rule: Option<Role>) -> Option<Role> {
        let is_default = |role: &Sourced<Role>| role.value == Role::Founder && role.is_of_image();
        match (&self.role, &self.endpoint) {
            (role, _) if rule.is_some() && role.as_ref().is_none_or(Sourced::is_of_image) => rule,
            (Some(role), Some(_)) if is_default(role) => Some(Role::Member),
            (Some(role), None) if is_default(role) && self.expected.is_some() => None,
            (Some(role), _) => Some(role.value),
            (None, Some(_)) => Some(Role::Member),
            (None, None) => None,
        }
    }

    /// The address that is yet to be read, and that may give the node another part than the image's.
    pub fn unread_part(&self) -> Option<&str> {
        let is_told = self.endpoint.is_some() || self.role.as_ref().is_some_and(|role| !role.is_of_image());
        self.unread.as_deref().filter(|_| !is_told)
    }

    /// Number of control planes that the cluster grows to.
    pub fn control_planes(&self) -> u16 {
        self.replicas.as_ref().map_or(1, |replicas| replicas.value)
    }

    /// The address of the API that goes from control plane to control plane.
    pub fn shared_address(&self) -> Option<IpAddr> {
        self.virtual_address.as_ref().map(|address| address.value)
    }

    /// Time between two backups.
    pub fn backup_every(&self) -> Every {
        self.backup_every.as_ref().map_or(Every::default(), |every| every.value)
    }

    /// Backups that stay on a node.
    pub fn backups(&self) -> u16 {
        self.backup_keep.as_ref().map_or(BACKUPS, |keep| keep.value)
    }

    /// Takes one item; the error says what is wrong, without the value of a secret, and leaves the setting as it was.
    pub fn set(&mut self, item: &Item) -> Result<(), String> {
        let source = &item.source;
        match item.key.as_str() {
            "hostname" => put(&mut self.hostname, word(&item.value, check_hostname_rule)?, source),
            "network" => put(&mut self.network, checked(structure(&item.value)?, check_network)?, source),
            "network.address" => {
                let addresses = list(&item.value)?;
                self.set_network(source, |network| {
                    let interface = main_interface(network)?;
                    // An address of its own is there to be used instead of one of DHCP's.
                    (interface.dhcp, interface.addresses) = (false, addresses);
                    Ok(())
                })?;
            }
            "network.gateway" => {
                let gateway = text(&item.value)?;
                self.set_network(source, |network| main_interface(network).map(|interface| interface.gateway = Some(gateway)))?;
            }
            "network.dns" => {
                let servers = list(&item.value)?;
                self.set_network(source, |network| {
                    network.dns = servers;
                    Ok(())
                })?;
            }
            "time.zone" => put(&mut self.zone, word(&item.value, check_zone)?, source),
            "time.servers" => put(&mut self.servers, all(list(&item.value)?, |server| check_server(server))?, source),
            "console.login" => put(&mut self.login, structure(&item.value)?, source),
            "console.passwordHash" => {
                self.password_hash = Some(Sourced { value: word(&item.value, check_hash)?, source: source.clone() });
            }
            "disk.mounts" => put(&mut self.mounts, structure(&item.value)?, source),
            "disk.target" => self.target = Some(Sourced { value: text(&item.value)?.try_into()?, source: source.clone() }),
            "disk.erase" => put(&mut self.erase, truth(&item.value)?, source),
            "url" => self.url = Some(Sourced { value: word(&item.value, check_url)?, source: source.clone() }),
            "cluster.role" => self.role = Some(Sourced { value: structure(&item.value)?, source: source.clone() }),
            "cluster.endpoint" => self.endpoint = Some(Sourced { value: endpoint(&text(&item.value)?)?, source: source.clone() }),
            "nodes.expected" => self.expected = Some(Sourced { value: number(&item.value)?, source: source.clone() }),
            "nodes.peers" => self.peers = Some(Sourced { value: peers(&item.value)?, source: source.clone() }),
            "nodes.rules" => {
                self.rules = Some(Sourced { value: checked(structure(&item.value)?, |all: &Vec<Rule>| rules::check(all))?, source: source.clone() })
            }
            "controlPlane.replicas" => self.replicas = Some(Sourced { value: odd(&item.value)?, source: source.clone() }),
            "controlPlane.address" => self.virtual_address = Some(Sourced { value: host_address(&item.value)?, source: source.clone() }),
            SECRET_KEY => self.secret = Some(Sourced { value: secret(&item.value)?, source: source.clone() }),
            "metrics.listen" => {
                self.metrics_listen = Some(Sourced { value: Listen::try_from(text(&item.value)?)?, source: source.clone() });
            }
            "backup.every" => self.backup_every = Some(Sourced { value: Every::try_from(text(&item.value)?)?, source: source.clone() }),
            "backup.keep" => self.backup_keep = Some(Sourced { value: count(&item.value)?, source: source.clone() }),
            "backup.to" => self.backup_to = Some(Sourced { value: word(&item.value, check_repository)?, source: source.clone() }),
            "sshKeys" => self.set_ssh_keys("root", &item.value, source)?,
            key => match key.strip_prefix("sshKeys.") {
                Some(user) => self.set_ssh_keys(user, &item.value, source)?,
                None => return Err(unknown(key)),
            },
        }
        Ok(())
    }

    /// Changes a part of the network.
    fn set_network(&mut self, source: &str, change: impl FnOnce(&mut Network) -> Result<(), String>) -> Result<(), String> {
        let mut network = self.network.value.clone();
        change(&mut network)?;
        put(&mut self.network, checked(network, check_network)?, source);
        Ok(())
    }

    /// Keys of one source add up; those of a later source replace the earlier ones.
    fn set_ssh_keys(&mut self, user: &str, value: &Value, source: &str) -> Result<(), String> {
        check_user(user)?;
        let keys = match value {
            Value::String(key) => vec![key.trim().to_string()],
            other => list(other)?,
        };
        let mut keys = all(keys, |key| check_ssh_key(key))?;
        if let Some(old) = self.ssh_keys.get(user).filter(|old| old.source == source) {
            keys = old.value.iter().cloned().chain(keys).collect();
        }
        self.ssh_keys.insert(user.into(), Sourced { value: keys, source: source.into() });
        Ok(())
    }

    /// Key, value and source of every setting, for people; secrets are masked.
    pub fn rows(&self) -> Vec<(String, String, String)> {
        let mut rows = vec![row("hostname", &self.hostname)];
        rows.extend(self.ssh_keys.iter().map(|(user, keys)| row(&format!("sshKeys.{user}"), keys)));
        rows.extend([row("network", &self.network), row("time.zone", &self.zone), row("time.servers", &self.servers)]);
        rows.push(row("console.login", &self.login));
        rows.extend(self.password_hash.iter().map(|hash| ("console.passwordHash".into(), "(hidden)".into(), hash.source.clone())));
        rows.push(row("disk.mounts", &self.mounts));
        rows.extend(self.target.iter().map(|target| row("disk.target", target)));
        rows.extend(self.target.iter().map(|_| row("disk.erase", &self.erase)));
        rows.extend(self.role.iter().map(|role| row("cluster.role", role)));
        rows.extend(self.endpoint.iter().map(|endpoint| row("cluster.endpoint", endpoint)));
        rows.extend(self.expected.iter().map(|expected| row("nodes.expected", expected)));
        rows.extend(self.peers.iter().map(|peers| row("nodes.peers", peers)));
        rows.extend(self.rules.iter().map(|rules| row("nodes.rules", rules)));
        rows.extend(self.replicas.iter().map(|replicas| row("controlPlane.replicas", replicas)));
        rows.extend(self.virtual_address.iter().map(|address| row("controlPlane.address", address)));
        rows.extend(self.secret.iter().map(|secret| (SECRET_KEY.into(), "(hidden)".into(), secret.source.clone())));
        rows.extend(self.metrics_listen.iter().map(|listen| row("metrics.listen", listen)));
        rows.extend(self.backup_every.iter().map(|every| row("backup.every", every)));
        rows.extend(self.backup_keep.iter().map(|keep| row("backup.keep", keep)));
        rows.extend(self.backup_to.iter().map(|to| row("backup.to", to)));
        rows.extend(self.url.iter().map(|url| ("url".into(), without_secrets(&url.value), url.source.clone())));
        rows
    }
}

fn row<T: Serialize>(key: &str, value: &Sourced<T>) -> (String, String, String) {
    let text = match serde_json::to_value(&value.value) {
        Ok(Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    };
    (key.into(), text, value.source.clone())
}

fn put<T>(slot: &mut Sourced<T>, value: T, source: &str) {
    *slot = Sourced { value, source: source.into() };
}

/// The interface that the short keys are about: the management plane's, else the first one.
fn main_interface(network: &mut Network) -> Result<&mut Interface, String> {
    let place = network.interfaces.iter().position(|interface| interface.plane == Some(Plane::Management)).unwrap_or(0);
    network.interfaces.get_mut(place).ok_or_else(|| "the network has no interface".into())
}

fn unknown(key: &str) -> String {
    suggest(key, KEYS).map_or_else(|| "unknown key".into(), |hint| format!("unknown key, {hint}"))
}

/// Reads a YAML document of settings into items; `place` names the document, such as `disk CHASI: chasi-bod.yaml`.
/// A document that is empty, cut or no mapping is one error and gives no item.
pub fn parse(document: &str, place: &str) -> Result<Vec<Item>, String> {
    if document.contains('\0') {
        return Err(format!("{place}: holds NUL bytes: the copy was not finished"));
    }
    if document.trim().is_empty() {
        return Err(format!("{place}: is empty: the copy was not finished"));
    }
    let top: BTreeMap<String, Spanned<Value>> =
        serde_saphyr::from_str(document).map_err(|error| format!("{place}{}", in_place(error.without_snippet())))?;
    let mut items = Vec::new();
    for (key, value) in top {
        let line = value.referenced.line();
        match (key.as_str(), value.value) {
            ("time" | "console" | "cluster" | "disk" | "backup" | "metrics" | "nodes" | "controlPlane" | "sshKeys", Value::Object(inner)) => {
                for (name, value) in inner {
                    let source = format!("{place}:{}", line_of(document, line, &name));
                    items.push(Item { key: format!("{key}.{name}"), value, source });
                }
            }
            ("sshKeys", value) => items.push(Item { key: "sshKeys.root".into(), value, source: format!("{place}:{line}") }),
            (_, value) => items.push(Item { key, value, source: format!("{place}:{line}") }),
        }
    }
    Ok(items)
}

fn in_place(error: &serde_saphyr::Error) -> String {
    // It may repeat a key or number that was to be a secret.
    let what = masked(&error.to_string());
    match error.location() {
        Some(at) => format!(":{}:{}: {what}", at.line(), at.column()),
        None => format!(": {what}"),
    }
}

/// The line of a key inside a block that starts at line `from`; `from` itself when the block is written in one line.
fn line_of(document: &str, from: u64, key: &str) -> u64 {
    let is_key =
        |line: &str| line.trim_start().trim_start_matches(['"', '\'']).strip_prefix(key).is_some_and(|rest| rest.starts_with([':', '"', '\'']));
    let before = usize::try_from(from).unwrap_or(1).saturating_sub(1);
    document.lines().skip(before).position(is_key).map_or(from, |n| from + n as u64)
}

/// Names of the interfaces that a VLAN, bond or bridge stands on.
pub fn below(interface: &Interface) -> Vec<&str> {
    let parent = interface.vlan.iter().map(|vlan| vlan.parent.as_str());
    let bonded = interface.bond.iter().flat_map(|bond| bond.members.iter().map(String::as_str));
    let bridged = interface.bridge.iter().flat_map(|bridge| bridge.members.iter().map(String::as_str));
    parent.chain(bonded).chain(bridged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8e1RkDLYBSVWxcLqJbPKB8YI9cI5WxdgVFYkA0kD0n me";

    const CANARY: &str = "canary-in-the-coal-mine-0123456789";

    fn image() -> Settings {
        let json = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"node-{mac}","network":{},"disk":{},"time":{},"console":{}}"#;
        Settings::of_image(&serde_json::from_str(json).unwrap())
    }

    fn load(document: &str) -> (Settings, Vec<String>) {
        let mut settings = image();
        let items = parse(document, "f").unwrap();
        let problems = items.iter().filter_map(|item| settings.set(item).err().map(|why| format!("{}: {}: {why}", item.source, item.key))).collect();
        (settings, problems)
    }

    #[test]
    fn metrics_are_served_on_a_port_or_on_an_address_and_port() {
        for (text, address, port) in [("9955", None, 9955), ("10.0.0.5:80", Some("10.0.0.5"), 80), ("[fd00::5]:9955", Some("fd00::5"), 9955)] {
            let (settings, problems) = load(&format!("metrics: {{listen: \"{text}\"}}\n"));
            let listen = settings.metrics_listen.clone().unwrap();
            assert_eq!((listen.value, problems.len()), (Listen { address: address.map(|ip| ip.parse().unwrap()), port }, 0));
            assert_eq!(serde_json::from_str::<Settings>(&serde_json::to_string(&settings).unwrap()).unwrap(), settings);
            assert!(settings.rows().contains(&("metrics.listen".into(), text.into(), "f:1".into())));
        }
        assert_eq!(load("metrics:\n  listen: 9955\n").0.metrics_listen.unwrap().value, Listen { address: None, port: 9955 });
        for text in ["0", "70000", "node:9955", "10.0.0.5", "fd00::5:9955"] {
            let (settings, problems) = load(&format!("metrics: {{listen: \"{text}\"}}\n"));
            assert!(settings.metrics_listen.is_none() && problems[0].contains("is no port such as 9955"), "{text}: {problems:?}");
        }
    }

    #[test]
    fn every_key_is_read_and_knows_its_line() {
        let (settings, problems) = load(&format!(
            "hostname: a-{{id}}\nsshKeys:\n  root: [\"{KEY}\"]\ntime:\n  zone: Europe/Berlin\n  servers: [10.0.0.1]\nconsole:\n  login: \"off\"\n  \
             passwordHash: $6$abcdefgh$0123456789\nnetwork:\n  interfaces:\n  - {{name: a, match: {{name: e*}}, addresses: [10.0.0.2/24]}}\n\
             disk:\n  mounts: [{{path: /srv/a, disk: serial == 'x'}}]\ncluster:\n  role: founder\n  endpoint: 10.0.0.9\n  secret: {CANARY}\n\
             url: https://u:p@h/x?t=1\n"
        ));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(settings.hostname, Sourced { value: "a-{id}".into(), source: "f:1".into() });
        assert_eq!(settings.zone.source, "f:5");
        assert_eq!(settings.ssh_keys["root"].source, "f:3");
        assert_eq!(settings.login.value, ConsoleLogin::Off);
        assert_eq!(settings.network.value.interfaces[0].addresses, ["10.0.0.2/24"]);
        assert_eq!(settings.mounts.value[0].path, "/srv/a");
        assert_eq!(settings.role, Some(Sourced { value: Role::Founder, source: "f:16".into() }));
        assert_eq!(settings.endpoint, Some(Sourced { value: "10.0.0.9:6444".into(), source: "f:17".into() }));
        assert_eq!(settings.secret.as_ref().unwrap().value.reveal(), CANARY);
        let shown = format!("{:?} {settings:?}", settings.rows()).replace("https://u:p@h/x?t=1", "").replace("$6$abcdefgh$0123456789", "");
        assert!(!shown.contains(CANARY) && shown.contains("(hidden)"), "{shown}");
        let shown = format!("{:?}", settings.rows());
        assert!(!shown.contains("$6$") && !shown.contains("u:p") && !shown.contains("t=1") && shown.contains("https://h/x"), "{shown}");
    }

    #[test]
    fn short_keys_of_the_network_change_the_interface_of_management() {
        let mut settings = image();
        let mut set = |key: &str, value: &str| settings.set(&Item::text(key, value, "OVF"));
        set("network.address", "192.0.2.10/24, fd00::a/64").unwrap();
        set("network.gateway", "192.0.2.1").unwrap();
        set("network.dns", "192.0.2.2 192.0.2.3").unwrap();
        for (key, value, why) in
            [("network.address", "192.0.2.10/33", "192.0.2.10/33"), ("network.gateway", "here", "here"), ("network.dns", "a.example", "a.example")]
        {
            let error = set(key, value).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let Sourced { value, source } = settings.network.clone();
        let lan = &value.interfaces[0];
        assert_eq!((source.as_str(), lan.name.as_str(), lan.dhcp), ("OVF", "lan", false));
        assert_eq!((&lan.addresses[..], lan.gateway.as_deref()), (&["192.0.2.10/24".to_string(), "fd00::a/64".into()][..], Some("192.0.2.1")));
        assert_eq!(value.dns, ["192.0.2.2", "192.0.2.3"]);
        let two = "{interfaces: [{name: a, match: {name: e1}, plane: business}, {name: b, match: {name: e2}, plane: management, dhcp: true}]}";
        settings.set(&Item::text("network", two, "x")).unwrap();
        settings.set(&Item::text("network.address", "192.0.2.10/24", "x")).unwrap();
        assert_eq!(settings.network.value.interfaces.iter().map(|i| i.addresses.len()).collect::<Vec<_>>(), [0, 1]);
        settings.set(&Item::text("network", "{interfaces: []}", "x")).unwrap();
        assert_eq!(settings.set(&Item::text("network.address", "192.0.2.10/24", "x")), Err("the network has no interface".into()));
    }

    #[test]
    fn f3_each_bad_field_is_named_and_costs_only_itself() {
        let table = [
            ("hostname: a_b", "hostname", "no host name"),
            ("hostnam: a", "hostnam", "did you mean `hostname`"),
            ("time: {zone: /etc/shadow}", "time.zone", "no time zone"),
            ("time: {servers: [\"a b\"]}", "time.servers", "no host name"),
            ("console: {passwordHash: hunter2}", "console.passwordHash", "plain passwords are not taken"),
            ("console: {login: always}", "console.login", "unknown variant"),
            ("sshKeys: [ssh-ed25519 AAAAC3Nza]", "sshKeys.root", "cut or damaged"),
            ("sshKeys: {../x: []}", "sshKeys.../x", "no user name"),
            ("network: {interfaces: [{name: a, match: {name: e*}, adresses: []}]}", "network", "unknown field `adresses`"),
            ("network: {interfaces: [{name: a, match: {name: e*}, addresses: [10.0.0.1/33]}]}", "network", "10.0.0.1/33"),
            ("network: {interfaces: [{name: v, vlan: {id: 5, parent: b}}]}", "network", "no interface `b`"),
            ("nodes: {expected: 0}", "nodes.expected", "from 1 to 1000"),
            ("nodes: {peers: [n1, \"n 2\"]}", "nodes.peers", "`n 2` is no host name or address"),
            ("nodes: {peers: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "nodes.peers", "16 nodes at most"),
            ("nodes: {rules: [{where: \"true\", roles: worker}]}", "nodes.rules", "unknown field `roles`"),
            ("nodes: {rules: [{where: \"true\", taints: [x]}]}", "nodes.rules", "`x` is no taint"),
            ("controlPlane: {replicas: 2}", "controlPlane.replicas", "1, 3, 5 or 7"),
            ("controlPlane: {address: 10.0.0.9/24}", "controlPlane.address", "no address of a machine"),
            ("controlPlane: {address: 239.1.1.1}", "controlPlane.address", "no address of a machine"),
            ("nodes: {expected: many}", "nodes.expected", "from 1 to 1000"),
            ("cluster: {role: king}", "cluster.role", "unknown variant `king`"),
            ("cluster: {endpoint: \"a b\"}", "cluster.endpoint", "no `host[:port]`"),
            ("cluster: {secret: hunter2}", "cluster.secret", "at least 26 random ones"),
            ("cluster: {secret: 12345678901234567890123456}", "cluster.secret", "text in quotes expected, found a number"),
            ("url: http://h/x", "url", "sha256"),
            ("url: file:///etc/shadow", "url", "no http"),
        ];
        for (document, key, why) in table {
            let (settings, problems) = load(&format!("{document}\n"));
            assert_eq!(problems.len(), 1, "{document}");
            assert!(problems[0].starts_with(&format!("f:1: {key}: ")) && problems[0].contains(why), "{document}: {}", problems[0]);
            assert!(!problems[0].contains("hunter2"));
            assert_eq!(settings, image(), "{document}");
        }
    }

    #[test]
    fn f3_a_document_that_was_half_copied_is_named() {
        for (document, why) in
            [("", "empty"), ("hostname: a\0\0\0", "NUL"), ("hostname: a\ntime: {zo", "f:2"), ("- a", "f:1"), ("hostname: a\nnetw", "f:")]
        {
            let error = parse(document, "f").unwrap_err();
            assert!(error.contains(why), "{document:?}: {error}");
        }
    }

    #[test]
    fn ssh_keys_of_one_source_add_up_and_a_later_source_replaces_them() {
        let mut settings = image();
        for source in ["kernel command line", "kernel command line", "SMBIOS"] {
            settings.set(&Item::text("sshKeys.root", KEY, source)).unwrap();
            let expected = if source == "SMBIOS" { 1 } else { settings.ssh_keys["root"].value.len() };
            assert_eq!(settings.ssh_keys["root"].value.len(), expected);
        }
        assert!(check_ssh_key(KEY).is_ok());
        assert!(check_ssh_key(&KEY[..KEY.len() - 60]).is_err());
    }

    #[test]
    fn an_endpoint_makes_a_member_unless_the_node_itself_was_told_otherwise() {
        for (role, role_source, endpoint, part) in [
            (None, "", None, None),
            (None, "", Some("a"), Some(Role::Member)),
            (Some("founder"), "image: settings.yaml:1", None, Some(Role::Founder)),
            (Some("founder"), "image: settings.yaml:1", Some("a"), Some(Role::Member)),
            (Some("founder"), "console", Some("a"), Some(Role::Founder)),
            (Some("member"), "console", None, Some(Role::Member)),
            (Some("worker"), "image: settings.yaml:1", Some("a"), Some(Role::Worker)),
        ] {
            let mut settings = image();
            let items = role.map(|role| Item::text("cluster.role", role, role_source)).into_iter();
            items.chain(endpoint.map(|endpoint| Item::text("cluster.endpoint", endpoint, "x"))).for_each(|item| settings.set(&item).unwrap());
            assert_eq!(settings.part_by(None), part, "{role:?} {role_source} {endpoint:?}");
        }
    }

    #[test]
    fn nodes_that_are_to_agree_have_no_role_unless_one_was_told() {
        for (role_source, endpoint, part) in [
            ("image: settings.yaml:1", None, None),
            ("image: settings.yaml:1", Some("a"), Some(Role::Member)),
            ("console", None, Some(Role::Founder)),
        ] {
            let mut settings = image();
            settings.set(&Item::text("nodes.expected", "3", "x")).unwrap();
            settings.set(&Item::text("cluster.role", "founder", role_source)).unwrap();
            endpoint.into_iter().for_each(|endpoint| settings.set(&Item::text("cluster.endpoint", endpoint, "x")).unwrap());
            assert_eq!(settings.part_by(None), part, "{role_source} {endpoint:?}");
        }
        let (settings, problems) = load("nodes:\n  expected: 5\n");
        assert_eq!((settings.expected, settings.role, problems.len()), (Some(Sourced { value: 5, source: "f:2".into() }), None, 0));
    }

    #[test]
    fn structures_can_be_given_as_text() {
        let mut settings = image();
        settings.set(&Item::text("network", "{interfaces: [{name: lan, match: {mac: \"52:54:00:12:34:56\"}, dhcp: true}]}", "x")).unwrap();
        assert_eq!(settings.network.value.interfaces[0].name, "lan");
        settings.set(&Item::text("time.servers", "a.example, 10.0.0.1", "x")).unwrap();
        assert_eq!(settings.servers.value, ["a.example", "10.0.0.1"]);
    }
}
