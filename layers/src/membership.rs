//! What makes a node a member of a cluster: the secret that its nodes know each other by, and where the cluster is asked to take it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::profile::{is_host, quote};

/// TCP port of the service that takes nodes into a cluster.
pub const JOIN_PORT: u16 = 6444;

/// Fewest characters of a secret: 128 bits in base32. Whoever records a join may guess at leisure, so only randomness protects it.
const SHORTEST: usize = 26;
const LONGEST: usize = 256;

/// The cluster's secret. It is never shown by accident: its debug form is masked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Secret {
    /// Takes a secret as a person or a file gives it; the error never repeats it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let different = text.chars().collect::<BTreeSet<_>>().len();
        let why = match text.len() {
            length if length < SHORTEST => format!("is {length} characters long, at least {SHORTEST} random ones are wanted"),
            length if length > LONGEST => format!("is {length} characters long, at most {LONGEST} are taken"),
            _ if !text.chars().all(|c| c.is_ascii_graphic()) => "has blanks, control characters or letters beyond ASCII".into(),
            _ if different < 8 => format!("has only {different} different characters, so it is not random"),
            _ => return Ok(Self(text.into())),
        };
        Err(format!("{why} (make one with `openssl rand -hex 16`)"))
    }

    /// A secret out of 160 random bits.
    pub fn of_random(bytes: &[u8; 20]) -> Self {
        Self(base32(bytes))
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Lower-case base32 without padding (RFC 4648); its characters are also those of Kubernetes bootstrap tokens.
pub fn base32(bytes: &[u8]) -> String {
    let digits = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |n: usize| bytes.get(n / 8).map_or(0, |byte| byte >> (7 - n % 8) & 1);
    (0..bytes.len() * 8).step_by(5).map(|at| char::from(digits[(at..at + 5).fold(0, |value, n| value << 1 | usize::from(bit(n)))])).collect()
}

/// `host[:port]` with the port that counts; an IPv6 address with a port stands in brackets.
pub fn endpoint(text: &str) -> Result<String, String> {
    let bad = || format!("{} is no `host[:port]`", quote(text));
    let is_v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().is_ok();
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bare {
        Some((host, rest)) if is_v6(host) => (host, rest.strip_prefix(':').map_or_else(|| rest.is_empty().then_some(""), Some).ok_or_else(bad)?),
        Some(_) => return Err(bad()),
        None if is_v6(text) => (text, ""),
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let port = if port.is_empty() && !text.ends_with(':') { Some(JOIN_PORT) } else { port.parse().ok().filter(|port| *port > 0) };
    match port {
        Some(port) if is_v6(host) => Ok(format!("[{host}]:{port}")),
        Some(port) if is_host(host) => Ok(format!("{host}:{port}")),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secrets_are_refused_without_being_repeated() {
        for (secret, why) in [
            ("hunter2", "is 7 characters long"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "only 1 different"),
            ("0123456789abcdef 0123456789abcdef", "has blanks"),
            (&"0123456789abcdef".repeat(20), "at most 256"),
        ] {
            let error = Secret::parse(secret).unwrap_err();
            assert!(error.starts_with(why) || error.contains(why), "{error}");
            assert!(!error.contains(secret), "{error}");
        }
        let secret = Secret::parse(" 0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(secret.reveal(), "0123456789abcdef0123456789abcdef");
        assert_eq!(format!("{secret:?}"), "(hidden)");
    }

    #[test]
    fn a_made_secret_is_one_that_is_taken() {
        let made = Secret::of_random(b"\x00\x44\x32\x14\xc7\x42\x54\xb6\x35\xcf\x84\x65\x3a\x56\xd7\xc6\x75\xbe\x77\xdf");
        assert_eq!(made.reveal(), "abcdefghijklmnopqrstuvwxyz234567");
        assert_eq!(Secret::parse(made.reveal()), Ok(made));
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
    }

    #[test]
    fn an_endpoint_gets_its_port() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:6444"),
            ("first.example:7000", "first.example:7000"),
            ("fd00::1", "[fd00::1]:6444"),
            ("[fd00::1]", "[fd00::1]:6444"),
            ("[fd00::1]:1", "[fd00::1]:1"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "a b", "a:", "a:0", "a:65536", "a:1:2", "[a]:1", "[fd00::1]1", "https://a", "a/b"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
