//! Things that refer to each other by name.

use std::collections::{BTreeMap, BTreeSet};

/// Gives every circle of names, the first one again at its end, with the reference that closes it; `next` are the names that one refers to. Walks down without
/// recursion, so that no chain is too long.
pub fn circles<'n, R>(names: impl IntoIterator<Item = &'n str>, next: impl Fn(&'n str) -> Vec<(&'n str, R)>, mut found: impl FnMut(&[&'n str], R)) {
    let mut done = BTreeSet::new();
    for start in names {
        // The way down from `start`, with what is still to be looked at below each, and the depth of each.
        let (mut chain, mut depth) = (vec![(start, next(start))], BTreeMap::from([(start, 0)]));
        while let Some((name, list)) = chain.last_mut().filter(|_| !done.contains(start)) {
            let Some((other, reference)) = list.pop() else {
                done.insert(*name);
                depth.remove(name);
                chain.pop();
                continue;
            };
            if let Some(n) = depth.get(other) {
                let circle: Vec<_> = chain[*n..].iter().map(|(name, _)| *name).chain([other]).collect();
                found(&circle, reference);
            } else if !done.contains(other) {
                depth.insert(other, chain.len());
                chain.push((other, next(other)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_named_whole() {
        let found = |all: &[(&'static str, &[&'static str])]| {
            let (needs, mut out) = (all.iter().copied().collect::<BTreeMap<_, _>>(), Vec::new());
            let next = |name: &str| needs.get(name).copied().unwrap_or_default().iter().map(|other| (*other, ())).collect();
            circles(needs.keys().copied(), next, |circle, ()| out.push(circle.join(" → ")));
            out
        };
        assert!(found(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &["gone"])]).is_empty());
        assert_eq!(found(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]), ["b → c → b"]);
        assert_eq!(found(&[("a", &["a"])]), ["a → a"]);
    }
}
