//! From a lock to a program, in the sandbox and without network. Equal inputs give equal bytes on every machine, so a result is kept by its key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use layers::source::{GoSource, LockedGo, PlannedSource};
use layers::{Context, Error, Result};

use super::{alone, environment, home, lock, proxy, toolchain};
use crate::assemble::scratch::{Options, Root};
use crate::store::Store;
use crate::tree::{Content, Tree};

/// The longest that one program may take.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// The program, built now or taken from the store.
pub fn build(store: &Store, planned: &PlannedSource, go: &GoSource, locked: &LockedGo) -> Result<Content> {
    let key = lock::key(planned, locked);
    if let Some(content) = store.load::<Content>("go", &key)?.filter(|_| store.pack(&key).exists()) {
        return Ok(content);
    }
    let bytes = compile(store, planned, go, locked).context(|| format!("building {} from Go modules", planned.name))?;
    let mut pack = store.new_pack(key)?;
    let content = pack.add(&bytes)?;
    pack.finish()?;
    store.save("go", &key, &content)?;
    Ok(content)
}

fn compile(store: &Store, planned: &PlannedSource, go: &GoSource, locked: &LockedGo) -> Result<Vec<u8>> {
    let home = home(store);
    let _alone = alone(store)?;
    let folder = toolchain::unpacked(store, &locked.toolchain)?;
    for dir in ["cache", "tmp", "mod"] {
        fs::create_dir_all(home.join(dir)).context(|| format!("creating {}", home.join(dir).display()))?;
    }
    let job = Job::new(&home)?;
    job.fill(store, planned, go, locked)?;
    let root = Root::materialize(store, &Tree::default())?;
    let argv = argv(&folder, go);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let done = root.run_with_work(&argv, &home, &Options { limit: LIMIT, epoch: 0, env: variables(&folder) })?;
    if done.status != 0 {
        return Err(Error::input(format!("the Go command ended with status {}\n{}", done.status, done.log.trim_end())));
    }
    fs::read(job.0.join("out")).context(|| "reading the program".into())
}

/// The folder of one build, below the home of all: `program`, `proxy` and `out`. It goes with the build.
struct Job(PathBuf);

impl Job {
    fn new(home: &Path) -> Result<Self> {
        let path = home.join("job");
        let removed = fs::remove_dir_all(&path);
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(|| format!("removing {}", path.display())),
            _ => fs::create_dir_all(path.join("program")).context(|| format!("creating {}", path.display()))?,
        }
        Ok(Self(path))
    }

    /// Lays out the program and a proxy of files with exactly the locked modules.
    fn fill(&self, store: &Store, planned: &PlannedSource, go: &GoSource, locked: &LockedGo) -> Result<()> {
        let program = self.0.join("program");
        lock::write_program(&program, planned, go)?;
        for (name, text) in [("go.mod", &locked.go_mod), ("go.sum", &locked.go_sum)] {
            fs::write(program.join(name), text).context(|| format!("writing {name}"))?;
        }
        let put = |digest, module: &layers::source::LockedModule, kind| -> Result<()> {
            let path = self.0.join("proxy").join(proxy::place(&module.path, &module.version, kind));
            let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(store.blob(digest), &path).map(drop));
            made.context(|| format!("laying out module {} {}", module.path, module.version))
        };
        for module in &locked.modules {
            put(&module.sha256, module, "zip")?;
            if let Some(file) = &module.go_mod {
                put(&file.sha256, module, "mod")?;
            }
        }
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A folder that stays is removed by the next build.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Compilers are short-lived: collecting garbage seldom takes a sixth off the processor time of a build (etcd), the limit keeps a large link in bounds.
const MEMORY: [(&str, &str); 2] = [("GOGC", "800"), ("GOMEMLIMIT", "1GiB")];

fn variables(folder: &str) -> BTreeMap<String, String> {
    let mut out: BTreeMap<_, _> = environment("/work", folder).into_iter().collect();
    let own = [
        ("GOMODCACHE", "/work/mod"),
        ("GOPROXY", "file:///work/job/proxy"),
        ("GOSUMDB", "off"),
        ("GOFLAGS", "-mod=readonly -modcacherw -buildvcs=false"),
        ("HOME", "/work/tmp"),
    ];
    out.extend(own.into_iter().chain(MEMORY).map(|(key, value)| (key.to_string(), value.to_string())));
    out
}

/// The command line: position-independent of the machine (`-trimpath`, no build id), without symbols.
fn argv(folder: &str, go: &GoSource) -> Vec<String> {
    let mut flags = "-s -w -buildid=".to_string();
    for (variable, value) in &go.variables {
        flags.push_str(&format!(" -X '{variable}={value}'"));
    }
    let mut out: Vec<String> = [format!("/work/{folder}/bin/go"), "build".into(), "-C".into(), "/work/job/program".into()].into();
    out.extend(["-trimpath".into(), "-ldflags".into(), flags, "-tags".into(), go.tags.join(","), "-o".into(), "/work/job/out".into()]);
    out.push(go.package.clone().unwrap_or_else(|| ".".into()));
    out
}
