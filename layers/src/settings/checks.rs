//! What single values may be; each error says what is wrong with it, never what a secret is.

use crate::profile::{is_host, is_user, is_zone, quote};

/// Fewest characters of a cluster's secret.
const LONG: usize = 26;

/// A text for people without words that are as long as a secret.
pub fn masked(text: &str) -> String {
    let words: Vec<_> = text.split(' ').map(|word| if word.chars().count() < LONG { word } else { "…" }).collect();
    words.join(" ")
}

/// A key for people. Where no blank follows its colon, YAML takes the value for a part of it, and that may be a secret.
pub fn shown_key(key: &str) -> String {
    match key.split_once([':', '=', ' ']) {
        Some((key, _)) => format!("{}…", masked(key)),
        None => masked(key),
    }
}

pub fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A host name as RFC 1123 wants it, at most 64 bytes (the kernel's limit), with `{mac}`, `{serial}` and `{id}` in it.
pub fn check_hostname_rule(rule: &str) -> Result<(), String> {
    let sample = rule.replace("{mac}", "525400123456").replace("{serial}", "0").replace("{id}", "12345678");
    match sample.len() <= 64 && sample.split('.').all(is_label) {
        true => Ok(()),
        false => Err(format!("`{rule}` is no host name: letters, digits, `-` and `.`, and the words {{mac}}, {{serial}}, {{id}}")),
    }
}

pub fn check_zone(zone: &str) -> Result<(), String> {
    if is_zone(zone) { Ok(()) } else { Err(format!("{} is no time zone name such as Europe/Berlin", quote(zone))) }
}

pub fn check_server(server: &str) -> Result<(), String> {
    if is_host(server) { Ok(()) } else { Err(format!("{} is no host name or address", quote(server))) }
}

pub fn check_user(user: &str) -> Result<(), String> {
    if is_user(user) { Ok(()) } else { Err(format!("{} is no user name", quote(user))) }
}

/// One public key in `authorized_keys` notation without options; RFC 4253: base64 of the length and name of its type.
pub fn check_ssh_key(key: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("no public ssh key such as `ssh-ed25519 AAAA… name`: {why}"));
    if key.contains("PRIVATE KEY") {
        return bad("this is a private key");
    }
    let mut words = key.split(' ');
    let (name, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if key.contains(['\n', '\r']) || !["ssh-", "ecdsa-", "sk-"].iter().any(|start| name.starts_with(start)) {
        return bad("the type of key is missing or the key has more than one line");
    }
    match decode_base64(data) {
        Some(bytes) if bytes.get(4..4 + name.len()) == Some(name.as_bytes()) && bytes.len() > name.len() + 8 => Ok(()),
        _ => bad("the second word is cut or damaged"),
    }
}

/// Decodes RFC 4648 base64, with or without padding.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (digits.len() % 4 != 1).then_some(out)
}

/// crypt(5) hashes of today; a plain password is refused without repeating it.
pub fn check_hash(hash: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_graphic() && !":!*\\".contains(c);
    match ["$y$", "$gy$", "$7$", "$2b$", "$6$", "$5$"].iter().any(|id| hash.starts_with(id)) && hash.len() >= 20 && hash.chars().all(fine) {
        true => Ok(()),
        false => Err("no crypt hash that starts with $y$, $6$ or the like (make one with `mkpasswd`); plain passwords are not taken".into()),
    }
}

pub fn check_url(url: &str) -> Result<(), String> {
    let digest = url.split_once("#sha256=").map(|(_, digest)| digest);
    if digest.is_some_and(|digest| digest.parse::<crate::units::Digest>().is_err()) {
        return Err("`#sha256=` wants 64 hex digits".into());
    }
    match (url.starts_with("https://"), url.starts_with("http://"), digest) {
        (true, _, _) | (_, true, Some(_)) => Ok(()),
        (_, true, None) => Err("http wants `#sha256=<64 hex digits>` at its end, or use https".into()),
        _ => Err(format!("`{}` is no http or https address", without_secrets(url))),
    }
}

/// An address without user name, password and query, which may be secret.
pub fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (scheme, rest) = url[..end].split_once("://").unwrap_or(("", &url[..end]));
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let host = rest[..authority_end].rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{}", &rest[authority_end..])
}
