//! Files enciphered as age does (<https://c2sp.org/age>, version 1, recipients of type X25519): whoever has the key opens a backup with the program
//! `age`, too, when nothing of this platform is left. The crate `age` would bring forty more, most of them for messages in many languages.

mod bech32;
mod header;
mod stream;

use std::io::{Read, Write};

use layers::membership::Secret;
use layers::{Error, Result};
use x25519_dalek::{PublicKey, StaticSecret};

pub use stream::{Opened, Sealed};

use crate::host::Host;

const PUBLIC: &str = "age";
const PRIVATE: &str = "age-secret-key-";
/// What the key of a cluster's backups is derived for; nothing else is derived from the secret by this text.
const PURPOSE: &[u8] = b"chasi-bod backup key 1";

/// Who can open a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient(PublicKey);

impl Recipient {
    /// From its text, `age1…`.
    pub fn parse(text: &str) -> Result<Self> {
        let bytes = bech32::decode(PUBLIC, text.trim());
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(|bytes| Self(bytes.into())).ok_or_else(|| Error::input(format!("`{}` is no public key of age, such as `age1…`", text.trim())))
    }

    /// Its text.
    pub fn text(&self) -> String {
        bech32::encode(PUBLIC, self.0.as_bytes())
    }
}

/// What opens files. Its debug form is masked.
#[derive(Clone)]
pub struct Identity(StaticSecret);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Identity {
    /// The one that follows from the cluster's secret by HKDF-SHA256 (RFC 5869): a fresh machine that knows the secret has it, too.
    pub fn of_cluster(secret: &Secret) -> Self {
        Self(header::derive(secret.reveal().as_bytes(), &[], PURPOSE).into())
    }

    /// From a file as age-keygen(1) writes it; its comments are left out. The error never repeats it.
    pub fn parse(text: &str) -> Result<Self> {
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let bytes = line.and_then(|line| bech32::decode(PRIVATE, line)).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(|bytes| Self(bytes.into())).ok_or_else(|| Error::input("it has no private key of age, a line `AGE-SECRET-KEY-1…`"))
    }

    /// Its text, a secret.
    pub fn reveal(&self) -> String {
        bech32::encode(PRIVATE, self.0.as_bytes()).to_uppercase()
    }

    /// Who can open with it.
    pub fn recipient(&self) -> Recipient {
        Recipient((&self.0).into())
    }
}

/// Begins a file for these recipients; what is written is in it when [`Sealed::finish`] has returned.
pub fn seal<W: Write>(host: &Host, recipients: &[Recipient], to: W) -> Result<Sealed<W>> {
    let key: [u8; 16] = host.random()?;
    let header = header::write(host, recipients, &key)?;
    Sealed::begin(to, &header, &key, &host.random()?)
}

/// Begins to read a file that one of the identities opens.
pub fn open<R: Read>(identities: &[Identity], mut from: R) -> Result<Opened<R>> {
    let header = header::Header::read(&mut from)?;
    let key = identities.iter().find_map(|identity| header.key(identity));
    let key = key.ok_or_else(|| {
        Error::input("none of the keys at hand opens it: it is another cluster's, or the secret has changed since").with_hint(
            "the secret of its time is wanted: set it as cluster.secret, or give its key with --identity FILE (`chasi-bod backup key` prints it)",
        )
    })?;
    header.check(&key)?;
    Opened::begin(from, &key)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn key(text: &str) -> Identity {
        Identity::of_cluster(&Secret::parse(&format!("{text}-0123456789abcdefghijklmnopqrstuvwxyz")).unwrap())
    }

    fn sealed(recipients: &[Recipient], bytes: &[u8]) -> Vec<u8> {
        let mut sealed = seal(&Host::new("/"), recipients, Vec::new()).unwrap();
        sealed.write_all(bytes).unwrap();
        sealed.finish().unwrap()
    }

    fn opened(identity: &Identity, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let mut opened = open(std::slice::from_ref(identity), bytes).map_err(|error| error.to_string())?;
        opened.read_to_end(&mut plain).map_err(|error| error.to_string())?;
        Ok(plain)
    }

    /// Lengths around the chunks' end.
    fn lengths() -> [usize; 7] {
        [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000]
    }

    fn sample(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7 % 251) as u8).collect()
    }

    #[test]
    fn what_was_sealed_opens_and_only_for_its_recipients() {
        for length in lengths() {
            let file = sealed(&[key("a").recipient(), key("b").recipient()], &sample(length));
            for name in ["a", "b"] {
                assert_eq!(opened(&key(name), &file).unwrap(), sample(length), "{length}");
            }
            assert!(opened(&key("c"), &file).unwrap_err().contains("none of the keys at hand opens it"));
        }
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_an_error_wherever_it_is() {
        let file = sealed(&[key("a").recipient()], &sample(70_000));
        for at in (0..file.len()).step_by(97).chain(file.len() - 20..file.len()) {
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            assert!(opened(&key("a"), &flipped).is_err(), "byte {at}");
            assert!(opened(&key("a"), &file[..at]).is_err(), "cut at {at}");
        }
        assert!(opened(&key("a"), &[file, vec![0]].concat()).is_err());
    }

    #[test]
    fn keys_have_the_form_of_age_keygen_and_are_never_shown() {
        let identity = key("a");
        assert!(identity.reveal().starts_with("AGE-SECRET-KEY-1") && identity.recipient().text().starts_with("age1"));
        let file = format!("# created: today\n# public key: {}\n{}\n", identity.recipient().text(), identity.reveal());
        assert_eq!(Identity::parse(&file).unwrap().recipient(), identity.recipient());
        assert_eq!(Recipient::parse(&identity.recipient().text()).unwrap(), identity.recipient());
        assert_eq!(format!("{identity:?}"), "(hidden)");
        let wrong = Identity::parse(&identity.reveal().to_lowercase().replace('q', "p")).unwrap_err().to_string();
        assert!(!wrong.to_lowercase().contains(&identity.reveal().to_lowercase()[20..40]), "{wrong}");
        assert!(Recipient::parse("age1x").unwrap_err().to_string().contains("`age1x` is no public key"));
    }

    fn age(args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = Command::new("age");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("age, which scripts/setup test installs");
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The outside judge: Debian's `age` opens what is sealed here, and the other way round.
    #[test]
    fn debians_age_opens_our_files_and_we_open_its() {
        let folder = tempfile::tempdir().unwrap();
        let (identity, path) = (key("a"), folder.path().join("key"));
        std::fs::write(&path, identity.reveal()).unwrap();
        let path = path.display().to_string();
        for length in lengths() {
            let file = sealed(&[key("b").recipient(), identity.recipient()], &sample(length));
            assert_eq!(age(&["--decrypt", "-i", &path], &file), sample(length), "{length}");
            let file = age(&["--encrypt", "-r", &key("b").recipient().text(), "-r", &identity.recipient().text()], &sample(length));
            assert_eq!(opened(&identity, &file).unwrap(), sample(length), "{length}");
        }
    }
}
