//! Time zones that an image has: tzfile(5) files below /usr/share/zoneinfo, as package tzdata brings them.

use layers::profile::{quote, suggest};

use crate::tree::{Tree, TreePath};

const FOLDER: &str = "usr/share/zoneinfo";

/// What is wrong with a zone, and a hint; none when the tree has it. Without any zone file the C library knows UTC only.
pub fn unknown(tree: &Tree, zone: &str) -> Option<(String, String)> {
    let folder = TreePath::new(FOLDER).ok()?;
    let files = tree.below(&folder).filter(|(_, node)| !node.is_dir()).map(|(path, _)| path.to_string());
    // Tables such as `zone.tab` and copies under other rules are no names of zones.
    let name = |path: String| Some(path.trim_start_matches('/').strip_prefix(FOLDER)?.strip_prefix('/')?.to_string());
    let names: Vec<String> = files.filter_map(name).filter(|n| !n.contains('.') && !n.starts_with("posix/") && !n.starts_with("right/")).collect();
    if names.iter().any(|name| name == zone) || names.is_empty() && zone == "UTC" {
        return None;
    }
    let hint = match names.is_empty() {
        true => "add the package `tzdata`".into(),
        false => suggest(zone, names.iter().map(String::as_str))
            .unwrap_or_else(|| "zones are named as below /usr/share/zoneinfo; old names come with `tzdata-legacy`".into()),
    };
    Some((format!("the image has no time zone {}", quote(zone)), hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::editor::testing::Bench;

    #[test]
    fn a1_an_unknown_zone_is_told_with_the_nearest() {
        let names = ["Europe/Berlin", "Europe/Paris", "Asia/Tokyo", "UTC", "zone1970.tab", "posix/Mars"].map(|n| format!("{FOLDER}/{n}"));
        let files: Vec<_> = names.iter().map(|n| (n.as_str(), "TZif2")).collect();
        let bench = Bench::new(&files);
        assert_eq!(unknown(&bench.tree, "Europe/Berlin"), None);
        let (message, hint) = unknown(&bench.tree, "Europe/Berlni").unwrap();
        assert_eq!((message.as_str(), hint.as_str()), ("the image has no time zone `Europe/Berlni`", "did you mean `Europe/Berlin`?"));
        for wrong in ["Europe", "zone1970.tab", "Mars", "posix/Mars"] {
            assert!(unknown(&bench.tree, wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn without_zone_files_there_is_utc_only() {
        let bench = Bench::new(&[]);
        assert_eq!(unknown(&bench.tree, "UTC"), None);
        assert!(unknown(&bench.tree, "Europe/Berlin").unwrap().1.contains("tzdata"));
    }
}
