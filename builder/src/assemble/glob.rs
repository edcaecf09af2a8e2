//! Path patterns of `remove`: `*` and `?` within a name, `**` across folders, `!` in front keeps; the last pattern that fits decides.

use crate::tree::TreePath;

/// Whether a list of patterns picks this path.
pub fn picked(patterns: &[String], path: &TreePath) -> bool {
    let last = patterns.iter().rev().find(|p| fits(p.trim_start_matches('!'), path));
    last.is_some_and(|p| !p.starts_with('!'))
}

/// Whether one pattern of an absolute path fits this path.
pub fn fits(pattern: &str, path: &TreePath) -> bool {
    let pattern: Vec<_> = pattern.as_bytes().split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    let path: Vec<_> = path.as_bytes().split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    parts(&pattern, &path)
}

fn parts(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        // `a/**` is what lies below `a`, not `a` itself.
        Some((&b"**", [])) => !path.is_empty(),
        Some((&b"**", rest)) => (0..=path.len()).any(|n| parts(rest, &path[n..])),
        Some((first, rest)) => path.split_first().is_some_and(|(name, below)| word(first, name) && parts(rest, below)),
    }
}

/// One name; backtracks to the last star only, so the time is at most pattern × name.
fn word(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names_and_folders() {
        let table = [
            ("/usr/share/doc/**", "usr/share/doc/bash/README", true),
            ("/usr/share/doc/**", "usr/share/doc", false),
            ("/usr/share/doc/*/copyright", "usr/share/doc/bash/copyright", true),
            ("/usr/share/doc/*/copyright", "usr/share/doc/a/b/copyright", false),
            ("/usr/**/__pycache__", "usr/lib/python3/x/__pycache__", true),
            ("/usr/**/__pycache__", "usr/__pycache__", true),
            ("/boot/System.map-*", "boot/System.map-6.12", true),
            ("/a*b*c", "a-bb-c", true),
            ("/a*b*c", "a-bb-d", false),
            ("/a?c", "abc", true),
            ("/a?c", "ac", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(fits(pattern, &TreePath::new(path).unwrap()), expected, "{pattern} {path}");
        }
        let list = ["/doc/**".to_string(), "!/doc/*/copyright".into()];
        assert!(picked(&list, &TreePath::new("doc/a/x").unwrap()) && !picked(&list, &TreePath::new("doc/a/copyright").unwrap()));
    }
}
