//! Names that FAT cannot hold beside each other (Microsoft, FAT: General Overview of On-Disk Format, long names).

use std::collections::{BTreeMap, BTreeSet};

/// Characters that a long name cannot hold.
const RESERVED: [char; 8] = ['"', '*', ':', '<', '>', '?', '\\', '|'];

/// Pairs of paths that would be one file on FAT: they differ only by case, by trailing dots or spaces, or by characters that FAT
/// cannot hold; or one is written like the short name (`LONGNA~1.TXT`) of the other. A path that cannot keep its own name is
/// paired with what it would become.
pub fn fat_collisions(paths: &[&str]) -> Vec<(String, String)> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for spelling in paths.iter().flat_map(|path| prefixes(path)) {
        let kept = spelling.split('/').map(fat_name).collect::<Vec<_>>().join("/");
        if kept != spelling {
            found.insert((spelling.clone(), kept.clone()));
        }
        let first = seen.entry(kept.to_uppercase()).or_insert_with(|| spelling.clone());
        if *first != spelling && !found.contains(&(spelling.clone(), first.clone())) {
            found.insert((first.clone(), spelling));
        }
    }
    found.extend(short_names(&seen));
    found.into_iter().collect()
}

/// A path and all folders above it.
fn prefixes(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    (1..=parts.len()).map(|n| parts[..n].join("/")).collect()
}

/// A name as FAT would keep it.
fn fat_name(name: &str) -> String {
    let kept: String = name.chars().map(|c| if c.is_control() || RESERVED.contains(&c) { '_' } else { c }).collect();
    kept.trim_end_matches(['.', ' ']).to_string()
}

/// Names like `LONGNA~1.TXT` beside a long name whose short form they could be.
fn short_names(seen: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut long: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for (upper, spelling) in seen {
        if let Some(form) = short_form(upper) {
            long.entry(form).or_default().push(spelling);
        }
    }
    let mut found = Vec::new();
    for (upper, spelling) in seen {
        let Some((start, rest)) = upper.rsplit_once('~') else { continue };
        let (digits, extension) = rest.split_once('.').unwrap_or((rest, ""));
        if !digits.is_empty() && digits.len() <= 6 && digits.bytes().all(|b| b.is_ascii_digit()) {
            let same = long.range(start.to_string()..).take_while(|(form, _)| form.starts_with(start));
            let same = same.filter(|(form, _)| form.split_once('|').is_some_and(|(_, e)| e == extension));
            found.extend(same.flat_map(|(_, names)| names).filter(|n| **n != spelling).map(|n| ((*n).clone(), spelling.clone())));
        }
    }
    found
}

/// `FOLDER/LONGNA|TXT` for a name that needs a long entry, `None` for one that is a short name already.
fn short_form(upper: &str) -> Option<String> {
    let (folder, name) = upper.rsplit_once('/').map_or((String::new(), upper), |(f, n)| (format!("{f}/"), n));
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let plain = |part: &str| part.chars().all(|c| c.is_ascii() && !" .+,;=[]".contains(c));
    if (1..=8).contains(&stem.len()) && extension.len() <= 3 && plain(stem) && plain(extension) {
        return None;
    }
    let cut = |part: &str, most: usize| part.chars().filter(|c| !" .".contains(*c)).take(most).collect::<String>();
    Some(format!("{folder}{}|{}", cut(stem, 6), cut(extension, 3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a9_names_that_collide_on_fat_are_both_shown() {
        type Pairs = &'static [(&'static str, &'static str)];
        let table: &[(&[&str], Pairs)] = &[
            (&["EFI/BOOT/BOOTX64.EFI", "slot-a/vmlinuz", "slot-b/vmlinuz"], &[]),
            (&["slot-a/Boot.cfg", "slot-a/boot.cfg"], &[("slot-a/Boot.cfg", "slot-a/boot.cfg")]),
            (&["EFI/a", "efi/b"], &[("EFI", "efi")]),
            (&["a.", "a"], &[("a.", "a")]),
            (&["a", "a "], &[("a ", "a")]),
            (&["what?", "what*"], &[("what*", "what_"), ("what?", "what*"), ("what?", "what_")]),
            (&["grub-config.txt", "GRUB-C~1.TXT"], &[("grub-config.txt", "GRUB-C~1.TXT")]),
            (&["d/grub-config.txt", "GRUB-C~1.TXT", "d/GRUB-C~1.CFG"], &[]),
            (&["Ä", "ä"], &[("Ä", "ä")]),
            (&["a", "a"], &[]),
        ];
        for (paths, expected) in table {
            let expected: Vec<(String, String)> = expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
            assert_eq!(fat_collisions(paths), expected, "{paths:?}");
        }
    }
}
