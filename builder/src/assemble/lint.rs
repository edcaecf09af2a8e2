//! The last look at a tree: what would make two machines alike, give a secret away or tell where it was built fails the build.

use std::collections::{BTreeMap, BTreeSet};

use layers::units::Digest;
use layers::{Error, Result};
use memchr::memmem::{Finder, find_iter};
use rayon::prelude::*;

use crate::assemble::glob;
use crate::store::Store;
use crate::tree::{Content, Kind, Node, Tree, TreePath};

/// Paths that may not be there, with the reason.
const FORBIDDEN: [(&str, &str); 5] = [
    ("/var/**", "lies on the state partition, where nobody would see it"),
    ("/**/random-seed", "would be the same on all machines"),
    ("/**/credential.secret", "would be the same on all machines"),
    ("/**/ssh_host_*_key", "would be the same on all machines"),
    ("/**/ssh_host_*_key.pub", "would be the same on all machines"),
];

/// Files that may be there only when they are empty, with the reason.
const EMPTY: [(&str, &str); 3] = [
    ("/**/machine-id", "would be the same on all machines"),
    ("/usr/share/factory/var/log/**", "is a log of the build"),
    ("/**/*.log", "is a log of the build"),
];

/// Private keys that may be there: pattern and why they harm nobody.
const KNOWN_KEYS: [(&str, &str); 2] =
    [("/usr/share/doc/**", "examples that packages document"), ("/usr/lib/*/libgnutls.so.*", "keys of its self-tests, published in its source")];

const KEY_START: &[u8] = b"-----BEGIN ";

/// Checks a finished tree; the error names every path. `build_paths` are folders of the build machine (work folder, cache) that no content
/// may mention; one of a single component, such as `/root`, is too common a text to tell anything and is skipped.
pub fn lint(tree: &Tree, store: &Store, build_paths: &[&str]) -> Result<()> {
    lint_but(tree, store, build_paths, &[])
}

/// As `lint`, without what lies in these folders: layers of container images that somebody else published. Nobody can take a file out of them
/// without changing their digests, and whoever pulls the image has it anyway.
pub fn lint_but(tree: &Tree, store: &Store, build_paths: &[&str], foreign: &[TreePath]) -> Result<()> {
    let foreign: BTreeSet<_> = foreign.iter().collect();
    let depth = foreign.iter().map(|f| f.as_bytes().split(|b| *b == b'/').count()).max().unwrap_or(0);
    let is_foreign = |path: &TreePath| {
        let ends = path.as_bytes().iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.as_bytes().len()]);
        ends.take(depth).any(|end| TreePath::new(&path.as_bytes()[..end]).is_ok_and(|p| foreign.contains(&p)))
    };
    let tree: BTreeMap<_, _> = tree.entries.iter().filter(|(path, _)| !is_foreign(path)).collect();
    let mut found = paths(&tree);
    let finders: Vec<_> = build_paths.iter().filter(|p| p.trim_matches('/').contains('/')).map(|p| (*p, Finder::new(p.as_bytes()))).collect();
    let mut contents = BTreeMap::<Digest, (&Content, Vec<&TreePath>)>::new();
    for (path, node) in &tree {
        if let Kind::File(content) = &node.kind {
            contents.entry(content.sha256).or_insert((content, Vec::new())).1.push(path);
        }
    }
    let contents: Vec<_> = contents.into_values().collect();
    let more: Vec<_> = contents.par_iter().map(|(content, paths)| Ok(look_into(&store.read(content)?, paths, &finders))).collect::<Result<_>>()?;
    found.extend(more.into_iter().flatten());
    found.sort();
    if found.is_empty() {
        return Ok(());
    }
    let error = Error::input(format!("checking the image: {} findings\n  {}", found.len(), found.join("\n  ")));
    Err(error.with_hint("a layer's `remove` can take a file out"))
}

fn paths(tree: &BTreeMap<&TreePath, &Node>) -> Vec<String> {
    let judge = |(path, node): (&&TreePath, &&Node)| {
        let hit = |list: &[(&str, &'static str)]| list.iter().find(|(pattern, _)| glob::fits(pattern, path)).map(|(_, why)| *why);
        let filled = matches!(&node.kind, Kind::File(content) if content.size > 0);
        let why = hit(&FORBIDDEN).or_else(|| hit(&EMPTY).filter(|_| filled))?;
        Some(format!("{path} {why}"))
    };
    tree.iter().filter_map(judge).collect()
}

fn look_into(bytes: &[u8], paths: &[&TreePath], finders: &[(&str, Finder<'_>)]) -> Vec<String> {
    let mut out = Vec::new();
    for (text, finder) in finders {
        if finder.find(bytes).is_some() {
            out.extend(paths.iter().map(|path| format!("{path} mentions the build machine's {text}")));
        }
    }
    if has_private_key(bytes) {
        let known = |path: &TreePath| KNOWN_KEYS.iter().any(|(pattern, _)| glob::fits(pattern, path));
        out.extend(paths.iter().filter(|path| !known(path)).map(|path| format!("{path} holds a private key")));
    }
    out
}

/// A PEM private key (RFC 7468) with a body: programs that merely know the header's text do not count.
fn has_private_key(bytes: &[u8]) -> bool {
    find_iter(bytes, KEY_START).any(|at| {
        let rest = &bytes[at + KEY_START.len()..];
        let line = rest.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end();
        let Some(label) = line.strip_suffix(b"-----").filter(|l| l.len() < 64 && l.ends_with(b"PRIVATE KEY")) else { return false };
        let body = rest[label.len() + 5..].trim_ascii_start();
        let base64 = |b: &&u8| b.is_ascii_alphanumeric() || b"+/=".contains(*b);
        body.starts_with(b"Proc-Type:") || body.iter().take_while(base64).count() >= 40
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::editor::testing::Bench;

    fn findings(files: &[(&str, &str)]) -> String {
        let bench = Bench::new(files);
        lint(&bench.tree, &bench.store, &["/home/ci/work/target", "/root"]).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn d7_each_planted_instance_is_named() {
        let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ";
        for (path, text) in [
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("usr/share/factory/var/lib/dbus/machine-id", "01\n"),
            ("usr/lib/systemd/random-seed", "s"),
            ("etc/ssh/ssh_host_ed25519_key", ""),
            ("etc/ssh/ssh_host_rsa_key.pub", ""),
            ("usr/share/factory/var/lib/systemd/credential.secret", ""),
            ("usr/share/factory/var/log/apt/history", "x"),
            ("opt/app/build.log", "x"),
            ("var/lib/x", ""),
            ("usr/bin/tool", "panicked at /home/ci/work/target/release"),
            ("opt/key", &format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")),
            ("opt/rsa", &format!("-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\n\r\n{body}\n")),
            ("opt/ssh", &format!("bundle\n-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n")),
        ] {
            let found = findings(&[(path, text)]);
            assert!(found.contains(&format!("/{path} ")), "{path}: {found}");
            assert!(!found.contains(body), "the key itself is not printed");
        }
    }

    #[test]
    fn d7_harmless_neighbours_pass_and_all_findings_come_at_once() {
        let clean = [
            ("etc/machine-id", ""),
            ("usr/share/factory/var/log/faillog", ""),
            ("usr/bin/ssh", "\0-----BEGIN OPENSSH PRIVATE KEY-----\n\0-----END"),
            ("usr/lib/libcrypto.so", "-----BEGIN \0PRIVATE KEY\0"),
            ("etc/cert.pem", "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n"),
            ("etc/x", "home is /root"),
        ];
        assert_eq!(findings(&clean), "");
        let found = findings(&[("var/a", "1"), ("opt/random-seed", "2")]);
        assert!(found.contains("2 findings") || found.contains("3 findings"), "{found}");
        assert!(found.contains("/var/a") && found.contains("/opt/random-seed"), "{found}");
    }
}
