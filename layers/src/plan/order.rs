//! The order of layers: each after those that it requires.

use super::*;

/// Layers in build order, with what the profile says about each.
pub(super) fn order<'a>(profile: &Profile, layers: &'a [LoadedLayer]) -> Result<Vec<(&'a LoadedLayer, LayerRef)>> {
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
