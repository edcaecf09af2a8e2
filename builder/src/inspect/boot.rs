//! What starts a disk: boot code, loaders and kernels, told by their own bytes (Linux: Documentation/arch/x86/boot.rst; UAPI: unified kernel image).

use layers::Result;
use layers::units::Digest;
use serde::Serialize;

use crate::disk::{ReadAt, is_zero, le16, le32};
use crate::fs::fat;

/// Bytes of a file in which a loader's name is looked for; larger files are kernels and initramfs.
const LOADER_MAX: u64 = 8 << 20;
/// Bytes that hold a kernel's release, whose place has 16 bits, and the sections' table of an EFI program.
const HEAD: usize = 68 << 10;
/// What systemd-boot writes before its version.
const SYSTEMD_BOOT: &[u8] = b"#### LoaderInfo: ";

/// A loader or kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Starter {
    /// Path on the EFI system partition, or `MBR`.
    pub place: String,
    /// What it is.
    pub kind: StarterKind,
    /// Release of a kernel, or name of a loader, with the version where it says one.
    pub name: String,
}

/// What a starter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StarterKind {
    /// Starts kernels.
    Loader,
    /// A Linux kernel.
    Kernel,
}

/// The 440 bytes of a disk that a BIOS starts: whose they are, and their digest; none when they are empty.
pub fn boot_code(disk: &dyn ReadAt) -> Result<Option<(Starter, Digest)>> {
    let mut code = [0; 440];
    disk.read_at(&mut code, 0)?;
    let name = if memchr::memmem::find(&code, b"GRUB ").is_some() { "GRUB" } else { "unknown boot code" };
    let starter = Starter { place: "MBR".into(), kind: StarterKind::Loader, name: name.into() };
    Ok((!is_zero(&code)).then(|| (starter, Digest::of(&code))))
}

/// What a file of an EFI system partition starts; none when it is neither loader nor kernel.
pub fn starter(esp: &dyn ReadAt, file: &fat::Listed) -> Result<Option<Starter>> {
    let Some(size) = file.size else { return Ok(None) };
    let mut head = vec![0; HEAD];
    let length = fat::read_at(esp, &file.path, &mut head, 0)?;
    head.truncate(length);
    let is_program = head.starts_with(b"MZ");
    let found = match kernel(&head) {
        Some(release) => Some((StarterKind::Kernel, release)),
        None if is_program => match unified(esp, &file.path, &head)? {
            Some(release) => Some((StarterKind::Kernel, release)),
            None if size <= LOADER_MAX => Some((StarterKind::Loader, loader(&fat::read(esp, &file.path)?))),
            None => None,
        },
        None => None,
    };
    Ok(found.map(|(kind, name)| Starter { place: file.path.clone(), kind, name }))
}

/// The release in the header of a bzImage.
fn kernel(head: &[u8]) -> Option<String> {
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    word(head.get(usize::from(le16(head, 0x20e)) + 0x200..)?)
}

/// The release in the section `.uname` of a kernel, command line and initramfs in one EFI program.
fn unified(esp: &dyn ReadAt, path: &str, head: &[u8]) -> Result<Option<String>> {
    let Some(place) = section(head, b".uname\0\0") else { return Ok(None) };
    let mut text = [0; 256];
    let length = fat::read_at(esp, path, &mut text, place)?;
    Ok(word(&text[..length]))
}

/// Where a section of a PE file begins in it.
fn section(head: &[u8], name: &[u8; 8]) -> Option<u64> {
    let at = le32(head.get(..64)?, 60) as usize;
    let header = head.get(at..at.checked_add(24)?).filter(|h| h.starts_with(b"PE\0\0"))?;
    let table = head.get(at + 24 + usize::from(le16(header, 20))..)?;
    let mut sections = table.as_chunks::<40>().0.iter().take(usize::from(le16(header, 6)));
    sections.find(|s| s.starts_with(name)).map(|s| u64::from(le32(s, 20)))
}

fn loader(program: &[u8]) -> String {
    if let Some(at) = memchr::memmem::find(program, SYSTEMD_BOOT) {
        let rest = &program[at + SYSTEMD_BOOT.len()..];
        return String::from_utf8_lossy(&rest[..rest.iter().take(60).position(|b| matches!(b, b'#' | 0)).unwrap_or(0)]).trim().to_string();
    }
    let is_grub = memchr::memmem::find(program, b"GRUB").is_some();
    if is_grub { "GRUB" } else { "EFI program" }.to_string()
}

/// Bytes up to the first blank, at most 128.
fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(128).position(|b| b.is_ascii_whitespace() || *b == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_and_a_unified_one_tell_their_release_and_odd_headers_nothing() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30f].copy_from_slice(b"6.12.1-amd64 (x");
        assert_eq!(kernel(&image).as_deref(), Some("6.12.1-amd64"));
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!((kernel(&image), kernel(&image[..0x204]), kernel(b"MZ")), (None, None, None));
        let mut program = vec![0; 0x200];
        program[60..64].copy_from_slice(&0x80_u32.to_le_bytes());
        program[0x80..0x84].copy_from_slice(b"PE\0\0");
        program[0x86] = 2;
        program[0x94] = 16;
        let second = 0x80 + 24 + 16 + 40;
        program[second..second + 6].copy_from_slice(b".uname");
        program[second + 20..second + 24].copy_from_slice(&0x1234_u32.to_le_bytes());
        assert_eq!(section(&program, b".uname\0\0"), Some(0x1234));
        program[60..64].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(section(&program, b".uname\0\0"), None);
    }

    #[test]
    fn loaders_are_told_by_their_own_words() {
        assert_eq!(loader(b"...#### LoaderInfo: systemd-boot 257.7-1 ####\0"), "systemd-boot 257.7-1");
        assert_eq!((loader(b"Welcome to GRUB!"), loader(b"MZ")), ("GRUB".into(), "EFI program".into()));
    }
}
