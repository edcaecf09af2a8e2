//! Container images of registries (OCI distribution specification 1.1, docker's schema 2): a reference is locked to the digest that it stands for, and
//! index, manifest, configuration and layers come into the store as the registry has them.
//!
//! What a registry says is not believed: documents end at 4 MiB and must be what they are served as, bytes have the digest and the length that was
//! told of them before, and nobody is followed to addresses that no server is told from outside.

use layers::image::{Descriptor, LockedImage};
use layers::reference::Reference;
use layers::{Context, Error, Result};

use super::deb::fetch::{Got, obtain};
use super::deb::{Archive, Want};

pub use firstboot::remote::oci::{Document, Kind, Registries, Repository, document};

/// Asks a registry what `pull` stands for on `architecture` (as Go names it), for an image that will be called `name`. Documents are in the store
/// afterwards, layers are only known to be there. Who wants the image is for the caller to say.
pub fn lock(site: &Archive<'_>, registries: &Registries, name: &str, pull: &str, architecture: &str) -> Result<LockedImage> {
    let naming = || if name == pull { format!("locking image {name}") } else { format!("locking image {name} from {pull}") };
    lock_image(site, registries, (name, pull), architecture).context(naming)
}

fn lock_image(site: &Archive<'_>, registries: &Registries, (name, pull): (&str, &str), architecture: &str) -> Result<LockedImage> {
    let reference: Reference = pull.parse().map_err(|what: String| Error::input(what))?;
    let repository = Repository::open(&site.http, registries, &reference)?;
    let target = repository.manifest(&reference.wanted())?;
    let manifest = match &target.kind {
        Kind::Index(index) => repository.document(&document::choose(index, architecture)?)?,
        Kind::Manifest(_) => target.clone(),
    };
    let Kind::Manifest(parts) = &manifest.kind else {
        return Err(Error::input(format!("{} is an index within an index", manifest.descriptor.digest)));
    };
    let config = document::config(parts)?;
    let text = repository.blob(&config)?;
    document::check_config(&text, parts, architecture).context(|| format!("reading configuration {}", config.digest))?;
    let layers = document::layers(parts)?;
    layers.iter().try_for_each(|layer| repository.check_blob(layer))?;
    for bytes in [&target.bytes, &manifest.bytes, &text] {
        site.store.put_blob(bytes)?;
    }
    let (target, manifest) = (target.descriptor, manifest.descriptor);
    Ok(LockedImage { name: name.into(), pull: pull.into(), target, manifest, config, layers, wanted_by: Vec::new() })
}

/// What a reference stands for now; asked where a lock has it already.
pub fn current(site: &Archive<'_>, registries: &Registries, pull: &str) -> Result<Descriptor> {
    let reference: Reference = pull.parse().map_err(|what: String| Error::input(what))?;
    Ok(Repository::open(&site.http, registries, &reference)?.manifest(&reference.wanted())?.descriptor)
}

/// Puts everything of a locked image that the store lacks into it; downloads that broke off go on where they were.
pub fn fetch(site: &Archive<'_>, registries: &Registries, image: &LockedImage) -> Result<()> {
    let missing: Vec<_> = image.descriptors().filter(|part| !is_stored(site, part)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let naming = || format!("fetching image {}", image.name);
    let reference: Reference = image.pull.parse().map_err(|what: String| Error::input(what)).context(naming)?;
    let repository = Repository::open(&site.http, registries, &reference).context(naming)?;
    let is_manifest = |part: &Descriptor| [image.target.digest, image.manifest.digest].contains(&part.digest);
    let through = site.through(repository.client());
    site.progress.start(&naming(), missing.len() as u64, missing.iter().map(|part| part.size.0).sum());
    let done = super::in_parallel(&missing, |part| {
        let url = if is_manifest(part) { repository.manifest_url(&part.digest.to_string()) } else { repository.blob_url(&part.digest) };
        let want = Want { label: format!("{} of image {}", part.digest, image.name), sha256: part.digest, size: part.size.0, urls: vec![url] };
        match obtain(&through, &want)? {
            Got::Present => site.progress.finish_file(),
            Got::Missing => {
                return Err(Error::environment(format!("{} has no {} any more", repository.name(), part.digest))
                    .with_hint(format!("`chasi-bod lock PROFILE --update {}` takes what the reference stands for now", image.name)));
            }
            Got::Wrong(got) => {
                let kept = site.store.quarantine(&part.digest);
                let what = format!("{} sends other bytes, twice: expected {}, got {got}", repository.name(), part.digest);
                return Err(Error::environment(format!("{what}; the last ones are kept as {}", kept.display())));
            }
        }
        Ok(())
    });
    site.progress.finish();
    done.context(naming)
}

fn is_stored(site: &Archive<'_>, part: &Descriptor) -> bool {
    std::fs::metadata(site.store.blob(&part.digest)).is_ok_and(|meta| meta.len() == part.size.0)
}
