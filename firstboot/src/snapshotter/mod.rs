//! containerd's remote snapshotter for the layers in the root: their chains are there before anything is fetched.

pub mod proto;
pub mod store;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::{Request, Response};
use prost::Message;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request as Call, Response as Answer, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use proto::{Commit, Create, Filters, Key, Kind, Listed, Mounts, Stat, Update, Usage};
use store::Store;

/// The store as all connections share it.
pub type Shared = Arc<Mutex<Store>>;

/// Answers one call of the snapshots service.
pub async fn answer<B>(store: Shared, request: Request<B>) -> Result<Response<Body>, Infallible>
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let path = request.uri().path().to_string();
    let Some(method) = path.strip_prefix("/containerd.services.snapshots.v1.Snapshots/") else {
        return Ok(Status::unimplemented("there is no such service").into_http());
    };
    Ok(match method {
        "Prepare" => unary(store, request, |s, q: Create| made(lock(&s).create(Kind::Active, &q.key, &q.parent, q.labels))).await,
        "View" => unary(store, request, |s, q: Create| made(lock(&s).create(Kind::View, &q.key, &q.parent, q.labels))).await,
        "Mounts" => unary(store, request, |s, q: Key| made(lock(&s).mounts(&q.key))).await,
        "Commit" => unary(store, request, |s, q: Commit| commit(&s, q)).await,
        "Remove" => unary(store, request, |s, q: Key| remove(&s, &q.key)).await,
        "Stat" => unary(store, request, |s, q: Key| lock(&s).stat(&q.key).map(|info| Stat { info: Some(info) })).await,
        "Update" => unary(store, request, |s, q: Update| update(&s, &q)).await,
        "Usage" => unary(store, request, |s, q: Key| usage(&s, &q.key)).await,
        "Cleanup" => unary(store, request, |_, _: Key| Ok(())).await,
        "List" => list(store, request).await,
        _ => Status::unimplemented("there is no such method").into_http(),
    })
}

fn lock(store: &Shared) -> std::sync::MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

fn made(mounts: Result<Vec<proto::Mount>, Status>) -> Result<Mounts, Status> {
    mounts.map(|mounts| Mounts { mounts })
}

fn update(store: &Shared, request: &Update) -> Result<Stat, Status> {
    let info = request.info.as_ref().ok_or_else(|| Status::invalid_argument("the snapshot to update is missing"))?;
    let fields = request.mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
    lock(store).update(info, fields).map(|info| Stat { info: Some(info) })
}

/// Flushes and counts outside the lock: other containers start meanwhile.
fn commit(store: &Shared, request: Commit) -> Result<(), Status> {
    let content = lock(store).content(&request.key)?;
    store::flush(&request.key, &content)?;
    let usage = store::disk_usage(&content);
    lock(store).commit(&request.name, &request.key, request.labels, usage)
}

/// Deletes outside the lock.
fn remove(store: &Shared, key: &str) -> Result<(), Status> {
    let folder = lock(store).remove(key)?;
    folder.iter().for_each(|folder| store::delete(folder));
    Ok(())
}

/// Counts outside the lock: a container's folder can be large.
fn usage(store: &Shared, key: &str) -> Result<Usage, Status> {
    let found = lock(store).usage(key)?;
    let (size, inodes) = found.unwrap_or_else(|folder| store::disk_usage(&folder));
    Ok(Usage { size, inodes })
}

/// Runs one call on a thread that may wait for the disk.
async fn unary<B, Q, R>(store: Shared, request: Request<B>, work: fn(Shared, Q) -> Result<R, Status>) -> Response<Body>
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
{
    let call = service_fn(move |call: Call<Q>| {
        let store = store.clone();
        async move {
            let done = tokio::task::spawn_blocking(move || work(store, call.into_inner())).await;
            done.map_err(|e| Status::internal(e.to_string()))?.map(Answer::new)
        }
    });
    Grpc::new(ProstCodec::<R, Q>::default()).unary(call, request).await
}

async fn list<B>(store: Shared, request: Request<B>) -> Response<Body>
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let call = service_fn(move |call: Call<Filters>| {
        let store = store.clone();
        async move {
            let all = tokio::task::spawn_blocking(move || lock(&store).list(&call.into_inner().filters)).await;
            let all = all.map_err(|e| Status::internal(e.to_string()))?;
            // In parts, because a message is limited to 4 MiB.
            let parts: Vec<Result<Listed, Status>> = all.chunks(100).map(|part| Ok(Listed { info: part.to_vec() })).collect();
            Ok::<_, Status>(Answer::new(tokio_stream::iter(parts)))
        }
    });
    Grpc::new(ProstCodec::<Listed, Filters>::default()).server_streaming(call, request).await
}
