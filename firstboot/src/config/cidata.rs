//! NoCloud volume (`cidata`, cloud-init's data source): host name, ssh keys, network-config version 2. Anything else in it is named and
//! skipped, because doing half of cloud-init silently would be worse.

use std::collections::BTreeMap;
use std::path::Path;

use layers::settings::Item;
use serde_json::{Map, Value, json};
use serde_saphyr::Spanned;

use super::{Said, volume};
use crate::host::Host;

/// Reads the volume; `None` when there is none.
pub fn read(host: &Host) -> Said {
    volume::read(host, "cidata", items)
}

fn items(dir: &Path) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    for (name, take) in
        [("meta-data", meta_data as fn(&str, Value) -> Vec<(String, Value)>), ("user-data", user_data), ("network-config", network_config)]
    {
        let place = format!("disk cidata: {name}");
        let text = match volume::file(dir, name) {
            Ok(text) => text,
            Err(why) if why == "no such file" => continue,
            Err(why) => return Err(format!("{place}: {why}")),
        };
        for (key, value) in document(&text, &place)? {
            let source = format!("{place}:{}", value.referenced.line());
            items.extend(take(&key, value.value).into_iter().map(|(key, value)| Item { key, value, source: source.clone() }));
        }
    }
    Ok(items)
}

fn document(text: &str, place: &str) -> Result<BTreeMap<String, Spanned<Value>>, String> {
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    if place.ends_with("user-data") && !text.starts_with("#cloud-config") {
        return Err(format!("{place}:1: does not start with `#cloud-config`; scripts are not run"));
    }
    let wrapped = serde_saphyr::from_str::<BTreeMap<String, Spanned<Value>>>(text);
    wrapped.map_err(|e| format!("{place}:{}: {}", e.location().map_or(1, |at| at.line()), e.without_snippet()))
}

fn meta_data(key: &str, value: Value) -> Vec<(String, Value)> {
    match key {
        "local-hostname" | "hostname" => vec![("hostname".into(), value)],
        // The instance id says when cloud-init runs again; our steps see changes themselves.
        _ => Vec::new(),
    }
}

fn user_data(key: &str, value: Value) -> Vec<(String, Value)> {
    match (key, value) {
        ("hostname", value) => vec![("hostname".into(), value)],
        ("ssh_authorized_keys", value) => vec![("sshKeys.root".into(), value)],
        ("users", Value::Array(users)) => users.into_iter().filter_map(user).collect(),
        ("timezone", value) => vec![("time.zone".into(), value)],
        ("ntp", value) => vec![("time.servers".into(), value.get("servers").cloned().unwrap_or(value))],
        (_, value) => vec![(format!("user-data {key}"), value)],
    }
}

fn user(mut user: Value) -> Option<(String, Value)> {
    if user == "default" {
        return None;
    }
    let name = user.get("name").and_then(Value::as_str).unwrap_or_default().to_string();
    Some((format!("sshKeys.{name}"), user.get_mut("ssh_authorized_keys")?.take()))
}

fn network_config(key: &str, value: Value) -> Vec<(String, Value)> {
    match (key, &value) {
        ("version", value) if *value == 2 => Vec::new(),
        ("version", _) => vec![("network-config version, only 2 is read:".into(), value)],
        ("ethernets", Value::Object(cards)) => vec![("network".into(), json!({"interfaces": cards.iter().map(card).collect::<Vec<_>>()}))],
        ("network", Value::Object(inner)) => inner.clone().into_iter().flat_map(|(key, value)| network_config(&key, value)).collect(),
        _ => vec![(format!("network-config {key}"), value)],
    }
}

/// One `ethernets` entry in the words of our profile; a word that we do not know stays and is refused by name later.
fn card((id, card): (&String, &Value)) -> Value {
    let mut out = Map::new();
    let mut matches = Map::new();
    for (key, value) in card.as_object().into_iter().flatten() {
        match key.as_str() {
            "match" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    matches.insert(if key == "macaddress" { "mac".into() } else { key.clone() }, value.clone());
                }
            }
            "dhcp4" => _ = out.insert("dhcp".into(), value.clone()),
            "gateway4" => _ = out.insert("gateway".into(), value.clone()),
            "routes" => _ = out.insert("gateway".into(), default_route(value)),
            "nameservers" => _ = out.insert("dns".into(), value.get("addresses").cloned().unwrap_or_default()),
            "dhcp6" | "set-name" | "optional" => {}
            _ => _ = out.insert(key.clone(), value.clone()),
        }
    }
    if matches.is_empty() {
        matches.insert("name".into(), id.as_str().into());
    }
    out.insert("name".into(), id.as_str().into());
    out.insert("match".into(), matches.into());
    out.into()
}

fn default_route(routes: &Value) -> Value {
    let is_default = |route: &&Value| route.get("to").and_then(Value::as_str).is_some_and(|to| ["default", "0.0.0.0/0", "::/0"].contains(&to));
    match routes.as_array().map(Vec::as_slice) {
        Some([route]) if is_default(&route) => route.get("via").cloned().unwrap_or_default(),
        _ => "only one route, to `default`, is read".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<Vec<(String, Value)>, String> {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        items(dir.path()).map(|items| items.into_iter().map(|item| (item.key, item.value)).collect())
    }

    #[test]
    fn a_usual_volume_is_read() {
        let found = load(&[
            ("meta-data", "instance-id: i-1\nlocal-hostname: a\n"),
            ("user-data", "#cloud-config\nssh_authorized_keys: [k]\nruncmd: [reboot]\n"),
            (
                "network-config",
                "version: 2\nethernets:\n  id0:\n    match: {macaddress: \"52:54:00:00:00:01\"}\n    addresses: [10.0.0.2/24]\n    \
                 routes: [{to: default, via: 10.0.0.1}]\n    nameservers: {addresses: [10.0.0.3]}\n",
            ),
        ]);
        let network = json!({"interfaces": [{"addresses": ["10.0.0.2/24"], "gateway": "10.0.0.1", "dns": ["10.0.0.3"], "name": "id0",
            "match": {"mac": "52:54:00:00:00:01"}}]});
        let expected = [("hostname", json!("a")), ("user-data runcmd", json!(["reboot"])), ("sshKeys.root", json!(["k"])), ("network", network)];
        assert_eq!(found.unwrap(), expected.map(|(key, value)| (key.to_string(), value)));
    }

    #[test]
    fn f3_scripts_and_version_1_are_refused_by_name() {
        assert!(load(&[("user-data", "#!/bin/sh\n")]).unwrap_err().contains("user-data:1: does not start with"));
        assert!(load(&[("network-config", "version: 1\nconfig: []\n")]).unwrap().iter().any(|(key, _)| key.contains("only 2 is read")));
        assert!(load(&[("meta-data", "local-hostname: {a")]).unwrap_err().starts_with("disk cidata: meta-data:1"));
    }
}
