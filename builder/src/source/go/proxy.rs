//! Module proxies: which ones, and where a module lies below them.

use std::path::{Path, PathBuf};
use std::process::Command;

use layers::source::LockedModule;
use layers::{Error, Result};

use super::label;
use crate::exec;
use crate::source::deb::Want;

/// What to do when no proxy can be asked.
pub(super) const HINT: &str = "set GOPROXY to the address of a Go module proxy, in the environment or with `go env -w`";

/// Base addresses of module proxies, in the order in which they are asked.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    bases: Vec<String>,
}

impl Proxies {
    /// The machine's proxies: GOPROXY of the environment, of the user's Go settings, or of an installed Go.
    pub fn find() -> Result<Self> {
        let set = std::env::var("GOPROXY").ok().filter(|text| !text.is_empty());
        let text = set.or_else(from_settings).or_else(from_go).unwrap_or_default();
        let proxies = Self::from_list(&text);
        if proxies.bases.is_empty() {
            return Err(Error::environment("looking for a Go module proxy: none is configured on this machine").with_hint(HINT));
        }
        Ok(proxies)
    }

    /// Proxies from the text of GOPROXY; `direct` and `off` are no proxies.
    pub fn from_list(text: &str) -> Self {
        let bases = text.split([',', '|']).map(|base| base.trim().trim_end_matches('/')).filter(|base| base.contains("://"));
        Self { bases: bases.map(String::from).collect() }
    }

    /// The text for GOPROXY.
    pub fn list(&self) -> String {
        self.bases.join(",")
    }

    /// Addresses of one file of a module version: `zip`, `mod` or `info`.
    pub fn urls(&self, path: &str, version: &str, kind: &str) -> Vec<String> {
        self.bases.iter().map(|base| format!("{base}/{}", place(path, version, kind))).collect()
    }

    /// What to fetch of a locked module: its zip and its `go.mod`.
    pub fn wants(&self, module: &LockedModule) -> Vec<Want> {
        let want = |kind: &str, sha256, size| Want { label: label(module), sha256, size, urls: self.urls(&module.path, &module.version, kind) };
        let go_mod = module.go_mod.as_ref().map(|file| want("mod", file.sha256, file.size.0));
        [want("zip", module.sha256, module.size.0)].into_iter().chain(go_mod).collect()
    }
}

/// Where a file of a module version lies below a proxy.
pub(super) fn place(path: &str, version: &str, kind: &str) -> String {
    format!("{}/@v/{}.{kind}", escaped(path), escaped(version))
}

/// Upper-case letters become `!` and the lower-case letter, for file systems that do not tell them apart.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii_uppercase() {
            out.push('!');
        }
        out.push(c.to_ascii_lowercase());
        out
    })
}

/// The other way round.
pub(super) fn unescaped(text: &str) -> String {
    let mut parts = text.split('!');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |mut out, part| {
        let mut chars = part.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(chars.as_str());
        out
    })
}

fn from_settings() -> Option<String> {
    let home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    let text = std::fs::read_to_string(home.join("go/env")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("GOPROXY=")).map(str::to_string)
}

fn from_go() -> Option<String> {
    let mut go = Command::new("go");
    let go = go.args(["env", "GOPROXY"]).current_dir(Path::new("/"));
    let said = exec::run(go).ok()?;
    Some(String::from_utf8_lossy(&said.stdout).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_proxy_protocol() {
        assert_eq!(place("github.com/Azure/x", "v1.0.0-RC1", "zip"), "github.com/!azure/x/@v/v1.0.0-!r!c1.zip");
        assert_eq!(unescaped("github.com/!azure/x"), "github.com/Azure/x");
        assert_eq!(unescaped(&escaped("A/bC")), "A/bC");
    }

    #[test]
    fn direct_and_off_are_no_proxies() {
        let proxies = Proxies::from_list("https://one.test/,direct|file:///srv/go|off");
        assert_eq!(proxies.list(), "https://one.test,file:///srv/go");
        assert_eq!(proxies.urls("a.test/b", "v1.0.0", "mod"), ["https://one.test/a.test/b/@v/v1.0.0.mod", "file:///srv/go/a.test/b/@v/v1.0.0.mod"]);
    }
}
