//! The plan: what each layer will put into the image, decided before anything is fetched or written.
//!
//! Layers come in the profile's order, each after the layers that it requires; a required layer that the profile does not list is
//! taken in by itself, with its default parameters. The profile's own packages, users, files and kernel parameters are the top layer.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::layer::{Assumed, Definition, Item, LoadedLayer, NODE_BINARY, Units, nearest};
use crate::profile::{FileSpec, LayerRef, Profile, Scalar, User};
use crate::template;
use crate::units::Digest;
use crate::{Context as _, Error, Result};

mod check;
mod order;

use check::{accounts, check_paths, checked_patterns, checked_sysctl, checked_units, destination};
use order::order;

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
}

/// A file with its final bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedFile {
    /// Absolute path in the image.
    pub path: String,
    /// Permission bits; meaningless for a link.
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

fn as_digest<S: Serializer>(bytes: &[u8], s: S) -> std::result::Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{} ({} bytes)", Digest::of(bytes), bytes.len()))
}

/// Plans an image. `layers` are all layers that may be used (the profile's own folders and the built-in ones, one per name);
/// `sources` are the files that the profile's `files` refer to, by the name used there.
pub fn plan(profile: &Profile, sources: &BTreeMap<String, Vec<u8>>, layers: &[LoadedLayer]) -> Result<Plan> {
    let profile_json = serde_json::to_value(profile).map_err(|e| Error::internal(format!("encoding profile: {e}")))?;
    let mut planned = Vec::new();
    for (layer, wanted) in order(profile, layers)? {
        let one = plan_layer(layer, &wanted, &profile_json, planned.len()).context(|| format!("planning layer `{}`", layer.definition.name))?;
        planned.push(one);
    }
    planned.push(plan_profile(profile, sources, &profile_json, planned.len()).context(|| format!("planning profile `{}`", profile.name))?);
    check_paths(&planned)?;
    Ok(Plan { name: profile.name.clone(), version: profile.version.clone(), layers: planned })
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
            Body::Node => write!(f, "{} {:04o} {}:{} (node binary)", self.path, self.mode, self.owner, self.group)?,
            Body::Bytes(bytes) => write!(f, "{} {:04o} {}:{} {}", self.path, self.mode, self.owner, self.group, Digest::of(bytes).short())?,
        }
        if self.overrides { f.write_str(" override") } else { Ok(()) }
    }
}

fn plan_layer(layer: &LoadedLayer, wanted: &LayerRef, profile: &Value, position: usize) -> Result<PlannedLayer> {
    let Definition { name, packages, assume, files, remove, units, sysctl, scripts, initrd_modules, .. } = &layer.definition;
    let parameters = parameters(&layer.definition, wanted)?;
    let data = json!({"profile": profile, "parameters": parameters});
    let source = |name: &str| layer.files.get(name).map(Vec::as_slice).ok_or_else(|| missing_file(name, &layer.folder, &layer.files));
    Ok(PlannedLayer {
        name: name.clone(),
        position,
        packages: items(packages, &data)?,
        assume: assume.clone(),
        files: plan_files(files, &data, &source)?,
        users: Vec::new(),
        units: checked_units(units)?,
        sysctl: checked_sysctl(sysctl)?,
        remove: checked_patterns(remove)?,
        scripts: scripts.iter().map(|s| Ok(PlannedScript { name: s.name.clone(), text: source(&s.file)?.to_vec() })).collect::<Result<_>>()?,
        initrd_modules: items(initrd_modules, &data)?,
    })
}

fn plan_profile(profile: &Profile, sources: &BTreeMap<String, Vec<u8>>, json: &Value, position: usize) -> Result<PlannedLayer> {
    let source = |name: &str| sources.get(name).map(Vec::as_slice).ok_or_else(|| missing_file(name, "the profile's folder", sources));
    let data = json!({"profile": json, "parameters": {}});
    let users = accounts(&profile.users)?;
    let sudo = users.iter().any(|u| u.user.sudo).then(|| "sudo".to_string());
    let packages: BTreeSet<_> = profile.packages.iter().cloned().chain(sudo).collect();
    Ok(PlannedLayer {
        name: PROFILE_LAYER.into(),
        position,
        packages: packages.into_iter().collect(),
        files: plan_files(&profile.files, &data, &source)?,
        users,
        sysctl: checked_sysctl(&profile.sysctl)?,
        ..PlannedLayer::default()
    })
}

fn missing_file(name: &str, folder: &str, files: &BTreeMap<String, Vec<u8>>) -> Error {
    let error = Error::input(format!("file `{name}` is not in {folder}"));
    match nearest(name, files.keys().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
        None => error,
    }
}

/// All parameters of a layer: the profile's values over the defaults.
fn parameters(definition: &Definition, wanted: &LayerRef) -> Result<BTreeMap<String, Value>> {
    for name in wanted.parameters.keys() {
        if !definition.parameters.contains_key(name) {
            let error = Error::input(format!("parameter `{name}` is not known"));
            let known = || definition.parameters.keys().map(String::as_str);
            return Err(match nearest(name, known()) {
                Some(near) => error.with_hint(format!("did you mean `{near}`?")),
                None => error.with_hint(format!("parameters: {}", known().collect::<Vec<_>>().join(", "))),
            });
        }
    }
    let value = |(name, parameter): (&String, &crate::layer::Parameter)| {
        let value = wanted.parameters.get(name).or(parameter.default.as_ref());
        let Some(value) = value else { return Err(Error::input(format!("parameter `{name}` has no default and the profile gives no value"))) };
        if !parameter.kind.accepts(value) {
            return Err(Error::input(format!("parameter `{name}` must be {}, not `{value}`", parameter.kind.words())));
        }
        Ok((name.clone(), value.clone()))
    };
    definition.parameters.iter().map(value).collect()
}

fn items(items: &[Item], data: &Value) -> Result<Vec<String>> {
    let mut out = BTreeSet::new();
    for item in items {
        match item {
            Item::Name(name) => {
                out.insert(name.clone());
            }
            Item::When(item) => {
                if template::condition(&item.when, data).context(|| format!("`{}`", item.name))? {
                    out.insert(item.name.clone());
                }
            }
            Item::From(item) => {
                let list = data["parameters"].get(&item.parameter).and_then(Value::as_array);
                let list = list.ok_or_else(|| Error::input(format!("`{}` is not a list parameter of this layer", item.parameter)))?;
                out.extend(list.iter().filter_map(Value::as_str).map(str::to_string));
            }
        }
    }
    Ok(out.into_iter().collect())
}

fn plan_files<'a>(specs: &[FileSpec], data: &Value, source: &impl Fn(&str) -> Result<&'a [u8]>) -> Result<Vec<PlannedFile>> {
    let mut out: Vec<_> =
        specs.iter().map(|spec| plan_file(spec, data, source).context(|| format!("file `{}`", spec.path.escape_debug()))).collect::<Result<_>>()?;
    out.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(twice) = out.windows(2).find(|w| w[0].path == w[1].path) {
        return Err(Error::input(format!("file `{}` is listed twice", twice[0].path)));
    }
    Ok(out)
}

fn plan_file<'a>(spec: &FileSpec, data: &Value, source: &impl Fn(&str) -> Result<&'a [u8]>) -> Result<PlannedFile> {
    let path = destination(&spec.path)?;
    let body = match (&spec.content, &spec.source, &spec.link) {
        (Some(text), None, None) => Body::Bytes(rendered(spec, &path, text.as_bytes(), data)?),
        (None, Some(name), None) if name == NODE_BINARY => Body::Node,
        (None, Some(name), None) => Body::Bytes(rendered(spec, &path, source(name)?, data)?),
        (None, None, Some(target)) => Body::Link(link_target(spec, &path, target, data)?),
        _ => return Err(Error::input("exactly one of `content`, `source` and `link` must be given")),
    };
    let mode = u16::from_str_radix(&spec.mode, 8).ok().filter(|m| *m <= 0o7777);
    let mode = mode.ok_or_else(|| Error::input(format!("mode `{}` is not an octal number up to 7777", spec.mode)))?;
    Ok(PlannedFile { path, mode, owner: spec.owner.clone(), group: spec.group.clone(), overrides: spec.overrides, body })
}

fn link_target(spec: &FileSpec, path: &str, target: &str, data: &Value) -> Result<String> {
    let target = if spec.template { template::render(path, target, data)? } else { target.into() };
    if target.is_empty() || target.contains('\0') || target.len() > 4095 {
        return Err(Error::input(format!("`{}` cannot be the target of a link", target.escape_debug())));
    }
    Ok(target)
}

fn rendered(spec: &FileSpec, path: &str, bytes: &[u8], data: &Value) -> Result<Vec<u8>> {
    if !spec.template {
        return Ok(bytes.to_vec());
    }
    let text = std::str::from_utf8(bytes).context(|| "reading the template as UTF-8".into())?;
    Ok(template::render(path, text, data)?.into_bytes())
}

#[cfg(test)]
mod tests;
