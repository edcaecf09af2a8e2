//! Lock → tree: packages unpacked and configured, the layers' own content on top, everything in its place for a read-only root.

use std::collections::BTreeMap;

use layers::lock::{Lock, Package};
use layers::node::{IMAGE_RECORD, ImageRecord};
use layers::plan::{PROFILE_LAYER, PlannedUser};
use layers::profile::{Diagnostic, Diagnostics};
use layers::units::Digest;
use layers::{Error, Result};

use super::boot::{self, BootFiles};
use super::node::Programs;
use super::{Planned, images, seed, sources};
use crate::assemble::configure::{self, Script};
use crate::assemble::editor::Editor;
use crate::assemble::unpack::{self, Unpacked};
use crate::assemble::{apply, finalize, lint, modules, users, zones};
use crate::images::install;
use crate::progress::Progress;
use crate::record::spdx::Holdings;
use crate::source::go;
use crate::store::Store;
use crate::tree::{Kind, Tree, TreePath};

/// A root, ready for the file system.
#[derive(Debug)]
pub struct Root {
    /// All entries.
    pub tree: Tree,
    /// Kernel and initramfs.
    pub boot: BootFiles,
    /// What the SBOM says of it.
    pub holdings: Holdings,
}

/// Folder of the licence texts of programs, which their licences ask for beside them.
const LICENCES: &str = "usr/lib/chasi-bod/licences";

/// Builds the root's tree. Packages that were unpacked and configured before come from the store.
pub fn build(planned: &Planned, lock: &Lock, node: &Programs, store: &Store, progress: &Progress) -> Result<Root> {
    let configured = configure_packages(planned, lock, store, progress)?;
    let contents = sources::make(store, &planned.plan, lock)?;
    let given = apply::Given { node: &node.agent, sources: &contents };
    let images = images::make(planned, lock, &given, store)?;
    let inputs = postcard::to_stdvec(&configured).map_err(|e| Error::internal(format!("encoding the configured tree: {e}")))?;
    let sources: Vec<u8> = contents.values().flat_map(|content| content.sha256.0).collect();
    let notices = lock.sources.iter().filter_map(|source| Some((source.name.as_str(), go::notices(store, source).transpose()?)));
    let notices = notices.map(|(name, text)| Ok((name, text?))).collect::<Result<BTreeMap<_, _>>>()?;
    let texts: Vec<u8> = notices.values().flat_map(|text| Digest::of(text.as_bytes()).0).collect();
    let pulled: Vec<u8> = images.iter().flat_map(|image| image.digest.0).collect();
    let key = Digest::of_parts([b"layers v4".as_slice(), &inputs, &planned.plan.digest().0, &node.digest().0, &sources, &pulled, &texts]);
    let mut pack = store.new_pack(key)?;
    let mut tree = configured;
    let mut editor = Editor::new(&mut tree, store, &mut pack, lock.epoch);
    let mut problems = Vec::new();
    for layer in &planned.plan.layers {
        if layer.name == PROFILE_LAYER {
            problems.extend(contradicted(&editor, planned, &layer.users)?);
        }
        apply::apply(&mut editor, layer, &given, &mut problems)?;
    }
    Diagnostics::gather(planned.document.path(), problems)?;
    image_record(&mut editor, planned, lock)?;
    seed::put(&mut editor, &planned.plan, lock)?;
    notices.iter().try_for_each(|(name, text)| editor.put_text(&format!("{LICENCES}/{name}.txt"), text))?;
    let modules: Vec<String> = planned.plan.initrd_modules().into_iter().collect();
    let boot = boot::files(&mut editor, &modules, &node.init)?;
    finalize::finalize(&mut editor)?;
    let installed = if images.is_empty() { None } else { Some(install::install(&mut editor, &images)?) };
    pack.finish()?;
    images::share(&mut tree)?;
    let here = std::env::current_dir().unwrap_or_default();
    let foreign = installed.as_ref().map_or(&[][..], |installed| &installed.foreign);
    lint::lint_but(&tree, store, &[&store.root().to_string_lossy(), &here.to_string_lossy()], foreign)?;
    let programs = contents.iter().filter(|((_, member), _)| member.is_none()).map(|((name, _), content)| (name.clone(), content.sha256)).collect();
    let images = installed.map(|installed| installed.index.images).unwrap_or_default();
    let holdings = Holdings { copyright: copyright(&tree, store)?, images, programs };
    Ok(Root { tree, boot, holdings })
}

/// What the profile says and the tree of packages and layers below contradicts.
fn contradicted(editor: &Editor<'_, '_>, planned: &Planned, users: &[PlannedUser]) -> Result<Vec<Diagnostic>> {
    let document = &planned.document;
    let mut problems = users::check(editor, users, &|path| document.spot(path))?;
    if let Some((message, hint)) = zones::unknown(editor.tree, &planned.profile.time.zone) {
        problems.push(document.spot(&["time", "zone"]).problem(message, Some(hint)));
    }
    Ok(problems)
}

fn configure_packages(planned: &Planned, lock: &Lock, store: &Store, progress: &Progress) -> Result<Tree> {
    progress.start("unpacking packages", lock.packages.len() as u64, lock.packages.iter().map(|p| p.size.0).sum());
    let unpacked = unpack::unpack_all(store, &lock.packages, &|package| {
        progress.advance(package.size.0);
        progress.finish_file();
    });
    progress.finish();
    let packages = lock.packages.iter().cloned().zip(unpacked?);
    let packages: Vec<_> = packages.map(|(package, unpacked)| plain_modules(package, unpacked, store, lock.epoch)).collect::<Result<_>>()?;
    let assumed: Vec<_> = planned.plan.assumed().into_iter().map(|a| configure::Assumed { name: a.name, provides: a.provides }).collect();
    let scripts = planned.plan.layers.iter().flat_map(|l| &l.scripts);
    let scripts: Vec<_> = scripts.map(|s| Script { name: s.name.clone(), text: String::from_utf8_lossy(&s.text).into_owned() }).collect();
    configure::configure(store, &packages, &assumed, &scripts, lock.epoch)
}

/// A kernel package with its modules decompressed, so that deltas see into them and the initramfs can load them as they are. Before any script
/// runs: the package's own depmod then indexes the files that the image has.
fn plain_modules(package: Package, mut unpacked: Unpacked, store: &Store, epoch: i64) -> Result<(Package, Unpacked)> {
    let modules = TreePath::new("usr/lib/modules").map_err(Error::internal)?;
    if unpacked.tree.below(&modules).next().is_none() {
        return Ok((package, unpacked));
    }
    let key = Digest::of_parts([b"plain modules v1".as_slice(), &package.sha256.0]);
    if let Some(tree) = store.load("modules", &key)?.filter(|_| store.pack(&key).exists()) {
        unpacked.tree = tree;
        return Ok((package, unpacked));
    }
    let mut pack = store.new_pack(key)?;
    modules::decompress_modules(&mut Editor::new(&mut unpacked.tree, store, &mut pack, epoch))?;
    pack.finish()?;
    store.save("modules", &key, &unpacked.tree)?;
    Ok((package, unpacked))
}

/// What the node must know of its image.
fn image_record(editor: &mut Editor<'_, '_>, planned: &Planned, lock: &Lock) -> Result<()> {
    let record = ImageRecord::of(&planned.profile, lock.epoch);
    let text = serde_json::to_vec_pretty(&record).map_err(|e| Error::internal(format!("encoding the image record: {e}")))?;
    let path = TreePath::new(IMAGE_RECORD).map_err(Error::internal)?;
    editor.put(path, &text, 0o644, (0, 0))
}

/// The copyright file of each package, for the SBOM.
fn copyright(tree: &Tree, store: &Store) -> Result<BTreeMap<String, String>> {
    let docs = TreePath::new("usr/share/doc").map_err(Error::internal)?;
    let mut out = BTreeMap::new();
    for (path, node) in tree.below(&docs) {
        let Kind::File(content) = &node.kind else { continue };
        if path.name() != b"copyright" {
            continue;
        }
        let package = path.parent().map(|p| String::from_utf8_lossy(p.name()).into_owned()).unwrap_or_default();
        out.insert(package, String::from_utf8_lossy(&store.read(content)?).into_owned());
    }
    Ok(out)
}
