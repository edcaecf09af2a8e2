//! Writes the medium.

use std::fs::File;
use std::sync::Arc;

use hadris_fs::{Content, DateTime, Node, SetAttr, Tree, host};
use hadris_iso::{AppendedPartition, BootEntry, BootInfo, ElTorito, Hybrid, IsoId, IsoLevel, IsoOptions};
use layers::medium::{DISK, PLACES, SUMS, places_text};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Fault, Result};

use super::{BootFile, ESP, Start};
use crate::disk::file::FileAt;
use crate::disk::{ReadAt, sha256};
use crate::emit::frames::{Table, Writer, compress, packer};
use crate::emit::{Machine, put};
use crate::fs::device::Device;
use crate::fs::fat;

/// Bytes of the MBR that are code.
const BOOT_CODE: usize = 440;
/// Where GRUB's boot sector has the place of the rest of GRUB, in sectors of 512 bytes.
const REST: u64 = 432;
/// What the crate puts there is where the BIOS image begins; GRUB's own first sector is four behind that.
const BEHIND: u64 = 4;
const BIOS: &str = "boot/grub/eltorito.img";
/// The menu for boot loaders that have the medium as a file.
const LOOPBACK: (&str, &[u8]) = ("boot/grub/loopback.cfg", b"source /boot/grub/grub.cfg\n");

/// Writes a medium with the disk to an empty file.
pub fn write(disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()> {
    let start = machine.start.as_ref().ok_or_else(|| Error::internal("writing a medium: there is nothing to start from it"))?;
    let rest =
        tempfile::NamedTempFile::new_in(&start.scratch).fault(Fault::Environment, || format!("creating a file in {}", start.scratch.display()))?;
    without_files(start, disk, rest.as_file())?;
    let digest = sha256(&FileAt::open(rest.path())?)?;

    let time = DateTime::from_unix_seconds(machine.epoch).map_err(|e| Error::input(format!("setting file times to {}: {e}", machine.epoch)))?;
    let partition = fat_partition(start, machine)?;
    let mut esp = vec![0; partition.len() as usize];
    partition.read_at(&mut esp, 0)?;
    let mut tree = Tree::new();
    let mut sums = format!("{}  {DISK}\n", digest.hex());
    let attributes = SetAttr::new().with_accessed(time).with_created(time).with_modified(time);
    let mut insert = |path: &str, content: Content| {
        let node = Node::file(content).with_attrs(attributes);
        tree.insert(path, node).map_err(|e| Error::internal(format!("placing {path} on the medium: {e}")))
    };
    let mut places: Vec<_> = start.files.iter().filter_map(|file| Some((file.on_disk?, file.path))).collect();
    places.sort_unstable();
    let places = places_text(places).into_bytes();
    let menu = start.menu.clone().into_bytes();
    let files = start.files.iter().map(|file| (file.path, file.content.as_slice()));
    for (path, bytes) in files.chain([("boot/grub/grub.cfg", menu.as_slice()), LOOPBACK, (PLACES, &places)]) {
        sums += &format!("{}  {path}\n", Digest::of(bytes).hex());
        insert(path, Content::bytes(bytes.to_vec()))?;
    }
    insert(BIOS, Content::bytes(start.bios.clone()))?;
    insert(DISK, host::file(rest.path()).fault(Fault::Environment, || "reading the packed disk".into())?)?;
    insert(SUMS, Content::bytes(sums.into_bytes()))?;
    let id = format!("chasi/{}", start.root_hash.hex());
    insert(&id, Content::empty())?;
    if let Some(signature) = &start.id_signature {
        insert(&format!("{id}.sig"), Content::bytes(signature.clone()))?;
    }

    let boot = ElTorito::new()
        .with_entry(BootEntry::bios(BIOS).with_load_size(4).with_boot_info(BootInfo::Grub2))
        .with_entry(BootEntry::uefi_appended(0))
        .with_catalog_path("boot/boot.cat");
    let hybrid = Hybrid::gpt_hybrid_mbr().with_bootstrap(&start.boot_img[..BOOT_CODE]).with_appended(AppendedPartition::esp(Content::bytes(esp)));
    let options = IsoOptions::default()
        .with_id(IsoId::Volume, &label(machine))
        .with_id(IsoId::Application, "CHASI-BOD")
        .with_level(IsoLevel::L3)
        .with_rock_ridge()
        .with_time(time)
        .with_seed(machine.uuid.as_u64_pair().0)
        .with_el_torito(boot)
        .with_hybrid(hybrid);
    let writing = || "writing the ISO 9660 file system".to_string();
    let size = hadris_iso::plan(&tree, &options).fault(Fault::Internal, writing)?.size();
    out.set_len(size).fault(Fault::Environment, || format!("making room for {size} bytes"))?;
    let target = Arc::new(FileAt::new(out.try_clone().fault(Fault::Environment, writing)?, "the medium".into())?);
    let device = Device { disk: target.as_ref(), file: Some(out) };
    hadris_iso::sync::write(device, &tree, &options).fault(Fault::Environment, writing)?;
    let mut rest = [0; 8];
    target.read_at(&mut rest, REST)?;
    put(out, &(u64::from_le_bytes(rest) + BEHIND).to_le_bytes(), REST)
}

/// The packed disk with zeros in the places of files.
fn without_files(start: &Start, disk: &dyn ReadAt, out: &File) -> Result<()> {
    let packed = start.packed(disk)?;
    let table = Table::read(packed.len(), |at, buffer| packed.read_at(buffer, at))?;
    let (mut writer, mut packer) = (Writer::new(out), packer()?);
    for frame in 0..table.frames() {
        let (source, part) = (table.packed(frame), table.unpacked(frame));
        let size = part.end - part.start;
        let shared = |file: &BootFile| {
            let offset = file.on_disk?;
            Some(offset.max(part.start)..(offset + file.content.len() as u64).min(part.end))
        };
        let holes: Vec<_> = start.files.iter().filter_map(shared).filter(|hole| hole.start < hole.end).collect();
        if holes.is_empty() {
            let mut bytes = vec![0; (source.end - source.start) as usize];
            packed.read_at(&mut bytes, source.start)?;
            writer.append(&bytes, size)?;
        } else {
            let mut bytes = vec![0; size as usize];
            disk.read_at(&mut bytes, part.start)?;
            holes.iter().for_each(|hole| bytes[(hole.start - part.start) as usize..(hole.end - part.start) as usize].fill(0));
            writer.append(&compress(&mut packer, &bytes)?, size)?;
        }
    }
    writer.finish()
}

/// Name and version, as far as a label takes them (ECMA-119, d-characters). It is for people: nothing looks for it.
fn label(machine: &Machine) -> String {
    let text = format!("{}_{}", machine.name, machine.version).to_ascii_uppercase();
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect()
}

/// The EFI system partition: the loaders, and a menu that leads to the medium's.
fn fat_partition(start: &Start, machine: &Machine) -> Result<FileAt> {
    let id = start.root_hash.hex();
    let menu = format!("search --no-floppy --file --set=root /chasi/{id}\nset prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n");
    let lead = ("boot/grub/grub.cfg".to_string(), menu.into_bytes());
    let files: Vec<_> = start.efi.iter().cloned().chain([lead]).collect();
    let serial = machine.uuid.as_fields().0;
    // With room for the file system's own tables.
    let size = ESP.max(Bytes(files.iter().map(|(_, bytes)| bytes.len() as u64 + (64 << 10)).sum::<u64>().next_multiple_of(1 << 20)));
    let files = files.into_iter().map(|(path, bytes)| (path, Arc::new(bytes) as Arc<dyn ReadAt>)).collect();
    fat::build(
        &fat::Options { kind: fat::FatKind::Fat16, size, label: "MEDIUM".into(), serial, epoch: machine.epoch, offset: 0 },
        &files,
        &start.scratch,
    )
}
