//! The whole story of a build, top to bottom: profile → plan → lock → store → tree → root → disk → artifacts → record.

mod boot;
mod grub;
mod images;
mod locking;
mod node;
mod output;
mod preview;
mod pulls;
mod root;
mod seed;
mod sources;
mod verify;
mod writing;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layers::layer::LoadedLayer;
use layers::lock::Lock;
use layers::node::partition;
use layers::plan::Plan;
use layers::profile::{self, Diagnostics, Document, Loaded, Profile, SecureBoot};
use layers::units::{Bytes, Digest, Seed};
use layers::{Context, Error, Result};
use serde::Serialize;

use crate::assemble::scratch;
use crate::defs;
use crate::disk::layout::Layout;
use crate::disk::{Disk, ReadAt, bios, gpt};
use crate::emit::OutputFormat;
use crate::fs::{erofs, verity};
use crate::progress::Progress;
use crate::record::{Artifact, BuildRecord, spdx};
use crate::signing::Signer;
use crate::source::{go, oci::Registries};
use crate::store::Store;
use grub::Signing;
use locking::Found;
pub use locking::{Change, changes, locks_below, path_of, read_lock, relock, write_lock};
use node::Programs;
use output::Staging;
pub use output::{SUMS, sha256, sum_of};
pub use preview::{Amount, Output, OutputState, Packages, Preview, packages, preview};
pub use seed::{ListedImage, Listing, listing};
pub use verify::{read_record, verify};

/// Role of the layer that brings the kernel.
const KERNEL_ROLE: &str = "kernel";
/// Role of the layer that makes nodes form a cluster.
const CLUSTER_ROLE: &str = "kubernetes";

/// Whether the lock may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// The lock is used as it is, or the build fails.
    Locked,
    /// A missing or outdated lock is made anew, with a notice.
    Relock,
}

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// What the store lacks is fetched.
    Online,
    /// What the store lacks is an error.
    Offline,
}

/// What may be reached.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Whether the network may be used.
    pub network: Network,
    /// Where registries are asked.
    pub registries: Registries,
}

/// Whether SHA256SUMS has the digests of whole raw images. Their block maps are in it always: hashing empty gigabytes takes longer than writing them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawSum {
    /// It has.
    Write,
    /// It has not.
    Omit,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Build {
    /// Profile file.
    pub profile: PathBuf,
    /// Formats to write.
    pub formats: Vec<OutputFormat>,
    /// Folder for results.
    pub output: PathBuf,
    /// Whether the lock may be written.
    pub locking: Locking,
    /// What may be reached.
    pub reach: Reach,
    /// Whether SHA256SUMS has the digests of whole raw images.
    pub raw_sum: RawSum,
    /// The node binary; looked for beside this program when absent.
    pub node_binary: Option<PathBuf>,
    /// Who signs an appliance.
    pub ova_signer: Option<Arc<Signer>>,
    /// Who signs what firmware starts.
    pub boot_signer: Option<Arc<Signer>>,
}

impl Build {
    /// Who signs the artifact of a format.
    fn signed_by(&self, format: OutputFormat) -> Option<Digest> {
        self.ova_signer.as_ref().filter(|_| format == OutputFormat::Ova).map(|signer| signer.fingerprint())
    }

    /// Whose signatures the firmware of this profile's machines asks for; an error where they cannot be given.
    fn signing(&self, planned: &Planned) -> Result<Signing<'_>> {
        let asked = planned.profile.boot.secure_boot;
        match (asked, &self.boot_signer) {
            (SecureBoot::OwnKeys, Some(_)) if self.formats.contains(&OutputFormat::Pxe) => Err(Error::input(
                "writing pxe.tar: a network boot hands over the disk beside the initramfs, which an image with own keys does not allow",
            )
            .with_hint("leave the format out, or start from a medium")),
            (SecureBoot::OwnKeys, Some(signer)) => Ok(Signing::Own(signer)),
            (SecureBoot::OwnKeys, None) => Err(Error::input(format!("{}: boot.secureBoot is own-keys, and no key is given", planned.path.display()))
                .with_hint("name a PEM file with an RSA key and its certificate by --secure-boot-key")),
            (_, Some(_)) => Err(Error::input(format!("{}: --secure-boot-key is given, and boot.secureBoot is not own-keys", planned.path.display()))
                .with_hint("say `boot: {secureBoot: own-keys}` in the profile")),
            (SecureBoot::DebianKeys, None) => Ok(Signing::Debian),
            (SecureBoot::None, None) => Ok(Signing::None),
        }
    }
}

/// A profile with its plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Where the profile was read.
    pub path: PathBuf,
    /// The valid profile.
    pub profile: Profile,
    /// What problems of the profile point into.
    pub document: Document,
    /// What each layer holds.
    pub plan: Plan,
    /// Roles that its layers provide.
    pub roles: BTreeSet<String>,
}

impl Planned {
    /// Where all identifiers of the image come from.
    pub fn seed(&self) -> Seed {
        Seed::new(self.profile.seed.as_ref().unwrap_or(&self.profile.name))
    }
}

/// What a build did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Folder of the artifacts.
    pub folder: PathBuf,
    /// What happened to it.
    pub state: State,
    /// Content id: the dm-verity root hash.
    pub content_id: Digest,
    /// Artifact files.
    pub files: Vec<PathBuf>,
}

/// What happened to the result folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It was written.
    Built,
    /// It held all that was asked for already.
    Unchanged,
}

impl Outcome {
    /// The artifact of a format.
    pub fn artifact(&self, format: OutputFormat) -> Result<PathBuf> {
        let ending = format!(".{}", format.extension());
        let found = self.files.iter().find(|file| file.to_string_lossy().ends_with(&ending));
        found.cloned().ok_or_else(|| Error::internal(format!("looking for the {} artifact: it was not built", format.extension())))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "{}", file.display())?;
        }
        let state = match self.state {
            State::Built => "built",
            State::Unchanged => "unchanged",
        };
        writeln!(f, "{state} {} content id {}", self.folder.display(), self.content_id.short())
    }
}

/// Reads a profile and plans it; touches nothing.
pub fn plan(path: &Path) -> Result<Planned> {
    if !path.exists() {
        return Err(Error::input(format!("reading profile {}: there is no such file", path.display()))
            .with_hint(format!("`chasi-bod new NAME > {}` writes one to start from", path.display())));
    }
    let mut read = |name: &str| {
        fs::read_to_string(name).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::input("there is no such file"),
            ErrorKind::InvalidData => Error::input("it is not UTF-8 text"),
            _ => Error::input(e.to_string()),
        })
    };
    let loaded = profile::load(&path.to_string_lossy(), &mut read)?;
    // Paths in a loaded profile are relative to the current folder.
    let here = Path::new("");
    let (layers, mut problems) = defs::for_profile(&loaded, here)?;
    if let Some(Err(error)) = loaded.profile.debian.keyring.as_ref().map(|name| defs::read(&here.join(name))) {
        problems.push(loaded.document.spot(&["debian", "keyring"]).problem(error.to_string(), error.hint().map(str::to_string)));
    }
    let folders = defs::chart_folders(&loaded, here, &mut problems);
    let plan = layers::plan::plan(&loaded, &layers, &folders, &|name| defs::read(&here.join(name)), problems)?;
    let used = |layer: &&LoadedLayer| plan.layers.iter().any(|planned| planned.name == layer.definition.name);
    let roles = layers.iter().filter(used).flat_map(|layer| layer.definition.provides.clone()).collect();
    check_kernel(&loaded, &roles)?;
    // Sizes that cannot work are said before anything is fetched.
    Layout::new(&loaded.profile.disk, Bytes(0), Bytes(0), &Seed::new(&loaded.profile.name))?;
    Ok(Planned { path: path.to_path_buf(), profile: loaded.profile, document: loaded.document, plan, roles })
}

/// Without a kernel nothing boots: that is said before anything is fetched.
fn check_kernel(loaded: &Loaded, roles: &BTreeSet<String>) -> Result<()> {
    if roles.contains(KERNEL_ROLE) {
        return Ok(());
    }
    let message = format!("no layer provides the role `{KERNEL_ROLE}`");
    let problem = loaded.document.key_spot(&["layers"]).problem(message, Some("list the layer `boot` under `layers`".into()));
    Ok(Diagnostics::gather(loaded.document.path(), vec![problem])?)
}

/// Everything that decides an image, by digest.
struct Key<'a> {
    planned: &'a Planned,
    signing: Signing<'a>,
    lock: Lock,
    node: &'a Programs,
    resolved: String,
    lock_digest: Digest,
    image: Digest,
    /// This very program: a new one may make other bytes from the same inputs.
    program: Digest,
}

impl Key<'_> {
    /// Whether our own key signs what is started.
    fn is_signed(&self) -> bool {
        matches!(self.signing, Signing::Own(_))
    }
}

fn key<'a>(planned: &'a Planned, signing: Signing<'a>, lock: Lock, node: &'a Programs) -> Result<Key<'a>> {
    let resolved = profile::to_yaml(&planned.profile)?;
    let lock_text = lock.to_yaml()?;
    let plan = planned.plan.digest();
    let parts = [env!("CARGO_PKG_VERSION").as_bytes(), resolved.as_bytes(), lock_text.as_bytes(), &plan.0, &node.digest().0, &signing.key()];
    let image = Digest::of_parts(parts);
    let program = Digest::of(&fs::read("/proc/self/exe").context(|| "reading this program".into())?);
    Ok(Key { planned, signing, lock, node, resolved, lock_digest: Digest::of(lock_text.as_bytes()), image, program })
}

fn folder(request: &Build, profile: &Profile) -> PathBuf {
    request.output.join(&profile.name).join(&profile.version)
}

fn file_name(profile: &Profile, format: OutputFormat) -> String {
    format!("{}-{}.{}", profile.name, profile.version, format.extension())
}

/// Builds the image of a profile, or finds that nothing changed.
pub fn build(request: &Build, store: Store, progress: &Progress) -> Result<Outcome> {
    let planned = plan(&request.profile)?;
    let signing = request.signing(&planned)?;
    let node = node::programs(request.node_binary.as_deref())?;
    let target = folder(request, &planned.profile);
    let known = match locking::found(&planned)? {
        Found::Current(lock) => Some(key(&planned, signing, lock, &node)?),
        _ => None,
    };
    if let Some(key) = &known
        && let Some(outcome) = unchanged(request, key, &target, &store)?
    {
        return Ok(outcome);
    }
    Staging::check(&target)?;
    // Also by a build that finds all else in the store and lays out no root itself.
    scratch::remove_stale(&store);
    let lock = locking::ensure(&planned, request.locking, &request.reach, &store, progress)?;
    let key = match known {
        Some(key) if key.lock == lock => key,
        _ => key(&planned, signing, lock, &node)?,
    };
    go::licence::doubts(&key.lock).iter().for_each(|doubt| eprintln!("warning: {doubt}"));
    let store = Arc::new(store);
    let image = assemble(&key, &store, progress)?;
    let outcome = writing::write(request, &key, &image, &target, &store)?;
    let (place, made_from) = stamp(&target, &key)?;
    store.save("built", &place, &made_from)?;
    store.save_uses(&key.lock_digest)?;
    Ok(outcome)
}

/// Where the store remembers what a folder was made from, and the digest of that. Sizes and times of the files count too: they tell when somebody
/// has changed one.
fn stamp(target: &Path, key: &Key<'_>) -> Result<(Digest, Digest)> {
    let place = std::path::absolute(target).context(|| format!("naming {}", target.display()))?;
    let made_from = Digest::of_parts([key.image.0.as_slice(), &key.program.0, output::fingerprint(&place).as_bytes()]);
    Ok((Digest::of(place.as_os_str().as_encoded_bytes()), made_from))
}

/// The record of the finished folder, when it was made by this program from the same inputs.
fn finished(key: &Key<'_>, target: &Path, store: &Store) -> Result<Option<BuildRecord>> {
    let Some(record) = output::existing(target).filter(|r| output::is_whole(target, r)) else { return Ok(None) };
    let (place, made_from) = stamp(target, key)?;
    Ok((store.load::<Digest>("built", &place)? == Some(made_from)).then_some(record))
}

/// Whether a record has the artifact of a format, with a digest and signed where that is asked for.
fn holds(record: &BuildRecord, profile: &Profile, format: OutputFormat, request: &Build) -> bool {
    let name = file_name(profile, format);
    let has_sum = |a: &Artifact| a.sha256.is_some() || format != OutputFormat::Raw || request.raw_sum == RawSum::Omit;
    record.artifacts.iter().any(|a| a.file == name && has_sum(a) && a.signed_by == request.signed_by(format))
}

/// The finished folder, when a build would make the same and it holds every format asked for.
fn unchanged(request: &Build, key: &Key<'_>, target: &Path, store: &Store) -> Result<Option<Outcome>> {
    let Some(record) = finished(key, target, store)? else { return Ok(None) };
    if !request.formats.iter().all(|f| holds(&record, &key.planned.profile, *f, request)) {
        return Ok(None);
    }
    let files = record.artifacts.iter().map(|a| target.join(&a.file)).collect();
    Ok(Some(Outcome { folder: target.to_path_buf(), state: State::Unchanged, content_id: record.root.root_hash, files }))
}

/// The image: laid out and hashed, not yet written anywhere.
struct Image {
    disk: Disk,
    layout: Layout,
    root_hash: Digest,
    entries: u64,
    boot: boot::BootFiles,
    slot: Vec<boot::SlotFile>,
    holdings: spdx::Holdings,
}

fn assemble(key: &Key<'_>, store: &Arc<Store>, progress: &Progress) -> Result<Image> {
    let (profile, seed, epoch) = (&key.planned.profile, key.planned.seed(), key.lock.epoch);
    // dpkg works on one core; GRUB's images need nothing of it.
    let (built, grub) = std::thread::scope(|scope| {
        let grub = scope.spawn(|| grub::images(store, &key.lock, &seed, key.signing, &boot::menu(key)));
        let built = root::build(key.planned, &key.lock, key.node, store, progress);
        (built, grub.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (built, grub) = (built?, grub?);
    let options = erofs::Options { uuid: seed.uuid("root"), volume_label: "root".into(), epoch };
    let root: Arc<dyn ReadAt> = Arc::new(erofs::Erofs::layout(&built.tree, store.clone(), options)?);
    let verity = verity::format(root.as_ref(), &seed.bytes("verity salt"), seed.uuid("verity"))?;
    let layout = Layout::new(&profile.disk, Bytes(root.len()), Bytes(verity.tree.len() as u64), &seed)?;
    if let Some(warning) = layout.warning() {
        eprintln!("warning: {warning}");
    }
    let esp = layout.partition(partition::ESP)?;
    let slot = boot::slot(key, &grub, &built.boot, &verity.root_hash)?;
    let esp_image = boot::esp(key, &grub, &slot, esp, store)?;
    let mut disk = Disk::new(layout.size);
    let boot_code = bios::put(&layout, &grub.boot_img, grub.core_img.clone(), &mut disk)?;
    gpt::put(&layout, Some(&boot_code), &mut disk)?;
    disk.put(esp.offset, Arc::new(esp_image))?;
    disk.put(layout.partition(partition::ROOT_A)?.offset, root)?;
    disk.put(layout.partition(partition::VERITY_A)?.offset, Arc::new(verity.tree))?;
    let entries = built.tree.entries.len() as u64;
    Ok(Image { disk, layout, root_hash: verity.root_hash, entries, boot: built.boot, slot, holdings: built.holdings })
}
