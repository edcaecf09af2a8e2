//! Images from one place to a registry, as they are: nothing is packed anew, so digests stay.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::sync::Arc;

use layers::image::Descriptor;
use layers::{Context as _, Error, Fault, Result};

use super::{Document, Kind, Layout, Repository, document};
use crate::remote::http::{Body, Open, Outcome};

/// An image in its place.
#[derive(Debug)]
pub struct Content {
    root: Document,
    /// Where it is, for people.
    pub place: String,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    Layout(Arc<Layout>),
    Repository(Box<Repository>),
}

/// Of which platforms an image goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platforms<'a> {
    /// Linux on an architecture, as Go names it; the image becomes one without an index.
    One(&'a str),
    /// All that it has: who names an image by the digest of its index wants that one.
    All,
}

impl Content {
    /// An image of a layout.
    pub fn of_layout(layout: &Arc<Layout>, target: &Descriptor) -> Result<Self> {
        Ok(Self { root: layout.document(target)?, place: layout.path().display().to_string(), parts: Parts::Layout(layout.clone()) })
    }

    /// An image of a registry by its tag or digest.
    pub fn of_repository(repository: Repository, wanted: &str) -> Result<Self> {
        Ok(Self { root: repository.manifest(wanted)?, place: repository.name().into(), parts: Parts::Repository(Box::new(repository)) })
    }

    /// The document that will stand for it.
    pub fn chosen(&self, platforms: Platforms<'_>) -> Result<Document> {
        match (&self.root.kind, platforms) {
            (Kind::Index(index), Platforms::One(architecture)) => self.document(&document::choose(index, architecture)?),
            _ => Ok(self.root.clone()),
        }
    }

    /// Puts a document with all below it into a repository, what is there already not again; gives the bytes that were sent.
    pub fn copy_to(&self, repository: &Repository, root: &Document, wanted: &str, platforms: Platforms<'_>) -> Result<u64> {
        let mut sent = 0;
        match &root.kind {
            Kind::Index(index) => {
                for of in index.manifests() {
                    let below = self.document(&document::descriptor(of)?)?;
                    let digest = below.descriptor.digest.to_string();
                    if matches!(below.kind, Kind::Index(_)) {
                        return Err(Error::input(format!("{digest} is an index within an index")));
                    }
                    sent += self.copy_to(repository, &below, &digest, Platforms::All)?;
                }
            }
            Kind::Manifest(manifest) => {
                let config = document::descriptor(manifest.config())?;
                if let Platforms::One(architecture) = platforms {
                    let text = self.bytes(&document::config(manifest)?)?;
                    document::check_config(&text, manifest, architecture).context(|| format!("reading configuration {}", config.digest))?;
                }
                for of in manifest.layers().iter().map(document::descriptor).chain([Ok(config)]) {
                    sent += self.blob(repository, &of?)?;
                }
            }
        }
        repository.put_manifest(wanted, root)?;
        Ok(sent + root.descriptor.size.0)
    }

    fn blob(&self, repository: &Repository, of: &Descriptor) -> Result<u64> {
        if repository.has_blob(of)? {
            return Ok(0);
        }
        let open = self.opener(of)?;
        repository.put_blob(of, &Body { media_type: "application/octet-stream", size: of.size.0, open: &*open })?;
        Ok(of.size.0)
    }

    fn document(&self, of: &Descriptor) -> Result<Document> {
        match &self.parts {
            Parts::Layout(layout) => layout.document(of),
            Parts::Repository(repository) => repository.document(of),
        }
    }

    /// A configuration, whole.
    fn bytes(&self, of: &Descriptor) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.opener(of)?()?.take(of.size.0 + 1).read_to_end(&mut bytes).context(|| format!("reading {} of {}", of.digest, self.place))?;
        Ok(bytes)
    }

    /// What opens a blob at its beginning, as often as it is wanted; one of a registry is fetched first.
    fn opener<'a>(&'a self, of: &'a Descriptor) -> Result<Box<Open<'a>>> {
        let repository = match &self.parts {
            Parts::Layout(layout) => return Ok(Box::new(|| layout.blob(of))),
            Parts::Repository(repository) => repository,
        };
        let fetching = || format!("fetching blob {} of {}", of.digest, repository.name());
        let mut file = tempfile::tempfile().context(fetching)?;
        match repository.client().download(&repository.blob_url(&of.digest), &mut file, of.size.0, &|_| ()).context(fetching)? {
            Outcome::Whole => Ok(Box::new(move || again(&file).fault(Fault::Environment, fetching))),
            Outcome::TooLong => Err(Error::environment(format!("{}: it has more than {} bytes", fetching(), of.size.0))),
            Outcome::Missing => Err(Error::environment(format!("{}: the registry does not have it", fetching()))),
        }
    }
}

fn again(file: &File) -> std::io::Result<Box<dyn Read>> {
    let mut file = file.try_clone()?;
    file.rewind()?;
    Ok(Box::new(file))
}
