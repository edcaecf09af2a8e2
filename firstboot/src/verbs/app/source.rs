//! Where images come from that a cluster lacks: folders and files that a person has, and registries that this machine reaches.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use layers::reference::Reference;
use layers::{Context as _, Error, Result};

use crate::remote::http::{Client, Limits};
use crate::remote::oci::{Content, Layout, Registries, Repository};

/// What a person names.
#[derive(Debug, Args)]
pub struct Given {
    /// Images in an OCI layout, a folder or a tar file, under the names that it has for them; with REFERENCE= its only image stands for that.
    #[arg(long, value_name = "[REFERENCE=]PATH")]
    images: Vec<String>,
    /// Registry that this machine asks for images, under the same repositories: HOST, a URL, or `upstream` for the one of each image's name.
    #[arg(long, value_name = "REGISTRY")]
    from: Vec<String>,
}

/// All of them, in their order; what a person has comes first.
#[derive(Clone)]
pub struct Sources(Vec<Source>);

#[derive(Clone)]
enum Source {
    Layout(Arc<Layout>, Option<Reference>),
    Registry(Arc<Remote>),
}

/// A registry that is asked in the place of the image's own, or that one.
struct Remote {
    http: Client,
    mirrors: Registries,
    host: Option<String>,
}

impl Given {
    pub fn open(&self) -> Result<Sources> {
        let layouts = self.images.iter().map(|text| layout(text));
        let registries = self.from.iter().map(|text| registry(text));
        layouts.chain(registries).collect::<Result<_>>().map(Sources)
    }
}

fn layout(text: &str) -> Result<Source> {
    let named = text.split_once('=').filter(|_| !Path::new(text).exists());
    let Some((name, path)) = named else { return Ok(Source::Layout(Layout::open(Path::new(text))?.into(), None)) };
    let name = Reference::with_tag(name).ok_or_else(|| Error::input(format!("reading --images {text}: `{name}` is no reference of an image")))?;
    let layout = Layout::open(Path::new(path))?;
    match layout.entries().len() {
        1 => Ok(Source::Layout(layout.into(), Some(name))),
        count => Err(Error::input(format!("reading --images {text}: {path} has {count} images, which are not one that could stand for {name}"))),
    }
}

fn registry(text: &str) -> Result<Source> {
    let http = Client::new(Limits::default());
    let (host, mirrors) = match text.split_once("://") {
        _ if text == "upstream" => (None, Vec::new()),
        None => (Some(text.to_string()), Vec::new()),
        Some((_, rest)) => {
            let host = rest.split('/').next().unwrap_or_default();
            (Some(host.to_string()), vec![format!("{host}={text}")])
        }
    };
    if let Some(host) = host.iter().find(|host| format!("{host}/x:1").parse::<Reference>().is_err()) {
        return Err(Error::input(format!("reading --from {text}: `{host}` is no host of a registry"))
            .with_hint("such as registry.example.org:5000 or `upstream`"));
    }
    Ok(Source::Registry(Arc::new(Remote { http, mirrors: Registries::find(&mirrors)?, host })))
}

impl Sources {
    /// The first source that has the image.
    pub fn find(&self, image: &Reference) -> Result<Option<Content>> {
        for source in &self.0 {
            if let Some(content) = source.find(image).context(|| format!("looking for image {image}"))? {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    /// Their names for people.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(Source::name).collect();
        names.join(", ")
    }
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Layout(layout, _) => layout.path().display().to_string(),
            Self::Registry(remote) => remote.host.clone().unwrap_or_else(|| "its own registry".into()),
        }
    }

    fn find(&self, image: &Reference) -> Result<Option<Content>> {
        match self {
            Self::Layout(layout, alias) => {
                let is = |name: &Reference, digest| match image.digest {
                    Some(wanted) => wanted == digest,
                    None => (name.place(), &name.tag) == (image.place(), &image.tag),
                };
                let entry = layout.entries().iter().find(|entry| {
                    let name = alias.as_ref().or(entry.name.as_ref());
                    name.map_or(image.digest == Some(entry.target.digest), |name| is(name, entry.target.digest))
                });
                let Some(entry) = entry else { return Ok(None) };
                Content::of_layout(layout, &entry.target).map(Some)
            }
            Self::Registry(remote) => {
                let Remote { http, mirrors, host } = &**remote;
                let asked = Reference { registry: host.clone().unwrap_or_else(|| image.registry.clone()), ..image.clone() };
                let repository = Repository::open(http, mirrors, &asked)?;
                match repository.find(&image.wanted())? {
                    None => Ok(None),
                    Some(_) => Content::of_repository(repository, &image.wanted()).map(Some),
                }
            }
        }
    }
}
