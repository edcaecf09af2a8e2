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
    // The registry that containerd's mirror stands for, so that equal repositories of two registries stay apart.
    let repository = match parameter(query, "ns") {
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
        Kind::Tags => tags(&images, &repository, query),
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

/// A parameter of the query, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut parts = value.split('%');
    let mut out = parts.next()?.as_bytes().to_vec();
    for part in parts {
        out.extend(hex::decode(part.get(..2)?).ok()?);
        out.extend(part.as_bytes().get(2..)?);
    }
    String::from_utf8(out).ok().filter(|value| !value.is_empty())
}

/// Repository and tag of a full reference, or its digest where it has no tag.
pub fn split(name: &str) -> (&str, &str) {
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

/// Tags in order, after `last` and at most `n` of them where the query says so.
fn tags(images: &[&Image], repository: &str, query: &str) -> Reply {
    let mut tags: Vec<_> = images.iter().filter(|image| !image.name.contains('@')).map(|image| split(&image.name).1).collect();
    tags.sort_unstable();
    tags.dedup();
    let last = parameter(query, "last").unwrap_or_default();
    let limit = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let tags: Vec<_> = tags.into_iter().filter(|tag| **tag > *last).take(limit).collect();
    plain(&json!({"name": repository, "tags": tags}))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tree::tests::root;

    fn get(tree: &Tree, path: &str) -> Reply {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        answer(tree, &Method::GET, path, query)
    }

    fn code(reply: &Reply) -> (u16, String) {
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        (reply.status.as_u16(), body["errors"][0]["code"].as_str().unwrap().into())
    }

    #[test]
    fn equal_repositories_of_two_registries_stay_apart() {
        let (_folder, host) = root(&[("docker.io/library/x:1", "p"), ("a.io:5000/library/x:1", "q")]);
        let tree = Tree::load(&host).unwrap();
        let digest = |path: &str| get(&tree, path).digest;
        let of = |name: &str| tree.images().iter().find(|i| i.name == name).map(|i| i.digest);
        assert_eq!(digest("/v2/library/x/manifests/1?ns=docker.io"), of("docker.io/library/x:1"));
        assert_eq!(digest("/v2/library/x/manifests/1?ns=a.io%3A5000"), of("a.io:5000/library/x:1"));
        assert_eq!(digest("/v2/docker.io/library/x/manifests/1"), of("docker.io/library/x:1"));
        let other = of("a.io:5000/library/x:1").unwrap();
        assert_eq!(code(&get(&tree, &format!("/v2/library/x/manifests/{other}?ns=docker.io"))), (404, "MANIFEST_UNKNOWN".into()));
        assert_eq!(code(&get(&tree, "/v2/library/x/manifests/1?ns=%zz")), (404, "NAME_UNKNOWN".into()));
    }

    #[test]
    fn what_is_not_there_is_told_as_the_specification_says() {
        let (_folder, host) = root(&[("a.io/x:1", "p")]);
        let tree = Tree::load(&host).unwrap();
        assert_eq!(get(&tree, "/v2/").status, 200);
        assert_eq!(code(&get(&tree, "/v2/y/manifests/1?ns=a.io")), (404, "NAME_UNKNOWN".into()));
        assert_eq!(code(&get(&tree, "/v2/x/manifests/2?ns=a.io")), (404, "MANIFEST_UNKNOWN".into()));
        assert_eq!(code(&get(&tree, &format!("/v2/x/blobs/{}?ns=a.io", Digest::of(b"p")))), (404, "BLOB_UNKNOWN".into()));
        assert_eq!(code(&get(&tree, "/v2/x/blobs/sha256:1?ns=a.io")), (400, "DIGEST_INVALID".into()));
        assert_eq!(code(&get(&tree, "/v2/x/referrers/1?ns=a.io")).0, 404);
        assert_eq!(answer(&tree, &Method::PUT, "/v2/x/manifests/1", "ns=a.io").status, 405);
    }

    #[test]
    fn tags_come_in_order_and_in_parts() {
        let (_folder, host) = root(&[("a.io/x:2", "p"), ("a.io/x:1", "q"), ("a.io/y:1", "q"), ("a.io/x:3", "p")]);
        let tree = Tree::load(&host).unwrap();
        let tags =
            |query: &str| serde_json::from_slice::<Value>(&get(&tree, &format!("/v2/x/tags/list?ns=a.io{query}")).body).unwrap()["tags"].clone();
        assert_eq!(tags(""), json!(["1", "2", "3"]));
        assert_eq!(tags("&n=1&last=1"), json!(["2"]));
        assert_eq!(tags("&n=0"), json!([]));
    }

    #[test]
    fn f7_a_damaged_document_is_no_other_images_matter() {
        let (_folder, host) = root(&[("a.io/x:1", "p"), ("a.io/y:1", "q")]);
        let tree = Tree::load(&host).unwrap();
        let bad = tree.images()[0].digest;
        host.write(&format!("{}/{}", layers::seed::DOCUMENTS, bad.hex()), b"other", 0o644).unwrap();
        let reply = get(&tree, "/v2/x/manifests/1?ns=a.io");
        assert_eq!(code(&reply), (500, "UNKNOWN".into()));
        assert!(String::from_utf8(reply.body).unwrap().contains(&bad.to_string()));
        assert_eq!(get(&tree, "/v2/y/manifests/1?ns=a.io").status, 200);
    }
}
