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

/// Name of the top layer, which is the profile itself.
pub const PROFILE_LAYER: &str = "profile";

/// Files that have their own place in the profile (`users`), so no layer may bring them.
const ACCOUNT_FILES: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// Folders that are something else on a running node: what an image holds there is never seen.
const HIDDEN: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

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

/// Layers in build order, with what the profile says about each.
fn order<'a>(profile: &Profile, layers: &'a [LoadedLayer]) -> Result<Vec<(&'a LoadedLayer, LayerRef)>> {
    let mut known = BTreeMap::new();
    for layer in layers {
        let name = layer.definition.name.as_str();
        if name == PROFILE_LAYER {
            return Err(Error::input(format!("layer name `{PROFILE_LAYER}` in {} is taken: it means the profile itself", layer.folder)));
        }
        if let Some(other) = known.insert(name, layer) {
            return Err(Error::input(format!("layer `{name}` exists twice: in {} and in {}", other.folder, layer.folder)));
        }
    }
    let wanted: Vec<_> = profile.layers.iter().map(crate::profile::LayerUse::full).collect();
    let mut sorter = Sorter { known, wanted: BTreeMap::new(), path: Vec::new(), done: BTreeSet::new(), out: Vec::new() };
    for layer in &wanted {
        if sorter.wanted.insert(layer.name.clone(), layer.clone()).is_some() {
            return Err(Error::input(format!("layer `{}` is listed twice in the profile", layer.name)));
        }
    }
    for layer in &wanted {
        sorter.visit(&layer.name)?;
    }
    check_roles(&sorter.out)?;
    Ok(sorter.out)
}

/// Depth-first search that keeps the path to here, to name a whole cycle.
struct Sorter<'a> {
    known: BTreeMap<&'a str, &'a LoadedLayer>,
    wanted: BTreeMap<String, LayerRef>,
    path: Vec<String>,
    done: BTreeSet<String>,
    out: Vec<(&'a LoadedLayer, LayerRef)>,
}

impl Sorter<'_> {
    fn visit(&mut self, name: &str) -> Result<()> {
        if self.done.contains(name) {
            return Ok(());
        }
        if let Some(start) = self.path.iter().position(|p| p == name) {
            let cycle = [&self.path[start..], &[name.to_string()]].concat().join(" -> ");
            return Err(Error::input(format!("layers require each other in a cycle: {cycle}")));
        }
        let Some(layer) = self.known.get(name).copied() else { return Err(self.missing(name)) };
        self.path.push(name.into());
        for required in &layer.definition.requires {
            self.visit(required)?;
        }
        self.path.pop();
        self.done.insert(name.into());
        let none = || LayerRef { name: name.into(), path: None, parameters: BTreeMap::new() };
        self.out.push((layer, self.wanted.get(name).cloned().unwrap_or_else(none)));
        Ok(())
    }

    fn missing(&self, name: &str) -> Error {
        let by = self.path.last().map(|by| format!(", which layer `{by}` requires,")).unwrap_or_default();
        let error = Error::input(format!("layer `{name}`{by} does not exist"));
        match nearest(name, self.known.keys().copied()) {
            Some(near) => error.with_hint(format!("did you mean `{near}`?")),
            None => error
                .with_hint(format!("known layers: {}; a layer of your own needs `path`", self.known.keys().copied().collect::<Vec<_>>().join(", "))),
        }
    }
}

fn check_roles(layers: &[(&LoadedLayer, LayerRef)]) -> Result<()> {
    let mut roles = BTreeMap::new();
    for (layer, _) in layers {
        for role in &layer.definition.provides {
            if let Some(other) = roles.insert(role, &layer.definition.name) {
                let message = format!("layers `{other}` and `{}` both provide the role `{role}`", layer.definition.name);
                return Err(Error::input(message).with_hint("leave one of them out of the profile"));
            }
        }
    }
    Ok(())
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

/// A destination in one spelling: absolute, no empty, `.` or `..` component.
fn destination(path: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(Error::input("the path must be absolute (begin with `/`)"));
    }
    if path.contains(char::is_control) {
        return Err(Error::input("the path holds a control character"));
    }
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(Error::input("the path leaves its folder with `..`"));
    }
    if let Some(long) = parts.iter().find(|p| p.len() > 255) {
        return Err(Error::input(format!("the name `{long}` is longer than 255 bytes")));
    }
    let path = format!("/{}", parts.join("/"));
    if ACCOUNT_FILES.contains(&path.as_str()) {
        return Err(
            Error::input("accounts come from packages, sysusers.d and the profile's `users`").with_hint("put a file into /usr/lib/sysusers.d")
        );
    }
    if parts.is_empty() || HIDDEN.contains(&format!("/{}", parts[0]).as_str()) {
        return Err(Error::input("the image holds no files there").with_hint("let /usr/lib/tmpfiles.d make it at boot"));
    }
    Ok(path)
}

/// One owner per path, and no path below another layer's file or link.
fn check_paths(layers: &[PlannedLayer]) -> Result<()> {
    let mut owners = BTreeMap::<&str, (&str, &PlannedFile)>::new();
    for layer in layers {
        for file in &layer.files {
            if let Some((other, lower)) = owners.insert(&file.path, (&layer.name, file)) {
                let same = PlannedFile { overrides: lower.overrides, ..file.clone() } == *lower;
                if !same && !file.overrides {
                    let message = format!("layers `{other}` and `{}` both own {}, with different content, mode or owner", layer.name, file.path);
                    return Err(Error::input(message).with_hint(format!("say `override: true` at the file in `{}` if it shall win", layer.name)));
                }
            }
        }
    }
    for (path, (layer, _)) in &owners {
        let parents = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]);
        if let Some((parent, (other, file))) = parents.filter_map(|p| owners.get_key_value(p)).next() {
            let what = if matches!(file.body, Body::Link(_)) { "a symbolic link" } else { "a file" };
            return Err(Error::input(format!("{path} of layer `{layer}` lies below {parent}, which layer `{other}` makes {what}")));
        }
    }
    Ok(())
}

fn accounts(users: &[User]) -> Result<Vec<PlannedUser>> {
    let mut taken = BTreeMap::<u32, &str>::new();
    let mut names = BTreeSet::new();
    for user in users {
        let first = user.name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
        let rest = user.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
        if !first || !rest || user.name.len() > 32 || !names.insert(&user.name) {
            return Err(Error::input(format!("user name `{}` is malformed or used twice", user.name.escape_debug())));
        }
        let text = user.ssh_keys.iter().chain(&user.groups).chain([&user.shell]);
        if text.into_iter().any(|t| t.contains(char::is_control) || t.contains(':') && *t == user.shell) || !user.shell.starts_with('/') {
            return Err(Error::input(format!("user `{}`: shell, groups and keys must be one line each, and the shell an absolute path", user.name)));
        }
        if let Some(uid) = user.uid {
            if !(1000..60000).contains(&uid) {
                return Err(Error::input(format!("user `{}`: uid {uid} is not from 1000 to 59999", user.name)));
            }
            if let Some(other) = taken.insert(uid, &user.name) {
                return Err(Error::input(format!("users `{other}` and `{}` have the same uid {uid}", user.name)));
            }
        }
    }
    let mut free = (1000..60000).filter(|uid| !taken.contains_key(uid));
    let next = |user: &User| user.uid.or_else(|| free.next()).ok_or_else(|| Error::input("there are more users than numbers"));
    let mut next = next;
    users.iter().map(|user| Ok(PlannedUser { uid: next(user)?, user: user.clone() })).collect()
}

fn checked_units(units: &Units) -> Result<Units> {
    for unit in units.enable.iter().chain(&units.disable).chain(&units.mask) {
        if unit.contains('/') || unit.contains(char::is_control) || !unit.contains('.') {
            return Err(Error::input(format!("`{}` is not the name of a unit, such as `ssh.service`", unit.escape_debug())));
        }
    }
    Ok(units.clone())
}

fn checked_sysctl(values: &BTreeMap<String, Scalar>) -> Result<BTreeMap<String, String>> {
    let check = |(key, value): (&String, &Scalar)| {
        let value = value.to_string();
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/*@".contains(c);
        if key.is_empty() || !key.chars().all(good) || value.contains(char::is_control) {
            return Err(Error::input(format!("kernel parameter `{}` has a malformed name or a value of several lines", key.escape_debug())));
        }
        Ok((key.clone(), value))
    };
    values.iter().map(check).collect()
}

fn checked_patterns(patterns: &[String]) -> Result<Vec<String>> {
    for pattern in patterns {
        let path = pattern.strip_prefix('!').unwrap_or(pattern);
        if !path.starts_with('/') || path.split('/').any(|p| p == ".." || p == ".") || path.trim_matches(['/', '*']).is_empty() {
            return Err(Error::input(format!("`{pattern}` is not a pattern of absolute paths to remove")));
        }
    }
    Ok(patterns.to_vec())
}

#[cfg(test)]
mod tests;
