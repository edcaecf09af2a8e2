//! Where each partition of an image's disk lies, decided before anything is built.

use layers::node::partition as part;
use layers::profile;
use layers::units::{Bytes, Seed};
use layers::{Error, Result};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const HASHES_PER_BLOCK: u64 = BLOCK / 32;
const LEAST_SLOT: u64 = 4 << 30;
const LEAST_HEADROOM: u64 = 25;

/// A partition of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Name in the partition table, one of [`layers::node::partition`].
    pub name: &'static str,
    /// Type GUID.
    pub kind: &'static str,
    /// The partition's own GUID.
    pub uuid: Uuid,
    /// First byte on the disk, a multiple of 1 MiB.
    pub offset: u64,
    /// Size in bytes, a multiple of 1 MiB.
    pub size: u64,
}

/// The disk: `esp`, `bios`, slot A, slot B; the space behind them is left for `state`, which the node makes on its first boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the disk in bytes.
    pub size: u64,
    /// GUID of the disk.
    pub uuid: Uuid,
    /// Partitions in disk order.
    pub partitions: Vec<Partition>,
    /// Size of the root that slot A holds.
    pub root: Bytes,
    /// Size of one root slot.
    pub slot: Bytes,
}

impl Layout {
    /// Lays out the disk of a profile for a root and its verity tree, given in bytes (0 when they are not built yet, which checks the profile's own
    /// numbers). A disk that cannot hold everything is an error of the user's input that says what is needed and what was given.
    pub fn new(disk: &profile::Disk, root: Bytes, verity: Bytes, seed: &Seed) -> Result<Self> {
        let slot = slot_size(disk, root)?;
        let tree = verity_size(slot);
        if verity > tree {
            return Err(Error::internal(format!("laying out the disk: the verity tree has {verity}, its partition {tree}")));
        }
        let sizes = [
            (part::ESP, part::ESP_TYPE, disk.esp_size.round_up(MIB)),
            (part::BIOS, part::BIOS_TYPE, Bytes(MIB)),
            (part::ROOT_A, part::ROOT_TYPE, slot),
            (part::VERITY_A, part::VERITY_TYPE, tree),
            (part::ROOT_B, part::ROOT_TYPE, slot),
            (part::VERITY_B, part::VERITY_TYPE, tree),
        ];
        let mut offset = MIB;
        let mut partitions = Vec::new();
        for (name, kind, size) in sizes {
            let uuid = seed.uuid(&format!("partition {name}"));
            partitions.push(Partition { name, kind, uuid, offset, size: size.0 });
            offset = offset.checked_add(size.0).ok_or_else(|| Error::input("laying out the disk: the sizes are beyond all disks"))?;
        }
        check_size(disk, offset, slot, tree)?;
        Ok(Self { size: disk.size.0, uuid: seed.uuid("disk"), partitions, root, slot })
    }

    /// The partition of a name.
    pub fn partition(&self, name: &str) -> Result<&Partition> {
        self.partitions.iter().find(|p| p.name == name).ok_or_else(|| Error::internal(format!("looking for partition {name}: the layout has none")))
    }

    /// How many percent of the slot are free for later, larger versions.
    pub fn headroom(&self) -> u64 {
        (self.slot.0 - self.root.0) * 100 / self.slot.0
    }

    /// What to tell the user when less than a quarter of the slot is free.
    pub fn warning(&self) -> Option<String> {
        (self.headroom() < LEAST_HEADROOM).then(|| {
            format!(
                "the root fills {} of its {} slot ({} % free): a later version that outgrows the slot cannot be installed as an update; raise disk.slotSize",
                self.root,
                self.slot,
                self.headroom()
            )
        })
    }
}

fn slot_size(disk: &profile::Disk, root: Bytes) -> Result<Bytes> {
    let slot = match disk.slot_size {
        Some(slot) => slot.0.checked_next_multiple_of(MIB),
        None => root.0.checked_mul(2).and_then(|double| double.checked_next_multiple_of(MIB)).map(|double| double.max(LEAST_SLOT)),
    };
    let slot = slot.ok_or_else(|| Error::input("laying out the disk: disk.slotSize is beyond all disks"))?;
    if slot < root.0 || slot == 0 {
        return Err(Error::input(format!("laying out the disk: disk.slotSize is {}, the root needs {root}", Bytes(slot)))
            .with_hint("leave disk.slotSize out, or give at least twice the root's size"));
    }
    Ok(Bytes(slot))
}

/// Size of a verity partition for a data device of `data` bytes: superblock and all levels of the tree, in whole MiB (dm-verity on-disk format 1, SHA-256).
pub fn verity_size(data: Bytes) -> Bytes {
    let mut blocks = 1;
    let mut level = data.0.div_ceil(BLOCK);
    while level > 1 {
        level = level.div_ceil(HASHES_PER_BLOCK);
        blocks += level;
    }
    Bytes(blocks * BLOCK).round_up(MIB)
}

/// Row A8 of the fault list: the last MiB is the backup partition table's.
fn check_size(disk: &profile::Disk, end: u64, slot: Bytes, tree: Bytes) -> Result<()> {
    let needed = end.saturating_add(disk.state_size.0).saturating_add(MIB);
    if disk.size.0 >= needed && disk.size.0.is_multiple_of(MIB) {
        return Ok(());
    }
    if disk.size.0 >= needed {
        return Err(Error::input(format!("laying out the disk: disk.size is {} bytes, not a whole number of MiB", disk.size.0)));
    }
    Err(Error::input(format!(
        "laying out the disk: disk.size is {}, needed are {} ({} bytes): esp {} + bios 1MiB + 2 slots of {slot} + 2 verity trees of {tree} + state {} + 2MiB",
        disk.size,
        Bytes(needed).round_up(MIB),
        Bytes(needed).round_up(MIB).0,
        disk.esp_size,
        disk.state_size
    ))
    .with_hint("raise disk.size, or lower disk.slotSize or disk.stateSize"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(disk: &profile::Disk, root: u64) -> Result<Layout> {
        Layout::new(disk, Bytes(root), Bytes(0), &Seed::new("test"))
    }

    #[test]
    fn partitions_follow_one_another_on_mebibytes() {
        let layout = layout(&profile::Disk::default(), 450 << 20).unwrap();
        let names: Vec<_> = layout.partitions.iter().map(|p| p.name).collect();
        assert_eq!(names, ["esp", "bios", "root-a", "verity-a", "root-b", "verity-b"]);
        let mut next = MIB;
        for p in &layout.partitions {
            assert_eq!((p.offset, p.size % MIB), (next, 0), "{}", p.name);
            next += p.size;
        }
        assert!(next + profile::Disk::default().state_size.0 + MIB <= layout.size);
        assert_eq!((layout.slot, layout.headroom(), layout.warning()), (Bytes(4 << 30), 89, None));
        let uuids: std::collections::BTreeSet<_> = layout.partitions.iter().map(|p| p.uuid).chain([layout.uuid]).collect();
        assert_eq!(uuids.len(), 7);
    }

    #[test]
    fn a_big_root_doubles_the_slot_and_a_tight_slot_warns() {
        let disk = profile::Disk { size: Bytes(64 << 30), ..profile::Disk::default() };
        assert_eq!(layout(&disk, 3 << 30).unwrap().slot, Bytes(6 << 30));
        let tight = profile::Disk { slot_size: Some(Bytes(1 << 30)), ..profile::Disk::default() };
        let warning = layout(&tight, 800 << 20).unwrap().warning().unwrap();
        assert!(warning.contains("800MiB of its 1GiB slot (21 % free)"), "{warning}");
        let error = layout(&tight, 2 << 30).unwrap_err().to_string();
        assert!(error.contains("1GiB") && error.contains("2GiB"), "{error}");
    }

    #[test]
    fn a8_small_disk_says_needed_and_given() {
        let disk = profile::Disk { size: Bytes(10 << 30), ..profile::Disk::default() };
        let error = layout(&disk, 0).unwrap_err();
        assert_eq!(error.fault(), layers::Fault::Input);
        let text = error.to_string();
        let needed = (1 + 512 + 1 + 2 * 4096 + 2 * 33 + 2048 + 1) << 20;
        assert!(text.contains("disk.size is 10GiB") && text.contains(&format!("({needed} bytes)")) && text.contains("state 2GiB"), "{text}");
        let exact = profile::Disk { size: Bytes(needed), ..profile::Disk::default() };
        assert!(layout(&exact, 0).is_ok());
        let below = profile::Disk { size: Bytes(needed - 1), ..profile::Disk::default() };
        assert!(layout(&below, 0).is_err());
        for odd in [profile::Disk { slot_size: Some(Bytes(u64::MAX)), ..disk.clone() }, profile::Disk { slot_size: Some(Bytes(0)), ..disk.clone() }] {
            assert_eq!(layout(&odd, 0).unwrap_err().fault(), layers::Fault::Input);
        }
    }

    #[test]
    fn the_verity_partition_holds_what_veritysetup_makes() {
        let dir = tempfile::tempdir().unwrap();
        for mib in [1, 129, 600] {
            let (data, hash) = (dir.path().join("data"), dir.path().join("hash"));
            std::fs::File::create(&data).unwrap().set_len(mib << 20).unwrap();
            let _ = std::fs::remove_file(&hash);
            crate::exec::run(std::process::Command::new("veritysetup").arg("format").args([&data, &hash])).unwrap();
            let made = std::fs::metadata(&hash).unwrap().len();
            assert_eq!(Bytes(made).round_up(MIB), verity_size(Bytes(mib << 20)), "{mib} MiB");
        }
    }
}
