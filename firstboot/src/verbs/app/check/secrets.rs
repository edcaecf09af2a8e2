//! Secrets in plain text. What they are is never said, only where.

use serde_json::Value;

use super::Chart;
use super::objects::{Workload, kind, name, place};
use super::report::Finding;

/// How names of secrets end.
const ENDS: [&[&str]; 13] = [
    &["PASSWORD"],
    &["PASSWD"],
    &["PASSPHRASE"],
    &["TOKEN"],
    &["SECRET"],
    &["CREDENTIAL"],
    &["CREDENTIALS"],
    &["APIKEY"],
    &["API", "KEY"],
    &["ACCESS", "KEY"],
    &["SECRET", "KEY"],
    &["PRIVATE", "KEY"],
    &["ENCRYPTION", "KEY"],
];

pub fn findings(chart: &Chart, workloads: &[Workload<'_>]) -> Vec<Finding> {
    let mut out: Vec<_> = chart.objects.iter().filter_map(of_object).collect();
    for workload in workloads {
        for container in workload.containers() {
            out.extend(of_container(container).into_iter().map(|what| Finding::warn(place(workload, container), what)));
        }
    }
    for (file, values) in &chart.values {
        let mut places = Vec::new();
        walk(values, String::new(), &mut places);
        out.extend(
            places
                .into_iter()
                .map(|place| Finding::warn(file.clone(), format!("{place} is there in plain text; a Component takes it by valuesFrom"))),
        );
    }
    out
}

fn of_object(object: &Value) -> Option<Finding> {
    let secret = kind(object) == "Secret";
    if !secret && kind(object) != "ConfigMap" {
        return None;
    }
    let entries = ["data", "stringData"].into_iter().flat_map(|field| object[field].as_object().into_iter().flatten());
    let full = entries.filter(|(key, value)| value.as_str().is_some_and(|text| !text.is_empty()) && (secret || is_secret(key)));
    let keys: Vec<_> = full.map(|(key, _)| key.as_str()).collect();
    (!keys.is_empty()).then(|| Finding::warn(name(object), format!("{} in plain text in the chart or its values", keys.join(", "))))
}

fn of_container(container: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let (name, value) = (variable["name"].as_str().unwrap_or_default(), variable["value"].as_str().unwrap_or_default());
        // `$(OTHER)` stands for what another variable has.
        if is_secret(name) && !value.is_empty() && !value.starts_with("$(") {
            out.push(format!("variable {name} has a literal value: take it from a Secret"));
        }
    }
    let words = ["command", "args"].into_iter().flat_map(|field| container[field].as_array().into_iter().flatten());
    for (flag, value) in words.filter_map(|word| word.as_str()?.split_once('=')) {
        if flag.starts_with('-') && is_secret(flag) && !value.is_empty() && !value.starts_with("$(") {
            out.push(format!("argument {flag} has a literal value: everybody who sees the process reads it"));
        }
    }
    out
}

/// Places of values that are named like secrets and are texts.
fn walk(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                walk(value, if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, out);
            }
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(n, item)| walk(item, format!("{at}[{n}]"), out)),
        Value::String(text) if !text.is_empty() && !text.contains("{{") && is_secret(at.rsplit('.').next().unwrap_or_default()) => out.push(at),
        _ => {}
    }
}

/// Whether what has this name is a secret itself, not the name, file or place of one.
fn is_secret(name: &str) -> bool {
    let words = words(name);
    let named = |end: &&[&str]| words.len() >= end.len() && words[words.len() - end.len()..] == **end;
    ENDS.iter().any(named) && !words.iter().any(|word| word == "EXISTING" || word == "PUBLIC")
}

/// Words of `DB_PASSWORD`, `dbPassword`, `db-password`.
fn words(name: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || lower && c.is_ascii_uppercase() {
            out.push(String::new());
        }
        lower = c.is_ascii_lowercase();
        if let Some(word) = out.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_uppercase());
        }
    }
    out.retain(|word| !word.is_empty());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_the_end_of_their_names() {
        for name in ["PASSWORD", "DB_PASSWORD", "dbPassword", "--api-key", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "apikey", "clientSecret"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["PASSWORD_FILE", "tokenPath", "secretName", "existingSecret", "KEY", "publicKey", "PASSWORDLESS", "secrets", ""] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
