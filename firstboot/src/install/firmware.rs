//! The firmware's own boot menu (UEFI specification 2.10, chapter 3): an entry for the installed disk, first in the order.

use std::collections::BTreeSet;
use std::path::Path;

use efivar::VarManager;
use efivar::boot::{BootEntry, BootEntryAttributes, BootVariable, EFIHardDrive, EFIHardDriveType, FilePath, FilePathList};
use layers::node::partition;
use layers::{Context as _, Error, Fault, Result};

use super::say;
use crate::host::Host;
use crate::init::table::{self, SECTOR};

const VARIABLES: &str = "sys/firmware/efi/efivars";
/// The path that firmware without an entry takes, too.
const LOADER: &str = "\\EFI\\BOOT\\BOOTX64.EFI";
/// How a partition's identity is told (UEFI specification 2.10, table 10.49).
const GPT: u8 = 2;

/// What opens the firmware's variables.
pub type Variables = fn() -> Box<dyn VarManager>;

/// Whether the machine was started by UEFI.
pub fn is_uefi(host: &Host) -> bool {
    !host.names(VARIABLES).is_empty()
}

/// Makes the entry where the machine was started by UEFI, for a disk whose sectors have so many bytes.
pub fn register(host: &Host, variables: Variables, what: &str, disk: &Path, sector: u64) -> Result<()> {
    if !is_uefi(host) {
        return Ok(());
    }
    let drive = drive(disk, sector)?;
    let number = add(&mut *variables(), what, drive).fault(Fault::Environment, || "adding to the firmware's boot menu".into())?;
    say(&format!("the firmware starts it as Boot{number:04X}"));
    Ok(())
}

/// How the firmware is told of a disk's EFI system partition.
pub fn drive(disk: &Path, sector: u64) -> Result<EFIHardDrive> {
    let entries = table::read(disk, sector)?;
    let esp = entries.iter().find(|entry| entry.name == partition::ESP);
    let esp = esp.ok_or_else(|| Error::internal(format!("reading {}: it has no EFI system partition", disk.display())))?;
    Ok(EFIHardDrive {
        partition_number: esp.number,
        // Both in sectors of the disk.
        partition_start: esp.first * SECTOR / sector,
        partition_size: esp.sectors() * SECTOR / sector,
        partition_sig: table::guid(disk, sector, esp.number)?,
        format: GPT,
        sig_type: EFIHardDriveType::Gpt,
    })
}

/// Puts an entry first. The one of an earlier installation on the same partition is replaced.
fn add(variables: &mut dyn VarManager, what: &str, drive: EFIHardDrive) -> efivar::Result<u16> {
    // Firmware without any entry has no order yet.
    let mut order = variables.get_boot_order().unwrap_or_default();
    let is_same = |found: &BootVariable| found.entry.file_path_list.as_ref().is_some_and(|list| list.hard_drive == drive);
    let same = variables.get_boot_entries().into_iter().flatten().find_map(|(found, _)| found.ok().filter(is_same).map(|found| found.id));
    let taken: BTreeSet<u16> = variables.get_all_vars()?.filter_map(|variable| variable.boot_var_id()).collect();
    let number = same.or_else(|| (0..=u16::MAX).find(|number| !taken.contains(number))).unwrap_or_default();
    let file_path_list = Some(FilePathList { file_path: FilePath { path: LOADER.into() }, hard_drive: drive });
    let entry =
        BootEntry { attributes: BootEntryAttributes::LOAD_OPTION_ACTIVE, description: what.into(), file_path_list, optional_data: Vec::new() };
    variables.add_boot_entry(number, entry)?;
    order.retain(|known| *known != number);
    order.insert(0, number);
    variables.set_boot_order(order)?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use efivar::boot::{BootVarReader as _, BootVarWriter as _};
    use efivar::store::MemoryStore;
    use uuid::Uuid;

    use super::*;

    fn drive(number: u128) -> EFIHardDrive {
        EFIHardDrive {
            partition_number: 1,
            partition_start: 2048,
            partition_size: 4096,
            partition_sig: Uuid::from_u128(number),
            format: GPT,
            sig_type: EFIHardDriveType::Gpt,
        }
    }

    #[test]
    fn an_installed_disk_comes_first_and_has_one_entry() {
        let mut store = MemoryStore::new();
        assert_eq!(add(&mut store, "first 1.0.0", drive(1)).unwrap(), 0);
        assert_eq!(add(&mut store, "second 1.0.0", drive(2)).unwrap(), 1);
        assert_eq!(store.get_boot_order().unwrap(), [1, 0]);
        assert_eq!(add(&mut store, "first 2.0.0", drive(1)).unwrap(), 0);
        assert_eq!(store.get_boot_order().unwrap(), [0, 1]);
        let names: Vec<_> = store.get_boot_entries().unwrap().map(|(found, _)| found.unwrap().entry.description).collect();
        assert_eq!(names.len(), 2);
        assert!(names.contains(&"first 2.0.0".to_string()) && names.contains(&"second 1.0.0".to_string()), "{names:?}");
        // An entry that the order does not name keeps its number.
        store.set_boot_order(vec![1]).unwrap();
        assert_eq!(add(&mut store, "third 1.0.0", drive(3)).unwrap(), 2);
    }
}
