//! The certificate file of an appliance (DSP0243 1.1.0, 5.1): the manifest's digest signed with an RSA key (PKCS #1 1.5, RFC 8017), and who signed it.
//!
//! ```text
//! SHA256(NAME.mf)= signature in hexadecimal
//! -----BEGIN CERTIFICATE----- ...
//! ```

use std::fmt;
use std::path::Path;

use layers::units::Digest;
use layers::{Context, Error, Fault, Result};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, EncodePem as _, pem::LineEnding};

use super::{line, parse_line};

/// Largest file of key and certificate, in bytes.
const LARGEST: u64 = 64 << 10;

/// A private key and its certificate.
pub struct Signer {
    key: RsaKeyPair,
    certificate: Certificate,
    fingerprint: Digest,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.fingerprint.hex())
    }
}

impl Signer {
    /// Reads a PEM file with an unencrypted RSA key (PKCS #1 or #8) of 2048 to 8192 bits and the certificate of that key.
    pub fn read(path: &Path) -> Result<Self> {
        let reading = || format!("reading key and certificate from {}", path.display());
        let refused = |why: &str| Err(Error::input(format!("{}: {why}", reading())));
        let size = std::fs::metadata(path).fault(Fault::Input, reading)?.len();
        if size > LARGEST {
            return refused(&format!("it has {size} bytes, {LARGEST} are read"));
        }
        let pem = std::fs::read(path).fault(Fault::Input, reading)?;
        let Ok(found) = PrivateKeyDer::from_pem_slice(&pem) else {
            return refused("it has no private key in PEM that is not encrypted");
        };
        let key = match &found {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return refused("its key is not RSA, which is what importers know"),
        };
        let key = match key {
            Ok(key) => key,
            Err(why) => return refused(&format!("its key is no RSA key that can sign ({why})")),
        };
        let Ok(der) = CertificateDer::from_pem_slice(&pem) else {
            return refused("it has no certificate in PEM");
        };
        let certificate = Certificate::from_der(&der).fault(Fault::Input, reading)?;
        if public_key(&certificate) != key.public().as_ref() {
            return refused("its first certificate is that of another key");
        }
        Ok(Self { key, certificate, fingerprint: Digest::of(&der) })
    }

    /// SHA-256 of the certificate, which names it.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// The certificate file of a manifest.
    pub fn certificate_file(&self, manifest: &str, text: &str) -> Result<String> {
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| Error::internal(format!("signing {manifest}")))?;
        let pem = self.certificate.to_pem(LineEnding::LF).map_err(|e| Error::internal(format!("writing the certificate: {e}")))?;
        Ok(line(manifest, &hex::encode(signature)) + &pem)
    }
}

/// Holds a manifest against its certificate file, if that has a SHA-256: whether the key of the certificate has signed it. Whose certificate it is, is not asked.
pub fn compare(certificate_file: &str, manifest: &str, text: &str) -> Result<()> {
    let Some((said, pem)) = certificate_file.split_once('\n') else { return Ok(()) };
    let Some((name, signature)) = parse_line(said) else { return Ok(()) };
    let refused = |why: &str| Error::input(format!("reading the OVA's certificate file: {why}"));
    if name != manifest {
        return Err(refused(&format!("it signs `{name}`, the manifest is `{manifest}`")));
    }
    let signature = hex::decode(signature).map_err(|_| refused("its signature is not hexadecimal"))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| refused("it has no certificate in PEM"))?;
    let certificate = Certificate::from_der(&der).map_err(|e| refused(&e.to_string()))?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key(&certificate))
        .verify(text.as_bytes(), &signature)
        .map_err(|_| refused(&format!("its key has not signed `{manifest}` as it is")))
}

/// The public key as in RFC 8017, A.1.1.
fn public_key(certificate: &Certificate) -> &[u8] {
    certificate.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes()
}
