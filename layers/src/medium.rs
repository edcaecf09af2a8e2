//! What a medium carries, as the builder writes it and `init` reads it.
//!
//! The packed disk leaves out what the medium has as files already: kernel and initramfs, or the unified kernel image. `chasi/PLACES` says where they belong on the disk, a line each:
//!
//! ```text
//! <offset in bytes, decimal> <path on the medium>
//! ```

use std::fmt::Write as _;

use crate::{Error, Result};

/// The packed disk.
pub const DISK: &str = "chasi/disk.zst";
/// Where files belong on the disk.
pub const PLACES: &str = "chasi/PLACES";
/// Digests of the files, in the notation of sha256sum(1).
pub const SUMS: &str = "chasi/SHA256SUMS";
/// The kernel.
pub const KERNEL: &str = "boot/vmlinuz";
/// The initramfs.
pub const INITRD: &str = "boot/initrd";
/// Both of them in one program, for Secure Boot.
pub const UKI: &str = "boot/uki.efi";
/// GRUB's signature of that.
pub const UKI_SIGNATURE: &str = "boot/uki.efi.sig";

/// The text of [`PLACES`].
pub fn places_text<'a>(places: impl IntoIterator<Item = (u64, &'a str)>) -> String {
    places.into_iter().fold(String::new(), |mut text, (offset, path)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{offset} {path}");
        text
    })
}

/// Reads the text of [`PLACES`].
pub fn places(text: &str) -> Result<Vec<(u64, String)>> {
    let one = |line: &str| {
        let (offset, path) = line.split_once(' ')?;
        Some((offset.parse().ok()?, path.to_string()))
    };
    let odd = |line| Error::input(format!("reading {PLACES}: `{line}` is not an offset and a path"));
    text.lines().map(|line| one(line).ok_or_else(|| odd(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_were_written_and_odd_lines_are_named() {
        let text = places_text([(4096, KERNEL), (1 << 40, INITRD)]);
        assert_eq!(text, "4096 boot/vmlinuz\n1099511627776 boot/initrd\n");
        assert_eq!(places(&text).unwrap(), [(4096, KERNEL.to_string()), (1 << 40, INITRD.to_string())]);
        for odd in ["4096", "x boot/initrd", "-1 boot/initrd", " boot/initrd"] {
            assert!(places(odd).unwrap_err().to_string().contains(&format!("`{odd}` is not an offset and a path")));
        }
    }
}
