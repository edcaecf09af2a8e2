//! From a disk to a file in one of the output formats. A file gets its final name by rename when it is complete, so that nothing that looks
//! finished is left by a build that failed or was killed.

mod archive;
pub mod bmap;
mod frames;
pub mod iso;
mod mapped;
mod ordered;
pub mod ova;
pub mod pxe;
pub mod qcow2;
pub mod raw;
pub mod raw_zst;
pub mod vhdx;
pub mod vma;
pub mod vmdk;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use layers::units::Bytes;
use layers::{Context, Error, Fault, Result};
use serde::Serialize;
use uuid::Uuid;

use crate::disk::ReadAt;
use crate::disk::file::FileAt;
use crate::signing::Signer;

/// A disk format that is written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// The disk byte by byte, sparse.
    Raw,
    /// The same, packed with zstd.
    #[serde(rename = "raw.zst")]
    RawZst,
    /// QCOW2 version 3, compressed.
    Qcow2,
    /// VMDK, stream-optimized.
    Vmdk,
    /// VHDX, dynamic.
    Vhdx,
    /// Virtual appliance: such a VMDK with the description of a virtual machine.
    Ova,
    /// Proxmox' backup archive of a virtual machine, packed with zstd.
    #[serde(rename = "vma.zst")]
    Vma,
    /// Medium for discs and USB sticks.
    Iso,
    /// Archive of the files that a web server hands to iPXE.
    #[serde(rename = "pxe.tar")]
    Pxe,
}

impl OutputFormat {
    /// All formats.
    pub const ALL: [Self; 9] = [Self::Raw, Self::RawZst, Self::Qcow2, Self::Vmdk, Self::Vhdx, Self::Ova, Self::Vma, Self::Iso, Self::Pxe];

    /// File name extension, which is also the name in profiles and on the command line.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawZst => "raw.zst",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Ova => "ova",
            Self::Vma => "vma.zst",
            Self::Iso => "iso",
            Self::Pxe => "pxe.tar",
        }
    }

    /// The format's own module.
    pub fn format(self) -> &'static dyn Format {
        match self {
            Self::Raw => &raw::Raw,
            Self::RawZst => &raw_zst::RawZst,
            Self::Qcow2 => &qcow2::Qcow2,
            Self::Vmdk => &vmdk::Vmdk,
            Self::Vhdx => &vhdx::Vhdx,
            Self::Ova => &ova::Ova,
            Self::Vma => &vma::Vma,
            Self::Iso => &iso::Iso,
            Self::Pxe => &pxe::Pxe,
        }
    }

    /// The format of a file by its first bytes; what has no magic is raw.
    pub fn detect(file: &Arc<dyn ReadAt>) -> Result<Self> {
        let mut magic = [0; 4];
        if file.len() >= 4 {
            file.read_at(&mut magic, 0)?;
        }
        Ok(match magic {
            qcow2::format::MAGIC => Self::Qcow2,
            vmdk::format::MAGIC => Self::Vmdk,
            vhdx::format::MAGIC => Self::Vhdx,
            vma::format::MAGIC => Self::Vma,
            // What cannot be read in parts is told by whoever opens it.
            frames::MAGIC => match frames::Reader::open(file.clone()) {
                Ok(unpacked) if vma::is_archive(&unpacked)? => Self::Vma,
                _ => Self::RawZst,
            },
            _ if pxe::is_archive(file.as_ref())? => Self::Pxe,
            _ if ova::is_appliance(file.as_ref())? => Self::Ova,
            _ if iso::is_medium(file.as_ref())? => Self::Iso,
            _ => Self::Raw,
        })
    }
}

impl FromStr for OutputFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::extension);
        Self::ALL
            .into_iter()
            .find(|f| f.extension() == text)
            .ok_or_else(|| Error::input(format!("`{text}` is not an output format")).with_hint(format!("known are {}", known.join(", "))))
    }
}

/// What artifacts carry beside the disk: the virtual machine that OVA and VMA make, and what a medium starts with.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// Identifier of the image.
    pub uuid: Uuid,
    /// When the image was made, in seconds since 1970.
    pub epoch: i64,
    /// Processors.
    pub processors: u16,
    /// Memory.
    pub memory: Bytes,
    /// Whether its nodes form a cluster and want to be told which.
    pub has_cluster: bool,
    /// What a medium or a network boot starts with.
    pub start: Option<iso::Start>,
    /// Who signs the appliance.
    pub signer: Option<Arc<Signer>>,
}

/// What each disk format can do.
pub trait Format: Sync {
    /// The most space that the file may take, in bytes.
    fn layout(&self, disk: &dyn ReadAt) -> Result<Bytes>;
    /// Writes the disk to an empty file.
    fn emit(&self, disk: &dyn ReadAt, machine: &Machine, out: &File) -> Result<()>;
    /// The disk inside a file.
    fn inspect(&self, file: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>>;
}

/// Opens the disk inside a file of any of the formats.
pub fn open(path: &Path) -> Result<(OutputFormat, Arc<dyn ReadAt>)> {
    let file: Arc<dyn ReadAt> = Arc::new(FileAt::open(path)?);
    let format = OutputFormat::detect(&file)?;
    let disk = format.format().inspect(file).context(|| format!("reading {}", path.display()))?;
    Ok((format, disk))
}

/// Writes a disk to `path` in a format.
pub fn emit(format: OutputFormat, disk: &dyn ReadAt, machine: &Machine, path: &Path) -> Result<()> {
    let format = format.format();
    let partial = Partial::create(path)?;
    if let Err(error) = format.emit(disk, machine, &partial.file) {
        let need = format.layout(disk)?;
        return Err::<(), _>(error).context(|| format!("writing {} (it may take up to {need})", path.display()));
    }
    partial.persist(path)
}

/// Does something for each format at the same time, as each has parts that only one core can do; what came of it, in the order of the formats.
pub fn side_by_side<T: Send>(formats: Vec<OutputFormat>, one: impl Fn(OutputFormat) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let one = &one;
        let all: Vec<_> = formats.into_iter().map(|format| scope.spawn(move || one(format))).collect();
        all.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Writes bytes of a format to their place in the file.
fn put(out: &File, bytes: &[u8], at: u64) -> Result<()> {
    out.write_all_at(bytes, at).fault(Fault::Environment, || format!("writing {} bytes at {at}", bytes.len()))
}

/// Copies all of a source to a place in the file.
fn copy(from: &dyn ReadAt, out: &File, at: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < from.len() {
        let part = usize::try_from(from.len() - done).unwrap_or(buffer.len()).min(buffer.len());
        from.read_at(&mut buffer[..part], done)?;
        put(out, &buffer[..part], at + done)?;
        done += part as u64;
    }
    Ok(())
}

/// A file under way, `.<name>.partial` beside its final place: removed when dropped, taken over by the next build when its own was killed.
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| Error::input(format!("writing {}: it names no file", target.display())))?;
        let path = target.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.fault(Fault::Environment, || format!("creating {}", path.display()))?;
        // The name is looked up again because the build before may have given the file its final name while we waited for nothing but the lock.
        let ours = file.try_lock().is_ok() && same_file(&file, &path);
        if !ours {
            return Err(Error::environment(format!("writing {}: another build is writing it", target.display())));
        }
        let partial = Self { file, path };
        partial.file.set_len(0).fault(Fault::Environment, || format!("emptying {}", partial.path.display()))?;
        Ok(partial)
    }

    fn persist(self, target: &Path) -> Result<()> {
        std::fs::rename(&self.path, target).fault(Fault::Environment, || format!("naming {}", target.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it has its final name; nothing can be done about any other failure.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names_and_unknown_ones_list_them() {
        for format in OutputFormat::ALL {
            assert_eq!(format.extension().parse::<OutputFormat>().unwrap(), format);
        }
        assert_eq!("vdi".parse::<OutputFormat>().unwrap_err().hint(), Some("known are raw, raw.zst, qcow2, vmdk, vhdx, ova, vma.zst, iso, pxe.tar"));
    }
}
