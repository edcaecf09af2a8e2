//! A beacon on the wire, a UDP datagram: `CHBD`, the version in one byte, a random nonce of 24 bytes, and JSON enciphered by XChaCha20-Poly1305
//! (draft-irtf-cfrg-xchacha-03) with a key that is derived from the cluster's secret. The first five bytes are authenticated as well.
//!
//! Whoever does not know the secret learns that there are nodes, and how many. A beacon that is sent once more says what its node has said
//! once: see [`super::election`] for why that harms nobody.

use std::net::SocketAddr;

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use layers::membership::Secret;
use layers::units::Digest;
use serde::{Deserialize, Serialize};

use super::election::Beacon;

const MAGIC: &[u8; 4] = b"CHBD";
/// Another meaning of what is inside is another version.
const VERSION: u8 = 1;
const HEADER: usize = MAGIC.len() + 1;
const NONCE: usize = 24;
/// Fits into one packet on every link (RFC 8200, section 5: 1280 bytes with IPv6's and UDP's headers).
pub const LONGEST: usize = 1232;

/// What a node tells all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Its part in agreeing on a cluster.
    #[serde(flatten)]
    pub beacon: Beacon,
    /// Its host name.
    pub name: String,
    /// Where it takes nodes into its cluster.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it was sent to one node alone, which then knows where its sender is reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// Why a datagram tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is none of this protocol.
    Foreign,
    /// It is of another version of it.
    Version(u8),
    /// Its sender has another secret, or it was changed on its way.
    Secret,
}

/// What beacons are sealed and opened with.
pub struct Key(XChaCha20Poly1305);

impl Key {
    /// The key of a secret of at least 128 random bits, of which SHA-256 is enough of a derivation.
    pub fn of(secret: &Secret) -> Self {
        Self(XChaCha20Poly1305::new(&Digest::of_parts([b"chasi-bod beacon key".as_slice(), secret.reveal().as_bytes()]).0.into()))
    }

    /// A datagram with what is told; none if that is too long for one. No two may have one nonce; random ones of this length never do.
    pub fn seal(&self, told: &Told, nonce: [u8; NONCE]) -> Option<Vec<u8>> {
        let header = [MAGIC.as_slice(), &[VERSION]].concat();
        let text = serde_json::to_vec(told).ok()?;
        let inside = self.0.encrypt(&XNonce::from(nonce), Payload { msg: &text, aad: &header }).ok()?;
        Some([header.as_slice(), &nonce, &inside].concat()).filter(|datagram| datagram.len() <= LONGEST)
    }

    /// What a datagram tells.
    pub fn open(&self, datagram: &[u8]) -> Result<Told, Refusal> {
        let (header, rest) = datagram.split_at_checked(HEADER).filter(|(header, _)| header.starts_with(MAGIC)).ok_or(Refusal::Foreign)?;
        if header[MAGIC.len()] != VERSION {
            return Err(Refusal::Version(header[MAGIC.len()]));
        }
        let (nonce, inside) = rest.split_first_chunk::<NONCE>().ok_or(Refusal::Foreign)?;
        let text = self.0.decrypt(&XNonce::from(*nonce), Payload { msg: inside, aad: header }).map_err(|_| Refusal::Secret)?;
        serde_json::from_slice(&text).map_err(|_| Refusal::Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::super::election::{Ballot, NodeId, Stage, Votes};
    use super::*;

    fn key(text: &str) -> Key {
        Key::of(&Secret::parse(&format!("{text}-0123456789abcdefghijklmnopqrstuvwxyz")).unwrap())
    }

    fn told(name: &str) -> Told {
        let node = NodeId(u128::MAX);
        let cluster = Some(Digest([255; 32]));
        let ballot = Ballot { round: u64::MAX, node };
        let votes = Votes { promised: Some(ballot), accepted: cluster.map(|cluster| (ballot, cluster)), chosen: cluster, made: cluster };
        let beacon =
            Beacon { node, start: u64::MAX, run: u64::MAX, number: u64::MAX, expected: usize::MAX, votes, stage: Stage::Founding, ready: true };
        Told { beacon, name: name.into(), endpoints: vec![SocketAddr::from(([0xfd00; 8], u16::MAX)); 2], direct: true }
    }

    #[test]
    fn the_longest_beacon_fits_into_one_packet_and_comes_out_as_it_went_in() {
        let told = told(&"n".repeat(64));
        let datagram = key("a").seal(&told, [7; NONCE]).unwrap();
        assert_eq!(key("a").open(&datagram), Ok(told));
        assert!(key("a").seal(&self::told(&"n".repeat(1200)), [7; NONCE]).is_none());
        assert!(!datagram.windows(8).any(|part| part == b"nnnnnnnn"));
    }

    #[test]
    fn f4_a_wrong_secret_another_version_and_a_changed_beacon_are_told_apart() {
        let datagram = key("a").seal(&told("n"), [7; NONCE]).unwrap();
        assert_eq!(key("b").open(&datagram), Err(Refusal::Secret));
        for n in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[n] ^= 1;
            let expected = match n {
                0..4 => Refusal::Foreign,
                4 => Refusal::Version(VERSION ^ 1),
                _ => Refusal::Secret,
            };
            assert_eq!(key("a").open(&changed), Err(expected), "byte {n}");
            assert!(matches!(key("a").open(&datagram[..n]), Err(Refusal::Foreign | Refusal::Secret)), "{n} bytes");
        }
        assert_eq!(key("a").open(b"GET / HTTP/1.1\r\n\r\n"), Err(Refusal::Foreign));
    }
}
