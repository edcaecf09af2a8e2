//! A unified kernel image (UAPI.5): systemd's stub with kernel, initramfs and command lines as sections, one program that a single signature covers.
//!
//! ```text
//! stub | .osrel .initrd .linux | .profile .cmdline | .profile .cmdline | ...
//! ```
//!
//! The word `@N` on its command line chooses the profile N; under Secure Boot the stub heeds no other word.

use layers::{Error, Result};

use super::{Pe, SECTION};
use crate::disk::ReadAt;

/// Initialised data that can be read.
const FLAGS: u32 = 0x4000_0040;
/// Most that is read of the headers and of a text, in bytes.
const LARGEST_PART: u64 = 64 << 10;

/// What goes into a unified kernel image.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// `linuxx64.efi.stub`.
    pub stub: Vec<u8>,
    /// Text in the notation of os-release(5).
    pub os_release: String,
    /// The kernel.
    pub kernel: &'a [u8],
    /// The initramfs.
    pub initrd: &'a [u8],
    /// Name and command line of each profile, in order.
    pub profiles: Vec<(String, String)>,
}

/// Puts the parts together.
pub fn compose(parts: Parts<'_>) -> Result<Pe> {
    let Parts { stub, os_release, kernel, initrd, profiles } = parts;
    let texts: Vec<_> = profiles.iter().flat_map(|(id, line)| [(".profile", format!("ID={id}\n")), (".cmdline", format!("{line}\0"))]).collect();
    let fixed = [(".osrel", os_release.as_bytes()), (".initrd", initrd), (".linux", kernel)];
    append(Pe::read(stub)?, &fixed.into_iter().chain(texts.iter().map(|(name, text)| (*name, text.as_bytes()))).collect::<Vec<_>>())
}

fn append(mut pe: Pe, sections: &[(&str, &[u8])]) -> Result<Pe> {
    let (alignment, in_file) = (pe.u32(pe.optional + 32)?, pe.u32(pe.optional + 36)? as usize);
    let found = pe.sections()?;
    let table = pe.optional + pe.optional_size;
    let (mut at, room) = (table + found.len() * SECTION, found.iter().map(|s| s.offset).filter(|offset| *offset > 0).min().unwrap_or_default());
    let odd = |why: String| Error::input(format!("making a unified kernel image: {why}"));
    if alignment == 0 || in_file == 0 || at + sections.len() * SECTION > room as usize {
        return Err(odd(format!("the stub has no room for the headers of {} more sections", sections.len())));
    }
    let too_large = || odd("it would have more than 4GiB".into());
    let mut address = found.iter().map(|s| u64::from(s.address) + u64::from(s.size)).max().unwrap_or_default().next_multiple_of(alignment.into());
    for (name, bytes) in sections {
        pe.bytes.resize(pe.bytes.len().next_multiple_of(in_file), 0);
        let offset = pe.bytes.len();
        pe.bytes.extend_from_slice(bytes);
        pe.bytes.resize(pe.bytes.len().next_multiple_of(in_file), 0);
        let word = |value: u64| u32::try_from(value).map(u32::to_le_bytes).map_err(|_| too_large());
        let mut header = [0; SECTION];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let words = [(8, bytes.len() as u64), (12, address), (16, (pe.bytes.len() - offset) as u64), (20, offset as u64), (36, FLAGS.into())];
        for (field, value) in words {
            header[field..field + 4].copy_from_slice(&word(value)?);
        }
        pe.set(at, &header);
        at += SECTION;
        address = (address + bytes.len() as u64).next_multiple_of(alignment.into());
    }
    let count = u16::try_from(found.len() + sections.len()).map_err(|_| odd("it would have more than 65535 sections".into()))?;
    pe.set(pe.optional - 18, &count.to_le_bytes());
    let size = u32::try_from(address).map_err(|_| too_large())?;
    pe.set(pe.optional + 56, &size.to_le_bytes());
    Ok(pe)
}

/// Name and command line of each profile of an image that [`compose`] has made; kernel and initramfs are not read.
pub fn profiles(image: &dyn ReadAt) -> Result<Vec<(String, String)>> {
    let part = |offset: u64, size: u64| {
        let mut bytes = vec![0; size.min(LARGEST_PART) as usize];
        image.read_at(&mut bytes, offset).map(|()| bytes)
    };
    let (mut out, mut id) = (Vec::new(), String::new());
    for section in Pe::read(part(0, image.len())?)?.sections()? {
        let text = || {
            let bytes = part(section.offset.into(), section.size.into())?;
            Ok::<_, Error>(String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_string())
        };
        match &section.name {
            b".profile" => id = text()?.trim_start_matches("ID=").into(),
            b".cmdline" => out.push((std::mem::take(&mut id), text()?)),
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The headers of a program without sections, with room for those of three.
    fn stub() -> Vec<u8> {
        let mut bytes = vec![0; 0x200 + 3 * SECTION];
        let fields: [(usize, &[u8]); 7] = [
            (0, b"MZ"),
            (0x3c, &[0x40]),
            (0x40, b"PE\0\0"),
            (0x54, &[0xf0, 0]),
            (0x58, &[0x0b, 0x02]),
            (0x58 + 32, &[0, 0x10, 0, 0, 0, 2]),
            (0x58 + 108, &[16]),
        ];
        fields.into_iter().for_each(|(at, field)| bytes[at..at + field.len()].copy_from_slice(field));
        bytes
    }

    #[test]
    fn a_program_that_is_none_or_has_no_room_is_named() {
        for (at, byte, wanted) in [(0, b'X', "`MZ`"), (0x40, b'X', "no PE header"), (0x58, 0, "PE32+"), (0x58 + 108, 0, "no place for signatures")] {
            let mut bytes = stub();
            bytes[at] = byte;
            assert!(Pe::read(bytes).unwrap_err().to_string().contains(wanted));
        }
        assert!(Pe::read(stub()[..0x50].to_vec()).unwrap_err().to_string().contains("ends within its headers"));
        let parts = Parts { stub: stub(), os_release: String::new(), kernel: b"", initrd: b"", profiles: Vec::new() };
        assert!(compose(parts).unwrap_err().to_string().contains("no room for the headers of 3 more sections"));
    }
}
