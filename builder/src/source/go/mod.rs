//! Programs from Go modules: the toolchain is a module like the rest, so the host needs no Go and every machine builds the same bytes.
//!
//! Locking asks a module proxy which modules a program is built from (`go mod tidy`, then `go list -deps` with an empty module cache: what that
//! fetches is what the build reads). Building happens in the sandbox, without network, from the store alone; the Go command itself checks every
//! module against `go.sum` once more. Sources: <https://go.dev/ref/mod> (proxy protocol, go.mod, go.sum).

use std::fs::{self, File};
use std::path::PathBuf;

use layers::source::{LockedGo, LockedModule};
use layers::{Context, Error, Result};

use super::deb::fetch::{Got, obtain};
use super::deb::{Archive, Want};
use crate::store::Store;

mod build;
pub mod licence;
mod lock;
mod notices;
mod proxy;
mod toolchain;

pub use build::build;
pub use lock::lock;
pub use notices::notices;
pub use proxy::Proxies;
pub use toolchain::toolchain_folder;

/// Fetches the toolchain and all modules of a program into the store.
pub fn fetch(site: &Archive<'_>, proxies: &Proxies, name: &str, locked: &LockedGo) -> Result<()> {
    let modules = || [&locked.toolchain].into_iter().chain(&locked.modules);
    let wants: Vec<Want> = modules().flat_map(|module| proxies.wants(module)).filter(|want| !site.store.blob(&want.sha256).exists()).collect();
    if wants.is_empty() {
        return Ok(());
    }
    site.progress.start(&format!("fetching modules of {name}"), wants.len() as u64, wants.iter().map(|w| w.size).sum());
    let done = super::in_parallel(&wants, |want| match obtain(site, want)? {
        Got::Present => {
            site.progress.finish_file();
            Ok(())
        }
        Got::Missing => Err(Error::environment(format!("fetching module {} for {name}: no proxy has it", want.label)).with_hint(proxy::HINT)),
        Got::Wrong(got) => Err(Error::environment(format!(
            "fetching module {} for {name}: the proxy sends other bytes, twice: expected {}, got {got}; the last ones are kept as {}",
            want.label,
            want.sha256,
            site.store.quarantine(&want.sha256).display()
        ))),
    });
    site.progress.finish();
    done
}

/// What the Go command is told on every run. `root` is where the toolchain, the module cache and the build cache lie as the command sees them.
fn environment(root: &str, toolchain: &str) -> Vec<(String, String)> {
    let fixed = [
        ("GOROOT", format!("{root}/{toolchain}")),
        ("GOCACHE", format!("{root}/cache")),
        ("GOTMPDIR", format!("{root}/tmp")),
        ("GOPATH", format!("{root}/path")),
        ("GOENV", "off".into()),
        ("GOTOOLCHAIN", "local".into()),
        ("GOTELEMETRY", "off".into()),
        ("GOOS", "linux".into()),
        ("GOARCH", "amd64".into()),
        ("GOAMD64", "v1".into()),
        ("CGO_ENABLED", "0".into()),
        ("GOVCS", "*:off".into()),
    ];
    fixed.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// A module's name for people.
fn label(module: &LockedModule) -> String {
    format!("{} {}", module.path, module.version)
}

/// Keeps other processes from the Go command's files as long as the result lives: their owners change with each build in the sandbox.
fn alone(store: &Store) -> Result<File> {
    let home = home(store);
    let path = home.join("lock");
    let file = fs::create_dir_all(&home).and_then(|()| File::create(&path)).context(|| format!("creating {}", path.display()))?;
    file.lock().context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Where the Go command's files lie in the store.
fn home(store: &Store) -> PathBuf {
    store.root().join("go")
}
