//! The Go toolchain as a module of the proxy (`golang.org/toolchain`): locked by digest, unpacked once into the store.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use layers::source::LockedModule;
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

use super::{Proxies, home};
use crate::source::deb::Archive;
use crate::store::Store;

const MODULE: &str = "golang.org/toolchain";
/// Largest zip that counts as a toolchain.
const LIMIT: u64 = 256 << 20;
/// Most bytes that its files may have.
const UNPACKED_LIMIT: u64 = 2 << 30;

/// Finds the toolchain of a version at the proxy and puts it into the store.
pub fn locked(site: &Archive<'_>, proxies: &Proxies, version: &str) -> Result<LockedModule> {
    let version = format!("v0.0.1-go{version}.linux-amd64");
    for url in proxies.urls(MODULE, &version, "zip") {
        let Some(bytes) = site.http.get(&url, LIMIT).context(|| format!("fetching the Go toolchain {version}"))? else { continue };
        let sha256 = site.store.put_blob(&bytes)?;
        return Ok(LockedModule {
            path: MODULE.into(),
            version,
            sha256,
            size: Bytes(bytes.len() as u64),
            go_mod: None,
            licence: Some("BSD-3-Clause".into()),
        });
    }
    Err(Error::input(format!("fetching the Go toolchain {version}: no proxy has it"))
        .with_hint("give a `toolchain` that was released, such as 1.26.8"))
}

/// Name of the folder that a toolchain is unpacked into.
pub fn toolchain_folder(toolchain: &LockedModule) -> String {
    format!("toolchain-{}", toolchain.sha256.short())
}

/// Unpacks the toolchain unless that was done before; returns the name of its folder below `home`.
pub fn unpacked(store: &Store, toolchain: &LockedModule) -> Result<String> {
    let name = toolchain_folder(toolchain);
    let target = home(store).join(&name);
    if target.is_dir() {
        return Ok(name);
    }
    let scratch = store.scratch()?;
    let unpack = || unzip(store, &toolchain.sha256, &format!("{MODULE}@{}/", toolchain.version), scratch.path());
    unpack().context(|| format!("unpacking the Go toolchain {}", toolchain.version))?;
    fs::create_dir_all(home(store))
        .and_then(|()| fs::rename(scratch.path().join("files"), &target))
        .context(|| format!("naming {}", target.display()))?;
    Ok(name)
}

fn unzip(store: &Store, sha256: &Digest, prefix: &str, to: &Path) -> Result<()> {
    let file = File::open(store.blob(sha256)).context(|| "opening its zip".into())?;
    let mut zip = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| Error::input(e.to_string()))?;
    let mut room = UNPACKED_LIMIT;
    for n in 0..zip.len() {
        let mut entry = zip.by_index(n).map_err(|e| Error::input(e.to_string()))?;
        let name = entry.enclosed_name().ok_or_else(|| Error::input(format!("file {n} has a path that leaves the folder")))?;
        let Ok(below) = name.strip_prefix(prefix) else {
            return Err(Error::input(format!("file `{}` is not below {prefix}", name.display())));
        };
        if entry.is_dir() {
            continue;
        }
        let path = to.join("files").join(below);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(&path));
        let mut out = made.context(|| format!("creating {}", path.display()))?;
        let written = io::copy(&mut io::Read::take(&mut entry, room), &mut out).context(|| format!("writing {}", path.display()))?;
        room -= written;
        if room == 0 {
            return Err(Error::input(format!("its files have more than {UNPACKED_LIMIT} bytes")));
        }
        // Zips of modules have no modes; the Go command sets these itself when it unpacks a toolchain.
        if below.starts_with("bin") || below.starts_with("pkg/tool") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context(|| format!("changing the mode of {}", path.display()))?;
        }
    }
    Ok(())
}
