//! Sources that the plan needs: those that files name, each declared once by a layer, or by the profile, which wins.

use super::*;
use crate::source::Source;

/// The sources that planned files name, sorted by name.
pub(super) fn used<'f>(
    loaded: &Loaded,
    layers: &[&LoadedLayer],
    files: impl Iterator<Item = &'f PlannedFile>,
    problems: &mut Vec<Diagnostic>,
) -> Vec<PlannedSource> {
    let declared = declared(loaded, layers, problems);
    let mut out = BTreeMap::<&str, PlannedSource>::new();
    for file in files {
        let Body::From { source: name, member } = &file.body else { continue };
        let Some(source) = declared.get(name.as_str()) else {
            let known = declared.keys().copied();
            problems.push(file.at.problem(format!("{} comes from {}, which no layer declares", file.path, quote(name)), suggest(name, known)));
            continue;
        };
        if source.source.go.is_some() && member.is_some() {
            problems.push(file.at.problem(format!("source {} is one program, not an archive", quote(name)), None));
        }
        out.insert(name, source.clone());
    }
    out.into_values().collect()
}

/// All declared sources by name. That each has exactly one kind was checked with its document.
fn declared<'a>(loaded: &'a Loaded, layers: &[&'a LoadedLayer], problems: &mut Vec<Diagnostic>) -> BTreeMap<&'a str, PlannedSource> {
    let mut out = BTreeMap::<&str, PlannedSource>::new();
    for layer in layers {
        for (name, source) in &layer.definition.sources {
            let spot = layer.document.key_spot(&["sources", name]);
            let mut files = main_files(layer, source, name, problems);
            files.extend(module_files(layer, source, name, problems));
            let one = PlannedSource { name: name.clone(), layer: layer.definition.name.clone(), source: source.clone(), files };
            if let Some(other) = out.insert(name, one) {
                problems.push(spot.problem(format!("layers `{}` and `{}` both declare source `{name}`", other.layer, layer.definition.name), None));
            }
        }
    }
    for (name, source) in &loaded.profile.sources {
        let main = source.go.as_ref().filter(|go| go.main.is_some()).map(|_| vec!["sources", name, "go", "main"]);
        let modules = source.go.iter().flat_map(|go| go.own_modules()).map(|(module, _)| vec!["sources", name, "go", "replace", module]);
        for path in main.into_iter().chain(modules) {
            let hint = Some("give `package` and versions of modules, or declare the source in a layer of your own".into());
            problems.push(loaded.document.spot(&path).problem("a profile has no folder with Go files", hint));
        }
        let one = PlannedSource { name: name.clone(), layer: PROFILE_LAYER.into(), source: source.clone(), files: BTreeMap::new() };
        out.insert(name, one);
    }
    out
}

/// The Go files of an own main package.
fn main_files(layer: &LoadedLayer, source: &Source, name: &str, problems: &mut Vec<Diagnostic>) -> BTreeMap<String, Vec<u8>> {
    let Some(folder) = source.go.as_ref().and_then(|go| go.main.as_ref()) else { return BTreeMap::new() };
    let prefix = format!("{}/", folder.trim_end_matches('/'));
    let below = layer.files.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(&prefix)?.to_string(), bytes.clone())));
    let files: BTreeMap<_, _> = below.filter(|(path, _)| !path.contains('/') && path.ends_with(".go")).collect();
    if files.is_empty() {
        let spot = layer.document.spot(&["sources", name, "go", "main"]);
        problems.push(spot.problem(format!("folder {} of {} has no Go files", quote(folder), layer.folder), None));
    }
    files
}

/// The files of modules that the layer has in place of others.
fn module_files(layer: &LoadedLayer, source: &Source, name: &str, problems: &mut Vec<Diagnostic>) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for (module, folder) in source.go.iter().flat_map(|go| go.own_modules()) {
        let prefix = format!("{folder}/");
        let files = layer.files.iter().filter(|(path, _)| path.starts_with(&prefix) && (path.ends_with(".go") || path.ends_with("/go.mod")));
        out.extend(files.map(|(path, bytes)| (path.clone(), bytes.clone())));
        if !out.contains_key(&format!("{prefix}go.mod")) {
            let spot = layer.document.spot(&["sources", name, "go", "replace", module]);
            problems.push(spot.problem(format!("folder {} of {} has no go.mod", quote(folder), layer.folder), None));
        }
    }
    out
}
