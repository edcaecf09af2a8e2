//! A YAML file that was read and checked, kept so that later stages can point into it.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::check::{refuse_secrets, typed};
use super::diagnostic::{Diagnostics, Place, Problem, Sources, Spot};
use super::tree::{self, Kind, Node};

/// A checked YAML file with the places of its keys and values; those of a profile may lie in files that it extends.
///
/// A path such as `["layers", "2", "name"]` leads to a value; where it goes no further, the last value that it reaches is meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    root: Node,
    sources: Sources,
}

impl Document {
    pub(super) fn new(root: Node, sources: Sources) -> Self {
        Self { root, sources }
    }

    /// Path of the file, as it was asked for.
    pub fn path(&self) -> &str {
        self.sources.path(0)
    }

    /// Where a value stands.
    pub fn spot(&self, path: &[&str]) -> Spot {
        self.sources.spot(self.reach(path).0.place)
    }

    /// Where a key stands; its map when there is no such key.
    pub fn key_spot(&self, path: &[&str]) -> Spot {
        let Some((last, above)) = path.split_last() else { return self.spot(path) };
        let (node, whole) = self.reach(above);
        let key = node.entries().iter().find(|(key, _)| whole && key.text == *last).map(|(key, _)| key.place);
        self.sources.spot(key.unwrap_or(node.place))
    }

    /// Where a part of a text stands: line and column in it and width, from 1. The text itself when its lines are written in another way.
    pub fn spot_within(&self, path: &[&str], (line, column, width): (usize, usize, usize)) -> Spot {
        let place = self.reach(path).0.place;
        let part = self.reach(path).0.text().and_then(|text| text.lines().nth(line.checked_sub(1)?));
        let found = part.filter(|part| !part.is_empty()).and_then(|part| {
            // Lines of a block follow each other; in quotes all may stand in one.
            let shown = |line| Some((line, self.sources.line(Place { line, ..place })?));
            let (line, start) =
                [place.line + line - 1, place.line].into_iter().filter_map(shown).find_map(|(n, l)| Some((n, l[..l.find(part)?].chars().count())))?;
            Some(Place { line, column: start + column, width, ..place })
        });
        self.sources.spot(found.unwrap_or(place))
    }

    /// The value that a path leads to and whether that is all of the path.
    fn reach(&self, path: &[&str]) -> (&Node, bool) {
        let mut node = &self.root;
        for part in path {
            let next = match &node.kind {
                Kind::List(items) => part.parse().ok().and_then(|n: usize| items.get(n)),
                _ => node.get(part),
            };
            let Some(next) = next else { return (node, false) };
            node = next;
        }
        (node, true)
    }
}

/// Reads one file as a `T`, which also holds `rules`; `file` is the path that problems are reported with. All problems are told at once.
pub(super) fn read<T: JsonSchema + DeserializeOwned>(
    file: &str,
    text: &str,
    rules: impl FnOnce(&Node, &mut Vec<Problem>),
) -> Result<(T, Document), Diagnostics> {
    let mut sources = Sources::default();
    let (root, mut problems) = tree::parse(sources.add(file, text), text);
    let Some(root) = root else { return Err(sources.render(problems)) };
    refuse_secrets(&root, &mut sources, &mut problems);
    let value = typed::<T>(&root, &mut problems);
    rules(&root, &mut problems);
    match value.filter(|_| problems.is_empty()) {
        Some(value) => Ok((value, Document::new(root, sources))),
        None => Err(sources.render(problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        read::<serde_json::Value>("f", text, |_, _| {}).unwrap().1
    }

    fn at(spot: &Spot) -> String {
        let problem = spot.problem("", None);
        format!("{}:{}", problem.line, problem.column)
    }

    #[test]
    fn paths_lead_to_values_and_keys_and_stop_where_they_end() {
        let document = document("a:\n  - b.c: 1\n  - {1: x}\n");
        for (path, value, key) in
            [(&["a", "0", "b.c"][..], "2:10", "2:5"), (&["a", "1", "1"], "3:9", "3:6"), (&["a", "7", "x"], "2:3", "2:3"), (&[], "1:1", "1:1")]
        {
            assert_eq!((at(&document.spot(path)).as_str(), at(&document.key_spot(path)).as_str()), (value, key), "{path:?}");
        }
    }

    #[test]
    fn parts_of_texts_are_found_in_blocks_and_quotes() {
        let document = document("a: |\n  one\n    two {{x}}\nb: \"k={{y}}\"\nc: \"one\\nt\\u0077o\"\nd: \"é\\nsecond {{z}}\"\n");
        for (key, place, expected) in [("a", (2, 7, 5), "3:9"), ("b", (1, 3, 5), "4:7"), ("c", (2, 1, 1), "5:4"), ("d", (2, 8, 5), "6:15")] {
            assert_eq!(at(&document.spot_within(&[key], place)), expected, "{key}");
        }
    }
}
