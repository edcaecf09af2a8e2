//! The node's side of the images in the root: one process is registry and snapshotter, and is there before containerd starts.

pub mod artifact;
pub mod config;
mod containerd;
pub mod reconcile;
pub mod tree;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use layers::{Context, Fault, Result};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;

use crate::host::{Host, RUN, STATE};
use crate::snapshotter::store::Store;
use crate::{agent, registry, snapshotter};
use tree::Tree;

/// The snapshotter's socket below `RUN`.
pub const SOCKET: &str = "images.sock";
/// The snapshotter's state below `STATE`; short, because it stands in mount options once for each layer.
pub const SNAPSHOTS: &str = "s";
/// Most connections to the registry at one time.
const CONNECTIONS: usize = 64;

/// What is said of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Nothing.
    Quiet,
    /// One line for each request to the registry.
    Requests,
}

/// Serves registry (on loopback) and snapshotter until the process is ended.
pub fn serve(host: &Host, port: u16, log: Log) -> Result<()> {
    let tree = Arc::new(Tree::load(host)?);
    for done in [config::write_pinned(host, tree.images()).map(|_| ()), config::write_hosts(host, port).map(|_| ()), reconcile::note(host)] {
        // Images of the root start on a full disk, too.
        done.unwrap_or_else(|error| eprintln!("images: {error}"));
    }
    let state = host.path(STATE).join(SNAPSHOTS);
    let store = Store::open(tree.clone(), &state).fault(Fault::Environment, || format!("reading snapshots in {}", state.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = runtime.fault(Fault::Environment, || "starting the images service".into())?;
    runtime.block_on(async {
        let socket = listen(host)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let web = TcpListener::bind(address).await.fault(Fault::Environment, || format!("listening on {address}"))?;
        agent::notify_ready();
        tokio::spawn(serve_snapshots(socket, Arc::new(Mutex::new(store))));
        serve_registry(web, tree, log).await;
        Ok(())
    })
}

fn listen(host: &Host) -> Result<UnixListener> {
    let path = host.path(RUN).join(SOCKET);
    let _ = std::fs::create_dir_all(host.path(RUN));
    let _ = std::fs::remove_file(&path);
    // Made for root alone: whoever speaks to it has containers' files in hand.
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(&path);
    rustix::process::umask(old);
    bound.fault(Fault::Environment, || format!("listening on {}", path.display()))
}

async fn serve_snapshots(socket: UnixListener, store: snapshotter::Shared) {
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let store = store.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| snapshotter::answer(store.clone(), request));
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve_registry(web: TcpListener, tree: Arc<Tree>, log: Log) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = web.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let tree = tree.clone();
        tokio::spawn(async move {
            talk(stream, tree, log).await;
            drop(place);
        });
    }
}

async fn talk(stream: TcpStream, tree: Arc<Tree>, log: Log) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&tree, &request, log);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(16 << 10);
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn respond(tree: &Tree, request: &Request<Incoming>, log: Log) -> Response<Full<Bytes>> {
    let reply = registry::answer(tree, request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
    if log == Log::Requests {
        eprintln!("registry: {} {} {}", request.method(), request.uri(), reply.status.as_u16());
    }
    if reply.status.is_server_error() {
        eprintln!("registry: {} {}: {}", request.method(), request.uri(), String::from_utf8_lossy(&reply.body));
    }
    let mut out = Response::builder()
        .status(reply.status)
        .header("content-type", reply.media_type)
        .header("content-length", reply.body.len())
        .header("docker-distribution-api-version", "registry/2.0");
    if let Some(digest) = reply.digest {
        out = out.header("docker-content-digest", digest.to_string());
    }
    let body = if request.method() == Method::HEAD { Bytes::new() } else { reply.body.into() };
    out.body(Full::new(body)).unwrap_or_default()
}
