//! From a declaration to a lock: which modules, at which versions and with which digests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use layers::source::{GoSource, LockedBlob, LockedGo, LockedModule, PlannedSource};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

use super::{Proxies, alone, environment, home, licence, proxy, toolchain};
use crate::exec;
use crate::source::deb::Archive;

/// Module name of a generated `go.mod`.
const OWN_MODULE: &str = "chasi.bod/program";

/// Asks the proxies what a program is built from and puts all of it into the store.
pub fn lock(site: &Archive<'_>, proxies: &Proxies, planned: &PlannedSource, go: &GoSource) -> Result<LockedGo> {
    let locked = toolchain::locked(site, proxies, &go.toolchain)?;
    let _alone = alone(site.store)?;
    let folder = toolchain::unpacked(site.store, &locked)?;
    let work = site.store.scratch()?;
    let program = work.path().join("program");
    write_program(&program, planned, go)?;
    let run = Run { site, folder: &folder, program: &program };
    run.go(&["mod", "tidy"], &home(site.store).join("mod"), &proxies.list()).map_err(|e| explained(e, go))?;
    // An empty module cache, filled from the one just used: what arrives is what the build reads.
    let needed = work.path().join("needed");
    let local = format!("file://{}", home(site.store).join("mod/cache/download").display());
    let target = go.package.as_deref().unwrap_or(".");
    let tags = go.tags.join(",");
    run.go(&["list", "-deps", "-tags", &tags, target], &needed, &local)?;
    let read = |name: &str| match fs::read_to_string(program.join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.context(|| format!("reading the {name} that Go wrote")),
    };
    let mut modules = modules_of(site, &needed.join("cache/download"))?;
    modules.sort();
    Ok(LockedGo { toolchain: locked, go_mod: read("go.mod")?, go_sum: read("go.sum")?, modules })
}

/// The Go command of the locked toolchain, outside of the sandbox: it fetches and lists, nothing of a module runs.
struct Run<'a> {
    site: &'a Archive<'a>,
    folder: &'a str,
    program: &'a Path,
}

impl Run<'_> {
    fn go(&self, args: &[&str], modules: &Path, proxy: &str) -> Result<Vec<u8>> {
        let home = home(self.site.store);
        for dir in ["cache", "tmp"] {
            fs::create_dir_all(home.join(dir)).context(|| format!("creating {}", home.join(dir).display()))?;
        }
        let mut command = Command::new(home.join(self.folder).join("bin/go"));
        command.args(args).current_dir(self.program).env_clear().envs(environment(&home.display().to_string(), self.folder));
        command.env("GOMODCACHE", modules).env("GOPROXY", proxy).env("HOME", self.program);
        command.env("GOFLAGS", if args[0] == "mod" { "-mod=mod -modcacherw" } else { "-mod=readonly -modcacherw" });
        if proxy.starts_with("file:") {
            command.env("GOSUMDB", "off");
        }
        for kept in ["PATH", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
            if let Some(value) = std::env::var_os(kept).filter(|_| kept != "GOSUMDB" || !proxy.starts_with("file:")) {
                command.env(kept, value);
            }
        }
        Ok(exec::run(&mut command)?.stdout)
    }
}

fn explained(error: Error, go: &GoSource) -> Error {
    let wanted: Vec<_> = go.require.iter().map(|(module, version)| format!("{module} {version}")).collect();
    let hint = format!("check that these versions exist: {}; {}", wanted.join(", "), proxy::HINT);
    if error.hint().is_none() { error.with_hint(hint) } else { error }
}

/// Writes `go.mod` and, for an own main package, its files.
pub(super) fn write_program(to: &Path, planned: &PlannedSource, go: &GoSource) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = to.join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, bytes));
        made.context(|| format!("writing {name} of {}", planned.name))
    };
    write("go.mod", go_mod(go).as_bytes())?;
    planned.files.iter().try_for_each(|(name, bytes)| write(name, bytes))
}

/// The `go.mod` as the declaration has it; `go mod tidy` adds what follows from it.
fn go_mod(go: &GoSource) -> String {
    let mut text = format!("module {OWN_MODULE}\n\ngo {}\n\n", go.toolchain);
    for (module, version) in &go.require {
        let _ = writeln!(text, "require {module} {version}");
    }
    for (module, to) in &go.replace {
        let to = if to.contains(' ') || to.starts_with("./") { to.clone() } else { format!("{module} {to}") };
        let _ = writeln!(text, "replace {module} => {to}");
    }
    // A tool keeps its module required although no file imports it.
    if let Some(package) = &go.package {
        let _ = writeln!(text, "tool {package}");
    }
    text
}

/// All modules whose zips lie in a module cache's download folder, put into the store.
fn modules_of(site: &Archive<'_>, downloads: &Path) -> Result<Vec<LockedModule>> {
    let mut found = BTreeMap::new();
    // A program of the standard library alone fetches nothing.
    if downloads.exists() {
        zips(downloads, &mut found)?;
    }
    let one = |(place, zip): (&String, &PathBuf)| -> Result<LockedModule> {
        let (path, version) = place.split_once("/@v/").ok_or_else(|| Error::internal(format!("reading module cache: {place}")))?;
        let read = |path: &Path| fs::read(path).context(|| format!("reading {}", path.display()));
        let (bytes, go_mod) = (read(zip)?, read(&zip.with_extension("mod"))?);
        Ok(LockedModule {
            path: proxy::unescaped(path),
            version: proxy::unescaped(version.trim_end_matches(".zip")),
            licence: licence::of_zip(Cursor::new(&bytes)),
            size: Bytes(bytes.len() as u64),
            sha256: site.store.put_blob(&bytes)?,
            go_mod: Some(LockedBlob { sha256: site.store.put_blob(&go_mod)?, size: Bytes(go_mod.len() as u64) }),
        })
    };
    found.iter().map(one).collect()
}

/// Zips below a folder, by their path relative to it.
fn zips(top: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let mut todo = vec![top.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).context(|| format!("reading {}", dir.display()))? {
            let path = entry.context(|| format!("reading {}", dir.display()))?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "zip") {
                let place = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
                found.insert(place, path);
            }
        }
    }
    Ok(())
}

/// Digest of everything that decides the bytes of a program.
pub(super) fn key(planned: &PlannedSource, locked: &LockedGo) -> Digest {
    let modules: Vec<u8> = locked.modules.iter().flat_map(|m| m.sha256.0).collect();
    let parts = [b"go v1".as_slice(), &planned.request().0, &locked.toolchain.sha256.0, locked.go_mod.as_bytes(), locked.go_sum.as_bytes(), &modules];
    Digest::of_parts(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_mod_says_what_the_declaration_says() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let go = GoSource {
            package: Some("a.test/cmd/a".into()),
            main: None,
            require: map(&[("a.test", "v1.0.0")]),
            replace: map(&[("b.test", "v0.1.0"), ("c.test", "d.test v2.0.0"), ("e.test", "./go/e")]),
            variables: BTreeMap::new(),
            tags: Vec::new(),
            toolchain: "1.26.8".into(),
        };
        let text = "module chasi.bod/program\n\ngo 1.26.8\n\nrequire a.test v1.0.0\nreplace b.test => b.test v0.1.0\nreplace c.test => d.test v2.0.0\nreplace e.test => ./go/e\ntool a.test/cmd/a\n";
        assert_eq!(go_mod(&go), text);
    }
}
