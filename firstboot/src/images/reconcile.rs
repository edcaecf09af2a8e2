//! What to do when the tree of images is another than before, as after an update of the root: containerd still knows chains of layers that have
//! left the root, says of their images that they are there, and can neither start nor pull them. Such images, and the dead containers
//! that hold on to them, are dropped, so that they are pulled again from the new tree.

use std::collections::BTreeSet;
use std::path::PathBuf;

use layers::seed::{INDEX, ImageIndex, chain_ids};
use layers::units::Digest;
use layers::{Context, Fault, Result};
use serde_json::Value;

use super::containerd::{Client, cri, images, snapshots};
use super::tree::LARGEST_DOCUMENT;
use crate::host::{Change, Host, RUN, STATE};
use crate::snapshotter::proto::Stat;

/// The index that containerd's state was last made fit for.
const KNOWN: &str = "images.json";
/// There when containerd's state has to be made fit; the unit looks for it.
const WANTED: &str = "reconcile";
const SOCKET: &str = "run/containerd/containerd.sock";
const DATABASE: &str = "var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";
const BLOBS: &str = "var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";

/// Before containerd starts: notes whether its state, if it has one, is of another tree; a new node's has nothing to be made fit.
pub fn note(host: &Host) -> Result<()> {
    let (now, known) = (index(host)?, host.read_bytes(&known())?);
    match known.as_deref() == Some(&*now) {
        true => Ok(()),
        false if host.path(DATABASE).exists() => host.write(&format!("{RUN}/{WANTED}"), b"", 0o644).map(|_| ()),
        false => keep(host, &now).map(|_| ()),
    }
}

/// Makes containerd's state fit the tree; returns the names of the images that were dropped.
pub fn run(host: &Host) -> Result<Vec<String>> {
    let now = index(host)?;
    let gone = gone(host.read_bytes(&known())?.as_deref(), &parse(&now)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().fault(Fault::Environment, || "starting to reconcile".into())?;
    let dropped = runtime.block_on(async {
        let mut client = Client::connect(&host.path(SOCKET)).await?;
        drop_dead(&mut client, cri::CONTAINERS, cri::REMOVE_CONTAINER).await?;
        drop_dead(&mut client, cri::PODS, cri::REMOVE_POD).await?;
        drop_images(&mut client, host, gone.as_ref()).await
    })?;
    keep(host, &now)?;
    host.remove(&format!("{RUN}/{WANTED}"))?;
    Ok(dropped)
}

fn known() -> String {
    format!("{STATE}/{KNOWN}")
}

fn keep(host: &Host, index: &[u8]) -> Result<Change> {
    host.write(&known(), index, 0o600)
}

fn index(host: &Host) -> Result<Vec<u8>> {
    Ok(host.read_bytes(INDEX.trim_start_matches('/'))?.unwrap_or_default())
}

fn parse(bytes: &[u8]) -> Result<ImageIndex> {
    match bytes {
        [] => Ok(ImageIndex::default()),
        bytes => serde_json::from_slice(bytes).fault(Fault::Internal, || "reading an index of images".into()),
    }
}

/// Chains that left the root; nothing is known of a former root that left no index, or a damaged one.
fn gone(old: Option<&[u8]>, new: &ImageIndex) -> Option<BTreeSet<Digest>> {
    let old = parse(old?).ok()?;
    Some(old.chains.into_keys().filter(|chain| !new.chains.contains_key(chain)).collect())
}

/// Containers or pods whose snapshot has lost a layer, which no running one has.
async fn drop_dead(client: &mut Client, list: &'static str, remove: &'static str) -> Result<()> {
    let listed: cri::Listed = client.call(list, cri::All {}).await?.unwrap_or_default();
    for item in listed.items {
        if is_broken(client, &item.id).await? {
            client.call::<_, cri::All>(remove, item).await?;
        }
    }
    Ok(())
}

/// Images that have a chain that is gone, or may be, and were not unpacked beside it.
async fn drop_images(client: &mut Client, host: &Host, gone: Option<&BTreeSet<Digest>>) -> Result<Vec<String>> {
    let listed: images::Listed = client.call(images::LIST, images::Filters { filters: Vec::new() }).await?.unwrap_or_default();
    let mut dropped = Vec::new();
    for image in listed.images {
        let target = image.target.and_then(|target| target.digest.parse().ok());
        let chains = target.map(|target| chains(host, target)).unwrap_or_default();
        let suspect = gone.is_none_or(|gone| chains.iter().any(|chain| gone.contains(chain)));
        if let Some(top) = chains.last().filter(|_| suspect)
            && is_broken(client, &top.to_string()).await?
        {
            dropped.push(image.name);
        }
    }
    for (number, name) in dropped.iter().enumerate() {
        let delete = images::Delete { name: name.clone(), sync: number + 1 == dropped.len() };
        client.call::<_, cri::All>(images::DELETE, delete).await?;
    }
    Ok(dropped)
}

/// Whether the snapshotter has not, or not all of, what containerd's name for a snapshot stands for.
async fn is_broken(client: &mut Client, key: &str) -> Result<bool> {
    let key = snapshots::Key { snapshotter: "chasi-bod".into(), key: key.into() };
    Ok(client.call::<_, Stat>(snapshots::STAT, key).await?.is_none())
}

/// The chains of an image in containerd's content store, from the lowest; an index stands for each of its manifests that is there.
fn chains(host: &Host, target: Digest) -> Vec<Digest> {
    let document = blob(host, target);
    let digest = |value: &Value| value["digest"].as_str().and_then(|text| text.parse().ok());
    if let Some(manifests) = document["manifests"].as_array() {
        return manifests.iter().filter_map(digest).map(|manifest| chains(host, manifest)).find(|chains| !chains.is_empty()).unwrap_or_default();
    }
    let config = digest(&document["config"]).map(|config| blob(host, config)).unwrap_or_default();
    let diff_ids: Vec<_> = config["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(|id| id.as_str()?.parse().ok()).collect();
    chain_ids(&diff_ids)
}

fn blob(host: &Host, digest: Digest) -> Value {
    let path: PathBuf = host.path(BLOBS).join(digest.hex());
    let small = std::fs::metadata(&path).is_ok_and(|meta| meta.len() <= LARGEST_DOCUMENT);
    let bytes = if small { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice(&bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tree::tests::root;

    fn wanted(host: &Host) -> bool {
        host.path("run/chasi-bod/reconcile").exists()
    }

    #[test]
    fn a_new_node_and_an_unchanged_tree_want_nothing() {
        let (_folder, host) = root(&[("a.io/x:1", "p")]);
        note(&host).unwrap();
        assert!(!wanted(&host));
        host.write(DATABASE, b"", 0o600).unwrap();
        note(&host).unwrap();
        assert!(!wanted(&host));
    }

    #[test]
    fn a_changed_tree_is_noted_until_it_was_reconciled() {
        let (_folder, host) = root(&[("a.io/x:1", "p")]);
        note(&host).unwrap();
        host.write(DATABASE, b"", 0o600).unwrap();
        host.write(INDEX, &serde_json::to_vec(&ImageIndex::default()).unwrap(), 0o644).unwrap();
        note(&host).unwrap();
        assert!(wanted(&host));
        assert!(run(&host).unwrap_err().to_string().contains("containerd.sock"));
        note(&host).unwrap();
        assert!(wanted(&host), "nothing was reconciled");
    }

    #[test]
    fn only_chains_that_left_are_gone() {
        let (_a, old) = root(&[("a.io/x:1", "pq")]);
        let (_b, new) = root(&[("a.io/x:1", "pr")]);
        let (old, new) = (index(&old).unwrap(), parse(&index(&new).unwrap()).unwrap());
        let left = chain_ids(&[Digest::of(b"p"), Digest::of(b"q")])[1];
        assert_eq!(gone(Some(&old), &new), Some(BTreeSet::from([left])));
        assert_eq!(gone(Some(b""), &new), Some(BTreeSet::new()));
        assert_eq!((gone(None, &new), gone(Some(b"{"), &new)), (None, None));
    }

    #[test]
    fn chains_of_an_image_are_read_from_the_content_store() {
        let (_folder, host) = root(&[("a.io/x:1", "pq")]);
        let image = parse(&index(&host).unwrap()).unwrap().images[0].clone();
        for digest in [image.digest, image.config] {
            let bytes = std::fs::read(host.path(layers::seed::DOCUMENTS).join(digest.hex())).unwrap();
            host.write(&format!("{BLOBS}/{}", digest.hex()), &bytes, 0o600).unwrap();
        }
        let many = format!(r#"{{"manifests":[{{"digest":"{}"}},{{"digest":"{}"}}]}}"#, Digest::of(b"other platform"), image.digest);
        let many_digest = Digest::of(many.as_bytes());
        host.write(&format!("{BLOBS}/{}", many_digest.hex()), many.as_bytes(), 0o600).unwrap();
        assert_eq!(chains(&host, many_digest), chain_ids(&[Digest::of(b"p"), Digest::of(b"q")]));
        assert!(chains(&host, Digest::of(b"none")).is_empty());
    }
}
