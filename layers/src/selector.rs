//! Which disk: an [`expression`] over what a disk says of itself, such as `size >= 100 * GiB && bus == "nvme" && !removable`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::expression;

/// What a disk says of itself; each field is a variable of selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traits {
    /// Kernel name, such as `vda`.
    pub name: String,
    /// Device, such as `/dev/vda`.
    pub path: String,
    /// The device and all links to it below /dev/disk/.
    pub paths: Vec<String>,
    /// Size in bytes.
    pub size: i64,
    /// Bytes of a logical sector: 512 or 4096.
    pub sector: i64,
    /// It turns.
    pub rotational: bool,
    /// It, or what is in it, can be taken out.
    pub removable: bool,
    /// `nvme`, `sata`, `scsi`, `usb`, `virtio` or `mmc`; empty when it is none of these.
    pub bus: String,
    /// Model; empty when it has none, as virtio disks.
    pub model: String,
    /// Serial number; empty when it has none.
    pub serial: String,
    /// World-wide identifier; empty when it has none.
    pub wwid: String,
}

/// An expression that says of a disk whether it is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Selector(String);

impl TryFrom<String> for Selector {
    type Error = String;

    /// Takes an expression that can be evaluated for a disk; else says what is wrong with it.
    fn try_from(text: String) -> Result<Self, String> {
        expression::check(&text, &Traits::default())?;
        let selector = Self(text);
        selector.picks(&Traits::default()).map(|_| selector)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.0
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Selector {
    /// Whether the disk is meant; an expression that cannot be evaluated for this one is an error.
    pub fn picks(&self, disk: &Traits) -> Result<bool, String> {
        expression::holds(&self.0, disk)
    }

    /// The first condition of the expression that the disk does not meet; `None` when it is meant.
    pub fn unmet(&self, disk: &Traits) -> Result<Option<String>, String> {
        expression::unmet(&self.0, disk).map(|unmet| unmet.map(str::to_string))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Result<Selector, String> {
        Selector::try_from(text.to_string())
    }

    fn disk() -> Traits {
        Traits {
            name: "sda".into(),
            path: "/dev/sda".into(),
            paths: vec!["/dev/sda".into(), "/dev/disk/by-id/ata-QEMU_HARDDISK_QM1".into()],
            size: 250 << 30,
            sector: 512,
            rotational: true,
            bus: "sata".into(),
            model: "QEMU HARDDISK".into(),
            serial: "QM1".into(),
            ..Traits::default()
        }
    }

    #[test]
    fn a_disk_is_picked_by_all_that_it_says_of_itself() {
        for text in [
            "size >= 100 * GiB",
            "size > 200 * GB && size <= 1 * TB && sector == 512",
            "rotational && !removable",
            "bus == 'sata' && model.startsWith(\"QEMU\")",
            "serial in ['QM0', 'QM1']",
            "model.matches('^QEMU .*DISK$') && wwid == ''",
            "'/dev/disk/by-id/ata-QEMU_HARDDISK_QM1' in paths && name == 'sda'",
            "paths.exists(link, link.endsWith('_QM1'))",
            "bus == 'nvme' || path == '/dev/sda'",
        ] {
            assert_eq!(selector(text).unwrap().picks(&disk()), Ok(true), "{text}");
            assert_eq!(selector(text).unwrap().unmet(&disk()), Ok(None), "{text}");
        }
    }

    #[test]
    fn the_condition_that_a_disk_does_not_meet_is_told() {
        for (text, unmet) in [
            ("size > 1 * GiB && bus == 'nvme' && removable", "bus == 'nvme'"),
            ("!rotational", "!rotational"),
            ("model == 'a && b' && rotational", "model == 'a && b'"),
            ("(rotational && removable) && size > 0", "(rotational && removable) && size > 0"),
            ("removable || bus == 'usb' && rotational", "removable || bus == 'usb' && rotational"),
        ] {
            assert_eq!(selector(text).unwrap().unmet(&disk()), Ok(Some(unmet.into())), "{text}");
        }
    }

    #[test]
    fn a_wrong_expression_is_named_before_there_is_a_disk() {
        for (text, why) in [
            ("siz > 100 * GiB", "unknown variable `siz`, did you mean `size`?"),
            ("false && colour == 'red'", "unknown variable `colour`, "),
            ("size", "it is neither true nor false"),
            ("size > '100GiB'", "`size > '100GiB'`: "),
            ("size >", "`size >`: "),
            ("", "``: "),
        ] {
            let error = selector(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
