//! One repository of a registry (OCI distribution specification 1.1, pull).

use std::sync::Arc;

use layers::image::{DOCUMENT_LIMIT, Descriptor};
use layers::reference::Reference;
use layers::units::Digest;
use layers::{Context, Error, Result};
use serde_json::Value;

use super::Registries;
use super::document::{ACCEPTED, Document, clean};
use crate::remote::auth::Access;
use crate::remote::http::{Client, Method, Reply};

/// Most bytes of an answer that has no document.
pub(super) const ANSWER_LIMIT: u64 = 1 << 20;

/// A repository, and the right to read it as far as the registry gives it.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(super) http: Client,
    /// Registry and repository as people write them.
    pub(super) name: String,
    /// Address below which manifests and blobs are.
    pub(super) base: String,
}

impl Repository {
    /// The repository of a reference, at its registry or that one's mirror; nothing is asked yet.
    pub fn open(http: &Client, registries: &Registries, reference: &Reference) -> Result<Self> {
        let place = registries.place(reference);
        let access = Access::new(http, &place.host, &place.repository, registries.credentials(&place)?);
        let base = format!("{}/v2/{}", place.base, place.repository);
        Ok(Self { http: http.with_access(Arc::new(access)), name: reference.place(), base })
    }

    /// Its name for people, without tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client that has the right to read it.
    pub fn client(&self) -> Client {
        self.http.accepting(ACCEPTED)
    }

    /// Address of a manifest.
    pub fn manifest_url(&self, wanted: &str) -> String {
        format!("{}/manifests/{wanted}", self.base)
    }

    /// Address of a blob.
    pub fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}", self.base)
    }

    /// The manifest or index that a tag or digest stands for.
    pub fn manifest(&self, wanted: &str) -> Result<Document> {
        let naming = || format!("reading manifest {wanted} of {}", self.name);
        let read = || {
            let reply = self.ask(&self.http.accepting(ACCEPTED), &self.manifest_url(wanted), DOCUMENT_LIMIT)?;
            let found = Digest::of(&reply.body);
            let told = [wanted, reply.header("docker-content-digest")].into_iter().filter(|text| text.starts_with("sha256:"));
            if let Some(told) = told.filter(|text| **text != found.to_string()).map(clean).next() {
                return Err(Error::input(format!("its digest is {found}, not {told}")));
            }
            Document::read(reply.body.clone(), reply.header("content-type"))
        };
        read().context(naming)
    }

    /// The manifest that an index names.
    pub fn document(&self, of: &Descriptor) -> Result<Document> {
        let document = self.manifest(&of.digest.to_string())?;
        match document.descriptor.size {
            size if size == of.size => Ok(document),
            size => {
                Err(Error::input(format!("reading manifest {} of {}: it has {} bytes, the index says {}", of.digest, self.name, size.0, of.size.0)))
            }
        }
    }

    /// A small blob: a configuration, a chart. Nothing above its size is read.
    pub fn blob(&self, of: &Descriptor) -> Result<Vec<u8>> {
        let read = || {
            let Reply { body, .. } = self.ask(&self.http, &self.blob_url(&of.digest), of.size.0)?;
            if body.len() as u64 != of.size.0 {
                return Err(Error::input(format!("it has {} bytes, the manifest says {}", body.len(), of.size.0)));
            }
            match Digest::of(&body) {
                found if found == of.digest => Ok(body),
                found => Err(Error::input(format!("its digest is {found}"))),
            }
        };
        read().context(|| format!("reading blob {} of {}", of.digest, self.name))
    }

    /// Asks whether the registry has a blob of the told size. A registry that does not answer such questions is believed until the blob is fetched.
    pub fn check_blob(&self, of: &Descriptor) -> Result<()> {
        let naming = || format!("looking for blob {} of {}", of.digest, self.name);
        let reply = self.http.reply(Method::Head, &self.blob_url(&of.digest), ANSWER_LIMIT).context(naming)?;
        let size = reply.header("content-length").parse::<u64>().ok();
        match (reply.status, size) {
            (404 | 410, _) => Err(Error::input(format!("{}: the registry does not have it", naming()))),
            (200, Some(size)) if size != of.size.0 => {
                Err(Error::input(format!("{}: the registry has {size} bytes, the manifest says {}", naming(), of.size.0)))
            }
            _ => Ok(()),
        }
    }

    fn ask(&self, http: &Client, url: &str, limit: u64) -> Result<Reply> {
        let reply = http.reply(Method::Get, url, limit)?;
        let why = || message(&reply.body).map(|text| format!(" ({text})")).unwrap_or_default();
        match reply.status {
            200 => Ok(reply),
            404 | 410 => Err(Error::input(format!("the registry does not have it{}", why()))),
            status => Err(Error::environment(format!("the registry answers {status}{}", why()))),
        }
    }
}

/// What a registry says went wrong.
pub(super) fn message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value["errors"][0]["message"].as_str().filter(|text| !text.is_empty()).map(clean)
}
