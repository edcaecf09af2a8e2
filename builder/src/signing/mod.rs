//! Signatures that others check: an RSA key or a command that has one, with the certificate that names its owner.

pub mod authenticode;
pub mod openpgp;

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use layers::units::Digest;
use layers::{Context, Error, Fault, Result};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::asn1::UintRef;
use x509_cert::der::{self, Decode as _, Reader as _};

use crate::exec;

/// Largest file of key and certificate, in bytes.
const LARGEST: u64 = 64 << 10;

/// A key and its certificate.
pub struct Signer {
    key: Key,
    certificate: Certificate,
    fingerprint: Digest,
}

/// Where the private key is.
enum Key {
    /// Here.
    Own(Box<RsaKeyPair>),
    /// Where a shell command finds it. The command reads 32 bytes, a SHA-256, and writes the signature of RSASSA-PKCS1-v1_5 (RFC 8017, 8.2).
    Command(String),
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.fingerprint.hex())
    }
}

impl Signer {
    /// Reads a PEM file with a certificate and, unless a command makes the signatures, its unencrypted RSA key (PKCS #1 or #8) of 2048 to 8192 bits.
    pub fn read(path: &Path, command: Option<&str>) -> Result<Self> {
        let reading = || format!("reading key and certificate from {}", path.display());
        let refused = |why: &str| Error::input(format!("{}: {why}", reading()));
        let size = std::fs::metadata(path).fault(Fault::Input, reading)?.len();
        if size > LARGEST {
            return Err(refused(&format!("it has {size} bytes, {LARGEST} are read")));
        }
        let pem = std::fs::read(path).fault(Fault::Input, reading)?;
        let key = match command {
            Some(command) => Key::Command(command.into()),
            None => Key::Own(Box::new(private_key(&pem).map_err(|why| refused(&why))?)),
        };
        let der = CertificateDer::from_pem_slice(&pem).map_err(|_| refused("it has no certificate in PEM"))?;
        let certificate = Certificate::from_der(&der).fault(Fault::Input, reading)?;
        if modulus(&certificate).is_err() {
            return Err(refused("the certificate's key is not RSA"));
        }
        if matches!(&key, Key::Own(key) if public_key(&certificate) != key.public().as_ref()) {
            return Err(refused("its first certificate is that of another key"));
        }
        Ok(Self { key, certificate, fingerprint: Digest::of(&der) })
    }

    /// SHA-256 of the certificate, which names it.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Who signs.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2): the same key and message give the same signature.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        match &self.key {
            Key::Own(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let signed = key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
                signed.map_err(|_| Error::internal("signing")).map(|()| signature)
            }
            Key::Command(command) => {
                let signature = ask(command, &Digest::of(message).0)?;
                if !has_signed(&self.certificate, message, &signature) {
                    let told =
                        format!("signing with `{command}`: what it wrote ({} bytes) is not a signature by the certificate's key", signature.len());
                    return Err(Error::input(told)
                        .with_hint("it reads 32 bytes, a SHA-256, and writes the bare RSASSA-PKCS1-v1_5 signature of that, not its text"));
                }
                Ok(signature)
            }
        }
    }
}

/// What a command answers to bytes.
fn ask(command: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut shell = Command::new("/bin/sh");
    let asking = || format!("signing with `{command}`");
    let mut child = exec::spawn(shell.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
    // A command that ends without having read is judged by what it wrote.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(bytes));
    let output = child.wait_with_output().context(asking)?;
    if !output.status.success() {
        return Err(Error::environment(format!("{}: {}", asking(), exec::status(output.status))));
    }
    Ok(output.stdout)
}

fn private_key(pem: &[u8]) -> Result<RsaKeyPair, String> {
    let found = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "it has no private key in PEM that is not encrypted")?;
    let key = match &found {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err("its key is not RSA, which is what is asked for".into()),
    };
    key.map_err(|why| format!("its key is no RSA key that can sign ({why})"))
}

/// Whether the key of a certificate has signed a message.
pub fn has_signed(certificate: &Certificate, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key(certificate)).verify(message, signature).is_ok()
}

/// The public key as in RFC 8017, A.1.1.
fn public_key(certificate: &Certificate) -> &[u8] {
    certificate.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes()
}

/// Modulus and exponent of the public key.
fn modulus(certificate: &Certificate) -> der::Result<PublicKeyComponents<Vec<u8>>> {
    let mut reader = der::SliceReader::new(public_key(certificate))?;
    reader.sequence(|body| {
        let (n, e) = (UintRef::decode(body)?, UintRef::decode(body)?);
        Ok(PublicKeyComponents { n: n.as_bytes().to_vec(), e: e.as_bytes().to_vec() })
    })
}
