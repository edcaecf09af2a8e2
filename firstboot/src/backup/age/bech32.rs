//! Bech32 (BIP 173) without its limit of 90 characters: the form of age's keys.

const DIGITS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

fn checksum(prefix: &str, values: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let expanded = prefix.bytes().map(|byte| byte >> 5).chain([0]).chain(prefix.bytes().map(|byte| byte & 31));
    expanded.chain(values).fold(1, |sum, value| {
        let top = sum >> 25;
        let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        GENERATOR.iter().enumerate().filter(|(n, _)| top >> n & 1 == 1).fold(next, |sum, (_, generator)| sum ^ generator)
    })
}

/// Regroups bits; nothing when what is left over at the end is not padding.
fn regroup(values: impl Iterator<Item = u8>, from: u32, to: u32, pad: bool) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0, 0_u32);
    for value in values {
        held = (held << from | u32::from(value)) & 0xfff;
        bits += from;
        while bits >= to {
            bits -= to;
            out.push((held >> bits & ((1 << to) - 1)) as u8);
        }
    }
    let rest = held & ((1 << bits) - 1);
    match pad {
        true if bits > 0 => out.push((rest << (to - bits)) as u8),
        false if bits >= from || rest != 0 => return None,
        _ => {}
    }
    Some(out)
}

/// In lower case.
pub fn encode(prefix: &str, bytes: &[u8]) -> String {
    let values = regroup(bytes.iter().copied(), 8, 5, true).unwrap_or_default();
    let sum = checksum(prefix, values.iter().copied().chain([0; 6])) ^ 1;
    let sum = (0..6).map(|n| (sum >> (5 * (5 - n)) & 31) as u8);
    let digits: String = values.iter().copied().chain(sum).map(|value| char::from(DIGITS[usize::from(value)])).collect();
    format!("{prefix}1{digits}")
}

/// The bytes of a text with this prefix in one case; nothing when it is another or damaged.
pub fn decode(prefix: &str, text: &str) -> Option<Vec<u8>> {
    let lower = text.to_ascii_lowercase();
    if text != lower && text != text.to_ascii_uppercase() {
        return None;
    }
    let digits = lower.strip_prefix(prefix)?.strip_prefix('1')?;
    let value = |digit: u8| DIGITS.iter().position(|known| *known == digit).and_then(|at| u8::try_from(at).ok());
    let values: Vec<u8> = digits.bytes().map(value).collect::<Option<_>>()?;
    let length = values.len().checked_sub(6)?;
    if checksum(prefix, values.iter().copied()) != 1 {
        return None;
    }
    regroup(values[..length].iter().copied(), 5, 8, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_examples_are_read_and_any_changed_character_is_found() {
        // BIP 173, "Test vectors": valid ones.
        assert_eq!(decode("a", "A12UEL5L"), Some(vec![]));
        let all = "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw";
        assert_eq!(decode("abcdef", all).map(|bytes| encode("abcdef", &bytes)), Some(all.into()));
        // Mixed case, and one with another checksum.
        assert_eq!((decode("a", "a12uEL5L"), decode("a", "a12uel5m")), (None, None));
        let text = encode("age", &[7; 32]);
        for at in 4..text.len() {
            let other = if &text[at..=at] == "q" { "p" } else { "q" };
            assert_eq!(decode("age", &format!("{}{other}{}", &text[..at], &text[at + 1..])), None, "{at}");
        }
    }
}
