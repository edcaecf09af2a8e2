//! Container images of registries: locked to digests and fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use layers::image::{LockedImage, PlannedPull};
use layers::lock::Lock;
use layers::plan::Plan;
use layers::reference::Reference;
use layers::{Error, Result};

use super::Planned;
use crate::source::deb::{Archive, Offline};
use crate::source::in_parallel;
use crate::source::oci::{self, Registries};

/// Which images may leave the digests of a former lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Those of these names.
    Named(BTreeSet<String>),
    /// All.
    All,
}

impl Renewal {
    /// What `--update` says of images: all when it names nothing.
    pub fn of(update: Option<&[String]>) -> Self {
        match update {
            Some([]) => Self::All,
            names => Self::Named(names.unwrap_or_default().iter().filter(|name| is_image(name)).cloned().collect()),
        }
    }

    /// Whether an image of this name may leave it.
    pub fn takes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(name),
        }
    }
}

/// Whether a name given to `--update` is one of an image; packages have no slash.
pub fn is_image(name: &str) -> bool {
    name.contains('/')
}

/// Locks the plan's images. One that the former lock has for the same reference keeps its digest: where the registry's tag has moved, that is told.
pub fn lock(site: &Archive<'_>, registries: &Registries, planned: &Planned, before: Option<&Lock>, renewal: &Renewal) -> Result<Vec<LockedImage>> {
    if let Renewal::Named(names) = renewal
        && let Some(name) = names.iter().find(|name| !is_known(name, planned, before))
    {
        let error = Error::input(format!("updating {name}: no image of this name is pulled"));
        let hint = layers::profile::suggest(name, planned.plan.pulls.iter().map(|pull| pull.name.as_str()));
        return Err(error.with_hint(hint.unwrap_or_else(|| "`chasi-bod plan PROFILE` shows those that are".into())));
    }
    let done = Mutex::new(BTreeMap::new());
    in_parallel(&planned.plan.pulls, |pull| {
        let image = lock_one(site, registries, pull, kept(pull, before).filter(|_| !renewal.takes(&pull.name)), planned)?;
        done.lock().unwrap_or_else(|e| e.into_inner()).insert(pull.name.clone(), image);
        Ok(())
    })?;
    Ok(done.into_inner().unwrap_or_else(|e| e.into_inner()).into_values().collect())
}

/// Whether an image is declared, or was locked because charts ask for it.
fn is_known(name: &str, planned: &Planned, before: Option<&Lock>) -> bool {
    planned.plan.pulls.iter().any(|pull| pull.name == name) || before.is_some_and(|lock| lock.images.iter().any(|image| image.name == name))
}

fn lock_one(site: &Archive<'_>, registries: &Registries, pull: &PlannedPull, kept: Option<&LockedImage>, planned: &Planned) -> Result<LockedImage> {
    let PlannedPull { name, pull, wanted_by, .. } = pull;
    let wanted_by = vec![wanted_by.clone()];
    if let Some(kept) = kept {
        tell_moved(site, registries, kept);
        return Ok(LockedImage { wanted_by, ..kept.clone() });
    }
    if site.offline == Offline::Required {
        return Err(Error::environment(format!("locking image {name}: that needs the network")));
    }
    eprintln!("locking image {name}");
    let locked = oci::lock(site, registries, name, pull, planned.profile.architecture.debian())?;
    Ok(LockedImage { wanted_by, ..locked })
}

/// A registry that cannot be asked is no hindrance: the digest is known.
fn tell_moved(site: &Archive<'_>, registries: &Registries, image: &LockedImage) {
    let fixed = image.pull.parse::<Reference>().is_ok_and(|reference| reference.digest.is_some());
    if site.offline == Offline::Required || fixed {
        return;
    }
    let (name, pull, locked) = (&image.name, &image.pull, &image.target.digest);
    match oci::current(site, registries, pull) {
        Ok(now) if now.digest == *locked => {}
        Ok(now) => eprintln!(
            "warning: {pull} was moved to {}; the lock keeps {locked}. `chasi-bod lock PROFILE --update {name}` takes what it stands for now",
            now.digest
        ),
        Err(error) => eprintln!("notice: the lock keeps {pull} as {locked}, unasked: {error}"),
    }
}

/// Whether a lock answers what the plan asks of images; those that charts ask for are not its matter.
pub fn answers(plan: &Plan, lock: &Lock) -> bool {
    let asked: BTreeSet<_> = plan.pulls.iter().map(|p| (p.name.as_str(), p.pull.as_str(), vec![p.wanted_by.as_str()])).collect();
    let declared = lock.images.iter().map(|image| (image.name.as_str(), image.pull.as_str(), image.declared_by().collect::<Vec<_>>()));
    declared.filter(|(.., by)| !by.is_empty()).collect::<BTreeSet<_>>() == asked
}

fn kept<'a>(pull: &PlannedPull, lock: Option<&'a Lock>) -> Option<&'a LockedImage> {
    lock?.images.iter().find(|image| image.name == pull.name && image.pull == pull.pull)
}

/// Puts what the lock's images are made of into the store.
pub fn fetch(site: &Archive<'_>, registries: &Registries, lock: &Lock) -> Result<()> {
    lock.images.iter().try_for_each(|image| oci::fetch(site, registries, image))
}
