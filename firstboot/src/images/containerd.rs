//! The few calls to containerd's services that the images of the root need, without its generated code.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::http::uri::PathAndQuery;
use hyper::{Request as Call, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use layers::{Context, Fault, Result};
use prost::Message;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// The namespace that the kubelet's images and containers are in.
const NAMESPACE: &str = "k8s.io";
/// Longest time for one call.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to containerd.
#[derive(Debug)]
pub struct Client {
    grpc: Grpc<Connection>,
    socket: PathBuf,
}

/// One HTTP/2 connection as the service that tonic's client speaks through.
#[derive(Debug, Clone)]
struct Connection(SendRequest<Body>);

impl Service<Call<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, call: Call<Body>) -> Self::Future {
        Box::pin(self.0.send_request(call))
    }
}

impl Client {
    /// Connects to containerd's socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let connecting = || format!("connecting to containerd at {}", socket.display());
        let stream = UnixStream::connect(socket).await.fault(Fault::Environment, connecting)?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.fault(Fault::Environment, connecting)?;
        tokio::spawn(connection);
        let grpc = Grpc::with_origin(Connection(sender), Uri::from_static("http://containerd"));
        Ok(Self { grpc, socket: socket.into() })
    }

    /// One call; `None` when what it names is not there.
    pub async fn call<Q, R>(&mut self, method: &'static str, message: Q) -> Result<Option<R>>
    where
        Q: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(NAMESPACE));
        let work = async {
            self.grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            self.grpc.unary(request, PathAndQuery::from_static(method), ProstCodec::<Q, R>::default()).await
        };
        let done = tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        match done {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(layers::Error::environment(format!("calling {method} of {}: {}", self.socket.display(), status.message()))),
        }
    }
}

/// Messages of containerd's images service (api/services/images/v1), as far as they are used.
pub mod images {
    /// Path of the method that lists images.
    pub const LIST: &str = "/containerd.services.images.v1.Images/List";
    /// Path of the method that deletes one.
    pub const DELETE: &str = "/containerd.services.images.v1.Images/Delete";

    /// List's request.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Filters {
        /// Filters; one of them must match.
        #[prost(string, repeated, tag = "1")]
        pub filters: Vec<String>,
    }

    /// List's answer.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Listed {
        /// Images.
        #[prost(message, repeated, tag = "1")]
        pub images: Vec<Image>,
    }

    /// A name for a manifest or an index.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Image {
        /// The name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// What it stands for.
        #[prost(message, optional, tag = "3")]
        pub target: Option<Descriptor>,
    }

    /// Where a document is.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Descriptor {
        /// Its digest.
        #[prost(string, tag = "2")]
        pub digest: String,
    }

    /// Delete's request.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Delete {
        /// The name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// Whether what nothing else needs is gone when the call returns.
        #[prost(bool, tag = "2")]
        pub sync: bool,
    }
}

/// Messages of containerd's snapshots service (api/services/snapshots/v1) for a caller, who names the snapshotter.
pub mod snapshots {
    /// Path of the method that tells of a snapshot.
    pub const STAT: &str = "/containerd.services.snapshots.v1.Snapshots/Stat";

    /// Stat's request; its answer is [`crate::snapshotter::proto::Stat`].
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Key {
        /// Name of the snapshotter.
        #[prost(string, tag = "1")]
        pub snapshotter: String,
        /// Name of the snapshot.
        #[prost(string, tag = "2")]
        pub key: String,
    }
}

/// Messages of the container runtime interface (k8s.io/cri-api runtime/v1), as far as they are used.
pub mod cri {
    /// Path of the method that lists containers.
    pub const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
    /// Path of the method that removes one.
    pub const REMOVE_CONTAINER: &str = "/runtime.v1.RuntimeService/RemoveContainer";
    /// Path of the method that lists pods.
    pub const PODS: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
    /// Path of the method that removes one.
    pub const REMOVE_POD: &str = "/runtime.v1.RuntimeService/RemovePodSandbox";

    /// A request without filters.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct All {}

    /// The answer of both lists.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Listed {
        /// Containers or pods.
        #[prost(message, repeated, tag = "1")]
        pub items: Vec<Id>,
    }

    /// Names one container or pod, which is also the key of its snapshot.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Id {
        /// The identifier.
        #[prost(string, tag = "1")]
        pub id: String,
    }
}
