//! The secrets of this node and of the platform, read so that they can be taken out of everything else.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use layers::settings::{SECRET_KEY, Settings};
use layers::{Error, Result};
use serde_json::Value;

use super::Run;
use crate::config;
use crate::host::STATE;

const HASH_KEY: &str = "console.passwordHash";
/// Keys of secrets at rest, by the name `secret`.
const ENCRYPTION: &str = "etc/kubernetes/chasi-bod/encryption.yaml";
/// What the configuration sources said, with secrets in the clear.
const SAID: [&str; 2] = ["config.json", "console.json"];
/// How the bundle calls the Secrets that people give to components.
const OF_COMPONENTS: &str = "secrets of components";

impl Run<'_> {
    /// All of them; a file that this user may not read is an error, as what it protects could not be taken out.
    pub(super) fn known(&mut self) -> Result<Vec<String>> {
        let read = |path: &str| -> Result<String> {
            let found = self.host.read(path).map_err(|error| Error::environment(error.to_string()).with_hint("run it as root"));
            found.map(Option::unwrap_or_default)
        };
        let mut known = vec![read(&format!("{STATE}/cluster-secret"))?];
        known.extend(read("etc/shadow")?.split([':', '\n']).filter(|field| field.starts_with('$')).map(String::from));
        secrets(&serde_saphyr::from_str(&read(ENCRYPTION)?).unwrap_or_default(), &mut known);
        for name in SAID {
            let said: Value = serde_json::from_str(&read(&format!("{STATE}/{name}"))?).unwrap_or_default();
            let items = said["sources"].as_object().into_iter().flat_map(|sources| sources.values()).filter_map(|items| items.as_array()).flatten();
            known.extend(items.filter_map(|item| of_setting(item["key"].as_str()?, item["value"].as_str()?)).flatten());
        }
        known.extend(config::published(self.host).iter().flat_map(of_settings));
        known.extend(self.of_components());
        Ok(known)
    }

    /// The Secrets that people give to components; where the API does not answer, the forms of secrets have to do.
    fn of_components(&mut self) -> Vec<String> {
        let words = ["kubectl", "-n", "chasi-bod-system", "get", "secrets", "-o", "json"].map(String::from);
        let text = self.client(&words).and_then(|command| self.program(OF_COMPONENTS, command, &words)).unwrap_or_default();
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let data = list["items"].as_array().into_iter().flatten().filter_map(|secret| secret["data"].as_object()).flat_map(|data| data.values());
        let texts = data.filter_map(|value| String::from_utf8(BASE64_STANDARD.decode(value.as_str()?).ok()?).ok());
        texts.collect()
    }
}

/// Every text of a key `secret`, at any depth.
fn secrets(value: &Value, known: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            known.extend(map.get("secret").and_then(Value::as_str).map(String::from));
            map.values().for_each(|value| secrets(value, known));
        }
        Value::Array(list) => list.iter().for_each(|value| secrets(value, known)),
        _ => {}
    }
}

fn of_settings(settings: &Settings) -> Vec<String> {
    let secret = settings.secret.as_ref().map(|secret| (SECRET_KEY, secret.value.reveal()));
    let hash = settings.password_hash.as_ref().map(|hash| (HASH_KEY, hash.value.as_str()));
    let url = settings.url.as_ref().map(|url| ("url", url.value.as_str()));
    [secret, hash, url].into_iter().flatten().filter_map(|(key, value)| of_setting(key, value)).flatten().collect()
}

/// What of a setting is secret.
fn of_setting(key: &str, value: &str) -> Option<Vec<String>> {
    match key {
        SECRET_KEY | HASH_KEY => Some(vec![value.into()]),
        "url" => {
            let user = value.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@')).map(|(user, _)| user);
            let password = user.and_then(|user| user.split_once(':')).map(|(_, password)| password);
            let query = value.split_once('?').map(|(_, query)| query.split('#').next().unwrap_or_default());
            Some([user, password, query].into_iter().flatten().map(String::from).collect())
        }
        _ => None,
    }
}
