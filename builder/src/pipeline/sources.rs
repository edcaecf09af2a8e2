//! Sources beside Debian packages: locked, fetched and made into file contents.

use std::collections::BTreeSet;

use layers::lock::Lock;
use layers::plan::{Body, Plan};
use layers::source::{LockedSource, PlannedSource, Source};
use layers::units::Digest;
use layers::{Context, Error, Result};

use crate::assemble::apply::Contents;
use crate::source::deb::{Archive, Offline};
use crate::source::go::{self, Proxies};
use crate::source::url;
use crate::store::Store;
use crate::tree::Content;

/// Locks the plan's sources; one that the former lock has for the same declaration stays as it is, but for what is known of licences.
pub fn lock(site: &Archive<'_>, plan: &Plan, before: Option<&Lock>) -> Result<Vec<LockedSource>> {
    let renewed = |old: &LockedSource| LockedSource { go: old.go.as_ref().map(|go| go::licence::renewed(site.store, go)), ..old.clone() };
    plan.sources.iter().map(|planned| kept(planned, before).map_or_else(|| lock_one(site, planned), |old| Ok(renewed(old)))).collect()
}

/// Whether a lock answers all that the plan asks of sources.
pub fn answers(plan: &Plan, lock: &Lock) -> bool {
    plan.sources.len() == lock.sources.len() && plan.sources.iter().all(|planned| kept(planned, Some(lock)).is_some())
}

fn kept<'a>(planned: &PlannedSource, lock: Option<&'a Lock>) -> Option<&'a LockedSource> {
    lock?.sources.iter().find(|old| old.name == planned.name && old.request == planned.request())
}

fn lock_one(site: &Archive<'_>, planned: &PlannedSource) -> Result<LockedSource> {
    let context = || format!("locking source `{}` of layer `{}`", planned.name, planned.layer);
    if site.offline == Offline::Required {
        return Err(Error::environment(format!("{}: that needs the network", context())));
    }
    eprintln!("locking source {}", planned.name);
    let empty = LockedSource { name: planned.name.clone(), request: planned.request(), go: None, url: None };
    match &planned.source {
        Source { go: Some(declared), .. } => {
            Ok(LockedSource { go: Some(go::lock(site, &Proxies::find()?, planned, declared).context(context)?), ..empty })
        }
        Source { url: Some(declared), .. } => Ok(LockedSource { url: Some(url::lock(site, &planned.name, declared).context(context)?), ..empty }),
        _ => Err(Error::internal(format!("{}: its kind is not known", context()))),
    }
}

/// Puts everything that the lock's sources name into the store.
pub fn fetch(site: &Archive<'_>, lock: &Lock) -> Result<()> {
    for source in &lock.sources {
        let missing = source.blobs().into_iter().filter(|(sha256, _)| !site.store.blob(sha256).exists()).count();
        if missing == 0 {
            continue;
        }
        if site.offline == Offline::Required {
            let message = format!("building offline: the store lacks {missing} downloads of source `{}`", source.name);
            return Err(Error::environment(message).with_hint("build once with network, or bring the store with `chasi-bod cache export`"));
        }
        match source {
            LockedSource { go: Some(locked), .. } => go::fetch(site, &Proxies::find()?, &source.name, locked)?,
            LockedSource { url: Some(locked), .. } => url::fetch(site, &source.name, locked)?,
            _ => {}
        }
    }
    Ok(())
}

/// Builds and unpacks what files take from sources.
pub fn make(store: &Store, plan: &Plan, lock: &Lock) -> Result<Contents> {
    let mut out = Contents::new();
    let files = plan.layers.iter().flat_map(|layer| &layer.files).chain(plan.image_layers.iter().flat_map(|layer| &layer.files));
    let wanted: BTreeSet<_> = files.filter_map(|f| if let Body::From { source, member } = &f.body { Some((source, member)) } else { None }).collect();
    for (name, member) in wanted {
        let (planned, locked) = found(plan, lock, name)?;
        out.insert((name.clone(), member.clone()), make_one(store, planned, locked, member.as_deref())?);
    }
    Ok(out)
}

/// The file that a source gives, built now or taken from the store.
pub fn file(store: &Store, plan: &Plan, lock: &Lock, (name, member): (&str, Option<&str>)) -> Result<Content> {
    let (planned, locked) = found(plan, lock, name)?;
    make_one(store, planned, locked, member)
}

fn found<'a>(plan: &'a Plan, lock: &'a Lock, name: &str) -> Result<(&'a PlannedSource, &'a LockedSource)> {
    let planned = plan.sources.iter().find(|s| s.name == name);
    let found = planned.and_then(|planned| Some((planned, kept(planned, Some(lock))?)));
    found.ok_or_else(|| Error::internal(format!("building source `{name}`: it is not in the lock")))
}

fn make_one(store: &Store, planned: &PlannedSource, locked: &LockedSource, member: Option<&str>) -> Result<Content> {
    let member = member.or(planned.source.url.as_ref().and_then(|url| url.file.as_deref()));
    match (&planned.source.go, &locked.go, &locked.url) {
        (Some(declared), Some(locked), _) => go::build(store, planned, declared, locked),
        (_, _, Some(locked)) => {
            let key = Digest::of_parts([b"url v1".as_slice(), &locked.sha256.0, member.unwrap_or_default().as_bytes()]);
            if let Some(content) = store.load::<Content>("url", &key)?.filter(|_| store.pack(&key).exists()) {
                return Ok(content);
            }
            let mut pack = store.new_pack(key)?;
            let content = match member {
                Some(member) => url::member(store, &planned.name, locked, member, &mut pack)?,
                None => url::whole(store, &planned.name, locked, &mut pack)?,
            };
            pack.finish()?;
            store.save("url", &key, &content)?;
            Ok(content)
        }
        _ => Err(Error::internal(format!("building source `{}`: the lock has another kind", planned.name))),
    }
}
