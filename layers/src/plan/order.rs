//! The order of layers: each after those that it requires.

use super::*;

/// A layer of the image, and its place in the profile's list; none for one that is only required.
pub(super) type Placed<'a> = (&'a LoadedLayer, Option<usize>);

/// Layers in build order.
pub(super) fn order<'a>(loaded: &'a Loaded, layers: &'a [LoadedLayer], problems: &mut Vec<Diagnostic>) -> Vec<Placed<'a>> {
    let known = layers.iter().map(|layer| (layer.definition.name.as_str(), layer)).collect();
    let wanted: Vec<_> = loaded.profile.layers.iter().map(LayerUse::full).collect();
    let mut sorter =
        Sorter { known, wanted: &wanted, unread: !problems.is_empty(), path: Vec::new(), done: BTreeSet::new(), out: Vec::new(), problems };
    for (n, layer) in wanted.iter().enumerate() {
        sorter.visit(&layer.name, &|| loaded.document.spot(&["layers", &n.to_string(), "name"]));
    }
    let out = sorter.out;
    check_roles(loaded, &out, problems);
    out
}

/// Depth-first search that keeps the path to here, to name a whole cycle.
struct Sorter<'a, 'w> {
    known: BTreeMap<&'a str, &'a LoadedLayer>,
    wanted: &'w [LayerRef],
    /// Folders of the user's may be missing from `known`, which was told.
    unread: bool,
    path: Vec<String>,
    done: BTreeSet<String>,
    out: Vec<Placed<'a>>,
    problems: &'w mut Vec<Diagnostic>,
}

impl Sorter<'_, '_> {
    /// Takes in a layer after those that it requires; `named` is where it is asked for.
    fn visit(&mut self, name: &str, named: &dyn Fn() -> Spot) {
        if self.done.contains(name) {
            return;
        }
        if let Some(start) = self.path.iter().position(|p| p == name) {
            let cycle = [&self.path[start..], &[name.to_string()]].concat().join(" -> ");
            return self.problems.push(named().problem(format!("layers require each other in a cycle: {cycle}"), None));
        }
        let at = self.wanted.iter().position(|layer| layer.name == name);
        let Some(layer) = self.known.get(name).copied() else {
            self.done.insert(name.into());
            let told = self.unread && at.is_some_and(|n| self.wanted[n].path.is_some());
            if !told {
                self.missing(name, named());
            }
            return;
        };
        self.path.push(name.into());
        for (n, required) in layer.definition.requires.iter().enumerate() {
            self.visit(required, &|| layer.document.spot(&["requires", &n.to_string()]));
        }
        self.path.pop();
        self.done.insert(name.into());
        self.out.push((layer, at));
    }

    fn missing(&mut self, name: &str, named: Spot) {
        let by = self.path.last().map(|by| format!(", which layer `{by}` requires")).unwrap_or_default();
        let own = |hint: String| if hint.ends_with('?') { hint } else { hint + "; a layer of your own needs `path`" };
        let hint = suggest(name, self.known.keys().copied()).map(own);
        self.problems.push(named.problem(format!("there is no layer {}{by}", quote(name)), hint));
    }
}

fn check_roles(loaded: &Loaded, layers: &[Placed<'_>], problems: &mut Vec<Diagnostic>) {
    let mut roles = BTreeMap::new();
    for (layer, at) in layers {
        let name = &layer.definition.name;
        for (n, role) in layer.definition.provides.iter().enumerate() {
            let Some(other) = roles.insert(role, name) else { continue };
            let spot = match at {
                Some(at) => loaded.document.spot(&["layers", &at.to_string(), "name"]),
                None => layer.document.spot(&["provides", &n.to_string()]),
            };
            let message = format!("layers `{other}` and `{name}` both provide the role `{role}`");
            problems.push(spot.problem(message, Some("leave one of them out of the profile".into())));
        }
    }
}
