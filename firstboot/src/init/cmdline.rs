//! The kernel command line, as far as `init` obeys it.
//!
//! | word | meaning |
//! |---|---|
//! | `roothash=<64 hex digits>` | root hash of the slot's dm-verity tree; from boot.cfg; needed |
//! | `chasi.slot=a\|b` | slot to start; from GRUB; `a` when absent |
//! | `chasi.trial=1` | this boot is a trial: on failure reboot, GRUB falls back; from GRUB |
//! | `chasi.wait=<seconds>` | how long to wait for the disk; 60 when absent |
//! | `chasi.live` | start from a medium, in memory; from a medium's menu |
//! | `iso-scan/filename=<path>` | the medium is this file of whatever file system; from another boot loader that starts media as files |
//! | `chasi.check` | compare a medium with its SHA256SUMS, then stop; from a medium's menu |
//! | `chasi.debug` | say each module and mount |

use std::time::Duration;

use layers::node::Slot;
use layers::units::Digest;
use layers::{Error, Result};

/// What the command line asks of `init`.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandLine {
    /// Root hash of the verity tree.
    pub roothash: Digest,
    /// Slot to start.
    pub slot: Slot,
    /// On failure reboot, so that GRUB falls back.
    pub trial: bool,
    /// How long to wait for the disk.
    pub wait: Duration,
    /// Where the image comes from.
    pub from: From,
    /// Where on its file system the medium is a file.
    pub iso: Option<String>,
    /// Say each module and mount.
    pub debug: bool,
}

/// Where the image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A slot of an installed disk.
    Disk,
    /// A medium, whose disk is unpacked into memory.
    Medium,
    /// A medium that is only to be checked.
    Check,
}

/// The value of `name=` in a command line; the last one counts, as in the kernel.
pub fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// True when the boot is a trial; readable even from a line that is wrong otherwise.
pub fn is_trial(line: &str) -> bool {
    value(line, "chasi.trial") == Some("1")
}

impl CommandLine {
    /// Reads the words that are ours; a wrong or missing one is named.
    pub fn parse(line: &str) -> Result<Self> {
        let wrong = |name: &str, why: String| Error::input(format!("reading `{name}=` of the kernel command line: {why}"));
        let roothash = value(line, "roothash").ok_or_else(|| wrong("roothash", "not given".into()).with_hint("start by the boot menu"))?;
        let roothash = roothash.parse().map_err(|why| wrong("roothash", why))?;
        let slot = value(line, "chasi.slot").unwrap_or("a");
        let slot = Slot::from_letter(slot).ok_or_else(|| wrong("chasi.slot", format!("`{slot}` is not a or b")))?;
        let wait = value(line, "chasi.wait").unwrap_or("60");
        let wait = wait.parse().map_err(|_| wrong("chasi.wait", format!("`{wait}` is not a number of seconds")))?;
        let has = |name: &str| line.split_whitespace().any(|w| w == name);
        let from = match (has("chasi.check"), has("chasi.live")) {
            (true, _) => From::Check,
            (_, true) => From::Medium,
            _ => From::Disk,
        };
        let iso = value(line, "iso-scan/filename").map(str::to_string);
        Ok(Self { roothash, slot, trial: is_trial(line), wait: Duration::from_secs(wait), from, iso, debug: has("chasi.debug") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_read_and_the_last_one_counts() {
        let hash = "ab".repeat(32);
        let line = CommandLine::parse(&format!("BOOT_IMAGE=/slot-a/vmlinuz ro chasi.slot=a roothash={hash} chasi.slot=b chasi.trial=1\n")).unwrap();
        assert_eq!((line.slot, line.trial, line.debug, line.roothash.hex()), (Slot::B, true, false, hash.clone()));
        assert_eq!((line.from, line.iso), (From::Disk, None));
        let line = CommandLine::parse(&format!("roothash={hash} chasi.live iso-scan/filename=/isos/a.iso")).unwrap();
        assert_eq!((line.from, line.iso.as_deref()), (From::Medium, Some("/isos/a.iso")));
        for (words, from) in [("chasi.live", From::Medium), ("chasi.check chasi.debug", From::Check), ("xchasi.live", From::Disk)] {
            assert_eq!(CommandLine::parse(&format!("roothash={hash} {words}")).unwrap().from, from);
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        let hash = format!("roothash={}", "0".repeat(64));
        let table = [("", "roothash"), ("roothash=12", "roothash"), ("chasi.slot=c", "chasi.slot"), ("chasi.wait=x", "chasi.wait")];
        for (words, name) in table {
            let line = if name == "roothash" { words.to_string() } else { format!("{hash} {words}") };
            let error = CommandLine::parse(&line).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}=`")), "{error}");
        }
    }
}
