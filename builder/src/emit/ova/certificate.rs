//! The certificate file of an appliance (DSP0243 1.1.0, 5.1): the manifest's digest signed with an RSA key (PKCS #1 1.5, RFC 8017), and who signed it.
//!
//! ```text
//! SHA256(NAME.mf)= signature in hexadecimal
//! -----BEGIN CERTIFICATE----- ...
//! ```

use layers::{Error, Result};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, EncodePem as _, pem::LineEnding};

use super::{line, parse_line};
use crate::signing::{self, Signer};

/// The certificate file of a manifest.
pub fn write(signer: &Signer, manifest: &str, text: &str) -> Result<String> {
    let signature = signer.sign(text.as_bytes())?;
    let pem = signer.certificate().to_pem(LineEnding::LF).map_err(|e| Error::internal(format!("writing the certificate: {e}")))?;
    Ok(line(manifest, &hex::encode(signature)) + &pem)
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
    if !signing::has_signed(&certificate, text.as_bytes(), &signature) {
        return Err(refused(&format!("its key has not signed `{manifest}` as it is")));
    }
    Ok(())
}
