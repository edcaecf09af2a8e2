//! The images that releases, components and kubeadm ask for: each is made by a recipe, or pulled and locked.

use std::collections::BTreeMap;

use layers::image::LockedImage;
use layers::lock::{Lock, Wanted};
use layers::plan::Plan;
use layers::reference::Reference;
use layers::{Error, Result};

use super::render::{self, Askers};
use crate::pipeline::Planned;
use crate::pipeline::pulls::Renewal;
use crate::source::deb::{Archive, Offline};
use crate::source::oci::{self, Registries};

/// Notes in a lock who asks for which image, and locks those that nothing gives yet; what the former lock has for the same charts,
/// components and programs is not looked for again.
pub fn lock_images(
    site: &Archive<'_>,
    registries: &Registries,
    planned: &Planned,
    lock: &mut Lock,
    (before, renewal): (Option<&Lock>, &Renewal),
) -> Result<()> {
    lock.components = planned.plan.components_request();
    let same =
        before.filter(|old| old.charts == lock.charts && old.components == lock.components && old.sources == lock.sources && !old.wanted.is_empty());
    lock.wanted = match same {
        Some(old) => old.wanted.clone(),
        None => asked_for(render::wanted(site, &planned.plan, lock)?)?,
    };
    let mut problems = Vec::new();
    for Wanted { image, wanted_by } in &lock.wanted {
        let Some(name) = Reference::canonical(image).map(|whole| whole.to_string()) else { continue };
        if is_made(&planned.plan, &name) {
            continue;
        }
        if let Some(declared) = lock.images.iter_mut().find(|known| known.name == name) {
            declared.wanted_by.extend(wanted_by.clone());
            continue;
        }
        let kept = before.and_then(|old| old.images.iter().find(|known| known.name == name && known.pull == name)).filter(|_| !renewal.takes(&name));
        let locked = kept.map_or_else(|| pull(site, registries, planned, &name), |old| Ok(old.clone()));
        match locked {
            Ok(locked) => lock.images.push(LockedImage { wanted_by: wanted_by.clone(), ..locked }),
            Err(error) => problems.push(format!("{name}, asked for by {}: {error}", wanted_by.join(", "))),
        }
    }
    lock.images.sort_by(|a, b| a.name.cmp(&b.name));
    refuse(&problems, "images cannot be had")
}

fn pull(site: &Archive<'_>, registries: &Registries, planned: &Planned, name: &str) -> Result<LockedImage> {
    if site.offline == Offline::Required {
        return Err(Error::environment("that needs the network"));
    }
    eprintln!("locking image {name}");
    oci::lock(site, registries, name, name, planned.profile.architecture.debian())
}

/// The images with their askers, for the lock; one tag that is asked for by two digests is refused.
fn asked_for(askers: Askers) -> Result<Vec<Wanted>> {
    let (mut problems, mut digests) = (Vec::new(), BTreeMap::new());
    for (image, by) in askers.iter().filter(|(image, _)| image.tag.is_some()) {
        let by: Vec<_> = by.iter().map(String::as_str).collect();
        let name = Reference { digest: None, ..image.clone() }.to_string();
        let (Some(digest), by) = (image.digest, by.join(", ")) else { continue };
        if let Some((other, first)) = digests.insert(name.clone(), (digest, by.clone())) {
            problems.push(format!("{name} is {other} for {first} and {digest} for {by}"));
        }
    }
    refuse(&problems, "one name stands for two images")?;
    Ok(askers.into_iter().map(|(image, by)| Wanted { image: image.to_string(), wanted_by: by.into_iter().collect() }).collect())
}

fn refuse(problems: &[String], what: &str) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let hint = "declare a recipe or a `pull` of that name under `images`, or set another image in the release's `values`";
    Err(Error::input(format!("looking for the images of the seed: {what}:\n  {}", problems.join("\n  "))).with_hint(hint))
}

fn is_made(plan: &Plan, name: &str) -> bool {
    plan.images.iter().any(|made| made.image.name == name)
}

/// Whether everything that is asked for is made or locked.
pub fn answers(plan: &Plan, lock: &Lock) -> bool {
    let is_there = |wanted: &Wanted| {
        let name = Reference::canonical(&wanted.image).map(|whole| whole.to_string()).unwrap_or_default();
        is_made(plan, &name) || lock.images.iter().any(|image| image.name == name)
    };
    lock.wanted.is_empty() != render::can_render(plan) && lock.wanted.iter().all(is_there)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use layers::units::Digest;

    use super::*;

    fn askers(list: &[(String, &str)]) -> Askers {
        list.iter().map(|(image, by)| (Reference::with_tag(image).unwrap(), BTreeSet::from([by.to_string()]))).collect()
    }

    #[test]
    fn c8_two_charts_that_want_one_name_with_different_digests_are_both_named() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let error = asked_for(askers(&[(format!("q.io/x/y:1@{a}"), "chart one: t.yaml"), (format!("q.io/x/y:1@{b}"), "chart two: t.yaml")]));
        let error = error.unwrap_err().to_string();
        for says in ["q.io/x/y:1 is ", &a.to_string(), &b.to_string(), "for chart one: t.yaml", "for chart two: t.yaml"] {
            assert!(error.contains(says), "`{says}` is not in {error}");
        }
        let fine = asked_for(askers(&[(format!("q.io/x/y:1@{a}"), "chart one: t.yaml"), ("q.io/x/y:1".into(), "chart two: t.yaml")])).unwrap();
        assert_eq!(fine.len(), 2);
    }
}
