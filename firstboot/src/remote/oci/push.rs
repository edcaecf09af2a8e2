//! Filling a repository (OCI distribution specification 1.1, push).

use layers::image::Descriptor;
use layers::units::Digest;
use layers::{Context as _, Error, Result};

use super::Repository;
use super::document::{ACCEPTED, Document};
use super::repository::{ANSWER_LIMIT, message};
use crate::remote::http::{Body, Method, Reply, Upload};
use crate::remote::redirect;

impl Repository {
    /// Digest of what a tag or digest stands for; nothing where the registry does not have it.
    pub fn find(&self, wanted: &str) -> Result<Option<Digest>> {
        let asking = || format!("looking for {wanted} in {}", self.name);
        let reply = self.http.accepting(ACCEPTED).reply(Method::Head, &self.manifest_url(wanted), ANSWER_LIMIT).context(asking)?;
        match reply.status {
            200 => match reply.header("docker-content-digest").parse() {
                Ok(digest) => Ok(Some(digest)),
                // A registry need not say it of itself.
                Err(_) => self.manifest(wanted).map(|document| Some(document.descriptor.digest)),
            },
            404 | 410 => Ok(None),
            _ => Err(refused(&reply)).context(asking),
        }
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, of: &Descriptor) -> Result<bool> {
        let asking = || format!("looking for blob {} of {}", of.digest, self.name);
        let reply = self.http.reply(Method::Head, &self.blob_url(&of.digest), ANSWER_LIMIT).context(asking)?;
        match reply.status {
            200 => Ok(true),
            404 | 410 => Ok(false),
            _ => Err(refused(&reply)).context(asking),
        }
    }

    /// Puts a blob there.
    pub fn put_blob(&self, of: &Descriptor, body: &Body<'_>) -> Result<()> {
        let pushing = || format!("pushing blob {} to {}", of.digest, self.name);
        let push = || {
            let begin = format!("{}/blobs/uploads/", self.base);
            let reply = expect(self.http.upload(&Upload::Post, &begin, &begin)?, 202)?;
            let place = redirect::next(&begin, reply.header("location"))?;
            let place = format!("{place}{}digest={}", if place.contains('?') { '&' } else { '?' }, of.digest);
            expect(self.http.upload(&Upload::Put(body), &begin, &place)?, 201).map(drop)
        };
        push().context(pushing)
    }

    /// Puts a manifest or index there, by its digest or under a tag; what it names must be there already.
    pub fn put_manifest(&self, wanted: &str, document: &Document) -> Result<()> {
        let Document { descriptor, bytes, .. } = document;
        let url = self.manifest_url(wanted);
        let open: &dyn Fn() -> Result<Box<dyn std::io::Read>> = &|| Ok(Box::new(std::io::Cursor::new(bytes.clone())));
        let body = Body { media_type: &descriptor.media_type, size: descriptor.size.0, open };
        let put = || expect(self.http.upload(&Upload::Put(&body), &url, &url)?, 201).map(drop);
        put().context(|| format!("pushing manifest {wanted} to {}", self.name))
    }
}

fn expect(reply: Reply, status: u16) -> Result<Reply> {
    if reply.status == status { Ok(reply) } else { Err(refused(&reply)) }
}

fn refused(reply: &Reply) -> Error {
    let why = message(&reply.body).map(|text| format!(" ({text})")).unwrap_or_default();
    Error::environment(format!("the registry answers {}{why}", reply.status))
}
