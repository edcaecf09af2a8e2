//! Debian packages of the release that images are made of, for tests that need its boot loader or kernel without a whole image.
//! They come from the mirror in the machine's own apt sources and are kept below the user's cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use layers::{Context, Error, Result};

use crate::exec;

const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks packages (not their dependencies) into a shared folder and returns it; those that are there already are left alone.
pub fn unpacked(packages: &[&str]) -> Result<PathBuf> {
    let base = cache()?;
    let lock = fs::File::create(base.join("lock")).context(|| format!("creating a lock in {}", base.display()))?;
    lock.lock().context(|| format!("locking {}", base.display()))?;
    let (root, done) = (base.join("root"), base.join("done"));
    for folder in [&root, &done] {
        fs::create_dir_all(folder).context(|| format!("creating {}", folder.display()))?;
    }
    for package in packages.iter().filter(|p| !done.join(p).exists()) {
        let deb = download(&base, package)?;
        exec::run("dpkg-deb", &["-x", &text(&deb), &text(&root)])?;
        fs::write(done.join(package), "").context(|| format!("noting {package}"))?;
    }
    Ok(root)
}

/// The name of the newest cloud kernel's package.
pub fn kernel_package() -> Result<String> {
    let base = cache()?;
    let names = apt(&base, "apt-cache", &["--names-only", "search", "^linux-image-[0-9].*-cloud-amd64$"])?;
    let names = String::from_utf8_lossy(&names);
    let newest = names.lines().filter_map(|l| l.split_whitespace().next()).max();
    newest.map(str::to_string).ok_or_else(|| Error::environment(format!("looking for a cloud kernel in {SUITE}: none found")))
}

/// A command that runs a program of the unpacked packages with their own C library: loader and leading arguments.
pub fn program(root: &Path, path: &str) -> (PathBuf, Vec<String>) {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    (libraries.join("ld-linux-x86-64.so.2"), vec!["--library-path".into(), text(&libraries), text(&root.join(path))])
}

fn download(base: &Path, package: &str) -> Result<PathBuf> {
    let folder = base.join("debs").join(package);
    fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display()))?;
    let conf = configuration(base)?;
    exec::run_in("apt-get", &["-qq", "download", package], &folder, &[("APT_CONFIG", &text(&conf))])?;
    let mut files = fs::read_dir(&folder).context(|| format!("listing {}", folder.display()))?.flatten().map(|e| e.path());
    files.find(|p| p.extension().is_some_and(|e| e == "deb")).ok_or_else(|| Error::environment(format!("downloading {package}: no file came")))
}

fn apt(base: &Path, program: &str, args: &[&str]) -> Result<Vec<u8>> {
    let conf = configuration(base)?;
    Ok(exec::run_in(program, args, base, &[("APT_CONFIG", &text(&conf))])?.stdout)
}

/// A configuration of apt that knows nothing of this machine but its mirror; its index is fetched once.
fn configuration(base: &Path) -> Result<PathBuf> {
    let conf = base.join("apt.conf");
    if conf.exists() {
        return Ok(conf);
    }
    for folder in ["lists/partial", "cache/archives/partial", "none"] {
        fs::create_dir_all(base.join(folder)).context(|| format!("creating {folder}"))?;
    }
    fs::write(base.join("sources.list"), format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()?))
        .context(|| "writing sources.list".into())?;
    let b = base.display();
    let lines = format!(
        "Dir::Etc::sourcelist \"{b}/sources.list\";\nDir::Etc::sourceparts \"{b}/none\";\nDir::Etc::preferencesparts \"{b}/none\";\n\
         Dir::State::lists \"{b}/lists\";\nDir::Cache \"{b}/cache\";\nDir::State::status \"/dev/null\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
    );
    let draft = base.join("apt.conf.new");
    fs::write(&draft, lines).context(|| "writing apt.conf".into())?;
    exec::run_in("apt-get", &["-qq", "update"], base, &[("APT_CONFIG", &text(&draft))])?;
    fs::rename(&draft, &conf).context(|| "renaming apt.conf".into())?;
    Ok(conf)
}

/// The Debian mirror of this machine: the first URL in apt's sources that ends in `/debian`.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    files.extend(parts);
    files.sort();
    let texts = files.iter().filter_map(|f| fs::read_to_string(f).ok()).collect::<Vec<_>>().join("\n");
    let urls = texts.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace);
    let found = urls.map(|u| u.trim_end_matches('/')).find(|u| u.starts_with("http") && u.ends_with("/debian"));
    found.map(str::to_string).ok_or_else(|| Error::environment("looking for a Debian mirror in /etc/apt: none found"))
}

fn cache() -> Result<PathBuf> {
    let named = std::env::var_os("CHASI_BOD_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/chasi-bod"));
    let base = named.or_else(home).unwrap_or_else(|| std::env::temp_dir().join("chasi-bod")).join("test-debs");
    fs::create_dir_all(&base).context(|| format!("creating {}", base.display()))?;
    Ok(base)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
