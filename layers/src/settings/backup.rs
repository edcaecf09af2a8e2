//! When backups are made, and how many stay.

use std::str::FromStr as _;

use serde::{Deserialize, Serialize};

use crate::profile::quote;
use crate::reference::Reference;

/// Backups that stay on a node when nothing is said.
pub const BACKUPS: u16 = 8;
/// Seconds between two when nothing is said.
const EVERY: u64 = 6 * 3600;
/// The shortest time between two.
const SHORTEST: u64 = 600;

/// The time between two backups, `30m`, `6h` or `1d`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Every {
    /// Nobody makes any by itself.
    Off,
    /// Seconds.
    Seconds(u64),
}

impl Default for Every {
    fn default() -> Self {
        Self::Seconds(EVERY)
    }
}

const UNITS: [(char, u64); 3] = [('m', 60), ('h', 3600), ('d', 86_400)];

impl TryFrom<String> for Every {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let unit = |text: &str| UNITS.iter().find(|(unit, _)| text.ends_with(*unit)).map(|(_, seconds)| *seconds);
        let seconds = unit(&text).and_then(|unit| text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(unit));
        let bad = || format!("{} is no time between two backups, such as 6h, 30m or 1d, at least 10m, and not `off`", quote(&text));
        seconds.filter(|seconds| *seconds >= SHORTEST).map(Self::Seconds).ok_or_else(bad)
    }
}

impl From<Every> for String {
    fn from(every: Every) -> Self {
        match every {
            Every::Off => "off".into(),
            Every::Seconds(seconds) => {
                let (unit, length) = UNITS.into_iter().rev().find(|(_, length)| seconds % length == 0).unwrap_or(UNITS[0]);
                format!("{}{unit}", seconds / length)
            }
        }
    }
}

/// Checks a repository that backups are pushed to, `registry.example/site/backups`: each gets a tag of its own.
pub fn check_repository(text: &str) -> Result<(), String> {
    let named = Reference::from_str(&format!("{text}:x"));
    let bad = || format!("{} is no repository of a registry without tag, such as registry.example/site/backups", quote(text));
    named.ok().filter(|reference| reference.place() == text).map(drop).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_a_registry_and_no_tag() {
        for text in ["registry.example/backups", "10.0.0.1:5000/a/b", "localhost/a"] {
            assert_eq!(check_repository(text), Ok(()), "{text}");
        }
        for text in [
            "",
            "backups",
            "registry.example",
            "registry.example/a:1",
            "registry.example/a@sha256:0",
            "https://registry.example/a",
            "Registry.example/a",
        ] {
            assert!(check_repository(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_is_read_and_shown_as_people_write_it() {
        for text in ["30m", "6h", "1d", "off", "90m"] {
            assert_eq!(String::from(Every::try_from(text.to_string()).unwrap()), text);
        }
        assert_eq!(Every::try_from("24h".to_string()), Ok(Every::Seconds(86_400)));
        for text in ["", "6", "9m", "h", "-1h", "6 h", "99999999999999999999h", "18446744073709551615d", "6ü"] {
            assert!(Every::try_from(text.to_string()).is_err(), "{text}");
        }
    }
}
