//! How values are read that a source gave: as text, as lists of it, or as structures.

use std::net::IpAddr;

use serde_json::Value;

use super::checks::check_server;
use crate::membership::Secret;
use crate::profile::quote;

pub fn word(value: &Value, check: fn(&str) -> Result<(), String>) -> Result<String, String> {
    checked(text(value)?, |text: &String| check(text))
}

pub fn checked<T>(value: T, check: impl Fn(&T) -> Result<(), String>) -> Result<T, String> {
    check(&value).map(|()| value)
}

pub fn all(values: Vec<String>, check: impl Fn(&String) -> Result<(), String>) -> Result<Vec<String>, String> {
    values.iter().try_for_each(check).map(|()| values)
}

pub fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.trim().to_string()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("text expected, found {}", kind(other))),
    }
}

pub fn truth(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::String(text) => text.trim().parse().map_err(|_| format!("true or false expected, found {}", quote(text))),
        other => Err(format!("true or false expected, found {}", kind(other))),
    }
}

/// A number of nodes.
pub fn number(value: &Value) -> Result<u16, String> {
    let bad = || "a number of nodes from 1 to 1000 expected".to_string();
    text(value)?.parse().ok().filter(|number| (1..=1000).contains(number)).ok_or_else(bad)
}

/// A number of backups.
pub fn count(value: &Value) -> Result<u16, String> {
    let number = text(value)?.parse().ok().filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| "a number of backups from 1 to 1000 expected".into())
}

/// A number of control planes: an even one bears no more losses than the one below it.
pub fn odd(value: &Value) -> Result<u16, String> {
    let number = text(value)?.parse().ok().filter(|number| [1, 3, 5, 7].contains(number));
    number.ok_or_else(|| "1, 3, 5 or 7 control planes expected".into())
}

/// Names or addresses of nodes; each is sent a datagram every few seconds, so there are few.
pub fn peers(value: &Value) -> Result<Vec<String>, String> {
    let found = all(list(value)?, |host| check_server(host))?;
    if found.len() > 16 { Err(format!("16 nodes at most expected, found {}", found.len())) } else { Ok(found) }
}

/// An address that a machine may have.
pub fn host_address(value: &Value) -> Result<IpAddr, String> {
    let text = text(value)?;
    let is_of_a_machine = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let address = text.parse().ok().filter(|ip: &IpAddr| !ip.is_multicast() && !ip.is_loopback() && !ip.is_unspecified());
    address.filter(is_of_a_machine).ok_or_else(|| format!("{} is no address of a machine, such as 10.0.0.9 or fd00::9", quote(&text)))
}

/// A number is refused: YAML may have rounded it.
pub fn secret(value: &Value) -> Result<Secret, String> {
    match value {
        Value::String(text) => Secret::parse(text),
        other => Err(format!("text in quotes expected, found {}", kind(other))),
    }
}

pub fn list(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(text) => Ok(text.split([',', ' ']).filter(|word| !word.is_empty()).map(Into::into).collect()),
        Value::Array(values) => values.iter().map(text).collect(),
        Value::Null => Ok(Vec::new()),
        other => Err(format!("a list of texts expected, found {}", kind(other))),
    }
}

pub fn structure<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, String> {
    match value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
            serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())
        }
        other => serde_json::from_value(other.clone()).map_err(|error| error.to_string()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
