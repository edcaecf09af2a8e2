//! Detached OpenPGP signatures as GRUB knows them (RFC 4880, 4.2 and 5.2.3, 5.5.2): version 4, RSA, SHA-256.
//!
//! Under Secure Boot GRUB hands nothing to the firmware that none of its own verifiers has passed. The firmware's verdict comes after that and does
//! not depend on this signature.

use layers::{Error, Result};
use ring::digest::{Context as Hash, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::{Signer, modulus};

/// Head of a packet of the old format with a length of two bytes.
const OLD_FORMAT: u8 = 0x81;
const SIGNATURE: u8 = 2;
const PUBLIC_KEY: u8 = 6;
const RSA: u8 = 1;
const SHA256_ID: u8 = 8;

fn packet(tag: u8, body: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(body.len()).map_err(|_| Error::internal("encoding an OpenPGP packet: its body has more than 64KiB"))?;
    Ok([&[OLD_FORMAT | tag << 2], &length.to_be_bytes()[..], body].concat())
}

/// A number with its length in bits.
fn mpi(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[zeros..];
    let bits = bytes.len() * 8 - bytes.first().map_or(0, |first| first.leading_zeros() as usize);
    [&(bits as u16).to_be_bytes()[..], bytes].concat()
}

/// Time as packets have it.
fn time(epoch: i64) -> [u8; 4] {
    u32::try_from(epoch).unwrap_or_default().to_be_bytes()
}

/// The signer's public key as a packet, made at `epoch`, in seconds since 1970.
pub fn public_key(signer: &Signer, epoch: i64) -> Result<Vec<u8>> {
    let key = modulus(&signer.certificate).map_err(|e| Error::internal(format!("reading a public key: {e}")))?;
    packet(PUBLIC_KEY, &[&[4], &time(epoch)[..], &[RSA], &mpi(&key.n), &mpi(&key.e)].concat())
}

/// The signature of a file.
pub fn detached(file: &[u8], signer: &Signer, epoch: i64) -> Result<Vec<u8>> {
    let mut hash = Hash::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(&public_key(signer, epoch)?);
    let fingerprint = hash.finish();
    // Signature creation time, and the fingerprint of the key.
    let made = [&[5, 2], &time(epoch)[..], &[22, 33, 4], fingerprint.as_ref()].concat();
    let hashed = [&[4, 0, RSA, SHA256_ID], &(made.len() as u16).to_be_bytes()[..], &made].concat();
    let end = [&[4, 0xff], &(hashed.len() as u32).to_be_bytes()[..]].concat();
    let message = [file, &hashed, &end].concat();
    let mut hash = Hash::new(&SHA256);
    hash.update(&message);
    // Id of the key, which GRUB looks it up by, and the first bytes of the hash.
    let id = [&[0, 10, 9, 16], &fingerprint.as_ref()[12..]].concat();
    packet(SIGNATURE, &[&hashed, &id, &hash.finish().as_ref()[..2], &mpi(&signer.sign(&message)?)].concat())
}
