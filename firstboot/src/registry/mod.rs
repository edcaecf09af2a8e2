//! The images of the root as a read-only registry on loopback (OCI distribution specification 1.1): manifests, indices and configurations
//! by tag and digest. Layers are not served; the snapshotter has them.

use std::str::FromStr as _;

use hyper::{Method, StatusCode};
use layers::seed::Image;
use layers::units::Digest;
use serde_json::{Value, json};

use crate::images::tree::Tree;

/// What is sent back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Media type of the body.
    pub media_type: String,
    /// Digest of the body, where it is a document.
    pub digest: Option<Digest>,
    /// The body, also for HEAD, whose answer tells its length.
    pub body: Vec<u8>,
}

/// Answers one request; `query` is the part after `?`.
pub fn answer(tree: &Tree, method: &Method, path: &str, query: &str) -> Reply {
    if method != Method::GET && method != Method::HEAD {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only");
    }
    match path {
        "/v2" | "/v2/" => return plain(&json!({})),
        _ => {}
    }
    let Some(route) = path.strip_prefix("/v2/").and_then(Route::of) else {
        return error(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is no such endpoint");
    };
    let repository = match namespace(query) {
        Some(host) => format!("{host}/{}", route.name),
        None => route.name.to_string(),
    };
    let images: Vec<&Image> = tree.images().iter().filter(|image| split(&image.name).0 == repository).collect();
    if images.is_empty() {
        return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &format!("{repository} is not in this node's image"));
    }
    match route.kind {
        Kind::Manifest => manifest(tree, &images, &repository, route.reference),
        Kind::Blob => blob(tree, &images, route.reference),
        Kind::Tags => {
            plain(&json!({"name": repository, "tags": images.iter().filter(|i| !i.name.contains('@')).map(|i| split(&i.name).1).collect::<Vec<_>>()}))
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Manifest,
    Blob,
    Tags,
}

struct Route<'a> {
    name: &'a str,
    kind: Kind,
    reference: &'a str,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Some(Self { name, kind: Kind::Tags, reference: "" });
        }
        let (rest, reference) = path.rsplit_once('/')?;
        let (name, kind) = match rest.strip_suffix("/manifests") {
            Some(name) => (name, Kind::Manifest),
            None => (rest.strip_suffix("/blobs")?, Kind::Blob),
        };
        (!name.is_empty() && !reference.is_empty()).then_some(Self { name, kind, reference })
    }
}

/// The host that containerd's mirrors stand for (`ns=`); ports come as `%3A`.
fn namespace(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("ns="))?;
    Some(value.replace("%3A", ":").replace("%3a", ":")).filter(|v| !v.is_empty())
}

/// Repository and tag of a full reference, or its digest where it has no tag.
fn split(name: &str) -> (&str, &str) {
    if let Some(pair) = name.split_once('@') {
        return pair;
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    }
}

fn manifest(tree: &Tree, images: &[&Image], repository: &str, reference: &str) -> Reply {
    let unknown = || error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", &format!("{repository} has no {reference} in this node's image"));
    let found = match Digest::from_str(reference) {
        Ok(digest) if reference.starts_with("sha256:") => images.iter().any(|i| i.digest == digest || i.manifest == digest).then_some(digest),
        _ => images.iter().find(|i| split(&i.name).1 == reference).map(|i| i.digest),
    };
    let Some(digest) = found else { return unknown() };
    let told = images.iter().find(|i| i.digest == digest).map(|i| i.media_type.clone());
    document(tree, &digest, |body| told.unwrap_or_else(|| media_type(body))).unwrap_or_else(unknown)
}

fn blob(tree: &Tree, images: &[&Image], reference: &str) -> Reply {
    let Ok(digest) = Digest::from_str(reference) else {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "a blob is named by sha256:<64 hex digits>");
    };
    let unknown = || error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "layers are not served: the node's snapshotter has them unpacked");
    if !images.iter().any(|i| i.config == digest) {
        return unknown();
    }
    document(tree, &digest, |_| "application/octet-stream".into()).unwrap_or_else(unknown)
}

/// The media type that a manifest tells of itself; an OCI manifest need not.
fn media_type(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    value["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json").into()
}

fn document(tree: &Tree, digest: &Digest, media_type: impl FnOnce(&[u8]) -> String) -> Option<Reply> {
    match tree.document(digest) {
        Ok(Some(body)) => Some(Reply { status: StatusCode::OK, media_type: media_type(&body), digest: Some(*digest), body }),
        Ok(None) => None,
        Err(e) => Some(error(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", &format!("reading {digest}: {e}"))),
    }
}

fn plain(value: &Value) -> Reply {
    Reply { status: StatusCode::OK, media_type: "application/json".into(), digest: None, body: value.to_string().into_bytes() }
}

fn error(status: StatusCode, code: &str, message: &str) -> Reply {
    Reply { status, ..plain(&json!({"errors": [{"code": code, "message": message}]})) }
}
