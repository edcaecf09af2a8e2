//! From a request to a lock: read the suites, choose packages, keep what a former lock holds where that is still possible.

use std::collections::{BTreeMap, BTreeSet};

use layers::lock::{Lock, Package};
use layers::profile::{Diagnostics, Spot};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};
use serde::{Deserialize, Serialize};

use super::index::Index;
use super::solve::{Base, Found, Source, Universe, assumed_index, solve};
use super::suite::{self, Suite};
use super::{Archive, Assumed, relation};

/// What is asked of the archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Release code name.
    pub suite: String,
    /// Archive components.
    pub components: Vec<String>,
    /// Whether the suite's updates are looked at too.
    pub updates: Updates,
    /// Debian's name of the machine architecture.
    pub architecture: String,
    /// What the image gets without asking.
    pub base: Base,
    /// Packages of the image by name, with who wants each.
    pub packages: Wanted,
    /// Packages of the tool root, which has no base.
    pub tools: Vec<String>,
    /// Packages that the image provides by other means; the tool root does not have them.
    pub assumed: Vec<Assumed>,
    /// Path of the profile, for messages; no part of what is asked, like the next.
    #[serde(skip)]
    pub profile: String,
    /// Where packages are asked for.
    #[serde(skip)]
    pub asked_at: BTreeMap<String, Vec<Spot>>,
}

/// Package names with the layers that want them.
pub type Wanted = BTreeMap<String, Vec<String>>;

/// Whether `<suite>-updates` and `<suite>-security` are looked at too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Updates {
    /// They are.
    #[default]
    Taken,
    /// Only the suite itself.
    Ignored,
}

/// Which packages may leave the versions of a former lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// None, unless something forces them.
    None,
    /// All.
    All,
    /// These, and what they force.
    Packages(Vec<String>),
}

impl Request {
    /// Digest of all that is asked; a lock that carries another one is outdated.
    pub fn digest(&self) -> Result<Digest> {
        let bytes = serde_json::to_vec(self).map_err(|e| Error::internal(format!("encoding the request: {e}")))?;
        Ok(Digest::of(&bytes))
    }

    fn suites(&self) -> Vec<String> {
        let own = [self.suite.clone()];
        match self.updates {
            Updates::Ignored => own.into(),
            Updates::Taken => own.into_iter().chain(["updates", "security"].map(|pocket| format!("{}-{pocket}", self.suite))).collect(),
        }
    }
}

/// Locks a request against the archive as it is now.
pub fn lock(archive: &Archive, request: &Request, previous: Option<&Lock>, update: &Update) -> Result<Lock> {
    check_update(previous, update)?;
    let suites = load(archive, request, previous)?;
    let assumed = assumed_index(&request.assumed, &request.architecture)?;
    let wanted: Vec<_> = request.packages.keys().map(String::as_str).collect();
    let keep = keep(previous.map(|l| l.packages.as_slice()), update);
    let universe = collect(&suites, &assumed, &keep)?;
    tell_unknown(&universe, request, &wanted)?;
    let found = solve(&universe, request.base, &wanted).context(|| "choosing the packages of the image".into())?;
    let packages = found.iter().map(|f| Package { wanted_by: wanted_by(f, &request.packages), ..locked(f) }).collect();

    let nothing = Index::default();
    let wanted: Vec<_> = request.tools.iter().collect::<BTreeSet<_>>().into_iter().map(String::as_str).collect();
    let keep = self::keep(previous.map(|l| l.tools.as_slice()), update);
    let found =
        collect(&suites, &nothing, &keep).and_then(|u| solve(&u, Base::None, &wanted)).context(|| "choosing the packages of the tool root".into())?;
    let tools = found.iter().map(locked).collect();

    let epoch = suites.iter().map(|s| s.locked.date).max().unwrap_or_default();
    let indices = suites.into_iter().map(|s| s.locked).collect();
    Ok(Lock { lock_version: Lock::VERSION, epoch, request: Some(request.digest()?), indices, packages, tools, ..Lock::default() })
}

fn check_update(previous: Option<&Lock>, update: &Update) -> Result<()> {
    let Update::Packages(names) = update else { return Ok(()) };
    let Some(lock) = previous else {
        return Err(Error::input(format!("updating {}: there is no lock yet", names.join(", "))).with_hint("leave --update out to make one"));
    };
    let known: BTreeSet<_> = lock.packages.iter().chain(&lock.tools).map(|p| p.name.as_str()).collect();
    match names.iter().find(|name| !known.contains(name.as_str())) {
        Some(name) => Err(Error::input(format!("updating {name}: the lock holds no such package"))),
        None => Ok(()),
    }
}

/// Reads all suites at once: each waits for its own downloads.
fn load(archive: &Archive, request: &Request, previous: Option<&Lock>) -> Result<Vec<Suite>> {
    let suites = request.suites();
    let load = |suite: &String| suite::load(archive, suite, &request.components, &request.architecture, previous);
    std::thread::scope(|scope| {
        let handles: Vec<_> = suites.iter().map(|suite| scope.spawn(move || load(suite))).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Suite>>| {
            handle.join().unwrap_or_else(|_| Err(Error::internal("reading a suite: the thread panicked")))
        };
        handles.into_iter().map(join).collect()
    })
}

/// The versions that must not move.
fn keep(packages: Option<&[Package]>, update: &Update) -> BTreeMap<String, String> {
    let moves = |name: &String| match update {
        Update::None => false,
        Update::All => true,
        Update::Packages(names) => names.contains(name),
    };
    packages.unwrap_or_default().iter().filter(|p| !moves(&p.name)).map(|p| (p.name.clone(), p.version.clone())).collect()
}

fn collect<'a>(suites: &'a [Suite], assumed: &'a Index, keep: &'a BTreeMap<String, String>) -> Result<Universe<'a>> {
    let of = |suite: &'a Suite| suite.indices.iter().map(|index| Source { suite: &suite.locked.suite, index });
    let sources: Vec<_> = suites.iter().flat_map(of).collect();
    Universe::new(&sources, assumed, keep)
}

/// Names that mean no package are told all at once, wherever the profile or a layer has them.
fn tell_unknown(universe: &Universe<'_>, request: &Request, wanted: &[&str]) -> Result<()> {
    let unknown = universe.unknown(wanted);
    let spots = |name: &str| request.asked_at.get(name).map(Vec::as_slice).unwrap_or_default();
    let located = unknown.iter().flat_map(|u| spots(&u.name).iter().map(|spot| spot.problem(u.message.clone(), u.hint.clone())));
    // What has no place is told by the solver.
    Ok(Diagnostics::gather(&request.profile, located.collect())?)
}

/// Who asked for a package, by its own name or, when there is no such package, by one that it provides.
fn wanted_by(found: &Found, wanted: &Wanted) -> Vec<String> {
    let package = found.package;
    let provided = relation::list(package.provides()).unwrap_or_default();
    let names = std::iter::once(package.name()).chain(provided.iter().map(|r| r.name));
    let who: BTreeSet<_> = names.filter_map(|name| wanted.get(name)).flatten().cloned().collect();
    who.into_iter().collect()
}

fn locked(found: &Found) -> Package {
    let package = found.package;
    Package {
        name: package.name().into(),
        version: package.version().into(),
        architecture: package.architecture().into(),
        sha256: package.sha256(),
        size: Bytes(package.size()),
        suite: found.suite.into(),
        path: package.filename().into(),
        source: package.source().map(str::to_string),
        wanted_by: Vec::new(),
    }
}
