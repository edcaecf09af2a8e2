//! The header: for whom a file is, and the key of what follows, once for each of them.

use std::io::Read;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use chacha20poly1305::aead::Aead as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use layers::{Error, Result};
use p256_sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

use super::{Identity, Recipient};
use crate::host::Host;

const FIRST: &str = "age-encryption.org/v1";
const KIND: &str = "X25519";
const LABEL: &[u8] = b"age-encryption.org/v1/X25519";
/// Characters of a line of a stanza's body.
const LINE: usize = 64;
/// Longest header that is read; one of ours has two hundred bytes for each recipient.
const LIMIT: usize = 64 << 10;

/// HKDF-SHA256 (RFC 5869) to 32 bytes.
pub fn derive(from: &[u8], salt: &[u8], purpose: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    // Only a length beyond 255 digests fails.
    let _ = Hkdf::<Sha256>::new(Some(salt), from).expand(purpose, &mut key);
    key
}

fn wrapping(shared: &[u8], share: &PublicKey, recipient: &PublicKey) -> ChaCha20Poly1305 {
    let salt = [share.as_bytes().as_slice(), recipient.as_bytes()].concat();
    ChaCha20Poly1305::new(&derive(shared, &salt, LABEL).into())
}

fn mac(key: &[u8; 16], text: &str) -> Hmac<Sha256> {
    // A key of any length is taken.
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&derive(key, &[], b"header")).unwrap_or_else(|_| unreachable!("a key of 32 bytes"));
    mac.update(text.as_bytes());
    mac
}

/// The header of a file whose key this is.
pub fn write(host: &Host, recipients: &[Recipient], key: &[u8; 16]) -> Result<String> {
    let mut text = format!("{FIRST}\n");
    for Recipient(recipient) in recipients {
        let secret = StaticSecret::from(host.random::<32>()?);
        let share = PublicKey::from(&secret);
        let shared = secret.diffie_hellman(recipient);
        let body = wrapping(shared.as_bytes(), &share, recipient).encrypt(&Nonce::default(), key.as_slice());
        let body = body.map_err(|_| Error::internal("enciphering the key of a backup"))?;
        text += &format!("-> {KIND} {}\n{}\n", BASE64_STANDARD_NO_PAD.encode(share), BASE64_STANDARD_NO_PAD.encode(body));
    }
    text += "---";
    let sum = BASE64_STANDARD_NO_PAD.encode(mac(key, &text).finalize().into_bytes());
    Ok(format!("{text} {sum}\n"))
}

/// One that was read.
pub struct Header {
    /// Shares and wrapped keys of the recipients of our kind.
    stanzas: Vec<(PublicKey, Vec<u8>)>,
    /// What its sum is about.
    text: String,
    sum: Vec<u8>,
}

impl Header {
    /// Reads no further than its end.
    pub fn read(from: &mut impl Read) -> Result<Self> {
        let (mut text, mut stanzas) = (String::new(), Vec::new());
        if line(from, &mut text)? != FIRST {
            return Err(Error::input("it is no backup: it does not begin as a file of age"));
        }
        let bad = || Error::input("its header is damaged");
        let mut next = line(from, &mut text)?;
        while let Some(arguments) = next.strip_prefix("-> ") {
            let share = arguments.strip_prefix(KIND).and_then(|share| decode(share.trim()));
            let mut body = String::new();
            // A body ends with a line that is not full.
            loop {
                let part = line(from, &mut text)?;
                body += &part;
                if part.len() < LINE {
                    break;
                }
            }
            if let Some(share) = share.and_then(|share| <[u8; 32]>::try_from(share).ok()) {
                stanzas.push((share.into(), decode(&body).ok_or_else(bad)?));
            }
            next = line(from, &mut text)?;
        }
        let sum = next.strip_prefix("--- ").and_then(decode).ok_or_else(bad)?;
        text.truncate(text.len() - next.len() - 1 + "---".len());
        Ok(Self { stanzas, text, sum })
    }

    /// The key of the file, if the identity opens it.
    pub fn key(&self, identity: &Identity) -> Option<[u8; 16]> {
        let recipient = PublicKey::from(&identity.0);
        self.stanzas.iter().find_map(|(share, body)| {
            let shared = identity.0.diffie_hellman(share);
            let key = wrapping(shared.as_bytes(), share, &recipient).decrypt(&Nonce::default(), body.as_slice());
            key.ok()?.try_into().ok()
        })
    }

    /// Refuses a header that is not as it was written.
    pub fn check(&self, key: &[u8; 16]) -> Result<()> {
        mac(key, &self.text).verify_slice(&self.sum).map_err(|_| Error::input("its header is damaged"))
    }
}

/// The canonical form only, as age wants it.
fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD_NO_PAD.decode(text).ok()
}

/// The next line, without its end; also appended to what the sum is about.
fn line(from: &mut impl Read, text: &mut String) -> Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        let read = from.read(&mut byte).map_err(|error| Error::environment(error.to_string()))?;
        if read == 0 || text.len() + line.len() > LIMIT {
            return Err(Error::input("it is no whole backup: its header has no end"));
        }
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).map_err(|_| Error::input("it is no backup: its header is no text"))?;
    *text += &line;
    text.push('\n');
    Ok(line)
}
