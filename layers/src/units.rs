//! Newtypes for what would otherwise be bare numbers and strings: byte counts, digests, the seed that all identifiers derive from.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A count of bytes. Written as `512MiB`, `4GiB`, `1.5GiB` or a plain number of bytes; units are powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Bytes {
    /// A count given in mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The smallest multiple of `unit` that is not below this count; `unit` must not be zero.
    pub fn round_up(self, unit: u64) -> Self {
        Self(self.0.div_ceil(unit) * unit)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, n)| self.0 >= *n) {
            Some((unit, n)) if self.0.is_multiple_of(*n) => write!(f, "{}{unit}", self.0 / n),
            Some((unit, n)) => write!(f, "{:.1}{unit}", self.0 as f64 / *n as f64),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(unit, n)| text.strip_suffix(unit).map(|rest| (rest.trim(), *n)))
            .unwrap_or((text.strip_suffix('B').unwrap_or(text), 1));
        let whole = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
        whole.or_else(|| fraction(number, unit)).map(Self).ok_or_else(|| format!("`{text}` is not a size such as 512MiB or 4GiB"))
    }
}

fn fraction(number: &str, unit: u64) -> Option<u64> {
    let value = number.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0 && unit > 1)? * unit as f64;
    (value < u64::MAX as f64).then_some(value as u64)
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Number(n) => Ok(Self(n)),
            Form::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for Bytes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The profile's checker parses texts of this format; editors see the pattern.
        json_schema!({ "type": ["string", "integer"], "format": "bytes", "minimum": 0, "pattern": "^ *[0-9]+([.][0-9]+)? *([KMGT]iB|B)? *$" })
    }
}

/// A SHA-256 digest, printed as `sha256:<64 hex digits>` and parsed with or without the prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a byte string.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of several byte strings, each preceded by its length so that no two lists collide.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The digest of all that is still to be read.
    pub fn of_reader(mut reader: impl Read) -> std::io::Result<Self> {
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Self(hasher.finalize().into())),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// The 64 hexadecimal digits without prefix.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut out = [0; 32];
        hex::decode_to_slice(digits, &mut out).map_err(|_| format!("`{text}` is not a sha256 digest of 64 hex digits"))?;
        Ok(Self(out))
    }
}

impl JsonSchema for Digest {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(sha256:)?[0-9a-f]{64}$" })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where every UUID, salt and serial of an image comes from, so that equal inputs give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed(Digest);

impl Seed {
    /// A seed made from any text, usually the profile's name.
    pub fn new(text: &str) -> Self {
        Self(Digest::of_parts([b"chasi-bod seed".as_slice(), text.as_bytes()]))
    }

    /// 32 bytes that belong to `purpose` alone.
    pub fn bytes(&self, purpose: &str) -> [u8; 32] {
        Digest::of_parts([self.0.0.as_slice(), purpose.as_bytes()]).0
    }

    /// A version-4-shaped UUID that belongs to `purpose` alone (RFC 9562).
    pub fn uuid(&self, purpose: &str) -> uuid::Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.bytes(purpose)[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        let table = [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("1.5GiB", 3 << 29), ("4096", 4096), ("12B", 12), ("2 KiB", 2048)];
        for (text, bytes) in table {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        assert_eq!(Bytes(512 << 20).to_string(), "512MiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5GiB");
        for wrong in ["", "GiB", "-1", "1.5", "4GB", "99999999999TiB", "nanGiB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_seed_gives_each_purpose_its_own_uuid() {
        let seed = Seed::new("minimal");
        assert_eq!(seed.uuid("disk"), Seed::new("minimal").uuid("disk"));
        assert_ne!(seed.uuid("disk"), seed.uuid("esp"));
        assert_ne!(seed.uuid("disk"), Seed::new("other").uuid("disk"));
        assert_eq!(seed.uuid("disk").get_version_num(), 4);
    }

    #[test]
    fn digests_read_with_and_without_prefix() {
        let digest = Digest::of(b"");
        assert_eq!(digest.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.hex().parse::<Digest>().unwrap(), digest);
        assert!("sha256:12".parse::<Digest>().is_err());
    }
}
