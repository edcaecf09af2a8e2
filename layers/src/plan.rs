//! The plan: what each layer will put into the image, decided before anything is fetched or written.
//!
//! Layers come in the profile's order, each after the layers that it requires; a required layer that the profile does not list is
//! taken in by itself, with its default parameters. The profile's own packages, users, files and kernel parameters are the top layer.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::chart::{ChartFiles, PlannedChart};
use crate::image::{PlannedImage, PlannedImageLayer, PlannedPull};
use crate::layer::{Assumed, Definition, Item, LoadedLayer, NODE_BINARY, Parameter, Units};
use crate::platform::VirtualClusterSpec;
use crate::profile::{
    Diagnostic, Diagnostics, Document, FileSpec, LayerRef, LayerUse, Loaded, Named, Scalar, Spot, User, is_package, quote, suggest,
};
use crate::source::PlannedSource;
use crate::template;
use crate::units::Digest;
use crate::{Context as _, Error, Result};

mod addresses;
mod charts;
mod check;
mod components;
mod content;
mod images;
mod order;
mod sources;
mod versions;

use check::{accounts, check_paths};
pub use components::PlannedComponent;
use content::Site;
use order::{Placed, order};

/// Name of the top layer, which is the profile itself.
pub const PROFILE_LAYER: &str = "profile";

/// What an image will be made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Profile name.
    pub name: String,
    /// Image version.
    pub version: String,
    /// Layers from the lowest to the profile itself.
    pub layers: Vec<PlannedLayer>,
    /// Sources that files are taken from, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<PlannedSource>,
    /// Layers of container images, by name; those that an image has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_layers: Vec<PlannedImageLayer>,
    /// Container images that are made here, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PlannedImage>,
    /// Container images that are pulled, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<PlannedPull>,
    /// Releases that the cluster gets, in the order in which they are installed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub charts: Vec<PlannedChart>,
    /// Virtual clusters that it gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub virtual_clusters: Vec<Named<VirtualClusterSpec>>,
    /// Applications that it gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<PlannedComponent>,
}

/// What one layer puts into the image.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedLayer {
    /// Layer name.
    pub name: String,
    /// Place in the order, 0 is the lowest.
    pub position: usize,
    /// Debian packages, sorted.
    pub packages: Vec<String>,
    /// Packages that count as installed.
    pub assume: Vec<Assumed>,
    /// Files, by path.
    pub files: Vec<PlannedFile>,
    /// Accounts; only the profile has any.
    pub users: Vec<PlannedUser>,
    /// systemd units to switch.
    pub units: Units,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
    /// Path patterns to remove, in order.
    pub remove: Vec<String>,
    /// Scripts for the sandbox, in order.
    pub scripts: Vec<PlannedScript>,
    /// Kernel modules for the initramfs, sorted.
    pub initrd_modules: Vec<String>,
    /// Where each package is asked for.
    #[serde(skip)]
    pub asked_at: BTreeMap<String, Spot>,
    /// Where each unit is enabled or masked.
    #[serde(skip)]
    pub units_at: BTreeMap<String, Spot>,
}

/// A file with its final bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedFile {
    /// Absolute path in the image.
    pub path: String,
    /// Permission bits; meaningless for a link. Octal text in JSON, as everywhere.
    #[serde(serialize_with = "as_octal")]
    pub mode: u16,
    /// Owner, by name or number.
    pub owner: String,
    /// Group, by name or number.
    pub group: String,
    /// May replace what a lower layer or a package owns.
    #[serde(rename = "override")]
    pub overrides: bool,
    /// What it is.
    pub body: Body,
    /// Where its path is written.
    #[serde(skip)]
    pub at: Spot,
}

/// What a planned file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Body {
    /// These bytes.
    Bytes(#[serde(serialize_with = "as_digest")] Vec<u8>),
    /// A symbolic link with this target.
    Link(String),
    /// This program's node binary.
    Node,
    /// What a source gives.
    From {
        /// Name of the source.
        source: String,
        /// File of an archive; none when the source is one file.
        #[serde(skip_serializing_if = "Option::is_none")]
        member: Option<String>,
    },
}

/// An account with its number.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedUser {
    /// Number of the account and of its group.
    pub uid: u32,
    /// The account as the profile has it.
    #[serde(flatten)]
    pub user: User,
}

/// A script with its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedScript {
    /// Name for messages.
    pub name: String,
    /// The script.
    #[serde(serialize_with = "as_digest")]
    pub text: Vec<u8>,
}

fn as_octal<S: Serializer>(mode: &u16, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:04o}"))
}

fn as_digest<S: Serializer>(bytes: &[u8], s: S) -> std::result::Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{} ({} bytes)", Digest::of(bytes), bytes.len()))
}

/// Reads a file that the profile's `files` name as their source, by the name used there.
pub type Read<'a> = &'a dyn Fn(&str) -> Result<Vec<u8>>;

/// Plans an image. `layers` are all layers that may be used (the profile's own folders and the built-in ones, one per name), `folders` the
/// charts that the profile names as folders; `problems` are those met in reading them: with any there is no plan, but what can still be checked
/// is told with them, all at once.
pub fn plan(
    loaded: &Loaded,
    layers: &[LoadedLayer],
    folders: &BTreeMap<String, ChartFiles>,
    read: Read<'_>,
    mut problems: Vec<Diagnostic>,
) -> Result<Plan> {
    let profile = &loaded.profile;
    let json = serde_json::to_value(profile).map_err(|e| Error::internal(format!("encoding profile: {e}")))?;
    let (mut planned, mut images, mut charts) = (Vec::new(), images::Images::default(), charts::Charts::default());
    let placed = order(loaded, layers, &mut problems);
    for &placed in &placed {
        let one = plan_layer(loaded, placed, &json, (&mut images, &mut charts), &mut problems);
        planned.push(PlannedLayer { position: planned.len(), ..one });
    }
    let top = plan_profile(loaded, (read, folders), &json, &mut charts, &mut problems);
    planned.push(PlannedLayer { position: planned.len(), ..top });
    check_paths(&planned, &mut problems);
    let declaring: Vec<_> = placed.iter().map(|(layer, _)| *layer).collect();
    images.replace(loaded);
    let images::Used { image_layers, images, pulls } = images.used(&mut problems);
    versions::check(loaded, &declaring, (&images, &pulls), &mut problems);
    let files = planned.iter().flat_map(|layer| &layer.files).chain(image_layers.iter().flat_map(|layer| &layer.files));
    let sources = sources::used(loaded, &declaring, files, &mut problems);
    let charts = charts.used();
    let components = components::planned(loaded, &charts, &mut problems);
    Diagnostics::gather(loaded.document.path(), problems)?;
    let (name, version, virtual_clusters) = (profile.name.clone(), profile.version.clone(), profile.vclusters.clone());
    Ok(Plan { name, version, layers: planned, sources, image_layers, images, pulls, charts, virtual_clusters, components })
}

impl Plan {
    /// Packages of the image with the layers that ask for them.
    pub fn packages(&self) -> BTreeMap<String, Vec<String>> {
        let mut out = BTreeMap::<_, Vec<_>>::new();
        for layer in &self.layers {
            for package in &layer.packages {
                out.entry(package.clone()).or_default().push(layer.name.clone());
            }
        }
        out
    }

    /// Where each package is asked for.
    pub fn asked_at(&self) -> BTreeMap<String, Vec<Spot>> {
        let mut out = BTreeMap::<_, Vec<_>>::new();
        for (package, spot) in self.layers.iter().flat_map(|layer| &layer.asked_at) {
            out.entry(package.clone()).or_default().push(spot.clone());
        }
        out
    }

    /// Packages that count as installed.
    pub fn assumed(&self) -> BTreeSet<Assumed> {
        self.layers.iter().flat_map(|l| l.assume.iter().cloned()).collect()
    }

    /// Kernel modules for the initramfs.
    pub fn initrd_modules(&self) -> BTreeSet<String> {
        self.layers.iter().flat_map(|l| l.initrd_modules.iter().cloned()).collect()
    }

    /// Digest of everything that is planned; file contents count, the node binary's do not.
    pub fn digest(&self) -> Digest {
        digest_of(self)
    }

    /// The plan for people: one block per layer.
    pub fn to_text(&self) -> String {
        self.to_string()
    }
}

impl PlannedLayer {
    /// Digest of this layer alone.
    pub fn digest(&self) -> Digest {
        digest_of(self)
    }
}

fn digest_of(value: &impl Serialize) -> Digest {
    // Only maps with keys other than text fail to become JSON, and the plan has none.
    Digest::of(serde_json::to_string(value).unwrap_or_default().as_bytes())
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)?;
        for layer in &self.layers {
            write!(f, "\n\nlayer {}", layer.name)?;
            words(f, "packages", &layer.packages)?;
            words(f, "assume", &layer.assume.iter().map(|a| a.name.clone()).collect::<Vec<_>>())?;
            words(f, "initrd", &layer.initrd_modules)?;
            for file in &layer.files {
                write!(f, "\n  {:<9} {file}", "file")?;
            }
            for PlannedUser { uid, user } in &layer.users {
                let sudo = if user.sudo { ", sudo" } else { "" };
                write!(f, "\n  {:<9} {} ({uid}), {} ssh keys{sudo}", "user", user.name, user.ssh_keys.len())?;
            }
            words(f, "enable", &layer.units.enable)?;
            words(f, "disable", &layer.units.disable)?;
            words(f, "mask", &layer.units.mask)?;
            for (key, value) in &layer.sysctl {
                write!(f, "\n  {:<9} {key} = {value}", "sysctl")?;
            }
            words(f, "remove", &layer.remove)?;
            words(f, "scripts", &layer.scripts.iter().map(|s| s.name.clone()).collect::<Vec<_>>())?;
        }
        for PlannedImage { layer, image, .. } in &self.images {
            write!(f, "\n\nimage {} of layer {layer}\n  {}", image.name, image.layers.join(" "))?;
        }
        for PlannedPull { name, pull, wanted_by, .. } in &self.pulls {
            write!(f, "\n\nimage {name} of {wanted_by}\n  pulled from {pull}")?;
        }
        for chart in &self.charts {
            write!(f, "\n\nrelease {} of layer {}\n  {chart}", chart.spec.name, chart.layer)?;
        }
        for Named { name, spec } in &self.virtual_clusters {
            write!(f, "\n\nvirtual cluster {name}\n  of template {}", spec.template)?;
        }
        for planned in &self.components {
            write!(f, "\n\ncomponent {}\n  {planned}", planned.component.name)?;
        }
        for source in &self.sources {
            write!(f, "\n\nsource {} of layer {}\n  {source}", source.name, source.layer)?;
        }
        writeln!(f)
    }
}

/// One wrapped line of words under a label.
fn words(f: &mut std::fmt::Formatter<'_>, label: &str, list: &[String]) -> std::fmt::Result {
    let (mut room, mut label) = (0, label);
    for word in list {
        if room < word.len() + 1 {
            write!(f, "\n  {label:<9}")?;
            (room, label) = (100, "");
        }
        write!(f, " {word}")?;
        room -= (word.len() + 1).min(room);
    }
    Ok(())
}

impl std::fmt::Display for PlannedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.body {
            Body::Link(target) => write!(f, "{} -> {target}", self.path)?,
            Body::From { source, member } => {
                let member = member.as_ref().map(|m| format!("#{m}")).unwrap_or_default();
                write!(f, "{} {:04o} {}:{} from {source}{member}", self.path, self.mode, self.owner, self.group)?;
            }
            Body::Node => write!(f, "{} {:04o} {}:{} (node binary)", self.path, self.mode, self.owner, self.group)?,
            Body::Bytes(bytes) => write!(f, "{} {:04o} {}:{} {}", self.path, self.mode, self.owner, self.group, Digest::of(bytes).short())?,
        }
        if self.overrides { f.write_str(" override") } else { Ok(()) }
    }
}

fn plan_layer(
    loaded: &Loaded,
    (layer, at): Placed<'_>,
    profile: &Value,
    (images, charts): (&mut images::Images, &mut charts::Charts),
    problems: &mut Vec<Diagnostic>,
) -> PlannedLayer {
    let Definition { name, packages, assume, files, remove, units, sysctl, scripts, initrd_modules, .. } = &layer.definition;
    let values = parameters(loaded, layer, at, problems);
    addresses::check(&layer.definition, &values, &|key, n| parameter_spot(loaded, layer, at, (key, n)), problems);
    let data = json!({"profile": profile, "parameters": values});
    let read = |name: &str| layer.files.get(name).cloned().ok_or_else(|| missing_file(name, &layer.folder, &layer.files));
    let mut site = Site { document: &layer.document, folder: &layer.folder, data: &data, read: &read, problems };
    let packages = site.items("packages", packages, &|parameter, n| parameter_spot(loaded, layer, at, (parameter, Some(n))));
    for (name, spot) in packages.iter().filter(|(name, _)| !is_package(name)) {
        site.problems.push(spot.problem(format!("{} is not the name of a package", quote(name)), None));
    }
    images.add(&mut site, &layer.definition);
    charts.add(&mut site, name, &layer.definition.charts, &|folder| chart_folder(folder, layer));
    charts.add_manifests(&mut site, name, &loaded.profile.version, &layer.definition.manifests);
    let modules = site.items("initrdModules", initrd_modules, &|parameter, n| parameter_spot(loaded, layer, at, (parameter, Some(n))));
    PlannedLayer {
        name: name.clone(),
        position: 0,
        packages: packages.keys().cloned().collect(),
        assume: assume.clone(),
        files: site.files(&["files"], files),
        users: Vec::new(),
        units: units.clone(),
        units_at: units_at(&layer.document, units),
        sysctl: texts(sysctl),
        remove: remove.clone(),
        scripts: site.scripts(scripts),
        initrd_modules: modules.into_keys().collect(),
        asked_at: packages,
    }
}

fn units_at(document: &Document, units: &Units) -> BTreeMap<String, Spot> {
    let lists = [("mask", &units.mask), ("enable", &units.enable)];
    let spots = |(key, list)| -> Vec<_> {
        let list: &Vec<String> = list;
        list.iter().enumerate().map(|(n, unit)| (unit.clone(), document.spot(&["units", key, &n.to_string()]))).collect()
    };
    lists.into_iter().flat_map(spots).collect()
}

fn plan_profile(
    loaded: &Loaded,
    (read, folders): (Read<'_>, &BTreeMap<String, ChartFiles>),
    json: &Value,
    charts: &mut charts::Charts,
    problems: &mut Vec<Diagnostic>,
) -> PlannedLayer {
    let (profile, document) = (&loaded.profile, &loaded.document);
    let data = json!({"profile": json, "parameters": {}});
    let sudo = profile.users.iter().position(|user| user.sudo).map(|n| ("sudo".to_string(), document.spot(&["users", &n.to_string(), "sudo"])));
    let packages = profile.packages.iter().enumerate().map(|(n, name)| (name.clone(), document.spot(&["packages", &n.to_string()])));
    let asked_at: BTreeMap<_, _> = sudo.into_iter().chain(packages).collect();
    let users = accounts(loaded, problems);
    let mut site = Site { document, folder: "", data: &data, read, problems };
    // A folder that cannot be read was told when it was looked for.
    charts.add(&mut site, PROFILE_LAYER, &profile.charts, &|folder| Ok(folders.get(folder).cloned().unwrap_or_default()));
    charts.add_manifests(&mut site, PROFILE_LAYER, &profile.version, &profile.manifests);
    PlannedLayer {
        name: PROFILE_LAYER.into(),
        packages: asked_at.keys().cloned().collect(),
        files: site.files(&["files"], &profile.files),
        users,
        sysctl: texts(&profile.sysctl),
        asked_at,
        ..PlannedLayer::default()
    }
}

fn texts(values: &BTreeMap<String, Scalar>) -> BTreeMap<String, String> {
    values.iter().map(|(key, value)| (key.clone(), value.to_string())).collect()
}

/// Files of a layer's folder below a chart's; of manifests it may be one file.
fn chart_folder(folder: &str, layer: &LoadedLayer) -> Result<ChartFiles> {
    let folder = folder.trim_start_matches("./").trim_end_matches('/');
    if let Some(bytes) = layer.files.get(folder) {
        let name = folder.rsplit('/').next().unwrap_or(folder);
        return Ok(ChartFiles::from([(name.to_string(), bytes.clone())]));
    }
    let prefix = format!("{folder}/");
    let files: ChartFiles = layer.files.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(&prefix)?.to_string(), bytes.clone()))).collect();
    if files.is_empty() { Err(Error::input(format!("there is no such folder in {}", layer.folder))) } else { Ok(files) }
}

fn missing_file(name: &str, folder: &str, files: &BTreeMap<String, Vec<u8>>) -> Error {
    let error = Error::input(format!("file {} is not in {folder}", quote(name)));
    match suggest(name, files.keys().map(String::as_str)) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Where a parameter's value stands, or the n-th of a list: in the profile, or in the layer's default.
fn parameter_spot(loaded: &Loaded, layer: &LoadedLayer, at: Option<usize>, (parameter, n): (&str, Option<usize>)) -> Spot {
    let given = at.filter(|at| loaded.profile.layers.get(*at).is_some_and(|used| used.full().parameters.contains_key(parameter)));
    let n = n.map(|n| n.to_string());
    let below = |path: &[&str]| -> Vec<String> { path.iter().copied().chain(n.as_deref()).map(String::from).collect() };
    let (document, path) = match given {
        Some(at) => (&loaded.document, below(&["layers", &at.to_string(), "parameters", parameter])),
        None => (&layer.document, below(&["parameters", parameter, "default"])),
    };
    document.spot(&path.iter().map(String::as_str).collect::<Vec<_>>())
}

/// All parameters of a layer: the profile's values over the defaults. A problem stands at the profile's entry for the layer.
fn parameters(loaded: &Loaded, layer: &LoadedLayer, at: Option<usize>, problems: &mut Vec<Diagnostic>) -> BTreeMap<String, Value> {
    let (name, known) = (&layer.definition.name, &layer.definition.parameters);
    let given = at.and_then(|at| loaded.profile.layers.get(at)).map(|used| used.full().parameters).unwrap_or_default();
    let entry = at.map(|at| at.to_string());
    let path: Vec<&str> = ["layers"].into_iter().chain(entry.as_deref()).collect();
    for unknown in given.keys().filter(|parameter| !known.contains_key(*parameter)) {
        let hint = suggest(unknown, known.keys().map(String::as_str)).or_else(|| Some("it has no parameters".into()));
        let spot = loaded.document.key_spot(&[path.as_slice(), &["parameters", unknown]].concat());
        problems.push(spot.problem(format!("layer `{name}` has no parameter {}", quote(unknown)), hint));
    }
    let mut out = BTreeMap::new();
    for (key, Parameter { kind, default, description }) in known {
        let value = given.get(key).or(default.as_ref());
        match value {
            Some(value) if kind.accepts(value) => drop(out.insert(key.clone(), value.clone())),
            Some(value) => {
                let spot = loaded.document.spot(&[path.as_slice(), &["parameters", key]].concat());
                problems.push(
                    spot.problem(format!("parameter `{key}` of layer `{name}` must be {}, not {}", kind.words(), quote(&value.to_string())), None),
                );
            }
            None => {
                let hint = format!("{}; say `{{name: {name}, parameters: {{{key}: …}}}}` under `layers`", description.trim_end_matches('.'));
                problems
                    .push(loaded.document.spot(&path).problem(format!("layer `{name}` needs the parameter `{key}` ({})", kind.words()), Some(hint)));
            }
        }
        // So that templates tell their own mistakes only.
        out.entry(key.clone()).or_insert_with(|| kind.empty());
    }
    out
}

#[cfg(test)]
mod tests;
