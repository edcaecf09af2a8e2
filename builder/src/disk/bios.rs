//! GRUB's BIOS boot: `boot.img` in the MBR, `core.img` in the BIOS boot partition, each told by sector number where the next part lies
//! (GRUB 2: grub-core/boot/i386/pc/{boot,diskboot}.S and util/setup.c).

use std::sync::Arc;

use layers::node::partition;
use layers::units::Bytes;
use layers::{Error, Result};

use super::gpt::{BootCode, SECTOR};
use super::layout::Layout;
use super::{Disk, ReadAt};

const BOOT_CODE: usize = 440;
/// Where boot.img keeps the first sector of core.img, 64 bits.
const KERNEL_SECTOR: usize = 0x5c;
/// A jump in boot.img that trusts the drive number of the BIOS; no-operations make it correct the number that some BIOSes get wrong on hard disks.
const DRIVE_CHECK: usize = 0x66;
const NOPS: [u8; 2] = [0x90, 0x90];
/// The last block list entry of core.img's first sector: start (64 bits), sectors (16 bits), segment to load to (16 bits).
const BLOCK_LIST: usize = SECTOR as usize - 12;
/// The second sector of core.img is loaded to 0x8200.
const SEGMENT: u16 = 0x820;

/// The MBR's boot code out of GRUB's `boot.img`, pointing to a core image at sector `core`.
pub fn boot_code(boot: &[u8], core: u64) -> Result<BootCode> {
    if boot.len() != SECTOR as usize || boot[510..] != [0x55, 0xaa] {
        return Err(Error::input(format!("reading GRUB's boot.img: {} bytes without the end mark of a boot sector", boot.len())));
    }
    let mut out = [0; BOOT_CODE];
    out.copy_from_slice(&boot[..BOOT_CODE]);
    out[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core.to_le_bytes());
    out[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&NOPS);
    Ok(out)
}

/// GRUB's `core.img` (made by grub-mkimage) for sector `at`: its first sector gets the block list of the others, the last one is filled up with zeros.
pub fn core_image(mut core: Vec<u8>, at: u64) -> Result<Vec<u8>> {
    let sectors = (core.len() as u64).div_ceil(SECTOR);
    let rest = u16::try_from(sectors.saturating_sub(1)).ok().filter(|rest| *rest > 0);
    let Some(rest) = rest else { return Err(Error::input(format!("reading GRUB's core.img: {} bytes are not one", core.len()))) };
    core.resize((sectors * SECTOR) as usize, 0);
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(at + 1).to_le_bytes());
    core[BLOCK_LIST + 8..BLOCK_LIST + 10].copy_from_slice(&rest.to_le_bytes());
    core[BLOCK_LIST + 10..BLOCK_LIST + 12].copy_from_slice(&SEGMENT.to_le_bytes());
    Ok(core)
}

/// Puts the core image into the BIOS boot partition and returns the boot code for the MBR.
pub fn put(layout: &Layout, boot: &[u8], core: Vec<u8>, disk: &mut Disk) -> Result<BootCode> {
    let bios = layout.partition(partition::BIOS)?;
    if core.len() as u64 > bios.size {
        let have = Bytes(bios.size);
        return Err(Error::input(format!("placing GRUB's core.img: it has {} bytes, the BIOS boot partition {have}", core.len())));
    }
    let sector = bios.offset / SECTOR;
    let core: Arc<dyn ReadAt> = Arc::new(core_image(core, sector)?);
    disk.put(bios.offset, core)?;
    boot_code(boot, sector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::profile;
    use layers::units::Seed;

    fn sector(end: [u8; 2]) -> Vec<u8> {
        let mut boot = vec![0x11; 512];
        boot[510..].copy_from_slice(&end);
        boot
    }

    #[test]
    fn sector_numbers_are_patched_where_grub_reads_them() {
        let code = boot_code(&sector([0x55, 0xaa]), 0x0102_0304_0506).unwrap();
        assert_eq!(code[0x5c..0x64], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!((&code[0x66..0x68], code[0x5b], code[0x68]), ([0x90, 0x90].as_slice(), 0x11, 0x11));
        let core = core_image(vec![0x22; 1300], 4096).unwrap();
        assert_eq!((core.len(), &core[500..512]), (1536, [1, 16, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 8].as_slice()));
        assert_eq!((core[499], core[512], core[1299], core[1300]), (0x22, 0x22, 0x22, 0));
    }

    #[test]
    fn what_is_not_grub_or_does_not_fit_is_refused() {
        assert!(boot_code(&sector([0, 0]), 1).is_err() && boot_code(&[0; 300], 1).is_err());
        assert!(core_image(Vec::new(), 1).is_err() && core_image(vec![0; 512], 1).is_err());
        let layout = Layout::new(&profile::Disk::default(), Bytes(0), Bytes(0), &Seed::new("test")).unwrap();
        let mut disk = Disk::new(layout.size);
        let error = put(&layout, &sector([0x55, 0xaa]), vec![0; (1 << 20) + 1], &mut disk).unwrap_err().to_string();
        assert!(error.contains("1048577 bytes") && error.contains("1MiB"), "{error}");
        assert!(put(&layout, &sector([0x55, 0xaa]), vec![0; 1 << 20], &mut disk).is_ok());
    }
}
